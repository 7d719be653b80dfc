"""Loads and stores of blocks, and single rows and columns of a block.

Every load converts to the arithmetic dtype at once, on the GPU for accuracy, and because Triton's
interpreter computes wrong results in bfloat16.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

# Sizes of new blocks are parameters, since Triton 3.6 refuses a field of a record inside of a list.


@triton.jit
def zeros(size: tl.constexpr, dtype: tl.constexpr):
    return tl.zeros([size], dtype)


@triton.jit
def zero_rows(rows: tl.constexpr, columns: tl.constexpr, dtype: tl.constexpr):
    return tl.zeros([rows, columns], dtype)


@triton.jit
def load(p, mask, dtype: tl.constexpr):
    return tl.load(p, mask=mask, other=0.0).to(dtype)


@triton.jit
def store(p, value, mask, seen):
    """Store ``value``; add it to what is there if ``seen``."""
    if seen:
        value += load(p, mask, value.dtype)
    tl.store(p, value, mask=mask)


@triton.jit
def load_rows(p, i_row, i_column, rows, columns, dtype: tl.constexpr):
    """A block of the matrix ``[rows, columns]`` that begins at ``p``."""
    inside = (i_row[:, None] < rows) & (i_column[None, :] < columns)
    return load(p + i_row[:, None] * columns + i_column[None, :], inside, dtype)


@triton.jit
def store_rows(p, value, i_row, i_column, rows, columns):
    inside = (i_row[:, None] < rows) & (i_column[None, :] < columns)
    tl.store(p + i_row[:, None] * columns + i_column[None, :], value, mask=inside)


@triton.jit
def load_memory(p, i, shape: tl.constexpr, block: tl.constexpr):
    """The whole memory number ``i`` of a tensor of memories."""
    i_n, i_m = tl.arange(0, block.N), tl.arange(0, block.M)
    p += i * shape.N * shape.M
    return load_rows(p, i_n, i_m, shape.N, shape.M, block.dtype)


@triton.jit
def store_memory(p, i, memory, shape: tl.constexpr):
    i_n, i_m = tl.arange(0, memory.shape[0]), tl.arange(0, memory.shape[1])
    store_rows(p + i * shape.N * shape.M, memory, i_n, i_m, shape.N, shape.M)


@triton.jit
def load_weightings(p, i, shape: tl.constexpr, block: tl.constexpr):
    """The weightings of all heads, number ``i`` of a tensor ``[..., H, N]``."""
    i_h, i_n = tl.arange(0, block.H), tl.arange(0, block.N)
    p += i * shape.H * shape.N
    return load_rows(p, i_h, i_n, shape.H, shape.N, block.dtype)


@triton.jit
def store_weightings(p, i, weightings, shape: tl.constexpr):
    i_h, i_n = tl.arange(0, weightings.shape[0]), tl.arange(0, weightings.shape[1])
    store_rows(p + i * shape.H * shape.N, weightings, i_h, i_n, shape.H, shape.N)


@triton.jit
def fill_zero(p, size, block: tl.constexpr):
    """``size`` elements from ``p`` on become 0, ``block.K`` at a time."""
    for i in range(0, size, block.K):
        index = i + tl.arange(0, block.K)
        tl.store(p + index, zeros(block.K, block.dtype), mask=index < size)


@triton.jit
def copy(p_to, p_from, size, block: tl.constexpr):
    """Copies ``size`` elements, ``block.K`` at a time."""
    for i in range(0, size, block.K):
        index = i + tl.arange(0, block.K)
        tl.store(p_to + index, load(p_from + index, index < size, block.dtype), mask=index < size)


@triton.jit
def move(p_to, p_from, size, block: tl.constexpr):
    """Adds ``size`` elements from ``p_from`` on to those at ``p_to``; the former become 0."""
    for i in range(0, size, block.K):
        index = i + tl.arange(0, block.K)
        inside = index < size
        store(p_to + index, load(p_from + index, inside, block.dtype), inside, True)
        tl.store(p_from + index, zeros(block.K, block.dtype), mask=inside)


@triton.jit
def row(x, i):
    """Row ``i`` of a block. A program cannot index registers, so it adds up all rows, the others
    as 0."""
    i_row = tl.arange(0, x.shape[0])
    return tl.sum(tl.where(i_row[:, None] == i, x, 0.0), 0)


@triton.jit
def column(x, i):
    """Column ``i`` of a block."""
    i_column = tl.arange(0, x.shape[1])
    return tl.sum(tl.where(i_column[None, :] == i, x, 0.0), 1)


@triton.jit
def with_row(x, i, values):
    """The block with ``values`` as row ``i``."""
    i_row = tl.arange(0, x.shape[0])
    return tl.where(i_row[:, None] == i, values[None, :], x)


@triton.jit
def with_column(x, i, values):
    """The block with ``values`` as column ``i``."""
    i_column = tl.arange(0, x.shape[1])
    return tl.where(i_column[None, :] == i, values[:, None], x)
