"""``address``: one program per sequence, the memory and all weightings in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import stages
from ntm_kernels.backends.triton.records import Heads


@triton.jit
def address_kernel(
    inputs,  # AddressInputs
    outputs,  # AddressOutputs
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
    memory = stages.load_rows(inputs.memory + i_b * N * M, i_n, i_m, N, M, ACC)
    previous = stages.load_rows(inputs.previous_weightings + i_b * H * N, i_h, i_n, H, N, ACC)
    heads = Heads(
        key=inputs.key + i_b * H * M,
        strength=inputs.strength + i_b * H,
        gate=inputs.gate + i_b * H,
        shift=inputs.shift + i_b * H * S,
        sharpening=inputs.sharpening + i_b * H,
        erase=None,
        add=None,
    )
    found = stages.address(memory, previous, heads, H, N, M, S, BH, BS, False)
    stages.store_rows(outputs.weightings + i_b * H * N, found.weightings, i_h, i_n, H, N)


@triton.jit
def address_backward_kernel(
    grads,  # AddressOutputs
    inputs,  # AddressInputs
    outputs,  # AddressOutputs, of which none is kept
    d_inputs,  # AddressInputs
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
    memory = stages.load_rows(inputs.memory + i_b * N * M, i_n, i_m, N, M, ACC)
    previous = stages.load_rows(inputs.previous_weightings + i_b * H * N, i_h, i_n, H, N, ACC)
    d_weightings = stages.load_rows(grads.weightings + i_b * H * N, i_h, i_n, H, N, ACC)
    heads = Heads(
        key=inputs.key + i_b * H * M,
        strength=inputs.strength + i_b * H,
        gate=inputs.gate + i_b * H,
        shift=inputs.shift + i_b * H * S,
        sharpening=inputs.sharpening + i_b * H,
        erase=None,
        add=None,
    )
    d_heads = Heads(
        key=d_inputs.key + i_b * H * M,
        strength=d_inputs.strength + i_b * H,
        gate=d_inputs.gate + i_b * H,
        shift=d_inputs.shift + i_b * H * S,
        sharpening=d_inputs.sharpening + i_b * H,
        erase=None,
        add=None,
    )
    d_memory = tl.zeros_like(memory)
    d_memory, d_previous = stages.address_backward(
        d_memory, d_weightings, memory, previous, heads, d_heads, H, N, M, S, BH, BS, False
    )
    stages.store_rows(d_inputs.memory + i_b * N * M, d_memory, i_n, i_m, N, M)
    stages.store_rows(d_inputs.previous_weightings + i_b * H * N, d_previous, i_h, i_n, H, N)
