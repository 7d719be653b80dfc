"""In how many rounds a block loads arrays of global memory, such as its weights.

A round of a warp is a group of loads of an array that the warp issues before it uses the result of
any of them. The rounds of an array follow each other: each costs the latency of a load again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scripts.machine_code.block import Array, Block, Step, of_warps, words_of
from scripts.machine_code.lanes import REGISTERS, Launch
from scripts.machine_code.listing import Instruction, Kernel

NOTHING = -1


class LoadRounds(Block):
    """A block that also counts the rounds of each of ``arrays``, given as (address, bytes)."""

    def __init__(
        self, kernel: Kernel, launch: Launch, arrays: Mapping[str, tuple[int, int]]
    ) -> None:
        super().__init__(kernel, launch)
        self.arrays = list(arrays.values())
        self.names = list(arrays)
        self.counts = np.zeros((len(arrays), self.warps), int)
        # Whether a warp is in a round of an array, and which array a register waits for.
        self.is_open = np.zeros((len(arrays), self.warps), bool)
        self.waits_for = np.full((REGISTERS, self.warps), NOTHING)

    @property
    def rounds(self) -> dict[str, int]:
        """By the name of the array, those of the warp that has most."""
        return {name: int(of.max()) for name, of in zip(self.names, self.counts, strict=True)}

    def _step(self, i: Instruction) -> Step:
        step = super()._step(i)
        used = sorted(number for kind, number in self.lanes.depends if kind == "R")
        compute = step.run
        if i.name != "LDG":

            def run(mask: Array) -> object:
                self._use(used, mask)
                return compute(mask)

            return step._replace(run=run)
        address, first = self.lanes.address(i), i.operands[0].number
        filled = slice(first, first + words_of(i))

        def load(mask: Array) -> object:
            self._use(used, mask)
            self._load(address(), filled, mask)
            return compute(mask)

        return step._replace(run=load)

    def _use(self, registers: list[int], mask: Array) -> None:
        """A round ends where a register that it loads is used."""
        if not self.is_open.any():
            return
        warps = of_warps(mask)
        for array, is_open in enumerate(self.is_open):
            ends = warps & is_open & (self.waits_for[registers] == array).any(0)
            if ends.any():
                is_open[ends] = False
                self.waits_for[(self.waits_for == array) & ends] = NOTHING

    def _load(self, addresses: Array, filled: slice, mask: Array) -> None:
        for array, (start, size) in enumerate(self.arrays):
            here = mask & (addresses >= start) & (addresses < start + size)
            warps = of_warps(here)
            self.counts[array] += warps & ~self.is_open[array]
            self.is_open[array] |= warps
            self.waits_for[filled, warps] = array
