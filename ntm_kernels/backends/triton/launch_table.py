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

    ``on_chip`` goes by increasing size, and the first row that holds memory and weightings serves
    the call. A backward holds about six blocks of the memory's size at once: the memory, its
    gradient and products of them. So a row gives a thread at most 16 elements of each block. These
    are 96 registers; as many remain for the weightings and addresses. ``sequence`` takes more
    warps, since they load the controller's matrices faster.
    """

    on_chip: tuple[OnChip, ...] = (
        # One warp: reductions are shuffles, and no barrier waits for anyone.
        OnChip(elements=512, warps=1, sequence_warps=4),
        # Reductions over the locations cross warps, so no more of them than the memory needs.
        OnChip(elements=2048, warps=4, sequence_warps=8),
        # The paper's 128 x 20, padded to 128 x 32. With 16 warps a thread has only 128 registers.
        OnChip(elements=4096, warps=8, sequence_warps=8),
    )
    # Elements that a thread may hold of a block [heads, locations]. A backward has about ten such
    # blocks at once, and would spill if they were larger. The backward of ``sequence`` also needs
    # registers for the addresses of the controller's weights.
    thread_weightings: int = 8
    sequence_thread_weightings: int = 4
    # Elements that a block [heads, locations of a tile], [heads, taps] or [heads, parts] may have.
    head_elements: int = 2048
    # Blocks of the controller's matrices in ``sequence``: 16 hidden units, with four rows each for
    # the gates of an LSTM, by 64 columns. A row is two coalesced reads of 128 bytes, and each
    # thread of 8 warps has 16 elements.
    controller_rows: int = 16
    controller_columns: int = 64
    # A larger memory goes tile by tile, with 16 elements of a tile for each thread of 4 warps. A
    # multiprocessor holds several such small programs at once: while one loads, others compute.
    tile_elements: int = 2048
    tile_warps: int = 4
    # At most that many programs in all, which is several for each of some hundred multiprocessors,
    # and that many for one sequence: each of them reads the parts that all of them have left.
    programs: int = 1024
    programs_per_sequence: int = 256
    # How many parts, and how many elements of each, ``combine`` adds up at once.
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

    def too_large(self, problem: Problem) -> str | None:
        """Why no kernel serves ``problem``; ``None`` if one does."""
        sizes, scale = problem.sizes, _scale(problem.dtype)
        if sizes.memory_size * sizes.word_size > INT32_MAX:
            return f"a memory of {sizes.memory_size} x {sizes.word_size} needs 64-bit indices"
        # A shift adds a whole memory and its taps to the number of a row before it takes the rest.
        if 2 * sizes.memory_size + sizes.num_taps > INT32_MAX:
            return f"a memory of {sizes.memory_size} rows needs 64-bit indices"
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
