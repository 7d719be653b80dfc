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
from ntm_kernels.backends.reference.addressing import Addressing, Similarity, address
from ntm_kernels.backends.reference.interface import activate, activate_backward, activation_slopes
from ntm_kernels.backends.reference.memory import write
from ntm_kernels.backends.reference.step import step, step_backward
from ntm_kernels.interface import HeadParameters, InterfaceLayout


def layout_of(sizes: Sizes) -> InterfaceLayout:
    return InterfaceLayout(
        sizes.word_size, sizes.num_read_heads, sizes.num_write_heads, sizes.shift_range
    )


def saved_shapes(sizes: Sizes, controller: str) -> list[tuple[int, ...]]:
    steps = (sizes.time, sizes.batch)
    gates = 4 if controller == "lstm" else 0
    cells = 1 if controller == "lstm" else 0
    return [
        (sizes.num_checkpoints, sizes.batch, sizes.memory_size, sizes.word_size),
        (*steps, sizes.num_heads, sizes.memory_size),
        (*steps, layout_of(sizes).size),
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
    memory, weights = arguments.memory, arguments.weights
    read_vectors = arguments.read_vectors.flatten(1)
    hidden, cell = arguments.hidden, arguments.cell
    projected_input = arguments.projected_input
    layout = layout_of(sizes)
    recurrent_weight, interface_weight = (
        arguments.recurrent_weight.mT,
        arguments.interface_weight.mT,
    )

    active: list[Tensor] = []
    if arguments.lengths is not None:
        inside = active_steps(arguments.lengths, sizes.time).unsqueeze(-1)
        projected_input = projected_input.masked_fill(~inside, 0)
        active = list(inside.unbind(0))

    checkpoints, all_weights, interfaces, all_gates, cells = [], [], [], [], []
    hiddens, all_reads = [], []
    for time, projected in enumerate(projected_input.unbind(0)):
        before = memory, weights, read_vectors, hidden, cell
        if save_for_backward and time % sizes.checkpoint_every == 0:
            checkpoints.append(memory)
        if controller == "lstm":
            recurrent = torch.cat((read_vectors, hidden), -1)  # type: ignore[arg-type]
            hidden, cell, gates = lstm(torch.addmm(projected, recurrent, recurrent_weight), cell)  # type: ignore[arg-type]
            all_gates.append(gates)
        else:
            hidden = torch.addmm(projected, read_vectors, recurrent_weight).tanh_()
        interface = torch.addmm(arguments.interface_bias, hidden, interface_weight)
        heads = activate(interface, layout)
        reads, memory, weights = step(memory, heads, weights, sizes.num_read_heads)
        read_vectors = reads.flatten(1)
        if active:
            now = active[time]
            each = now.unsqueeze(-1)
            hiddens.append(hidden.masked_fill(~now, 0))
            all_reads.append(read_vectors.masked_fill(~now, 0))
            memory = torch.where(each, memory, before[0])
            weights = torch.where(each, weights, before[1])
            read_vectors = torch.where(now, read_vectors, before[2])
            if controller == "lstm":
                hidden, cell = (
                    torch.where(now, hidden, before[3]),
                    torch.where(now, cell, before[4]),
                )  # type: ignore[arg-type]
        else:
            hiddens.append(hidden)
            all_reads.append(read_vectors)
        all_weights.append(weights)
        interfaces.append(interface)
        cells.append(cell)

    steps = (sizes.time, sizes.batch)
    none = memory.new_empty(0)
    keep = save_for_backward or return_trace
    weights_trace = _stack(all_weights, memory, (*steps, *weights.shape[1:])) if keep else none
    interface_trace = _stack(interfaces, memory, (*steps, layout.size)) if keep else none
    saved = []
    if save_for_backward:
        shapes = saved_shapes(sizes, controller)
        is_lstm = controller == "lstm"
        saved = [
            _stack(checkpoints, memory, shapes[0]),
            weights_trace,
            interface_trace,
            _stack(all_gates if is_lstm else [], memory, shapes[3]),
            _stack(cells if is_lstm else [], memory, shapes[4]),  # type: ignore[arg-type]
        ]
    outputs = SequenceOutputs(
        hidden=_stack(hiddens, memory, (*steps, sizes.hidden_size)),
        read_vectors=_stack(all_reads, memory, (*steps, read_vectors.shape[-1])).view(
            *steps, sizes.num_read_heads, sizes.word_size
        ),
        memory=memory,
        weights=weights,
        final_read_vectors=read_vectors.view(sizes.batch, sizes.num_read_heads, sizes.word_size),
        final_hidden=hidden if controller == "lstm" else none,  # type: ignore[arg-type]
        final_cell=cell if controller == "lstm" else none,  # type: ignore[arg-type]
        trace_weights=weights_trace if return_trace else none,
        trace_interface=_activated(interface_trace, layout) if return_trace else none,
    )
    return outputs, saved


def _stack(parts: list[Tensor], like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.stack(parts) if parts else like.new_empty(shape)


def _activated(interface: Tensor, layout: InterfaceLayout) -> Tensor:
    heads = activate(interface, layout)
    return torch.cat([part.reshape(*interface.shape[:-1], -1) for part in heads], -1)


def sequence_backward(
    grads: list[Tensor | None],
    arguments: SequenceArguments,
    hidden: Tensor,
    read_vectors: Tensor,
    saved: list[Tensor],
    sizes: Sizes,
    controller: str,
) -> tuple[Tensor, ...]:
    checkpoints, all_weights, interfaces, all_gates, cells = saved
    time, batch, num_reads = sizes.time, sizes.batch, sizes.num_read_heads * sizes.word_size
    layout = layout_of(sizes)
    is_lstm = controller == "lstm"
    like = checkpoints

    def given(grad: Tensor | None, *shape: int) -> Tensor:
        return like.new_zeros(shape) if grad is None else grad

    d_hiddens = given(grads[0], time, batch, sizes.hidden_size).unbind(0)
    d_all_reads = given(grads[1], time, batch, sizes.num_read_heads, sizes.word_size)
    d_all_reads = d_all_reads.reshape(time, batch, num_reads).unbind(0)
    d_memory = given(grads[2], batch, sizes.memory_size, sizes.word_size)
    d_weights = given(grads[3], batch, sizes.num_heads, sizes.memory_size)
    d_reads = given(grads[4], batch, sizes.num_read_heads, sizes.word_size).reshape(batch, -1)
    d_hidden = given(grads[5], batch, sizes.hidden_size)
    d_cell = given(grads[6], batch, sizes.hidden_size)

    previous_weights = _shifted_in(arguments.weights, all_weights)
    flat = interfaces.view(-1, layout.size)
    heads = activate(flat, layout)
    slopes = activation_slopes(flat, heads, layout).view_as(interfaces).unbind(0)
    if is_lstm:
        previous_cells = _shifted_in(arguments.cell, cells)  # type: ignore[arg-type]
        gate_slopes, cell_slopes = (
            part.unbind(0) for part in lstm_slopes(all_gates, cells, previous_cells)
        )
        forget_gates = all_gates.chunk(4, -1)[1].unbind(0)
    else:
        gate_slopes = (1 - hidden.square()).unbind(0)
    active: list[Tensor] = []
    if arguments.lengths is not None:
        active = list(active_steps(arguments.lengths, time).unsqueeze(-1).unbind(0))

    d_gates: list[Tensor] = []
    d_interfaces: list[Tensor] = []
    for segment in reversed(range(sizes.num_checkpoints)):
        start = segment * sizes.checkpoint_every
        stop = min(start + sizes.checkpoint_every, time)
        forward, memories, parameters = _segment(
            checkpoints[segment], heads, previous_weights, all_weights, active, start, stop, batch
        )
        for t in reversed(range(start, stop)):
            at = t - start
            after = d_memory, d_weights, d_reads, d_hidden, d_cell
            d_memory, d_heads, d_weights = step_backward(
                (d_reads + d_all_reads[t]).view(batch, sizes.num_read_heads, -1),
                d_memory,
                d_weights,
                forward[at],
                memories[at],
                parameters[at],
                previous_weights[t],
            )
            d_interface = activate_backward(d_heads, slopes[t], parameters[at].shift)
            d_h = torch.addmm(d_hidden + d_hiddens[t], d_interface, arguments.interface_weight)
            if is_lstm:
                d_cell = torch.addcmul(d_cell, d_h, cell_slopes[t])
                d_gate = torch.cat((d_cell, d_cell, d_cell, d_h), -1).mul_(gate_slopes[t])
                d_cell = d_cell * forget_gates[t]
                d_recurrent = torch.mm(d_gate, arguments.recurrent_weight)
                d_reads, d_hidden = d_recurrent.split((num_reads, sizes.hidden_size), -1)
            else:
                d_gate = d_h.mul_(gate_slopes[t])
                d_reads = torch.mm(d_gate, arguments.recurrent_weight)
            if active:
                now = active[t]
                each = now.unsqueeze(-1)
                d_interface = d_interface.masked_fill(~now, 0)
                d_gate = d_gate.masked_fill(~now, 0)
                d_memory = torch.where(each, d_memory, after[0])
                d_weights = torch.where(each, d_weights, after[1])
                d_reads = torch.where(now, d_reads, after[2])
                if is_lstm:
                    d_hidden = torch.where(now, d_hidden, after[3])
                    d_cell = torch.where(now, d_cell, after[4])
            d_gates.append(d_gate)
            d_interfaces.append(d_interface)

    d_projected = _stack(d_gates[::-1], like, arguments.projected_input.shape)
    d_interface = _stack(d_interfaces[::-1], like, tuple(interfaces.shape))
    recurrent = _shifted_in(arguments.read_vectors, read_vectors).reshape(time * batch, num_reads)
    if is_lstm:
        previous = _shifted_in(arguments.hidden, hidden).reshape(time * batch, -1)  # type: ignore[arg-type]
        recurrent = torch.cat((recurrent, previous), -1)
    none = like.new_empty(0)
    return (
        d_projected,
        torch.mm(d_projected.view(time * batch, -1).mT, recurrent),
        torch.mm(d_interface.view(time * batch, -1).mT, hidden.view(time * batch, -1)),
        d_interface.sum((0, 1)),
        d_memory,
        d_weights,
        d_reads.reshape(batch, sizes.num_read_heads, sizes.word_size),
        d_hidden if is_lstm else none,
        d_cell if is_lstm else none,
    )


def _shifted_in(first: Tensor, following: Tensor) -> Tensor:
    """What each step started from: ``first``, then ``following`` without its last step."""
    return torch.cat((first.unsqueeze(0), following))[:-1]


def _segment(
    checkpoint: Tensor,
    heads: HeadParameters,
    previous_weights: Tensor,
    all_weights: Tensor,
    active: list[Tensor],
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
        write_weights = all_weights[start + at, :, -num_write_heads:]
        written = write(memories[-1], write_weights, parameters[at].erase, parameters[at].add)
        if active:
            written = torch.where(active[start + at].unsqueeze(-1), written, memories[-1])
        memories.append(written)
    stacked = torch.stack(memories)
    together = address(
        stacked.view(steps * batch, *checkpoint.shape[1:]),
        *flat_heads[:5],
        previous_weights[start:stop].reshape(steps * batch, *previous_weights.shape[2:]),
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
