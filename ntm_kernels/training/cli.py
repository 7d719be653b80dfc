"""The command line: ``python -m ntm_kernels info | train | eval | play | …``."""

from __future__ import annotations

import io
import json
import platform
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

import ntm_kernels
from ntm_kernels.backends.trust.report import selfcheck
from ntm_kernels.tasks import Task
from ntm_kernels.training.arguments import parse
from ntm_kernels.training.checkpoint import CheckpointError, CheckpointStore, load_run
from ntm_kernels.training.config import TrainConfig, saved_config
from ntm_kernels.training.distributed import joined, require_alone
from ntm_kernels.training.errors import TrainingError
from ntm_kernels.training.exporting import export_model
from ntm_kernels.training.locking import RunInUseError, RunLock, folder_to_lock
from ntm_kernels.training.models import trained_model
from ntm_kernels.training.options import words_for, words_of, words_to_name
from ntm_kernels.training.presets import preset
from ntm_kernels.training.records import already_a_run
from ntm_kernels.training.retest import Retest, retest
from ntm_kernels.training.runs import (
    draw_pictures,
    finish_run,
    is_tested,
    missing_extras,
)
from ntm_kernels.training.seeds import SeedRuns, table, write_summary
from ntm_kernels.training.showing import show_animation, show_answer
from ntm_kernels.training.sizes import naming_sizes
from ntm_kernels.training.streams import outlasting_readers
from ntm_kernels.training.trained_arguments import refuse_other_task
from ntm_kernels.training.trainer import Trainer, explain_giving_up

