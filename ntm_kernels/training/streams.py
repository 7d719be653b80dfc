"""Output that nobody reads any more does not stop a training."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

__all__ = ["outlasting_readers"]


class _Outlasting:
    """A stream that goes on to nowhere once its reader is gone.

    The reader is gone where a pipe or connection is closed at its other end (``| head -1``), or
    where a terminal is. Every other error, of a disk that is full for example, stays one.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        gone = isinstance(error, (BrokenPipeError, ConnectionResetError))
        if not gone and not (self._terminal and error.errno == errno.EIO):
            raise OSError(error.errno, error.strerror, self._stream.name) from error
        # What is still buffered, and what the interpreter flushes at its end, goes there too.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def outlasting_readers() -> Iterator[None]:
    """While entered, standard output and error may lose their readers without an exception."""
    out = None if sys.stdout is None else _Outlasting(sys.stdout)
    err = None if sys.stderr is None else _Outlasting(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        yield
