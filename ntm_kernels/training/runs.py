"""What happens around the training loop: tests and pictures of a run's checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

import ntm_kernels
from ntm_kernels.tasks import Trial
from ntm_kernels.training.config import TESTED, TrainConfig
from ntm_kernels.training.evaluation import evaluate, test_sets
from ntm_kernels.training.files import check_folder, make_folder, write_text
from ntm_kernels.training.models import memory_size_of
from ntm_kernels.training.retest import Retest
from ntm_kernels.training.sizes import naming_sizes

__all__ = ["INSTALL", "draw_pictures", "finish_run", "is_tested", "missing_extras"]

#: How to get what a run can do without.
INSTALL = 'pip install "ntm_kernels[train]"'

_EXTRAS = {
    "tqdm": "no progress bar is shown",
    "tensorboard": "no TensorBoard events are written",
    "matplotlib": "no pictures are drawn",
}


def missing_extras() -> list[str]:
    """A line for each optional package that is not installed, with what is left out for it."""
    return [
        f"{package} is not installed: {effect} ({INSTALL})"
        for package, effect in _EXTRAS.items()
        if find_spec(package) is None
    ]


def finish_run(
    model: nn.Module,
    config: TrainConfig,
    run_dir: Path,
    checkpoint: Path,
    counters: dict[str, Any],
    report: Callable[[str], None] = print,
    out: Path | None = None,
    retest: Retest | None = None,
) -> None:
    """Tests a model, writes ``evaluation.json`` and draws ``pictures/``.

    Nothing is written before all tests are done.

    Args:
        model: the trained model.
        config: its configuration.
        run_dir: folder of the run.
        checkpoint: where the model's weights are, for the record.
        counters: the trainer's counters at that checkpoint.
        report: takes the lines that tell a person what comes out.
        out: folder for what is written, instead of the run's.
        retest: the tests to make, instead of those at the end of a training. The pictures are then
            of these tests alone, without the training.

    Raises:
        TrainingError: there is not enough memory for the tests.
        WriteError: a file cannot be written.
    """
    out = run_dir if out is None else out
    check_folder(out)
    tests = None if retest is None else retest.tests
    with naming_sizes(config):
        scores = evaluate(model, config, tests, _nobody if retest is None else report)
    width = max(map(len, scores))
    for title, result in scores.items():
        report(f"{title:>{width}}: {result}")
    contents = {
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": _digest(checkpoint),
        "task": config.task.to_dict(),
        "memory_size": memory_size_of(model),
        "sequences": counters["sequences"],
        "seconds": counters["seconds"],
        # Older checkpoints lack it.
        "processor_seconds": counters.get("processor_seconds"),
        "learnt_bits": config.learnt_bits,
        "learnt_at": counters["learnt_at"],
        "tested_with": _tested_with(config, test_sets(config) if tests is None else tests),
        "scores": {title: result.to_dict() for title, result in scores.items()},
    }
    text = json.dumps(contents, indent=2) + "\n"
    make_folder(out)
    write_text(out / "evaluation.json", text)
    report(f"wrote {out / 'evaluation.json'}")
    draw_pictures(model, config, run_dir, report, out, tests)


def draw_pictures(
    model: nn.Module,
    config: TrainConfig,
    run_dir: Path,
    report: Callable[[str], None] = print,
    out: Path | None = None,
    tests: Mapping[str, Trial] | None = None,
) -> None:
    """Draws ``pictures/``, if matplotlib is installed.

    Args:
        model: the trained model.
        config: its configuration.
        run_dir: folder of the run.
        report: takes a line for each picture.
        out: folder for the pictures' folder, instead of the run's.
        tests: what the pictures are of, instead of the training and the tests at its end.

    Raises:
        WriteError: a file cannot be written.
    """
    if find_spec("matplotlib") is None:
        report(f"no pictures: matplotlib is not installed ({INSTALL}, then eval {run_dir})")
        return
    from ntm_kernels.training.plots import draw_run

    folder = (run_dir if out is None else out) / "pictures"
    draw = partial(draw_run, model, config, folder=folder)
    for picture in draw(run_dir) if tests is None else draw(None, tests=tests):
        report(f"drew {picture}")


def is_tested(config: TrainConfig, run_dir: Path, checkpoint: Path) -> bool:
    """Whether the folder of a run has the results of its own tests of this checkpoint."""
    try:
        written = json.loads((run_dir / "evaluation.json").read_text())
    except (FileNotFoundError, ValueError):
        return False
    if not isinstance(written, dict):
        return False
    found = [written.get(name) for name in ("checkpoint_sha256", "tested_with")]
    return found == [_digest(checkpoint), _tested_with(config, test_sets(config))]


def _digest(checkpoint: Path) -> str:
    """Another one for other weights: two runs may end after as many sequences."""
    return hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def _tested_with(config: TrainConfig, tests: Mapping[str, Trial]) -> dict[str, Any]:
    """What decides the results of tests besides the weights, as JSON values."""
    options = {name: getattr(config, name) for name in TESTED}
    sizes = {title: trial.memory_size for title, trial in tests.items()}
    return {"version": ntm_kernels.__version__, **options, "memory_sizes": sizes}


def _nobody(line: str) -> None:
    """Takes lines that nobody needs."""
