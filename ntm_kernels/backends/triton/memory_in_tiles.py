"""The launches for a memory that is too large for one program: of the kernels in ``tiled.py``.

Each method is one stage, or several fused, on all tiles of all sequences: one launch, or a few in
order. What a launch hands to the next goes through tensors that are made here.
"""

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
    """Launches on ``memory [B, N, M]``, with J programs for each sequence.

    The parameters of heads are ``raw``, views into interface vectors, or activated.
    """

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
        """Launch a kernel that is compiled for the sizes and blocks of ``letters``.

        Other sizes do not make Triton compile it again. ``width`` is D, the elements of all
        gradients of parameters in a part.
        """
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
        self.launch(self.kernels.similarity_kernel, "H N M P", self.memory, heads, chain)
        self.launch(
            self.kernels.content_interpolate_shift_kernel,
            "H N S P J",
            heads,
            chain,
            previous_weightings,
        )
        return chain

    def sharpen_read_write(self, heads: Heads, chain: Chain | None, after: StepOutputs) -> None:
        """Fill ``after``, of which read vectors and memory may be ``None``.

        With a ``chain`` the weightings are found from it, otherwise they are given in ``after``.
        """
        read_parts = None
        if after.read_vectors is not None:
            read_parts = self.gradient_parts(after.read_vectors.shape[1:].numel())
        touched = read_parts is not None or after.memory is not None
        self.launch(
            self.kernels.sharpen_read_write_kernel,
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

    def read_write_backward(
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
        """From ``grads`` to the gradients of the memory before, unless addressing adds to it, and
        of the weightings by all ways.

        With a ``chain`` the weightings are found from it, otherwise they are given. Returns the
        parts of ``Σ dw w``, which the backward of the sharpening needs.
        """
        means = self.part()
        self.launch(
            self.kernels.read_write_backward_kernel,
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
            # This kernel holds more blocks of the tile's size at once than the others. It may take
            # all registers that a thread can have, rather than spill.
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
        d_read_write: Tensor | None = None,
        d_memory: Tensor,
        d_previous_weightings: Tensor,
        d_heads: Heads,
    ) -> None:
        """Fill ``d_memory``, ``d_previous_weightings`` and the parts of ``d_heads``.

        ``d_read_write`` is the part of ``d_memory`` that comes from reading and writing.
        """
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
            self.kernels.interpolate_shift_backward_kernel,
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
            self.kernels.similarity_content_backward_kernel,
            "H N M P J",
            d_content,
            totals,
            self.memory,
            heads,
            chain,
            d_read_write,
            d_memory,
            d_heads,
            width=width,
        )
