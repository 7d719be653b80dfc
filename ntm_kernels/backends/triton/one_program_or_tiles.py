"""What ``address``, ``read``, ``write`` and ``step`` have in common.

A memory that one program can hold takes one launch, forward and backward, with one program per
sequence. A larger one goes tile by tile.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from ntm_kernels.backends.base import Kernel
from ntm_kernels.backends.triton.launcher import Launcher
from ntm_kernels.backends.triton.records import contiguous
from ntm_kernels.ops import NothingSaved, Op, Sizes
from ntm_kernels.ops.declare import Inputs, Outputs, dtypes_of, empty


class OneProgramOrTiles(Kernel[Inputs, Outputs, NothingSaved]):
    """Forward and backward of one op.

    Attributes:
        op: the op; its kernels are named after it.
        letters: the sizes that its kernels take.
    """

    op: ClassVar[Op[Any, Any, Any]]
    letters: ClassVar[str]

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    @abstractmethod
    def forward_in_tiles(self, inputs: Inputs, outputs: Outputs, sizes: Sizes) -> None:
        """Fill ``outputs``. All tensors are contiguous."""

    @abstractmethod
    def backward_in_tiles(
        self, grads: Outputs, inputs: Inputs, outputs: Outputs, d_inputs: Inputs, sizes: Sizes
    ) -> None:
        """Fill ``d_inputs``. All tensors are contiguous."""

    def forward(
        self, inputs: Inputs, sizes: Sizes, save_for_backward: bool
    ) -> tuple[Outputs, NothingSaved]:
        given, memory = contiguous(inputs), _memory(inputs)
        outputs: Outputs = empty(self.op.outputs, sizes, memory, dtypes_of(inputs))
        constants = self._in_registers(memory, sizes)
        if constants is None:
            self.forward_in_tiles(given, outputs, sizes)
        else:
            kernel = getattr(self.launcher.kernels, f"{self.op.name}_kernel")
            self.launcher.run(kernel, (sizes.batch,), given, outputs, **constants)
        return outputs, NothingSaved()

    def backward(
        self,
        grads: Outputs,
        inputs: Inputs,
        outputs: Outputs,
        saved: NothingSaved,
        sizes: Sizes,
        wanted: frozenset[str],
    ) -> Inputs:
        given, memory = contiguous(inputs), _memory(inputs)
        d_inputs: Inputs = empty(self.op.inputs, sizes, memory, dtypes_of(inputs))
        grads, outputs = contiguous(grads), contiguous(outputs)
        constants = self._in_registers(memory, sizes)
        if constants is None:
            self.backward_in_tiles(grads, given, outputs, d_inputs, sizes)
        else:
            kernel = getattr(self.launcher.kernels, f"{self.op.name}_backward_kernel")
            self.launcher.run(kernel, (sizes.batch,), grads, given, outputs, d_inputs, **constants)
        return d_inputs

    def _in_registers(self, memory: Tensor, sizes: Sizes) -> dict[str, Any] | None:
        """Constants of a program that holds the whole memory; ``None`` if none can."""
        row = self.launcher.table.fitting(sizes, memory.dtype)
        if row is None:
            return None
        return self.launcher.in_registers(row.warps, self.letters, sizes, memory.dtype)


def _memory(inputs: Any) -> Tensor:
    memory: Tensor = inputs.memory
    return memory
