"""The launches for a memory too large for one program; their kernels are in ``kernels/tiled``."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from torch import Tensor

from ntm_kernels.backends.triton.launch_table import most_registers, padded
from ntm_kernels.backends.triton.launcher import Launcher
from ntm_kernels.backends.triton.records import Heads
from ntm_kernels.ops import Field, Sizes, StepOutputs, record
from ntm_kernels.ops.declare import empty
from ntm_kernels.reference import arithmetic_dtype


@record
class Chain(NamedTuple):
    """An addressing, as far as its backward needs it. G are the programs of a sequence."""

    scores: Annotated[Tensor, Field("B H N")]  # β K
    tops: Annotated[Tensor, Field("B H G")]  # largest score of a part
    sums: Annotated[Tensor, Field("B H G")]  # its sum of exponentials
    shifted: Annotated[Tensor, Field("B H N")]  # w̃
    peaks: Annotated[Tensor, Field("B H G")]  # largest w̃ of a part
    powers: Annotated[Tensor, Field("B H G")]  # its sum of powers


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
        self.constants = {
            "H": sizes.num_heads,
            "N": sizes.memory_size,
            "P": sizes.interface_size if raw else 0,
            "BH": padded(sizes.num_heads),
            "BN": tile,
            "RAW": raw,
            "ACC": launcher.accumulator(memory.dtype),
            "warps": self.warps,
        }
        self.words = {"M": sizes.word_size, "BM": padded(sizes.word_size)}
        self.taps = {"S": sizes.num_taps, "BS": padded(sizes.num_taps)}
        self.parts = {"BG": padded(self.programs)}

    def launch(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        grid = (self.sizes.batch, self.programs)
        self.launcher.run(
            kernel,
            grid,
            *arguments,
            self.programs,
            self.run_length,
            **self.constants,
            **constants,
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
        """``total`` becomes the sum of ``parts [B, G, ...]`` over G."""
        width = parts.shape[2:].numel()
        part_block, block = self.launcher.table.combine_block
        self.launcher.run(
            self.kernels.combine_kernel,
            (self.sizes.batch, -(-width // block)),
            parts,
            total,
            self.programs,
            width,
            BG=part_block,
            BD=block,
            ACC=self.constants["ACC"],
            warps=self.warps,
        )
        return total

    def combined(self, parts: Tensor) -> Tensor:
        """The sum of ``parts [B, G, D]`` over G."""
        return self.combine(parts, self.new_empty(self.sizes.batch, parts.shape[2]))

    def heads_on(self, memory: Tensor | None) -> dict[str, int]:
        """How many heads read and write; where there is no memory to read or write, none."""
        if memory is None:
            return {"R": 0, "W": 0}
        return {"R": self.sizes.num_read_heads, "W": self.sizes.num_write_heads}

    def address(self, heads: Heads, previous_weightings: Tensor) -> Chain:
        letters = {"G": self.programs}
        chain = empty(Chain, self.sizes, self.memory, {"arithmetic": self.dtype}, letters)
        self.launch(self.kernels.scores_kernel, self.memory, heads, chain, **self.words)
        self.launch(
            self.kernels.shift_kernel,
            heads,
            chain,
            previous_weightings,
            **self.taps,
            **self.parts,
        )
        return chain

    def finish(self, heads: Heads, chain: Chain | None, after: StepOutputs) -> None:
        """Find the weightings if there is a ``chain``; then read and write with them.

        Fills the read vectors and the memory of ``after`` that are there.
        """
        read_parts = None
        if after.read_vectors is not None:
            read_parts = self.gradient_parts(after.read_vectors.shape[1:].numel())
        touched = (
            self.memory if after.read_vectors is not None or after.memory is not None else None
        )
        self.launch(
            self.kernels.finish_kernel,
            touched,
            heads,
            chain,
            after.weightings,
            read_parts,
            after.memory,
            **self.heads_on(touched),
            **self.words,
            **self.parts,
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
            grads,
            None if d_memory is None else self.memory,
            heads,
            chain,
            weightings,
            d_memory,
            d_weightings,
            means,
            d_heads,
            D=0 if d_heads is None else d_heads.width,
            # The one with most blocks of the tile's size at once; REPORT.md has what it takes.
            registers=most_registers(self.warps),
            **self.heads_on(d_memory),
            **self.words,
            **self.parts,
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
            d_weightings,
            means,
            heads,
            chain,
            d_shifted,
            d_heads,
            D=width,
            **self.parts,
        )
        self.launch(
            self.kernels.shift_backward_kernel,
            d_shifted,
            heads,
            chain,
            previous_weightings,
            d_content,
            totals,
            d_heads,
            d_previous_weightings,
            D=width,
            **self.taps,
            **self.parts,
        )
        self.launch(
            self.kernels.scores_backward_kernel,
            d_content,
            totals,
            self.memory,
            heads,
            chain,
            d_finish,
            d_memory,
            d_heads,
            D=width,
            **self.words,
            **self.parts,
        )
