"""Records of tensors as the kernels take them."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from ntm_kernels.ops.declare import choose

Record = TypeVar("Record", bound=NamedTuple)


def contiguous(record: Record) -> Record:
    """Every tensor of a record contiguous."""
    parts: map[Any] = map(_contiguous, record)
    return type(record)(*parts)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def some(record: type[Record], **tensors: Tensor | None) -> Record:
    """A record of some of its tensors; the others are ``None``."""
    return choose(record, tensors, tensors.values())


class Heads(NamedTuple):
    """The parameters of all heads, or their gradients; ``None`` where a call has none.

    On the host these are tensors: raw parameters are views into interface vectors ``[B, P]``,
    activated ones tensors of their own, and gradients are views into parts ``[B, G, D]``, one part
    for each of the G programs of a sequence. Kernels have pointers under the same names.
    """

    key: Tensor | None = None
    strength: Tensor | None = None
    gate: Tensor | None = None
    shift: Tensor | None = None
    sharpening: Tensor | None = None
    erase: Tensor | None = None
    add: Tensor | None = None

    @property
    def width(self) -> int:
        """D of gradients, which lie side by side."""
        return sum(part.shape[2:].numel() for part in self if part is not None)
