"""``sequence`` as a loop of steps: matrix products of torch for the controller, kernels for heads.

Each step is one product of the whole batch for each layer of the controller, one for the
interface, and the kernel of ``step``. The loop and the controller are those of the backend
``torch``; the kernels of the heads are given. Nothing in it waits for the device, so a CUDA graph
can hold it. Under autocast in bfloat16 the products round their operands to bfloat16.

One launch for all steps has no launches between the steps. The loop gains where the weights or the
memory are too large for a block to hold: a matrix product reads each weight once for the whole
batch, and a step can spread a large memory over the whole card. ``controller_cost`` says which of
the two a call takes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ntm_kernels.backends.base import Kernel, Problem, problem_of
from ntm_kernels.backends.torch.controller import shifted_in
from ntm_kernels.backends.torch.lift import lift, lower, with_zeros
from ntm_kernels.backends.torch.products import IN_BFLOAT16, UNCHANGED, Products
from ntm_kernels.backends.torch.sequence import (
    Saved,
    State,
    UndoOutsideHeads,
    UndoSteps,
    reset_steps,
    sequence,
    sequence_backward,
)
from ntm_kernels.ops import (
    SEQUENCE,
    SequenceInputs,
    SequenceOutputs,
    Sizes,
    StepInputs,
    StepOutputs,
    WriteInputs,
    WriteOutputs,
)
from ntm_kernels.ops.declare import names, some

StepKernel = Kernel[StepInputs, StepOutputs, Any]
WriteKernel = Kernel[WriteInputs, WriteOutputs, Any]


def forward(
    step: StepKernel, inputs: SequenceInputs, sizes: Sizes, save_for_backward: bool
) -> tuple[SequenceOutputs, Saved | None]:
    """What ``Kernel.forward`` gives, x being projected."""
    of_step = sizes.of_step()

    def heads(given: StepInputs) -> StepOutputs:
        after, _ = step.forward(given, of_step, False)
        return after

    products = _products(inputs, sizes)
    outputs, saved = sequence(lift(inputs), sizes, save_for_backward, heads, products)
    return lower(outputs, inputs), saved


def backward(
    step: StepKernel,
    write: WriteKernel,
    grads: SequenceOutputs,
    inputs: SequenceInputs,
    outputs: SequenceOutputs,
    saved: Saved,
    sizes: Sizes,
) -> SequenceInputs:
    """The gradients of the inputs, x being projected."""
    given = with_zeros(lift(grads), sizes, saved.checkpoints)
    lifted, kept = lift(inputs), lift(outputs)
    undo = _UndoByKernels(step, write, given, lifted, kept, saved, sizes)
    return lower(sequence_backward(undo, given, lifted, kept, saved, sizes), inputs)


def rounds(problem: Problem) -> bool:
    """Whether the matrix products of a call round their operands to bfloat16.

    They do so only where the device multiplies bfloat16 with sums in float32: on NVIDIA GPUs from
    compute capability 8.0 on, and on the CPU, which stands in for them in tests.
    """
    if not problem.sizes.bfloat16_products or problem.dtype == torch.float64:
        return False
    if problem.device != "cuda":
        return True
    if torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(problem.device_index) >= (8, 0)


def told(problem: Problem) -> str:
    """The matrix products of a call in words."""
    return "matrix products in bfloat16" if rounds(problem) else "matrix products"


def _products(inputs: SequenceInputs, sizes: Sizes) -> Products:
    return IN_BFLOAT16 if rounds(problem_of(SEQUENCE, inputs, sizes)) else UNCHANGED


class _UndoByKernels(UndoSteps):
    """By the backward of ``step``, and by ``write`` for the memories of a segment."""

    def __init__(
        self,
        step: StepKernel,
        write: WriteKernel,
        grads: SequenceOutputs,
        inputs: SequenceInputs,
        outputs: SequenceOutputs,
        saved: Saved,
        sizes: Sizes,
    ) -> None:
        self.step, self.write = step, write
        self.saved, self.sizes = saved, sizes
        self.d_read_vectors = grads.read_vectors
        self.resets, self.initial_memory = reset_steps(inputs), inputs.initial_memory
        products = _products(inputs, sizes)
        self.outside_heads = UndoOutsideHeads(grads, inputs, outputs, saved, sizes, products)
        self.previous_weightings = shifted_in(
            inputs.initial_weightings, saved.weightings, inputs.resets
        )
        heads = sizes.layout.split(saved.interface)
        # Contiguous once, not in every write.
        self.erase, self.add = torch.sigmoid(heads.erase), heads.add.contiguous()

    def __call__(self, time: int, forward: Tensor, d_after: State) -> State:
        """``forward`` is the memory before the step."""
        read_shape = self.sizes.shape("B R M")
        weightings = self.saved.weightings[time]
        back = self.step.backward(
            StepOutputs(
                d_after.read_vectors.view(read_shape) + self.d_read_vectors[time],
                d_after.memory,
                d_after.weightings,
            ),
            StepInputs(forward, self.saved.interface[time], self.previous_weightings[time]),
            some(StepOutputs, weightings=weightings),
            some(self.step.saved, weightings=weightings),
            self.sizes.of_step(),
            frozenset(names(StepInputs)),
        )
        return self.outside_heads(
            time, back.interface, back.memory, back.previous_weightings, d_after
        )

    def replay(self, segment: int, start: int, stop: int) -> list[Tensor]:
        """The memory before each step of the segment, by repeating its writes."""
        memories = [self.saved.checkpoints[segment]]
        for time in range(start, stop - 1):
            memories.append(self._after(time, memories[-1]))
        return memories

    def _after(self, time: int, memory: Tensor) -> Tensor:
        """The memory before the step after ``time``."""
        num_read_heads, num_write_heads = self.sizes.num_read_heads, self.sizes.num_write_heads
        weightings = self.saved.weightings[time].narrow(1, num_read_heads, num_write_heads)
        given = WriteInputs(memory, weightings, self.erase[time], self.add[time])
        after, _ = self.write.forward(given, self.sizes.of_write(), False)
        written = after.memory
        if self.outside_heads.inside is not None:
            written = torch.where(self.outside_heads.inside[time].unsqueeze(-1), written, memory)
        if self.resets is not None:
            reset = self.resets[time + 1].unsqueeze(-1)
            written = torch.where(reset, self.initial_memory, written)
        return written
