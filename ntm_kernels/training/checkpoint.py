"""Checkpoints that are either whole or absent, and that say so when they are damaged."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from ntm_kernels.training.files import make_folder, write_atomically

__all__ = ["CheckpointError", "CheckpointStore", "load", "load_run"]

#: Increase when the contents of a checkpoint change; one of another version is refused.
VERSION = 1


class CheckpointError(RuntimeError):
    """A checkpoint that is damaged, is none, or belongs to another run."""


#: How torch's refusal names what a checkpoint holds besides tensors, numbers and words.
_FOREIGN = re.compile(r"GLOBAL ([\w.]+)")


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint after checking every byte of it. No code of the file is executed.

    Raises:
        CheckpointError: it is missing, truncated, altered, or not a checkpoint of a training run.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        # torch.load reads storages without comparing their checksums; zipfile compares them.
        with zipfile.ZipFile(path) as archive:
            damaged, names = archive.testzip(), archive.namelist()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum in {damaged}")
        if any(name.endswith("/constants.pkl") for name in names):
            raise zipfile.BadZipFile("it is a program in TorchScript")
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, NotImplementedError,
            zipfile.BadZipFile, pickle.UnpicklingError) as error:  # fmt: skip
        # torch's own message advises to load the file all the same, and so to execute its code.
        if isinstance(error, pickle.UnpicklingError):
            foreign = _FOREIGN.search(str(error))
            named = f" ({foreign[1]})" if foreign else ""
            raise CheckpointError(
                f"{path} is no checkpoint of a training run: it holds objects other than tensors, "
                f"numbers and words{named}. It is not loaded, since that could execute code of "
                "whoever made the file"
            ) from error
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
        named = [path for path in self.folder.glob("*.pt") if path.stem.isdecimal()]
        return sorted(named, key=_sequences)

    def path_of(self, sequences: int) -> Path:
        """The file of the checkpoint after so many sequences."""
        return self.folder / f"{sequences:012d}.pt"

    def latest(self) -> Path | None:
        """The newest checkpoint, damaged or not."""
        return next(reversed(self.all()), None)

    def newest(self) -> tuple[str, int] | None:
        """Name and time of the newest checkpoint, to see later whether another was written."""
        path = self.latest()
        return None if path is None else (path.name, path.stat().st_mtime_ns)

    def before(self, path: Path) -> Path | None:
        """The newest checkpoint older than ``path``, which is one of this run."""
        return next((p for p in reversed(self.all()) if _sequences(p) < _sequences(path)), None)

    def save(self, sequences: int, contents: dict[str, Any]) -> Path:
        """Adds a checkpoint, then removes those no longer kept.

        Raises:
            WriteError: it cannot be written; those that there are remain.
        """
        make_folder(self.folder)
        path = self.path_of(sequences)
        # Where a file cannot be written further, torch.save hides the reason behind an error of
        # its own; memory takes everything.
        whole = io.BytesIO()
        torch.save({"version": VERSION, **contents}, whole)
        write_atomically(path, lambda file: file.write(whole.getbuffer()))
        for old in self.all()[: -self.keep]:
            old.unlink()
        return path

    def forget_after(self, sequences: int) -> None:
        """Removes the checkpoints after more than so many sequences, and unfinished files."""
        for path in self.all():
            if _sequences(path) > sequences:
                path.unlink()
        for unfinished in self.folder.glob(".*.tmp"):
            unfinished.unlink()


def _sequences(path: Path) -> int:
    """After how many sequences a run saved a checkpoint: its file has their number as its name."""
    return int(path.stem)


def load_run(run_dir: Path, checkpoint: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """A run's newest checkpoint, or the one given, with its contents.

    Raises:
        CheckpointError: there is none, or it is damaged; the message names an older one if there
            is one.
    """
    store = CheckpointStore(run_dir / "checkpoints")
    path = checkpoint or store.latest()
    if path is None:
        raise CheckpointError(
            f"{run_dir} holds no checkpoint: give the folder of a run (--run-dir of train)"
        )
    try:
        return path, load(path)
    except CheckpointError as error:
        if checkpoint is None and not path.exists():
            # A run that is going on has just removed it, and has a newer one.
            return load_run(run_dir)
        own = path.stem.isdecimal() and path.parent.resolve() == store.folder.resolve()
        older = store.before(path) if own else None
        hint = f"; use the one before it with --checkpoint {older}" if older else ""
        raise CheckpointError(f"{error}{hint}") from error
