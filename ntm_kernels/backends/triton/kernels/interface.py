"""The interface vector: the linear layer that makes it, where its parameters lie, their activation.

Parameters are raw, as they lie in an interface vector, or activated already, as ``address`` and
``write`` take them. ``RAW`` says which. Raw ones are activated where they are loaded, and their
gradients are those of the raw numbers. All heads together have one number each, or one row each.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import math
from ntm_kernels.backends.triton.kernels.access import load, load_rows
from ntm_kernels.backends.triton.kernels.matrix import matvec, vecmat
from ntm_kernels.backends.triton.records import Heads


class AddressHeads(NamedTuple):
    """Where the parameters of addressing begin, or their gradients, of one sequence."""

    key: Any
    strength: Any
    gate: Any
    shift: Any
    sharpening: Any


class WriteHeads(NamedTuple):
    """Where the parameters of the heads that write begin, or their gradients."""

    erase: Any
    add: Any


@triton.jit
def interface_step(inputs, p_hidden, p_interface, shape: tl.constexpr, block: tl.constexpr):
    """Stores the interface vector of the hidden state."""
    for p in range(0, shape.P, block.P):
        i_p = p + tl.arange(0, block.P)
        inside = i_p < shape.P
        bias = load(inputs.interface_bias + i_p, inside, block.dtype)
        value = matvec(
            bias, inputs.interface_weight, shape.C, p_hidden, shape.C, i_p, inside, block
        )
        tl.store(p_interface + i_p, value, mask=inside)


@triton.jit
def interface_backward(
    d_hidden, inputs, p_d_interface, i_c, shape: tl.constexpr, block: tl.constexpr
):
    """Adds to the gradient of the hidden units ``i_c`` what comes from the interface vector."""
    return vecmat(
        d_hidden,
        inputs.interface_weight,
        shape.C,
        p_d_interface,
        shape.P,
        i_c,
        i_c < shape.C,
        block,
    )


@triton.jit
def heads_in(p, shape: tl.constexpr):
    """Where each parameter begins in the interface vector at ``p``."""
    p_strength = p + shape.H * shape.M
    p_gate = p_strength + shape.H
    p_shift = p_gate + shape.H
    p_sharpening = p_shift + shape.H * shape.S
    p_erase = p_sharpening + shape.H
    p_add = p_erase + shape.W * shape.M
    return Heads(p, p_strength, p_gate, p_shift, p_sharpening, p_erase, p_add)


# The next two find where the parameters of row ``i`` begin. A row belongs to a sequence, or to a
# part of its gradients. ``stride`` lies between two rows of all parameters, which are views into
# one tensor. It is 0 where each parameter is a contiguous tensor of its own. There are two
# functions, since some calls have the parameters of addressing alone, or those of writing alone,
# and a function cannot return a record with ``None`` in Triton 3.6.


@triton.jit
def address_heads_at(heads, i, stride: tl.constexpr, shape: tl.constexpr):
    i_number = i * (stride if stride else shape.H)
    return AddressHeads(
        key=heads.key + i * (stride if stride else shape.H * shape.M),
        strength=heads.strength + i_number,
        gate=heads.gate + i_number,
        shift=heads.shift + i * (stride if stride else shape.H * shape.S),
        sharpening=heads.sharpening + i_number,
    )


@triton.jit
def write_heads_at(heads, i, stride: tl.constexpr, shape: tl.constexpr):
    i_word = i * (stride if stride else shape.W * shape.M)
    return WriteHeads(erase=heads.erase + i_word, add=heads.add + i_word)


@triton.jit
def load_numbers(p, shape: tl.constexpr, block: tl.constexpr):
    """One number of each head."""
    i_h = tl.arange(0, block.H)
    return load(p + i_h, i_h < shape.H, block.dtype)


@triton.jit
def activate_strength(p, shape: tl.constexpr, block: tl.constexpr, RAW: tl.constexpr):
    value = load_numbers(p, shape, block)
    return math.softplus(value) if RAW else value


@triton.jit
def activate_gate(p, shape: tl.constexpr, block: tl.constexpr, RAW: tl.constexpr):
    value = load_numbers(p, shape, block)
    return math.sigmoid(value) if RAW else value


@triton.jit
def activate_sharpening(p, shape: tl.constexpr, block: tl.constexpr, RAW: tl.constexpr):
    value = load_numbers(p, shape, block)
    return 1.0 + math.softplus(value) if RAW else value


@triton.jit
def activate_shift(p, shape: tl.constexpr, block: tl.constexpr, RAW: tl.constexpr):
    i_s = tl.arange(0, block.S)
    taps = load_rows(p, tl.arange(0, block.H), i_s, shape.H, shape.S, block.dtype)
    return math.softmax(taps, (i_s < shape.S)[None, :]) if RAW else taps


@triton.jit
def activate_erase(p, i_m, shape: tl.constexpr, RAW: tl.constexpr, dtype: tl.constexpr):
    """The erase vector of one head."""
    value = load(p + i_m, i_m < shape.M, dtype)
    return math.sigmoid(value) if RAW else value


# Slopes come from the raw numbers: ``1 - sigmoid(x)`` would lose all digits where the sigmoid is
# nearly 1, and ``sigmoid(-x)`` loses none.


@triton.jit
def activate_backward_softplus(
    p, p_d, d_value, shape: tl.constexpr, block: tl.constexpr, RAW: tl.constexpr
):
    """Stores the gradient of the strength or of the sharpening."""
    if RAW:
        d_value *= math.sigmoid(load_numbers(p, shape, block))
    i_h = tl.arange(0, block.H)
    tl.store(p_d + i_h, d_value, mask=i_h < shape.H)


@triton.jit
def activate_backward_gate(
    p, p_d, d_gate, shape: tl.constexpr, block: tl.constexpr, RAW: tl.constexpr
):
    """Stores the gradient of the gate."""
    if RAW:
        raw = load_numbers(p, shape, block)
        d_gate *= math.sigmoid(raw) * math.sigmoid(-raw)
    i_h = tl.arange(0, block.H)
    tl.store(p_d + i_h, d_gate, mask=i_h < shape.H)


@triton.jit
def activate_backward_shift(
    taps, p_d, d_taps, shape: tl.constexpr, block: tl.constexpr, RAW: tl.constexpr
):
    """Stores the gradient of the taps, which are ``taps`` after activation."""
    if RAW:
        d_taps = taps * (d_taps - tl.sum(d_taps * taps, 1)[:, None])
    i_h, i_s = tl.arange(0, block.H), tl.arange(0, block.S)
    inside = (i_h[:, None] < shape.H) & (i_s[None, :] < shape.S)
    tl.store(p_d + i_h[:, None] * shape.S + i_s[None, :], d_taps, mask=inside)


@triton.jit
def activate_backward_erase(p, i_m, erase, d_erase, shape: tl.constexpr, RAW: tl.constexpr):
    """The gradient of one head's erase vector, which is ``erase`` after activation."""
    if RAW:
        raw = load(p + i_m, i_m < shape.M, erase.dtype)
        d_erase *= erase * math.sigmoid(-raw)
    return d_erase
