"""Timing of several contenders in one process, in turn, so that all meet the same machine."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

Key = TypeVar("Key")


@dataclass(frozen=True)
class Job:
    """A call to time. ``before`` runs ahead of every call and is not timed."""

    run: Callable[[], object]
    before: Callable[[], object] | None = None
    threads: int = 1


@dataclass(frozen=True)
class Limits:
    """How long to measure.

    A sample is the mean of as many calls as fit into ``sample`` seconds, at least one. Every job
    gives one sample a round. Rounds go on for ``seconds``, but there are ``least`` to ``most``.
    """

    seconds: float = 6.0
    sample: float = 0.01
    least: int = 5
    most: int = 60


class Stats(NamedTuple):
    """Median and 20th and 80th percentile of the samples, and how many there were."""

    median: float
    p20: float
    p80: float
    samples: int
    calls: int = 1

    def scaled(self, factor: float) -> Stats:
        """The same in another unit."""
        median, p20, p80 = (factor * value for value in self[:3])
        return self._replace(median=median, p20=p20, p80=p80)


class Clock(Protocol):
    """Adds up the time of the calls between its ``start`` and ``stop``."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def take(self) -> float:
        """Seconds since the last ``take``."""


class CPUClock:
    def __init__(self) -> None:
        self._total = self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        self._total += time.perf_counter() - self._started

    def take(self) -> float:
        total, self._total = self._total, 0.0
        return total


class CUDAClock:
    """Events on the current stream: the time of the device, its waits for the host included."""

    def __init__(self) -> None:
        self._events: list[tuple[Any, Any]] = []

    def start(self) -> None:
        pair = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._events.append((pair[0], pair[1]))
        pair[0].record()

    def stop(self) -> None:
        self._events[-1][1].record()

    def take(self) -> float:
        torch.cuda.synchronize()
        total = sum(start.elapsed_time(end) for start, end in self._events) / 1e3
        self._events.clear()
        return float(total)


def clock_for(device: str) -> Clock:
    return CUDAClock() if torch.device(device).type == "cuda" else CPUClock()


def summarise(samples: list[float], calls: int = 1) -> Stats:
    """Statistics of at least one sample."""
    if len(samples) == 1:
        return Stats(samples[0], samples[0], samples[0], 1, calls)
    p20, _, _, p80 = statistics.quantiles(samples, n=5, method="inclusive")
    return Stats(statistics.median(samples), p20, p80, len(samples), calls)


def warm_up(job: Job, clock: Clock, seconds: float = 0.3) -> float:
    """Call until compilation, caches and allocators have settled; seconds of one call then."""
    spent, fastest = 0.0, math.inf
    for count in range(1000):
        once = _sample(job, clock, 1)
        spent += once
        # The first call may compile: it says nothing about the others.
        fastest = min(fastest, once) if count else fastest
        if count and spent > seconds:
            break
    return fastest


def measure(
    jobs: Mapping[Key, Job],
    estimates: Mapping[Key, float],
    clock: Clock,
    limits: Limits,
    generator: random.Random,
) -> dict[Key, Stats]:
    """Seconds per call of each warm job, all measured in turn, in a new random order each round.

    ``estimates`` are rough seconds of one call. Where a sample has several calls, one untimed call
    goes ahead of it, so that the caches are the job's own and not those its predecessor left.
    """
    calls = {key: max(1, math.ceil(limits.sample / estimates[key])) for key in jobs}
    samples: dict[Key, list[float]] = {key: [] for key in jobs}
    order = list(jobs)
    until = time.perf_counter() + limits.seconds
    with _no_garbage_collection():
        for turn in range(limits.most):
            if turn >= limits.least and time.perf_counter() > until:
                break
            generator.shuffle(order)
            for key in order:
                if calls[key] > 1:
                    _sample(jobs[key], clock, 1)
                samples[key].append(_sample(jobs[key], clock, calls[key]))
    return {key: summarise(samples[key], calls[key]) for key in jobs}


def captured(job: Job) -> Job:
    """The job as one CUDA graph: its launches without the host's work."""
    if job.before is not None:
        raise ValueError("a CUDA graph holds whole calls: there is none of a backward alone")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            job.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        job.run()
    return Job(graph.replay, threads=job.threads)


def _sample(job: Job, clock: Clock, calls: int) -> float:
    if torch.get_num_threads() != job.threads:
        torch.set_num_threads(job.threads)
    for _ in range(calls):
        if job.before is not None:
            job.before()
        clock.start()
        job.run()
        clock.stop()
    return clock.take() / calls


@contextmanager
def _no_garbage_collection() -> Any:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
