"""The commands that show what a trained model does with one sequence: ``animate`` and ``play``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from ntm_kernels.tasks import Trial
from ntm_kernels.training.config import TrainConfig, saved_config
from ntm_kernels.training.errors import TrainingError
from ntm_kernels.training.evaluation import test_sets
from ntm_kernels.training.files import check_folder, file_name
from ntm_kernels.training.locking import RunLock, folder_to_lock
from ntm_kernels.training.models import trained_model
from ntm_kernels.training.playing import play
from ntm_kernels.training.retest import Retest, retest
from ntm_kernels.training.runs import INSTALL
from ntm_kernels.training.sources import is_shipped, load_source

__all__ = ["show_animation", "show_answer"]


@dataclass(frozen=True)
class _Shown:
    """A trained model with the sequences that the options ask for.

    Attributes:
        model: the model, with the memory size asked for.
        config: its configuration, with the task asked for.
        changed: what is different from the training; None if nothing is.
    """

    model: nn.Module
    config: TrainConfig
    changed: Retest | None


def _load(source: Path, options: dict[str, Any]) -> _Shown:
    """Loads a run or a model of this package, to be run on the CPU.

    Args:
        source: its folder or name.
        options: ``checkpoint`` and ``task``, and those that :func:`retest` takes.
    """
    path, contents = load_source(source, options.pop("checkpoint", None))
    saved = saved_config(path, contents["config"], options.pop("task"))
    config = replace(saved, device="cpu", backend=None)
    changed = retest(config, options)
    model = trained_model(config, contents)
    if changed is None:
        return _Shown(model, config, None)
    changed.fit(model)
    return _Shown(model, changed.config, changed)


def show_animation(options: dict[str, Any], warn: Callable[[str], None]) -> list[Path]:
    """Writes the animation that the options of ``animate`` ask for, and returns its files.

    Raises:
        TrainingError: matplotlib is not installed.
        ValueError: there is no such test, or it cannot be animated.
        CheckpointError, OSError, RunInUseError: a file cannot be read or written.
    """
    if find_spec("matplotlib") is None:
        raise TrainingError(f"animate needs matplotlib, which is not installed: {INSTALL}")
    from ntm_kernels.training.animating import animate

    source, test, out = options.pop("run"), options.pop("test", None), options.pop("out", None)
    shown = _load(source, options)
    changed = shown.changed
    tests = test_sets(shown.config) if changed is None else changed.tests
    title, trial = _choose(tests, test)
    if out is None:
        base = Path("animations", source) if is_shipped(source) else source / "animations"
        what = title if changed is None or test is None else f"{title}, {changed.title}"
        out = base / file_name(what)
    check_folder(out)
    with RunLock(folder_to_lock(source, out), warn):
        return animate(shown.model, shown.config, title, trial, out)


def _choose(tests: Mapping[str, Trial], title: str | None) -> tuple[str, Trial]:
    """The test of a title, or the first one if no title is given.

    Raises:
        ValueError: there is no test of that title.
    """
    if title is None:
        title = next(iter(tests))
    if title not in tests:
        raise ValueError(
            f"--test must be the title of a test, one of {', '.join(map(repr, tests))}, got "
            f"{title!r}"
        )
    return title, tests[title]


def show_answer(options: dict[str, Any]) -> str:
    """The text that the options of ``play`` ask for.

    Raises:
        ValueError: the model cannot take such sequences.
        CheckpointError: there is no such run or model.
        TrainingError: there is not enough memory for the sequence.
    """
    source, seed = options.pop("run"), options.pop("seed", 0)
    shown = _load(source, options)
    return play(shown.model, shown.config, seed)
