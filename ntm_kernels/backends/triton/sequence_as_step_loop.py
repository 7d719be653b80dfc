"""``sequence`` as a loop of steps, for memories that no program can hold over all steps.

The controller is the one of the backend ``torch``; ``step`` and ``write`` are this backend's own.
Keeps what ``sequence_in_one_launch`` keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ntm_kernels.backends.torch.controller import controller_of, shifted_in
from ntm_kernels.backends.torch.lift import lift, lower, with_zeros
from ntm_kernels.backends.torch.sequence import (
    Saved,
    State,
    UndoOutsideHeads,
    apart,
    cut,
    hold,
    inside_steps,
    map_state,
    reset_steps,
    together,
)
from ntm_kernels.backends.triton.records import StepGrads, some
from ntm_kernels.backends.triton.sequence_in_one_launch import empty_kept
from ntm_kernels.backends.triton.step import Step
from ntm_kernels.backends.triton.write import Write
from ntm_kernels.ops import (
    WRITE,
    NoOptions,
    NothingSaved,
    SequenceInputs,
    SequenceOutputs,
    Sizes,
    StepInputs,
    StepOutputs,
    WriteInputs,
)
from ntm_kernels.ops.declare import names


def forward(
    step: Step, inputs: SequenceInputs, sizes: Sizes, save_for_backward: bool
) -> tuple[SequenceOutputs, Saved]:
    """Outputs without the trace, and what is kept."""
    one_step = _OneStep(step, inputs, sizes, save_for_backward)
    state = start = State(
        memory=inputs.initial_memory,
        weightings=inputs.initial_weightings,
        read_vectors=inputs.initial_read_vectors.flatten(1),
        hidden=apart(inputs.initial_hidden),
        cell=apart(inputs.initial_cell),
    )
    resets = reset_steps(inputs)
    for time in range(sizes.time):
        if resets is not None:
            state = hold(resets[time], start, state)
        state = one_step(time, state)
    outputs = some(
        SequenceOutputs,
        hidden=torch.stack(one_step.hidden),
        read_vectors=torch.stack(one_step.read_vectors).view(sizes.shape("T B R M")),
        final_memory=state.memory,
        final_weightings=state.weightings,
        final_read_vectors=state.read_vectors.view(sizes.shape("B R M")),
        final_hidden=together(state.hidden),
        final_cell=together(state.cell),
    )
    return lower(outputs, inputs), one_step.kept


class _OneStep:
    """The step of a sequence: controller, interface vector, heads. Keeps what it is told to."""

    def __init__(
        self, step: Step, inputs: SequenceInputs, sizes: Sizes, save_for_backward: bool
    ) -> None:
        given = lift(inputs)
        self.step, self.sizes = step, sizes
        self.controller = controller_of(given)
        self.interface_weight, self.interface_bias = given.interface_weight.mT, given.interface_bias
        self.active, self.projected = inside_steps(inputs, sizes), given.x
        if self.active is not None:
            self.projected = self.projected.masked_fill(~self.active, 0)
        self.kept = empty_kept(inputs, sizes, save_for_backward)
        self.hidden: list[Tensor] = []
        self.read_vectors: list[Tensor] = []

    def __call__(self, time: int, state: State) -> State:
        """The state after a step, from that before it."""
        kept, every = self.kept, self.sizes.segment
        if kept.checkpoints is not None and time % every == 0:
            kept.checkpoints[time // every] = state.memory
        hidden, cell, gates = self.controller.step(
            self.projected[time], state.read_vectors, state.hidden, state.cell
        )
        *lower_hidden, top = hidden
        interface = torch.addmm(self.interface_bias, top, self.interface_weight)
        given = StepInputs(state.memory, interface, state.weightings)
        after, _ = self.step.forward(given, self.sizes, False)
        read_vectors = after.read_vectors.flatten(1)
        new = State(
            memory=after.memory,
            weightings=after.weightings,
            read_vectors=read_vectors,
            hidden=hidden if cell else (),
            cell=cell,
        )
        if self.active is not None:
            active = self.active[time]
            new = hold(active, new, state)
            top = top.masked_fill(~active, 0)
            read_vectors = read_vectors.masked_fill(~active, 0)
        self.hidden.append(top)
        self.read_vectors.append(read_vectors)
        if kept.weightings is not None and kept.interface is not None:
            kept.weightings[time], kept.interface[time] = new.weightings, interface
        for whole, layers in (
            (kept.gates, gates),
            (kept.cells, new.cell),
            (kept.lower_hidden, lower_hidden),
        ):
            if whole is not None:
                for index, of_layer in enumerate(layers):
                    whole[time, index] = of_layer
        return new


def backward(
    step: Step,
    write: Write,
    grads: SequenceOutputs,
    inputs: SequenceInputs,
    outputs: SequenceOutputs,
    saved: Saved,
    sizes: Sizes,
) -> tuple[SequenceInputs, StepGrads]:
    """Gradients of the initial state, and those of every step."""
    given = with_zeros(lift(grads), sizes, saved.checkpoints)
    undo = _UndoStep(step, given, inputs, outputs, saved, sizes)
    rewrite = _Rewrite(write, undo.outside_heads.inside, inputs, saved, sizes)
    d_state = State(
        memory=given.final_memory,
        weightings=given.final_weightings,
        read_vectors=given.final_read_vectors.flatten(1),
        hidden=apart(given.final_hidden),
        cell=apart(given.final_cell),
    )
    resets, d_start = reset_steps(inputs), None
    for segment in reversed(range(sizes.num_checkpoints)):
        start = segment * sizes.segment
        stop = min(start + sizes.segment, sizes.time)
        memories = rewrite(segment, start, stop)
        for time, memory in reversed(list(enumerate(memories, start))):
            d_state = undo(time, memory, d_state)
            if resets is not None:
                d_state, d_start = cut(resets[time], d_state, d_start)
    if d_start is not None:
        d_state = map_state(torch.add, d_state, d_start)
    found = some(
        SequenceInputs,
        initial_memory=d_state.memory,
        initial_weightings=d_state.weightings,
        initial_read_vectors=d_state.read_vectors.view(sizes.shape("B R M")),
        initial_hidden=together(d_state.hidden),
        initial_cell=together(d_state.cell),
    )
    return found, StepGrads(*undo.outside_heads.collected())


class _UndoStep:
    """The backward of one step after the other, from the last to the first."""

    def __init__(
        self,
        step: Step,
        grads: SequenceOutputs,
        inputs: SequenceInputs,
        outputs: SequenceOutputs,
        saved: Saved,
        sizes: Sizes,
    ) -> None:
        given = lift(inputs)
        self.step, self.grads, self.saved, self.sizes = step, grads, saved, sizes
        self.outside_heads = UndoOutsideHeads(grads, given, lift(outputs), saved, sizes)
        self.previous_weightings = shifted_in(
            given.initial_weightings, saved.weightings, inputs.resets
        )

    def __call__(self, time: int, memory: Tensor, d_after: State) -> State:
        """The gradient of the state before the step from that of the state after it."""
        d_read_vectors = d_after.read_vectors + self.grads.read_vectors[time].flatten(1)
        back = self.step.backward(
            StepOutputs(
                d_read_vectors.view(self.sizes.shape("B R M")), d_after.memory, d_after.weightings
            ),
            StepInputs(memory, self.saved.interface[time], self.previous_weightings[time]),
            some(StepOutputs, weightings=self.saved.weightings[time]),
            NothingSaved(),
            self.sizes,
            frozenset(names(StepInputs)),
        )
        return self.outside_heads(
            time, back.interface, back.memory, back.previous_weightings, d_after
        )


class _Rewrite:
    """Finds the memory before each step of a segment again, by repeating its writes."""

    def __init__(
        self,
        write: Write,
        inside: Sequence[Tensor] | None,
        inputs: SequenceInputs,
        saved: Saved,
        sizes: Sizes,
    ) -> None:
        self.write, self.saved, self.sizes = write, saved, sizes
        heads = sizes.layout.split(saved.interface)
        # Contiguous once, not in every write.
        self.erase, self.add = torch.sigmoid(heads.erase), heads.add.contiguous()
        self.inside = inside
        self.resets, self.initial_memory = reset_steps(inputs), lift(inputs).initial_memory

    def __call__(self, segment: int, start: int, stop: int) -> list[Tensor]:
        memory = self.saved.checkpoints[segment]
        memories = [memory]
        for time in range(start, stop - 1):
            memory = self._written(time, memory)
            if self.resets is not None:
                reset = self.resets[time + 1].unsqueeze(-1)
                memory = torch.where(reset, self.initial_memory, memory)
            memories.append(memory)
        return memories

    def _written(self, time: int, memory: Tensor) -> Tensor:
        weightings = self.saved.weightings[time].narrow(
            1, self.sizes.num_read_heads, self.sizes.num_write_heads
        )
        given = WriteInputs(memory, weightings, self.erase[time], self.add[time])
        after, _ = self.write.forward(given, WRITE.sizes(given, NoOptions()), False)
        if self.inside is None:
            return after.memory
        return torch.where(self.inside[time].unsqueeze(-1), after.memory, memory)
