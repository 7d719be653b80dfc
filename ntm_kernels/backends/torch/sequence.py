"""A whole sequence: the loop forward, and backward through time from checkpoints of the memory.

Saved for the backward: the memory before every ``checkpoint_every``-th step, and of every step the
weightings, the raw interface vector and, for an LSTM, the activated gates and the cell. The
backward runs segment by segment from the last to the first: it rebuilds the memories of a segment
by repeating its writes, recomputes the addressing of all its steps in one batch, then walks back
through its steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ntm_kernels.backends.base import SequenceArguments, SequenceOutputs, Sizes
from ntm_kernels.backends.torch.addressing import Addressing, Similarity, address
from ntm_kernels.backends.torch.interface import activate, activate_backward, activation_slopes
from ntm_kernels.backends.torch.memory import write
from ntm_kernels.backends.torch.step import step, step_backward
from ntm_kernels.interface import HeadParameters, InterfaceLayout


def saved_shapes(sizes: Sizes, controller: str) -> list[tuple[int, ...]]:
    steps = (sizes.time, sizes.batch)
    gates = 4 if controller == "lstm" else 0
    cells = 1 if controller == "lstm" else 0
    return [
        (sizes.num_checkpoints, sizes.batch, sizes.memory_size, sizes.word_size),
        (*steps, sizes.num_heads, sizes.memory_size),
        (*steps, sizes.layout.size),
        (*steps, gates * sizes.hidden_size),
        (*steps, cells * sizes.hidden_size),
    ]


def active_steps(lengths: Tensor, time: int) -> Tensor:
    """``[T, B]``: whether a step is inside its sequence."""
    return torch.arange(time, device=lengths.device).unsqueeze(-1) < lengths


def lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden, cell and the activated gates ``i, f, g, o`` side by side."""
    size = cell.shape[-1]
    activated = torch.sigmoid(gates)
    candidate = activated.narrow(-1, 2 * size, size)
    torch.tanh(gates.narrow(-1, 2 * size, size), out=candidate)
    input_gate, forget_gate, candidate, output_gate = activated.chunk(4, -1)
    cell = torch.addcmul(forget_gate * cell, input_gate, candidate)
    return output_gate * torch.tanh(cell), cell, activated


def lstm_slopes(activated: Tensor, cells: Tensor, previous_cells: Tensor) -> tuple[Tensor, Tensor]:
    """For all steps at once, what turns ``dc`` and ``dh`` into the gradients of the gates.

    ``[..., 4C]`` factors of ``dc`` for i, f, g and of ``dh`` for o, and ``dh/dc [..., C]``.
    """
    input_gate, forget_gate, candidate, output_gate = activated.chunk(4, -1)
    squashed = torch.tanh(cells)
    slopes = torch.cat(
        [
            candidate * input_gate * (1 - input_gate),
            previous_cells * forget_gate * (1 - forget_gate),
            input_gate * (1 - candidate.square()),
            squashed * output_gate * (1 - output_gate),
        ],
        -1,
    )
    return slopes, output_gate * (1 - squashed.square())


