"""Writing the files of a run: whole or not at all, and with errors that name the file."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ntm_kernels import files

__all__ = [
    "WriteError",
    "check_folder",
    "file_name",
    "make_folder",
    "write_atomically",
    "write_text",
    "writing",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WriteError(OSError):
    """A file that could not be written."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into a :class:`WriteError` that says which file and what to do.

    >>> with writing(Path("runs/metrics.csv")):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    ntm_kernels.training.files.WriteError: cannot write runs/metrics.csv: No space left on device;
    make room there. Checkpoints written before are whole: a run goes on from the last with --resume
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        what = "make room there" if error.errno in _FULL else "see that it can be written"
        raise WriteError(
            f"cannot write {path}: {error.strerror or error}; {what}. Checkpoints written before "
            "are whole: a run goes on from the last with --resume"
        ) from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """:func:`ntm_kernels.files.write_atomically` with errors that are :class:`WriteError`."""
    with writing(path):
        files.write_atomically(path, write)


def write_text(path: Path, text: str) -> None:
    """``write_atomically`` of a text, in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def file_name(title: str) -> str:
    """A title as the name of a file: the title of a test of one's own may hold what no name can.

    >>> file_name("length 30/40")
    'length_30_40'
    """
    return re.sub(r"[^\w.-]+", "_", title)


def check_folder(folder: Path) -> None:
    """Raises NotADirectoryError where a folder, or one that it should be in, is a file."""
    for one in (folder, *folder.parents):
        if one.exists():
            if not one.is_dir():
                raise NotADirectoryError(
                    f"{folder} cannot be a folder, since {one} is a file: give another folder"
                )
            break


def make_folder(folder: Path) -> None:
    """Makes a folder with those that it is in.

    Raises:
        NotADirectoryError: it, or one that it should be in, is a file.
        WriteError: it cannot be made.
    """
    check_folder(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
