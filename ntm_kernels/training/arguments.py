"""The words of the command line: which there are, and what they mean."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import ntm_kernels
from ntm_kernels import tasks
from ntm_kernels.backends.trust.report import DTYPES
from ntm_kernels.fields import Field, describe
from ntm_kernels.tasks import Task
from ntm_kernels.training.checkpoint import CheckpointError, load_run
from ntm_kernels.training.config import PRESETS, TESTED, TrainConfig, preset_values
from ntm_kernels.training.exporting import FORMATS
from ntm_kernels.training.seeds import parse_seeds
from ntm_kernels.training.trainer import saved_config

__all__ = ["parse", "words_for", "words_of"]

_OWN = "PACKAGE.MODULE:CLASS"
_EVAL = (
    "Repeats the tests and pictures of a run. With a parameter of its task, one test of sequences "
    "so changed is made instead; with --memory-size, the model runs with that number of memory "
    "locations. Results of such a test are written to RUN/tests/TITLE, where TITLE says what was "
    "changed; the run's own evaluation.json stays. Without --evaluation-size, a test with long "
    "sequences or a large memory has fewer of them, as many as take about a minute."
)
_SELFCHECK = (
    "Runs every op of a backend, forward and backward, on each of its code paths, compares the "
    "results with those of PyTorch on the same device, and keeps the verdicts."
)
_EXPORT = (
    "Writes the model of a run, for the CPU, and the state of one sequence before its first step: "
    "model.pt2 and initial_state.pt, or with --format onnx model.onnx and initial_state.npz. "
    "docs/export.md shows how to run them. Without --memory-size, the memory is that of the run."
)


def parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    """The options given, by name.

    ``command`` is ``"info"``, ``"selfcheck"``, ``"train"``, ``"eval"`` or ``"export"``, and
    ``task`` the class of a task, or None where none is named. An option that is not given is left
    out.

    Args:
        arguments: the words after the program's name; ``sys.argv[1:]`` if None.

    Raises:
        SystemExit: the words are wrong, or ask for help.
        ValueError: there is no task of the name given, or it is not the task of the run.
        CheckpointError: the run to evaluate holds no checkpoint that can be read.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    known = dict(tasks.TASKS)
    own = evaluated = None
    if words and words[0] in ("train", "eval", "export"):
        own, rest = _named_task(words[1:])
        if words[0] == "train" and own is None:
            _refuse_class_as_task(rest)
        if own is not None:
            known[own.name] = own
            words = [words[0], *([own.name] if words[0] == "train" else []), *rest]
        if words[0] == "eval":
            evaluated = _evaluated_run(words[1:], own)
    options = vars(_parser(known, evaluated).parse_args(words))
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


def _evaluated_run(words: Sequence[str], own: type[Task] | None) -> tuple[Path, TrainConfig] | None:
    """The folder of the run that ``eval`` is to test, and its configuration.

    It is looked for before the words are parsed, since the parameters of its task are options too.
    None where no run is named, or where help is asked for and there is no such run.
    """
    # No word is an error to this parser: it knows neither --help nor the parameters of the task.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("run", nargs="?", type=Path)
    first.add_argument("--checkpoint", type=Path)
    described = describe(TrainConfig)
    for name in ("out", "task", *TESTED):
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
        path, contents = load_run(run, found.checkpoint)
        return run, saved_config(path, contents["config"], own)
    except (CheckpointError, ValueError):
        if {"-h", "--help"} & set(words):
            return None
        raise


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


def _parser(known: Mapping[str, type[Task]], evaluated: tuple[Path, TrainConfig] | None) -> _Parser:
    parser = _Parser(prog="python -m ntm_kernels", description=_first_line(ntm_kernels))
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    commands.add_parser("info", help="versions, and which backends are there")
    check = commands.add_parser(
        "selfcheck",
        help="compare the kernels for GPUs with PyTorch on every GPU here",
        description=_SELFCHECK,
    )
    _add_selfcheck_options(check)

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
        "eval",
        help="repeat the tests and pictures of a run, or test it on other sequences",
        description=_EVAL,
        argument_default=argparse.SUPPRESS,
    )
    _add_eval_options(evaluate, evaluated)

    export = commands.add_parser(
        "export",
        help="write the model of a run as a program for other processes",
        description=_EXPORT,
        argument_default=argparse.SUPPRESS,
    )
    _add_export_options(export)
    return parser


def _add_selfcheck_options(parser: _Parser) -> None:
    parser.add_argument(
        "--backend", nargs="+", default=[], metavar="NAME", help="cuda, triton; default: all here"
    )
    parser.add_argument(
        "--dtype", nargs="+", default=list(DTYPES), choices=list(DTYPES), help="default: all"
    )


def _add_export_options(parser: _Parser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        required=True,
        help="torch: a program of torch.export; onnx: one step for an ONNX runtime",
    )
    parser.add_argument("--checkpoint", type=Path, help="instead of the newest one")
    parser.add_argument(
        "--out", type=_folder, metavar="FOLDER", help="write here (default RUN/export)"
    )
    parser.add_argument("--task", metavar=_OWN, help="the run's task, if it is one of your own")
    defaults = {"memory_size": None}  # that of the run
    _add_options(parser, [describe(TrainConfig)["memory_size"]], defaults)


def _add_eval_options(parser: _Parser, evaluated: tuple[Path, TrainConfig] | None) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--checkpoint", type=Path, help="instead of the newest one")
    parser.add_argument(
        "--out", type=_folder, metavar="FOLDER", help="write here, not into the run's folder"
    )
    parser.add_argument("--task", metavar=_OWN, help="the run's task, if it is one of your own")
    described = describe(TrainConfig)
    defaults = _defaults(TrainConfig)
    of_run = {}
    if evaluated is not None:
        run, config = evaluated
        defaults |= {name: getattr(config, name) for name in (*TESTED, "memory_size")}
        of_run = {f.name: getattr(config.task, f.name) for f in fields(config.task)}
        if config.model == "lstm":
            defaults["memory_size"] = None
        own = words_for(type(config.task))
        parser.words_for_help = f" {shlex.join([str(run), *(own if len(own) > 1 else [])])}"
    _add_options(parser, [described[name] for name in TESTED], defaults)
    other = parser.add_argument_group(
        "another test",
        "The parameters of the run's task are options too: eval RUN --help lists them."
        if evaluated is None
        else "the task's parameters, and the size of the memory; the defaults are those of the run",
    )
    _add_options(other, [described["memory_size"]], defaults)
    if evaluated is not None:
        _add_options(other, describe(type(config.task)).values(), of_run)


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
    run.add_argument(
        "--seeds",
        type=_value_by(parse_seeds),
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
        note = "" if default is None else f"(default {default})"
        if default is MISSING:
            note = "(no default)" if field.required else ""
        text = f"{field.help} {note}".strip()
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
    return _value_by(field.parse)


def _value_by(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def value(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return value


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("must name a folder, got ''")
    return Path(text)
