"""``write``: one program per sequence, the memory in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import access
from ntm_kernels.backends.triton.kernels.interface import write_heads_at
from ntm_kernels.backends.triton.kernels.memory import write, write_backward


@triton.jit
def write_kernel(
    inputs,  # WriteInputs
    outputs,  # WriteOutputs
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    memory = access.load_memory(inputs.memory, i_b, shape, block)
    weightings = access.load_weightings(inputs.weightings, i_b, shape, block)
    memory = write(memory, weightings, write_heads_at(inputs, i_b, 0, shape), shape, False)
    access.store_memory(outputs.memory, i_b, memory, shape)


@triton.jit
def write_backward_kernel(
    grads,  # WriteOutputs
    inputs,  # WriteInputs
    outputs,  # WriteOutputs, of which none is kept
    d_inputs,  # WriteInputs
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    memory = access.load_memory(inputs.memory, i_b, shape, block)
    d_memory = access.load_memory(grads.memory, i_b, shape, block)
    weightings = access.load_weightings(inputs.weightings, i_b, shape, block)
    d_memory, d_weightings = write_backward(
        d_memory,
        tl.zeros_like(weightings),
        memory,
        weightings,
        write_heads_at(inputs, i_b, 0, shape),
        write_heads_at(d_inputs, i_b, 0, shape),
        False,
        shape,
        False,
    )
    access.store_memory(d_inputs.memory, i_b, d_memory, shape)
    access.store_weightings(d_inputs.weightings, i_b, d_weightings, shape)
