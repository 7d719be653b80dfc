"""A whole sequence: the loop forward, and backward through time from checkpoints of the memory.

Saved for the backward: the memory before every ``checkpoint_every``-th step, and of every step the
weightings, the raw interface vector and, for an LSTM, the activated gates and the cell. The
backward runs segment by segment from the last to the first: it rebuilds the memories of a segment
by repeating its writes, recomputes the addressing of all its steps in one batch, then walks back
through its steps.

The heads of a step are a policy: ``ntm_kernels.backends.step_loop`` runs the same loops with the
kernel of another backend in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ntm_kernels.backends.project import ProjectedSequence
from ntm_kernels.backends.torch.address import Addressing, Similarity, address
from ntm_kernels.backends.torch.controller import (
    ControllerPast,
    Layers,
    controller_of,
    shifted_in,
    weight_gradients,
)
from ntm_kernels.backends.torch.interface import activate, activate_backward, activation_slopes
from ntm_kernels.backends.torch.lift import lift, lower, with_zeros
from ntm_kernels.backends.torch.products import UNCHANGED, Products
from ntm_kernels.backends.torch.step import HeadsInputs, addressed, step, step_backward
from ntm_kernels.backends.torch.write import write
from ntm_kernels.interface import HeadParameters, InterfaceLayout
from ntm_kernels.ops import (
    Field,
    SequenceInputs,
    SequenceOutputs,
    Sizes,
    StepInputs,
    StepOutputs,
    record,
)


@record
class Saved(NamedTuple):
    """What the backward needs: see the top of this file."""

    checkpoints: Annotated[Tensor, Field("Q B N M")]
    weightings: Annotated[Tensor, Field("T B H N")]
    interface: Annotated[Tensor, Field("T B P")]
    gates: Annotated[Tensor | None, Field("T L B G", when="is_lstm")]
    cells: Annotated[Tensor | None, Field("T L B C", when="is_lstm")]
    lower_hidden: Annotated[Tensor | None, Field("T U B C", when="is_deep")] = None

    @property
    def controller(self) -> ControllerPast:
        return ControllerPast(self.gates, self.cells, self.lower_hidden)


class State(NamedTuple):
    """What one step hands to the next, or its gradient."""

    memory: Tensor  # [B, N, M]
    weightings: Tensor  # [B, H, N]
    read_vectors: Tensor  # [B, R·M]
    hidden: Layers = ()  # [B, C] of each layer, LSTM only
    cell: Layers = ()  # [B, C] of each layer, LSTM only


class Kept(NamedTuple):
    """The parts of one step that are kept for all steps.

    Each is a tuple, with a tensor ``[B, …]`` for each layer or one alone; it is empty where the
    part is not asked for.
    """

    hidden: Layers  # [B, C] of the top, 0 beyond a sequence's length, as the next
    read_vectors: Layers  # [B, R·M]
    weightings: Layers  # [B, H, N]
    interface: Layers  # [B, P]
    gates: Layers  # [B, G] of each layer, LSTM only
    cell: Layers  # [B, C] of each layer, LSTM only
    lower_hidden: Layers  # [B, C] of each layer below the top


class StepGrads(NamedTuple):
    """Gradients that the backward of a sequence finds in every step."""

    gates: Tensor  # [T, L, B, G]
    interface: Tensor  # [T, B, P]


#: One step of all heads, from a raw interface vector.
Heads = Callable[[StepInputs], StepOutputs]


class Sequence(ProjectedSequence[Saved]):
    """The op ``sequence``; ``products`` are those of the controller's and interface's weights."""

    saved = Saved

    def __init__(self, products: Products = UNCHANGED) -> None:
        self.products = products

    def forward_projected(
        self, inputs: SequenceInputs, sizes: Sizes, save_for_backward: bool
    ) -> tuple[SequenceOutputs, Saved | None]:
        heads = partial(_heads, sizes)
        outputs, saved = sequence(lift(inputs), sizes, save_for_backward, heads, self.products)
        return lower(outputs, inputs), saved

    def backward_projected(
        self,
        grads: SequenceOutputs,
        inputs: SequenceInputs,
        outputs: SequenceOutputs,
        saved: Saved,
        sizes: Sizes,
    ) -> SequenceInputs:
        given = with_zeros(lift(grads), sizes, saved.checkpoints)
        undo = _UndoStep(given, lift(inputs), lift(outputs), saved, sizes, self.products)
        return lower(
            sequence_backward(undo, given, lift(inputs), lift(outputs), saved, sizes), inputs
        )


def _heads(sizes: Sizes, inputs: StepInputs) -> StepOutputs:
    heads = activate(inputs.interface, sizes.layout)
    return step(HeadsInputs(inputs.memory, heads, inputs.previous_weightings), sizes.num_read_heads)


def inside_steps(inputs: SequenceInputs, sizes: Sizes) -> Tensor | None:
    """``[T, B, 1]``: whether a step is inside its sequence; ``None`` if all are."""
    lengths = inputs.lengths
    if lengths is None:
        return None
    steps = torch.arange(sizes.time, device=lengths.device)
    return (steps.unsqueeze(-1) < lengths).unsqueeze(-1)


def reset_steps(inputs: SequenceInputs) -> Layers | None:
    """``[B, 1]`` for each step: whether it starts from the initial state; ``None`` if none does."""
    return None if inputs.resets is None else inputs.resets.unsqueeze(-1).unbind(0)


def sequence(
    inputs: SequenceInputs,
    sizes: Sizes,
    save_for_backward: bool,
    heads: Heads,
    products: Products = UNCHANGED,
) -> tuple[SequenceOutputs, Saved | None]:
    """The loop over the steps, with ``heads`` for the heads of each."""
    projected, inside = inputs.x, inside_steps(inputs, sizes)
    if inside is not None:
        projected = projected.masked_fill(~inside, 0)
    state = start = State(
        memory=inputs.initial_memory,
        weightings=inputs.initial_weightings,
        read_vectors=inputs.initial_read_vectors.flatten(1),
        hidden=apart(inputs.initial_hidden),
        cell=apart(inputs.initial_cell),
    )
    resets = reset_steps(inputs)
    one_step = _OneStep(inputs, sizes, save_for_backward, heads, products)
    checkpoints: list[Tensor] = []
    kept: list[Kept] = []
    active = [None] * sizes.time if inside is None else inside.unbind(0)
    for time, (x, now) in enumerate(zip(projected.unbind(0), active, strict=True)):
        if resets is not None:
            state = hold(resets[time], start, state)
        if save_for_backward and time % sizes.segment == 0:
            checkpoints.append(state.memory)
        state, of_step = one_step(x, now, state)
        kept.append(of_step)
    steps = _stacked(kept)
    outputs = _outputs(steps, state, sizes)
    if not save_for_backward:
        return outputs, None
    if outputs.trace_weightings is not None:
        # The trace is the caller's; what the backward reads must not change with it.
        outputs = outputs._replace(trace_weightings=outputs.trace_weightings.clone())
    assert steps.weightings is not None
    assert steps.interface is not None
    return outputs, Saved(
        checkpoints=torch.stack(checkpoints),
        weightings=steps.weightings,
        interface=steps.interface,
        gates=steps.gates,
        cells=steps.cells,
        lower_hidden=steps.lower_hidden,
    )


class _OneStep:
    """The step of a sequence: controller, interface vector, heads."""

    def __init__(
        self,
        inputs: SequenceInputs,
        sizes: Sizes,
        save_for_backward: bool,
        heads: Heads,
        products: Products,
    ) -> None:
        self.controller, self.heads = controller_of(inputs, products), heads
        self.products = products
        self.interface_weight = products.weight(inputs.interface_weight).mT
        self.interface_bias = inputs.interface_bias
        self.save = save_for_backward
        self.keep = save_for_backward or sizes.return_trace

    def __call__(self, x: Tensor, active: Tensor | None, state: State) -> tuple[State, Kept]:
        hidden, cell, gates = self.controller.step(x, state.read_vectors, state.hidden, state.cell)
        interface = self.products.addmm(self.interface_bias, hidden[-1], self.interface_weight)
        after = self.heads(StepInputs(state.memory, interface, state.weightings))
        read_vectors = after.read_vectors.flatten(1)
        new = State(
            memory=after.memory,
            weightings=after.weightings,
            read_vectors=read_vectors,
            hidden=hidden if cell else (),
            cell=cell,
        )
        *lower_hidden, top = hidden
        if active is not None:
            top = top.masked_fill(~active, 0)
            read_vectors = read_vectors.masked_fill(~active, 0)
            new = hold(active, new, state)
        return new, Kept(
            hidden=(top,),
            read_vectors=(read_vectors,),
            weightings=(new.weightings,) if self.keep else (),
            interface=(interface,) if self.keep else (),
            gates=gates if self.save else (),
            cell=new.cell if self.save else (),
            lower_hidden=tuple(lower_hidden) if self.save else (),
        )


class Steps(NamedTuple):
    """What is kept of all steps; ``None`` where nobody asks for it."""

    hidden: Tensor  # [T, B, C]
    read_vectors: Tensor  # [T, B, R·M]
    weightings: Tensor | None  # [T, B, H, N]
    interface: Tensor | None  # [T, B, P]
    gates: Tensor | None  # [T, L, B, G]
    cells: Tensor | None  # [T, L, B, C]
    lower_hidden: Tensor | None  # [T, U, B, C]


def _stacked(kept: list[Kept]) -> Steps:
    def all_steps(of: Callable[[Kept], Layers]) -> Tensor | None:
        """``[T · layers, B, …]``."""
        parts = [part for step in kept for part in of(step)]
        return torch.stack(parts) if parts else None

    def of_layers(of: Callable[[Kept], Layers]) -> Tensor | None:
        parts = all_steps(of)
        return None if parts is None else parts.unflatten(0, (len(kept), -1))

    hidden, read_vectors = (
        all_steps(lambda one: one.hidden),
        all_steps(lambda one: one.read_vectors),
    )
    assert hidden is not None
    assert read_vectors is not None
    return Steps(
        hidden=hidden,
        read_vectors=read_vectors,
        weightings=all_steps(lambda one: one.weightings),
        interface=all_steps(lambda one: one.interface),
        gates=of_layers(lambda one: one.gates),
        cells=of_layers(lambda one: one.cell),
        lower_hidden=of_layers(lambda one: one.lower_hidden),
    )


def apart(parts: Tensor | None) -> Layers:
    """The tensor ``[B, …]`` of each layer from those of all ``[L, B, …]``."""
    return () if parts is None else parts.unbind(0)


def together(layers: Layers) -> Tensor | None:
    """The inverse of ``apart``."""
    return torch.stack(layers) if layers else None


def _outputs(steps: Steps, state: State, sizes: Sizes) -> SequenceOutputs:
    read_shape = (sizes.batch, sizes.num_read_heads, sizes.word_size)
    trace_interface = None
    if sizes.return_trace and steps.interface is not None:
        trace_interface = activated(steps.interface, sizes.layout)
    return SequenceOutputs(
        hidden=steps.hidden,
        read_vectors=steps.read_vectors.view(sizes.time, *read_shape),
        final_memory=state.memory,
        final_weightings=state.weightings,
        final_read_vectors=state.read_vectors.view(read_shape),
        final_hidden=together(state.hidden),
        final_cell=together(state.cell),
        trace_weightings=steps.weightings if sizes.return_trace else None,
        trace_interface=trace_interface,
    )


def hold(active: Tensor, new: State, old: State) -> State:
    """``new`` for the sequences where ``active [B, 1]``, ``old`` for the others."""

    def one(after: Tensor, before: Tensor) -> Tensor:
        return torch.where(active.view(-1, *[1] * (after.dim() - 1)), after, before)

    return map_state(one, new, old)


def activated(interface: Tensor, layout: InterfaceLayout) -> Tensor:
    return layout.join(activate(interface, layout))


class UndoSteps(Protocol):
    """The backward of one step after the other, from the last to the first."""

    outside_heads: UndoOutsideHeads

    def replay(self, segment: int, start: int, stop: int) -> list[Any]:
        """What the backward of each step needs of its forward, for the steps of a segment."""

    def __call__(self, time: int, forward: Any, d_after: State) -> State:
        """The gradient of the state before the step from that of the state after it."""


def sequence_backward(
    undo: UndoSteps,
    grads: SequenceOutputs,
    inputs: SequenceInputs,
    outputs: SequenceOutputs,
    saved: Saved,
    sizes: Sizes,
) -> SequenceInputs:
    """The gradient of each input; ``grads`` of all outputs are there."""
    d_state = State(
        memory=grads.final_memory,
        weightings=grads.final_weightings,
        read_vectors=grads.final_read_vectors.flatten(1),
        hidden=apart(grads.final_hidden),
        cell=apart(grads.final_cell),
    )
    resets, d_start = reset_steps(inputs), None
    for segment in reversed(range(sizes.num_checkpoints)):
        start = segment * sizes.segment
        stop = min(start + sizes.segment, sizes.time)
        for time, forward in reversed(list(enumerate(undo.replay(segment, start, stop), start))):
            d_state = undo(time, forward, d_state)
            if resets is not None:
                d_state, d_start = cut(resets[time], d_state, d_start)
    if d_start is not None:
        d_state = map_state(torch.add, d_state, d_start)
    d_steps, products = undo.outside_heads.collected(), undo.outside_heads.products
    d_weights = weight_gradients(
        d_steps.gates, d_steps.interface, inputs, outputs, saved.lower_hidden, products
    )
    return SequenceInputs(
        x=d_steps.gates.select(1, 0),
        **d_weights,
        initial_memory=d_state.memory,
        initial_weightings=d_state.weightings,
        initial_read_vectors=d_state.read_vectors.reshape(inputs.initial_read_vectors.shape),
        initial_hidden=together(d_state.hidden),
        initial_cell=together(d_state.cell),
        lengths=None,
        input_weight=None,
        input_bias=None,
    )


def map_state(function: Callable[..., Tensor], *states: State) -> State:
    """``function`` of the same tensor of each state."""
    memory, weightings, read_vectors, hidden, cell = zip(*states, strict=True)
    return State(
        function(*memory),
        function(*weightings),
        function(*read_vectors),
        tuple(map(function, *hidden)),
        tuple(map(function, *cell)),
    )


def cut(reset: Tensor, d_state: State, d_start: State | None) -> tuple[State, State]:
    """Where a step starts anew, its gradient goes to the initial state and not further back.

    Gives the gradient of the state before the reset, and the sum for the initial state.
    """
    nothing = map_state(torch.zeros_like, d_state)
    found = hold(reset, d_state, nothing)
    total = found if d_start is None else map_state(torch.add, d_start, found)
    return hold(reset, nothing, d_state), total


class Replayed(NamedTuple):
    """A step found again: its inputs, head parameters activated, and its addressing."""

    inputs: HeadsInputs
    addressing: Addressing


class UndoOutsideHeads:
    """The backward of a step without its heads: interface weight, controller and length.

    Serves every loop of steps whose controller is this backend's, whoever computes the heads.
    """

    def __init__(
        self,
        grads: SequenceOutputs,
        inputs: SequenceInputs,
        outputs: SequenceOutputs,
        saved: Saved,
        sizes: Sizes,
        products: Products = UNCHANGED,
    ) -> None:
        self.products = products
        self.interface_weight = products.weight(inputs.interface_weight)
        self.d_hidden = grads.hidden.unbind(0)
        self.controller = controller_of(inputs, products).backward(outputs, saved.controller)
        inside = inside_steps(inputs, sizes)
        self.inside = None if inside is None else inside.unbind(0)
        self.d_gates: list[Layers] = []
        self.d_interface: list[Tensor] = []

    def __call__(
        self,
        time: int,
        d_interface: Tensor,
        d_memory: Tensor,
        d_weightings: Tensor,
        d_after: State,
    ) -> State:
        """The gradient of the state before, from what the heads found and that of the state after.

        The heads found the gradients of the interface vector, and of the memory and the
        weightings before the step.
        """
        d_top = self.products.addmm(self.d_hidden[time], d_interface, self.interface_weight)
        found = self.controller.step(time, d_top, d_after.hidden, d_after.cell)
        d_gates = found.d_gates
        d_before = State(
            memory=d_memory,
            weightings=d_weightings,
            read_vectors=found.d_read_vectors,
            hidden=found.d_hidden,
            cell=found.d_cell,
        )
        if self.inside is not None:
            active = self.inside[time]
            d_interface = d_interface.masked_fill(~active, 0)
            d_gates = tuple(of_layer.masked_fill(~active, 0) for of_layer in d_gates)
            d_before = hold(active, d_before, d_after)
        self.d_gates.append(d_gates)
        self.d_interface.append(d_interface)
        return d_before

    def collected(self) -> StepGrads:
        d_gates = [of_layer for of_step in reversed(self.d_gates) for of_layer in of_step]
        by_step = torch.stack(d_gates).unflatten(0, (len(self.d_gates), -1))
        return StepGrads(by_step, torch.stack(self.d_interface[::-1]))


class _UndoStep(UndoSteps):
    """By the stages of this backend."""

    def __init__(
        self,
        grads: SequenceOutputs,
        inputs: SequenceInputs,
        outputs: SequenceOutputs,
        saved: Saved,
        sizes: Sizes,
        products: Products,
    ) -> None:
        self.saved, self.sizes = saved, sizes
        self.resets, self.initial_memory = reset_steps(inputs), inputs.initial_memory
        self.d_read_vectors = grads.read_vectors.flatten(2).unbind(0)
        self.previous_weightings = shifted_in(
            inputs.initial_weightings, saved.weightings, inputs.resets
        )
        flat = saved.interface.flatten(0, 1)
        self.heads = activate(flat, sizes.layout)
        slopes = activation_slopes(flat, self.heads, sizes.layout)
        self.slopes = slopes.view_as(saved.interface).unbind(0)
        self.outside_heads = UndoOutsideHeads(grads, inputs, outputs, saved, sizes, products)

    def __call__(self, time: int, forward: Replayed, d_after: State) -> State:
        sizes, heads = self.sizes, forward.inputs.heads
        d_read_vectors = d_after.read_vectors + self.d_read_vectors[time]
        back = step_backward(
            StepOutputs(
                d_read_vectors.view(sizes.batch, sizes.num_read_heads, sizes.word_size),
                d_after.memory,
                d_after.weightings,
            ),
            forward.addressing,
            forward.inputs,
        )
        d_interface = activate_backward(back.heads, self.slopes[time], heads.shift)
        return self.outside_heads(time, d_interface, back.memory, back.previous_weightings, d_after)

    def replay(self, segment: int, start: int, stop: int) -> list[Replayed]:
        """Each step of a segment again; their addressing is one batch."""
        batch, steps = self.sizes.batch, stop - start

        def per_step(part: Tensor) -> tuple[Tensor, ...]:
            return part.view(steps, batch, *part.shape[1:]).unbind(0)

        def all_of(parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
            return zip(*map(per_step, parts), strict=True)

        together = HeadParameters(*(part[start * batch : stop * batch] for part in self.heads))
        heads = [HeadParameters(*parts) for parts in all_of(together)]
        memories = self._memories(segment, start, heads)
        previous = self.previous_weightings[start:stop]
        given = HeadsInputs(torch.stack(memories).flatten(0, 1), together, previous.flatten(0, 1))
        found = address(addressed(given))
        similarities = [Similarity(*parts) for parts in all_of(found.similarity)]
        weightings = all_of((found.content, found.gathered, found.shifted, found.weightings))
        addressings = [
            Addressing(alike, *others)
            for alike, others in zip(similarities, weightings, strict=True)
        ]
        starts = map(HeadsInputs, memories, heads, previous.unbind(0))
        return list(map(Replayed, starts, addressings))

    def _memories(self, segment: int, start: int, heads: list[HeadParameters]) -> list[Tensor]:
        """The memory before each step of a segment, by repeating its writes."""
        memories = [self.saved.checkpoints[segment]]
        for time, now in enumerate(heads[:-1], start):
            _, to_write = self.saved.weightings[time].tensor_split((self.sizes.num_read_heads,), 1)
            written = write(memories[-1], to_write, now.erase, now.add)
            if self.outside_heads.inside is not None:
                active = self.outside_heads.inside[time].unsqueeze(-1)
                written = torch.where(active, written, memories[-1])
            if self.resets is not None:
                reset = self.resets[time + 1].unsqueeze(-1)
                written = torch.where(reset, self.initial_memory, written)
            memories.append(written)
        return memories
