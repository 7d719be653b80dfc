"""One process at a time writes in the folder of a run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ntm_kernels.files import lock
from ntm_kernels.training.files import make_folder, writing

__all__ = ["RunInUseError", "RunLock", "folder_to_lock"]

_NAME = ".lock"


class RunInUseError(RuntimeError):
    """Another process writes in the folder of a run."""


def folder_to_lock(run_dir: Path, out: Path | None) -> Path:
    """The folder to lock for what writes to ``out``: the run's if that is anywhere in it."""
    if out is None or out.resolve().is_relative_to(run_dir.resolve()):
        return run_dir
    return out


class RunLock:
    """The right to write in a run's folder, for as long as it is entered.

    The lock is advisory (``flock``) and on the file ``.lock`` of the folder, which says who holds
    it. It is removed at the end, and so is the folder if it was made for the lock and is empty. The
    kernel releases the lock when the process dies. It can be entered again by whoever holds this
    object.

    Args:
        folder: the folder; made if needed.
        report: takes the warning, given once, that the file system has no locks. The folder is
            then used without one.

    Raises:
        RunInUseError: another process, or another lock of this one, holds it.
        NotADirectoryError: the folder, or one that it should be in, is a file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     with RunLock(Path(name)):
    ...         held = os.listdir(name)
    ...     held, os.listdir(name)
    (['.lock'], [])
    """

    def __init__(self, folder: Path, report: Callable[[str], None] = print) -> None:
        self.folder = folder
        self._path = folder / _NAME
        self._report = report
        self._warned = False
        self._depth = 0
        self._made = False
        self._file: int | None = None

    def __enter__(self) -> RunLock:
        if self._depth == 0:
            self._acquire()
        self._depth += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth == 0 and self._file is not None:
            # Removed while the lock is held: after that, the file may be another process's.
            self._path.unlink(missing_ok=True)
            if self._made:
                with suppress(OSError):  # something was written in it
                    self.folder.rmdir()
            os.close(self._file)
            self._file = None

    def _acquire(self) -> None:
        self._made = not self.folder.exists()
        while self._file is None:
            make_folder(self.folder)
            with writing(self._path):
                try:
                    file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                except FileNotFoundError:
                    continue  # whoever made the folder has just removed it
            try:
                self._file = file if self._take(file) else None
            finally:
                if self._file is None:
                    os.close(file)

    def _take(self, file: int) -> bool:
        """Locks the open file and writes who has it; False where the file is no longer the one."""
        try:
            reason = lock(file, wait=False)
        except BlockingIOError as error:
            raise RunInUseError(
                f"{self.folder} is in use by {self._holder()}; wait until it ends, stop it, or "
                "use another folder"
            ) from error
        if reason is None:
            # Whoever held it may have removed the file after it was opened here.
            if not self._is_current(file):
                return False
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            holder = f"process {os.getpid()} on {platform.node()}, since {since}"
            with writing(self._path):
                os.truncate(file, 0)
                os.write(file, holder.encode())
        elif not self._warned:
            self._warned = True
            self._report(
                f"warning: {self.folder} cannot be locked ({reason}): see to it that no other "
                "process writes in it"
            )
        return True

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _holder(self) -> str:
        # Whoever has just got the lock may not have written its name yet.
        time.sleep(0.05)
        try:
            return self._path.read_text(errors="replace") or "another process"
        except FileNotFoundError:
            return "another process, which has just ended"
