"""What is learnt, and on how many seeds: the runs behind docs/training.md.

    python -m bench.learning run copy associative_recall --jobs 2
    python -m bench.learning rates --jobs 2
    python -m bench.learning tables

``run`` trains a task with ten seeds and keeps the summary in docs/results, ``rates`` trains at
seven learning rates, and ``tables`` writes the tables of docs/training.md anew from these files. A
run that was stopped goes on where it was. All of it takes a night.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ntm_kernels.training.files import write_text
from ntm_kernels.training.seeds import Outcome, table

#: Where the runs are, and where their summaries are kept.
FOLDER, KEPT = Path("runs/learning"), Path("docs/results")
PAGE = Path("docs/training.md")
#: The words of ``train`` for every run of the record, by name.
RUNS: dict[str, list[str]] = {
    "copy": ["copy"],
    "copy_paper_inputs": ["copy", "--no-answer-channel"],
    "associative_recall": ["associative_recall"],
    "repeat_copy": ["repeat_copy"],
    "repeat_copy_unary": ["repeat_copy", "--unary"],
    "ngrams": ["ngrams"],
    "priority_sort": ["priority_sort"],
}
# The tests of all runs are on the same sequences, which no run is trained on.
_TESTS = ["--evaluation-size", "4096", "--evaluation-seed", "20141020", "--long-tests"]
_SEEDS = "0-9"
#: Learning rates a factor of √10 apart, and who is trained at them.
RATES = ("1e-5", "3.16e-5", "1e-4", "3.16e-4", "1e-3", "3.16e-3", "1e-2")
_RATE_SEEDS = "0-2"
_LEARNERS: dict[str, list[str]] = {
    "NTM, Graves' RMSProp": ["--optimiser", "graves_rmsprop"],
    "NTM, Adam": ["--optimiser", "adam"],
    "nn.LSTM, Graves' RMSProp": ["--model", "lstm", "--optimiser", "graves_rmsprop"],
    "nn.LSTM, Adam": ["--model", "lstm", "--optimiser", "adam"],
}
_RATE_TASKS = ("copy", "associative_recall")
# The baseline has one layer as wide as the NTM's controller, and the same sequences.
_RATE_SETTINGS = ["--hidden-size", "100", "--num-layers", "1", "--total-sequences", "32000"]


def train(words: Sequence[str], seeds: str, folder: Path, jobs: int) -> Mapping[str, Any]:
    """Trains with several seeds, going on where that was stopped, and returns their summary.

    Raises:
        SystemExit: the training was interrupted.
    """
    command = [sys.executable, "-m", "ntm_kernels", "train", *words, "--seeds", seeds]
    done = subprocess.run(
        [*command, "--jobs", str(jobs), "--run-dir", str(folder), "--resume"], check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    summary: Mapping[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def run(names: Sequence[str], jobs: int) -> None:
    """Trains for the record and keeps the summaries."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in names:
        train([*RUNS[name], *_TESTS], _SEEDS, FOLDER / name, jobs)
        shutil.copy(FOLDER / name / "summary.json", KEPT / f"{name}.json")
        shutil.copy(FOLDER / name / "seeds.png", KEPT / f"{name}.png")
        print(f"kept {KEPT / name}.json; tables makes the page anew")


def rates(jobs: int) -> None:
    """Trains at every learning rate and keeps the final costs."""
    KEPT.mkdir(parents=True, exist_ok=True)
    bits: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for task in _RATE_TASKS:
        for learner, words in _LEARNERS.items():
            for rate in RATES:
                folder = FOLDER / "rates" / f"{task} {learner} {rate}".replace(" ", "_")
                given = [task, *words, *_RATE_SETTINGS, "--lr", rate]
                seeds = train(given, _RATE_SEEDS, folder, jobs)["seeds"].values()
                costs = [_first_bits(one) for one in seeds]
                bits.setdefault(task, {}).setdefault(learner, {})[rate] = costs
    write_text(KEPT / "rates.json", json.dumps(bits, indent=1) + "\n")


