"""The launches of the tiled kernels, for one call on a memory too large for one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ntm_kernels.backends.triton.launch import Table, most_registers, padded
from ntm_kernels.interface import HeadParameters
from ntm_kernels.reference import arithmetic_dtype

Run = Callable[..., None]


class Chain(NamedTuple):
    """An addressing, as far as its backward needs it."""

    scores: Tensor  # [B, H, N]
    tops: Tensor  # [B, H, G]
    sums: Tensor  # [B, H, G]
    shifted: Tensor  # [B, H, N]
    peaks: Tensor  # [B, H, G]
    powers: Tensor  # [B, H, G]


class Tiled:
    """Launches on ``memory [B, N, M]``; parameters are raw views ``stride`` apart, or activated.

    R and W are the heads that read and write. Only ``address`` has heads that do neither.
    """

    def __init__(
        self,
        run: Run,
        kernels: Any,
        table: Table,
        memory: Tensor,
        *,
        num_heads: int,
        num_taps: int = 1,
        num_read_heads: int = 0,
        num_write_heads: int = 0,
        stride: int | None = None,
    ) -> None:
        self.run, self.kernels, self.memory = run, kernels, memory
        self.batch, memory_size, word_size = memory.shape
        self.num_heads, self.num_read_heads = num_heads, num_read_heads
        self.dtype = arithmetic_dtype(memory.dtype)
        tile, programs = table.tile(self.batch, memory_size, word_size, num_heads, self.dtype)
        tiles = -(-memory_size // tile)
        self.run_length = tile * -(-tiles // programs)
        self.programs = -(-memory_size // self.run_length)
        self.head_sizes = {
            "H": num_heads,
            "N": memory_size,
            "P": stride or 0,
            "BH": padded(num_heads),
            "BN": tile,
            "RAW": stride is not None,
            "ACC": kernels.ACC[self.dtype],
            "warps": table.tile_warps,
        }
        self.words = {"M": word_size, "BM": padded(word_size)}
        self.num_taps = {"S": num_taps, "BS": padded(num_taps)}
        self.parts = {"BG": padded(self.programs)}
        self.rw = {"R": num_read_heads, "W": num_write_heads}
        self.combine_block = table.combine_block

    def launch(self, kernel: Any, *arguments: Any, **sizes: Any) -> None:
        grid = (self.batch, self.programs)
        self.run(
            kernel, grid, *arguments, self.programs, self.run_length, **self.head_sizes, **sizes
        )

    def weighting(self) -> Tensor:
        return self.memory.new_empty(
            self.batch, self.num_heads, self.memory.shape[1], dtype=self.dtype
        )

    def whole_memory(self) -> Tensor:
        return self.memory.new_empty(self.memory.shape, dtype=self.dtype)

    def part(self) -> Tensor:
        """One number per head and program."""
        return self.memory.new_empty(self.batch, self.num_heads, self.programs, dtype=self.dtype)

    def gradient_parts(self, width: int) -> Tensor:
        return self.memory.new_empty(self.batch, self.programs, width, dtype=self.dtype)

    def combine(self, parts: Tensor, total: Tensor) -> Tensor:
        """``total`` becomes the sum of ``parts [B, G, ...]`` over G."""
        width = parts.shape[2:].numel()
        part_block, block = self.combine_block
        self.run(
            self.kernels.combine_kernel,
            (self.batch, -(-width // block)),
            parts,
            total,
            self.programs,
            width,
            BG=part_block,
            BD=block,
            ACC=self.head_sizes["ACC"],
            warps=self.head_sizes["warps"],
        )
        return total

    def address(self, heads: HeadParameters, previous_weightings: Tensor) -> Chain:
        chain = Chain(
            self.weighting(), self.part(), self.part(), self.weighting(), self.part(), self.part()
        )
        self.launch(
            self.kernels.scores_kernel,
            self.memory,
            heads.key,
            heads.strength,
            *chain[:3],
            **self.words,
        )
        self.launch(
            self.kernels.shift_kernel,
            *chain[:3],
            heads.gate,
            heads.shift,
            heads.sharpening,
            previous_weightings,
            *chain[3:],
            **self.num_taps,
            **self.parts,
        )
        return chain

    def finish(
        self,
        weightings: Tensor,
        chain: Chain | None = None,
        heads: HeadParameters | None = None,
        erase: Tensor | None = None,
        add: Tensor | None = None,
        reads: Tensor | None = None,
        written: Tensor | None = None,
    ) -> None:
        """Find the weightings if there is a ``chain``; then read and write with them."""
        parts = None
        if reads is not None:
            parts = self.gradient_parts(reads.shape[1:].numel())
        self.launch(
            self.kernels.finish_kernel,
            None if reads is None and written is None else self.memory,
            *(None, None, None) if chain is None else chain[3:],
            None if heads is None else heads.sharpening,
            weightings,
            erase,
            add,
            parts,
            written,
            **self.rw,
            **self.words,
            **self.parts,
        )
        if parts is not None and reads is not None:
            self.combine(parts, reads)

    def finish_backward(
        self,
        grads: list[Tensor | None],
        d_memory: Tensor | None,
        d_weightings: Tensor,
        *,
        weightings: Tensor | None = None,
        chain: Chain | None = None,
        sharpening: Tensor | None = None,
        erase: Tensor | None = None,
        add: Tensor | None = None,
        d_erase: Tensor | None = None,
        d_add: Tensor | None = None,
    ) -> Tensor:
        """From ``grads`` of read vectors, memory and weightings after, to those before.

        Weights are given, or found by the ``chain``. Returns the parts of ``Σ dw w``.
        """
        means = self.part()
        self.launch(
            self.kernels.finish_backward_kernel,
            *grads,
            None if d_memory is None else self.memory,
            *(None, None, None) if chain is None else chain[3:],
            sharpening,
            weightings,
            erase,
            add,
            d_memory,
            d_weightings,
            means,
            d_erase,
            d_add,
            D=0 if d_erase is None else d_erase.stride(1),
            # The one with most blocks of the tile's size at once: 128 registers are a few too few.
            registers=most_registers(self.head_sizes["warps"]),
            **self.rw,
            **self.words,
            **self.parts,
        )
        return means

    def address_backward(
        self,
        d_weightings: Tensor,
        means: Tensor,
        chain: Chain,
        heads: HeadParameters,
        previous_weightings: Tensor,
        d_heads: HeadParameters,
        d_finish: Tensor | None,
        d_memory: Tensor,
        d_previous: Tensor,
    ) -> None:
        """``d_heads`` are views into parts ``[B, G, D]``; ``d_finish`` is added to ``d_memory``."""
        width = d_heads.key.stride(1)
        d_shifted, d_focus, totals = self.weighting(), self.weighting(), self.part()
        self.launch(
            self.kernels.sharpen_backward_kernel,
            d_weightings,
            means,
            *chain[3:],
            heads.sharpening,
            d_shifted,
            d_heads.sharpening,
            D=width,
            **self.parts,
        )
        self.launch(
            self.kernels.shift_backward_kernel,
            d_shifted,
            *chain[:3],
            heads.gate,
            heads.shift,
            previous_weightings,
            d_focus,
            totals,
            d_heads.gate,
            d_heads.shift,
            d_previous,
            D=width,
            **self.num_taps,
            **self.parts,
        )
        self.launch(
            self.kernels.scores_backward_kernel,
            d_focus,
            totals,
            self.memory,
            heads.key,
            heads.strength,
            *chain[:3],
            d_finish,
            d_memory,
            d_heads.key,
            d_heads.strength,
            D=width,
            **self.words,
            **self.parts,
        )


def split(flat: Tensor, widths: tuple[int, ...]) -> HeadParameters:
    """Views of the groups of parameters along the last dimension."""
    return HeadParameters(*flat.split(list(widths), -1))
