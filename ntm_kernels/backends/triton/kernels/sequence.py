"""``sequence``: one persistent program per sequence, the memory in registers over all steps.

A program owns one sequence from its first step to its last. Memory and weightings stay in its
registers. All else that one stage hands to the next (hidden state, interface vector, read vectors)
goes through global memory of the sequence's own: a few hundred numbers that stay in the first-level
cache. A thread may read what another thread wrote only after a barrier, so there is one between any
two stages that communicate in this way.

The forward keeps the memory at checkpoints only. The backward takes the segments between two
checkpoints from the last to the first. It replays the writes of a segment, storing the memory
before each step in a scratch tensor, then walks back through these steps. It stores the gradients
of the controller's gates and of the interface vectors at every step. The gradients of all weights
are matrix products of these over all steps, which are left to torch.

At a step that is reset, the forward loads the initial state again. The backward adds the gradient
of the state before the step to that of the initial state, and gives the step before zeros.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import access, controller, interface
from ntm_kernels.backends.triton.kernels.addressing import address, address_backward
from ntm_kernels.backends.triton.kernels.controller import Carried, Now
from ntm_kernels.backends.triton.kernels.memory import read_write, read_write_backward, write

# One compilation serves sequences and batches of any length.
VARYING = ("T", "B", "every")


@triton.jit
def length_of(lengths, i_b, T):
    """The steps of a sequence. Nobody has checked ``lengths``, so its values are clamped."""
    if lengths is None:
        length = T
    else:
        length = tl.minimum(tl.maximum(tl.load(lengths + i_b), 0), T).to(tl.int32)
    return length


@triton.jit
def load_state(inputs, i_b, shape: tl.constexpr, block: tl.constexpr):
    """Memory and weightings before the first step."""
    memory = access.load_memory(inputs.initial_memory, i_b, shape, block)
    return memory, access.load_weightings(inputs.initial_weightings, i_b, shape, block)


@triton.jit
def restart(memory, weightings, inputs, state, now, shape: tl.constexpr, block: tl.constexpr):
    """The state before a step, which is the initial one if the step is reset."""
    if inputs.resets is not None and tl.load(inputs.resets + now.i_tb):
        memory, weightings = load_state(inputs, now.i_b, shape, block)
        controller.restart_controller(inputs, state, now, shape, block)
        tl.debug_barrier()  # The state that the controller reads is stored.
    return memory, weightings


@triton.jit
def store_state(outputs, i_b, memory, weightings, shape: tl.constexpr):
    access.store_memory(outputs.final_memory, i_b, memory, shape)
    access.store_weightings(outputs.final_weightings, i_b, weightings, shape)


@triton.jit
def clear_padding(
    outputs,
    kept,
    i_b,
    length,
    T,
    B,
    every,
    KEEP: tl.constexpr,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    """Beyond the length the outputs are 0, and nothing that is kept stays unset."""
    for t in range(length, T):
        i_tb = t * B + i_b
        read_size: tl.constexpr = shape.R * shape.M
        access.fill_zero(outputs.read_vectors + i_tb * read_size, read_size, block)
        if kept.weightings is not None:
            weightings_size: tl.constexpr = shape.H * shape.N
            access.fill_zero(kept.weightings + i_tb * weightings_size, weightings_size, block)
        if KEEP:
            access.fill_zero(kept.interface + i_tb * shape.P, shape.P, block)
        controller.clear_controller(outputs, kept, Now(i_b, i_tb, t, B), shape, block)
    if kept.checkpoints is not None:
        memory_size: tl.constexpr = shape.N * shape.M
        for i in range(tl.cdiv(length, every), tl.cdiv(T, every)):
            p_checkpoint = kept.checkpoints + (i * B + i_b) * memory_size
            access.fill_zero(p_checkpoint, memory_size, block)


@triton.jit(do_not_specialize=VARYING)
def sequence_kernel(
    inputs,  # SequenceInputs, x projected
    outputs,  # SequenceOutputs; final read vectors, hidden and cell hold the state before the step,
    # at first the initial one
    kept,  # Saved, None where it is not kept; interface is then [B, P] and lower_hidden [U, B, C],
    # of the present step
    T,
    B,
    every,
    KEEP: tl.constexpr,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    length = length_of(inputs.lengths, i_b, T)
    memory, weightings = load_state(inputs, i_b, shape, block)
    state = Carried(outputs.final_read_vectors, outputs.final_hidden, outputs.final_cell)
    p_state_read_vectors = state.read_vectors + i_b * shape.R * shape.M
    clear_padding(outputs, kept, i_b, length, T, B, every, KEEP, shape, block)
    for t in range(length):
        i_tb = t * B + i_b
        now = Now(i_b, i_tb, t, B)
        memory, weightings = restart(memory, weightings, inputs, state, now, shape, block)
        if kept.checkpoints is not None and t % every == 0:
            access.store_memory(kept.checkpoints, t // every * B + i_b, memory, shape)
        controller.controller_step(inputs, outputs, kept, state, now, shape, block)
        tl.debug_barrier()  # The new hidden state is stored, and the one before no longer needed.
        p_interface = kept.interface + (i_tb if KEEP else i_b) * shape.P
        p_hidden = outputs.hidden + i_tb * shape.C
        interface.interface_step(inputs, p_hidden, p_interface, shape, block)
        controller.carry_hidden(outputs, kept, state, now, shape, block)
        tl.debug_barrier()  # The interface vector is stored.
        heads = interface.heads_in(p_interface, shape)
        weightings = address(memory, weightings, heads, shape, block, True).weightings
        p_read_vectors = outputs.read_vectors + i_tb * shape.R * shape.M
        memory = read_write(memory, weightings, heads, p_read_vectors, p_state_read_vectors, shape)
        if kept.weightings is not None:
            access.store_weightings(kept.weightings, i_tb, weightings, shape)
        tl.debug_barrier()  # The read vectors are stored, for the next step's controller.
    store_state(outputs, i_b, memory, weightings, shape)


@triton.jit
def load_grads(grads, i_b, shape: tl.constexpr, block: tl.constexpr):
    """Gradients of memory and weightings after the last step."""
    d_memory = access.zero_rows(block.N, block.M, block.dtype)
    d_weightings = access.zero_rows(block.H, block.N, block.dtype)
    if grads.final_memory is not None:
        d_memory = access.load_memory(grads.final_memory, i_b, shape, block)
    if grads.final_weightings is not None:
        d_weightings = access.load_weightings(grads.final_weightings, i_b, shape, block)
    return d_memory, d_weightings


@triton.jit
def store_grads(d_inputs, i_b, d_memory, d_weightings, shape: tl.constexpr):
    access.store_memory(d_inputs.initial_memory, i_b, d_memory, shape)
    access.store_weightings(d_inputs.initial_weightings, i_b, d_weightings, shape)


@triton.jit
def clear_padding_backward(d_steps, i_b, length, T, B, shape: tl.constexpr, block: tl.constexpr):
    """Beyond the length the gradients of gates and interface vectors are 0."""
    for t in range(length, T):
        i_tb = t * B + i_b
        controller.clear_controller_backward(d_steps, Now(i_b, i_tb, t, B), shape, block)
        access.fill_zero(d_steps.interface + i_tb * shape.P, shape.P, block)


@triton.jit
def replay(
    inputs,
    saved,
    p_segment,
    i_b,
    start,
    stop,
    B,
    every,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    """Stores the memory before each step of a segment, made again from its checkpoint."""
    memory = access.load_memory(saved.checkpoints, start // every * B + i_b, shape, block)
    for t in range(start, stop):
        i_tb = t * B + i_b
        if inputs.resets is not None and tl.load(inputs.resets + i_tb):
            memory = access.load_memory(inputs.initial_memory, i_b, shape, block)
        access.store_memory(p_segment, (t - start) * B + i_b, memory, shape)
        weightings = access.load_weightings(saved.weightings, i_tb, shape, block)
        heads = interface.heads_in(saved.interface + i_tb * shape.P, shape)
        memory = write(memory, weightings, heads, shape, True)


@triton.jit
def address_read_write_backward(
    d_memory,
    d_weightings,
    memory,
    grads,
    inputs,
    saved,
    d_state,
    d_steps,
    starts,
    now,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    """Gradients of memory and weightings before a step from those after it. Stores that of the
    interface vector. The step ``starts`` from the initial state or does not.

    Read and write come first, with the weightings that the forward kept. Nothing that addressing
    computes on the way to them is in registers yet.
    """
    i_tb = now.i_tb
    weightings = access.load_weightings(saved.weightings, i_tb, shape, block)
    p_previous = saved.weightings + (i_tb - now.B) * shape.H * shape.N
    if starts:
        p_previous = inputs.initial_weightings + now.i_b * shape.H * shape.N
    previous = access.load_weightings(p_previous, 0, shape, block)
    heads = interface.heads_in(saved.interface + i_tb * shape.P, shape)
    d_heads = interface.heads_in(d_steps.interface + i_tb * shape.P, shape)
    p_d_read_vectors = grads.read_vectors
    if p_d_read_vectors is not None:
        p_d_read_vectors += i_tb * shape.R * shape.M
    d_memory, d_weightings = read_write_backward(
        d_memory,
        d_weightings,
        memory,
        weightings,
        heads,
        d_heads,
        d_state.read_vectors + now.i_b * shape.R * shape.M,
        p_d_read_vectors,
        shape,
    )
    return address_backward(
        d_memory, d_weightings, memory, previous, heads, d_heads, shape, block, True
    )


@triton.jit
def cut(
    d_memory,
    d_weightings,
    d_start,
    d_state,
    now,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    """The backward of ``restart``: the gradient of the state goes to the initial state, and nothing
    to the step before."""
    d_memory += access.load_memory(d_start.initial_memory, now.i_b, shape, block)
    d_weightings += access.load_weightings(d_start.initial_weightings, now.i_b, shape, block)
    store_grads(d_start, now.i_b, d_memory, d_weightings, shape)
    controller.cut_controller(d_start, d_state, now, shape, block)
    d_memory = access.zero_rows(block.N, block.M, block.dtype)
    return d_memory, access.zero_rows(block.H, block.N, block.dtype)


@triton.jit
def step_backward(
    d_memory,
    d_weightings,
    memory,
    grads,
    inputs,
    outputs,
    saved,
    d_state,
    d_steps,
    d_start,
    now,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    """The gradient of the state before a step from that after it."""
    starts = now.t == 0
    if inputs.resets is not None:
        starts = starts | tl.load(inputs.resets + now.i_tb)
    d_memory, d_weightings = address_read_write_backward(
        d_memory,
        d_weightings,
        memory,
        grads,
        inputs,
        saved,
        d_state,
        d_steps,
        starts,
        now,
        shape,
        block,
    )
    tl.debug_barrier()  # The gradient of the interface vector is stored.
    controller.interface_controller_backward(
        grads, inputs, outputs, saved, d_state, d_steps, starts, now, shape, block
    )
    tl.debug_barrier()  # The gradient of the carried state before the step is stored.
    if inputs.resets is not None and starts:
        d_memory, d_weightings = cut(d_memory, d_weightings, d_start, d_state, now, shape, block)
        tl.debug_barrier()  # The gradient of the carried state is 0.
    return d_memory, d_weightings


@triton.jit(do_not_specialize=VARYING)
def sequence_backward_kernel(
    grads,  # SequenceOutputs, each of which may be None
    inputs,  # SequenceInputs
    outputs,  # SequenceOutputs, the hidden states alone
    saved,  # Saved
    d_inputs,  # SequenceInputs, the initial state alone; read vectors, hidden and cell hold the
    # gradient of the state after the step, at first the final one
    d_start,  # the same, at first 0: the gradient of the initial state by way of resets
    d_steps,  # StepGrads
    p_segment,  # [every, B, N, M], memories of one segment
    T,
    B,
    every,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    length = length_of(inputs.lengths, i_b, T)
    d_memory, d_weightings = load_grads(grads, i_b, shape, block)
    d_state = Carried(d_inputs.initial_read_vectors, d_inputs.initial_hidden, d_inputs.initial_cell)
    clear_padding_backward(d_steps, i_b, length, T, B, shape, block)
    segments = tl.cdiv(length, every)
    for reverse in range(segments):
        start = (segments - 1 - reverse) * every
        stop = tl.minimum(start + every, length)
        replay(inputs, saved, p_segment, i_b, start, stop, B, every, shape, block)
        tl.debug_barrier()  # The memories of the segment are stored.
        for back in range(stop - start):
            t = stop - 1 - back
            memory = access.load_memory(p_segment, (t - start) * B + i_b, shape, block)
            d_memory, d_weightings = step_backward(
                d_memory,
                d_weightings,
                memory,
                grads,
                inputs,
                outputs,
                saved,
                d_state,
                d_steps,
                d_start,
                Now(i_b, t * B + i_b, t, B),
                shape,
                block,
            )
    store_grads(d_inputs, i_b, d_memory, d_weightings, shape)
