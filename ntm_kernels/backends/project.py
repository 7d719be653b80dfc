"""The input projection of ``sequence``, for kernels that take the input already projected.

``x̂ = W_x x + b`` of all steps does not depend on the recurrence: forward it is one matrix product
before the kernel, backward two and a sum after it.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import linear

from ntm_kernels.backends.base import Kernel, Saved
from ntm_kernels.ops import SequenceInputs, SequenceOutputs, Sizes
from ntm_kernels.reference import arithmetic_dtype


class ProjectedSequence(Kernel[SequenceInputs, SequenceOutputs, Saved]):
    """A kernel of ``sequence`` that is written for projected inputs alone.

    Subclasses have ``forward_projected`` and ``backward_projected``, which take and return what
    ``forward`` and ``backward`` do, x always projected ``[T, B, G]``. A backward is given an x
    whose values it must not read.
    """

    @abstractmethod
    def forward_projected(
        self, inputs: SequenceInputs, sizes: Sizes, save_for_backward: bool
    ) -> tuple[SequenceOutputs, Saved | None]: ...

    @abstractmethod
    def backward_projected(
        self,
        grads: SequenceOutputs,
        inputs: SequenceInputs,
        outputs: SequenceOutputs,
        saved: Saved,
        sizes: Sizes,
    ) -> SequenceInputs: ...

    def forward(
        self, inputs: SequenceInputs, sizes: Sizes, save_for_backward: bool
    ) -> tuple[SequenceOutputs, Saved | None]:
        weight, bias = inputs.input_weight, inputs.input_bias
        if weight is None or bias is None:
            return self.forward_projected(inputs, sizes, save_for_backward)
        projected = linear(_widen(inputs.x), _widen(weight), _widen(bias))
        given = inputs._replace(x=projected, input_weight=None, input_bias=None)
        return self.forward_projected(given, _projected(sizes), save_for_backward)

    def backward(
        self,
        grads: SequenceOutputs,
        inputs: SequenceInputs,
        outputs: SequenceOutputs,
        saved: Saved,
        sizes: Sizes,
        wanted: frozenset[str],
    ) -> SequenceInputs:
        x, weight, bias = inputs.x, inputs.input_weight, inputs.input_bias
        if weight is None or bias is None:
            return self.backward_projected(grads, inputs, outputs, saved, sizes)
        shape = _widen(x.new_empty(1)).expand(sizes.time, sizes.batch, sizes.gate_size)
        given = inputs._replace(x=shape, input_weight=None, input_bias=None)
        found = self.backward_projected(grads, given, outputs, saved, _projected(sizes))
        rows = found.x.flatten(0, 1)
        d_weight = torch.mm(rows.mT, x.flatten(0, 1).to(rows.dtype))
        d_x = found.x  # nobody reads it
        if "x" in wanted:
            d_x = (found.x @ weight.to(rows.dtype)).to(x.dtype)
        return found._replace(
            x=d_x,
            input_weight=d_weight.to(weight.dtype),
            input_bias=rows.sum(0).to(bias.dtype),
        )


def _projected(sizes: Sizes) -> Sizes:
    return sizes._replace(input_size=sizes.gate_size, projects_input=False)


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(arithmetic_dtype(tensor.dtype))
