"""What the project says of its speed on CPUs, each measured here and now.

The claims compare the backend that a CPU call gets by itself with others, one thread unless said,
side by side in one process; ratios are of medians.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from bench import results
from bench.contenders import (
    LSTM,
    Autocast,
    BackendContender,
    BySteps,
    CheckedAnew,
    Contender,
    Eager,
    OpAlone,
    UnderAutocast,
    automatic,
)
from bench.floor import floor
from bench.machine import Ceilings, ceilings
from bench.runner import Runner
from bench.subjects import Entry
from bench.subjects.base import copy_batch
from bench.timing import Limits
from bench.workload import Workload

LIMITS = Limits(seconds=15.0, sample=0.02, least=5, most=200)
PAPER = Workload()
WIDE = replace(
    PAPER, memory_size=1024, word_size=64, hidden_size=256, num_read_heads=5, num_write_heads=5
)
LONG = replace(PAPER, batch=4, time=1000, memory_size=1024, word_size=64)
LENGTHS = (100, 200, 400, 1000, 2000, 4000)


@dataclass(frozen=True)
class Target:
    """A bound on a number; ``stretch`` is the bound hoped for."""

    bound: float
    at_most: bool
    stretch: float | None = None

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        hoped = "" if self.stretch is None else f" (stretch {self.stretch:g})"
        return f"{sign} {self.bound:g}{hoped}"

    def verdict(self, value: float) -> str:
        """``met``, ``met, stretch too`` or ``missed``; NaN is missed."""

        def within(bound: float) -> bool:
            return value <= bound if self.at_most else value >= bound

        if not within(self.bound):
            return "missed"
        return "met, stretch too" if self.stretch is not None and within(self.stretch) else "met"


@dataclass(frozen=True)
class Finding:
    """A claim with what was measured.

    ``value`` is ``None`` where it could not be measured, ``target`` where a number is reported and
    not judged.
    """

    claim: str
    target: Target | None
    value: float | None
    details: str

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "reported" if self.target is None else self.target.verdict(self.value)

    @property
    def holds(self) -> bool:
        return self.verdict == "reported" or self.verdict.startswith("met")


class Claims:
    """Measures claims with a runner; ``ours`` is the backend they are about."""

    def __init__(self, runner: Runner, ours: str) -> None:
        self.runner = runner
        self.ours: Contender = BackendContender(ours, "the backend a CPU call gets by itself")

    @cached_property
    def limits(self) -> Ceilings:
        """What one core of this machine reaches."""
        return ceilings("cpu", 1)

    def training(self) -> list[Finding]:
        """1: a training iteration against nn.LSTM, and the torch backend beside it."""
        targets = {
            1: Target(0.9, True, stretch=0.7),
            16: Target(1.4, True, stretch=1.1),
            64: Target(1.6, True, stretch=1.2),
        }
        findings = []
        for batch, target in targets.items():
            times = self._side_by_side(
                "train", "iteration", [LSTM(), self._reference()], replace(PAPER, batch=batch)
            )
            findings.append(
                self._ratio(
                    f"training iteration, B = {batch}: {self.ours.name} / lstm",
                    target,
                    times,
                    self.ours.name,
                    "lstm",
                )
            )
        return findings

    def threads(self) -> list[Finding]:
        """2: a second thread makes a large batch faster and a small one no slower."""
        # At B = 1 both run the same code, so only the noise of the measurement is allowed for.
        targets = {64: Target(1.8, False), 1: Target(0.97, False)}
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        findings = []
        for batch, target in targets.items():
            claim = f"training iteration, B = {batch}: 1 thread / 2 threads"
            if (cores or 1) < 2:
                findings.append(Finding(claim, target, None, "this process has one core"))
                continue
            workloads = [replace(PAPER, batch=batch, threads=threads) for threads in (1, 2)]
            rows = self.runner.run("train", "iteration", [Entry(self.ours, w) for w in workloads])
            times = {f"{e.workload.threads} thread(s)": row.median for e, row in rows.items()}
            findings.append(self._ratio(claim, target, times, "1 thread(s)", "2 thread(s)"))
        return findings

    def sizes(self) -> list[Finding]:
        """3: large sizes, memory, and linear time."""
        ours, reference = self.ours.name, self._reference()
        wide = self._side_by_side("train", "iteration", [reference], WIDE)
        memory = self._side_by_side("memory", "iteration", [reference, Eager()], LONG)
        entries = [Entry(self.ours, replace(LONG, time=time)) for time in LENGTHS]
        rows = self.runner.run("train", "iteration", entries)
        times = {e.workload.time: rows[e].median for e in entries if e in rows}
        slope = None
        if len(times) == len(LENGTHS):
            slope = results.exponent([float(time) for time in times], list(times.values()))
        steps = ", ".join(
            f"T = {time}: {results.number(1e3 * value / time)}" for time, value in times.items()
        )
        return [
            self._ratio(
                "5 + 5 heads, N = 1024, M = 64, C = 256, B = 16: reference / " + ours,
                Target(5, False),
                wide,
                reference.name,
                ours,
            ),
            self._ratio(
                f"peak memory, T = 1000, N = 1024, M = 64, B = 4: {ours} / plain autograd",
                Target(0.1, True),
                memory,
                ours,
                "eager",
                "MiB",
            ),
            Finding(
                "time of the same, T = 100 to 4000: how far its exponent of T is from 1",
                Target(0.05, True),
                None if slope is None else abs(slope - 1),
                f"µs a step at {steps}",
            ),
        ]

    def own_controller(self) -> list[Finding]:
        """4: ``step``, by itself and driven by a controller of the user's."""
        ours, target = self.ours.name, Target(5, False)
        own = replace(PAPER, controller="own")
        return [
            self._ratio(
                f"step, forward and backward: eager / {ours}",
                target,
                self._side_by_side("step", "both", [Eager()], PAPER),
                "eager",
                ours,
            ),
            self._ratio(
                f"{own.time} steps of an nn.LSTMCell as controller, both passes: eager / {ours}",
                target,
                self._side_by_side("sequence", "both", [Eager()], own),
                "eager",
                ours,
            ),
        ]

    def known_calls(self) -> list[Finding]:
        """5: what it saves that a call like one before is not checked anew."""
        small = replace(PAPER, batch=1)
        anew = CheckedAnew(self.ours.name)
        return [
            self._ratio(
                f"step, B = 1, forward: {anew.name} / {self.ours.name}",
                Target(1.3, False),
                self._side_by_side("step", "forward", [anew], small),
                anew.name,
                self.ours.name,
            )
        ]

    def layers(self) -> list[Finding]:
        """6: a second layer of the controller, with the heads of the paper's priority sort."""
        ours, lstm, steps = self.ours.name, LSTM(), BySteps(self.ours.name)
        one = replace(PAPER, num_read_heads=5, num_write_heads=5)
        two = replace(one, num_layers=2)
        entries = [Entry(c, w) for w in (one, two) for c in (self.ours, lstm)]
        rows = self.runner.run("train", "iteration", entries)
        times = {
            f"{entry.contender.name} L = {entry.workload.num_layers}": row.median
            for entry, row in rows.items()
        }
        value = None
        if len(times) == len(entries):
            value = times[f"{ours} L = 2"] * times["lstm L = 1"]
            value /= times["lstm L = 2"] * times[f"{ours} L = 1"]
        medians = ", ".join(f"{name} {results.number(v)} ms" for name, v in times.items())
        return [
            self._ratio(
                f"training iteration, 2 layers, 5 + 5 heads, B = 16: {steps.name} / {ours}",
                Target(6, False),
                self._side_by_side("train", "iteration", [steps], two),
                steps.name,
                ours,
            ),
            Finding(
                f"the same, {ours} / lstm with 2 layers over {ours} / lstm with 1 layer",
                Target(1.15, True),
                value,
                medians,
            ),
        ]

    def floor(self) -> list[Finding]:
        """7: the op compared with the least time that its arithmetic takes."""
        cases: dict[str, tuple[Target | None, Workload]] = {
            "B = 64": (Target(0.55, False), replace(PAPER, batch=64)),
            "N = 1024, M = 64, B = 4, T = 100": (None, replace(LONG, time=100)),
        }
        findings = []
        for sizes, (target, workload) in cases.items():
            rows = self.runner.run("sequence", "both", [Entry(OpAlone(self.ours.name), workload)])
            least, value = floor(workload, self.limits), None
            details = "no C++ compiler, so the floor is not known" if least is None else str(least)
            for row in rows.values():
                step = 1e3 * row.median / workload.time
                details += f"; op {results.number(row.median)} ms, {results.number(step)} µs a step"
                value = None if least is None else 1e3 * least.total / row.median
            claim = f"op forward and backward, {sizes}: floor / {self.ours.name}"
            findings.append(Finding(claim, target, value, details))
        return findings

    def classification(self) -> list[Finding]:
        """8: a long sequence with a loss at the last step alone, where gradients fade away."""
        findings = []
        for measured, how in (("iteration", "kept"), ("flushed", "flushed")):
            times = self._side_by_side("classify", measured, [LSTM()], replace(PAPER, time=300))
            claim = f"loss at the last of 300 steps, denormals {how}: {self.ours.name} / lstm"
            findings.append(self._ratio(claim, None, times, self.ours.name, "lstm"))
        return findings

    def autocast(self) -> list[Finding]:
        """9: what autocast in bfloat16 gains, and how far it moves the output and the gradients."""
        ours, rounded = self.ours.name, UnderAutocast(self.ours.name)
        findings = []
        for hidden_size in (100, 256, 512):
            workload = replace(PAPER, hidden_size=hidden_size)
            times = self._side_by_side("train", "iteration", [rounded], workload)
            claim = f"training iteration, C = {hidden_size}, B = 16: {ours} / {rounded.name}"
            finding = self._ratio(claim, None, times, ours, rounded.name)
            output, gradients = moved_by_rounding(self.ours, workload)
            details = f"{finding.details}; output {output:.1g} apart, gradients {gradients:.1g}"
            findings.append(replace(finding, details=details))
        return findings

    def _reference(self) -> Contender:
        return BackendContender("torch", "ntm_kernels, backend torch")

    def _side_by_side(
        self, subject: str, measured: str, others: Sequence[Contender], workload: Workload
    ) -> dict[str, float]:
        """Medians of ours and of the others, by name."""
        contenders = list({c.name: c for c in [self.ours, *others]}.values())
        rows = self.runner.side_by_side(subject, measured, contenders, workload)
        return {name: row.median for name, row in rows.items()}

    @staticmethod
    def _ratio(
        claim: str,
        target: Target | None,
        values: dict[str, float],
        above: str,
        below: str,
        unit: str = "ms",
    ) -> Finding:
        details = ", ".join(f"{name} {results.number(v)} {unit}" for name, v in values.items())
        known = above in values and below in values and values[below] > 0
        return Finding(claim, target, values[above] / values[below] if known else None, details)


