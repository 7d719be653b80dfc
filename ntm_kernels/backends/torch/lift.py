"""Records in the arithmetic dtype, and back in the dtypes of the caller."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from torch import Tensor

from ntm_kernels.ops.declare import Field, dtypes_of, fields
from ntm_kernels.ops.sizes import Sizes
from ntm_kernels.reference import arithmetic_dtype

Record = TypeVar("Record", bound=NamedTuple)


def lift(record: Record) -> Record:
    """Every floating-point tensor of a record in the dtype it is computed in."""
    return type(record)._make(map(_lifted, record))


def _lifted(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or not tensor.is_floating_point():
        return tensor
    return tensor.to(arithmetic_dtype(tensor.dtype))


def lower(record: Record, inputs: NamedTuple) -> Record:
    """Contiguous tensors, each in the dtype of the inputs of its kind."""
    dtypes = dtypes_of(inputs)
    parts = zip(fields(type(record)).values(), record, strict=True)
    return type(record)._make(
        None if part is None else part.to(dtypes[field.kind]).contiguous() for field, part in parts
    )


def with_zeros(grads: Record, sizes: Sizes, like: Tensor) -> Record:
    """Zeros, on the device of ``like`` and in its dtype, for the gradients that are not there."""

    def one(field: Field, grad: Tensor | None) -> Tensor | None:
        if grad is not None or not (field.differentiable and field.present(sizes)):
            return grad
        return like.new_zeros(sizes.shape(field.dims))

    return type(grads)._make(map(one, fields(type(grads)).values(), grads))
