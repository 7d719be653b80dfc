"""``sequence`` in one launch or as a loop of steps.

One launch serves memories that one program can hold over all steps.
"""

from __future__ import annotations

from ntm_kernels.backends import controller_cost, step_loop
from ntm_kernels.backends.base import Problem, problem_of
from ntm_kernels.backends.controller_cost import ONE_LAUNCH, STEP_LOOP, Block
from ntm_kernels.backends.project import ProjectedSequence
from ntm_kernels.backends.torch.controller import weight_gradients
from ntm_kernels.backends.torch.lift import lower
from ntm_kernels.backends.torch.sequence import Saved, activated
from ntm_kernels.backends.triton import sequence_in_one_launch
from ntm_kernels.backends.triton.launch_table import INT32_MAX, OnChip, Table
from ntm_kernels.backends.triton.launcher import Launcher
from ntm_kernels.backends.triton.step import Step
from ntm_kernels.backends.triton.write import Write
from ntm_kernels.ops import SEQUENCE, SequenceInputs, SequenceOutputs, Sizes
from ntm_kernels.reference import arithmetic_dtype

# Warp instructions for 32 multiply-adds of the controller, the mean of both directions. The machine
# code for sm_90 issues 17 forward and 34 backward with the paper's sizes.
INSTRUCTIONS = 25.0


class Sequence(ProjectedSequence[Saved]):
    """``sequence`` in one launch or as a loop of steps."""

    saved = Saved

    def __init__(self, launcher: Launcher, step: Step, write: Write) -> None:
        self.launcher = launcher
        self.step, self.write = step, write

    def forward_projected(
        self, inputs: SequenceInputs, sizes: Sizes, save_for_backward: bool
    ) -> tuple[SequenceOutputs, Saved | None]:
        row = self._row(inputs, sizes)
        if row is None:
            return step_loop.forward(self.step, inputs, sizes, save_for_backward)
        outputs, kept = sequence_in_one_launch.forward(
            self.launcher, row, inputs, sizes, save_for_backward
        )
        if sizes.return_trace:
            outputs = outputs._replace(
                # A copy if the backward is to read the original: the trace is the caller's.
                trace_weightings=kept.weightings.to(
                    inputs.initial_weightings.dtype, copy=save_for_backward
                ),
                trace_interface=activated(kept.interface, sizes.layout),
            )
        return outputs, kept if save_for_backward else None

    def backward_projected(
        self,
        grads: SequenceOutputs,
        inputs: SequenceInputs,
        outputs: SequenceOutputs,
        saved: Saved,
        sizes: Sizes,
    ) -> SequenceInputs:
        row = self._row(inputs, sizes)
        if row is None:
            return step_loop.backward(self.step, self.write, grads, inputs, outputs, saved, sizes)
        found, d_steps = sequence_in_one_launch.backward(
            self.launcher, row, grads, inputs, outputs, saved, sizes
        )
        d_weights = weight_gradients(
            d_steps.gates, d_steps.interface, inputs, outputs, saved.lower_hidden
        )
        return lower(found._replace(x=d_steps.gates.select(1, 0), **d_weights), inputs)

    def _row(self, inputs: SequenceInputs, sizes: Sizes) -> OnChip | None:
        """How one launch holds the memory; ``None`` where a loop of steps serves the call."""
        return row_of_sequence(self.launcher.table, problem_of(SEQUENCE, inputs, sizes))


def row_of_sequence(table: Table, problem: Problem) -> OnChip | None:
    """How one launch holds the memory; ``None`` where a loop of steps serves the call."""
    sizes = problem.sizes
    row = table.fitting(sizes, problem.dtype, sequence=True)
    refusals = {ONE_LAUNCH: _one_launch_refusal(row, sizes), STEP_LOOP: None}
    element_size = arithmetic_dtype(problem.dtype).itemsize

    def block() -> Block:
        # A program loads all weights at every step, forward and backward.
        return Block(INSTRUCTIONS, 2 * element_size * controller_cost.weights(sizes), True)

    way = controller_cost.way(
        sizes,
        refusals,
        block,
        element_size=element_size,
        launch=controller_cost.launch_time(problem.device),
        in_bfloat16=step_loop.rounds(problem),
    )
    return row if way == ONE_LAUNCH else None


def _one_launch_refusal(row: OnChip | None, sizes: Sizes) -> str | None:
    """Why one launch cannot serve a sequence; ``None`` if it can."""
    if row is None:
        return "no program can hold the memory"
    states = sizes.time * sizes.num_layers * sizes.batch
    if states > INT32_MAX:
        return f"{states} hidden states need 64-bit indices"
    return None
