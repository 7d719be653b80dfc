"""The command line: ``python -m ntm_kernels info | train TASK | eval RUN``."""

from __future__ import annotations

import argparse
import io
import json
import platform
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, get_args, get_type_hints

import torch

import ntm_kernels
from ntm_kernels import tasks
from ntm_kernels.training.checkpoint import CheckpointError
from ntm_kernels.training.config import PRESETS, RESUMABLE, InitialValue, TrainConfig, preset
from ntm_kernels.training.models import build_model, check_device
from ntm_kernels.training.runs import finish_run, missing_extras
from ntm_kernels.training.trainer import Trainer, TrainingError, load_run

__all__ = ["main"]

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the words after the program's name; ``sys.argv[1:]`` if None.

    Returns:
        The exit code: 0, 1 after an error, 130 after an interruption.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A run that writes to a file or a pipe is to be followed as it goes.
        sys.stdout.reconfigure(line_buffering=True)
    options = vars(_parser().parse_args(arguments))
    command: Callable[[dict[str, Any]], int] = options.pop("command")
    try:
        return command(options)
    except (
        ntm_kernels.BackendError,
        CheckpointError,
        OSError,
        TrainingError,
        ValueError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


class StopSignals:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop, and leaves a second one as it was."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for which in (signal.SIGINT, signal.SIGTERM):
            self._previous[which] = signal.signal(which, self._stop)
        return self

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        print("stopping after this update ...", file=sys.stderr)

    def _restore(self) -> None:
        for which, handler in self._previous.items():
            signal.signal(which, handler)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()


def _info(options: dict[str, Any]) -> int:
    print(f"ntm_kernels {ntm_kernels.__version__}")
    print(f"python {platform.python_version()}")
    print(f"torch {torch.__version__}")
    for package in ("numpy", "matplotlib", "tensorboard", "tqdm", "triton"):
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package} not installed")
    for status in ntm_kernels.available_backends():
        there = "available" if status.available else "not available"
        print(f"backend {status.name}: {there}: {status.reason}")
    return 0


def _train(options: dict[str, Any]) -> int:
    task, resume = options.pop("task"), options.pop("resume")
    run_dir, checkpoint = options.pop("run_dir", None), options.pop("checkpoint", None)
    name = options.pop("preset", None)
    if checkpoint is not None and not resume:
        raise ValueError("--checkpoint says where to resume from: give --resume with it")
    if run_dir is None:
        if resume:
            raise ValueError("--resume needs the --run-dir that is to go on")
        config = preset(task, name or "default", **options)
        run_dir = Path("runs") / f"{task}-{config.model}-seed{config.seed}"
    elif resume and name is None and (run_dir / "config.json").exists():
        config = _changed(_read_config(run_dir), task, options)
    else:
        config = preset(task, name or "default", **options)

    for line in missing_extras():
        print(f"note: {line}", file=sys.stderr)
    trainer = Trainer(config, run_dir, resume=resume, checkpoint=checkpoint)
    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(f"training {task} in {run_dir}: {weights:,} weights, seed {config.seed}")
    with StopSignals() as signals:
        finished = trainer.run(lambda: signals.requested)
    counters = trainer.counters
    if not finished:
        again = ["python", "-m", "ntm_kernels", "train", task, "--run-dir", str(run_dir)]
        print(
            f"stopped at {counters.sequences:,} sequences, nothing is lost; go on with\n"
            f"  {shlex.join([*again, '--resume'])}"
        )
        return INTERRUPTED
    learnt = (
        f"below {config.learnt_bits} bits after {counters.learnt_at:,}"
        if counters.learnt_at is not None
        else f"never below {config.learnt_bits} bits"
    )
    print(f"{counters.sequences:,} sequences in {counters.seconds:.0f} s, {learnt}")
    saved, _ = load_run(run_dir)
    finish_run(trainer.model, config, run_dir, saved, asdict(counters))
    return 0


