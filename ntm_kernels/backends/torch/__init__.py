"""The backend ``torch``: plain PyTorch on any device, with hand-derived backwards.

Stage by stage the same formulas as the compiled backends; ``ntm_kernels.reference`` is the
specification that all of them are tested against.
"""

from ntm_kernels.backends.base import Backend
from ntm_kernels.backends.torch.address import Address
from ntm_kernels.backends.torch.read import Read
from ntm_kernels.backends.torch.sequence import Sequence
from ntm_kernels.backends.torch.step import Step
from ntm_kernels.backends.torch.write import Write

__all__ = ["TorchBackend"]


class TorchBackend(Backend):
    """Serves every call on every device."""

    name = "torch"

    def __init__(self) -> None:
        self.kernels = {
            "address": Address(),
            "read": Read(),
            "write": Write(),
            "step": Step(),
            "sequence": Sequence(),
        }

    def describe(self) -> str:
        return "plain PyTorch, any device"
