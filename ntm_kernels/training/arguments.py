"""The words of the command line: which there are, and what they mean."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

import ntm_kernels
from ntm_kernels import tasks
from ntm_kernels.fields import Field, describe
from ntm_kernels.tasks import Task
from ntm_kernels.training.config import PRESETS, RESUMABLE, TrainConfig, preset_values

__all__ = ["parse", "words_for"]

_OWN = "PACKAGE.MODULE:CLASS"


def parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    """The options given, by name.

    ``command`` is ``"info"``, ``"train"`` or ``"eval"``, and ``task`` the class of a task, or None
    where none is named. An option that is not given is left out.

    Args:
        arguments: the words after the program's name; ``sys.argv[1:]`` if None.

    Raises:
        SystemExit: the words are wrong, or ask for help.
        ValueError: there is no task of the name given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    known = dict(tasks.TASKS)
    own = None
    if words and words[0] in ("train", "eval"):
        own, rest = _named_task(words[1:])
        if words[0] == "train" and own is None:
            _refuse_class_as_task(rest)
        if own is not None:
            known[own.name] = own
            words = [words[0], *([own.name] if words[0] == "train" else []), *rest]
    options = vars(_parser(known).parse_args(words))
    options["task"] = known[options["task"]] if options["command"] == "train" else own
    return options


def words_for(task: type[Task]) -> list[str]:
    """The words with which ``train`` is told to train a task.

    >>> words_for(tasks.Copy)
    ['copy']
    """
    if tasks.TASKS.get(task.name) is task:
        return [task.name]
    return ["--task", tasks.import_name(task)]


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


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and where to read more."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the parent, but whoever finds a word that it does not know says so itself.

        The parser of all commands, which does so otherwise, has another ``--help``.
        """
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def _parser(known: Mapping[str, type[Task]]) -> _Parser:
    parser = _Parser(prog="python -m ntm_kernels", description=_first_line(ntm_kernels))
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    commands.add_parser("info", help="versions, and which backends are there")

    train = commands.add_parser("train", help="train a task of the paper or one of your own")
    train.add_argument("--task", metavar=_OWN, help="a task of your own, instead of TASK")
    by_task = train.add_subparsers(required=True, metavar="TASK", dest="task")
    for name, task in known.items():
        one = by_task.add_parser(
            name,
            prog=f"{train.prog} {shlex.join(words_for(task))}",
            help=_first_line(task),
            argument_default=argparse.SUPPRESS,
        )
        _add_train_options(one, task)

    evaluate = commands.add_parser(
        "eval", help="repeat the tests and pictures of a run", argument_default=argparse.SUPPRESS
    )
    evaluate.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    evaluate.add_argument("--checkpoint", type=Path, help="instead of the newest one")
    evaluate.add_argument(
        "--out", type=_folder, metavar="FOLDER", help="write here, not into the run's folder"
    )
    evaluate.add_argument("--task", metavar=_OWN, help="the run's task, if it is one of your own")
    tested = [describe(TrainConfig)[name] for name in RESUMABLE if name != "stop_below"]
    _add_options(evaluate, tested, _defaults(TrainConfig))
    return parser


def _first_line(owner: object) -> str:
    """The first line of a docstring, as argparse takes it."""
    lines = (owner.__doc__ or "").strip().splitlines() or [""]
    return lines[0].replace("%", "%%")


def _add_train_options(parser: argparse.ArgumentParser, task: type[Task]) -> None:
    run = parser.add_argument_group("run")
    run.add_argument(
        "--run-dir",
        type=_folder,
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
    run.add_argument("--preset", choices=PRESETS, help="settings to start from")
    of_preset = preset_values(task.name, "default", {})
    for title, owner in (("task", task), ("model and training", TrainConfig)):
        group = parser.add_argument_group(title)
        _add_options(group, describe(owner).values(), _defaults(owner) | of_preset)


def _defaults(cls: type) -> dict[str, Any]:
    return {field.name: field.default for field in fields(cls)}


def _add_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    described: Iterable[Field],
    defaults: Mapping[str, Any],
) -> None:
    """An option for each of the fields of a dataclass."""
    for field in described:
        default = defaults[field.name]
        note = f"(default {default})" if default not in (None, MISSING) else ""
        text = f"{field.help} {'(no default)' if field.required else note}".strip()
        options: dict[str, Any] = {"help": text.replace("%", "%%")}
        if field.types == (bool,):
            options["action"] = argparse.BooleanOptionalAction
        elif field.types:
            values = [kind.__name__.upper() for kind in field.types] + [*map(str, field.words)]
            options |= {"type": _value_of(field), "metavar": "|".join(values)}
        else:
            options |= {"type": _value_of(field), "choices": field.words}
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)


def _value_of(field: Field) -> Callable[[str], Any]:
    def value(text: str) -> Any:
        try:
            return field.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return value


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("must name a folder, got ''")
    return Path(text)
