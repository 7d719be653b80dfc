"""How far a result may be from the truth.

The error against float64 is at most twice that of plain PyTorch in the same dtype, or, where that
is smaller, 4 ulp of the dtype times the largest magnitude of the tensor, times √(T·N) for sums that
long.

For float64 itself there is no better truth than PyTorch in float64, and its error is taken to be
its error in float32 times 2^-29; the truth may be off by that once more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOAT64_STEP = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


def scale_and_factor(is_float64: bool) -> tuple[float, int]:
    """By what the error of PyTorch counts, and how many times that is allowed."""
    return (FLOAT64_STEP, 3) if is_float64 else (1.0, 2)


def largest_error(found: Tensor, truth: Tensor) -> float:
    """Largest absolute error, NaN if there is one; infinities right by overflow do not count."""
    if truth.numel() == 0:
        return 0.0
    error = differences(found, truth)
    return math.nan if error.isnan().any() else error.max().item()


def allowed_error(
    dtype: torch.dtype, truth: Tensor, plain_error: float, *, terms: int = 1, factor: int = 2
) -> float:
    """``factor`` times the error of plain PyTorch, or the floor where that is larger."""
    limits = torch.finfo(dtype)
    representable = truth.abs() <= limits.max
    scale = truth[representable].abs().max().item() if representable.any() else 0.0
    # Below the smallest normal number an ulp is no longer relative.
    floor = 4 * limits.eps * max(scale, limits.tiny) * math.sqrt(terms)
    return max(factor * plain_error, floor) if math.isfinite(plain_error) else floor


def differences(found: Tensor, truth: Tensor) -> Tensor:
    """The absolute error of every element, in float64."""
    limits = torch.finfo(found.dtype)
    found = found.detach().to(truth.device, torch.float64)
    # Within some ulp of the largest number, a result may be that or infinite.
    overflow = (truth.abs() > limits.max * (1 - 8 * limits.eps)) & (
        found.abs() >= limits.max * (1 - 8 * limits.eps)
    )
    return torch.where(overflow & (found.sign() == truth.sign()), 0, (found - truth).abs())


def neighbour(tensor: Tensor, seed: int) -> Tensor:
    """Every element moved by an ulp or so; what is exactly 0 or 1, the edge of a domain, stays.

    Rounding errors at one point are a matter of luck: those of plain PyTorch are also measured at
    such neighbours before a result is said to be wrong.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    sign = torch.randint(-1, 2, tensor.shape, generator=generator, dtype=torch.int8, device="cpu")
    eps = torch.finfo(tensor.dtype if tensor.dtype != torch.float64 else torch.float32).eps
    step = sign.to(tensor.device, torch.float64)
    moved = (tensor * (1 + 2 * eps * step)).to(tensor.dtype)
    return torch.where((tensor == 0) | (tensor == 1), tensor, moved)
