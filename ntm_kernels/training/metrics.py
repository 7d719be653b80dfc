"""The numbers of a run as it goes: metrics.csv and TensorBoard events."""

from __future__ import annotations

import csv
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ntm_kernels.training.files import write_text, writing

__all__ = ["COLUMNS", "MetricsLog", "read_metrics"]

#: Columns of metrics.csv; bits are per sequence, empty cells were not measured in that row.
COLUMNS = (
    "sequences",
    "updates",
    "train_bits",
    "validation_bits",
    "validation_wrong",
    "lr",
    "seconds",
    "stage",
    "memory_size",
)
# The columns of runs made before there were stages: the first of the present ones.
_OLDER = COLUMNS[:-2]
_SCALARS = {
    "train_bits": "bits/train",
    "validation_bits": "bits/validation",
    "validation_wrong": "wrong/validation",
    "lr": "lr",
}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv, without the empty cells.

    A last line that was cut off while it was written is left out.

    Raises:
        ValueError: the file has other columns, or a row that is none.
    """
    with open(path, newline="", errors="replace") as file:
        rows = list(csv.reader(line for line in file if line.endswith("\n")))
    columns = tuple(rows[0]) if rows else ()
    if columns not in (COLUMNS, _OLDER):
        raise ValueError(f"{path} is not a metrics.csv: its columns must be {', '.join(COLUMNS)}")
    numbers = []
    for line, row in enumerate(rows[1:], start=2):
        try:
            cells = zip(columns, row, strict=True)
            numbers.append({name: float(cell) for name, cell in cells if cell})
        except ValueError as error:
            raise ValueError(f"{path} is damaged in line {line}: {error}") from error
    return numbers


class MetricsLog:
    """Writes both logs, going on after ``sequences``: what was written beyond is dropped.

    Args:
        run_dir: folder of the run.
        sequences: where the run goes on; 0 starts new files.
        tensorboard: whether events are written too; needs the package of that name.

    Raises:
        WriteError: by every method, where a file cannot be written.
    """

    def __init__(self, run_dir: Path, sequences: int, tensorboard: bool) -> None:
        self._path = run_dir / "metrics.csv"
        self._folder = run_dir / "tensorboard"
        kept = [",".join(COLUMNS)]
        if sequences and self._path.exists():
            before = [row["sequences"] <= sequences for row in read_metrics(self._path)]
            header, *lines = self._path.read_text(errors="replace").splitlines()
            missing = "," * (len(COLUMNS) - len(header.split(",")))
            kept += [line + missing for line in lines[: sum(before)]]
        write_text(self._path, "".join(f"{line}\n" for line in kept))
        with writing(self._path):
            self._file = open(self._path, "a", newline="")  # noqa: SIM115 (closed by close)
        self._events: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            with writing(self._folder):
                self._events = SummaryWriter(str(self._folder), purge_step=sequences + 1)
            _WRITERS.add()

    def write(self, row: Mapping[str, float | int | None]) -> None:
        """Adds a row: a value, or None, for each of :data:`COLUMNS`."""
        cells = ("" if row[name] is None else repr(row[name]) for name in COLUMNS)
        with writing(self._path):
            self._file.write(",".join(cells) + "\n")
            self._file.flush()
        if self._events is not None:
            with writing(self._folder):
                for name, title in _SCALARS.items():
                    if row[name] is not None:
                        self._events.add_scalar(title, row[name], row["sequences"])

    def sync(self) -> None:
        """Puts everything written so far on the disk."""
        with writing(self._path):
            os.fsync(self._file.fileno())
        if self._events is not None:
            with writing(self._folder):
                self._events.flush()

    def close(self) -> None:
        """Finishes both files."""
        try:
            with writing(self._path):
                self._file.close()
        finally:
            if self._events is not None:
                events, self._events = self._events, None
                _WRITERS.remove()
                with writing(self._folder):
                    events.close()


class _Writers:
    """The open writers of events. While there is one, ``threading.excepthook`` prints no OSError of
    their threads: a writer raises it again where it is called.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0

    def add(self) -> None:
        with self._lock:
            if self._open == 0:
                self._excepthook = threading.excepthook
                threading.excepthook = self._in_thread
            self._open += 1

    def remove(self) -> None:
        with self._lock:
            self._open -= 1
            if self._open == 0:
                threading.excepthook = self._excepthook

    def _in_thread(self, failed: threading.ExceptHookArgs) -> None:
        ours = type(failed.thread).__module__.startswith("tensorboard.")
        if not (ours and isinstance(failed.exc_value, OSError)):
            self._excepthook(failed)


_WRITERS = _Writers()
