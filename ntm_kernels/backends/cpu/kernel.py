"""One kernel class for every op: the C++ side knows the same records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ntm_kernels.backends.base import Kernel, restore
from ntm_kernels.backends.cpu.records import SAVED, row_stride
from ntm_kernels.ops import NothingSaved, Op, Sizes
from ntm_kernels.ops.declare import choose, getter, head, names


class CpuKernel(Kernel[Any, Any, Any]):
    """``torch.ops.ntm.cpu_…``, which records its own derivative."""

    differentiates = True

    def __init__(self, op: Op[Any, Any, Any]) -> None:
        self.op = op
        self.saved: type[NamedTuple] = SAVED.get(op.name, NothingSaved)
        # Looked up once: in a small call each look-up takes a measurable part of the time.
        self._forward = getattr(torch.ops.ntm, f"cpu_{op.name}").default
        self._backward = getattr(torch.ops.ntm, f"cpu_{op.name}_backward").default
        # The kernels divide by the spacing of the checkpoints, which may be any number.
        renamed = {"checkpoint_every": "segment"}
        self._options = getter([renamed.get(name, name) for name in names(op.options)])

    def saved_letters(self, sizes: Sizes) -> Mapping[str, int]:
        return {"Z": row_stride(sizes.memory_size)}

    def forward(self, inputs: Any, sizes: Sizes, save_for_backward: bool) -> tuple[Any, Any]:
        results = self._forward(*inputs, *self._options(sizes), save_for_backward)
        outputs, saved = head(self.op.outputs, results)
        # If autograd records the call in C++, its graph keeps the saved tensors: the list is empty.
        return outputs, restore(self, saved, sizes) if saved else None

    def backward(
        self,
        grads: Any,
        inputs: Any,
        outputs: Any,
        saved: Any,
        sizes: Sizes,
        wanted: frozenset[str],
    ) -> Any:
        op = self.op
        given, kept = grads._asdict(), outputs._asdict()
        found = self._backward(
            *(given[name] for name in op.differentiated_outputs),
            *inputs,
            *(kept[name] for name in op.kept_outputs),
            [part for part in saved if part is not None],
            *self._options(sizes),
            [name in wanted for name in op.differentiated_inputs],
        )
        results = found if isinstance(found, (tuple, list)) else (found,)
        return choose(op.inputs, op.differentiated_inputs, results)
