"""``address``: one program per sequence, the memory and all weightings in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import access
from ntm_kernels.backends.triton.kernels.addressing import address, address_backward
from ntm_kernels.backends.triton.kernels.interface import address_heads_at


@triton.jit
def address_kernel(
    inputs,  # AddressInputs
    outputs,  # AddressOutputs
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    memory = access.load_memory(inputs.memory, i_b, shape, block)
    previous = access.load_weightings(inputs.previous_weightings, i_b, shape, block)
    heads = address_heads_at(inputs, i_b, 0, shape)
    found = address(memory, previous, heads, shape, block, False)
    access.store_weightings(outputs.weightings, i_b, found.weightings, shape)


@triton.jit
def address_backward_kernel(
    grads,  # AddressOutputs
    inputs,  # AddressInputs
    outputs,  # AddressOutputs, of which none is kept
    d_inputs,  # AddressInputs
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    memory = access.load_memory(inputs.memory, i_b, shape, block)
    previous = access.load_weightings(inputs.previous_weightings, i_b, shape, block)
    d_weightings = access.load_weightings(grads.weightings, i_b, shape, block)
    d_memory, d_previous = address_backward(
        tl.zeros_like(memory),
        d_weightings,
        memory,
        previous,
        address_heads_at(inputs, i_b, 0, shape),
        address_heads_at(d_inputs, i_b, 0, shape),
        shape,
        block,
        False,
    )
    access.store_memory(d_inputs.memory, i_b, d_memory, shape)
    access.store_weightings(d_inputs.previous_weightings, i_b, d_previous, shape)
