"""The same training with many seeds: ``train TASK --seeds 0-9 --jobs 2``.

Every seed is a run of its own, in a process and a folder of its own, so that one that fails takes
no other with it. What they came to is gathered from their files.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TextIO

from ntm_kernels.training.evaluation import AS_TRAINED
from ntm_kernels.training.files import make_folder, write_text

__all__ = [
    "Outcome",
    "SeedRuns",
    "as_trained",
    "excess_bits",
    "finished",
    "is_unsure",
    "parse_seeds",
    "read_summary",
    "table",
    "write_summary",
]

# Seconds between two looks at the processes.
_POLL = 0.2


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds that ``--seeds`` names: numbers and ranges, with commas.

    Raises:
        ValueError: the text names none, names one twice, or is no such list.

    >>> parse_seeds("0-3,7")
    (0, 1, 2, 3, 7)
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if found is None:
            raise ValueError(f"seeds must be numbers and ranges such as 0-9 or 0,3,5, got {text!r}")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"seeds: the range {part.strip()!r} is empty; the first must be least")
        if last - first >= 10_000:
            raise ValueError(f"seeds: {part.strip()!r} are more than 10,000 runs")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ, got {text!r}")
    return tuple(seeds)


@dataclass(frozen=True)
class Outcome:
    """What came of one seed.

    Attributes:
        seed: the seed.
        evaluation: the contents of the run's evaluation.json, or None where there is none.
        problem: why there is none.
    """

    seed: int
    evaluation: Mapping[str, Any] | None
    problem: str | None = None


def finished(outcomes: Sequence[Outcome]) -> dict[int, Mapping[str, Any]]:
    """The evaluations of the seeds that have one, by seed."""
    return {one.seed: one.evaluation for one in outcomes if one.evaluation is not None}


def as_trained(evaluation: Mapping[str, Any]) -> Mapping[str, Any]:
    """The score on sequences like those of the training: the first of an evaluation."""
    scores: Mapping[str, Mapping[str, Any]] = evaluation["scores"]
    return scores[AS_TRAINED]


def excess_bits(score: Mapping[str, Any]) -> float:
    """Bits per sequence above the best possible."""
    excess: float = score["bits"] - score["optimal_bits"]
    return excess


def is_unsure(score: Mapping[str, Any]) -> bool:
    """Whether even the best predictor has a cost, so that no answer is right or wrong."""
    return bool(score["optimal_bits"] > 0)


class SeedRuns:
    """Runs one process for each seed, at most ``jobs`` at a time.

    Args:
        folder: of all the runs; that of a seed is ``seed-SEED`` in it.
        words: the words of ``train`` that all the runs share.
        seeds: their seeds.
        jobs: how many run at once, ≥ 1.
        report: takes a line where a run begins and where it ends.
    """

    def __init__(
        self,
        folder: Path,
        words: Sequence[str],
        seeds: Sequence[int],
        jobs: int,
        report: Callable[[str], None] = print,
    ) -> None:
        if jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {jobs}")
        self._folder, self._words, self._seeds = folder, list(words), list(seeds)
        self._jobs, self._report = jobs, report
        self._running: dict[int, tuple[subprocess.Popen[bytes], TextIO]] = {}

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> list[Outcome]:
        """Runs them all, or until ``should_stop`` says so: those under way are then told to stop
        after their update, and waited for.

        Returns:
            What came of each seed, in their order.
        """
        make_folder(self._folder)
        waiting, codes = list(self._seeds), dict[int, int]()
        told = False
        try:
            while waiting or self._running:
                if should_stop() and not told:
                    waiting, told = [], True
                    self._tell_to_stop()
                while waiting and len(self._running) < self._jobs:
                    self._start(waiting.pop(0))
                codes |= self._ended()
                time.sleep(_POLL)
        finally:
            self._tell_to_stop()
            for process, log in self._running.values():
                process.wait()
                log.close()
        return [self._outcome(seed, codes.get(seed)) for seed in self._seeds]

    def run_folder(self, seed: int) -> Path:
        """The folder of one seed's run."""
        return self._folder / f"seed-{seed}"

    def _log(self, seed: int) -> Path:
        return self._folder / f"seed-{seed}.log"

    def _start(self, seed: int) -> None:
        own = ["--seed", str(seed), "--run-dir", str(self.run_folder(seed))]
        command = [sys.executable, "-m", "ntm_kernels", "train", *self._words, *own]
        log = open(self._log(seed), "a")  # noqa: SIM115 (closed where the process has ended)
        # In a session of its own Ctrl-C does not reach it. This process tells it to stop, and once:
        # a second signal would kill it in the middle of an update.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._running[seed] = process, log
        self._report(f"seed {seed}: begins; {self._log(seed)} has its lines")

    def _ended(self) -> dict[int, int]:
        """The exit codes of the runs that have ended since the last call."""
        codes = {}
        for seed, (process, log) in list(self._running.items()):
            code = process.poll()
            if code is not None:
                log.close()
                del self._running[seed]
                codes[seed] = code
                self._report(f"seed {seed}: {_in_words(self._outcome(seed, code))}")
        return codes

    def _tell_to_stop(self) -> None:
        for process, _ in self._running.values():
            process.terminate()

    def _outcome(self, seed: int, code: int | None) -> Outcome:
        if code is None:
            return Outcome(seed, None, "not begun")
        if code:
            lines = self._log(seed).read_text(errors="replace").strip().splitlines()
            said = lines[-1] if lines else "it said nothing"
            return Outcome(seed, None, f"ended with exit code {code}: {said}")
        path = self.run_folder(seed) / "evaluation.json"
        return Outcome(seed, json.loads(path.read_text()))


