"""Where a trained model comes from: the folder of a run, or this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntm_kernels import weights
from ntm_kernels.training.checkpoint import CheckpointError, load, load_run

__all__ = ["is_shipped", "load_source"]


def is_shipped(source: Path) -> bool:
    """Whether the name is that of a model of this package, and not of a run in the folder here."""
    return str(source) in weights.available() and not (source / "checkpoints").is_dir()


def load_source(source: Path, checkpoint: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of a run, or the model of this package that has this name.

    Args:
        source: the folder of the run, or the name of the model.
        checkpoint: of a run, instead of its newest one.

    Returns:
        The file and its contents.

    Raises:
        CheckpointError: there is no such run or model, or it is damaged.
        ValueError: a checkpoint is given for a model of this package.
    """
    if is_shipped(source):
        if checkpoint is not None:
            raise ValueError(
                f"--checkpoint {checkpoint}: {source} comes with the package and has no other "
                "file; leave --checkpoint out, or give the folder of a run"
            )
        path = weights.path_of(str(source))
        return path, load(path)
    if checkpoint is None and not (source / "checkpoints").is_dir():
        raise CheckpointError(
            f"{source} holds no checkpoint: give the folder of a run (--run-dir of train), or the "
            f"name of a model that comes with the package: {', '.join(weights.available())}"
        )
    return load_run(source, checkpoint)
