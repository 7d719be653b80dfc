"""The backend ``torch``: plain PyTorch on any device, with hand-derived backwards.

Stage by stage the same formulas as the compiled backends; ``ntm_kernels.reference`` is the
specification that all of them are tested against.
"""

from ntm_kernels.backends.torch.backend import TorchBackend

__all__ = ["TorchBackend"]
