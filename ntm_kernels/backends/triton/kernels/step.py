"""``step``: one program per sequence, the memory and all weightings in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import access, addressing, interface
from ntm_kernels.backends.triton.kernels.memory import read_write, read_write_backward


@triton.jit
def step_kernel(
    inputs,  # StepInputs
    outputs,  # StepOutputs
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    memory = access.load_memory(inputs.memory, i_b, shape, block)
    previous = access.load_weightings(inputs.previous_weightings, i_b, shape, block)
    heads = interface.heads_in(inputs.interface + i_b * shape.P, shape)
    weightings = addressing.address(memory, previous, heads, shape, block, True).weightings
    p_read_vectors = outputs.read_vectors + i_b * shape.R * shape.M
    memory = read_write(memory, weightings, heads, p_read_vectors, None, shape)
    access.store_memory(outputs.memory, i_b, memory, shape)
    access.store_weightings(outputs.weightings, i_b, weightings, shape)


@triton.jit
def step_backward_kernel(
    grads,  # StepOutputs, each of which may be None
    inputs,  # StepInputs
    outputs,  # StepOutputs, the weightings alone
    d_inputs,  # StepInputs
    shape: tl.constexpr,
    block: tl.constexpr,
):
    """Read and write come first, with the weightings that the forward found. Nothing that
    addressing computes on the way to them is in registers yet."""
    i_b = tl.program_id(0).to(tl.int64)
    memory = access.load_memory(inputs.memory, i_b, shape, block)
    previous = access.load_weightings(inputs.previous_weightings, i_b, shape, block)
    heads = interface.heads_in(inputs.interface + i_b * shape.P, shape)
    d_heads = interface.heads_in(d_inputs.interface + i_b * shape.P, shape)
    if outputs.weightings.dtype.element_ty == block.dtype:
        weightings = access.load_weightings(outputs.weightings, i_b, shape, block)
    else:  # They were rounded when they were stored.
        weightings = addressing.address(memory, previous, heads, shape, block, True).weightings
    d_memory, d_weightings = tl.zeros_like(memory), tl.zeros_like(previous)
    if grads.memory is not None:
        d_memory = access.load_memory(grads.memory, i_b, shape, block)
    if grads.weightings is not None:
        d_weightings = access.load_weightings(grads.weightings, i_b, shape, block)
    p_d_read_vectors = grads.read_vectors
    if p_d_read_vectors is not None:
        p_d_read_vectors += i_b * shape.R * shape.M
    d_memory, d_weightings = read_write_backward(
        d_memory,
        d_weightings,
        memory,
        weightings,
        heads,
        d_heads,
        p_d_read_vectors,
        None,
        shape,
    )
    d_memory, d_previous = addressing.address_backward(
        d_memory, d_weightings, memory, previous, heads, d_heads, shape, block, True
    )
    access.store_memory(d_inputs.memory, i_b, d_memory, shape)
    access.store_weightings(d_inputs.previous_weightings, i_b, d_previous, shape)
