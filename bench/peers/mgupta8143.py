"""mgupta8143/neural-turing-machines."""

from __future__ import annotations

from torch import Tensor, nn

from bench.peers.base import Peer
from bench.workload import Workload


class MGupta8143(Peer):
    """It takes whole sequences, batch first, and has no step of its own."""

    name = "mgupta8143"
    about = "mgupta8143/neural-turing-machines, from a checkout"
    module = "src.models.ntm.ntm"

    def model(self, workload: Workload) -> nn.Module:
        self.require_common(workload)
        net = self.load().NTM(
            input_size=workload.input_size,
            output_size=workload.output_size,
            controller="lstm",
            controller_size=workload.hidden_size,
            memory_locations=workload.memory_size,
            memory_width=workload.word_size,
            num_read_heads=workload.num_read_heads,
            num_write_heads=workload.num_write_heads,
        )
        return TimeMajor(net.to(workload.device))


class TimeMajor(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net(x.transpose(0, 1)).transpose(0, 1)
        return output
