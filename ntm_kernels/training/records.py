"""What a run writes: the files of its folder, and what a person sees of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ntm_kernels.training.checkpoint import CheckpointStore, load_run
from ntm_kernels.training.errors import TrainingError
from ntm_kernels.training.files import write_text
from ntm_kernels.training.locking import RunLock
from ntm_kernels.training.metrics import MetricsLog
from ntm_kernels.training.progress import Progress

__all__ = ["NoRecords", "Records", "already_a_run"]


def already_a_run(run_dir: Path) -> FileExistsError:
    """The error of a new run in the folder of another one."""
    return FileExistsError(
        f"{run_dir} already holds a run; go on with --resume, or give another --run-dir"
    )


class NoRecords:
    """Of a process that leaves all writing to another one: no method does anything."""

    def locked(self) -> AbstractContextManager[object]:
        """The right to write, while entered."""
        return nullcontext()

    def report(self, line: str) -> None:
        """Tells a person what happens."""

    def begin(self, config: Mapping[str, Any], sequences: int) -> None:
        """Makes the folder's contents those that the run goes on from.

        Args:
            config: of the run.
            sequences: how many the run has seen; later checkpoints are removed.
        """

    def writing(self, sequences: int, total: int) -> AbstractContextManager[object]:
        """Opens the metrics and shows the progress, while entered."""
        return nullcontext()

    def advance(self, sequences: int) -> None:
        """Counts sequences trained on."""

    def write(self, row: Mapping[str, float | int | None]) -> None:
        """Adds a row to the metrics, and shows it."""

    def save(self, sequences: int, contents: Callable[[], dict[str, Any]]) -> None:
        """Adds a checkpoint."""

    def describe_last_good(self) -> str:
        """Where to go on from when the training has failed."""
        return "the process of rank 0 says which checkpoint is the last good one"


class Records(NoRecords):
    """Of the process that writes a run. A run goes on from what :meth:`find` has found.

    Args:
        run_dir: folder of the run.
        report: takes the lines that tell a person what happens.
        lock: a lock of ``run_dir`` to use instead of one of its own.

    Raises:
        WriteError: by the methods that write, where a file cannot be written.
    """

    _metrics: MetricsLog
    _progress: Progress

    def __init__(
        self, run_dir: Path, report: Callable[[str], None], lock: RunLock | None = None
    ) -> None:
        self._run_dir = run_dir
        self._report = report
        self._lock = RunLock(run_dir, report) if lock is None else lock
        self._store = CheckpointStore(run_dir / "checkpoints")
        self._newest: tuple[str, int] | None = None
        #: What :meth:`find` has found, until the run begins.
        self._found: tuple[Path, dict[str, Any]] | None = None

    def find(self, resume: bool, checkpoint: Path | None) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint that the run goes on from, with its contents; None if it is to begin.

        Raises:
            FileExistsError: the folder holds a run and ``resume`` is not set.
            CheckpointError: the checkpoint is damaged.
        """
        self._newest = self._store.newest()
        path = checkpoint or self._store.latest()
        if path is None:
            if resume:
                self.report(
                    f"{self._run_dir} holds no checkpoint to resume from: starting from the "
                    "beginning"
                )
            return None
        if not resume:
            raise already_a_run(self._run_dir)
        self._found = load_run(self._run_dir, path)
        return self._found

    def locked(self) -> AbstractContextManager[object]:
        return self._lock

    def report(self, line: str) -> None:
        self._report(line)

    def begin(self, config: Mapping[str, Any], sequences: int) -> None:
        if self._store.newest() != self._newest:
            raise TrainingError(
                f"{self._run_dir} was changed by another process since this trainer was made: make "
                "a new one with resume"
            )
        self._store.forget_after(sequences)
        if self._found is not None:
            path, contents = self._found
            if path.resolve() != self._store.path_of(sequences).resolve():
                self._store.save(sequences, contents)  # a copy, or a checkpoint of another run
            self._found = None
        self._newest = self._store.newest()
        write_text(self._run_dir / "config.json", json.dumps(config, indent=2) + "\n")

    @contextmanager
    def writing(self, sequences: int, total: int) -> Iterator[None]:
        events = find_spec("tensorboard") is not None
        with (
            closing(MetricsLog(self._run_dir, sequences, tensorboard=events)) as self._metrics,
            closing(Progress(sequences, total, self.report)) as self._progress,
        ):
            yield

    def advance(self, sequences: int) -> None:
        self._progress.advance(sequences)

    def write(self, row: Mapping[str, float | int | None]) -> None:
        self._metrics.write(row)
        self._progress.show(row)

    def save(self, sequences: int, contents: Callable[[], dict[str, Any]]) -> None:
        self._metrics.sync()
        self._store.save(sequences, contents())
        self._newest = self._store.newest()

    def describe_last_good(self) -> str:
        latest = self._store.latest()
        return f"the last good checkpoint is {latest}" if latest else "no checkpoint was made"
