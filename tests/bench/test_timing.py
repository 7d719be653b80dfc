"""How the bench times: with a clock that ticks when it is told to."""

import random

import pytest

from bench import timing
from bench.timing import Job, Limits, Stats


class FakeClock:
    """Each call takes what the job that runs last said."""

    def __init__(self):
        self.now = self.total = self.started = 0.0

    def start(self):
        self.started = self.now

    def stop(self):
        self.total += self.now - self.started

    def take(self):
        total, self.total = self.total, 0.0
        return total


@pytest.fixture
def clock():
    return FakeClock()


def ticking(clock, seconds, log=None, name=None):
    def run():
        clock.now += seconds
        if log is not None:
            log.append(name)

    return run


def measure(jobs, clock, estimates=None, **limits):
    estimates = dict.fromkeys(jobs, 1.0) if estimates is None else estimates
    limits = Limits(**{"seconds": 0.0, **limits})
    return timing.measure(jobs, estimates, clock, limits, random.Random(1))


def test_each_job_gets_its_own_time(clock):
    jobs = {name: Job(ticking(clock, seconds)) for name, seconds in (("a", 2.0), ("b", 3.0))}
    stats = measure(jobs, clock, least=4)
    assert stats == {"a": Stats(2.0, 2.0, 2.0, 4, 1), "b": Stats(3.0, 3.0, 3.0, 4, 1)}


def test_what_runs_before_a_call_is_not_timed(clock):
    job = Job(ticking(clock, 2.0), before=ticking(clock, 100.0))
    assert measure({"a": job}, clock)["a"].median == 2.0


def test_rounds_hold_every_job_once_in_changing_order(clock):
    log = []
    jobs = {name: Job(ticking(clock, 1.0, log, name)) for name in "abc"}
    measure(jobs, clock, least=20)
    rounds = [tuple(log[i : i + 3]) for i in range(0, len(log), 3)]
    assert len(rounds) == 20
    assert all(sorted(once) == ["a", "b", "c"] for once in rounds)
    assert len(set(rounds)) > 2


def test_short_calls_are_averaged_after_one_that_is_not_timed(clock):
    log = []
    times = iter([50.0, 1.0, 2.0, 3.0, 2.0] * 3)

    def run():
        clock.now += next(times)
        log.append(clock.now)

    stats = measure({"a": Job(run)}, clock, {"a": 0.25}, sample=1.0, least=3)
    assert stats["a"] == Stats(2.0, 2.0, 2.0, samples=3, calls=4)
    assert len(log) == 15


def test_there_are_no_more_rounds_than_allowed(clock):
    stats = measure({"a": Job(ticking(clock, 1.0))}, clock, seconds=1e9, least=1, most=6)
    assert stats["a"].samples == 6


def test_percentiles():
    samples = [float(i) for i in range(101)]
    random.Random(0).shuffle(samples)
    assert timing.summarise(samples) == Stats(50.0, 20.0, 80.0, 101)
    assert timing.summarise([3.0]) == Stats(3.0, 3.0, 3.0, 1)
    assert Stats(1.0, 2.0, 3.0, 4, 5).scaled(10) == Stats(10.0, 20.0, 30.0, 4, 5)


def test_the_first_call_says_nothing_about_the_others(clock):
    times = iter([0.25, 2.0, 1.0, 1.0, 3.0])

    def run():
        clock.now += next(times)

    assert timing.warm_up(Job(run), clock, seconds=6.5) == 1.0


def test_threads_are_set_for_each_job(clock, monkeypatch):
    import torch

    now = [torch.get_num_threads()]
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", lambda n: now.__setitem__(0, n))
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    jobs = {n: Job(lambda n=n: seen.append((n, now[0])), threads=n) for n in (1, 2)}
    measure(jobs, clock, least=3)
    assert len(seen) == 6
    assert all(wanted == got for wanted, got in seen)
