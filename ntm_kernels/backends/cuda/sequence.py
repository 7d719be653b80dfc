"""``sequence``: all steps in one launch, or as a loop of steps.

The launch is that of ``csrc/cuda/sequence_forward.cu`` or ``…_backward.cu``; ``ways`` chooses.

The launch of the backward gives the gradients of the gates of all layers and of the interface
vectors, of all steps. Those of the weights are matrix products of these with what the layers saw,
after the launch.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ntm_kernels.backends import step_loop
from ntm_kernels.backends.base import problem_of
from ntm_kernels.backends.controller_cost import STEP_LOOP
from ntm_kernels.backends.cuda import ways
from ntm_kernels.backends.cuda.run import CudaKernel, Runner, named
from ntm_kernels.backends.cuda.step import Step
from ntm_kernels.backends.cuda.write import Write
from ntm_kernels.backends.project import ProjectedSequence
from ntm_kernels.backends.torch.controller import weight_gradients
from ntm_kernels.backends.torch.sequence import Saved as LoopSaved
from ntm_kernels.backends.torch.write import Write as TorchWrite
from ntm_kernels.ops import SEQUENCE, Field, SequenceInputs, SequenceOutputs, Sizes, record
from ntm_kernels.ops.declare import dtypes_of, empty, fields


@record
class Saved(NamedTuple):
    """Of every step what the backward cannot cheaply make again, and some memories."""

    checkpoints: Annotated[Tensor, Field("Q B M N")]  # memories, transposed
    weightings: Annotated[Tensor, Field("T B H N")]
    interface: Annotated[Tensor, Field("T B P")]  # raw
    gates: Annotated[Tensor | None, Field("T L B G", when="is_lstm")]  # activated
    cells: Annotated[Tensor | None, Field("T L B C", when="is_lstm")]
    lower_hidden: Annotated[Tensor | None, Field("T U B C", when="is_deep")]  # below the top layer


@record
class LaunchGradients(NamedTuple):
    """The gradients that the launch of the backward gives."""

    gates: Annotated[Tensor, Field("T L B G", "input")]  # before the activations
    interface: Annotated[Tensor, Field("T B P")]
    initial_memory: Annotated[Tensor, Field("B N M", "memory")]
    initial_weightings: Annotated[Tensor, Field("B H N", "weightings")]
    initial_read_vectors: Annotated[Tensor, Field("B R M", "memory")]
    initial_hidden: Annotated[Tensor | None, Field("L B C", "state", "is_lstm")]
    initial_cell: Annotated[Tensor | None, Field("L B C", "state", "is_lstm")]


class Sequence(ProjectedSequence[Saved], CudaKernel[SequenceInputs, SequenceOutputs, Saved]):
    """``sequence`` by ``ntm_cuda_sequence_forward`` and ``…_backward``, or as a loop of steps."""

    op = SEQUENCE
    saved = Saved
    gradients = LaunchGradients

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        self.step, self.write, self.torch_write = Step(runner), Write(runner), TorchWrite()

    def _is_loop(self, inputs: SequenceInputs, sizes: Sizes) -> bool:
        """Whether a call runs as a loop of steps."""
        return ways.way(self.runner, problem_of(SEQUENCE, inputs, sizes)) == STEP_LOOP

    def forward_projected(
        self, inputs: SequenceInputs, sizes: Sizes, save_for_backward: bool
    ) -> tuple[SequenceOutputs, Saved | None]:
        if self._is_loop(inputs, sizes):
            outputs, saved = step_loop.forward(self.step, inputs, sizes, save_for_backward)
            return outputs, None if saved is None else _from_loop(saved)
        dtype = dtypes_of(inputs)["arithmetic"]
        weights = {
            name: tensor.to(dtype)
            for name, tensor in named(inputs).items()
            if fields(SequenceInputs)[name].kind == "controller_weights"
        }
        return CudaKernel.forward(self, inputs._replace(**weights), sizes, save_for_backward)

    def backward_projected(
        self,
        grads: SequenceOutputs,
        inputs: SequenceInputs,
        outputs: SequenceOutputs,
        saved: Saved,
        sizes: Sizes,
    ) -> SequenceInputs:
        if self._is_loop(inputs, sizes):
            write = self._write_kernel(sizes, inputs.initial_memory)
            kept = _for_loop(saved)
            return step_loop.backward(self.step, write, grads, inputs, outputs, kept, sizes)
        dtypes = dtypes_of(inputs)
        # The products below need the gradient of x before it is rounded.
        dtypes["input"] = dtypes["arithmetic"]
        found = empty(LaunchGradients, sizes, saved.interface, dtypes)
        given = named(inputs)
        tensors = {name: given[name] for name in _READ_BACKWARD if name in given}
        for name in _TRANSPOSED:
            if name in given:
                tensors[name] = given[name].to(dtypes["arithmetic"]).mT
        tensors |= named(outputs, "out_") | named(saved, "saved_")
        tensors |= named(grads, "grad_") | named(found, "d_")
        self.runner.run("sequence", "backward", sizes, tensors)
        return _input_gradients(inputs, outputs, saved, found)

    def _write_kernel(self, sizes: Sizes, memory: Tensor) -> step_loop.WriteKernel:
        """That of this backend, which does not serve memories in tiles; then that of torch."""
        device, is_double = memory.device.index or 0, memory.dtype == torch.float64
        refusal = ways.why_unplanned(self.runner, "write", is_double, device, sizes.of_write())
        return self.write if refusal is None else self.torch_write


def _from_loop(saved: LoopSaved) -> Saved:
    """What the loop saved, its checkpoints as the launches have them."""
    return Saved(**{**saved._asdict(), "checkpoints": saved.checkpoints.mT.contiguous()})


def _for_loop(saved: Saved) -> LoopSaved:
    return LoopSaved(**{**saved._asdict(), "checkpoints": saved.checkpoints.mT})


# What the launch of the backward takes of the inputs: as they are, and transposed.
_READ_BACKWARD = ("initial_weightings", "initial_cell", "lengths")
_TRANSPOSED = ("recurrent_weight", "upper_weight", "interface_weight")


def _input_gradients(
    inputs: SequenceInputs, outputs: SequenceOutputs, saved: Saved, found: LaunchGradients
) -> SequenceInputs:
    weight_dtype = inputs.recurrent_weight.dtype
    d_weights = weight_gradients(found.gates, found.interface, inputs, outputs, saved.lower_hidden)
    return SequenceInputs(
        x=found.gates.select(1, 0).to(inputs.x.dtype).contiguous(),
        **{name: gradient.to(weight_dtype) for name, gradient in d_weights.items()},
        initial_memory=found.initial_memory,
        initial_weightings=found.initial_weightings,
        initial_read_vectors=found.initial_read_vectors,
        initial_hidden=found.initial_hidden,
        initial_cell=found.initial_cell,
        lengths=None,
        input_weight=None,
        input_bias=None,
    )