CLAIMS: dict[int, Callable[[Claims], list[Finding]]] = {
    1: Claims.training,
    2: Claims.threads,
    3: Claims.sizes,
    4: Claims.own_controller,
    5: Claims.known_calls,
    6: Claims.layers,
    7: Claims.floor,
    8: Claims.classification,
    9: Claims.autocast,
}


def moved_by_rounding(contender: Contender, workload: Workload) -> tuple[float, float]:
    """How far autocast in bfloat16 moves a model's output and the gradients of its weights.

    Both as the largest absolute difference from float32, over the largest absolute value there; of
    the gradients that of the weight that differs most.
    """
    torch.manual_seed(0)
    model = contender.model(workload)
    batch, weights = copy_batch(workload), list(model.parameters())
    found: list[list[Tensor]] = []
    for run in (model, Autocast(model, workload.device)):
        output = run(batch.inputs)
        loss = contender.loss(output, batch)
        found.append([output.detach(), *torch.autograd.grad(loss, weights)])
    apart = [
        float((rounded - exact).abs().max() / exact.abs().max())
        for exact, rounded in zip(*found, strict=True)
    ]
    return apart[0], max(apart[1:])


def check(runner: Runner, numbers: Sequence[int]) -> list[tuple[int, Finding]]:
    """Measure the claims of these numbers."""
    claims = Claims(runner, automatic("cpu"))
    return [(number, finding) for number in numbers for finding in CLAIMS[number](claims)]


def table(findings: Sequence[tuple[int, Finding]]) -> str:
    """Markdown."""
    lines = ["| | claim | target | measured | | medians |", "| --- | --- | --- | --- | --- | --- |"]
    for number, finding in findings:
        value = "" if finding.value is None else results.number(finding.value)
        lines.append(
            f"| {number} | {finding.claim} | {finding.target or ''} | {value} | {finding.verdict} "
            f"| {finding.details} |"
        )
    return "\n".join(lines) + "\n"
