"""What is learnt, on how many seeds, and why: runs for docs/training.md and docs/why-it-learns.md.

    python -m bench.learning run copy associative_recall --jobs 2
    python -m bench.learning rates copy --jobs 2
    python -m bench.learning factors associative_recall --jobs 2
    python -m bench.learning tables

``run`` trains a task with ten seeds, ``rates`` at seven learning rates, and ``factors`` with one
setting changed at a time. They keep summaries and pictures in docs/results, ``rates`` and
``factors`` after every row. From these ``tables`` writes the tables of both pages, each between the
lines ``<!-- results: NAME -->`` and ``<!-- end of results -->``. A run that was stopped goes on
where it was.
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

from bench import plots
from ntm_kernels.training.evaluation import AS_TRAINED
from ntm_kernels.training.files import write_text
from ntm_kernels.training.presets import preset
from ntm_kernels.training.seeds import Outcome, excess_bits, parse_seeds, read_summary, table

#: Where the runs are, and where their summaries are kept.
FOLDER, KEPT = Path("runs/learning"), Path("docs/results")
PAGES = (Path("docs/training.md"), Path("docs/why-it-learns.md"))
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
_BY_ELEMENT = {
    "each element of the gradient clipped to 10, not the norm": [
        *("--clip", "10", "--clip-norm", "off"),
    ]
}
_WALKING = {"write heads that walk": ["--walking-write-heads"]}
#: What is changed of the default settings, one thing at a time, by task: what it is called, and the
#: words of ``train``. The first row is the default itself.
FACTORS: dict[str, dict[str, list[str]]] = {
    "associative_recall": {
        "the default": [],
        "write heads that do not walk": ["--no-walking-write-heads"],
        "Adam": ["--optimiser", "adam"],
        "Adam at 3e-4": ["--optimiser", "adam", "--lr", "3e-4"],
        "no growth, N = 32": ["--memory-size", "32"],
        "N = 128 from the start": ["--memory-size", "128"],
        **_BY_ELEMENT,
        "batches of 16": ["--batch-size", "16"],
        "output from the controller too": ["--output-from", "features"],
        "learned initial memory, N = 32": ["--initial-memory", "learned"],
        "initial memory of 0.1": ["--initial-memory", "0.1"],
        "learned initial weightings, N = 32": ["--initial-weightings", "learned"],
        "a curriculum": ["--curriculum"],
    },
    "copy": {
        "the default": [],
        **_WALKING,
        "Adam": ["--optimiser", "adam"],
        "a learning rate of 1e-3": ["--lr", "1e-3"],
        "N = 32": ["--memory-size", "32"],
        **_BY_ELEMENT,
        "batches of 16": ["--batch-size", "16"],
        "output from the controller too": ["--output-from", "features"],
        "learned initial memory": ["--initial-memory", "learned"],
        "initial memory of 0.1": ["--initial-memory", "0.1"],
        "learned initial weightings": ["--initial-weightings", "learned"],
        "no answer channel": ["--no-answer-channel"],
        "a curriculum": ["--curriculum"],
    },
    "repeat_copy": {
        "the default": [],
        **_WALKING,
        "no curriculum": ["--no-curriculum"],
        "no earlier stages mixed in": ["--mix-earlier", "0"],
        "no growth, N = 64": ["--memory-size", "64"],
        "output from the controller too": ["--output-from", "features"],
    },
}
_FACTOR_SEEDS = "0-2"
# The test beyond training that is in the table: of each task the hardest that takes seconds.
_BEYOND = {
    "associative_recall": "20 items",
    "copy": "length 120",
    "repeat_copy": "length 20, 10 repeats",
}
# Where a table is in a page.
_PLACE = re.compile(r"<!-- results: (\w+) -->\n.*?<!-- end of results -->", re.DOTALL)
# Bits per sequence that count as learnt.
_LEARNT = 0.1
_RATE_TASKS = ("associative_recall", "copy")
# The baseline has one layer as wide as the NTM's controller; all have the batches, the schedule and
# the clip (added by `rates`) of the NTM's default settings, and fewer sequences.
_RATE_SETTINGS = [
    *("--hidden-size", "100", "--num-layers", "1", "--batch-size", "4"),
    *("--clip", "off", "--hold", "0.6", "--total-sequences", "32000"),
]


def train(words: Sequence[str], seeds: str, folder: Path, jobs: int) -> list[Outcome]:
    """Trains with several seeds, going on where that was stopped, and returns what came of them.

    Raises:
        SystemExit: the training was interrupted, or another process trains there.
    """
    command = [sys.executable, "-m", "ntm_kernels", "train", *words, "--seeds", seeds]
    done = subprocess.run(
        [*command, "--jobs", str(jobs), "--run-dir", str(folder), "--resume"], check=False
    )
    summary = folder / "summary.json"
    if done.returncode not in (0, 1) or not summary.exists():
        raise SystemExit(done.returncode)
    return read_summary(summary)[1]


def run(names: Sequence[str], jobs: int) -> None:
    """Trains for the record and keeps the summaries."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in names:
        train([*RUNS[name], *_TESTS], _SEEDS, FOLDER / name, jobs)
        shutil.copy(FOLDER / name / "summary.json", KEPT / f"{name}.json")
        shutil.copy(FOLDER / name / "seeds.png", KEPT / f"{name}.png")
        print(f"kept {KEPT / name}.json; tables makes the page anew")


