"""Tensors as the kernels take them: contiguous."""

from __future__ import annotations

import torch
from torch import Tensor


def contiguous(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def contiguous_if(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def new_like(*tensors: Tensor) -> tuple[Tensor, ...]:
    """New contiguous tensors."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)


def copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone(memory_format=torch.contiguous_format)
