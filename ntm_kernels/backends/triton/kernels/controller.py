"""The controller inside of a sequence: all that knows which one it is, and what its layers are.

The loop of steps calls these functions and asks nothing else:

- ``Now``: which step of which sequence is meant;
- ``Carried``: what the controller hands from step to step;
- ``controller_step``: one step forward, then ``carry_hidden`` once all of it is done;
- ``restart_controller``: what a step begins with that starts anew, and ``cut_controller``, its
  backward;
- ``interface_controller_backward``: one step backward, from the interface vector to the gradient of
  what the controller saw of the step before;
- ``clear_controller`` and ``clear_controller_backward``: zeros beyond the length of a sequence.

A program computes the layers one after the other, and the hidden units of a layer in blocks. A
block holds some units, for an LSTM with all their four gates, so that a unit's gates meet in
registers. Each block needs the whole hidden state of the step before, which therefore must not be
overwritten before all blocks are computed: the new state goes to the outputs, and becomes the
carried one after a barrier. A block also needs the whole hidden state of the layer below, so there
is a barrier between two layers.

The number of layers is known when a kernel is compiled, and each layer gets code of its own. The
kernels for a controller of one layer therefore contain nothing for upper layers. A loop over layers
has a constant as its bound, since Triton 3.6 refuses a field of a record there.

The weights stay in global memory. All programs read the same ones in every step, from the
second-level cache.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import math
from ntm_kernels.backends.triton.kernels.access import copy, fill_zero, load, move, row, zeros
from ntm_kernels.backends.triton.kernels.interface import interface_backward
from ntm_kernels.backends.triton.kernels.matrix import matvec, vecmat


class Now(NamedTuple):
    """The present step of the program's sequence."""

    i_b: Any  # the sequence
    i_tb: Any  # the row of the step in a tensor [T, B, ...]
    t: Any  # the step
    B: Any  # sequences in all


class Carried(NamedTuple):
    """What the step before handed on, of all sequences, or its gradient.

    Hidden state and cell are ``None`` but for an LSTM.
    """

    read_vectors: Any  # [B, R, M]
    hidden: Any  # [L, B, C]
    cell: Any  # [L, B, C]


class Layer(NamedTuple):
    """Where the inputs of one layer begin, of one sequence and step."""

    start: Any  # [G], what the gates start from: the projected input, or the bias
    weight: Any  # [G, K] of the first layer, [G, J] of the others
    below: Any  # what lies below the layer: the read vectors [R, M], or a hidden state [C]


@triton.jit
def hidden_of(layer: tl.constexpr, outputs, kept, now, shape: tl.constexpr):
    """Where the new hidden state of a layer is: that of the top layer is an output. Of the others
    there is the present step alone where nothing is kept for a backward."""
    if layer == shape.L - 1:
        p_hidden = outputs.hidden + now.i_tb * shape.C
    elif kept.checkpoints is None:
        p_hidden = kept.lower_hidden + (layer * now.B + now.i_b) * shape.C
    else:
        p_hidden = kept.lower_hidden + ((now.t * (shape.L - 1) + layer) * now.B + now.i_b) * shape.C
    return p_hidden


@triton.jit
def inputs_of(layer: tl.constexpr, inputs, outputs, kept, state, now, shape: tl.constexpr):
    """Where a layer finds in this step what it computes its gates from."""
    if layer == 0:
        found = Layer(
            start=inputs.x + now.i_tb * shape.G,
            weight=inputs.recurrent_weight,
            below=state.read_vectors + now.i_b * shape.R * shape.M,
        )
    else:
        found = Layer(
            start=inputs.upper_bias + (layer - 1) * shape.G,
            weight=inputs.upper_weight + (layer - 1) * shape.G * shape.J,
            below=hidden_of(layer - 1, outputs, kept, now, shape),
        )
    return found


