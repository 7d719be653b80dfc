"""``read``: one program per sequence, the memory in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import access
from ntm_kernels.backends.triton.kernels.memory import read, read_backward


@triton.jit
def read_kernel(
    inputs,  # ReadInputs
    outputs,  # ReadOutputs
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    memory = access.load_memory(inputs.memory, i_b, shape, block)
    weightings = access.load_weightings(inputs.weightings, i_b, shape, block)
    p_read_vectors = outputs.read_vectors + i_b * shape.R * shape.M
    read(memory, weightings, p_read_vectors, None, False, shape)


@triton.jit
def read_backward_kernel(
    grads,  # ReadOutputs
    inputs,  # ReadInputs
    outputs,  # ReadOutputs, of which none is kept
    d_inputs,  # ReadInputs
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    memory = access.load_memory(inputs.memory, i_b, shape, block)
    weightings = access.load_weightings(inputs.weightings, i_b, shape, block)
    d_memory, d_weightings = read_backward(
        tl.zeros_like(memory),
        tl.zeros_like(weightings),
        memory,
        weightings,
        grads.read_vectors + i_b * shape.R * shape.M,
        None,
        shape,
    )
    access.store_memory(d_inputs.memory, i_b, d_memory, shape)
    access.store_weightings(d_inputs.weightings, i_b, d_weightings, shape)
