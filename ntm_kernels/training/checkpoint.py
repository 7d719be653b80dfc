"""Checkpoints that are either whole or absent, and that say so when they are damaged."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

__all__ = ["CheckpointError", "CheckpointStore", "load", "write_atomically"]

#: Raised with the contents of a checkpoint; one of another version is refused.
VERSION = 1


class CheckpointError(RuntimeError):
    """A checkpoint that is damaged, is none, or belongs to another run."""


def write_atomically(path: Path, write: Any) -> None:
    """Writes a file so that, whenever the machine stops, the old one or the new one is there.

    Args:
        path: the file; its folder must exist.
        write: called with an open binary file of the same folder, which then takes the name.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    # The rename is on the disk only once the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint after checking every byte of it.

    Raises:
        CheckpointError: it is missing, truncated, altered, or not a checkpoint of a training run.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        # torch.load reads storages without comparing their checksums; zipfile compares them.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum in {damaged}")
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, NotImplementedError,
            zipfile.BadZipFile, pickle.UnpicklingError) as error:  # fmt: skip
        raise CheckpointError(f"{path} is damaged or is no checkpoint: {error}") from error
    if not isinstance(contents, dict) or "version" not in contents or "config" not in contents:
        raise CheckpointError(
            f"{path} is a file of torch.save, but no checkpoint of a training run"
        )
    if contents["version"] != VERSION:
        raise CheckpointError(
            f"{path} has version {contents['version']} of the format, this package reads {VERSION}"
        )
    return contents


class CheckpointStore:
    """The checkpoints of one run, named by the sequences seen, of which the last ones are kept.

    Args:
        folder: where they are; made when the first one is saved.
        keep: how many are kept.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def all(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        return sorted(self.folder.glob("[0-9]*.pt"))

    def latest(self) -> Path | None:
        """The newest checkpoint, damaged or not."""
        return next(reversed(self.all()), None)

    def before(self, path: Path) -> Path | None:
        """The newest checkpoint older than ``path``."""
        return next((p for p in reversed(self.all()) if p.name < path.name), None)

    def save(self, sequences: int, contents: dict[str, Any]) -> Path:
        """Adds a checkpoint, then removes those no longer kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{sequences:012d}.pt"
        write_atomically(path, lambda file: torch.save({"version": VERSION, **contents}, file))
        for old in self.all()[: -self.keep]:
            old.unlink()
        return path

    def forget_after(self, path: Path) -> None:
        """Removes what a run that goes on from ``path`` will write again, and unfinished files."""
        for other in self.all():
            if other.name > path.name:
                other.unlink()
        for unfinished in self.folder.glob(".*.tmp"):
            unfinished.unlink()
