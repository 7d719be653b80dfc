"""What a run measures: cases, each with the contenders that are measured side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.subjects import SUBJECTS
from bench.workload import Workload

AXES: dict[str, tuple[str, ...]] = {
    "batch": ("batch",),
    "time": ("time",),
    "memory-size": ("memory_size",),
    "word-size": ("word_size",),
    "heads": ("num_read_heads", "num_write_heads"),
    "hidden-size": ("hidden_size",),
}
"""Sizes that can be swept, and what each sets."""

FULL: dict[str, tuple[int, ...]] = {
    "batch": (1, 4, 16, 64, 256),
    "time": (10, 41, 100, 400, 1000),
    "memory-size": (32, 128, 512, 1024),
    "word-size": (8, 20, 64),
    "heads": (1, 2, 4, 8),
}
QUICK: dict[str, tuple[int, ...]] = {"batch": (1, 16)}

# A size that a subject does not depend on, or that says nothing more about it, is not swept.
SWEPT = {
    "step": ("batch", "memory-size", "word-size", "heads"),
    "sequence": ("batch",),
    "train": tuple(FULL),
    "classify": ("time",),
    "inference": ("batch",),
    "memory": ("time", "batch"),
}
PASSES = {"step": ("both",), "sequence": ("forward", "backward"), "classify": ("iteration",)}


def resized(workload: Workload, axis: str, size: int) -> Workload:
    """The workload with another size along an axis."""
    changes: dict[str, Any] = dict.fromkeys(AXES[axis], size)
    return replace(workload, **changes)


@dataclass(frozen=True)
class Case:
    """One subject, one of its passes, one set of sizes. ``central``: all contenders take part."""

    subject: str
    measured: str
    workload: Workload
    central: bool


def workloads(
    base: Workload, sweeps: Mapping[str, Sequence[int]], axes: Iterable[str]
) -> Iterator[Workload]:
    """The base, then along each axis in turn all sizes with the others at the base, once each."""
    seen = {base}
    yield base
    for axis in axes:
        for size in sweeps.get(axis, ()):
            workload = resized(base, axis, size)
            if workload not in seen:
                seen.add(workload)
                yield workload


def plan(
    base: Workload,
    sweeps: Mapping[str, Sequence[int]],
    subjects: Iterable[str] = tuple(SUBJECTS),
    every_axis: bool = False,
) -> list[Case]:
    """The cases of a run; ``every_axis`` sweeps all that is given for every subject."""
    cases = []
    for subject in subjects:
        axes = sweeps if every_axis else SWEPT[subject]
        for workload in workloads(base, sweeps, axes):
            for measured in PASSES.get(subject, SUBJECTS[subject].passes):
                cases.append(Case(subject, measured, workload, workload == base))
    return cases
