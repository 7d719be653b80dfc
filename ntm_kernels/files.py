"""Files that are whole or not there, and files to lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["lock", "write_atomically"]


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file so that, whenever the machine stops, the old one or the new one is there.

    Args:
        path: the file; its folder must exist.
        write: called with an open binary file of the same folder, which then takes the name.

    Raises:
        OSError: the disk is full, for example; the old file is there and no part of a new one.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The rename is on the disk only once the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def lock(file: int, *, wait: bool) -> str | None:
    """Locks an open file; returns the reason if locks are not to be had here.

    The system unlocks the file when it is closed, and when the process dies.

    Args:
        file: its descriptor.
        wait: waits until nobody else holds the lock.

    Raises:
        BlockingIOError: somebody else holds it, and ``wait`` is not set.
    """
    try:
        import fcntl
    except ImportError:
        return "this platform has no fcntl.flock"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        return f"{error.strerror}"
    return None
