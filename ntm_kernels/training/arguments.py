"""The words of the command line: which there are, and what they mean."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ntm_kernels
from ntm_kernels import tasks
from ntm_kernels.backends.trust.report import DTYPES
from ntm_kernels.fields import describe
from ntm_kernels.tasks import Task
from ntm_kernels.training.config import TrainConfig, check_parameter_names
from ntm_kernels.training.options import (
    OWN,
    Parser,
    add_options,
    defaults_of,
    first_line,
    folder,
    value_by,
    words_for,
)
from ntm_kernels.training.presets import PRESETS, preset_values
from ntm_kernels.training.seeds import parse_seeds
from ntm_kernels.training.trained_arguments import (
    SHOWING,
    Named,
    add_trained_commands,
    both_ends,
    find_named,
)

__all__ = ["parse"]

_SELFCHECK = (
    "Runs every op of a backend, forward and backward, on each of its code paths, compares the "
    "results with those of PyTorch on the same device, and keeps the verdicts."
)


def parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    """The options given, by name.

    ``command`` is the command, and ``task`` the class of a task, or None where none is named. An
    option that is not given is left out.

    Args:
        arguments: the words after the program's name; ``sys.argv[1:]`` if None.

    Raises:
        SystemExit: the words are wrong, or ask for help.
        ValueError: there is no task of the name given, or it is not the task of the run.
        CheckpointError: the run that is named holds no checkpoint that can be read.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    known = dict(tasks.TASKS)
    own = named = None
    if words and words[0] in ("train", "export", *SHOWING):
        own, rest = _named_task(words[1:])
        if words[0] == "train" and own is None:
            _refuse_class_as_task(rest)
        if own is not None:
            check_parameter_names(own)
            _refuse_both(words[0], rest)
            known[own.name] = own
            words = [words[0], *([own.name] if words[0] == "train" else []), *rest]
        if words[0] in SHOWING:
            named = find_named(words[0], words[1:], own)
    options = vars(_parser(known, named).parse_args(words))
    options["task"] = known[options["task"]] if options["command"] == "train" else own
    return options if named is None else _with_both_ends(options, type(named.config.task))


def _with_both_ends(options: dict[str, Any], task: type[Task]) -> dict[str, Any]:
    """Options with ``--min-length`` and ``--max-length`` where ``--length`` is given.

    Raises:
        ValueError: one of these is given too.
    """
    for what in both_ends(task):
        if what not in options:
            continue
        value = options.pop(what)
        for end in (f"min_{what}", f"max_{what}"):
            if end in options:
                option = f"--{end.replace('_', '-')}"
                raise ValueError(
                    f"--{what} {value} sets {option} too, which is {options[end]}: give one of them"
                )
            options[end] = value
    return options


def _named_task(words: Sequence[str]) -> tuple[type[Task] | None, list[str]]:
    """The class that ``--task`` names, and the other words.

    It is looked for before they are parsed, since its parameters are options too.
    """
    name, rest, following = None, [], iter(words)
    for word in following:
        if word == "--task":
            name = next(following, "")
        elif word.startswith("--task="):
            name = word.removeprefix("--task=")
        else:
            rest.append(word)
    if name is None:
        return None, rest
    # As `python -m` does and the installed command does not.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return tasks.find(name), rest


def _refuse_class_as_task(words: Sequence[str]) -> None:
    """Raises ValueError where the class of a task stands where TASK does, after ``train``."""
    for word in words[:1]:
        if ":" in word and not word.startswith("-"):
            raise ValueError(
                f"TASK must be one of {', '.join(tasks.TASKS)}, got {word!r}; "
                f"a task of your own is named by an option: --task {shlex.quote(word)}"
            )


def _refuse_both(command: str, words: Sequence[str]) -> None:
    """Raises ValueError where a task of the package is named beside ``--task``."""
    if command == "train" and words and words[0] in tasks.TASKS:
        raise ValueError(f"give either the task {words[0]} or --task, not both")


def _parser(known: Mapping[str, type[Task]], named: Named | None) -> Parser:
    parser = Parser(prog="python -m ntm_kernels", description=first_line(ntm_kernels))
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    commands.add_parser("info", help="versions, and which backends are there")
    check = commands.add_parser(
        "selfcheck",
        help="compare the kernels for GPUs with PyTorch on every GPU here",
        description=_SELFCHECK,
    )
    _add_selfcheck_options(check)

    train = commands.add_parser("train", help="train a task of the paper or one of your own")
    train.add_argument("--task", metavar=OWN, help="a task of your own, instead of TASK")
    by_task = train.add_subparsers(required=True, metavar="TASK", dest="task")
    for name, task in known.items():
        one = by_task.add_parser(
            name,
            prog=f"{train.prog} {shlex.join(words_for(task))}",
            help=first_line(task),
            argument_default=argparse.SUPPRESS,
        )
        _add_train_options(one, task)

    add_trained_commands(commands, named)
    return parser


def _add_selfcheck_options(parser: Parser) -> None:
    parser.add_argument(
        "--backend", nargs="+", default=[], metavar="NAME", help="cuda, triton; default: all here"
    )
    parser.add_argument(
        "--dtype", nargs="+", default=list(DTYPES), choices=list(DTYPES), help="default: all"
    )


def _add_train_options(parser: argparse.ArgumentParser, task: type[Task]) -> None:
    run = parser.add_argument_group("run")
    run.add_argument(
        "--run-dir",
        type=folder,
        metavar="FOLDER",
        help="folder of the run (default runs/TASK-MODEL-seedSEED)",
    )
    run.add_argument(
        "--resume",
        action="store_true",
        default=False,
        help="go on with the run in --run-dir; a larger --total-sequences trains a finished run "
        "longer, at the rate that its schedule ended with",
    )
    run.add_argument("--checkpoint", type=Path, help="with --resume: from this one, not the newest")
    run.add_argument(
        "--seeds",
        type=value_by(parse_seeds),
        metavar="0-9",
        help="train with each of these seeds, each in a folder seed-SEED of --run-dir (default "
        "runs/TASK-MODEL-seeds), and gather the results there",
    )
    run.add_argument(
        "--jobs", type=int, metavar="INT", help="with --seeds: how many run at once (default 1)"
    )
    run.add_argument("--preset", choices=PRESETS, help="settings to start from")
    of_preset = preset_values(task.name, "default", {})
    for title, owner in (("task", task), ("model and training", TrainConfig)):
        group = parser.add_argument_group(title)
        add_options(group, describe(owner).values(), defaults_of(owner) | of_preset)
