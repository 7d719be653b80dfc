"""Elementary functions, accurate in float32 and float64 alike."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """``log(1 + e^x)``.

    With ``small = e^-|x|`` it is ``max(x, 0) + log(1 + small)``. The sum ``1 + small`` is rounded;
    the factor ``small / ((1 + small) - 1)`` corrects the logarithm for that.
    """
    small = tl.exp(-tl.abs(x))
    one_more = 1.0 + small
    rounded = one_more == 1.0
    correction = small / tl.where(rounded, 1.0, one_more - 1.0)
    return tl.maximum(x, 0.0) + tl.where(rounded, small, tl.log(one_more) * correction)


@triton.jit
def tanh(x):
    """Below 1/2 a continued fraction of seven levels, elsewhere from the exponential function.

    Near 0 the formula with the exponential would subtract two numbers that are almost equal.
    """
    square = tl.minimum(x * x, 0.25)
    above = 135135.0 + square * (17325.0 + square * (378.0 + square))
    below = 135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))
    small = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - small) / (1.0 + small)
    return tl.where(x * x < 0.25, x * (above / below), tl.where(x < 0, -far, far))


@triton.jit
def power(x, exponent, at_zero):
    """``x^exponent`` for x > 0, ``at_zero`` for x = 0, and NaN for x < 0."""
    zero = x == 0
    found = tl.exp(exponent * tl.log(tl.where(zero, 1.0, x)))
    return tl.where(zero, at_zero, found)


@triton.jit
def softmax(x, inside):
    """Along the last dimension, over the elements that are ``inside``; 0 elsewhere."""
    x = tl.where(inside, x, -float("inf"))
    exponentials = tl.exp(x - tl.max(x, 1)[:, None])
    return exponentials / tl.sum(exponentials, 1)[:, None]
