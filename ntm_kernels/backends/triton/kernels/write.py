"""``write``: one program per sequence, the memory in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import stages


@triton.jit
def write_kernel(
    inputs,  # WriteInputs
    outputs,  # WriteOutputs
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
    memory = stages.load_rows(inputs.memory + i_b * N * M, i_n, i_m, N, M, ACC)
    weightings = stages.load_rows(inputs.weightings + i_b * W * N, i_h, i_n, W, N, ACC)
    memory = stages.write(
        memory, weightings, inputs.erase + i_b * W * M, inputs.add + i_b * W * M, 0, W, M, False
    )
    stages.store_rows(outputs.memory + i_b * N * M, memory, i_n, i_m, N, M)


@triton.jit
def write_backward_kernel(
    grads,  # WriteOutputs
    inputs,  # WriteInputs
    outputs,  # WriteOutputs, of which none is kept
    d_inputs,  # WriteInputs
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
    memory = stages.load_rows(inputs.memory + i_b * N * M, i_n, i_m, N, M, ACC)
    d_memory = stages.load_rows(grads.memory + i_b * N * M, i_n, i_m, N, M, ACC)
    weightings = stages.load_rows(inputs.weightings + i_b * W * N, i_h, i_n, W, N, ACC)
    d_memory, d_weightings = stages.write_backward(
        d_memory,
        tl.zeros_like(weightings),
        memory,
        weightings,
        inputs.erase + i_b * W * M,
        inputs.add + i_b * W * M,
        d_inputs.erase + i_b * W * M,
        d_inputs.add + i_b * W * M,
        False,
        0,
        W,
        M,
        False,
    )
    stages.store_rows(d_inputs.memory + i_b * N * M, d_memory, i_n, i_m, N, M)
    stages.store_rows(d_inputs.weightings + i_b * W * N, d_weightings, i_h, i_n, W, N)
