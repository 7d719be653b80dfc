"""When a backend is checked, and what follows from the verdict.

A verdict is about one op of a backend on one kind of device in one dtype, the memory's. It is made
when the automatic choice first comes to the backend for such a call:

- passed: the backend serves from then on;
- failed: a warning, and the next backend serves;
- while ``torch.compile`` or anything else traces, nothing runs. The backend is chosen, and the
  check is made when the op itself first runs;
- while a CUDA graph is captured, nothing can be checked: an error.

A backend that is asked for by name is not checked. It raises where a check has failed.
"""

from __future__ import annotations

import os
import threading
import warnings
from datetime import datetime, timezone
from typing import NamedTuple

import torch

from ntm_kernels import checks
from ntm_kernels.backends.base import Backend, BackendError, Problem
from ntm_kernels.backends.trust import verdicts
from ntm_kernels.backends.trust.identity import device_name, identity_of
from ntm_kernels.backends.trust.paths import paths
from ntm_kernels.backends.trust.trial import Trial, run_trial
from ntm_kernels.backends.trust.verdicts import Verdict

SWITCH = "NTM_KERNELS_SELFCHECK"


class Subject(NamedTuple):
    """What a verdict is about, in this process."""

    backend: str
    op: str
    device: str
    device_index: int
    dtype: torch.dtype

    @property
    def where(self) -> torch.device:
        return torch.device(self.device, self.device_index)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.op} in {dtype} on {device_name(self.where)}"


# None: there is none on disk.
_verdicts: dict[Subject, Verdict | None] = {}
_warned: set[Subject] = set()
# Chosen while something traced, and not checked since.
pending: set[Subject] = set()
_lock = threading.RLock()


def subject_of(name: str, problem: Problem) -> Subject:
    return Subject(name, problem.op, problem.device, problem.device_index, problem.dtype)


def distrusted(backend: Backend, problem: Problem) -> str | None:
    """Why the automatic choice passes over ``backend``; ``None`` if it does not. Makes the check
    where there is no verdict."""
    subject = subject_of(backend.name, problem)
    verdict = _verdicts.get(subject)
    if verdict is None:
        if not checks.eager_alone():
            return failure_when_traced(backend, problem)
        if is_off():
            return None
        try:
            verdict = _judge(backend, subject)
        except torch.OutOfMemoryError:
            # That says nothing about the kernels: the next call tries again.
            reason = "there was no memory left on the device for its self-check"
            warnings.warn(
                f"ntm_kernels does without the backend {backend.name!r} in this call of "
                f"{problem.op}: {reason}; make the check with less in memory, or by "
                "`python -m ntm_kernels selfcheck`",
                RuntimeWarning,
                stacklevel=2,
            )
            return reason
    return _reason(subject, verdict) if verdict.why_not else None


def failure_when_traced(backend: Backend, problem: Problem) -> str | None:
    """As ``distrusted``, but leaves a missing check to the moment when the op runs."""
    if is_off():
        return None
    subject = subject_of(backend.name, problem)
    verdict = _known(backend, subject)
    if verdict is None:
        pending.add(subject)
        return None
    return _reason(subject, verdict) if verdict.why_not else None


def failure_known(backend: Backend, problem: Problem) -> str | None:
    """Why a check of ``backend`` has failed, in this process or an earlier one; checks nothing."""
    subject = subject_of(backend.name, problem)
    verdict = _verdicts.get(subject)
    if subject not in _verdicts and not is_off():
        verdict = _known(backend, subject)
    return _failed(subject, verdict) if verdict is not None and verdict.why_not else None


def failure_of(name: str) -> str | None:
    """What has failed of the backend of that name in this process; ``None`` if nothing has."""
    found = [
        _failed(subject, verdict)
        for subject, verdict in tuple(_verdicts.items())
        if subject.backend == name and verdict is not None and verdict.why_not
    ]
    return "; ".join(found) or None


