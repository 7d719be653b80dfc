"""loudinthecloud/pytorch-ntm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.contenders import Unsupported
from bench.peers.base import Peer
from bench.workload import Workload
from ntm_kernels import tasks


class PytorchNTM(Peer):
    """It steps through the sequence in Python and returns probabilities."""

    name = "pytorch-ntm"
    about = "loudinthecloud/pytorch-ntm, from a checkout"
    module = "ntm.aio"

    def _build(self, workload: Workload) -> Any:
        self.require_common(workload)
        if workload.num_read_heads != workload.num_write_heads:
            raise Unsupported("it has as many read heads as write heads")
        if workload.device != "cpu":
            raise Unsupported("it runs on the CPU")
        return self.load().EncapsulatedNTM(
            workload.input_size,
            workload.output_size,
            workload.hidden_size,
            1,
            workload.num_read_heads,
            workload.memory_size,
            workload.word_size,
        )

    def model(self, workload: Workload) -> nn.Module:
        return Unrolled(self._build(workload))

    def cell(self, workload: Workload) -> Callable[[Tensor], object]:
        net = self._build(workload)
        net.init_sequence(workload.batch)

        def step(x: Tensor) -> object:
            return net(x)

        return step

    def loss(self, output: Tensor, batch: tasks.Batch) -> Tensor:
        weight = batch.mask.unsqueeze(-1) / (batch.mask.sum() * output.shape[-1])
        return functional.binary_cross_entropy(output, batch.targets, weight, reduction="sum")


class Unrolled(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        self.net.init_sequence(x.shape[1])
        return torch.stack([self.net(now)[0] for now in x.unbind(0)])
