"""Reading from the memory and writing to it, equations 2 to 4, on blocks in registers.

``weightings`` are those of all heads; the heads that read come first. One head after the other
meets the memory: a block of heads, rows and elements would not fit in registers.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import interface
from ntm_kernels.backends.triton.kernels.access import load, row, store, with_row


@triton.jit
def read(memory, weightings, p_read_vectors, p_copy, seen, shape: tl.constexpr):
    """Stores ``r = Σ_i w_i M_i`` of each head that reads, added to what is there if ``seen``.

    ``p_copy`` is where to store it a second time, or ``None``.
    """
    i_m = tl.arange(0, memory.shape[1])
    for h in range(shape.R):
        vector = tl.sum(row(weightings, h)[:, None] * memory, 0)
        store(p_read_vectors + h * shape.M + i_m, vector, i_m < shape.M, seen)
        if p_copy is not None:
            tl.store(p_copy + h * shape.M + i_m, vector, mask=i_m < shape.M)


@triton.jit
def read_backward(
    d_memory, d_weightings, memory, weightings, p_d_read_vectors, p_d_more, shape: tl.constexpr
):
    """Adds to the gradients of memory and weightings.

    The gradient of the read vectors is the sum of two; each may be ``None``, which stands for 0.
    """
    i_m = tl.arange(0, memory.shape[1])
    for h in range(shape.R):
        d_read = tl.zeros([memory.shape[1]], memory.dtype)
        if p_d_read_vectors is not None:
            d_read += load(p_d_read_vectors + h * shape.M + i_m, i_m < shape.M, memory.dtype)
        if p_d_more is not None:
            d_read += load(p_d_more + h * shape.M + i_m, i_m < shape.M, memory.dtype)
        d_memory += row(weightings, h)[:, None] * d_read[None, :]
        d_row = row(d_weightings, h) + tl.sum(memory * d_read[None, :], 1)
        d_weightings = with_row(d_weightings, h, d_row)
    return d_memory, d_weightings


@triton.jit
def retention(weightings, h, p_erase, i_m, shape: tl.constexpr, RAW: tl.constexpr):
    """``1 − w e`` of write head ``h``: what is left of the memory after its erasing."""
    dtype: tl.constexpr = weightings.dtype
    erase = interface.activate_erase(p_erase + h * shape.M, i_m, shape, RAW, dtype)
    return 1.0 - row(weightings, shape.R + h)[:, None] * erase[None, :]


@triton.jit
def write(memory, weightings, heads, shape: tl.constexpr, RAW: tl.constexpr):
    """``M_i ∘ Π_h (1 − w_{h,i} e_h) + Σ_h w_{h,i} a_h`` over the heads that write."""
    i_m = tl.arange(0, memory.shape[1])
    for h in range(shape.W):
        memory *= retention(weightings, h, heads.erase, i_m, shape, RAW)
    for h in range(shape.W):
        add = load(heads.add + h * shape.M + i_m, i_m < shape.M, memory.dtype)
        memory += row(weightings, shape.R + h)[:, None] * add[None, :]
    return memory


@triton.jit
def write_backward(
    d_memory,
    d_weightings,
    memory,
    weightings,
    heads,
    d_heads,
    seen,
    shape: tl.constexpr,
    RAW: tl.constexpr,
):
    """The gradient of the memory, and that of the weightings added to theirs. Stores those of erase
    and add, added to what is there if ``seen``.

    The gradient by one head's ``1 − w e`` has the product of all the other heads' as a factor. That
    is multiplied anew for each head. Dividing one head out of the whole product would fail where
    ``w e`` is 1, and keeping the products of the first heads would take, for each head, a block of
    the memory's size.
    """
    i_m = tl.arange(0, memory.shape[1])
    inside = i_m < shape.M
    d_retained = d_memory * memory
    for h in range(shape.W):
        i_word = h * shape.M + i_m
        weighting = row(weightings, shape.R + h)
        erase = interface.activate_erase(heads.erase + h * shape.M, i_m, shape, RAW, memory.dtype)
        add = load(heads.add + i_word, inside, memory.dtype)
        others = d_retained
        if shape.W > 1:
            for j in range(shape.W):
                other = retention(weightings, j, heads.erase, i_m, shape, RAW)
                others *= tl.where(j == h, 1.0, other)
        d_row = tl.sum(add[None, :] * d_memory - erase[None, :] * others, 1)
        d_row += row(d_weightings, shape.R + h)
        d_weightings = with_row(d_weightings, shape.R + h, d_row)
        d_erase = -tl.sum(weighting[:, None] * others, 0)
        d_erase = interface.activate_backward_erase(
            heads.erase + h * shape.M, i_m, erase, d_erase, shape, RAW
        )
        store(d_heads.erase + i_word, d_erase, inside, seen)
        d_add = tl.sum(weighting[:, None] * d_memory, 0)
        store(d_heads.add + i_word, d_add, inside, seen)
    for h in range(shape.W):
        d_memory *= retention(weightings, h, heads.erase, i_m, shape, RAW)
    return d_memory, d_weightings


@triton.jit
def read_write(memory, weightings, heads, p_read_vectors, p_copy, shape: tl.constexpr):
    """The memory after a step. Stores the read vectors, of the memory before the step."""
    read(memory, weightings, p_read_vectors, p_copy, False, shape)
    return write(memory, weightings, heads, shape, True)


@triton.jit
def read_write_backward(
    d_memory,
    d_weightings,
    memory,
    weightings,
    heads,
    d_heads,
    p_d_read_vectors,
    p_d_more,
    shape: tl.constexpr,
):
    """The gradient of the memory before the step, but for its part by addressing, and that of the
    weightings. Stores those of erase and add."""
    d_memory, d_weightings = write_backward(
        d_memory, d_weightings, memory, weightings, heads, d_heads, False, shape, True
    )
    return read_backward(
        d_memory, d_weightings, memory, weightings, p_d_read_vectors, p_d_more, shape
    )