__all__ = ["main"]

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the words after the program's name; ``sys.argv[1:]`` if None.

    Returns:
        The exit code: 0, 1 after an error, 130 after an interruption.

    Raises:
        SystemExit: the words are wrong (code 2), or ask for help.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A run that writes to a file or a pipe is to be followed as it goes.
        sys.stdout.reconfigure(line_buffering=True)
    with outlasting_readers():
        try:
            options = parse(arguments)
            return _COMMANDS[options.pop("command")](options)
        except (
            ntm_kernels.BackendError,
            CheckpointError,
            OSError,
            RunInUseError,
            TrainingError,
            ValueError,
        ) as error:
            print(f"error: {_in_words(error)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED


def _in_words(error: Exception) -> str:
    """An error's message, without the number that comes first in the system's own."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return str(error)


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


def _selfcheck(options: dict[str, Any]) -> int:
    return 0 if selfcheck(options["backend"], options["dtype"]) else 1


def _train(options: dict[str, Any]) -> int:
    if "seeds" in options:
        return _train_seeds(options)
    if "jobs" in options:
        raise ValueError("--jobs says how many seeds are trained at once: give --seeds with it")
    resume, checkpoint = options.pop("resume"), options.pop("checkpoint", None)
    if checkpoint is not None and not resume:
        raise ValueError("--checkpoint says where to resume from: give --resume with it")
    with joined() as processes:
        run_dir, config = processes.from_first(lambda: _asked_for(options, resume))
        if not processes.first:
            trainer = Trainer(config, run_dir, resume=resume)
            with StopSignals() as signals:
                trainer.run(lambda: signals.requested)
            return 0  # the first process says whether the run was stopped
        for line in missing_extras():
            _warn(f"note: {line}")
        with RunLock(run_dir, _warn) as lock:
            return _train_and_test(
                Trainer(config, run_dir, resume=resume, checkpoint=checkpoint, lock=lock)
            )


def _asked_for(options: dict[str, Any], resume: bool) -> tuple[Path, TrainConfig]:
    """The folder and the configuration of the run that the options of ``train`` ask for."""
    task, run_dir = options.pop("task"), options.pop("run_dir", None)
    name = options.pop("preset", None)
    if run_dir is None:
        if resume:
            raise ValueError("--resume needs the --run-dir that is to go on")
        config = preset(task, name or "default", **options)
        title = task.name.replace(":", ".")
        return Path("runs") / f"{title}-{config.model}-seed{config.seed}", config
    if resume and name is None and (run_dir / "config.json").exists():
        return run_dir, _changed(_read_config(run_dir, task), task, options)
    return run_dir, preset(task, name or "default", **options)


def _train_and_test(trainer: Trainer) -> int:
    config, run_dir = trainer.config, trainer.run_dir
    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(f"training {config.task.name} in {run_dir}: {weights:,} weights, seed {config.seed}")
    with StopSignals() as signals:
        finished = trainer.run(lambda: signals.requested)
    counters = trainer.counters
    if not finished:
        words = ["python", "-m", "ntm_kernels", "train", *words_for(type(config.task))]
        print(
            f"stopped at {counters.sequences:,} sequences, nothing is lost; go on with\n"
            f"  {shlex.join([*words, '--run-dir', str(run_dir), '--resume'])}"
        )
        return INTERRUPTED
    learnt = (
        f"below {config.learnt_bits} bits after {counters.learnt_at:,}"
        if counters.learnt_at is not None
        else f"never below {config.learnt_bits} bits"
    )
    print(f"{counters.sequences:,} sequences in {counters.seconds:.0f} s, {learnt}")
    if trainer.end == "given up":
        print(explain_giving_up(config))
    saved, _ = load_run(run_dir)
    if is_tested(config, run_dir, saved):
        run = words_to_name(run_dir, type(config.task))
        again = ["python", "-m", "ntm_kernels", "eval", *run]
        print(
            f"{run_dir / 'evaluation.json'} has the results already; make the tests again with\n"
            f"  {shlex.join(again)}"
        )
        draw_pictures(trainer.model, config, run_dir)
        return 0
    finish_run(trainer.model, config, run_dir, saved, asdict(counters))
    return 0


def _train_seeds(options: dict[str, Any]) -> int:
    require_alone("train --seeds")
    task, resume = options.pop("task"), options.pop("resume")
    seeds, jobs = options.pop("seeds"), options.pop("jobs", 1)
    folder = options.pop("run_dir", None)
    for name in ("seed", "checkpoint"):
        if name in options:
            raise ValueError(f"--{name} is for one run: leave it out where --seeds is given")
    # Wrong settings are said once and at once, not by every run.
    settings = {name: value for name, value in options.items() if name != "preset"}
    config = preset(task, options.get("preset", "default"), **settings)
    if folder is None:
        folder = Path("runs") / f"{task.name.replace(':', '.')}-{config.model}-seeds"
    words = [*words_for(task), *words_of(options)]
    runs = SeedRuns(folder, [*words, *["--resume"] * resume], seeds, jobs)
    for run_dir in map(runs.run_folder, seeds):
        if not resume and CheckpointStore(run_dir / "checkpoints").latest() is not None:
            raise already_a_run(run_dir)
    with RunLock(folder, _warn), StopSignals() as signals:
        outcomes = runs.run(lambda: signals.requested)
        if signals.requested:
            own = {"seeds": ",".join(map(str, seeds)), "jobs": jobs, "run_dir": folder}
            again = ["python", "-m", "ntm_kernels", "train", *words, *words_of(own), "--resume"]
            print(f"stopped, nothing is lost; go on with\n  {shlex.join(again)}")
            return INTERRUPTED
        write_summary(folder, words, outcomes)
        print(table(outcomes))
        print(f"wrote {folder / 'summary.json'} and {folder / 'table.md'}")
        if find_spec("matplotlib") is not None:
            from ntm_kernels.training.seed_plots import draw_seeds

            print(f"drew {draw_seeds(outcomes, folder, config)}")
    return 1 if any(outcome.evaluation is None for outcome in outcomes) else 0


def _eval(options: dict[str, Any]) -> int:
    require_alone("eval")
    run_dir, task, out = options.pop("run"), options.pop("task"), options.pop("out", None)
    path, contents = load_run(run_dir, options.pop("checkpoint", None))
    saved = saved_config(path, contents["config"], task)
    of_test = {f.name for f in fields(saved.task)} | {"memory_size"}
    others = {name: value for name, value in options.items() if name not in of_test}
    config = replace(saved, **others)
    changed = retest(config, {n: value for n, value in options.items() if n in of_test})
    model = trained_model(config, contents)
    if changed is not None:
        changed.fit(model)
        with naming_sizes(changed.config):
            size_given = "evaluation_size" in others
            config = changed.config if size_given else changed.affordable(model)
        out = run_dir / changed.folder if out is None else out
    try:
        with RunLock(folder_to_lock(run_dir, out), _warn):
            counters = contents["counters"]
            print(f"{config.task.name} after {counters['sequences']:,} sequences, {path}")
            if changed is not None:
                _say_what_is_tested(changed, config)
            finish_run(model, config, run_dir, path, counters, out=out, retest=changed)
    except RunInUseError as error:
        raise RunInUseError(f"{error}: eval writes elsewhere with --out FOLDER") from error
    return 0


def _export(options: dict[str, Any]) -> int:
    require_alone("export")
    run_dir, form = options["run"], options["format"]
    path, contents = load_run(run_dir, options.get("checkpoint"))
    saved = saved_config(path, contents["config"], options["task"])
    refuse_other_task(saved, options["task"])
    if saved.model != "ntm":
        raise ValueError(
            f"{run_dir} trained a plain LSTM (--model lstm); export takes an NTM alone; "
            "torch.export.export takes an nn.LSTM as it is"
        )
    # The program runs elsewhere: it is made on the CPU, and chooses its backend where it runs.
    model = trained_model(replace(saved, device="cpu", backend=None), contents)
    assert isinstance(model, ntm_kernels.NTM)
    if "memory_size" in options:
        model.memory_size = options["memory_size"]
    out = options.get("out", run_dir / "export")
    with RunLock(folder_to_lock(run_dir, out), _warn):
        for file in export_model(model, out, form):
            print(f"wrote {file}")
    return 0


def _animate(options: dict[str, Any]) -> int:
    require_alone("animate")
    for file in show_animation(options, _warn):
        print(f"wrote {file}")
    return 0


def _play(options: dict[str, Any]) -> int:
    require_alone("play")
    print(show_answer(options))
    return 0


def _say_what_is_tested(changed: Retest, config: TrainConfig) -> None:
    print(f"tested with {changed.title}")
    usual = changed.config.evaluation_size
    if config.evaluation_size < usual:
        print(
            f"{config.evaluation_size:,} instead of {usual:,} sequences, to take about a minute; "
            "--evaluation-size takes another number"
        )


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


def _read_config(run_dir: Path, task: type[Task]) -> TrainConfig:
    path = run_dir / "config.json"
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    return saved_config(path, values, task)


def _changed(config: TrainConfig, task: type[Task], options: dict[str, Any]) -> TrainConfig:
    """A saved configuration with the options given again; the trainer refuses real changes."""
    if type(config.task) is not task:
        raise ValueError(f"this run trains {config.task.name}, not {task.name}")
    parameters = {f.name for f in fields(config.task)}
    changed = replace(config.task, **{k: v for k, v in options.items() if k in parameters})
    return replace(
        config, task=changed, **{k: v for k, v in options.items() if k not in parameters}
    )


_COMMANDS: dict[str, Callable[[dict[str, Any]], int]] = {
    "info": _info,
    "selfcheck": _selfcheck,
    "train": _train,
    "eval": _eval,
    "export": _export,
    "animate": _animate,
    "play": _play,
}
