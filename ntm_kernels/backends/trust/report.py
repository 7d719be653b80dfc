"""``python -m ntm_kernels selfcheck``: checks by hand, with a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ntm_kernels.backends import choice
from ntm_kernels.backends.base import Backend, BackendError, Problem
from ntm_kernels.backends.trust.identity import device_name
from ntm_kernels.backends.trust.paths import candidates
from ntm_kernels.backends.trust.policy import Subject, check
from ntm_kernels.backends.trust.trial import Trial
from ntm_kernels.backends.trust.verdicts import folder

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}


def selfcheck(names: Sequence[str] = (), dtypes: Sequence[str] = tuple(DTYPES)) -> bool:
    """Check backends on every kind of device here, print a table, and keep the verdicts.

    Args:
        names: the backends; those that need a check if empty.
        dtypes: the names of the dtypes of the memory.

    Returns:
        Whether all have passed.

    Raises:
        BackendError: a backend is not there or needs no check, or there is none to check.
        ValueError: there is no dtype of that name.
    """
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ValueError(
                f"there is no dtype {dtype!r} to check; there are: {', '.join(DTYPES)}"
            )
    passed = True
    for backend in _backends(names):
        for subject in _subjects(backend, dtypes):
            print(f"{backend.name}: {subject}", flush=True)
            trials = check(backend, subject)
            print("\n".join(map(_row, trials)), flush=True)
            passed = passed and not any(trial.why_not for trial in trials)
    print(f"{'passed' if passed else 'FAILED'}; the verdicts are in {folder()}")
    return passed


def _backends(names: Sequence[str]) -> list[Backend]:
    found, reasons = [], []
    for name in names or choice.names_to_check():
        backend = choice.get(name)
        if not backend.needs_check:
            raise BackendError(f"the backend {name!r} needs no self-check; leave it out")
        why_not = backend.unavailable()
        if why_not is None:
            found.append(backend)
        elif names:
            raise BackendError(f"backend {name!r} is not available: {why_not}")
        else:
            reasons.append(f"{name}: {why_not}")
    if not found:
        raise BackendError(f"there is no backend to check here; {'; '.join(reasons)}")
    return found


def _subjects(backend: Backend, dtypes: Sequence[str]) -> Iterator[Subject]:
    """Each op on each kind of device that the backend runs on, in each dtype."""
    devices = [torch.device("cpu", 0)]
    devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    for device in {device_name(device): device for device in reversed(devices)}.values():
        for op in backend.kernels:
            for name in dtypes:
                problem = Problem(op, device.type, DTYPES[name], next(candidates(op)), device.index)
                if backend.refuses(problem) is None:
                    yield Subject(backend.name, op, device.type, device.index, DTYPES[name])


def _row(trial: Trial) -> str:
    verdict = f"FAILED: {trial.why_not}" if trial.why_not else "passed"
    path = trial.path or "one path"
    return f"  {path:60} {trial.seconds:8.3f} s  error / allowed {trial.share:5.2f}  {verdict}"
