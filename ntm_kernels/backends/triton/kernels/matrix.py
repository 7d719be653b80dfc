"""Products of one of a linear layer's matrices with a vector.

The matrix comes from global memory, ``block.K`` columns (or rows) at a time; the caller has a block
of rows (or columns) of it, and the products stay in registers.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels.access import load


@triton.jit
def matvec(total, p_matrix, stride, p_vector, size, i_row, row_inside, block: tl.constexpr):
    """``total`` plus the product of the rows ``i_row`` with a vector of ``size``.

    ``stride`` lies between two rows; it is more than ``size`` where only some columns are meant.
    """
    for k in range(0, size, block.K):
        i_k = k + tl.arange(0, block.K)
        vector = load(p_vector + i_k, i_k < size, total.dtype)
        inside = row_inside[:, None] & (i_k < size)[None, :]
        part = load(p_matrix + i_row[:, None] * stride + i_k[None, :], inside, total.dtype)
        total += tl.sum(part * vector[None, :], 1)
    return total


@triton.jit
def vecmat(total, p_matrix, stride, p_vector, size, i_column, column_inside, block: tl.constexpr):
    """``total`` plus the product of a vector of ``size`` with the columns ``i_column``."""
    for k in range(0, size, block.K):
        i_k = k + tl.arange(0, block.K)
        vector = load(p_vector + i_k, i_k < size, total.dtype)
        inside = (i_k < size)[:, None] & column_inside[None, :]
        part = load(p_matrix + i_k[:, None] * stride + i_column[None, :], inside, total.dtype)
        total += tl.sum(vector[:, None] * part, 0)
    return total