def _eval(options: dict[str, Any]) -> int:
    run_dir = options.pop("run")
    path, contents = load_run(run_dir, options.pop("checkpoint", None))
    config = replace(TrainConfig.from_dict(contents["config"]), **options)
    check_device(config.device)
    torch.set_num_threads(config.threads)
    model = build_model(config)
    model.load_state_dict(contents["model"])
    print(f"{config.task.name} after {contents['counters']['sequences']:,} sequences, {path}")
    finish_run(model, config, run_dir, path, contents["counters"])
    return 0


def _read_config(run_dir: Path) -> TrainConfig:
    path = run_dir / "config.json"
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    try:
        return TrainConfig.from_dict(values)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} has a value of the wrong type: {error}") from error


def _changed(config: TrainConfig, task: str, options: dict[str, Any]) -> TrainConfig:
    """A saved configuration with the options given again; the trainer refuses real changes."""
    if config.task.name != task:
        raise ValueError(f"this run trains {config.task.name}, not {task}")
    parameters = {f.name for f in fields(config.task)}
    changed = replace(config.task, **{k: v for k, v in options.items() if k in parameters})
    return replace(
        config, task=changed, **{k: v for k, v in options.items() if k not in parameters}
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ntm_kernels", description=ntm_kernels.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="versions, and which backends are there")
    info.set_defaults(command=_info)

    train = commands.add_parser("train", help="train a task of the paper")
    by_task = train.add_subparsers(required=True, metavar="TASK", dest="task")
    for name, task in tasks.TASKS.items():
        one = by_task.add_parser(
            name,
            help=(task.__doc__ or "").splitlines()[0],
            argument_default=argparse.SUPPRESS,
        )
        run = one.add_argument_group("run")
        run.add_argument(
            "--run-dir",
            type=_folder,
            metavar="FOLDER",
            help="folder of the run (default runs/TASK-MODEL-seedSEED)",
        )
        run.add_argument(
            "--resume", action="store_true", default=False, help="go on with the run in --run-dir"
        )
        run.add_argument(
            "--checkpoint", type=Path, help="with --resume: from this one, not the newest"
        )
        run.add_argument("--preset", choices=PRESETS, help="settings to start from")
        _add_options(one.add_argument_group("task"), preset(name).task)
        _add_options(one.add_argument_group("model and training"), preset(name))
        one.set_defaults(command=_train)

    evaluate = commands.add_parser(
        "eval",
        help="repeat the tests and pictures of a run",
        argument_default=argparse.SUPPRESS,
    )
    evaluate.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    evaluate.add_argument("--checkpoint", type=Path, help="instead of the newest one")
    wanted = set(RESUMABLE) - {"stop_below"}
    _add_options(evaluate, preset("copy"), wanted)
    evaluate.set_defaults(command=_eval)
    return parser


def _add_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    defaults: Any,
    wanted: set[str] | None = None,
) -> None:
    """An option for each annotated field of a dataclass, or for those wanted."""
    hints = get_type_hints(type(defaults), include_extras=True)
    for field in fields(defaults):
        hint = hints[field.name]
        if not hasattr(hint, "__metadata__") or (wanted and field.name not in wanted):
            continue
        default = getattr(defaults, field.name)
        text = hint.__metadata__[0] + ("" if default is None else f" (default {default})")
        kind = hint.__origin__
        options: dict[str, Any] = {"help": text}
        members = [member for member in get_args(kind) if member is not type(None)]
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif kind == InitialValue:
            options |= {"type": _initial_value, "metavar": "VALUE|learned"}
        elif members and all(isinstance(member, str) for member in members):
            options["choices"] = members
        else:
            options["type"] = members[0] if members else kind
            options["metavar"] = options["type"].__name__.upper()
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("must name a folder, got ''")
    return Path(text)


def _initial_value(text: str) -> float | str:
    return text if text == "learned" else float(text)