def _in_words(outcome: Outcome) -> str:
    if outcome.evaluation is None:
        return str(outcome.problem)
    evaluation = outcome.evaluation
    return (
        f"{as_trained(evaluation)['bits']:.4f} bits per sequence after "
        f"{evaluation['sequences']:,} sequences, "
        f"{evaluation['processor_seconds']:.0f} processor seconds"
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """A table in Markdown: a row for each seed, with the bits and the wrong sequences of each test.

    Where answers are wrong, each part of the output has its share of wrong answer steps. Where even
    the best predictor is unsure, the bits are those above its own and no answer is called wrong.
    Below the rows stand the medians, and how many seeds learnt the task. A seed that failed has a
    row that says why.
    """
    done = list(finished(outcomes).values())
    titles = list(done[0]["scores"]) if done else []
    head = ["seed", "sequences", "learnt after", "processor s", *titles]
    rows = [head, ["---"] * len(head), *(_row(outcome, titles) for outcome in outcomes)]
    if done:
        seconds = median(evaluation["processor_seconds"] for evaluation in done)
        bits = [median(excess_bits(e["scores"][title]) for e in done) for title in titles]
        rows.append(["median", "", "", f"{seconds:.0f}", *(f"{one:.3g}" for one in bits)])
    text = "".join(f"| {' | '.join(row + [''] * (len(head) - len(row)))} |\n" for row in rows)
    return f"{text}\n{_verdict(outcomes)}\n"


def _row(outcome: Outcome, titles: Sequence[str]) -> list[str]:
    if outcome.evaluation is None:
        return [str(outcome.seed), str(outcome.problem).replace("|", "/")]
    evaluation, learnt = outcome.evaluation, outcome.evaluation["learnt_at"]
    scores = [evaluation["scores"][title] for title in titles]
    return [
        str(outcome.seed),
        f"{evaluation['sequences']:,}",
        "never" if learnt is None else f"{learnt:,}",
        f"{evaluation['processor_seconds']:.0f}",
        *map(_cell, scores),
    ]


def _cell(score: Mapping[str, Any]) -> str:
    """The result of one test: bits, wrong sequences, and the share of wrong answer steps of each
    part of the output. Where even the best predictor is unsure, the bits above its own alone.

    >>> _cell({"bits": 0.5, "optimal_bits": 0.0, "wrong": 1, "sequences": 2000, "parts": {}})
    '0.5 (1 of 2,000 wrong)'
    >>> _cell({"bits": 2.5, "optimal_bits": 2.0, "wrong": 1, "sequences": 2000, "parts": {}})
    '0.5'
    """
    if is_unsure(score):
        return f"{excess_bits(score):.3g}"
    parts = [
        f"; {name} {part['wrong_steps'] / part['steps']:.2%}"
        for name, part in score["parts"].items()
        if part["wrong_steps"]
    ]
    return (
        f"{excess_bits(score):.3g} ({score['wrong']} of {score['sequences']:,} wrong"
        f"{''.join(parts)})"
    )


def _verdict(outcomes: Sequence[Outcome]) -> str:
    """How many of the seeds learnt the task, by their final weights on new sequences."""
    done = list(finished(outcomes).values())
    if not done:
        return f"None of {len(outcomes)} runs finished."
    limit, scores = done[0]["learnt_bits"], [as_trained(evaluation) for evaluation in done]
    learnt = sum(excess_bits(score) < limit for score in scores)
    optimum = " above the optimum" if is_unsure(scores[0]) else ""
    return (
        f"{learnt} of {len(outcomes)} seeds end below {limit:g} bits a sequence{optimum}. The "
        f"cells have bits per sequence{optimum}."
    )


def write_summary(folder: Path, words: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """Writes ``summary.json`` and ``table.md`` into the folder of the runs.

    Raises:
        WriteError: a file cannot be written.
    """
    contents = {
        "command": ["python", "-m", "ntm_kernels", "train", *words],
        "seeds": {
            str(outcome.seed): outcome.evaluation
            if outcome.evaluation is not None
            else {"problem": outcome.problem}
            for outcome in outcomes
        },
    }
    write_text(folder / "summary.json", json.dumps(contents, indent=1) + "\n")
    write_text(folder / "table.md", table(outcomes))


def read_summary(path: Path) -> tuple[str, list[Outcome]]:
    """The command and the outcomes that :func:`write_summary` wrote."""
    contents = json.loads(path.read_text())
    outcomes = [
        Outcome(int(seed), one if "scores" in one else None, one.get("problem"))
        for seed, one in contents["seeds"].items()
    ]
    return shlex.join(contents["command"]), outcomes
