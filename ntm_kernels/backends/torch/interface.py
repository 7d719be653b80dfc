"""Activation of the raw interface vector and its backward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ntm_kernels.interface import HeadParameters, InterfaceLayout
from ntm_kernels.torch_private import softmax_backward

# Beyond it softplus(x) = x to the last bit of a float64, and below it exp does not overflow.
SOFTPLUS_LINEAR_ABOVE = 40.0


def activate(interface: Tensor, layout: InterfaceLayout) -> HeadParameters:
    raw = layout.split(interface)
    return HeadParameters(
        key=raw.key,
        strength=softplus(raw.strength, threshold=SOFTPLUS_LINEAR_ABOVE),
        gate=torch.sigmoid(raw.gate),
        shift=torch.softmax(raw.shift, -1),
        sharpening=softplus(raw.sharpening, threshold=SOFTPLUS_LINEAR_ABOVE) + 1,
        erase=torch.sigmoid(raw.erase),
        add=raw.add,
    )


def activation_slopes(interface: Tensor, heads: HeadParameters, layout: InterfaceLayout) -> Tensor:
    """Elementwise derivative of the activated by the raw interface vector; 1 for the shift, whose
    derivative is not elementwise."""
    slopes = torch.ones_like(interface)
    into, raw = layout.split(slopes), layout.split(interface)
    torch.sigmoid(raw.strength, out=into.strength)
    torch.sigmoid(raw.sharpening, out=into.sharpening)
    torch.mul(heads.gate, torch.sigmoid(-raw.gate), out=into.gate)
    torch.mul(heads.erase, torch.sigmoid(-raw.erase), out=into.erase)
    return slopes


def activate_backward(d_heads: HeadParameters, slopes: Tensor, shift: Tensor) -> Tensor:
    """Gradient of the raw interface vector."""
    d_shift = softmax_backward(d_heads.shift, shift, -1, shift.dtype)
    parts = d_heads._replace(shift=d_shift)
    return torch.cat([part.flatten(1) for part in parts], -1).mul_(slopes)
