"""Which kernels serve which sizes, with what launch parameters: one table, no autotuning."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ntm_kernels.backends.base import Problem
from ntm_kernels.ops import Sizes
from ntm_kernels.reference import arithmetic_dtype

INT32_MAX = 2**31 - 1


class OnChip(NamedTuple):
    """One program per sequence, the memory in registers."""

    elements: int  # of the padded memory; one in float64 counts as two
    warps: int
    sequence_warps: int


class Table(NamedTuple):
    """Launch parameters.

    ``on_chip`` goes by increasing size: the first row that holds memory and weightings serves the
    call. A backward holds about six blocks of the memory's size at once (memory, its gradient and
    intermediate products), so a row gives a thread at most 16 elements of each: 96 registers, and
    as many for the weightings and addresses. ``sequence`` also multiplies by the controller's
    matrices, which more warps load faster than the memory alone would want.
    """

    on_chip: tuple[OnChip, ...] = (
        # One warp: reductions are shuffles, and no barrier waits for anyone.
        OnChip(elements=512, warps=1, sequence_warps=4),
        # Reductions over the locations cross warps, so no more of them than the memory needs.
        OnChip(elements=2048, warps=4, sequence_warps=8),
        # The paper's 128 x 20, padded to 128 x 32. With 16 warps a thread has only 128 registers.
        OnChip(elements=4096, warps=8, sequence_warps=8),
    )
    # Of each weighting, [heads, locations], that a thread holds on the chip. A backward has about
    # ten and would spill with more; that of ``sequence`` also has the controller's addresses.
    thread_weightings: int = 8
    sequence_thread_weightings: int = 4
    # Elements beside the memory: [heads, locations], [heads, taps], and [heads, parts] of tiles.
    head_elements: int = 2048
    # Blocks of the controller's matrices in ``sequence``: rows (four gates, that many units each)
    # and columns, two coalesced reads of 128 bytes; 16 elements a thread of 8 warps.
    controller_rows: int = 16
    controller_columns: int = 64
    # What fits nowhere above goes tile by tile: 16 elements a thread of 4 warps, of which a
    # multiprocessor holds several programs at once and hides the loads of one behind another.
    tile_elements: int = 2048
    tile_warps: int = 4
    # Programs in all, several for each of some hundred multiprocessors, and per sequence: every
    # program reads the parts of all those of its sequence.
    programs: int = 1024
    programs_per_sequence: int = 256
    # Parts and their elements that ``combine`` takes at once.
    combine_block: tuple[int, int] = (16, 128)

    def fitting(self, sizes: Sizes, dtype: torch.dtype, sequence: bool = False) -> OnChip | None:
        """The row that holds such a memory on the chip, for a step or a sequence, if one does."""
        scale = _scale(dtype)
        elements = padded(sizes.memory_size) * padded(sizes.word_size) * scale
        longest = max(padded(sizes.memory_size), padded(sizes.num_taps)) * scale
        most = self.sequence_thread_weightings if sequence else self.thread_weightings
        for row in self.on_chip:
            warps = row.sequence_warps if sequence else row.warps
            # The shift gathers within a warp, which thus holds all locations of its heads.
            weightings = longest * max(padded(sizes.num_heads), warps) // (32 * warps)
            if elements <= row.elements and weightings <= most:
                return row
        return None

    def tile(self, sizes: Sizes, dtype: torch.dtype) -> tuple[int, int]:
        """Locations of a tile, and programs per sequence at most."""
        scale = _scale(dtype)
        beside = self.head_elements // (padded(sizes.num_heads) * scale)
        rows = min(self.tile_elements // (padded(sizes.word_size) * scale), beside)
        rows = max(1, min(rows, padded(sizes.memory_size)))
        programs = max(self.programs // max(sizes.batch, 1), 1)
        return rows, min(programs, self.programs_per_sequence, beside)

    def path(self, problem: Problem) -> str:
        """How ``problem`` is served."""
        one = self.fitting(problem.sizes, problem.dtype)
        if problem.op == "sequence":
            if self.fitting(problem.sizes, problem.dtype, sequence=True):
                return "one launch, the memory in registers over all steps"
            return f"a loop of steps, the memory {'in registers' if one else 'in tiles'}"
        return f"the memory {'in registers' if one else 'in tiles'}"

    def too_large(self, problem: Problem) -> str | None:
        """Why no kernel serves ``problem``; ``None`` if one does."""
        sizes, scale = problem.sizes, _scale(problem.dtype)
        if sizes.memory_size * sizes.word_size > INT32_MAX:
            return f"a memory of {sizes.memory_size} x {sizes.word_size} needs 64-bit indices"
        if sizes.num_heads * sizes.memory_size > INT32_MAX:
            return f"{sizes.num_heads} weightings of {sizes.memory_size} need 64-bit indices"
        if padded(sizes.word_size) * scale > self.tile_elements:
            return f"words of {sizes.word_size} elements do not fit in a tile"
        if padded(sizes.num_heads) * padded(sizes.num_taps) * scale > self.head_elements:
            return f"{sizes.num_heads} heads with {sizes.num_taps} taps do not fit in registers"
        return None


TABLE = Table()


def most_registers(warps: int) -> int:
    """What a thread of an NVIDIA card can have if a multiprocessor holds one program of ``warps``.

    A program with the whole memory is compiled with this as its bound. Without any, ptxas aims at
    128 registers, so that two programs of 8 warps fit, and spills where more are needed.
    """
    return min(255, 65536 // (32 * warps))


def padded(size: int) -> int:
    """The smallest power of two that holds ``size``."""
    return 1 << max(int(size) - 1, 0).bit_length()


def _scale(dtype: torch.dtype) -> int:
    """Registers of 4 bytes per element."""
    return 2 if arithmetic_dtype(dtype) == torch.float64 else 1
