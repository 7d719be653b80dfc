"""The words of the commands for trained models: ``eval``, ``export``, ``animate``, ``play``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ntm_kernels import weights
from ntm_kernels.fields import Field, describe
from ntm_kernels.tasks import Task
from ntm_kernels.training.checkpoint import CheckpointError, load_run
from ntm_kernels.training.config import TESTED, TrainConfig, saved_config
from ntm_kernels.training.exporting import FORMATS
from ntm_kernels.training.options import (
    OWN,
    Parser,
    add_options,
    defaults_of,
    folder,
    words_to_name,
)
from ntm_kernels.training.sources import load_source

__all__ = [
    "SHOWING",
    "Named",
    "add_trained_commands",
    "both_ends",
    "find_named",
    "refuse_other_task",
]

#: Commands whose options depend on the model that they are given, and what loads it.
SHOWING: dict[str, Callable[[Path, Path | None], tuple[Path, dict[str, Any]]]] = {
    "eval": load_run,
    "animate": load_source,
    "play": load_source,
}
_EVAL = (
    "Repeats the tests and pictures of a run. With a parameter of its task, one test of sequences "
    "so changed is made instead; with --memory-size, the model runs with that number of memory "
    "locations. Results of such a test are written to RUN/tests/TITLE, where TITLE says what was "
    "changed; the run's own evaluation.json stays. Without --evaluation-size, a test with long "
    "sequences or a large memory has fewer of them, as many as take about a minute."
)
_EXPORT = (
    "Writes the model of a run, for the CPU, and the state of one sequence before its first step: "
    "model.pt2 and initial_state.pt, or with --format onnx model.onnx and initial_state.npz. "
    "docs/export.md shows how to run them. Without --memory-size, the memory is that of the run."
)
_ANIMATE = (
    "Writes animation.gif and animation.html, which show one sequence of a test step by step: the "
    "inputs, what is written, the memory, where the heads write and read, and the outputs. They "
    "are written to RUN/animations/TITLE, where TITLE is that of the test; for a model that comes "
    "with the package, to animations/MODEL/TITLE."
)
_PLAY = "Prints one sequence of a task, the answer of a trained model, and whether it is right."


@dataclass(frozen=True)
class Named:
    """The run or model that the words of a command name.

    Attributes:
        source: its folder or name.
        config: its configuration.
    """

    source: Path
    config: TrainConfig

    @property
    def words_for_help(self) -> str:
        """What follows the command to see all its options."""
        return f" {shlex.join(words_to_name(self.source, type(self.config.task)))}"


def find_named(command: str, words: Sequence[str], own: type[Task] | None) -> Named | None:
    """The run or model that a command of :data:`SHOWING` is given.

    It is looked for before the words are parsed, since the parameters of its task are options too.
    None where no run is named, or where help is asked for and there is no such run.
    """
    # No word is an error to this parser: it knows neither --help nor the parameters of the task.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("run", nargs="?", type=Path)
    first.add_argument("--checkpoint", type=Path)
    described = describe(TrainConfig)
    for name in ("out", "task", "test", "seed", *TESTED):
        is_flag = name in described and described[name].types == (bool,)
        action = argparse.BooleanOptionalAction if is_flag else "store"
        first.add_argument(f"--{name.replace('_', '-')}", action=action)
    try:
        found, others = first.parse_known_args(words)
    except argparse.ArgumentError:
        return None
    if found.run is None:
        return None
    # The value of an option that is not known here may have been taken for the run: a folder with
    # checkpoints is the run, and otherwise a word that does not follow an option.
    candidates = [found.run, *(Path(word) for word in others if not word.startswith("-"))]
    values = {Path(word) for option, word in pairwise(words) if option.startswith("-")}
    likely = [one for one in candidates if one not in values] or candidates
    run = next((one for one in candidates if (one / "checkpoints").is_dir()), likely[0])
    try:
        path, contents = SHOWING[command](run, found.checkpoint)
        config = saved_config(path, contents["config"], own)
        refuse_other_task(config, own)
        return Named(run, config)
    except (CheckpointError, ValueError):
        if {"-h", "--help"} & set(words):
            return None
        raise


def refuse_other_task(config: TrainConfig, own: type[Task] | None) -> None:
    """Raises ValueError where ``--task`` names a class that is not the task of a run."""
    if own is not None and type(config.task) is not own:
        raise ValueError(
            f"--task names {own.name}, and this run trained {config.task.name}: leave --task out"
        )


def both_ends(task: type[Task]) -> dict[str, Field]:
    """Options that set the least and the most of something at once, by what it is.

    >>> from ntm_kernels.tasks import RepeatCopy
    >>> list(both_ends(RepeatCopy))
    ['length', 'repeats']
    """
    described = describe(task)
    ends = [name.removeprefix("min_") for name in described if name.startswith("min_")]
    return {
        what: replace(
            described[f"min_{what}"],
            name=what,
            help=f"--min-{what} and --max-{what} at once".replace("_", "-"),
        )
        for what in ends
        if f"max_{what}" in described and what not in described
    }


def add_trained_commands(commands: Any, named: Named | None) -> None:
    """Adds the parsers of these commands."""
    for name, text, description, add in (
        ("eval", "repeat the tests and pictures of a run, or test it on other sequences", _EVAL,
         _add_eval_options),
        ("export", "write the model of a run as a program for other processes", _EXPORT,
         _add_export_options),
        ("animate", "show step by step what a model does with a sequence", _ANIMATE,
         _add_animate_options),
        ("play", "print a sequence and a model's answer to it", _PLAY, _add_play_options),
    ):  # fmt: skip
        parser = commands.add_parser(
            name, help=text, description=description, argument_default=argparse.SUPPRESS
        )
        if named is not None:
            parser.words_for_help = named.words_for_help
        add(parser, named)


def _add_run(parser: Parser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    _add_origin(parser)


def _add_model(parser: Parser) -> None:
    names = ", ".join(weights.available())
    parser.add_argument(
        "run", type=Path, metavar="MODEL", help=f"folder of a run, or one of {names}"
    )
    _add_origin(parser)


def _add_origin(parser: Parser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="instead of the newest one")
    parser.add_argument("--task", metavar=OWN, help="the run's task, if it is one of your own")


def _add_export_options(parser: Parser, named: Named | None) -> None:
    _add_run(parser)
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        required=True,
        help="torch: a program of torch.export; onnx: one step for an ONNX runtime",
    )
    parser.add_argument(
        "--out", type=folder, metavar="FOLDER", help="write here (default RUN/export)"
    )
    defaults = {"memory_size": None}  # that of the run
    add_options(parser, [describe(TrainConfig)["memory_size"]], defaults)


def _add_eval_options(parser: Parser, named: Named | None) -> None:
    _add_run(parser)
    parser.add_argument(
        "--out", type=folder, metavar="FOLDER", help="write here, not into the run's folder"
    )
    described, defaults = describe(TrainConfig), defaults_of(TrainConfig)
    if named is not None:
        defaults |= {name: getattr(named.config, name) for name in TESTED}
    add_options(parser, [described[name] for name in TESTED], defaults)
    _add_sequence_options(parser, named, "another test", "eval RUN")


def _add_animate_options(parser: Parser, named: Named | None) -> None:
    _add_model(parser)
    parser.add_argument(
        "--test", metavar="TITLE", help="a test of the run by its title (default: the first)"
    )
    parser.add_argument("--out", type=folder, metavar="FOLDER", help="write here")
    _add_sequence_options(parser, named, "other sequences", "animate MODEL")


def _add_play_options(parser: Parser, named: Named | None) -> None:
    _add_model(parser)
    parser.add_argument(
        "--seed", type=int, metavar="INT", help="which sequence: another for each seed (default 0)"
    )
    _add_sequence_options(parser, named, "other sequences", "play MODEL")


def _add_sequence_options(parser: Parser, named: Named | None, title: str, command: str) -> None:
    """The size of the memory and the parameters of the task, where that is known."""
    other = parser.add_argument_group(
        title,
        f"The parameters of the run's task are options too: {command} --help lists them."
        if named is None
        else "the task's parameters, and the size of the memory; the defaults are those of the run",
    )
    described, defaults = describe(TrainConfig), defaults_of(TrainConfig)
    if named is None:
        add_options(other, [described["memory_size"]], defaults)
        return
    config, task = named.config, named.config.task
    has_memory = config.model == "ntm"
    of_run = {"memory_size": config.final_memory_size if has_memory else None}
    add_options(other, [described["memory_size"]], of_run)
    parameters = {f.name: getattr(task, f.name) for f in fields(task)}
    add_options(other, describe(type(task)).values(), parameters)
    ends = both_ends(type(task))
    add_options(other, ends.values(), dict.fromkeys(ends))
