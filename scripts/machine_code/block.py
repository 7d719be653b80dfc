"""Runs one block of a kernel and counts, for each instruction, how many warps issue it how often.

Threads that are at the same instruction go on together, those at the lowest address first, and
wait for one another where the code tells them to: BSSY and BSYNC, WARPSYNC, BAR. So the lanes of a
warp are united as on a GPU, and an instruction counts once for a warp, however many lanes it has
there and even if its guard is false for all of them.

Beside the counts there is a clock of each warp, which knows dependences alone: an instruction
begins when its operands are there and the last branch of its warp is decided, and ends a latency
later. Nothing waits for an issue slot, a unit or another warp, except at a barrier of the block,
which all leave when the last has come.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scripts.machine_code.lanes import WARP, Lanes, Launch
from scripts.machine_code.listing import RZ, Instruction, Kernel
from scripts.machine_code.operations import TABLE, UNIFORM

Array = NDArray[Any]

# Cycles until a result can be used. Assumptions, rounded from published microbenchmarks of sm_80
# and sm_90; on other architectures they are a little more or less.
LATENCY = {
    **dict.fromkeys(("LDS", "STS", "LDSM", "STSM", "SHFL"), 24),
    **dict.fromkeys(("LD", "LDL", "LDC", "LDCU", "ULDC"), 30),
    "LDG": 260,  # from L2
    **dict.fromkeys(("MUFU", "FLO", "UFLO"), 18),
    **dict.fromkeys(("I2F", "F2I", "S2R", "S2UR", "R2UR", "VOTE", "VOTEU", "FCHK"), 14),
}
USUAL_LATENCY = 5
BARRIER_LATENCY = 20


class Counted(NamedTuple):
    """What one block did."""

    issued: Counter[int]  # warp instructions, by the address of the instruction
    cycles: float  # of the longest chain of dependent instructions
    barriers: int


class Step(NamedTuple):
    """An instruction made ready to run."""

    run: Any
    rows: list[Array]  # where the results go
    guard: Any
    is_uniform: bool
    sources: list[Array]  # clocks of the registers it depends on
    targets: list[Array]  # and of those that it sets
    latency: int


class Block:
    """A block of a kernel, from its first instruction to the last thread's exit."""

    def __init__(self, kernel: Kernel, launch: Launch) -> None:
        self.kernel, self.lanes = kernel, Lanes(launch)
        self.threads, self.warps = launch.threads, launch.threads // WARP
        self.code = {i.address: i for i in kernel.code}
        addresses = sorted(self.code)
        self.after = dict(pairwise(addresses))
        self.steps: dict[int, Step] = {}
        self.ready: dict[int, Array] = {0: np.ones(self.threads, bool)}
        self.waiting: dict[int, Array] = {}  # at BSYNC or WARPSYNC
        self.at_barrier: dict[int, Array] = {}
        self.alive = np.ones(self.threads, bool)
        # The lanes that wait for one another at BSYNC, by barrier, as a mask in each of them.
        self.together = np.zeros((17, self.threads), np.uint32)
        self.control = {
            "BRA": self._bra,
            "BSSY": self._bssy,
            "BSYNC": self._bsync,
            "BAR": self._bar,
            "WARPSYNC": self._warpsync,
            "EXIT": self._exit,
            "CALL": self._call,
            "RET": self._ret,
        }
        self.issued: Counter[int] = Counter()
        self.barriers = 0
        kinds = {**self.lanes.words, **self.lanes.flags}
        self.clocks = {kind: np.zeros((len(rows), self.warps)) for kind, rows in kinds.items()}
        self.decided = np.zeros(self.warps)  # when the last branch of a warp was
        self.latest = np.zeros(self.warps)

    def run(self) -> Counted:
        with np.errstate(all="ignore"):
            while self.ready or self._released():
                address = min(self.ready)
                self._go(address, self.ready.pop(address))
        if self.alive.any():
            raise RuntimeError(f"{self.kernel.name}: threads wait for one another for ever")
        return Counted(self.issued, float(self.latest.max()), self.barriers)

    def _go(self, address: int, mask: Array) -> None:
        """Run these threads until they part, wait, or meet others."""
        next_group = min(self.ready, default=1 << 62)
        warps = of_warps(mask)
        many = int(warps.sum())
        while address < next_group:
            instruction = self.code[address]
            self.issued[address] += many
            control = self.control.get(instruction.name)
            if control is not None:
                guard, going = instruction.guard, mask
                if guard is not None:
                    depends = self.clocks[guard.kind][guard.number]
                    self._decide(depends, warps)
                    going = mask & self.lanes.predicate(guard)()
                control(instruction, going)
                self._put(self.after.get(address, -1), mask & ~going)
                return
            step = self.steps.get(address)
            if step is None:
                step = self.steps[address] = self._step(instruction)
            active = mask if step.guard is None else mask & step.guard()
            words, flags = step.run(active)
            if step.is_uniform:  # a register of the whole warp
                active = of_warps(active).repeat(WARP)
            for row, value in zip(step.rows, words + flags, strict=False):
                np.copyto(row, value, where=active)
            self._time(step, warps)
            address = self.after[address]
        self._put(address, mask)

    def _step(self, i: Instruction) -> Step:
        translate = TABLE.get(i.name) or UNIFORM.get(i.name)
        if translate is None:
            raise NotImplementedError(f"{self.kernel.name}: the instruction {i.text}")
        lanes = self.lanes
        lanes.depends = set()
        run = translate(lanes, i)
        guard = lanes.predicate(i.guard) if i.guard else None
        sources = [self.clocks[kind][number] for kind, number in sorted(lanes.depends)]
        rows: list[Array] = []
        targets: list[Array] = []
        destinations = lanes.destinations(i)
        # A double word or more fills registers in a row; predicates come behind them.
        registers = [o for o in destinations if not o.is_predicate]
        for given in registers:
            for part in range(words_of(i)):
                if given.number == RZ[given.kind]:
                    rows.append(_nowhere(lanes))
                    continue
                rows.append(lanes.words[given.kind][given.number + part])
                targets.append(self.clocks[given.kind][given.number + part])
        if not registers and i.name in ("VOTE", "VOTEU"):  # the ballot, which no one wants
            rows.append(_nowhere(lanes))
        for given in destinations:
            if not given.is_predicate:
                continue
            if given.number == RZ[given.kind]:
                rows.append(_nowhere(lanes))
                continue
            rows.append(lanes.flags[given.kind][given.number])
            targets.append(self.clocks[given.kind][given.number])
        is_uniform = any(given.kind in ("UR", "UP") for given in destinations)
        latency = LATENCY.get(i.name, USUAL_LATENCY)
        return Step(run, rows, guard, is_uniform, sources, targets, latency)

    # Control flow. Each of these puts the threads where they go on.

    def _put(self, address: int, mask: Array) -> None:
        if mask.any():
            there = self.ready.get(address)
            self.ready[address] = mask if there is None else there | mask

    def _bra(self, i: Instruction, mask: Array) -> None:
        taken = mask
        for o in i.operands[:-1]:
            if o.is_predicate:
                self._decide(self.clocks[o.kind][o.number], of_warps(mask))
                taken = taken & self.lanes.predicate(o)()
        if "DIV" in i.modifiers or "CONV" in i.modifiers:
            parted = (self.alive.reshape(-1, WARP) & ~mask.reshape(-1, WARP)).any(1).repeat(WARP)
            taken = taken & (parted if "DIV" in i.modifiers else ~parted)
        self._put(self.kernel.labels[i.operands[-1].text], taken)
        self._put(self.after[i.address], mask & ~taken)

    def _bssy(self, i: Instruction, mask: Array) -> None:
        bits = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
        active = (mask.reshape(-1, WARP) * bits).sum(1, dtype=np.uint32).repeat(WARP)
        np.copyto(self.together[i.operands[0].number], active, where=mask)
        self._put(self.after[i.address], mask)

    def _bsync(self, i: Instruction, mask: Array) -> None:
        self._wait(i, mask, self.together[i.operands[0].number])

    def _warpsync(self, i: Instruction, mask: Array) -> None:
        if "COLLECTIVE" in i.modifiers:
            raise NotImplementedError(f"{self.kernel.name}: a warp has parted at {i.text}")
        given = i.operands[0] if i.operands else None
        everyone = np.full(self.threads, 0xFFFFFFFF, np.uint32)
        self._wait(i, mask, self.lanes.word(given)() if given else everyone)

    def _wait(self, i: Instruction, mask: Array, together: Array) -> None:
        """Go on as soon as all lanes of ``together`` that have not left are here."""
        there = self.waiting.pop(i.address, np.zeros_like(mask)) | mask
        bits = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
        masks = (there.reshape(-1, WARP), self.alive.reshape(-1, WARP))
        here, alive = ((m * bits).sum(1, dtype=np.uint32).repeat(WARP) for m in masks)
        complete = there & ((together & alive & ~here) == 0)
        self._put(self.after[i.address], complete)
        if (there & ~complete).any():
            self.waiting[i.address] = there & ~complete

    def _bar(self, i: Instruction, mask: Array) -> None:
        there = self.at_barrier.get(i.address)
        self.at_barrier[i.address] = mask if there is None else there | mask

    def _exit(self, i: Instruction, mask: Array) -> None:
        self.alive &= ~mask
        for address in list(self.waiting):  # no one waits for these threads any more
            self.control[self.code[address].name](self.code[address], np.zeros_like(mask))

    def _call(self, i: Instruction, mask: Array) -> None:
        self._put(self.kernel.labels[i.operands[-1].text], mask)

    def _ret(self, i: Instruction, mask: Array) -> None:
        to = self.lanes.word(i.operands[0])()
        for address in np.unique(to[mask]):
            self._put(int(address), mask & (to == address))

    def _released(self) -> bool:
        """Whether threads go on after a barrier of the block that all others have reached."""
        there = np.zeros(self.threads, bool)
        for mask in self.at_barrier.values():
            there |= mask
        if not there.any() or (there != self.alive).any():
            return False
        for address, mask in self.at_barrier.items():
            self._put(self.after[address], mask)
        self.at_barrier = {}
        self.barriers += 1
        self.decided[:] = self.latest[:] = self.latest.max() + BARRIER_LATENCY
        return True

    # The clocks of the warps.

    def _decide(self, ready: Array, warps: Array) -> None:
        np.copyto(self.decided, np.maximum(self.decided, ready), where=warps)

    def _time(self, step: Step, warps: Array) -> None:
        begin = self.decided
        for clock in step.sources:
            begin = np.maximum(begin, clock)
        end = begin + step.latency
        for clock in step.targets:
            np.copyto(clock, end, where=warps)
        np.copyto(self.latest, np.maximum(self.latest, end), where=warps)


def words_of(i: Instruction) -> int:
    """How many registers the destination has."""
    if i.name in ("LD", "LDG", "LDS", "LDL", "LDC", "LDCU", "ULDC"):
        return next((n for m, n in (("64", 2), ("128", 4)) if m in i.modifiers), 1)
    if i.name == "CS2R":
        return 1 if "32" in i.modifiers else 2
    if i.name in ("IMAD", "UIMAD"):
        return 2 if "WIDE" in i.modifiers else 1
    if i.name == "F2I":
        return 2 if "U64" in i.modifiers else 1
    is_wide = {"64", "S64", "U64"} & i.modifiers and i.name not in ("I2F", "SHF", "USHF")
    return 2 if is_wide else 1


def of_warps(mask: Array) -> Array:
    """Which warps have a thread in the mask."""
    return np.asarray(mask.reshape(-1, WARP).any(1))


def _nowhere(lanes: Lanes) -> Array:
    return np.zeros(lanes.threads, np.uint32)
