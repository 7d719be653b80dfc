"""The matrix products of the controller's and the interface's weights, which autocast may round.

A loop of steps computes them through ``Products``, which leaves their operands as they are, or
through ``Bfloat16Products``, which rounds them to bfloat16. Memory, weightings and state are no
operands of these products, and stay in the dtype of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Products:
    """Products in the dtype of their operands."""

    def weight(self, weight: Tensor) -> Tensor:
        """A weight as the products take it. It is converted once, not at every step."""
        return weight

    def mm(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.mm(left, right)

    def addmm(self, bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return torch.addmm(bias, left, right)

    def bmm(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.bmm(left, right)


class Bfloat16Products(Products):
    """Products of operands that are rounded to bfloat16. Sums and results are float32."""

    def weight(self, weight: Tensor) -> Tensor:
        return weight.to(torch.bfloat16)

    def mm(self, left: Tensor, right: Tensor) -> Tensor:
        return _in_float32(torch.mm, left, right)

    def addmm(self, bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
        # torch has an addmm of both dtypes, but not in every version that is supported.
        return self.mm(left, right).add_(bias)

    def bmm(self, left: Tensor, right: Tensor) -> Tensor:
        return _in_float32(torch.bmm, left, right)


class RoundedProducts(Products):
    """Products of operands that are rounded to bfloat16, by the float32 products of the device.

    In float32 each product of two of them is exact. So these differ from ``Bfloat16Products`` in
    the order of the sums alone, and show whether the device computes those as it should.
    """

    def weight(self, weight: Tensor) -> Tensor:
        return _rounded(weight)

    def mm(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.mm(_rounded(left), _rounded(right))

    def addmm(self, bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return torch.addmm(bias, _rounded(left), _rounded(right))

    def bmm(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.bmm(_rounded(left), _rounded(right))


def _rounded(operand: Tensor) -> Tensor:
    return operand.to(torch.bfloat16).float()


def _in_float32(product: Callable[..., Tensor], left: Tensor, right: Tensor) -> Tensor:
    """``product`` of the operands rounded to bfloat16, its result in float32."""
    left, right = left.to(torch.bfloat16), right.to(torch.bfloat16)
    if left.device.type == "cpu":
        # The CPU's library would round the result. In float32 each product of two is exact.
        return product(left.float(), right.float())
    return product(left, right, out_dtype=torch.float32)


UNCHANGED = Products()
IN_BFLOAT16 = Bfloat16Products()
ROUNDED = RoundedProducts()
