"""Records of tensors as the kernels take them: contiguous."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

from ntm_kernels.ops.declare import choose

Record = TypeVar("Record", bound=tuple[Any, ...])


def contiguous(record: Record) -> Record:
    """Every tensor of a record contiguous."""
    parts: map[Any] = map(_contiguous, record)
    return type(record)(*parts)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def some(record: type[Record], **tensors: Tensor | None) -> Record:
    """A record of some of its tensors; the others are ``None``."""
    return choose(record, tensors, tensors.values())
