"""``step``: one program per sequence, the memory and all weightings in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import stages
from ntm_kernels.backends.triton.records import Heads


@triton.jit
def groups(p, R: tl.constexpr, W: tl.constexpr, M: tl.constexpr, S: tl.constexpr):
    """Where the groups of an interface vector begin."""
    H: tl.constexpr = R + W
    p_strength = p + H * M
    p_gate = p_strength + H
    p_shift = p_gate + H
    p_sharpening = p_shift + H * S
    p_erase = p_sharpening + H
    p_add = p_erase + W * M
    return Heads(p, p_strength, p_gate, p_shift, p_sharpening, p_erase, p_add)


@triton.jit
def step(
    memory,
    previous,
    p_interface,
    p_read_vectors,
    p_copy,
    R: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    S: tl.constexpr,
    BH: tl.constexpr,
    BS: tl.constexpr,
):
    """Memory and weightings after the step; stores the read vectors."""
    heads = groups(p_interface, R, W, M, S)
    found = stages.address(memory, previous, heads, R + W, N, M, S, BH, BS, True)
    weightings = found.weightings
    stages.read(memory, weightings, p_read_vectors, p_copy, False, R, M)
    return stages.write(memory, weightings, heads.erase, heads.add, R, W, M, True), weightings


@triton.jit
def step_backward(
    d_memory,
    d_weightings,
    memory,
    weightings,
    previous,
    p_interface,
    p_d_read_vectors,
    p_d_more,
    p_d_interface,
    R: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    S: tl.constexpr,
    BH: tl.constexpr,
    BS: tl.constexpr,
):
    """Gradients of the memory and the previous weightings; stores that of the interface vector.

    Write and read come first, with the weightings that the step found: so nothing that addressing
    computes on the way to them takes registers beside theirs.
    """
    heads = groups(p_interface, R, W, M, S)
    d_heads = groups(p_d_interface, R, W, M, S)
    d_memory, d_weightings = stages.write_backward(
        d_memory,
        d_weightings,
        memory,
        weightings,
        heads.erase,
        heads.add,
        d_heads.erase,
        d_heads.add,
        False,
        R,
        W,
        M,
        True,
    )
    d_memory, d_weightings = stages.read_backward(
        d_memory, d_weightings, memory, weightings, p_d_read_vectors, p_d_more, R, M
    )
    return stages.address_backward(
        d_memory, d_weightings, memory, previous, heads, d_heads, R + W, N, M, S, BH, BS, True
    )


@triton.jit
def step_kernel(
    inputs,  # StepInputs
    outputs,  # StepOutputs
    R: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BS: tl.constexpr,
    ACC: tl.constexpr,
):
    H: tl.constexpr = R + W
    i_b = tl.program_id(0).to(tl.int64)
    i_h, i_n, i_m = tl.arange(0, BH), tl.arange(0, BN), tl.arange(0, BM)
    memory = stages.load_rows(inputs.memory + i_b * N * M, i_n, i_m, N, M, ACC)
    previous = stages.load_rows(inputs.previous_weightings + i_b * H * N, i_h, i_n, H, N, ACC)
    memory, weightings = step(
        memory,
        previous,
        inputs.interface + i_b * P,
        outputs.read_vectors + i_b * R * M,
        None,
        R,
        W,
        N,
        M,
        S,
        BH,
        BS,
    )
    stages.store_rows(outputs.memory + i_b * N * M, memory, i_n, i_m, N, M)
    stages.store_rows(outputs.weightings + i_b * H * N, weightings, i_h, i_n, H, N)


@triton.jit
def step_backward_kernel(
    grads,  # StepOutputs, each of which may lack
    inputs,  # StepInputs
    outputs,  # StepOutputs, the weightings alone
    d_inputs,  # StepInputs
    R: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BS: tl.constexpr,
    ACC: tl.constexpr,
):
    H: tl.constexpr = R + W
    i_b = tl.program_id(0).to(tl.int64)
    i_h, i_n, i_m = tl.arange(0, BH), tl.arange(0, BN), tl.arange(0, BM)
    memory = stages.load_rows(inputs.memory + i_b * N * M, i_n, i_m, N, M, ACC)
    previous = stages.load_rows(inputs.previous_weightings + i_b * H * N, i_h, i_n, H, N, ACC)
    if outputs.weightings.dtype.element_ty == ACC:
        weightings = stages.load_rows(outputs.weightings + i_b * H * N, i_h, i_n, H, N, ACC)
    else:  # rounded when they were stored
        heads = groups(inputs.interface + i_b * P, R, W, M, S)
        found = stages.address(memory, previous, heads, H, N, M, S, BH, BS, True)
        weightings = found.weightings
    d_memory, d_weightings = tl.zeros_like(memory), tl.zeros_like(previous)
    if grads.memory is not None:
        d_memory = stages.load_rows(grads.memory + i_b * N * M, i_n, i_m, N, M, ACC)
    if grads.weightings is not None:
        d_weightings = stages.load_rows(grads.weightings + i_b * H * N, i_h, i_n, H, N, ACC)
    p_d_read_vectors = grads.read_vectors
    if p_d_read_vectors is not None:
        p_d_read_vectors += i_b * R * M
    d_memory, d_previous = step_backward(
        d_memory,
        d_weightings,
        memory,
        weightings,
        previous,
        inputs.interface + i_b * P,
        p_d_read_vectors,
        None,
        d_inputs.interface + i_b * P,
        R,
        W,
        N,
        M,
        S,
        BH,
        BS,
    )
    stages.store_rows(d_inputs.memory + i_b * N * M, d_memory, i_n, i_m, N, M)
    stages.store_rows(d_inputs.previous_weightings + i_b * H * N, d_previous, i_h, i_n, H, N)
