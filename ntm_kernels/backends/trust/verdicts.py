"""Verdicts on disk: a file for each thing that was checked, and a lock beside it.

The name of a file is a digest of all that the verdict depends on, such as the driver. With another
driver the verdict is not found, and a new check is made.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ntm_kernels.files import lock, write_atomically

CACHE = "NTM_KERNELS_CACHE"


class Verdict(NamedTuple):
    """What a self-check found: ``why_not`` says what is wrong, or is empty; ``date`` is its day."""

    why_not: str
    date: str


def folder() -> Path:
    """Where verdicts are: the environment variable ``NTM_KERNELS_CACHE``, else ``ntm_kernels`` in
    the user's cache folder."""
    if named := os.environ.get(CACHE):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ntm_kernels"


def read(identity: Mapping[str, str]) -> Verdict | None:
    """The verdict on that; ``None`` if there is none that can be read."""
    try:
        found = json.loads(_path(identity).read_text())
        if found["identity"] == dict(identity):
            return Verdict(str(found["why_not"]), str(found["date"]))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        pass  # no file, no home, or not a file of ours: a new check writes it again
    return None


def write(identity: Mapping[str, str], verdict: Verdict) -> None:
    """Keep a verdict. Where the folder cannot be written, this process alone knows it."""
    text = json.dumps({"identity": dict(identity), **verdict._asdict()}, indent=1)
    with suppress(OSError, RuntimeError):
        path = _path(identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(text.encode()))


@contextmanager
def locked(identity: Mapping[str, str]) -> Iterator[None]:
    """Of several processes one at a time: the others wait here. Without a folder that can be
    written each goes on alone. The system unlocks the file when the process dies."""
    with ExitStack() as held:
        with suppress(OSError, RuntimeError):
            path = _path(identity).with_suffix(".lock")
            path.parent.mkdir(parents=True, exist_ok=True)
            lock(held.enter_context(open(path, "a")).fileno(), wait=True)
        yield


def _path(identity: Mapping[str, str]) -> Path:
    text = json.dumps(dict(identity), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    return folder() / f"selfcheck-{digest}.json"
