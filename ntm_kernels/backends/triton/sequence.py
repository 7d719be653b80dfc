"""``sequence`` in one launch or as a loop of steps.

One launch serves memories that one program can hold over all steps.
"""

from __future__ import annotations

from ntm_kernels.backends.project import ProjectedSequence
from ntm_kernels.backends.torch.controller import weight_gradients
from ntm_kernels.backends.torch.lift import lower
from ntm_kernels.backends.torch.sequence import Saved, activated
from ntm_kernels.backends.triton import sequence_as_step_loop, sequence_in_one_launch
from ntm_kernels.backends.triton.launch_table import OnChip
from ntm_kernels.backends.triton.launcher import Launcher
from ntm_kernels.backends.triton.step import Step
from ntm_kernels.backends.triton.write import Write
from ntm_kernels.ops import SequenceInputs, SequenceOutputs, Sizes


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
            outputs, kept = sequence_as_step_loop.forward(
                self.step, inputs, sizes, save_for_backward
            )
        else:
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
            found, d_steps = sequence_as_step_loop.backward(
                self.step, self.write, grads, inputs, outputs, saved, sizes
            )
        else:
            found, d_steps = sequence_in_one_launch.backward(
                self.launcher, row, grads, inputs, outputs, saved, sizes
            )
        d_weights = weight_gradients(
            d_steps.gates, d_steps.interface, inputs, outputs, saved.lower_hidden
        )
        return lower(found._replace(x=d_steps.gates.select(1, 0), **d_weights), inputs)

    def _row(self, inputs: SequenceInputs, sizes: Sizes) -> OnChip | None:
        """How one launch holds the memory; ``None`` where a loop of steps serves the call."""
        return self.launcher.table.fitting(sizes, inputs.initial_memory.dtype, sequence=True)
