"""``read``: one program per sequence, the memory in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import stages


@triton.jit
def read_kernel(
    inputs,  # ReadInputs
    outputs,  # ReadOutputs
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
    memory = stages.load_rows(inputs.memory + i_b * N * M, i_n, i_m, N, M, ACC)
    weightings = stages.load_rows(inputs.weightings + i_b * R * N, i_h, i_n, R, N, ACC)
    stages.read(memory, weightings, outputs.read_vectors + i_b * R * M, None, False, R, M)


@triton.jit
def read_backward_kernel(
    grads,  # ReadOutputs
    inputs,  # ReadInputs
    outputs,  # ReadOutputs, of which none is kept
    d_inputs,  # ReadInputs
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
    memory = stages.load_rows(inputs.memory + i_b * N * M, i_n, i_m, N, M, ACC)
    weightings = stages.load_rows(inputs.weightings + i_b * R * N, i_h, i_n, R, N, ACC)
    d_memory, d_weightings = stages.read_backward(
        tl.zeros_like(memory),
        tl.zeros_like(weightings),
        memory,
        weightings,
        grads.read_vectors + i_b * R * M,
        None,
        R,
        M,
    )
    stages.store_rows(d_inputs.memory + i_b * N * M, d_memory, i_n, i_m, N, M)
    stages.store_rows(d_inputs.weightings + i_b * R * N, d_weightings, i_h, i_n, R, N)
