"""Running one direction of an op: plan, workspace, launch; and the kernels made of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ntm_kernels.backends.base import Kernel, Saved
from ntm_kernels.backends.cuda.library import CudaLibrary
from ntm_kernels.backends.cuda.structs import KernelSizes, Plan, Struct, kernel_sizes, params
from ntm_kernels.ops import Field, Op, Sizes, record
from ntm_kernels.ops.declare import Inputs, Outputs, dtypes_of, empty, leading

INT32_MAX = 2**31 - 1


@record
class SavedWeightings(NamedTuple):
    """The weightings of the outputs before they are rounded to their dtype."""

    weightings: Annotated[Tensor, Field("B H N")]


class Runner:
    """Launches kernels of ``library`` for tensors on ``device_type``.

    The library is set once it is loaded; nothing runs before.
    """

    library: CudaLibrary

    def __init__(self, device_type: str = "cuda") -> None:
        self.device_type = device_type

    def shared_limit(self, device: int) -> int:
        """Bytes of shared memory that a block may have there."""
        return self.library.device(device).shared_limit

    def plan(
        self, op: str, direction: str, is_double: bool, sizes: KernelSizes, device: int
    ) -> Plan:
        """How a call would run there."""
        return self.library.plan(op, direction, is_double, sizes, self.shared_limit(device))

    def run(self, op: str, direction: str, sizes: Sizes, tensors: Mapping[str, Tensor]) -> None:
        """Launch with the tensors, by their names in the struct of the op, as contiguous ones.

        It runs on the device they are on and on its current stream.
        """
        given = {name: tensor.contiguous() for name, tensor in tensors.items()}
        device = next(iter(given.values())).device
        is_double = any(tensor.dtype == torch.float64 for tensor in given.values())
        told = kernel_sizes(sizes)
        if max(told) > INT32_MAX:
            raise RuntimeError(f"{op} {direction}: a size is beyond {INT32_MAX}: {sizes}")
        plan = self.plan(op, direction, is_double, told, device.index or 0)
        if why_not := plan.refusal(told.batch):
            raise RuntimeError(f"{op} {direction}: {why_not}")
        is_cuda = device.type == "cuda"
        with torch.cuda.device(device) if is_cuda else nullcontext():
            if plan.workspace_bytes:
                given["workspace"] = torch.empty(
                    plan.workspace_bytes, dtype=torch.uint8, device=device
                )
            stream = torch.cuda.current_stream().cuda_stream if is_cuda else 0
            self.library.launch(op, direction, told, given, plan, stream)


def named(given: NamedTuple | None, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a record that are there, by their names in the struct of the op."""
    if given is None:
        return {}
    tensors = given._asdict().items()
    return {f"{prefix}{name}": tensor for name, tensor in tensors if tensor is not None}


class CudaKernel(Kernel[Inputs, Outputs, Saved]):
    """Forward and backward of an op, each one launch.

    Attributes:
        op: the op.
        gradients: the record of the gradients that the launch of the backward gives, where they
            are not those of the inputs.
    """

    op: Op[Inputs, Outputs, Any]
    gradients: type[NamedTuple] | None = None

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    @classmethod
    def params(cls) -> type[Struct]:
        """The parameter struct of its launchers."""
        return params(cls.op, cls.saved, cls.gradients or cls.op.inputs)

    def forward(
        self, inputs: Inputs, sizes: Sizes, save_for_backward: bool
    ) -> tuple[Outputs, Saved | None]:
        like = leading(inputs)
        outputs = empty(self.op.outputs, sizes, like, dtypes_of(inputs))
        saved = self.empty_saved(sizes, like) if save_for_backward else None
        tensors = named(inputs) | named(outputs, "out_") | named(saved, "saved_")
        self.runner.run(self.op.name, "forward", sizes, tensors)
        return outputs, saved

    def backward(
        self,
        grads: Outputs,
        inputs: Inputs,
        outputs: Outputs,
        saved: Saved,
        sizes: Sizes,
        wanted: frozenset[str],
    ) -> Inputs:
        found = empty(self.op.inputs, sizes, leading(inputs), dtypes_of(inputs))
        tensors = named(inputs) | named(saved, "saved_")
        tensors |= named(grads, "grad_") | named(found, "d_")
        self.runner.run(self.op.name, "backward", sizes, tensors)
        return found