def rates(tasks: Sequence[str], jobs: int) -> None:
    """Trains at every learning rate and keeps the final costs."""
    for task in tasks:
        clip = ["--clip-norm", str(preset(task).clip_norm)]
        bits: dict[str, dict[str, list[float | None]]] = {}
        for learner, words in _LEARNERS.items():
            bits[learner] = {}
            for rate in RATES:
                folder = FOLDER / "rates" / re.sub(r"\W+", "-", f"{task} {learner} {rate}")
                given = [task, *words, *_RATE_SETTINGS, *clip, "--lr", rate]
                costs = [_final_bits(one) for one in train(given, _RATE_SEEDS, folder, jobs)]
                bits[learner][rate] = costs
            _keep(f"rates_{task}", bits)
            plots.draw_rates(bits, _LEARNT, KEPT / f"rates_{task}.png")


def factors(tasks: Sequence[str], jobs: int) -> None:
    """Trains with one setting changed at a time and keeps the final costs."""
    for task in tasks:
        bits: dict[str, list[list[float | None]]] = {}
        for number, (title, words) in enumerate(FACTORS[task].items()):
            folder = FOLDER / "factors" / f"{task}_{number}"
            outcomes = train([task, *words], _FACTOR_SEEDS, folder, jobs)
            bits[title] = [[_final_bits(one), _final_bits(one, _BEYOND[task])] for one in outcomes]
            _keep(f"factors_{task}", bits)


def _keep(name: str, values: object) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    write_text(KEPT / f"{name}.json", json.dumps(values, indent=1) + "\n")
    print(f"kept {KEPT / name}.json; tables makes the page anew")


def _final_bits(outcome: Outcome, title: str = AS_TRAINED) -> float | None:
    """Bits per sequence of a test, above the best possible; None of a run that failed."""
    return None if outcome.evaluation is None else excess_bits(outcome.evaluation["scores"][title])


def results_table(name: str) -> str:
    """The table of a run of the record."""
    command, outcomes = read_summary(KEPT / f"{name}.json")
    return f"`{command} --seeds {_SEEDS}`:\n\n{table(outcomes)}"


def rates_table(task: str) -> str:
    """How many seeds learnt at each rate, and how wide the window of rates is."""
    bits = json.loads((KEPT / f"rates_{task}.json").read_text())
    rows = [
        f"| learner | {' | '.join(RATES)} | window, decades |",
        "| --- " * (len(RATES) + 2) + "|",
        *(_rates_row(learner, by_rate) for learner, by_rate in bits.items()),
    ]
    return "\n".join(rows) + "\n"


def _rates_row(learner: str, by_rate: dict[str, list[float | None]]) -> str:
    learnt = [[one is not None and one < _LEARNT for one in by_rate[rate]] for rate in RATES]
    cells = [f"{sum(seeds)} of {len(seeds)}" for seeds in learnt]
    width = window([all(seeds) for seeds in learnt])
    return f"| {learner} | {' | '.join(cells)} | {width:g} |"


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


def factors_table(task: str) -> str:
    """The final bits of each seed with one setting changed: as trained, and beyond training."""
    bits = json.loads((KEPT / f"factors_{task}.json").read_text())
    seeds = parse_seeds(_FACTOR_SEEDS)
    head = ["what is changed", *(f"seed {seed}" for seed in seeds)]
    rows = [head, ["---"] * len(head)]
    for title, costs in bits.items():
        rows.append([title, *(" / ".join(map(_bits_in_words, one)) for one in costs)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _bits_in_words(bits: float | None) -> str:
    return "failed" if bits is None else f"{bits:.2g}" if bits < 10 else f"{bits:.0f}"


def write_tables(pages: Sequence[Path] = PAGES) -> None:
    """Writes every table of the pages anew.

    Raises:
        ValueError: there are results without a place in any page, or a place without results.
    """
    texts = {page: page.read_text() for page in pages}
    places = {name: page for page, text in texts.items() for name in _PLACE.findall(text)}
    kept = {path.stem for path in KEPT.glob("*.json")}
    for name in sorted(kept - set(places)):
        raise ValueError(
            f"no page has a place for {KEPT / name}.json: write `<!-- results: {name} -->` and "
            f"`<!-- end of results -->` where its table is to be, in {' or '.join(map(str, pages))}"
        )
    for name in sorted(set(places) - kept):
        raise ValueError(
            f"{places[name]} has a place for {name}, and there is no {KEPT / name}.json"
        )
    for page, text in texts.items():
        write_text(page, _PLACE.sub(_filled, text))


def _filled(place: re.Match[str]) -> str:
    name = place[1]
    kind, _, task = name.partition("_")
    of_kind = {"rates": rates_table, "factors": factors_table}
    body = of_kind[kind](task) if kind in of_kind else results_table(name)
    return f"<!-- results: {name} -->\n\n{body}\n<!-- end of results -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.learning", description=(__doc__ or "").partition("\n")[0]
    )
    commands = parser.add_subparsers(required=True, dest="command")
    for name, choices, said in (
        ("run", tuple(RUNS), "train with ten seeds"),
        ("rates", _RATE_TASKS, "train at seven learning rates"),
        ("factors", tuple(FACTORS), "train with one setting changed at a time"),
    ):
        command = commands.add_parser(name, help=said)
        listed = ", ".join(choices)
        command.add_argument("names", nargs="+", choices=choices, metavar="NAME", help=listed)
        command.add_argument("--jobs", type=int, default=1, help="how many run at once")
    commands.add_parser("tables", help="write the tables of the pages anew")
    options = parser.parse_args(arguments)
    if options.command == "tables":
        write_tables()
    else:
        {"run": run, "rates": rates, "factors": factors}[options.command](
            options.names, options.jobs
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
