"""The backend: which calls the kernels serve, and how."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from ntm_kernels.backends import step_loop
from ntm_kernels.backends.base import Backend, Problem
from ntm_kernels.backends.triton.address import Address
from ntm_kernels.backends.triton.launch_table import OnChip
from ntm_kernels.backends.triton.launcher import Launcher
from ntm_kernels.backends.triton.read import Read
from ntm_kernels.backends.triton.sequence import Sequence, row_of_sequence
from ntm_kernels.backends.triton.step import Step
from ntm_kernels.backends.triton.write import Write
from ntm_kernels.backends.trust.identity import digest_of


class TritonBackend(Backend):
    """The Triton kernels on devices of ``device_type``, launched by ``launcher``.

    ROCm's devices are called ``cuda`` too.
    """

    needs_check = True

    def __init__(
        self, name: str = "triton", device_type: str = "cuda", launcher: Launcher | None = None
    ) -> None:
        self.name = name
        self.device_type = device_type
        self.launcher = Launcher() if launcher is None else launcher
        step, write = Step(self.launcher), Write(self.launcher)
        self.kernels = {
            "address": Address(self.launcher),
            "read": Read(self.launcher),
            "write": write,
            "step": step,
            "sequence": Sequence(self.launcher, step, write),
        }

    def unavailable(self) -> str | None:
        if find_spec("triton") is None:
            return "the package triton is not installed"
        if not torch.cuda.is_available():
            return "torch sees no GPU"
        return None

    def unsupported(self, problem: Problem) -> str | None:
        if problem.device != self.device_type:
            return f"runs on {self.device_type} devices, the tensors are on {problem.device}"
        return self.launcher.table.too_large(problem)

    def describe(self) -> str:
        import triton

        platform = "ROCm" if self.launcher.on_amd() else "CUDA"
        return f"Triton {triton.__version__} kernels on {platform} devices"

    def fingerprint(self) -> str:
        return digest_of(tuple(Path(__file__).parent.rglob("*.py")))

    def path(self, problem: Problem) -> str:
        parts, row = [self.how(problem)], self._row(problem)
        if row is not None:
            parts.append(f"up to {row.elements} elements")
        if problem.op == "sequence":
            parts.append("LSTM" if problem.sizes.is_lstm else "feed-forward")
            if problem.sizes.num_layers > 1:
                parts.append("several layers")
        return ", ".join(parts)

    def how(self, problem: Problem) -> str:
        if problem.op == "sequence":
            if self._row(problem) is not None:
                return "one launch, the memory in registers over all steps"
            step = problem._replace(op="step", sizes=problem.sizes.of_step())
            return f"a loop of steps, the controller by {step_loop.told(problem)}, {self.how(step)}"
        return f"the memory in {'tiles' if self._row(problem) is None else 'registers'}"

    def _row(self, problem: Problem) -> OnChip | None:
        """How one program holds the memory, where one does."""
        table = self.launcher.table
        if problem.op == "sequence":
            return row_of_sequence(table, problem)
        return table.fitting(problem.sizes, problem.dtype)