def sequence(
    arguments: SequenceArguments,
    sizes: Sizes,
    controller: str,
    save_for_backward: bool,
    return_trace: bool,
) -> tuple[SequenceOutputs, list[Tensor]]:
    is_lstm = controller == "lstm"
    layout = sizes.layout
    recurrent_weight = arguments.recurrent_weight.mT
    interface_weight = arguments.interface_weight.mT
    x = arguments.input
    inside: tuple[Tensor, ...] = ()
    if arguments.lengths is not None:
        active = active_steps(arguments.lengths, sizes.time).unsqueeze(-1)
        x = x.masked_fill(~active, 0)
        inside = active.unbind(0)

    state: tuple[Tensor, ...]
    state = (arguments.memory, arguments.weightings, arguments.read_vectors.flatten(1))
    if arguments.hidden is not None and arguments.cell is not None:
        state += (arguments.hidden, arguments.cell)
    hiddens: list[Tensor] = []
    all_reads: list[Tensor] = []
    checkpoints: list[Tensor] = []
    all_weightings: list[Tensor] = []
    interfaces: list[Tensor] = []
    all_gates: list[Tensor] = []
    cells: list[Tensor] = []
    controller_state: list[Tensor]
    traced = save_for_backward or return_trace
    for time, projected in enumerate(x.unbind(0)):
        memory, weightings, read_vectors, *controller_state = state
        if save_for_backward and time % sizes.checkpoint_every == 0:
            checkpoints.append(memory)
        if is_lstm:
            hidden, cell = controller_state
            recurrent = torch.cat((read_vectors, hidden), -1)
            hidden, cell, gates = lstm(torch.addmm(projected, recurrent, recurrent_weight), cell)
            controller_state = [hidden, cell]
        else:
            hidden = torch.addmm(projected, read_vectors, recurrent_weight).tanh_()
        interface = torch.addmm(arguments.interface_bias, hidden, interface_weight)
        heads = activate(interface, layout)
        reads, memory, weightings = step(memory, heads, weightings, sizes.num_read_heads)
        read_vectors = reads.flatten(1)
        new = (memory, weightings, read_vectors, *controller_state)
        if inside:
            now = inside[time]
            hidden, read_vectors = hidden.masked_fill(~now, 0), read_vectors.masked_fill(~now, 0)
            new = _hold(now, new, state)
        state = new
        hiddens.append(hidden)
        all_reads.append(read_vectors)
        if traced:
            all_weightings.append(state[1])
            interfaces.append(interface)
        if save_for_backward and is_lstm:
            all_gates.append(gates)
            cells.append(state[4])

    memory, weightings, read_vectors, *controller_state = state
    weightings_of_all = torch.stack(all_weightings) if traced else memory.new_empty(0)
    interface_of_all = torch.stack(interfaces) if traced else memory.new_empty(0)
    saved: list[Tensor] = []
    if save_for_backward:
        no_gates = memory.new_empty(sizes.time, sizes.batch, 0)
        saved = [
            torch.stack(checkpoints),
            weightings_of_all,
            interface_of_all,
            torch.stack(all_gates) if is_lstm else no_gates,
            torch.stack(cells) if is_lstm else no_gates.clone(),
        ]
    # One each: outputs of an op may not be the same tensor.
    no_state, no_trace = ([memory.new_empty(0) for _ in range(2)] for _ in range(2))
    final_hidden, final_cell = controller_state if is_lstm else no_state
    trace = no_trace
    if return_trace:
        trace = [weightings_of_all, _activated(interface_of_all, layout)]
    read_shape = (sizes.num_read_heads, sizes.word_size)
    outputs = SequenceOutputs(
        hidden=torch.stack(hiddens),
        read_vectors=torch.stack(all_reads).view(sizes.time, sizes.batch, *read_shape),
        memory=memory,
        weightings=weightings,
        final_read_vectors=read_vectors.view(sizes.batch, *read_shape),
        final_hidden=final_hidden,
        final_cell=final_cell,
        trace_weightings=trace[0],
        trace_interface=trace[1],
    )
    return outputs, saved


