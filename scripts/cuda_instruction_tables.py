"""Instructions of the CUDA kernels as tables, as a modelled time, and against their budget."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from scripts.cuda_counts import Counts
from scripts.cuda_instructions import WEIGHTS, Instructions
from scripts.machine_code.block import BARRIER_LATENCY, LATENCY, USUAL_LATENCY

# Whose rounds of loads are told: there all weights are on the chip before the first step.
LOADED_FIRST = (80, 90)
# Of the modelled time: published figures of an H100.
ARCHITECTURE = 90
CLOCK_GHZ = 1.755  # boost clock of the slower, PCIe card
SCHEDULERS = 4  # of one multiprocessor, each of which issues one warp instruction a cycle
MULTIPLY_ADDS_PER_CYCLE = 4  # warp instructions: 128 lanes
L2_BYTES_PER_CYCLE = 64  # that one multiprocessor takes

Counted = dict[str, dict[int, Instructions]]  # by call and direction, then by architecture
Bounds = dict[str, dict[str, dict[str, int]]]  # by call, by architecture, by stage
TOTAL, OTHERS = "all", "others"


class Modelled(NamedTuple):
    """Cycles of one block on one multiprocessor."""

    issue: float
    wavefronts: float
    multiply_adds: float
    l2: float
    chain: float

    @property
    def microseconds(self) -> float:
        busiest = max(self.issue, self.wavefronts, self.multiply_adds, self.l2)
        return (busiest + self.chain) / CLOCK_GHZ / 1000


def modelled(counts: Counts, instructions: Instructions) -> Modelled:
    """A model of one step or call of one sequence, not a measurement; the report has its
    assumptions."""
    return Modelled(
        issue=instructions.issued / SCHEDULERS,
        wavefronts=counts.wavefronts,
        multiply_adds=instructions.multiply_adds / MULTIPLY_ADDS_PER_CYCLE,
        l2=(counts.load_bytes + counts.store_bytes) / L2_BYTES_PER_CYCLE,
        chain=instructions.chain_cycles,
    )


def rows_of(by_architecture: Mapping[int, Instructions]) -> dict[str, dict[int, float]]:
    """Stages by architecture, the largest first, after their sum. Stages below one per cent
    everywhere are one row."""
    totals = {a: found.issued for a, found in by_architecture.items()}
    stages: dict[str, dict[int, float]] = {}
    for architecture, found in by_architecture.items():
        for stage, many in found.stages.items():
            stages.setdefault(stage, {})[architecture] = many
    rows: dict[str, dict[int, float]] = {TOTAL: totals}
    others = dict.fromkeys(totals, 0.0)
    for stage, row in sorted(stages.items(), key=lambda item: -max(item[1].values())):
        if any(many >= totals[a] / 100 for a, many in row.items()):
            rows[stage] = row
        else:
            others = {a: others[a] + row.get(a, 0) for a in totals}
    return {**rows, OTHERS: others} if any(others.values()) else rows


def sections(counted: Counted, counts: Mapping[str, Counts]) -> str:
    """The part of the report about instructions."""
    return f"""## Instructions

Warp instructions that one block issues, by stage, in the machine code of each architecture: of a
`sequence` one time step in the middle, of `step` the whole call. The machine code is run on a CPU
(`scripts/machine_code`), and its results are compared with the emulator's. An instruction counts
once for a warp, however many of its lanes take part. A stage has the name of its function; what is
inlined into it is part of it. {OTHERS.capitalize()}: rows below one per cent.

{tables(counted)}

## Rounds of loads before the first step

In how many rounds a warp loads each weight matrix of a `sequence`, of the warp that needs most. A
round is a group of loads that a warp issues before it uses the result of any of them, so each round
costs the latency of a load again. Counted while the machine code is run, for architectures where
all weights of this model are loaded before the first step.

{rounds_table(counted)}

## Modelled time

A model, not a measurement: no GPU has run these kernels. It is of one sequence on one
multiprocessor of an H100, {CLOCK_GHZ} GHz, in cycles. The modelled time is the largest of the
first four columns plus the dependent chain.

- issue: instructions / {SCHEDULERS} schedulers, one a cycle each
- wavefronts: of shared memory, one a cycle
- multiply-adds: FFMA instructions, {MULTIPLY_ADDS_PER_CYCLE} a cycle
- L2: bytes loaded and stored, {L2_BYTES_PER_CYCLE} a cycle
- dependent chain: from barrier to barrier, the longest chain of instructions of any warp in which
  each needs the result of the one before, or the branch before. Latencies are assumptions, in
  cycles:
{latencies()}

