"""The addressing chain, stage by stage, each with its hand-derived backward.

Few dispatches matter more here than few bytes. ``B`` may be a batch or a batch of steps. A backward
is named after its stage, and writes ``d_x`` for the gradient of the loss with respect to ``x``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ntm_kernels.backends.base import Kernel
from ntm_kernels.backends.torch.lift import lift, lower
from ntm_kernels.ops import AddressInputs, AddressOutputs, NothingSaved, Sizes
from ntm_kernels.reference import COSINE_EPS, FOCUS_EPS
from ntm_kernels.torch_private import softmax_backward


class Similarity(NamedTuple):
    """Cosine similarity and what its backward needs."""

    value: Tensor  # [B, H, N]
    inverse_norms: Tensor  # [B, H, N], 1 / (‖k‖ ‖M_i‖), 0 where the similarity is cut off
    cut: Tensor  # [B, H, N], where it is cut off
    key_norm: Tensor  # [B, H, 1]
    memory_norm: Tensor  # [B, N, 1]


class Addressing(NamedTuple):
    """All intermediate weightings of one addressing."""

    similarity: Similarity
    content: Tensor  # [B, H, N]
    gathered: Tensor  # [B, H, S, N], the gated weighting seen through each tap
    shifted: Tensor  # [B, H, N]
    weightings: Tensor  # [B, H, N]


def similarity(memory: Tensor, key: Tensor) -> Similarity:
    key_norm = torch.linalg.vector_norm(key, dim=-1, keepdim=True)
    memory_norm = torch.linalg.vector_norm(memory, dim=-1, keepdim=True)
    norms = torch.bmm(key_norm, memory_norm.mT)
    cut = norms < COSINE_EPS
    inverse_norms = norms.reciprocal().masked_fill_(cut, 0)
    value = torch.bmm(key, memory.mT).mul_(inverse_norms)
    return Similarity(value, inverse_norms, cut, key_norm, memory_norm)


def similarity_backward(
    d_similarity: Tensor, similarity: Similarity, memory: Tensor, key: Tensor
) -> tuple[Tensor, Tensor]:
    """``dK/dk = M_i / (‖k‖‖M_i‖) − K k / ‖k‖²``, and the same with k and M_i exchanged."""
    # Not by the factors alone, which are 0 there: a NaN would stay.
    d_similarity = d_similarity.masked_fill(similarity.cut, 0)
    d_dots = d_similarity * similarity.inverse_norms
    # The part of the gradient that goes through the norms: these numbers times k and M_i.
    by_norms = d_similarity * similarity.value
    by_key_norm = by_norms.sum(-1, keepdim=True) / _square_or_one(similarity.key_norm)
    by_memory_norm = by_norms.sum(1).unsqueeze(-1) / _square_or_one(similarity.memory_norm)
    d_key = torch.bmm(d_dots, memory).addcmul_(key, by_key_norm, value=-1)
    d_memory = torch.bmm(d_dots.mT, key).addcmul_(memory, by_memory_norm, value=-1)
    return d_memory, d_key


def _square_or_one(norm: Tensor) -> Tensor:
    """The square of a norm, to divide by; 1 where it is 0. There the similarity is cut off, so that
    what is divided is 0."""
    square = norm.square()
    return square.masked_fill_(square == 0, 1)


def content(similarity: Tensor, strength: Tensor) -> Tensor:
    return torch.softmax(similarity * strength.unsqueeze(-1), dim=-1)


def content_backward(
    d_content: Tensor, content: Tensor, similarity: Tensor, strength: Tensor
) -> tuple[Tensor, Tensor]:
    d_scores = softmax_backward(d_content, content, -1, content.dtype)
    d_strength = (d_scores * similarity).sum(-1)
    return d_scores * strength.unsqueeze(-1), d_strength


def interpolate(content: Tensor, previous_weightings: Tensor, gate: Tensor) -> Tensor:
    return torch.lerp(previous_weightings, content, gate.unsqueeze(-1))


def interpolate_backward(
    d_gated: Tensor, content: Tensor, previous_weightings: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    gate = gate.unsqueeze(-1)
    d_content = d_gated * gate
    d_gate = (d_gated * (content - previous_weightings)).sum(-1)
    # Not d_gated − d_content, which cancels as g → 1.
    return d_content, d_gated * (1 - gate), d_gate


def shift(gated: Tensor, shift_weighting: Tensor) -> tuple[Tensor, Tensor]:
    """The shifted weighting, and the gated one seen through each tap."""
    batch, num_heads, memory_size = gated.shape
    index = _offsets(memory_size, shift_weighting.shape[-1], 1, gated.device)
    num_taps = shift_weighting.shape[-1]
    gathered = gated.index_select(-1, index).view(batch * num_heads, num_taps, memory_size)
    shifted = torch.bmm(shift_weighting.reshape(batch * num_heads, 1, num_taps), gathered)
    gathered = gathered.view(batch, num_heads, num_taps, memory_size)
    return shifted.view(batch, num_heads, memory_size), gathered


def shift_backward(
    d_shifted: Tensor, gathered: Tensor, shift_weighting: Tensor
) -> tuple[Tensor, Tensor]:
    """Backward of the convolution is the correlation: ``d w^g_j = Σ_o s_o d w̃_{j+o}``."""
    batch, num_heads, num_taps, memory_size = gathered.shape
    index = _offsets(memory_size, num_taps, -1, d_shifted.device)
    back = d_shifted.index_select(-1, index).view(batch * num_heads, num_taps, memory_size)
    d_gated = torch.bmm(shift_weighting.reshape(batch * num_heads, 1, num_taps), back)
    d_shift = torch.bmm(
        gathered.reshape(batch * num_heads, num_taps, memory_size),
        d_shifted.reshape(batch * num_heads, memory_size, 1),
    )
    return d_gated.view(batch, num_heads, memory_size), d_shift.view(batch, num_heads, num_taps)


@lru_cache(maxsize=64)
def _offsets(memory_size: int, num_taps: int, sign: int, device: torch.device) -> Tensor:
    """For every tap of offset o, all locations i: the index of ``i − sign · o``, ``[S * N]``."""
    with torch.inference_mode(False):
        offset = torch.arange(num_taps, device=device) - num_taps // 2
        location = torch.arange(memory_size, device=device)
        return (location - sign * offset.unsqueeze(-1)).remainder(memory_size).flatten()


def sharpen(shifted: Tensor, sharpening: Tensor) -> Tensor:
    """``u^γ / Σ u^γ`` with ``u = w̃ / max w̃``; uniform where no w̃ reaches ε."""
    sharpening = sharpening.unsqueeze(-1)
    lowest, peak = shifted.aminmax(dim=-1, keepdim=True)
    # NaN where a w̃ is negative or γ is not finite, since a power alone may be a number there. A
    # root times 0 is NaN just then.
    root = lowest.sqrt_()
    peak = torch.addcmul(peak, root, sharpening, value=0)
    sharpening = torch.addcmul(sharpening, root, sharpening, value=0)
    ratio, empty = _ratio(shifted, peak)
    zero = ratio == 0
    # 0 for γ ≤ 0 too, where 0^γ is 1 or infinite.
    powers = ratio.pow_(sharpening).masked_fill_(zero, 0)
    weightings = powers.div_(powers.sum(-1, keepdim=True))
    return weightings.masked_fill_(empty, 1 / shifted.shape[-1])


def sharpen_backward(
    d_weightings: Tensor, weightings: Tensor, shifted: Tensor, sharpening: Tensor
) -> tuple[Tensor, Tensor]:
    """``dw_i/dw̃_j = γ w̃_j^{γ−1} / Σ w̃^γ (δ_ij − w_i)``, never dividing by ``w̃_j``, and
    ``dw_i/dγ = w_i (log w̃_i − Σ_j w_j log w̃_j)``."""
    sharpening = sharpening.unsqueeze(-1)
    peak, highest = shifted.max(-1, keepdim=True)
    weight_of_peak = weightings.gather(-1, highest)  # 1 / Σ u^γ
    # Where the weightings are NaN, all gradients are.
    peak = torch.addcmul(peak, weight_of_peak, weight_of_peak, value=0)
    ratio, empty = _ratio(shifted, peak)
    jumps = (ratio == 0).logical_and_(sharpening <= 0)
    powers = ratio.pow(sharpening - 1).masked_fill_(jumps, 0)
    slope = (sharpening * weight_of_peak).div_(peak)
    centred = d_weightings - (d_weightings * weightings).sum(-1, keepdim=True)
    d_shifted = powers.mul_(slope).mul_(centred).masked_fill_(empty, 0)
    d_sharpening = torch.xlogy(centred.mul_(weightings), ratio.masked_fill_(empty, 1)).sum(-1)
    return d_shifted, d_sharpening


def _ratio(shifted: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
    """``w̃ / peak``, and where the peak is below ε; there it becomes 1."""
    empty = peak < FOCUS_EPS
    peak.masked_fill_(empty, 1)
    return shifted / peak, empty


def address(inputs: AddressInputs) -> Addressing:
    alike = similarity(inputs.memory, inputs.key)
    by_content = content(alike.value, inputs.strength)
    gated = interpolate(by_content, inputs.previous_weightings, inputs.gate)
    shifted, gathered = shift(gated, inputs.shift)
    return Addressing(alike, by_content, gathered, shifted, sharpen(shifted, inputs.sharpening))


def address_backward(
    d_weightings: Tensor, forward: Addressing, inputs: AddressInputs
) -> AddressInputs:
    """The gradient of each input."""
    d_shifted, d_sharpening = sharpen_backward(
        d_weightings, forward.weightings, forward.shifted, inputs.sharpening
    )
    d_gated, d_shift = shift_backward(d_shifted, forward.gathered, inputs.shift)
    d_content, d_previous, d_gate = interpolate_backward(
        d_gated, forward.content, inputs.previous_weightings, inputs.gate
    )
    d_similarity, d_strength = content_backward(
        d_content, forward.content, forward.similarity.value, inputs.strength
    )
    d_memory, d_key = similarity_backward(
        d_similarity, forward.similarity, inputs.memory, inputs.key
    )
    return AddressInputs(
        memory=d_memory,
        key=d_key,
        strength=d_strength,
        gate=d_gate,
        shift=d_shift,
        sharpening=d_sharpening,
        previous_weightings=d_previous,
    )


class Address(Kernel[AddressInputs, AddressOutputs, NothingSaved]):
    """The op ``address``."""

    def forward(
        self, inputs: AddressInputs, sizes: Sizes, save_for_backward: bool
    ) -> tuple[AddressOutputs, NothingSaved]:
        outputs = AddressOutputs(address(lift(inputs)).weightings)
        return lower(outputs, inputs), NothingSaved()

    def backward(
        self,
        grads: AddressOutputs,
        inputs: AddressInputs,
        outputs: AddressOutputs,
        saved: NothingSaved,
        sizes: Sizes,
        wanted: frozenset[str],
    ) -> AddressInputs:
        lifted = lift(inputs)
        found = address_backward(lift(grads).weightings, address(lifted), lifted)
        return lower(found, inputs)