@triton.jit
def controller_step(inputs, outputs, kept, state, now, shape: tl.constexpr, block: tl.constexpr):
    """Stores the hidden state of each layer, the new cells in ``state``, and what is kept."""
    L: tl.constexpr = shape.L
    for layer in tl.static_range(L):
        if layer > 0:
            tl.debug_barrier()  # The hidden state of the layer below is stored.
        given = inputs_of(layer, inputs, outputs, kept, state, now, shape)
        p_hidden = hidden_of(layer, outputs, kept, now, shape)
        i_lb = layer * now.B + now.i_b
        i_tlb = now.t * shape.L * now.B + i_lb
        for c in range(0, shape.C, block.C):
            if shape.LSTM:
                lstm(layer, given, kept, state, p_hidden, c, i_lb, i_tlb, shape, block)
            else:
                feedforward(layer, given, p_hidden, c, shape, block)


@triton.jit
def lstm(
    layer: tl.constexpr,
    given,
    kept,
    state,
    p_hidden,
    c,
    i_lb,
    i_tlb,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    """A step of the ``block.C`` units from ``c`` on, of one layer."""
    C: tl.constexpr = shape.C
    BC: tl.constexpr = block.C
    dtype: tl.constexpr = block.dtype
    below_size: tl.constexpr = shape.R * shape.M if layer == 0 else C
    stride: tl.constexpr = below_size + C
    i_c = c + tl.arange(0, BC)
    inside = i_c < C
    # All four gates of the units at once. Those of gate q are the rows from q C on.
    i_q = tl.arange(0, 4 * BC) // BC
    i_gate = i_q * C + c + tl.arange(0, 4 * BC) % BC
    gate_inside = i_gate < i_q * C + C
    p_own_weight = given.weight + below_size
    p_state, p_cell = state.hidden + i_lb * C, state.cell + i_lb * C
    gates = load(given.start + i_gate, gate_inside, dtype)
    gates = matvec(gates, given.weight, stride, given.below, below_size, i_gate, gate_inside, block)
    gates = matvec(gates, p_own_weight, stride, p_state, C, i_gate, gate_inside, block)
    gates = tl.where(i_q == 2, math.tanh(gates), math.sigmoid(gates))
    quarters = tl.reshape(gates, [4, BC])
    input_gate, forget_gate = row(quarters, 0), row(quarters, 1)
    candidate, output_gate = row(quarters, 2), row(quarters, 3)
    cell = forget_gate * load(p_cell + i_c, inside, dtype) + input_gate * candidate
    tl.store(p_cell + i_c, cell, mask=inside)
    tl.store(p_hidden + i_c, output_gate * math.tanh(cell), mask=inside)
    if kept.gates is not None:
        tl.store(kept.gates + i_tlb * shape.G + i_gate, gates, mask=gate_inside)
        tl.store(kept.cells + i_tlb * C + i_c, cell, mask=inside)


@triton.jit
def feedforward(layer: tl.constexpr, given, p_hidden, c, shape: tl.constexpr, block: tl.constexpr):
    """A step of the ``block.C`` units from ``c`` on, of one layer."""
    below_size: tl.constexpr = shape.R * shape.M if layer == 0 else shape.C
    i_c = c + tl.arange(0, block.C)
    inside = i_c < shape.C
    gates = load(given.start + i_c, inside, block.dtype)
    gates = matvec(gates, given.weight, below_size, given.below, below_size, i_c, inside, block)
    tl.store(p_hidden + i_c, math.tanh(gates), mask=inside)


@triton.jit
def carry_hidden(outputs, kept, state, now, shape: tl.constexpr, block: tl.constexpr):
    """Hand the new hidden state of each layer to the next step."""
    if shape.LSTM:
        L: tl.constexpr = shape.L
        for layer in tl.static_range(L):
            p_hidden = hidden_of(layer, outputs, kept, now, shape)
            p_state = state.hidden + (layer * now.B + now.i_b) * shape.C
            for c in range(0, shape.C, block.C):
                i_c = c + tl.arange(0, block.C)
                inside = i_c < shape.C
                tl.store(p_state + i_c, load(p_hidden + i_c, inside, block.dtype), mask=inside)


@triton.jit
def restart_controller(inputs, state, now, shape: tl.constexpr, block: tl.constexpr):
    """Read vectors, hidden state and cell before the step become the initial ones."""
    read_size: tl.constexpr = shape.R * shape.M
    i_read = now.i_b * read_size
    copy(state.read_vectors + i_read, inputs.initial_read_vectors + i_read, read_size, block)
    if shape.LSTM:
        L: tl.constexpr = shape.L
        for layer in tl.static_range(L):
            i_lbc = (layer * now.B + now.i_b) * shape.C
            copy(state.hidden + i_lbc, inputs.initial_hidden + i_lbc, shape.C, block)
            copy(state.cell + i_lbc, inputs.initial_cell + i_lbc, shape.C, block)


@triton.jit
def cut_controller(d_start, d_state, now, shape: tl.constexpr, block: tl.constexpr):
    """Adds the gradients of read vectors, hidden state and cell before the step to those of the
    initial ones. The former become 0."""
    read_size: tl.constexpr = shape.R * shape.M
    i_read = now.i_b * read_size
    move(d_start.initial_read_vectors + i_read, d_state.read_vectors + i_read, read_size, block)
    if shape.LSTM:
        L: tl.constexpr = shape.L
        for layer in tl.static_range(L):
            i_lbc = (layer * now.B + now.i_b) * shape.C
            move(d_start.initial_hidden + i_lbc, d_state.hidden + i_lbc, shape.C, block)
            move(d_start.initial_cell + i_lbc, d_state.cell + i_lbc, shape.C, block)


@triton.jit
def clear_controller(outputs, kept, now, shape: tl.constexpr, block: tl.constexpr):
    L: tl.constexpr = shape.L
    for layer in tl.static_range(L):
        # A hidden state of the present step alone has no padding.
        if layer == L - 1 or kept.checkpoints is not None:
            fill_zero(hidden_of(layer, outputs, kept, now, shape), shape.C, block)
        if kept.gates is not None:
            i_tlb = (now.t * shape.L + layer) * now.B + now.i_b
            fill_zero(kept.gates + i_tlb * shape.G, shape.G, block)
            fill_zero(kept.cells + i_tlb * shape.C, shape.C, block)


@triton.jit
def clear_controller_backward(d_steps, now, shape: tl.constexpr, block: tl.constexpr):
    L: tl.constexpr = shape.L
    for layer in tl.static_range(L):
        i_tlb = (now.t * shape.L + layer) * now.B + now.i_b
        fill_zero(d_steps.gates + i_tlb * shape.G, shape.G, block)


@triton.jit
def interface_controller_backward(
    grads,
    inputs,
    outputs,
    saved,
    d_state,
    d_steps,
    starts,
    now,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    """Stores the gradients of the gates; ``d_state`` becomes that before the step, which ``starts``
    from the initial state or does not.

    Goes from the top layer down. The backward of what is above a layer, the interface or the next
    layer, is fused with the layer's own: the gradient of a block of hidden units is used in the
    registers where it is summed. The barrier separates the gradients of a layer's gates from the
    matrix products that need all of them.
    """
    p_d_interface = d_steps.interface + now.i_tb * shape.P
    L: tl.constexpr = shape.L
    for layer in tl.static_range(L - 1, -1, -1):
        i_lb = layer * now.B + now.i_b
        i_tlb = now.t * shape.L * now.B + i_lb
        p_gates = d_steps.gates + i_tlb * shape.G
        for c in range(0, shape.C, block.C):
            i_c = c + tl.arange(0, block.C)
            d_hidden = zeros(block.C, block.dtype)
            if shape.LSTM:
                d_hidden += load(d_state.hidden + i_lb * shape.C + i_c, i_c < shape.C, block.dtype)
            if layer == shape.L - 1:
                if grads.hidden is not None:
                    p_grad = grads.hidden + now.i_tb * shape.C
                    d_hidden += load(p_grad + i_c, i_c < shape.C, block.dtype)
                d_hidden = interface_backward(d_hidden, inputs, p_d_interface, i_c, shape, block)
            else:
                p_above = p_gates + now.B * shape.G
                d_hidden = upper_backward(layer, d_hidden, inputs, p_above, i_c, shape, block)
            if shape.LSTM:
                p_previous = saved.cells + (i_tlb - shape.L * now.B) * shape.C
                if starts:
                    p_previous = inputs.initial_cell + i_lb * shape.C
                p_d_cell = d_state.cell + i_lb * shape.C
                lstm_backward(d_hidden, saved, p_previous, p_gates, p_d_cell, i_c, i_tlb, shape)
            else:
                p_hidden = hidden_of(layer, outputs, saved, now, shape)
                feedforward_backward(d_hidden, p_hidden, p_gates, i_c, shape)
        tl.debug_barrier()
        recurrent_backward(layer, inputs, p_gates, d_state, now, shape, block)


@triton.jit
def upper_backward(
    layer: tl.constexpr,
    d_hidden,
    inputs,
    p_d_gates_above,
    i_c,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    """Adds to the gradient of the hidden units ``i_c`` of a layer what comes from the next one."""
    p_weight = inputs.upper_weight + layer * shape.G * shape.J
    inside = i_c < shape.C
    return vecmat(d_hidden, p_weight, shape.J, p_d_gates_above, shape.G, i_c, inside, block)


@triton.jit
def lstm_backward(
    d_hidden, saved, p_previous_cell, p_d_gates, p_d_cell, i_c, i_tlb, shape: tl.constexpr
):
    """Stores the gradients of the gates of the units ``i_c``, and that of their cells before."""
    C: tl.constexpr = shape.C
    dtype: tl.constexpr = d_hidden.dtype
    inside = i_c < C
    p_gates = saved.gates + i_tlb * shape.G
    input_gate = load(p_gates + i_c, inside, dtype)
    forget_gate = load(p_gates + C + i_c, inside, dtype)
    candidate = load(p_gates + 2 * C + i_c, inside, dtype)
    output_gate = load(p_gates + 3 * C + i_c, inside, dtype)
    squashed = math.tanh(load(saved.cells + i_tlb * C + i_c, inside, dtype))
    previous = load(p_previous_cell + i_c, inside, dtype)
    d_cell = load(p_d_cell + i_c, inside, dtype)
    d_cell += d_hidden * output_gate * (1.0 - squashed * squashed)
    d_input = d_cell * candidate * input_gate * (1.0 - input_gate)
    d_forget = d_cell * previous * forget_gate * (1.0 - forget_gate)
    d_candidate = d_cell * input_gate * (1.0 - candidate * candidate)
    d_output = d_hidden * squashed * output_gate * (1.0 - output_gate)
    tl.store(p_d_gates + i_c, d_input, mask=inside)
    tl.store(p_d_gates + C + i_c, d_forget, mask=inside)
    tl.store(p_d_gates + 2 * C + i_c, d_candidate, mask=inside)
    tl.store(p_d_gates + 3 * C + i_c, d_output, mask=inside)
    tl.store(p_d_cell + i_c, d_cell * forget_gate, mask=inside)


@triton.jit
def feedforward_backward(d_hidden, p_hidden, p_d_gates, i_c, shape: tl.constexpr):
    inside = i_c < shape.C
    hidden = load(p_hidden + i_c, inside, d_hidden.dtype)
    tl.store(p_d_gates + i_c, d_hidden * (1.0 - hidden * hidden), mask=inside)


@triton.jit
def recurrent_backward(
    layer: tl.constexpr,
    inputs,
    p_d_gates,
    d_state,
    now,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    """Gradients of what a layer's gates saw of the step before: an LSTM's own hidden state, and for
    the first layer the read vectors."""
    read_size: tl.constexpr = shape.R * shape.M if layer == 0 else 0
    stride: tl.constexpr = shape.K if layer == 0 else shape.J
    if layer == 0:
        p_weight = inputs.recurrent_weight
    else:
        p_weight = inputs.upper_weight + (layer - 1) * shape.G * shape.J + shape.C
    size: tl.constexpr = read_size + shape.C if shape.LSTM else read_size
    for k in range(0, size, block.C):
        i_k = k + tl.arange(0, block.C)
        inside = i_k < size
        nothing = zeros(block.C, block.dtype)
        d_seen = vecmat(nothing, p_weight, stride, p_d_gates, shape.G, i_k, inside, block)
        if layer == 0:
            p_d_read_vectors = d_state.read_vectors + now.i_b * read_size
            tl.store(p_d_read_vectors + i_k, d_seen, mask=i_k < read_size)
        if shape.LSTM:
            i_lb = layer * now.B + now.i_b
            p_d_hidden = d_state.hidden + i_lb * shape.C - read_size
            tl.store(p_d_hidden + i_k, d_seen, mask=(i_k >= read_size) & inside)
