"""What subjects share: the passes of a differentiable call, and data to feed it."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import timing
from bench.contenders import Contender, Unsupported
from bench.timing import Job, Limits, Stats
from bench.workload import Workload
from ntm_kernels import BackendError, tasks


class Entry(NamedTuple):
    """One of those that are measured together."""

    contender: Contender
    workload: Workload


@dataclass
class Outcome:
    """Statistics of each entry, and why the others have none: left out, or failed."""

    stats: dict[Entry, Stats] = field(default_factory=dict)
    skipped: dict[Entry, str] = field(default_factory=dict)
    failed: dict[Entry, str] = field(default_factory=dict)

    def attempt(self, entry: Entry, action: Callable[[], Any]) -> Any:
        """What ``action`` returns, or ``None`` and a reason noted."""
        try:
            return action()
        except (Unsupported, BackendError) as reason:
            self.skipped[entry] = str(reason)
        except Exception as error:
            # A contender that fails must not take the others' results with it.
            self.failed[entry] = f"{type(error).__name__}: {error}"
        return None


class Subject(ABC):
    """Something to measure.

    Attributes:
        name: how it is called on the command line and in results.
        about: what it is, for ``--list``.
        passes: what of it can be measured.
        unit: of the numbers.
    """

    name: str
    about: str
    passes: tuple[str, ...]
    unit: str

    @abstractmethod
    def method(self, workload: Workload) -> str:
        """How the numbers are obtained, for the results."""

    @abstractmethod
    def measure(self, entries: Sequence[Entry], measured: str, limits: Limits) -> Outcome:
        """Measure all entries side by side."""


class TimedSubject(Subject):
    unit = "ms"

    def method(self, workload: Workload) -> str:
        clock = "CUDA events" if torch.device(workload.device).type == "cuda" else "perf_counter"
        return f"interleaved in one process, {clock}"

    @abstractmethod
    def job(self, contender: Contender, workload: Workload, measured: str) -> Job:
        """The call to time."""

    def measure(self, entries: Sequence[Entry], measured: str, limits: Limits) -> Outcome:
        outcome, clock = Outcome(), timing.clock_for(entries[0].workload.device)
        jobs: dict[Entry, Job] = {}
        estimates: dict[Entry, float] = {}

        def prepare(entry: Entry) -> None:
            torch.manual_seed(0)
            job = self.job(*entry, measured)
            if entry.contender.graphed:
                if job.before is not None:
                    raise Unsupported("a CUDA graph holds whole calls")
                job = timing.captured(job)
            estimates[entry] = timing.warm_up(job, clock)
            jobs[entry] = job

        for entry in entries:
            outcome.attempt(entry, lambda entry=entry: prepare(entry))  # type: ignore[misc]
        if jobs:
            seconds = timing.measure(jobs, estimates, clock, limits, random.Random(0))
            for entry, stats in seconds.items():
                outcome.stats[entry] = stats.scaled(1e3)
        return outcome


def differentiable(
    forward: Callable[[], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    measured: str,
    threads: int,
) -> Job:
    """The forward (saving for the backward), the backward alone, or both, of a function.

    The backward starts from a random gradient of every output.
    """
    gradients = [torch.randn_like(output) for output in forward()]
    if measured == "forward":
        return Job(forward, threads=threads)
    if measured == "both":
        return Job(
            lambda: torch.autograd.grad(forward(), inputs, gradients, allow_unused=True),
            threads=threads,
        )
    outputs: list[Tensor] = []

    def before() -> None:
        outputs[:] = forward()

    def backward() -> None:
        torch.autograd.grad(outputs, inputs, gradients, allow_unused=True)

    return Job(backward, before, threads)


def copy_batch(workload: Workload) -> tasks.Batch:
    """Random bits laid out as the copy task does for any T: the second half is the answer."""
    w = workload
    bits = torch.randint(2, (w.time, w.batch, w.input_size)).float()
    targets = torch.randint(2, (w.time, w.batch, w.output_size)).float()
    answers = (
        (torch.arange(w.time) > w.time // 2) if w.time > 1 else torch.ones(1, dtype=torch.bool)
    )
    batch = tasks.Batch(
        bits * ~answers[:, None, None],
        targets * answers[:, None, None],
        answers[:, None].expand(w.time, w.batch).contiguous(),
        torch.full((w.batch,), w.time),
    )
    return batch.to(w.device)
