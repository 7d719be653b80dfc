"""``write``: one program per sequence, the memory in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton import stages


@triton.jit
def write_kernel(
    p_memory,  # [B, N, M]
    p_weightings,  # [B, W, N]
    p_erase,  # [B, W, M]
    p_add,  # [B, W, M]
    p_written,  # [B, N, M]
    W: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    ACC: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    i_h, i_n, i_m = tl.arange(0, BH), tl.arange(0, BN), tl.arange(0, BM)
    memory = stages.load_rows(p_memory + i_b * N * M, i_n, i_m, N, M, ACC)
    weightings = stages.load_rows(p_weightings + i_b * W * N, i_h, i_n, W, N, ACC)
    memory = stages.write(
        memory, weightings, p_erase + i_b * W * M, p_add + i_b * W * M, 0, W, M, False
    )
    stages.store_rows(p_written + i_b * N * M, memory, i_n, i_m, N, M)


@triton.jit
def write_backward_kernel(
    p_d_written,  # [B, N, M]
    p_memory,  # [B, N, M]
    p_weightings,  # [B, W, N]
    p_erase,  # [B, W, M]
    p_add,  # [B, W, M]
    p_d_memory,
    p_d_weightings,
    p_d_erase,
    p_d_add,
    W: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    ACC: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    i_h, i_n, i_m = tl.arange(0, BH), tl.arange(0, BN), tl.arange(0, BM)
    memory = stages.load_rows(p_memory + i_b * N * M, i_n, i_m, N, M, ACC)
    d_memory = stages.load_rows(p_d_written + i_b * N * M, i_n, i_m, N, M, ACC)
    weightings = stages.load_rows(p_weightings + i_b * W * N, i_h, i_n, W, N, ACC)
    d_memory, d_weightings = stages.write_backward(
        d_memory,
        tl.zeros_like(weightings),
        memory,
        weightings,
        p_erase + i_b * W * M,
        p_add + i_b * W * M,
        p_d_erase + i_b * W * M,
        p_d_add + i_b * W * M,
        False,
        0,
        W,
        M,
        False,
    )
    stages.store_rows(p_d_memory + i_b * N * M, d_memory, i_n, i_m, N, M)
    stages.store_rows(p_d_weightings + i_b * W * N, d_weightings, i_h, i_n, W, N)