def _hold(active: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of each part the new where the sequence is ``active [B, 1]``, the old where it is over."""
    return tuple(
        torch.where(active.view(-1, *[1] * (after.dim() - 1)), after, before)
        for after, before in zip(new, old, strict=True)
    )


def _activated(interface: Tensor, layout: InterfaceLayout) -> Tensor:
    heads = activate(interface, layout)
    return torch.cat([part.flatten(interface.dim() - 1) for part in heads], -1)


def sequence_backward(
    grads: list[Tensor | None],
    arguments: SequenceArguments,
    hidden: Tensor,
    read_vectors: Tensor,
    saved: list[Tensor],
    sizes: Sizes,
    controller: str,
) -> tuple[Tensor, ...]:
    checkpoints, all_weightings, interfaces, all_gates, cells = saved
    time, batch, num_reads = sizes.time, sizes.batch, sizes.num_read_heads * sizes.word_size
    is_lstm = controller == "lstm"
    layout = sizes.layout

    def given(grad: Tensor | None, *shape: int) -> Tensor:
        return checkpoints.new_zeros(shape) if grad is None else grad.reshape(shape)

    d_hiddens = given(grads[0], time, batch, sizes.hidden_size).unbind(0)
    d_all_reads = given(grads[1], time, batch, num_reads).unbind(0)
    d_controller: list[Tensor]
    d_state: tuple[Tensor, ...]
    d_state = (
        given(grads[2], batch, sizes.memory_size, sizes.word_size),
        given(grads[3], batch, sizes.num_heads, sizes.memory_size),
        given(grads[4], batch, num_reads),
    )
    if is_lstm:
        d_state += (
            given(grads[5], batch, sizes.hidden_size),
            given(grads[6], batch, sizes.hidden_size),
        )

    previous_weightings = _shifted_in(arguments.weightings, all_weightings)
    flat = interfaces.view(-1, layout.size)
    heads = activate(flat, layout)
    slopes = activation_slopes(flat, heads, layout).view_as(interfaces).unbind(0)
    if arguments.cell is not None:
        previous_cells = _shifted_in(arguments.cell, cells)
        all_slopes, all_cell_slopes = lstm_slopes(all_gates, cells, previous_cells)
        gate_slopes, cell_slopes = all_slopes.unbind(0), all_cell_slopes.unbind(0)
        forget_gates = all_gates.chunk(4, -1)[1].unbind(0)
    else:
        gate_slopes = (1 - hidden.square()).unbind(0)
    inside: tuple[Tensor, ...] = ()
    if arguments.lengths is not None:
        inside = active_steps(arguments.lengths, time).unsqueeze(-1).unbind(0)

    d_gates: list[Tensor] = []
    d_interfaces: list[Tensor] = []
    for segment in reversed(range(sizes.num_checkpoints)):
        start = segment * sizes.checkpoint_every
        stop = min(start + sizes.checkpoint_every, time)
        forward, memories, parameters = _segment(
            checkpoints[segment],
            heads,
            previous_weightings,
            all_weightings,
            inside,
            start,
            stop,
            batch,
        )
        for t in reversed(range(start, stop)):
            at = t - start
            d_memory, d_weightings, d_reads, *d_controller = d_state
            d_memory, d_heads, d_weightings = step_backward(
                (d_reads + d_all_reads[t]).view(batch, sizes.num_read_heads, sizes.word_size),
                d_memory,
                d_weightings,
                forward[at],
                memories[at],
                parameters[at],
                previous_weightings[t],
            )
            d_interface = activate_backward(d_heads, slopes[t], parameters[at].shift)
            if is_lstm:
                d_hidden, d_cell = d_controller
                d_hidden = d_hidden + d_hiddens[t]
                d_hidden = torch.addmm(d_hidden, d_interface, arguments.interface_weight)
                d_cell = torch.addcmul(d_cell, d_hidden, cell_slopes[t])
                d_gate = torch.cat((d_cell, d_cell, d_cell, d_hidden), -1).mul_(gate_slopes[t])
                d_recurrent = torch.mm(d_gate, arguments.recurrent_weight)
                d_reads, d_hidden = d_recurrent.split((num_reads, sizes.hidden_size), -1)
                d_controller = [d_hidden, d_cell * forget_gates[t]]
            else:
                d_hidden = torch.addmm(d_hiddens[t], d_interface, arguments.interface_weight)
                d_gate = d_hidden.mul_(gate_slopes[t])
                d_reads = torch.mm(d_gate, arguments.recurrent_weight)
            d_before = (d_memory, d_weightings, d_reads, *d_controller)
            if inside:
                d_interface = d_interface.masked_fill(~inside[t], 0)
                d_gate = d_gate.masked_fill(~inside[t], 0)
                d_before = _hold(inside[t], d_before, d_state)
            d_state = d_before
            d_gates.append(d_gate)
            d_interfaces.append(d_interface)

    d_projected = torch.stack(d_gates[::-1])
    d_all_interfaces = torch.stack(d_interfaces[::-1])
    recurrent = _shifted_in(arguments.read_vectors, read_vectors).flatten(2)
    if arguments.hidden is not None:
        recurrent = torch.cat((recurrent, _shifted_in(arguments.hidden, hidden)), -1)
    d_memory, d_weightings, d_reads, *d_controller = d_state
    none = checkpoints.new_empty(0)
    d_hidden, d_cell = d_controller if is_lstm else (none, none.clone())
    return (
        d_projected,
        torch.mm(d_projected.flatten(0, 1).mT, recurrent.flatten(0, 1)),
        torch.mm(d_all_interfaces.flatten(0, 1).mT, hidden.flatten(0, 1)),
        d_all_interfaces.sum((0, 1)),
        d_memory,
        d_weightings,
        d_reads.reshape(batch, sizes.num_read_heads, sizes.word_size),
        d_hidden,
        d_cell,
    )


def _shifted_in(first: Tensor, following: Tensor) -> Tensor:
    """What each step started from: ``first``, then ``following`` without its last step."""
    return torch.cat((first.unsqueeze(0), following))[:-1]


def _segment(
    checkpoint: Tensor,
    heads: HeadParameters,
    previous_weightings: Tensor,
    all_weightings: Tensor,
    inside: tuple[Tensor, ...],
    start: int,
    stop: int,
    batch: int,
) -> tuple[list[Addressing], tuple[Tensor, ...], list[HeadParameters]]:
    """Addressing, memory before the step and head parameters, for each step of a segment."""
    steps = stop - start
    flat_heads = HeadParameters(*(part[start * batch : stop * batch] for part in heads))
    parameters = [
        HeadParameters(*parts)
        for parts in zip(
            *(part.view(steps, batch, *part.shape[1:]).unbind(0) for part in flat_heads),
            strict=True,
        )
    ]
    num_write_heads = heads.erase.shape[1]
    memories = [checkpoint]
    for at in range(steps - 1):
        write_weightings = all_weightings[start + at, :, -num_write_heads:]
        written = write(memories[-1], write_weightings, parameters[at].erase, parameters[at].add)
        if inside:
            written = torch.where(inside[start + at].unsqueeze(-1), written, memories[-1])
        memories.append(written)
    stacked = torch.stack(memories)
    together = address(
        stacked.flatten(0, 1), *flat_heads[:5], previous_weightings[start:stop].flatten(0, 1)
    )

    def per_step(part: Tensor) -> tuple[Tensor, ...]:
        return part.view(steps, batch, *part.shape[1:]).unbind(0)

    similarities = zip(*(per_step(part) for part in together.similarity), strict=True)
    others = zip(*(per_step(part) for part in together[1:]), strict=True)
    forward = [
        Addressing(Similarity(*alike), *rest)
        for alike, rest in zip(similarities, others, strict=True)
    ]
    return forward, stacked.unbind(0), parameters
