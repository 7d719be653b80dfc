"""Which kernels serve which sizes, with what launch parameters: one table, no autotuning."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ntm_kernels.backends.base import Problem
from ntm_kernels.reference import arithmetic_dtype


class OnChip(NamedTuple):
    """One program per sequence, the memory in registers."""

    elements: int  # of the padded memory; one in float64 counts as two
    warps: int


class Table(NamedTuple):
    """Launch parameters.

    ``on_chip`` goes by increasing size: the first row that holds the memory serves the call.
    A backward holds about six blocks of the memory's size at once (memory, its gradient and
    intermediate products), so a row gives a thread at most 16 elements of each: 96 registers, and
    as many for the weightings and addresses.
    """

    on_chip: tuple[OnChip, ...] = (
        # One warp: reductions are shuffles, and no barrier waits for anyone.
        OnChip(elements=512, warps=1),
        # Reductions over the locations cross warps, so no more of them than the memory needs.
        OnChip(elements=2048, warps=4),
        # The paper's 128 x 20, padded to 128 x 32. With 16 warps a thread has only 128 registers.
        OnChip(elements=4096, warps=8),
    )
    # Elements of [heads, locations] and [heads, taps] beside the memory on the chip.
    head_elements: int = 2048
    # Blocks of the controller's matrices in ``sequence``: rows and columns, 64 to a warp's lanes
    # being two coalesced reads of 128 bytes, and about 16 elements a thread.
    controller_rows: int = 16
    controller_columns: int = 64

    def fitting(
        self, locations: int, words: int, heads: int, taps: int, dtype: torch.dtype
    ) -> OnChip | None:
        """The row that holds such a memory on the chip, if one does."""
        size = 2 if arithmetic_dtype(dtype) == torch.float64 else 1
        beside = padded(heads) * max(padded(locations), padded(taps))
        if beside * size > self.head_elements:
            return None
        elements = padded(locations) * padded(words) * size
        return next((row for row in self.on_chip if elements <= row.elements), None)

    def too_large(self, problem: Problem) -> str | None:
        """Why no kernel serves ``problem``; ``None`` if one does."""
        sizes = problem.sizes
        row = self.fitting(
            sizes.memory_size,
            sizes.word_size,
            sizes.num_heads,
            max(sizes.taps, 1),
            problem.memory_dtype,
        )
        if row is None:
            return (
                f"a memory of {sizes.memory_size} x {sizes.word_size} with {sizes.num_heads} heads "
                "does not fit in registers"
            )
        return None


TABLE = Table()


def padded(size: int) -> int:
    """The smallest power of two that holds ``size``."""
    return 1 << max(size - 1, 0).bit_length()
