"""``step`` and ``sequence`` as the modules call them: as ops, or as equations that ONNX can hold.

ONNX has no form of the package's ops. While ``torch.onnx.export`` traces a module, it sees the
equations of ``ntm_kernels.reference`` instead, which are plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ntm_kernels import functional, reference
from ntm_kernels.reference import SequenceResult

# What the equations do not take: they run on no backend and save nothing for a backward.
OF_THE_OPS = ("backend", "checkpoint_every")


def _in_onnx_export() -> bool:
    # The first question costs nothing; the second imports the exporter.
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def step(*args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``functional.step``."""
    if _in_onnx_export():
        return reference.step(*args, **_of_the_equations(options))
    return functional.step(*args, **options)


def sequence(*args: Any, **options: Any) -> SequenceResult:
    """``functional.sequence``."""
    if _in_onnx_export():
        return reference.sequence(*args, **_of_the_equations(options))
    return functional.sequence(*args, **options)


def _of_the_equations(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in OF_THE_OPS}
