"""The controller inside of a sequence: all that knows which one it is, and what its layers are.

The loop of steps calls these functions and asks nothing else:

- ``Carried``: what the controller hands from step to step;
- ``controller_step``: one step forward, then ``carry_hidden`` once all of it is done;
- ``interface_controller_backward``: one step backward, from the interface vector to the gradient of
  what the controller saw of the step before;
- ``clear_controller``: zeros for what the forward keeps of a step beyond a sequence's length.

A program computes the hidden units in blocks. A block holds some units, for an LSTM with all their
four gates, so that a unit's gates meet in registers. Each block needs the whole hidden state of the
step before, which therefore must not be overwritten before all blocks are computed: the new state
goes to the outputs, and becomes the carried one after a barrier.

The weights stay in global memory. All programs read the same ones in every step, from the
second-level cache.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import math
from ntm_kernels.backends.triton.kernels.access import fill_zero, load, row, zeros
from ntm_kernels.backends.triton.kernels.interface import interface_backward
from ntm_kernels.backends.triton.kernels.matrix import matvec, vecmat


class Carried(NamedTuple):
    """What the step before handed on, of all sequences, or its gradient.

    Hidden state and cell are ``None`` but for an LSTM.
    """

    read_vectors: Any  # [B, R, M]
    hidden: Any  # [B, C]
    cell: Any  # [B, C]


@triton.jit
def controller_step(
    inputs, kept, state, p_hidden, i_b, i_tb, shape: tl.constexpr, block: tl.constexpr
):
    """Stores the hidden state at ``p_hidden``, the new cell in ``state``, and what is kept."""
    for c in range(0, shape.C, block.C):
        if shape.LSTM:
            lstm(inputs, kept, state, p_hidden, c, i_b, i_tb, shape, block)
        else:
            feedforward(inputs, state, p_hidden, c, i_b, i_tb, shape, block)


@triton.jit
def lstm(inputs, kept, state, p_hidden, c, i_b, i_tb, shape: tl.constexpr, block: tl.constexpr):
    """A step of the ``block.C`` units from ``c`` on."""
    C: tl.constexpr = shape.C
    read_size: tl.constexpr = shape.R * shape.M
    BC: tl.constexpr = block.C
    dtype: tl.constexpr = block.dtype
    i_c = c + tl.arange(0, BC)
    inside = i_c < C
    # All four gates of the units at once. Those of gate q are the rows from q C on.
    i_q = tl.arange(0, 4 * BC) // BC
    i_gate = i_q * C + c + tl.arange(0, 4 * BC) % BC
    gate_inside = i_gate < i_q * C + C
    p_weight, p_read_vectors = inputs.recurrent_weight, state.read_vectors + i_b * read_size
    p_state, p_cell = state.hidden + i_b * C, state.cell + i_b * C
    gates = load(inputs.x + i_tb * shape.G + i_gate, gate_inside, dtype)
    gates = matvec(gates, p_weight, shape.K, p_read_vectors, read_size, i_gate, gate_inside, block)
    gates = matvec(gates, p_weight + read_size, shape.K, p_state, C, i_gate, gate_inside, block)
    gates = tl.where(i_q == 2, math.tanh(gates), math.sigmoid(gates))
    quarters = tl.reshape(gates, [4, BC])
    input_gate, forget_gate = row(quarters, 0), row(quarters, 1)
    candidate, output_gate = row(quarters, 2), row(quarters, 3)
    cell = forget_gate * load(p_cell + i_c, inside, dtype) + input_gate * candidate
    tl.store(p_cell + i_c, cell, mask=inside)
    tl.store(p_hidden + i_c, output_gate * math.tanh(cell), mask=inside)
    if kept.gates is not None:
        tl.store(kept.gates + i_tb * shape.G + i_gate, gates, mask=gate_inside)
        tl.store(kept.cells + i_tb * C + i_c, cell, mask=inside)


@triton.jit
def feedforward(inputs, state, p_hidden, c, i_b, i_tb, shape: tl.constexpr, block: tl.constexpr):
    """A step of the ``block.C`` units from ``c`` on."""
    K: tl.constexpr = shape.K
    p_read_vectors = state.read_vectors + i_b * K
    i_c = c + tl.arange(0, block.C)
    inside = i_c < shape.C
    gates = load(inputs.x + i_tb * shape.G + i_c, inside, block.dtype)
    gates = matvec(gates, inputs.recurrent_weight, K, p_read_vectors, K, i_c, inside, block)
    tl.store(p_hidden + i_c, math.tanh(gates), mask=inside)


@triton.jit
def carry_hidden(state, p_hidden, i_b, shape: tl.constexpr, block: tl.constexpr):
    """Hand the new hidden state to the next step."""
    if shape.LSTM:
        for c in range(0, shape.C, block.C):
            i_c = c + tl.arange(0, block.C)
            inside = i_c < shape.C
            hidden = load(p_hidden + i_c, inside, block.dtype)
            tl.store(state.hidden + i_b * shape.C + i_c, hidden, mask=inside)


@triton.jit
def clear_controller(kept, i_tb, shape: tl.constexpr, block: tl.constexpr):
    if kept.gates is not None:
        fill_zero(kept.gates + i_tb * shape.G, shape.G, block)
        fill_zero(kept.cells + i_tb * shape.C, shape.C, block)


@triton.jit
def interface_controller_backward(
    grads,
    inputs,
    outputs,
    saved,
    d_gates,
    d_state,
    p_d_interface,
    i_b,
    i_tb,
    B,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    """Stores the gradient of the gates at ``d_gates``; ``d_state`` becomes that before the step.

    The interface's backward is fused with the controller's: the gradient of a block of hidden units
    is used in the registers where it is summed. The barrier separates the gradients of the gates
    from the matrix product that needs all of them.
    """
    for c in range(0, shape.C, block.C):
        i_c = c + tl.arange(0, block.C)
        inside = i_c < shape.C
        d_hidden = zeros(block.C, block.dtype)
        if grads.hidden is not None:
            d_hidden += load(grads.hidden + i_tb * shape.C + i_c, inside, block.dtype)
        if shape.LSTM:
            d_hidden += load(d_state.hidden + i_b * shape.C + i_c, inside, block.dtype)
        d_hidden = interface_backward(d_hidden, inputs, p_d_interface, i_c, shape, block)
        if shape.LSTM:
            # The cell before the first step is the initial one.
            p_previous = inputs.initial_cell + i_b * shape.C
            if i_tb >= B:
                p_previous = saved.cells + (i_tb - B) * shape.C
            p_d_cell = d_state.cell + i_b * shape.C
            lstm_backward(d_hidden, saved, p_previous, d_gates, p_d_cell, i_c, i_tb, shape)
        else:
            feedforward_backward(d_hidden, outputs, d_gates, i_c, i_tb, shape)
    tl.debug_barrier()
    recurrent_backward(inputs, d_gates, d_state, i_b, shape, block)


@triton.jit
def lstm_backward(
    d_hidden, saved, p_previous_cell, p_d_gates, p_d_cell, i_c, i_tb, shape: tl.constexpr
):
    """Stores the gradients of the gates of the units ``i_c``, and that of their cells before."""
    C: tl.constexpr = shape.C
    dtype: tl.constexpr = d_hidden.dtype
    inside = i_c < C
    p_gates = saved.gates + i_tb * shape.G
    input_gate = load(p_gates + i_c, inside, dtype)
    forget_gate = load(p_gates + C + i_c, inside, dtype)
    candidate = load(p_gates + 2 * C + i_c, inside, dtype)
    output_gate = load(p_gates + 3 * C + i_c, inside, dtype)
    squashed = math.tanh(load(saved.cells + i_tb * C + i_c, inside, dtype))
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
def feedforward_backward(d_hidden, outputs, p_d_gates, i_c, i_tb, shape: tl.constexpr):
    inside = i_c < shape.C
    hidden = load(outputs.hidden + i_tb * shape.C + i_c, inside, d_hidden.dtype)
    tl.store(p_d_gates + i_c, d_hidden * (1.0 - hidden * hidden), mask=inside)


@triton.jit
def recurrent_backward(inputs, p_d_gates, d_state, i_b, shape: tl.constexpr, block: tl.constexpr):
    """Gradients of what the gates saw of the step before: read vectors and hidden state."""
    read_size: tl.constexpr = shape.R * shape.M
    for k in range(0, shape.K, block.C):
        i_k = k + tl.arange(0, block.C)
        inside = i_k < shape.K
        d_recurrent = vecmat(
            zeros(block.C, block.dtype),
            inputs.recurrent_weight,
            shape.K,
            p_d_gates,
            shape.G,
            i_k,
            inside,
            block,
        )
        p_d_read_vectors = d_state.read_vectors + i_b * read_size
        tl.store(p_d_read_vectors + i_k, d_recurrent, mask=i_k < read_size)
        if shape.LSTM:
            in_hidden = (i_k >= read_size) & inside
            p_d_hidden = d_state.hidden + i_b * shape.C - read_size
            tl.store(p_d_hidden + i_k, d_recurrent, mask=in_hidden)
