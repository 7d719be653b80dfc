"""``sequence`` as a loop of steps, for memories too large for one program.

The controller is matrix products and a few elementwise operations of torch; step and its backward
are the backend's own. Saves what the persistent kernel saves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ntm_kernels.backends.base import Backend, SequenceArguments, SequenceOutputs, Sizes
from ntm_kernels.backends.torch.sequence import active_steps, lstm, lstm_slopes
from ntm_kernels.reference import arithmetic_dtype

State = tuple[Tensor, ...]  # memory, weightings, read vectors; hidden and cell of an LSTM


def lifted(tensor: Tensor) -> Tensor:
    return tensor.to(arithmetic_dtype(tensor.dtype))


def before(first: Tensor, following: Tensor) -> Tensor:
    """What each step started from: ``first``, then ``following`` without its last step."""
    return torch.cat((first.unsqueeze(0), following[:-1]))


def hold(active: Tensor, after: State, earlier: State) -> State:
    """Of each part that after the step where the sequence is ``active [B]``, else the earlier."""
    return tuple(
        torch.where(active.view(-1, *[1] * (new.dim() - 1)), new, old)
        for new, old in zip(after, earlier, strict=True)
    )


def sequence(
    backend: Backend, arguments: SequenceArguments, sizes: Sizes, save: bool, keep: bool
) -> tuple[SequenceOutputs, list[Tensor]]:
    """Outputs without the trace; checkpoints, weightings, interface vectors, gates and cells."""
    projected, recurrent_weight, interface_weight, bias = map(lifted, arguments[:4])
    state: State = (arguments.memory, arguments.weightings, arguments.read_vectors)
    is_lstm = arguments.hidden is not None and arguments.cell is not None
    if arguments.hidden is not None and arguments.cell is not None:
        state += (arguments.hidden, arguments.cell)
    active = None
    if arguments.lengths is not None:
        active = active_steps(arguments.lengths, sizes.time)
        projected = projected.masked_fill(~active.unsqueeze(-1), 0)

    steps = (sizes.time, sizes.batch)
    like = arguments.memory
    all_hidden = like.new_empty(*steps, sizes.hidden_size)
    all_reads = like.new_empty(sizes.time, *arguments.read_vectors.shape)
    saved = [
        like.new_empty(shape if wanted else 0)
        for shape, wanted in zip(
            backend.saved_shapes("sequence", sizes, "lstm" if is_lstm else ""),
            (save, keep, keep, save, save),
            strict=True,
        )
    ]
    checkpoints, all_weightings, interfaces, all_gates, cells = saved
    for t in range(sizes.time):
        memory, weightings, reads, *controller = state
        if save and t % sizes.checkpoint_every == 0:
            checkpoints[t // sizes.checkpoint_every] = memory
        if is_lstm:
            seen = torch.cat((reads.flatten(1), controller[0]), -1)
            gates = torch.addmm(projected[t], seen, recurrent_weight.mT)
            hidden, cell, activated = lstm(gates, controller[1])
            controller = [hidden, cell]
            if save:
                all_gates[t] = activated
        else:
            hidden = torch.addmm(projected[t], reads.flatten(1), recurrent_weight.mT).tanh_()
        interface = torch.addmm(bias, hidden, interface_weight.mT)
        reads, memory, weightings, _ = backend.step(memory, interface, weightings, sizes, False)
        after: State = (memory, weightings, reads, *controller)
        if active is not None:
            after = hold(active[t], after, state)
            hidden = hidden.masked_fill(~active[t].unsqueeze(-1), 0)
            reads = reads.masked_fill(~active[t].view(-1, 1, 1), 0)
        state = after
        all_hidden[t], all_reads[t] = hidden, reads
        if keep:
            all_weightings[t], interfaces[t] = state[1], interface
        if save and is_lstm:
            cells[t] = state[4]

    memory, weightings, reads, *controller = state
    outputs = SequenceOutputs(
        hidden=all_hidden,
        read_vectors=all_reads,
        memory=memory,
        weightings=weightings,
        final_read_vectors=reads,
        final_hidden=controller[0] if is_lstm else like.new_empty(0),
        final_cell=controller[1] if is_lstm else like.new_empty(0),
        trace_weightings=like.new_empty(0),
        trace_interface=like.new_empty(0),
    )
    return outputs, saved


def sequence_backward(
    backend: Backend,
    grads: list[Tensor | None],
    arguments: SequenceArguments,
    hidden: Tensor,
    saved: list[Tensor],
    sizes: Sizes,
) -> tuple[Tensor, Tensor, State]:
    """Gradients of the gates and interface vectors of all steps, and of the initial state."""
    checkpoints, all_weightings, interfaces, all_gates, cells = saved
    recurrent_weight, interface_weight = map(lifted, arguments[1:3])
    is_lstm = arguments.cell is not None
    d_all_hidden, d_all_reads = grads[:2]
    initial = [part for part in arguments[4:9] if part is not None]
    d_state: State = tuple(
        part.new_zeros(part.shape) if grad is None else grad
        for part, grad in zip(initial, grads[2:], strict=False)
    )
    previous_weightings = before(arguments.weightings, all_weightings)
    erase = torch.sigmoid(sizes.layout.split(interfaces).erase)
    add = sizes.layout.split(interfaces).add
    if arguments.cell is not None:
        slopes, cell_slopes = lstm_slopes(all_gates, cells, before(arguments.cell, cells))
        forget_gates = all_gates.chunk(4, -1)[1]
    else:
        slopes = 1 - hidden.square()
    active = None
    if arguments.lengths is not None:
        active = active_steps(arguments.lengths, sizes.time)

    d_gates = checkpoints.new_empty(arguments.input.shape)
    d_interfaces = interfaces.new_empty(interfaces.shape)
    num_reads = sizes.num_read_heads * sizes.word_size
    for segment in reversed(range(sizes.num_checkpoints)):
        start = segment * sizes.checkpoint_every
        stop = min(start + sizes.checkpoint_every, sizes.time)
        memories = [checkpoints[segment]]
        for t in range(start, stop - 1):
            write_weightings = all_weightings[t, :, sizes.num_read_heads :]
            memory = backend.write(memories[-1], write_weightings, erase[t], add[t])
            if active is not None:
                (memory,) = hold(active[t], (memory,), (memories[-1],))
            memories.append(memory)
        for t in reversed(range(start, stop)):
            d_memory, d_weightings, d_reads, *d_controller = d_state
            if d_all_reads is not None:
                d_reads = d_reads + d_all_reads[t]
            d_memory, d_interface, d_weightings = backend.step_backward(
                d_reads,
                d_memory,
                d_weightings,
                memories[t - start],
                interfaces[t],
                previous_weightings[t],
                all_weightings[t],
                [],
                sizes,
            )
            d_hidden = d_interface @ interface_weight
            if d_all_hidden is not None:
                d_hidden += d_all_hidden[t]
            if is_lstm:
                d_hidden += d_controller[0]
                d_cell = torch.addcmul(d_controller[1], d_hidden, cell_slopes[t])
                d_gate = torch.cat((d_cell, d_cell, d_cell, d_hidden), -1).mul_(slopes[t])
                d_reads, d_before = (d_gate @ recurrent_weight).split(
                    (num_reads, sizes.hidden_size), -1
                )
                d_controller = [d_before, d_cell * forget_gates[t]]
            else:
                d_gate = d_hidden.mul_(slopes[t])
                d_reads = d_gate @ recurrent_weight
            d_earlier: State = (d_memory, d_weightings, d_reads.view_as(d_state[2]), *d_controller)
            if active is not None:
                over = ~active[t].unsqueeze(-1)
                d_interface = d_interface.masked_fill(over, 0)
                d_gate = d_gate.masked_fill(over, 0)
                d_earlier = hold(active[t], d_earlier, d_state)
            d_state = d_earlier
            d_gates[t], d_interfaces[t] = d_gate, d_interface
    return d_gates, d_interfaces, tuple(part.contiguous() for part in d_state)
