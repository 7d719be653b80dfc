"""``read``: one program per sequence, the memory in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton import stages


@triton.jit
def read_kernel(
    p_memory,  # [B, N, M]
    p_weightings,  # [B, R, N]
    p_reads,  # [B, R, M]
    R: tl.constexpr,
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
    weightings = stages.load_rows(p_weightings + i_b * R * N, i_h, i_n, R, N, ACC)
    stages.read(memory, weightings, p_reads + i_b * R * M, None, False, R, M)


@triton.jit
def read_backward_kernel(
    p_d_reads,  # [B, R, M]
    p_memory,  # [B, N, M]
    p_weightings,  # [B, R, N]
    p_d_memory,
    p_d_weightings,
    R: tl.constexpr,
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
    weightings = stages.load_rows(p_weightings + i_b * R * N, i_h, i_n, R, N, ACC)
    d_memory, d_weightings = stages.read_backward(
        tl.zeros_like(memory),
        tl.zeros_like(weightings),
        memory,
        weightings,
        p_d_reads + i_b * R * M,
        None,
        R,
        M,
    )
    stages.store_rows(p_d_memory + i_b * N * M, d_memory, i_n, i_m, N, M)
    stages.store_rows(p_d_weightings + i_b * R * N, d_weightings, i_h, i_n, R, N)
