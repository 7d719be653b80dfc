"""What an allocator's error means: which sizes ask for how much memory, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# By these words, of allocators and of the arithmetic of sizes, an error of torch is recognised.
SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "Storage size calculation overflowed",
    "integer multiplication overflow",
    "Overflow when unpacking",
)


def explain(error: Exception, owner: str, what: str, mend: str) -> None:
    """Where ``error`` says that memory is short, raise one that says for what, and what to do.

    Errors of another kind are left to the caller, who raises them again. The type of a
    ``RuntimeError`` is kept and torch's own words are in the message, since programs that look for
    the largest batch that fits recognise the error by them.
    """
    text = str(error)
    if not isinstance(error, torch.OutOfMemoryError) and not any(words in text for words in SIGNS):
        return
    kind = type(error) if isinstance(error, RuntimeError) else RuntimeError
    raise kind(
        f"{owner}: there is no room for {what}; {mend} (torch: {text.splitlines()[0]})"
    ) from error


def tensor(name: str, shape: Sequence[int], dtype: torch.dtype | None) -> str:
    """A tensor's name, shape and bytes in words; ``None`` is the default dtype."""
    dtype = dtype or torch.get_default_dtype()
    return f"{name} = {list(shape)}, {math.prod(shape) * dtype.itemsize:,} bytes in {dtype}"


@contextmanager
def room_for(
    owner: str, what: str, shape: Sequence[int], dtype: torch.dtype | None, mend: str
) -> Iterator[None]:
    """Explain why a parameter ``what`` does not fit, where the ``with`` block finds that out."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        explain(error, owner, tensor(what, shape, dtype), mend)
        raise


def parameter(what: str, shape: Sequence[int], mend: str, **factory: Any) -> nn.Parameter:
    """An unset parameter of a cell; where it does not fit, the error says which and why."""
    with room_for("NTMCell", what, shape, factory.get("dtype"), mend):
        return nn.Parameter(torch.empty(shape, **factory))
