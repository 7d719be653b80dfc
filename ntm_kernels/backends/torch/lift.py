"""Records in the arithmetic dtype, and back in the dtypes of the caller."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from torch import Tensor

from ntm_kernels.ops.declare import Field, dtypes_of, fields
from ntm_kernels.ops.sizes import Sizes
from ntm_kernels.reference import arithmetic_dtype
from ntm_kernels.torch_private import base_of

Record = TypeVar("Record", bound=NamedTuple)


def lift(record: Record) -> Record:
    """Every floating-point tensor of a record in the dtype it is computed in."""
    return type(record)._make(map(_lifted, record))


def _lifted(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or not tensor.is_floating_point():
        return tensor
    return tensor.to(arithmetic_dtype(tensor.dtype))


def lower(record: Record, inputs: NamedTuple) -> Record:
    """Contiguous tensors that are no views, each in the dtype of the inputs of its kind."""
    dtypes = dtypes_of(inputs)

    def one(field: Field, part: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        result = part.to(dtypes[field.kind]).contiguous()
        # A view could not be changed in place once autograd has recorded the op.
        return result if base_of(result) is None else result.clone()

    return type(record)._make(map(one, fields(type(record)).values(), record))


def with_zeros(grads: Record, sizes: Sizes, like: Tensor) -> Record:
    """Zeros, on the device of ``like`` and in its dtype, for the gradients that are not there."""

    def one(field: Field, grad: Tensor | None) -> Tensor | None:
        if grad is not None or not (field.differentiable and field.present(sizes)):
            return grad
        return like.new_zeros(sizes.shape(field.dims))

    return type(grads)._make(map(one, fields(type(grads)).values(), grads))
