"""The backend ``torch``: plain PyTorch on any device, with hand-derived backwards.

Stage by stage the same formulas as the compiled backends; ``ntm_kernels.reference`` is the
specification that all of them are tested against. The hand-derived backwards serve the ordinary
first derivative. Every other derivative is that of the specification, under plain autograd.
"""

from importlib import import_module

from ntm_kernels.backends.base import Backend, Problem
from ntm_kernels.ops import OPS

__all__ = ["TorchBackend"]


class TorchBackend(Backend):
    """Serves every call on every device, under every transform."""

    name = "torch"
    every_derivative = True

    def __init__(self) -> None:
        # This backend has every op. Its kernel is the class ``Op`` of the file ``op.py``.
        self.kernels = {
            name: getattr(import_module(f"{__name__}.{name}"), name.capitalize())() for name in OPS
        }

    def describe(self) -> str:
        return "plain PyTorch, any device"

    def how(self, problem: Problem) -> str:
        return f"by ntm_kernels.reference, under {problem.transform}" if problem.transform else ""
