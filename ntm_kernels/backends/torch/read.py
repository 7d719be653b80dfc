"""``read``, with its hand-derived backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ntm_kernels.backends.base import Kernel
from ntm_kernels.backends.torch.lift import lift, lower
from ntm_kernels.ops import NothingSaved, ReadInputs, ReadOutputs, Sizes


def read(memory: Tensor, weightings: Tensor) -> Tensor:
    return torch.bmm(weightings, memory)


def read_backward(d_read_vectors: Tensor, inputs: ReadInputs) -> ReadInputs:
    memory, weightings = inputs
    return ReadInputs(
        memory=torch.bmm(weightings.mT, d_read_vectors),
        weightings=torch.bmm(d_read_vectors, memory.mT),
    )


class Read(Kernel[ReadInputs, ReadOutputs, NothingSaved]):
    """The op ``read``."""

    def forward(
        self, inputs: ReadInputs, sizes: Sizes, save_for_backward: bool
    ) -> tuple[ReadOutputs, NothingSaved]:
        return lower(ReadOutputs(read(*lift(inputs))), inputs), NothingSaved()

    def backward(
        self,
        grads: ReadOutputs,
        inputs: ReadInputs,
        outputs: ReadOutputs,
        saved: NothingSaved,
        sizes: Sizes,
        wanted: frozenset[str],
    ) -> ReadInputs:
        return lower(read_backward(lift(grads).read_vectors, lift(inputs)), inputs)
