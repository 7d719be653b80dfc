"""Which backend serves a call, and why.

A choice is made in Python for every call, before any kernel runs: by the ``backend=`` argument,
else by the innermost ``use_backend`` of the running thread, else by the environment variable
``NTM_KERNELS_BACKEND``, else automatically: the first registered backend that is available,
supports the call and has passed its self-check, if it needs one. An explicit choice that cannot be
served raises ``BackendError``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from ntm_kernels.backends import trust
from ntm_kernels.backends.base import Backend, BackendError, Problem
from ntm_kernels.ops.sizes import Sizes
from ntm_kernels.torch_private import assume_constant_result

ENVIRONMENT_VARIABLE = "NTM_KERNELS_BACKEND"


class BackendStatus(NamedTuple):
    """Whether a backend can run on this machine, and why not."""

    name: str
    available: bool
    reason: str


class BackendChoice(NamedTuple):
    """The backend that serves a call, why, and why the backends tried before it do not."""

    backend: str
    reason: str
    rejected: dict[str, str]


_registry: dict[str, Backend] = {}
_automatic: list[str] = []


class _Ambient(threading.local):
    """What ``use_backend`` asks for in this thread. torch.compile guards on it, which it cannot on
    a context variable."""

    # Set per instance: torch.compile of torch 2.11 reads a class attribute past the instance's.
    def __init__(self) -> None:
        self.backend: str | None = None


_ambient = _Ambient()


def register(backend: Backend, *, automatic: bool = True) -> None:
    """Make ``backend`` known under its name.

    With ``automatic`` it is tried before the backends registered earlier; without, it only serves
    calls that name it. Raises ``ValueError`` if the name is taken, ``TypeError``
    for what is no ``Backend``.
    """
    if not isinstance(backend, Backend):
        raise TypeError(f"register: backend must be a Backend, got {type(backend).__name__}")
    if backend.name in _registry:
        raise ValueError(f"a backend named {backend.name!r} is registered already")
    _registry[backend.name] = backend
    if automatic:
        _automatic.insert(0, backend.name)


def get(name: str) -> Backend:
    """The backend registered as ``name``; raises ``BackendError`` if there is none."""
    if name not in _registry:
        raise BackendError(_unknown(name))
    return _registry[name]


def names_to_check() -> list[str]:
    """The backends that the automatic choice uses only after a self-check."""
    return [name for name in _automatic if _registry[name].needs_check]


def require_registered(owner: str, name: object) -> None:
    """``name`` must be that of a registered backend, available or not."""
    _require_name(f"{owner}: backend must be the name of a backend or None", name)
    if name not in _registry:
        raise BackendError(
            f"{owner}: {_unknown(str(name))}; register one of your own before it is named"
        )


def _unknown(name: str) -> str:
    return f"there is no backend named {name!r}; there are: {', '.join(sorted(_registry))}"


def available_backends() -> list[BackendStatus]:
    """Every registered backend, in the order in which they are tried, and whether it is there.

    >>> import ntm_kernels
    >>> "torch" in [status.name for status in ntm_kernels.available_backends() if status.available]
    True
    """
    order = _automatic + [name for name in _registry if name not in _automatic]
    statuses = []
    for name in order:
        why_not = _registry[name].unavailable() or trust.failure_of(name)
        reason = why_not or _registry[name].describe()
        statuses.append(BackendStatus(name, why_not is None, reason))
    return statuses


def release_workspaces() -> int:
    """Give the memory that backends keep between calls back to the system, and return its bytes.

    The backend ``cpu`` keeps the blocks of memory that a call no longer needs for the next one,
    up to 256 MiB in a process. A call to this function makes the next calls slower, nothing else:
    it may be made at any time and from any thread, and leaves alone what is in use. Memory on a
    GPU belongs to torch's own allocator, ``torch.cuda.empty_cache()``.

    >>> import ntm_kernels
    >>> freed = ntm_kernels.release_workspaces()
    >>> ntm_kernels.release_workspaces()
    0
    """
    present = (backend for backend in _registry.values() if backend.unavailable() is None)
    return sum(backend.release_workspaces() for backend in present)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every call inside the ``with`` block by the backend ``name``.

    It holds for the running thread and nests; a ``backend=`` argument overrides it, and a backward
    stays with the backend of its forward. As with ``torch.no_grad``, nothing else of the thread may
    run in between: no ``await`` and no ``yield`` inside the block. A compiled function follows it,
    tracing anew for each backend; the environment variable it reads only when traced. Raises
    ``BackendError`` at once if there is no such backend or it is not available.

    >>> import torch, ntm_kernels
    >>> with ntm_kernels.use_backend("torch"):
    ...     ntm_kernels.functional.read(torch.eye(2)[None], torch.ones(1, 1, 2))
    tensor([[[1., 1.]]])
    """
    _require_name("use_backend: name must be the name of a backend", name)
    why_not = get(name).unavailable()
    if why_not is not None:
        raise BackendError(f"backend {name!r} is not available: {why_not}")
    before = _ambient.backend
    _ambient.backend = name
    try:
        yield
    finally:
        _ambient.backend = before


def requested(argument: str | None = None) -> tuple[str, str] | None:
    """The name that was asked for and by what, or ``None`` if the choice is automatic."""
    if argument is not None:
        _require_name("backend must be the name of a backend or None", argument)
        return argument, "the backend argument"
    if (name := _ambient.backend) is not None:
        return name, "use_backend"
    if name := _environment():
        return name, f"the environment variable {ENVIRONMENT_VARIABLE}"
    return None


def _require_name(rule: str, name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{rule}, got {type(name).__name__}")


# A constant to torch.compile, which would guard on the variable only where it is set.
@assume_constant_result
def _environment() -> str | None:
    return os.environ.get(ENVIRONMENT_VARIABLE)


# A constant to torch.compile, since it may load a library, which cannot be traced.
@assume_constant_result
def _unavailable(name: str) -> str | None:
    return get(name).unavailable()


@assume_constant_result
def _missing(name: str, device: str) -> str | None:
    """As ``_unavailable``, for an automatic choice: it calls ``Backend.missed`` of a backend that
    is not available, which may warn or raise."""
    why_not = _unavailable(name)
    if why_not is not None:
        get(name).missed(device, why_not)
    return why_not


def _refusal(name: str, problem: Problem) -> str | None:
    return _unavailable(name) or get(name).refuses(problem)


def _why_not(name: str, problem: Problem) -> str | None:
    """Why a backend that was asked for does not serve ``problem``. It is not checked for that, but
    a check that has failed counts."""
    return _refusal(name, problem) or _known_failure(name, problem)


def _known_failure(name: str, problem: Problem) -> str | None:
    """Why an earlier check of a backend has failed."""
    if not get(name).needs_check:
        return None
    return _failed(name, problem.op, problem.device, problem.device_index, problem.dtype)


# Constants to torch.compile, which cannot trace a look at files.
@assume_constant_result
def _failed(name: str, op: str, device: str, index: int, dtype: torch.dtype) -> str | None:
    return trust.failure_known(get(name), _of_device(op, device, index, dtype))


@assume_constant_result
def _failed_when_traced(
    name: str, op: str, device: str, index: int, dtype: torch.dtype
) -> str | None:
    return trust.failure_when_traced(get(name), _of_device(op, device, index, dtype))


def _of_device(op: str, device: str, index: int, dtype: torch.dtype) -> Problem:
    """What a verdict depends on; it is the same for all sizes."""
    return Problem(op, device, dtype, Sizes(0, 0, 0, 0), index)


def _distrusted(name: str, problem: Problem) -> str | None:
    """Why the automatic choice does not trust a backend that supports ``problem``."""
    if not _registry[name].needs_check:
        return None
    if torch.compiler.is_compiling():
        return _failed_when_traced(
            name, problem.op, problem.device, problem.device_index, problem.dtype
        )
    return trust.distrusted(_registry[name], problem)


def serves_if_requested(problem: Problem, argument: str | None = None) -> bool:
    """``False`` where a backend was asked for that does not serve ``problem``."""
    explicit = requested(argument)
    return explicit is None or _refusal(explicit[0], problem) is None


def choose(problem: Problem, argument: str | None = None, may_check: bool = True) -> BackendChoice:
    """The backend that serves ``problem``, with the reason.

    The first automatic choice of a backend for a device may run its self-check. Without
    ``may_check`` nothing is run, and a backend that was never checked counts as if it had passed.
    """
    explicit = requested(argument)
    if explicit is not None:
        name, source = explicit
        if name not in _registry:
            raise BackendError(f"{_unknown(name)} ({name!r} was asked for by {source})")
        why_not = _why_not(name, problem)
        if why_not is not None:
            raise BackendError(
                f"backend {name!r}, asked for by {source}, cannot serve {problem.op}: {why_not}"
            )
        return BackendChoice(name, f"asked for by {source}", {})
    rejected: dict[str, str] = {}
    for name in _automatic:
        why_not = _missing(name, problem.device) or _registry[name].refuses(problem)
        if why_not is None:
            why_not = (_distrusted if may_check else _known_failure)(name, problem)
        if why_not is None:
            return BackendChoice(name, "the fastest that supports the call", rejected)
        rejected[name] = why_not
    reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
    raise BackendError(f"no backend serves {problem.op}: {reasons}")


def explain(problem: Problem, argument: str | None = None) -> BackendChoice:
    """The choice, which of its ways the backend takes, and whether it was checked."""
    choice = choose(problem, argument, may_check=False)
    backend = get(choice.backend)
    how = backend.how(problem)
    reason = f"{choice.reason}: {how}" if how else choice.reason
    if backend.needs_check:
        reason += f"; {trust.told(backend, problem)}"
    return choice._replace(reason=reason)
