"""What is learnt, and on how many seeds: runs for docs/training.md.

    python -m bench.learning run copy associative_recall --jobs 2
    python -m bench.learning rates --jobs 2
    python -m bench.learning tables

``run`` trains a task with ten seeds and keeps the summary in docs/results, ``rates`` trains at
seven learning rates, and ``tables`` writes the tables of docs/training.md from these files, each
between the lines ``<!-- results: NAME -->`` and ``<!-- end of results -->``. A run that was stopped
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ntm_kernels.training.files import write_text
from ntm_kernels.training.seeds import Outcome, as_trained, excess_bits, read_summary, table

#: Where the runs are, and where their summaries are kept.
FOLDER, KEPT = Path("runs/learning"), Path("docs/results")
PAGE = Path("docs/training.md")
#: The words of ``train`` for every run of the record, by name.
RUNS: dict[str, list[str]] = {
    "copy": ["copy"],
    "copy_paper_inputs": ["copy", "--no-answer-channel"],
    "associative_recall": ["associative_recall"],
    "associative_recall_answer_channel": ["associative_recall", "--answer-channel"],
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
# Bits per sequence that count as learnt.
_LEARNT = 0.1
_RATE_TASKS = ("copy", "associative_recall")
# The baseline has one layer as wide as the NTM's controller, and the same sequences.
_RATE_SETTINGS = ["--hidden-size", "100", "--num-layers", "1", "--total-sequences", "32000"]


def train(words: Sequence[str], seeds: str, folder: Path, jobs: int) -> list[Outcome]:
    """Trains with several seeds, going on where that was stopped, and returns what came of them.

    Raises:
        SystemExit: the training was interrupted.
    """
    command = [sys.executable, "-m", "ntm_kernels", "train", *words, "--seeds", seeds]
    done = subprocess.run(
        [*command, "--jobs", str(jobs), "--run-dir", str(folder), "--resume"], check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    return read_summary(folder / "summary.json")[1]


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
                costs = [_final_bits(one) for one in train(given, _RATE_SEEDS, folder, jobs)]
                bits.setdefault(task, {}).setdefault(learner, {})[rate] = costs
    write_text(KEPT / "rates.json", json.dumps(bits, indent=1) + "\n")


def _final_bits(outcome: Outcome) -> float | None:
    """Bits per sequence as trained; None of a run that failed."""
    return None if outcome.evaluation is None else excess_bits(as_trained(outcome.evaluation))


def results_table(name: str) -> str:
    """The table of a run of the record."""
    command, outcomes = read_summary(KEPT / f"{name}.json")
    return f"`{command} --seeds {_SEEDS}`:\n\n{table(outcomes)}"


def rates_table() -> str:
    """How many seeds learnt at each rate, and how wide the window of rates is."""
    bits = json.loads((KEPT / "rates.json").read_text())
    rows = [
        f"| task | learner | {' | '.join(RATES)} | window, decades |",
        "| --- " * (len(RATES) + 3) + "|",
        *(
            _rates_row(task, learner, by_rate)
            for task, learners in bits.items()
            for learner, by_rate in learners.items()
        ),
    ]
    return "\n".join(rows) + "\n"


def _rates_row(task: str, learner: str, by_rate: dict[str, list[float | None]]) -> str:
    learnt = [[one is not None and one < _LEARNT for one in by_rate[rate]] for rate in RATES]
    cells = [f"{sum(seeds)} of {len(seeds)}" for seeds in learnt]
    width = window([all(seeds) for seeds in learnt])
    return f"| {task.replace('_', ' ')} | {learner} | {' | '.join(cells)} | {width:g} |"


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
    """Writes every table of the page anew.

    Raises:
        ValueError: the page has a place for results that there are not, or none for some that there
            are.
    """
    text = page.read_text()
    kept = {path.stem for path in KEPT.glob("*.json")}
    places = set(re.findall(r"<!-- results: (\w+) -->", text))
    for name in sorted(kept - places):
        raise ValueError(
            f"{page} has no place for {KEPT / name}.json: write `<!-- results: {name} -->` and "
            "`<!-- end of results -->` where its table is to be"
        )
    for name in sorted(places - kept):
        raise ValueError(f"{page} has a place for {name}, and there is no {KEPT / name}.json")

    def filled(place: re.Match[str]) -> str:
        name = place[1]
        body = rates_table() if name == "rates" else results_table(name)
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