def _first_bits(evaluation: Mapping[str, Any]) -> float | None:
    """Bits per sequence as trained; None of a run that failed."""
    if "scores" not in evaluation:
        return None
    bits: float = next(iter(evaluation["scores"].values()))["bits"]
    return bits


def results_table(name: str) -> str:
    """The table of a run of the record."""
    summary = json.loads((KEPT / f"{name}.json").read_text())
    outcomes = [
        Outcome(int(seed), one if "scores" in one else None, one.get("problem"))
        for seed, one in summary["seeds"].items()
    ]
    command = " ".join(summary["command"])
    return f"`{command} --seeds {_SEEDS}`:\n\n{table(outcomes)}"


def rates_table(learnt_bits: float = 0.1) -> str:
    """How many of three seeds learnt at each rate, and how wide the window of rates is."""
    bits = json.loads((KEPT / "rates.json").read_text())
    lines = [f"| task | learner | {' | '.join(RATES)} | window, decades |"]
    lines.append("| --- " * (len(RATES) + 3) + "|")
    for task, learners in bits.items():
        for learner, by_rate in learners.items():
            learnt = [
                sum(one is not None and one < learnt_bits for one in by_rate[rate])
                for rate in RATES
            ]
            cells = [
                f"{count} of {len(by_rate[rate])}"
                for count, rate in zip(learnt, RATES, strict=True)
            ]
            width = window(
                [count == len(by_rate[rate]) for count, rate in zip(learnt, RATES, strict=True)]
            )
            lines.append(
                f"| {task.replace('_', ' ')} | {learner} | {' | '.join(cells)} | {width:g} |"
            )
    return "\n".join(lines) + "\n"


def window(learnt: Sequence[bool]) -> float:
    """Decades from the first to the last of the longest stretch of rates that all learnt.

    A stretch of one rate, half a decade from its neighbours, is a window of 0.5.

    >>> window([False, True, True, True, False, True, False])
    1.5
    >>> window([False] * 7)
    0.0
    """
    longest = run_now = 0
    for one in learnt:
        run_now = run_now + 1 if one else 0
        longest = max(longest, run_now)
    return 0.5 * longest


def write_tables(page: Path = PAGE) -> None:
    """Writes every table of the page anew for which there are results.

    Raises:
        ValueError: the page has a place for results that no run of the record has.
    """
    text = page.read_text()

    def filled(place: re.Match[str]) -> str:
        name = place[1]
        if name not in (*RUNS, "rates"):
            raise ValueError(f"{page}: no run of the record is called {name!r}")
        make: Callable[[], str] = rates_table if name == "rates" else lambda: results_table(name)
        body = make() if (KEPT / f"{name}.json").exists() else "Not run yet.\n"
        return f"<!-- results: {name} -->\n\n{body}\n<!-- end of results -->"

    pattern = r"<!-- results: (\w+) -->\n.*?<!-- end of results -->"
    write_text(page, re.sub(pattern, filled, text, flags=re.DOTALL))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.learning", description=(__doc__ or "").partition("\n")[0]
    )
    commands = parser.add_subparsers(required=True, dest="command")
    one = commands.add_parser("run", help="train with ten seeds")
    one.add_argument("names", nargs="+", choices=RUNS, metavar="NAME", help=", ".join(RUNS))
    many = commands.add_parser("rates", help="train at seven learning rates")
    for command in (one, many):
        command.add_argument("--jobs", type=int, default=1, help="how many run at once")
    commands.add_parser("tables", help="write the tables of docs/training.md anew")
    options = parser.parse_args(arguments)
    if options.command == "run":
        run(options.names, options.jobs)
    elif options.command == "rates":
        rates(options.jobs)
    else:
        write_tables()
    return 0


if __name__ == "__main__":
    sys.exit(main())