The sum assumes that no warp issues while another one's chain is waited for. If all of the chain
were hidden, the time would be the larger of the two parts. The truth lies between that and the
sum. Left out: the launch; misses of the instruction cache, which is smaller than the code of a
step; units that take several cycles an instruction, such as that of MUFU; and what comes before the
first step and after the last.

{modelled_table(counted, counts)}"""


def latencies() -> str:
    """The assumed latencies in words."""
    by_cycles: dict[int, list[str]] = {}
    for name, cycles in LATENCY.items():
        by_cycles.setdefault(cycles, []).append(name)
    parts = [f"{cycles} for {', '.join(names)}" for cycles, names in by_cycles.items()]
    parts += [f"{BARRIER_LATENCY} for a barrier", f"{USUAL_LATENCY} for all others."]
    return textwrap.fill("; ".join(parts), 98, initial_indent="  ", subsequent_indent="  ")


def tables(counted: Counted) -> str:
    """A table of each call."""
    parts = []
    for call, by_architecture in counted.items():
        architectures = sorted(by_architecture)
        lines = [f"| {call} | {' | '.join(f'sm_{a}' for a in architectures)} |"]
        lines.append("| --- |" + " ---: |" * len(architectures))
        for stage, row in rows_of(by_architecture).items():
            name = stage if stage in (TOTAL, OTHERS) or " " in stage else f"`{stage}`"
            cells = (f"{row.get(a, 0):.0f}" for a in architectures)
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def rounds_table(counted: Counted) -> str:
    """The rounds in which each weight is loaded, a row for each call that has weights."""
    lines = ["| call | on | " + " | ".join(f"`{name}`" for name in WEIGHTS) + " |"]
    lines.append("| --- | ---: |" + " ---: |" * len(WEIGHTS))
    for call, architecture, rounds in _rounds(counted):
        cells = " | ".join(str(rounds[name]) for name in WEIGHTS)
        lines.append(f"| {call} | sm_{architecture} | {cells} |")
    return "\n".join(lines)


def _rounds(counted: Counted) -> Iterator[tuple[str, int, Mapping[str, int]]]:
    """Of each call and architecture, the rounds in which each weight is loaded."""
    for call, by_architecture in counted.items():
        for architecture in LOADED_FIRST:
            found = by_architecture.get(architecture)
            if found is not None and found.load_rounds:
                yield call, architecture, found.load_rounds


def too_many_rounds(counted: Counted, budget: Mapping[str, int]) -> list[str]:
    """Weights that are loaded in more rounds than the budget of an architecture has."""
    return [
        f"{call} on sm_{architecture}: {name} takes {many} rounds of loads, "
        f"the budget is {budget[str(architecture)]}"
        for call, architecture, rounds in _rounds(counted)
        for name, many in rounds.items()
        if many > budget[str(architecture)]
    ]


def modelled_table(counted: Counted, counts: Mapping[str, Counts]) -> str:
    """The modelled time of each call, and the cycles that it is made of."""
    lines = [
        "| call | issue | wavefronts | multiply-adds | L2 | dependent chain | modelled µs |",
        "| --- |" + " ---: |" * 6,
    ]
    for call, by_architecture in counted.items():
        if call in counts:
            time = modelled(counts[call], by_architecture[ARCHITECTURE])
            cells = " | ".join(f"{cycles:.0f}" for cycles in time)
            lines.append(f"| {call} | {cells} | {time.microseconds:.1f} |")
    return "\n".join(lines)


def bounds(counted: Counted) -> Bounds:
    """A budget that the counts just meet."""
    return {
        call: {
            str(a): {stage: round(row.get(a, 0)) for stage, row in rows_of(found).items()}
            for a in sorted(found)
        }
        for call, found in counted.items()
    }


def overruns(counted: Counted, budget: Bounds, nvcc: str, budget_nvcc: str) -> list[str]:
    """Stages with more instructions than their bound, or without one. Another compiler makes other
    code: with it nothing is compared."""
    if nvcc != budget_nvcc:
        print(f"instructions: not compared, since the budget is of nvcc {budget_nvcc}, not {nvcc}")
        return []
    found = []
    for call, by_architecture in bounds(counted).items():
        for architecture, stages in by_architecture.items():
            bound: Mapping[str, Any] = budget.get(call, {}).get(architecture, {})
            found += [
                f"{call} on sm_{architecture}: {stage} issues {many} warp instructions, "
                f"the budget is {bound.get(stage, 'without it')}"
                for stage, many in stages.items()
                if many > bound.get(stage, -1)
            ]
    return found