def settle(backend: Backend, problem: Problem) -> None:
    """Check an op that was chosen while something traced; raise if it fails."""
    subject = subject_of(backend.name, problem)
    if subject not in pending:
        return
    verdict = _verdicts.get(subject) or _judge(backend, subject)
    pending.discard(subject)
    if verdict.why_not:
        raise BackendError(
            f"{problem.op}: the backend {backend.name!r} was chosen while the call was traced, and "
            f"{_failed(subject, verdict)}; call torch.compiler.reset() and then the function "
            "again: another backend is then chosen"
        )


def told(backend: Backend, problem: Problem) -> str:
    """What is known of the self-check, for ``explain``."""
    if is_off():
        return f"the self-check is off ({SWITCH}=0)"
    verdict = _known(backend, subject_of(backend.name, problem))
    if verdict is None:
        return "no self-check yet; an automatic choice makes it at the first call"
    return f"self-check {'failed' if verdict.why_not else 'passed'} on {verdict.date}"


def check(backend: Backend, subject: Subject) -> list[Trial]:
    """Run all trials of a subject and keep the verdict."""
    device = subject.where
    found = paths(backend, subject.op, device, subject.dtype)
    # Neither the user's autocast nor gradients have a part in it.
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        trials = [
            run_trial(backend, subject.op, path, sizes, device, subject.dtype)
            for path, sizes in found.items()
        ]
    why_not = "; ".join(trial.why_not for trial in trials if trial.why_not)
    if not trials:
        why_not = f"it supports none of the calls of {subject.op} that a self-check makes"
    verdict = Verdict(why_not, datetime.now(timezone.utc).strftime("%Y-%m-%d"))
    verdicts.write(_identity(backend, subject), verdict)
    _verdicts[subject] = verdict
    return trials


def is_off() -> bool:
    """Whether the user has switched checks off; raises ``BackendError`` for another value."""
    value = os.environ.get(SWITCH, "1")
    if value not in ("", "0", "1"):
        raise BackendError(
            f"the environment variable {SWITCH} must be 0 (no self-checks) or 1, got {value!r}"
        )
    return value == "0"


def _known(backend: Backend, subject: Subject) -> Verdict | None:
    """The verdict of this process, or the one on disk."""
    if subject not in _verdicts:
        _verdicts[subject] = verdicts.read(_identity(backend, subject))
    return _verdicts[subject]


def _judge(backend: Backend, subject: Subject) -> Verdict:
    """The verdict, made if there is none. One thread of one process checks, the others wait."""
    identity = _identity(backend, subject)
    with _lock:
        verdict = _verdicts.get(subject) or verdicts.read(identity)
        if verdict is None:
            _refuse_capture(subject)
            with verdicts.locked(identity):
                verdict = verdicts.read(identity)
                if verdict is None:
                    check(backend, subject)
                    verdict = _verdicts[subject]
        assert verdict is not None
        _verdicts[subject] = verdict
    return verdict


def _identity(backend: Backend, subject: Subject) -> dict[str, str]:
    return identity_of(backend, subject.op, subject.where, subject.dtype)


def _refuse_capture(subject: Subject) -> None:
    if is_capturing(subject.where):
        raise BackendError(
            f"{subject.op}: the backend {subject.backend!r} has to be checked before its first "
            "use, which cannot be done while a CUDA graph is captured; call the op, or the whole "
            "function, once before the capture, or run `python -m ntm_kernels selfcheck`"
        )


def is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _failed(subject: Subject, verdict: Verdict) -> str:
    return f"its self-check of {subject} failed on {verdict.date}: {verdict.why_not}"


def _reason(subject: Subject, verdict: Verdict) -> str:
    """The reason of a refusal, of which the user is warned once."""
    reason = _failed(subject, verdict)
    if subject not in _warned:
        _warned.add(subject)
        warnings.warn(
            f"ntm_kernels does without the backend {subject.backend!r}: {reason}; calls go on "
            "with the next backend",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason
