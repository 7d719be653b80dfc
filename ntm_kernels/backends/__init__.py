"""Which backend serves a call, and why.

A choice is made in Python for every call, before any kernel runs: by the ``backend=`` argument,
else by the innermost ``use_backend`` of the running context, else by the environment variable
``NTM_KERNELS_BACKEND``, else automatically: the first registered backend that is available and
supports the call. An explicit choice that cannot be served raises ``BackendError``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

from ntm_kernels.backends.base import (
    OPS,
    Backend,
    Problem,
    SequenceArguments,
    SequenceOutputs,
    Sizes,
)
from ntm_kernels.backends.native import NativeBackend
from ntm_kernels.backends.reference import ReferenceBackend

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "OPS",
    "Backend",
    "BackendChoice",
    "BackendError",
    "BackendStatus",
    "Problem",
    "SequenceArguments",
    "SequenceOutputs",
    "Sizes",
    "backends",
    "choose",
    "get",
    "register",
    "use_backend",
]

ENVIRONMENT_VARIABLE = "NTM_KERNELS_BACKEND"


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot serve the call."""


class BackendStatus(NamedTuple):
    """Whether a backend can run on this machine, and why not."""

    name: str
    available: bool
    reason: str


class BackendChoice(NamedTuple):
    """The backend that serves a call, why, and why those before it do not."""

    backend: str
    reason: str
    rejected: dict[str, str]


_registry: dict[str, Backend] = {}
_automatic: list[str] = []
_context: ContextVar[str | None] = ContextVar("ntm_kernels_backend", default=None)


def register(backend: Backend, *, automatic: bool = True) -> None:
    """Make ``backend`` known under its name.

    With ``automatic`` it is tried before the backends registered earlier; without, it only serves
    calls that name it. Raises ``ValueError`` if the name is taken.
    """
    if backend.name in _registry:
        raise ValueError(f"a backend named {backend.name!r} is registered already")
    _registry[backend.name] = backend
    if automatic:
        _automatic.insert(0, backend.name)


def get(name: str) -> Backend:
    """The backend registered as ``name``; raises ``BackendError`` if there is none."""
    try:
        return _registry[name]
    except KeyError:
        known = ", ".join(sorted(_registry))
        raise BackendError(f"there is no backend named {name!r}; there are: {known}") from None


def backends() -> list[BackendStatus]:
    """Every registered backend, in the order in which they are tried, and whether it is there.

    >>> import ntm_kernels
    >>> [status.name for status in ntm_kernels.backends() if status.available][-1]
    'reference'
    """
    order = _automatic + [name for name in _registry if name not in _automatic]
    statuses = []
    for name in order:
        why_not = _registry[name].unavailable()
        reason = why_not or _registry[name].describe()
        statuses.append(BackendStatus(name, why_not is None, reason))
    return statuses


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every call inside the ``with`` block by the backend ``name``.

    It holds for the running context (thread or asyncio task) and nests; a ``backend=`` argument
    overrides it. A compiled graph keeps the backend in force when it was traced. Raises
    ``BackendError`` at once if there is no such backend or it is not available.

    >>> import torch, ntm_kernels
    >>> with ntm_kernels.use_backend("reference"):
    ...     ntm_kernels.functional.read(torch.eye(2)[None], torch.ones(1, 1, 2))
    tensor([[[1., 1.]]])
    """
    why_not = get(name).unavailable()
    if why_not is not None:
        raise BackendError(f"backend {name!r} is not available: {why_not}")
    token = _context.set(name)
    try:
        yield
    finally:
        _context.reset(token)


def requested(argument: str | None = None) -> tuple[str, str] | None:
    """The name that was asked for and by what, or ``None`` if the choice is automatic."""
    if argument is not None:
        return argument, "the backend argument"
    return _ambient()


# A constant to torch.compile, which cannot trace a context variable.
@torch.compiler.assume_constant_result
def _ambient() -> tuple[str, str] | None:
    if (name := _context.get()) is not None:
        return name, "use_backend"
    if name := os.environ.get(ENVIRONMENT_VARIABLE):
        return name, f"the environment variable {ENVIRONMENT_VARIABLE}"
    return None


# A constant to torch.compile too: finding out may load a library.
@torch.compiler.assume_constant_result
def _unavailable(name: str) -> str | None:
    return get(name).unavailable()


def choose(problem: Problem, argument: str | None = None) -> BackendChoice:
    """The backend that serves ``problem``, with the reason."""
    explicit = requested(argument)
    if explicit is not None:
        name, source = explicit
        why_not = _unavailable(name) or get(name).unsupported(problem)
        if why_not is not None:
            raise BackendError(
                f"backend {name!r}, asked for by {source}, cannot serve {problem.op}: {why_not}"
            )
        return BackendChoice(name, f"asked for by {source}", {})
    rejected: dict[str, str] = {}
    for name in _automatic:
        why_not = _unavailable(name) or _registry[name].unsupported(problem)
        if why_not is None:
            return BackendChoice(name, "the first that serves the call", rejected)
        rejected[name] = why_not
    reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
    raise BackendError(f"no backend serves {problem.op}: {reasons}")


register(ReferenceBackend())
register(NativeBackend())
