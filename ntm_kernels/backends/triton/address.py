"""``address``: one program per sequence, the memory and all weightings in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton import stages


@triton.jit
def address_kernel(
    p_memory,  # [B, N, M]
    p_key,  # [B, H, M]
    p_strength,  # [B, H]
    p_gate,  # [B, H]
    p_shift,  # [B, H, S]
    p_sharpening,  # [B, H]
    p_previous,  # [B, H, N]
    p_weightings,  # [B, H, N]
    H: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    S: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BS: tl.constexpr,
    ACC: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    i_h, i_n, i_m = tl.arange(0, BH), tl.arange(0, BN), tl.arange(0, BM)
    memory = stages.load_rows(p_memory + i_b * N * M, i_n, i_m, N, M, ACC)
    previous = stages.load_rows(p_previous + i_b * H * N, i_h, i_n, H, N, ACC)
    heads = (
        p_key + i_b * H * M,
        p_strength + i_b * H,
        p_gate + i_b * H,
        p_shift + i_b * H * S,
        p_sharpening + i_b * H,
    )
    weightings = stages.address(memory, previous, heads, H, N, M, S, BH, BS, False)[0]
    stages.store_rows(p_weightings + i_b * H * N, weightings, i_h, i_n, H, N)


@triton.jit
def address_backward_kernel(
    p_d_weightings,  # [B, H, N]
    p_memory,  # [B, N, M]
    p_key,  # [B, H, M]
    p_strength,  # [B, H]
    p_gate,  # [B, H]
    p_shift,  # [B, H, S]
    p_sharpening,  # [B, H]
    p_previous,  # [B, H, N]
    p_d_memory,
    p_d_key,
    p_d_strength,
    p_d_gate,
    p_d_shift,
    p_d_sharpening,
    p_d_previous,
    H: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    S: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BS: tl.constexpr,
    ACC: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    i_h, i_n, i_m = tl.arange(0, BH), tl.arange(0, BN), tl.arange(0, BM)
    memory = stages.load_rows(p_memory + i_b * N * M, i_n, i_m, N, M, ACC)
    previous = stages.load_rows(p_previous + i_b * H * N, i_h, i_n, H, N, ACC)
    d_weightings = stages.load_rows(p_d_weightings + i_b * H * N, i_h, i_n, H, N, ACC)
    heads = (
        p_key + i_b * H * M,
        p_strength + i_b * H,
        p_gate + i_b * H,
        p_shift + i_b * H * S,
        p_sharpening + i_b * H,
    )
    d_heads = (
        p_d_key + i_b * H * M,
        p_d_strength + i_b * H,
        p_d_gate + i_b * H,
        p_d_shift + i_b * H * S,
        p_d_sharpening + i_b * H,
    )
    d_memory = tl.zeros_like(memory)
    d_memory, d_previous = stages.address_backward(
        d_memory, d_weightings, memory, previous, heads, d_heads, H, N, M, S, BH, BS, False
    )
    stages.store_rows(p_d_memory + i_b * N * M, d_memory, i_n, i_m, N, M)
    stages.store_rows(p_d_previous + i_b * H * N, d_previous, i_h, i_n, H, N)
