"""The launches for a memory too large for one program; their kernels are in ``kernels/tiled``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ntm_kernels.backends.triton.launch_table import most_registers, padded
from ntm_kernels.backends.triton.launcher import Launcher
from ntm_kernels.backends.triton.records import Block, Chain, Heads, Shape, only
from ntm_kernels.ops import Sizes, StepOutputs
from ntm_kernels.ops.declare import empty
from ntm_kernels.reference import arithmetic_dtype


class Tiled:
    """Launches on ``memory [B, N, M]``; the parameters of heads are ``raw`` or activated."""

    def __init__(self, launcher: Launcher, memory: Tensor, sizes: Sizes, raw: bool = False) -> None:
        self.launcher, self.kernels = launcher, launcher.kernels
        self.memory, self.sizes = memory, sizes
        self.dtype = arithmetic_dtype(memory.dtype)
        tile, programs = launcher.table.tile(sizes, self.dtype)
        tiles = -(-sizes.memory_size // tile)
        self.run_length = tile * -(-tiles // programs)
        self.programs = -(-sizes.memory_size // self.run_length)
        self.warps = launcher.table.tile_warps
        self.shape = Shape.of(sizes, "R W H N M S P" if raw else "R W H N M S")
        self.block = Block(
            launcher.accumulator(memory.dtype),
            H=padded(sizes.num_heads),
            N=tile,
            M=padded(sizes.word_size),
            S=padded(sizes.num_taps),
            J=padded(self.programs),
        )

    def launch(
        self,
        kernel: Any,
        letters: str,
        *arguments: Any,
        width: int = 0,
        registers: int | None = None,
    ) -> None:
        """Launch a kernel, compiled for the sizes and blocks of ``letters``, and for gradients of
        parameters of ``width`` in all."""
        self.launcher.run(
            kernel,
            (self.sizes.batch, self.programs),
            *arguments,
            self.programs,
            self.run_length,
            shape=only(self.shape._replace(D=width), f"{letters} D"),
            block=only(self.block, letters),
            warps=self.warps,
            registers=registers,
        )

    def new_empty(self, *shape: int) -> Tensor:
        return self.memory.new_empty(shape, dtype=self.dtype)

    def weighting(self) -> Tensor:
        return self.new_empty(*self.sizes.shape("B H N"))

    def whole_memory(self) -> Tensor:
        return self.new_empty(*self.sizes.shape("B N M"))

    def part(self) -> Tensor:
        """One number per head and program."""
        return self.new_empty(*self.sizes.shape("B H"), self.programs)

    def gradient_parts(self, width: int) -> Tensor:
        return self.new_empty(self.sizes.batch, self.programs, width)

    def combine(self, parts: Tensor, total: Tensor) -> Tensor:
        """``total`` becomes the sum of ``parts [B, J, ...]`` over J."""
        width = parts.shape[2:].numel()
        part_block, block = self.launcher.table.combine_block
        self.launcher.run(
            self.kernels.combine_kernel,
            (self.sizes.batch, -(-width // block)),
            parts,
            total,
            self.programs,
            width,
            block=Block(self.block.dtype, J=part_block, D=block),
            warps=self.warps,
        )
        return total

    def combined(self, parts: Tensor) -> Tensor:
        """The sum of ``parts [B, J, D]`` over J."""
        return self.combine(parts, self.new_empty(self.sizes.batch, parts.shape[2]))

    def address(self, heads: Heads, previous_weightings: Tensor) -> Chain:
        programs = {"J": self.programs}
        chain = empty(Chain, self.sizes, self.memory, {"arithmetic": self.dtype}, programs)
        self.launch(self.kernels.scores_kernel, "H N M P", self.memory, heads, chain)
        self.launch(self.kernels.shift_kernel, "H N S P J", heads, chain, previous_weightings)
        return chain

    def finish(self, heads: Heads, chain: Chain | None, after: StepOutputs) -> None:
        """Find the weightings if there is a ``chain``; then read and write with them.

        Fills the read vectors and the memory of ``after`` that are there.
        """
        read_parts = None
        if after.read_vectors is not None:
            read_parts = self.gradient_parts(after.read_vectors.shape[1:].numel())
        touched = read_parts is not None or after.memory is not None
        self.launch(
            self.kernels.finish_kernel,
            "R W H N M P J" if touched else "H N P J",
            self.memory if touched else None,
            heads,
            chain,
            after.weightings,
            read_parts,
            after.memory,
        )
        if read_parts is not None:
            self.combine(read_parts, after.read_vectors)

    def finish_backward(
        self,
        grads: StepOutputs,
        heads: Heads,
        *,
        chain: Chain | None = None,
        weightings: Tensor | None = None,
        d_memory: Tensor | None = None,
        d_weightings: Tensor,
        d_heads: Heads | None = None,
    ) -> Tensor:
        """From ``grads`` of read vectors, memory and weightings after, to those before.

        Weightings are given, or found by the ``chain``. Returns the parts of ``Σ dw w``.
        """
        means = self.part()
        self.launch(
            self.kernels.finish_backward_kernel,
            "H N P J" if d_memory is None else "R W H N M P J",
            grads,
            None if d_memory is None else self.memory,
            heads,
            chain,
            weightings,
            d_memory,
            d_weightings,
            means,
            d_heads,
            width=0 if d_heads is None else d_heads.width,
            # The one with most blocks of the tile's size at once; REPORT.md has what it takes.
            registers=most_registers(self.warps),
        )
        return means

    def address_backward(
        self,
        d_weightings: Tensor,
        means: Tensor,
        heads: Heads,
        chain: Chain,
        previous_weightings: Tensor,
        *,
        d_finish: Tensor | None = None,
        d_memory: Tensor,
        d_previous_weightings: Tensor,
        d_heads: Heads,
    ) -> None:
        """``d_finish`` is added to ``d_memory``."""
        width = d_heads.width
        d_shifted, d_content, totals = self.weighting(), self.weighting(), self.part()
        self.launch(
            self.kernels.sharpen_backward_kernel,
            "H N P J",
            d_weightings,
            means,
            heads,
            chain,
            d_shifted,
            d_heads,
            width=width,
        )
        self.launch(
            self.kernels.shift_backward_kernel,
            "H N S P J",
            d_shifted,
            heads,
            chain,
            previous_weightings,
            d_content,
            totals,
            d_heads,
            d_previous_weightings,
            width=width,
        )
        self.launch(
            self.kernels.scores_backward_kernel,
            "H N M P J",
            d_content,
            totals,
            self.memory,
            heads,
            chain,
            d_finish,
            d_memory,
            d_heads,
            width=width,
        )
