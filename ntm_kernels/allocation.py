"""What an allocator's error means: which sizes ask for how much memory, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def explain(
    error: Exception, owner: str, what: str, shape: Sequence[int], dtype: torch.dtype, mend: str
) -> None:
    """Where ``error`` says that a tensor does not fit, raise one that says which and why.

    Errors of another kind are left to the caller, who raises them again. The type of a
    ``RuntimeError`` is kept and torch's own words are in the message, since programs that look for
    the largest batch that fits recognise the error by them.
    """
    text = str(error)
    if not isinstance(error, torch.OutOfMemoryError) and not any(
        words in text.lower() for words in ("allocate memory", "not enough memory", "overflow")
    ):
        return
    size = math.prod(shape) * dtype.itemsize
    kind = type(error) if isinstance(error, RuntimeError) else RuntimeError
    raise kind(
        f"{owner}: there is no room for {what} = {list(shape)}, {size:,} bytes in {dtype}; {mend} "
        f"(torch: {text.splitlines()[0]})"
    ) from error


@contextmanager
def room_for(
    owner: str, what: str, shape: Sequence[int], dtype: torch.dtype | None, mend: str
) -> Iterator[None]:
    """Explain an allocation that fails inside the ``with`` block; ``None`` is the default dtype."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        explain(error, owner, what, shape, dtype or torch.get_default_dtype(), mend)
        raise


def parameter(
    owner: str, what: str, shape: Sequence[int], mend: str, **factory: Any
) -> nn.Parameter:
    """An unset parameter; where it does not fit, the error says which and why."""
    with room_for(owner, what, shape, factory.get("dtype"), mend):
        return nn.Parameter(torch.empty(shape, **factory))
