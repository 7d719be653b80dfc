"""Addressing, equations 5 to 9: from the memory and the parameters of all heads to the weightings.

Each stage is a function on blocks in registers, and so is its backward. ``address`` and
``address_backward`` call all of them, for a program that holds the whole memory; ``tiled.py`` calls
them tile by tile. The heads are a dimension of the blocks, so that a reduction over the locations
costs the same for any number of heads. Only the similarity, which multiplies each key by the
memory, loops over the heads.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ntm_kernels import reference
from ntm_kernels.backends.triton.kernels import interface, math
from ntm_kernels.backends.triton.kernels.access import (
    column,
    load,
    row,
    store,
    with_column,
    with_row,
    zero_rows,
    zeros,
)

COSINE_EPS = tl.constexpr(reference.COSINE_EPS)
FOCUS_EPS = tl.constexpr(reference.FOCUS_EPS)


class Cosine(NamedTuple):
    """The similarity and what its backward needs."""

    similarity: Any  # K [BH, BN], 0 where it is cut off
    inverse_norms: Any  # 1 / (‖k‖ ‖M_i‖) [BH, BN], 0 where it is cut off
    key_square: Any  # ‖k‖² [BH]
    memory_square: Any  # ‖M_i‖² [BN]


class Addressing(NamedTuple):
    """The weightings, and what the backward needs of the stages before."""

    weightings: Any
    cosine: Any
    content: Any
    gated: Any
    shifted: Any
    peak: Any  # the largest w̃ of each head
    total: Any  # Σ (w̃ / peak)^γ
    strength: Any
    gate: Any
    taps: Any
    sharpening: Any


@triton.jit
def similarity(memory, p_key, shape: tl.constexpr, block: tl.constexpr):
    """The ``Cosine`` of all keys and rows."""
    i_m = tl.arange(0, memory.shape[1])
    dots = zero_rows(block.H, memory.shape[0], memory.dtype)
    key_square = zeros(block.H, memory.dtype)
    for h in range(shape.H):
        key = load(p_key + h * shape.M + i_m, i_m < shape.M, memory.dtype)
        dots = with_row(dots, h, tl.sum(memory * key[None, :], 1))
        key_square = tl.where(tl.arange(0, block.H) == h, tl.sum(key * key, 0), key_square)
    memory_square = tl.sum(memory * memory, 1)
    norms = tl.sqrt(key_square)[:, None] * tl.sqrt(memory_square)[None, :]
    cut = norms < COSINE_EPS
    inverse_norms = tl.where(cut, 0.0, 1.0 / tl.where(cut, 1.0, norms))
    return Cosine(dots * inverse_norms, inverse_norms, key_square, memory_square)


@triton.jit
def similarity_backward(
    d_memory, d_similarity, cosine, memory, p_key, p_d_key, seen, shape: tl.constexpr
):
    """``dK/dk = M_i / (‖k‖‖M_i‖) − K k / ‖k‖²``, and the same with k and M_i exchanged.

    Adds to the gradient of the memory. Stores that of the keys, added to what is there if ``seen``.
    """
    i_h, i_m = tl.arange(0, d_similarity.shape[0]), tl.arange(0, memory.shape[1])
    # Where the similarity is cut off, both factors below are 0; but a NaN times 0 would stay NaN.
    cut = (cosine.inverse_norms == 0) & (cosine.similarity == 0)
    d_similarity = tl.where(cut, 0.0, d_similarity)
    d_dots = d_similarity * cosine.inverse_norms
    # The second term of the equation, of the key and of the rows. Where a square is 0 the
    # similarity is cut off, and the term is 0 for any divisor.
    d_norms = d_similarity * cosine.similarity
    key_square, memory_square = cosine.key_square, cosine.memory_square
    by_key_norm = tl.sum(d_norms, 1) / tl.where(key_square == 0, 1.0, key_square)
    by_memory_norm = tl.sum(d_norms, 0) / tl.where(memory_square == 0, 1.0, memory_square)
    d_memory -= memory * by_memory_norm[:, None]
    for h in range(shape.H):
        key = load(p_key + h * shape.M + i_m, i_m < shape.M, memory.dtype)
        d_dots_h = row(d_dots, h)
        d_memory += d_dots_h[:, None] * key[None, :]
        d_key = tl.sum(d_dots_h[:, None] * memory, 0)
        d_key -= key * tl.sum(tl.where(i_h == h, by_key_norm, 0.0), 0)
        store(p_d_key + h * shape.M + i_m, d_key, i_m < shape.M, seen)
    return d_memory


@triton.jit
def content(similarity, strength, shape: tl.constexpr):
    i_n = tl.arange(0, similarity.shape[1])
    return math.softmax(strength[:, None] * similarity, (i_n < shape.N)[None, :])


@triton.jit
def content_backward(d_content, content, similarity, strength, total):
    """Gradients of similarity and strength. ``total`` is ``Σ_i d_content_i w^c_i`` of the whole
    weighting."""
    d_scores = content * (d_content - total[:, None])
    return d_scores * strength[:, None], tl.sum(d_scores * similarity, 1)


@triton.jit
def interpolate(content, previous, gate):
    return gate[:, None] * content + (1.0 - gate)[:, None] * previous


@triton.jit
def interpolate_backward(d_gated, content, previous, gate):
    """Gradients of content, previous weightings and gate."""
    d_gate = tl.sum(d_gated * (content - previous), 1)
    return d_gated * gate[:, None], d_gated * (1.0 - gate)[:, None], d_gate


@triton.jit
def behind(i_n, s, shape: tl.constexpr):
    """``(i − o) mod N`` for tap ``s`` of offset ``o = s − S // 2``.

    A multiple of N is added first: ``%`` of a negative number is negative on a GPU.
    """
    enough: tl.constexpr = shape.N * (shape.S // shape.N + 1) + shape.S // 2
    return (i_n + enough - s) % shape.N


@triton.jit
def ahead(i_n, s, shape: tl.constexpr):
    """``(i + o) mod N``."""
    enough: tl.constexpr = shape.N * (shape.S // shape.N + 1) - shape.S // 2
    return (i_n + enough + s) % shape.N


@triton.jit
def at(x, index):
    """``x[:, index]``, gathered inside the chip: by warp shuffles or through shared memory."""
    return tl.gather(x, tl.broadcast_to(index[None, :], x.shape), 1)


@triton.jit
def shift(gated, taps, shape: tl.constexpr):
    """``w̃_i = Σ_o s_o w^g_{i−o}``."""
    i_n = tl.arange(0, gated.shape[1])
    shifted = tl.zeros_like(gated)
    for s in range(shape.S):
        shifted += column(taps, s)[:, None] * at(gated, behind(i_n, s, shape))
    return tl.where((i_n < shape.N)[None, :], shifted, 0.0)


@triton.jit
def shift_backward(d_shifted, gated, taps, shape: tl.constexpr):
    """``d w^g_j = Σ_o s_o d w̃_{j+o}`` and ``d s_o = Σ_j w^g_j d w̃_{j+o}``."""
    i_n = tl.arange(0, gated.shape[1])
    d_gated, d_taps = tl.zeros_like(gated), tl.zeros_like(taps)
    for s in range(shape.S):
        d_ahead = at(d_shifted, ahead(i_n, s, shape))
        d_gated += column(taps, s)[:, None] * d_ahead
        d_taps = with_column(d_taps, s, tl.sum(gated * d_ahead, 1))
    return tl.where((i_n < shape.N)[None, :], d_gated, 0.0), d_taps


@triton.jit
def unfocused(peak, total):
    """Where no ``w̃`` of a head reaches ε, so that the weighting becomes uniform.

    A NaN must not count as such. A maximum may ignore it, but ``total`` is then NaN and differs
    from itself; so it is where a ``w̃`` is negative.
    """
    return (peak < FOCUS_EPS) & (total == total)


@triton.jit
def powers_of(shifted, sharpening):
    """The largest ``w̃`` of a block, and ``Σ u^γ`` with ``u = w̃ / max w̃``; NaN where a ``w̃`` is
    negative. The caller adds ``0 γ``, which makes the sum NaN where γ is not finite."""
    peak = tl.max(shifted, 1)
    ratio = shifted / tl.where(peak > 0, peak, 1.0)[:, None]
    return peak, tl.sum(math.power(ratio, sharpening[:, None], 0.0), 1)


@triton.jit
def sharpen(shifted, peak, total, sharpening, inside, shape: tl.constexpr):
    """``u^γ / Σ u^γ`` with ``u = w̃ / max w̃``; uniform where no w̃ reaches ε."""
    empty = unfocused(peak, total)
    ratio = shifted / tl.where(empty, 1.0, peak)[:, None]
    weightings = math.power(ratio, sharpening[:, None], 0.0)
    weightings /= tl.where(empty, 1.0, total)[:, None]
    weightings = tl.where(empty[:, None], 1.0 / shape.N, weightings)
    return tl.where(inside[None, :], weightings, 0.0)


@triton.jit
def sharpen_backward(d_weightings, weightings, shifted, peak, total, sharpening, mean, inside):
    """Gradients of ``w̃`` and γ. ``mean`` is ``Σ_i dw_i w_i`` of the whole weighting.

    ``dw_i/dw̃_j = γ w̃_j^{γ−1} / Σ w̃^γ (δ_ij − w_i)`` has no division by ``w̃_j``, which may be 0, and
    ``dw_i/dγ = w_i (log w̃_i − Σ_j w_j log w̃_j)``.
    """
    empty = unfocused(peak, total)
    ratio = shifted / tl.where(empty, 1.0, peak)[:, None]
    slope = sharpening / tl.where(empty, 1.0, total * peak)
    centred = d_weightings - mean[:, None]
    # At w̃ = 0 the power γ − 1 is infinite for γ between 0 and 1 and one for γ = 1. For γ ≤ 0,
    # where w̃^γ jumps, the slope is taken as 0.
    infinite = (sharpening > 0) & (sharpening < 1)
    at_zero = tl.where(infinite, float("inf"), tl.where(sharpening == 1, 1.0, 0.0))
    powers = math.power(ratio, sharpening[:, None] - 1.0, at_zero[:, None])
    d_shifted = powers * slope[:, None] * centred
    d_shifted = tl.where(empty[:, None] | (inside == 0)[None, :], 0.0, d_shifted)
    logarithm = tl.log(tl.where((ratio == 0) | empty[:, None], 1.0, ratio))
    return d_shifted, tl.sum(centred * weightings * logarithm, 1)


@triton.jit
def address(memory, previous, heads, shape: tl.constexpr, block: tl.constexpr, RAW: tl.constexpr):
    """The ``Addressing`` of all heads, with the whole memory in registers."""
    inside = tl.arange(0, memory.shape[0]) < shape.N
    strength = interface.activate_strength(heads.strength, shape, block, RAW)
    gate = interface.activate_gate(heads.gate, shape, block, RAW)
    taps = interface.activate_shift(heads.shift, shape, block, RAW)
    sharpening = interface.activate_sharpening(heads.sharpening, shape, block, RAW)
    cosine = similarity(memory, heads.key, shape, block)
    by_content = content(cosine.similarity, strength, shape)
    gated = interpolate(by_content, previous, gate)
    shifted = shift(gated, taps, shape)
    peak, total = powers_of(shifted, sharpening)
    total += 0.0 * sharpening
    weightings = sharpen(shifted, peak, total, sharpening, inside, shape)
    return Addressing(
        weightings,
        cosine,
        by_content,
        gated,
        shifted,
        peak,
        total,
        strength,
        gate,
        taps,
        sharpening,
    )


@triton.jit
def address_backward(
    d_memory,
    d_weightings,
    memory,
    previous,
    heads,
    d_heads,
    shape: tl.constexpr,
    block: tl.constexpr,
    RAW: tl.constexpr,
):
    """Adds to the gradient of the memory, returns that of the previous weightings, and stores those
    of the parameters. What the stages found on the way is computed again, not kept."""
    inside = tl.arange(0, memory.shape[0]) < shape.N
    found = address(memory, previous, heads, shape, block, RAW)
    mean = tl.sum(d_weightings * found.weightings, 1)
    d_shifted, d_sharpening = sharpen_backward(
        d_weightings,
        found.weightings,
        found.shifted,
        found.peak,
        found.total,
        found.sharpening,
        mean,
        inside,
    )
    d_gated, d_taps = shift_backward(d_shifted, found.gated, found.taps, shape)
    d_content, d_previous, d_gate = interpolate_backward(
        d_gated, found.content, previous, found.gate
    )
    total = tl.sum(d_content * found.content, 1)
    d_similarity, d_strength = content_backward(
        d_content, found.content, found.cosine.similarity, found.strength, total
    )
    d_memory = similarity_backward(
        d_memory, d_similarity, found.cosine, memory, heads.key, d_heads.key, False, shape
    )
    interface.activate_backward_softplus(
        heads.strength, d_heads.strength, d_strength, shape, block, RAW
    )
    interface.activate_backward_gate(heads.gate, d_heads.gate, d_gate, shape, block, RAW)
    interface.activate_backward_shift(found.taps, d_heads.shift, d_taps, shape, block, RAW)
    interface.activate_backward_softplus(
        heads.sharpening, d_heads.sharpening, d_sharpening, shape, block, RAW
    )
    return d_memory, d_previous
