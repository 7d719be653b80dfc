"""Options made from the fields of a dataclass, and the words that give them again."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

from ntm_kernels import tasks
from ntm_kernels.fields import Field
from ntm_kernels.tasks import Task

__all__ = [
    "OWN",
    "Parser",
    "add_options",
    "defaults_of",
    "first_line",
    "folder",
    "value_by",
    "words_for",
    "words_of",
    "words_to_name",
]

#: How help names the class of a task.
OWN = "PACKAGE.MODULE:CLASS"


def words_for(task: type[Task]) -> list[str]:
    """The words with which ``train`` is told to train a task.

    >>> words_for(tasks.Copy)
    ['copy']
    """
    if _is_registered(task):
        return [task.name]
    return ["--task", tasks.import_name(task)]


def words_to_name(run: Path, task: type[Task]) -> list[str]:
    """The words with which other commands are told of a run; a task of one's own is among them.

    >>> words_to_name(Path("runs/copy"), tasks.Copy)
    ['runs/copy']
    """
    return [str(run), *([] if _is_registered(task) else words_for(task))]


def _is_registered(task: type[Task]) -> bool:
    return tasks.TASKS.get(task.name) is task


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Options by name as the words that give them.

    >>> words_of({"lr": 0.001, "same_length": False, "clip": "off"})
    ['--lr', '0.001', '--no-same-length', '--clip', 'off']
    """
    words = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", str(value)]
    return words


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and where to read more."""

    #: Words without which ``--help`` does not show all options.
    words_for_help = ""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog}{self.words_for_help} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the parent, but whoever finds a word that it does not know says so itself.

        The parser of all commands, which does so otherwise, has another ``--help``.
        """
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def first_line(owner: object) -> str:
    """The first line of a docstring, as argparse takes it."""
    lines = (owner.__doc__ or "").strip().splitlines() or [""]
    return lines[0].replace("%", "%%")


def defaults_of(cls: type) -> dict[str, Any]:
    """The default of every field of a dataclass, ``MISSING`` where it has none."""
    return {field.name: field.default for field in fields(cls)}


def add_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    described: Iterable[Field],
    defaults: Mapping[str, Any],
) -> None:
    """An option for each of the fields of a dataclass."""
    for field in described:
        default = defaults[field.name]
        note = "" if default is None else f"(default {default})"
        if default is MISSING:
            note = "(no default)" if field.required else ""
        text = f"{field.help} {note}".strip()
        options: dict[str, Any] = {"help": text.replace("%", "%%")}
        if field.types == (bool,):
            options["action"] = argparse.BooleanOptionalAction
        elif field.types:
            values = [kind.__name__.upper() for kind in field.types] + [*map(str, field.words)]
            options |= {"type": value_by(field.parse), "metavar": "|".join(values)}
        else:
            options |= {"type": value_by(field.parse), "choices": field.words}
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)


def value_by(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """The ``type`` of an option whose value ``parse`` reads; its ValueError is said by argparse."""

    def value(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return value


def folder(text: str) -> Path:
    """The ``type`` of an option that names a folder."""
    if not text:
        raise argparse.ArgumentTypeError("must name a folder, got ''")
    return Path(text)
