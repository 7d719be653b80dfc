"""The stages of a step on the chip, each with its backward, shared by every kernel.

Names are those of the reference. One naming code everywhere: ``p_x`` points at x of the program's
own sequence, ``i_x`` is an index block, ``d_x`` the gradient of the loss with respect to x. Sizes
are compile-time: H, N, M, S, R, W as in the reference, and the powers of two that hold them ``BH``,
``BN``, ``BM``, ``BS``. Blocks are in the arithmetic dtype ``ACC``: ``memory [BN, BM]``, a weighting
of all heads ``[BH, BN]``, taps ``[BH, BS]``, one number per head ``[BH]``.

Beyond the sizes, memory, weightings and taps are 0. Heads are a dimension of the weightings, so
that the chain's reductions cost the same for any number of heads; only what touches the memory
loops over them.

``RAW`` parameters are activated where they are loaded, and their gradients are of the raw ones.
``seen`` says that a gradient summed over tiles has a first part already; False where one program
sees the whole memory.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ntm_kernels import reference

COSINE_EPS = tl.constexpr(reference.COSINE_EPS)
FOCUS_EPS = tl.constexpr(reference.FOCUS_EPS)


class Addressing(NamedTuple):
    """The weightings, and what lies between, for the backward."""

    weightings: Any
    alike: Any
    inverse_norms: Any
    key_square: Any
    memory_square: Any
    by_content: Any
    gated: Any
    shifted: Any
    peak: Any
    total: Any


# Elementary functions that hold in float32 and float64 alike.


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """``log(1 + e^x)``; the quotient takes back the rounding of ``1 + small``."""
    small = tl.exp(-tl.abs(x))
    one_more = 1.0 + small
    rounded = one_more == 1.0
    correction = small / tl.where(rounded, 1.0, one_more - 1.0)
    return tl.maximum(x, 0.0) + tl.where(rounded, small, tl.log(one_more) * correction)


@triton.jit
def tanh(x):
    """Near 0 the continued fraction to its seventh level, elsewhere by the exponential."""
    square = tl.minimum(x * x, 0.25)
    above = 135135.0 + square * (17325.0 + square * (378.0 + square))
    below = 135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))
    small = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - small) / (1.0 + small)
    return tl.where(x * x < 0.25, x * (above / below), tl.where(x < 0, -far, far))


@triton.jit
def power(x, exponent, at_zero):
    """``x^exponent`` for x > 0, NaN for a negative x."""
    zero = x == 0
    found = tl.exp(exponent * tl.log(tl.where(zero, 1.0, x)))
    return tl.where(zero, at_zero, found)


# Access.


@triton.jit
def load(p, mask, ACC: tl.constexpr):
    return tl.load(p, mask=mask, other=0.0).to(ACC)


@triton.jit
def store(p, value, mask, seen):
    """Store ``value``, added to what is there if ``seen``."""
    if seen:
        value += load(p, mask, value.dtype)
    tl.store(p, value, mask=mask)


@triton.jit
def load_rows(p, i_row, i_column, rows, columns, ACC: tl.constexpr):
    """Block ``[rows, columns]`` of a matrix that is contiguous from ``p``."""
    inside = (i_row[:, None] < rows) & (i_column[None, :] < columns)
    return load(p + i_row[:, None] * columns + i_column[None, :], inside, ACC)


@triton.jit
def store_rows(p, value, i_row, i_column, rows, columns):
    inside = (i_row[:, None] < rows) & (i_column[None, :] < columns)
    tl.store(p + i_row[:, None] * columns + i_column[None, :], value, mask=inside)


@triton.jit
def row(x, i):
    """Row ``i`` of a block."""
    i_row = tl.arange(0, x.shape[0])
    return tl.sum(tl.where(i_row[:, None] == i, x, 0.0), 0)


@triton.jit
def column(x, i):
    """Column ``i`` of a block."""
    i_column = tl.arange(0, x.shape[1])
    return tl.sum(tl.where(i_column[None, :] == i, x, 0.0), 1)


@triton.jit
def with_row(x, i, values):
    """The block with ``values`` as row ``i``."""
    i_row = tl.arange(0, x.shape[0])
    return tl.where(i_row[:, None] == i, values[None, :], x)


@triton.jit
def with_column(x, i, values):
    """The block with ``values`` as column ``i``."""
    i_column = tl.arange(0, x.shape[1])
    return tl.where(i_column[None, :] == i, values[:, None], x)


# Parameters of all heads, one number each or one distribution.


@triton.jit
def load_strength(p, H: tl.constexpr, BH: tl.constexpr, RAW: tl.constexpr, ACC: tl.constexpr):
    i_h = tl.arange(0, BH)
    value = load(p + i_h, i_h < H, ACC)
    return softplus(value) if RAW else value


@triton.jit
def load_gate(p, H: tl.constexpr, BH: tl.constexpr, RAW: tl.constexpr, ACC: tl.constexpr):
    i_h = tl.arange(0, BH)
    value = load(p + i_h, i_h < H, ACC)
    return sigmoid(value) if RAW else value


@triton.jit
def load_sharpening(p, H: tl.constexpr, BH: tl.constexpr, RAW: tl.constexpr, ACC: tl.constexpr):
    i_h = tl.arange(0, BH)
    value = load(p + i_h, i_h < H, ACC)
    return 1.0 + softplus(value) if RAW else value


@triton.jit
def load_shift(
    p,
    H: tl.constexpr,
    S: tl.constexpr,
    BH: tl.constexpr,
    BS: tl.constexpr,
    RAW: tl.constexpr,
    ACC: tl.constexpr,
):
    i_s = tl.arange(0, BS)
    shift_weighting = load_rows(p, tl.arange(0, BH), i_s, H, S, ACC)
    return softmax(shift_weighting, (i_s < S)[None, :]) if RAW else shift_weighting


@triton.jit
def load_erase(p, i_m, M: tl.constexpr, RAW: tl.constexpr, ACC: tl.constexpr):
    """Of one head."""
    value = load(p + i_m, i_m < M, ACC)
    return sigmoid(value) if RAW else value


@triton.jit
def store_strength_gradient(
    p, p_d, d_strength, seen, H: tl.constexpr, RAW: tl.constexpr, ACC: tl.constexpr
):
    """Also that of the sharpening, which is softplus too."""
    i_h = tl.arange(0, d_strength.shape[0])
    if RAW:
        d_strength *= sigmoid(load(p + i_h, i_h < H, ACC))
    store(p_d + i_h, d_strength, i_h < H, seen)


@triton.jit
def store_gate_gradient(
    p, p_d, d_gate, seen, H: tl.constexpr, RAW: tl.constexpr, ACC: tl.constexpr
):
    i_h = tl.arange(0, d_gate.shape[0])
    if RAW:
        raw = load(p + i_h, i_h < H, ACC)
        d_gate *= sigmoid(raw) * sigmoid(-raw)
    store(p_d + i_h, d_gate, i_h < H, seen)


@triton.jit
def store_shift_gradient(
    p_d, d_shift, shift_weighting, seen, H: tl.constexpr, S: tl.constexpr, RAW: tl.constexpr
):
    i_h, i_s = tl.arange(0, shift_weighting.shape[0]), tl.arange(0, shift_weighting.shape[1])
    if RAW:
        d_shift = shift_weighting * (d_shift - tl.sum(d_shift * shift_weighting, 1)[:, None])
    inside = (i_h[:, None] < H) & (i_s[None, :] < S)
    store(p_d + i_h[:, None] * S + i_s[None, :], d_shift, inside, seen)


# Addressing, equations 5 to 9.


@triton.jit
def softmax(x, inside):
    """Along the last dimension, over what is ``inside``."""
    x = tl.where(inside, x, -float("inf"))
    exponentials = tl.exp(x - tl.max(x, 1)[:, None])
    return exponentials / tl.sum(exponentials, 1)[:, None]


@triton.jit
def similarity(memory, p_key, H: tl.constexpr, M: tl.constexpr, BH: tl.constexpr):
    """Cosine similarity ``K``, ``1 / (‖k‖ ‖M_i‖)``, both 0 where it is cut off, ``‖k‖²`` and
    ``‖M_i‖²``."""
    i_m = tl.arange(0, memory.shape[1])
    dots = tl.zeros([BH, memory.shape[0]], memory.dtype)
    key_square = tl.zeros([BH], memory.dtype)
    for h in range(H):
        key = load(p_key + h * M + i_m, i_m < M, memory.dtype)
        dots = with_row(dots, h, tl.sum(memory * key[None, :], 1))
        key_square = tl.where(tl.arange(0, BH) == h, tl.sum(key * key, 0), key_square)
    memory_square = tl.sum(memory * memory, 1)
    norms = tl.sqrt(key_square)[:, None] * tl.sqrt(memory_square)[None, :]
    cut = norms < COSINE_EPS
    inverse_norms = tl.where(cut, 0.0, 1.0 / tl.where(cut, 1.0, norms))
    return dots * inverse_norms, inverse_norms, key_square, memory_square


@triton.jit
def similarity_backward(
    d_memory,
    d_similarity,
    alike,
    inverse_norms,
    key_square,
    memory_square,
    memory,
    p_key,
    p_d_key,
    seen,
    H: tl.constexpr,
    M: tl.constexpr,
):
    """``dK/dk = M_i / (‖k‖‖M_i‖) − K k / ‖k‖²``, and the same with k and M_i exchanged.

    Adds to the gradient of the memory, and stores that of the keys.
    """
    i_h, i_m = tl.arange(0, d_similarity.shape[0]), tl.arange(0, memory.shape[1])
    # Not by the factors alone, which are 0 there: a NaN would stay.
    d_similarity = tl.where((inverse_norms == 0) & (alike == 0), 0.0, d_similarity)
    d_dots = d_similarity * inverse_norms
    pull = d_similarity * alike
    # Where a square is 0 the similarity is cut off, and there is no pull.
    key_pull = tl.sum(pull, 1) / tl.where(key_square == 0, 1.0, key_square)
    memory_pull = tl.sum(pull, 0) / tl.where(memory_square == 0, 1.0, memory_square)
    d_memory -= memory * memory_pull[:, None]
    for h in range(H):
        key = load(p_key + h * M + i_m, i_m < M, memory.dtype)
        d_dots_h = row(d_dots, h)
        d_memory += d_dots_h[:, None] * key[None, :]
        d_key = tl.sum(d_dots_h[:, None] * memory, 0)
        d_key -= key * tl.sum(tl.where(i_h == h, key_pull, 0.0), 0)
        store(p_d_key + h * M + i_m, d_key, i_m < M, seen)
    return d_memory


@triton.jit
def content(alike, strength, N: tl.constexpr):
    i_n = tl.arange(0, alike.shape[1])
    return softmax(strength[:, None] * alike, (i_n < N)[None, :])


@triton.jit
def content_backward(d_content, by_content, alike, strength, total):
    """``total`` is ``Σ_i d_content_i w^c_i`` of the whole weighting."""
    d_scores = by_content * (d_content - total[:, None])
    return d_scores * strength[:, None], tl.sum(d_scores * alike, 1)


@triton.jit
def interpolate(by_content, previous, gate):
    return gate[:, None] * by_content + (1.0 - gate)[:, None] * previous


@triton.jit
def interpolate_backward(d_gated, by_content, previous, gate):
    d_gate = tl.sum(d_gated * (by_content - previous), 1)
    return d_gated * gate[:, None], d_gated * (1.0 - gate)[:, None], d_gate


@triton.jit
def behind(i_n, s, N: tl.constexpr, S: tl.constexpr):
    """``(i − o) mod N`` for tap ``s`` of offset ``o = s − S // 2``; never negative inside."""
    return (i_n + (N * (S // N + 1) + S // 2) - s) % N


@triton.jit
def ahead(i_n, s, N: tl.constexpr, S: tl.constexpr):
    """``(i + o) mod N``."""
    return (i_n + (N * (S // N + 1) - S // 2) + s) % N


@triton.jit
def at(x, index):
    """``x[:, index]``, gathered inside the chip: by warp shuffles or through shared memory."""
    return tl.gather(x, tl.broadcast_to(index[None, :], x.shape), 1)


@triton.jit
def shift(gated, shift_weighting, N: tl.constexpr, S: tl.constexpr):
    """``w̃_i = Σ_o s_o w^g_{i−o}``."""
    i_n = tl.arange(0, gated.shape[1])
    shifted = tl.zeros_like(gated)
    for s in range(S):
        shifted += column(shift_weighting, s)[:, None] * at(gated, behind(i_n, s, N, S))
    return tl.where((i_n < N)[None, :], shifted, 0.0)


@triton.jit
def shift_backward(d_shifted, gated, shift_weighting, N: tl.constexpr, S: tl.constexpr):
    """``d w^g_j = Σ_o s_o d w̃_{j+o}`` and ``d s_o = Σ_j w^g_j d w̃_{j+o}``."""
    i_n = tl.arange(0, gated.shape[1])
    d_gated, d_shift = tl.zeros_like(gated), tl.zeros_like(shift_weighting)
    for s in range(S):
        d_ahead = at(d_shifted, ahead(i_n, s, N, S))
        d_gated += column(shift_weighting, s)[:, None] * d_ahead
        d_shift = with_column(d_shift, s, tl.sum(gated * d_ahead, 1))
    return tl.where((i_n < N)[None, :], d_gated, 0.0), d_shift


@triton.jit
def unfocused(peak, total):
    """Where no ``w̃`` reaches ε; NaN, which a maximum may not see, is in the sum, and so is what a
    negative ``w̃`` makes."""
    return (peak < FOCUS_EPS) & (total == total)


@triton.jit
def sharpen(shifted, peak, total, sharpening, inside, N: tl.constexpr):
    """``u^γ / Σ u^γ`` with ``u = w̃ / max w̃``; uniform where no w̃ reaches ε."""
    empty = unfocused(peak, total)
    ratio = shifted / tl.where(empty, 1.0, peak)[:, None]
    weightings = power(ratio, sharpening[:, None], 0.0) / tl.where(empty, 1.0, total)[:, None]
    weightings = tl.where(empty[:, None], 1.0 / N, weightings)
    return tl.where(inside[None, :], weightings, 0.0)


@triton.jit
def powers_of(shifted, sharpening):
    """The largest ``w̃`` of a block, and ``Σ u^γ`` relative to it: NaN where a ``w̃`` is negative.
    The sum over all blocks is for the caller to make NaN where γ is not finite."""
    peak = tl.max(shifted, 1)
    ratio = shifted / tl.where(peak > 0, peak, 1.0)[:, None]
    return peak, tl.sum(power(ratio, sharpening[:, None], 0.0), 1)


@triton.jit
def sharpen_backward(d_weightings, weightings, shifted, peak, total, sharpening, mean, inside):
    """``dw_i/dw̃_j = γ w̃_j^{γ−1} / Σ w̃^γ (δ_ij − w_i)``, never dividing by ``w̃_j``, and
    ``dw_i/dγ = w_i (log w̃_i − Σ_j w_j log w̃_j)``; ``mean`` is ``Σ_i dw_i w_i``."""
    empty = unfocused(peak, total)
    ratio = shifted / tl.where(empty, 1.0, peak)[:, None]
    slope = sharpening / tl.where(empty, 1.0, total * peak)
    centred = d_weightings - mean[:, None]
    # For γ ≤ 0, where w̃^γ jumps, no slope at all.
    infinite = (sharpening > 0) & (sharpening < 1)
    at_zero = tl.where(infinite, float("inf"), tl.where(sharpening == 1, 1.0, 0.0))
    powers = power(ratio, sharpening[:, None] - 1.0, at_zero[:, None])
    d_shifted = powers * slope[:, None] * centred
    d_shifted = tl.where(empty[:, None] | (inside == 0)[None, :], 0.0, d_shifted)
    logarithm = tl.log(tl.where((ratio == 0) | empty[:, None], 1.0, ratio))
    return d_shifted, tl.sum(centred * weightings * logarithm, 1)


@triton.jit
def address(
    memory,
    previous,
    heads,
    H: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    S: tl.constexpr,
    BH: tl.constexpr,
    BS: tl.constexpr,
    RAW: tl.constexpr,
):
    """All of an ``Addressing`` by ``Heads``."""
    ACC: tl.constexpr = memory.dtype
    inside = tl.arange(0, memory.shape[0]) < N
    strength = load_strength(heads.strength, H, BH, RAW, ACC)
    gate = load_gate(heads.gate, H, BH, RAW, ACC)
    shift_weighting = load_shift(heads.shift, H, S, BH, BS, RAW, ACC)
    sharpening = load_sharpening(heads.sharpening, H, BH, RAW, ACC)
    alike, inverse_norms, key_square, memory_square = similarity(memory, heads.key, H, M, BH)
    by_content = content(alike, strength, N)
    gated = interpolate(by_content, previous, gate)
    shifted = shift(gated, shift_weighting, N, S)
    peak, total = powers_of(shifted, sharpening)
    total += 0.0 * sharpening
    weightings = sharpen(shifted, peak, total, sharpening, inside, N)
    return Addressing(
        weightings,
        alike,
        inverse_norms,
        key_square,
        memory_square,
        by_content,
        gated,
        shifted,
        peak,
        total,
    )


@triton.jit
def address_backward(
    d_memory,
    d_weightings,
    memory,
    previous,
    heads,
    d_heads,
    H: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    S: tl.constexpr,
    BH: tl.constexpr,
    BS: tl.constexpr,
    RAW: tl.constexpr,
):
    """Adds to the gradient of the memory, and returns that of the previous weightings; stores those
    of the parameters."""
    ACC: tl.constexpr = memory.dtype
    inside = tl.arange(0, memory.shape[0]) < N
    strength = load_strength(heads.strength, H, BH, RAW, ACC)
    gate = load_gate(heads.gate, H, BH, RAW, ACC)
    shift_weighting = load_shift(heads.shift, H, S, BH, BS, RAW, ACC)
    sharpening = load_sharpening(heads.sharpening, H, BH, RAW, ACC)
    found = address(memory, previous, heads, H, N, M, S, BH, BS, RAW)

    mean = tl.sum(d_weightings * found.weightings, 1)
    d_shifted, d_sharpening = sharpen_backward(
        d_weightings,
        found.weightings,
        found.shifted,
        found.peak,
        found.total,
        sharpening,
        mean,
        inside,
    )
    d_gated, d_shift = shift_backward(d_shifted, found.gated, shift_weighting, N, S)
    d_content, d_previous, d_gate = interpolate_backward(d_gated, found.by_content, previous, gate)
    d_alike, d_strength = content_backward(
        d_content, found.by_content, found.alike, strength, tl.sum(d_content * found.by_content, 1)
    )
    d_memory = similarity_backward(
        d_memory,
        d_alike,
        found.alike,
        found.inverse_norms,
        found.key_square,
        found.memory_square,
        memory,
        heads.key,
        d_heads.key,
        False,
        H,
        M,
    )
    store_strength_gradient(heads.strength, d_heads.strength, d_strength, False, H, RAW, ACC)
    store_gate_gradient(heads.gate, d_heads.gate, d_gate, False, H, RAW, ACC)
    store_shift_gradient(d_heads.shift, d_shift, shift_weighting, False, H, S, RAW)
    store_strength_gradient(heads.sharpening, d_heads.sharpening, d_sharpening, False, H, RAW, ACC)
    return d_memory, d_previous


# Read and write, equations 2 to 4.


@triton.jit
def read(memory, weightings, p_read_vectors, p_copy, seen, R: tl.constexpr, M: tl.constexpr):
    """Stores ``r = Σ_i w_i M_i`` of the first R heads, twice if there is a ``p_copy``."""
    i_m = tl.arange(0, memory.shape[1])
    for h in range(R):
        vector = tl.sum(row(weightings, h)[:, None] * memory, 0)
        store(p_read_vectors + h * M + i_m, vector, i_m < M, seen)
        if p_copy is not None:
            tl.store(p_copy + h * M + i_m, vector, mask=i_m < M)


@triton.jit
def read_backward(
    d_memory,
    d_weightings,
    memory,
    weightings,
    p_d_read_vectors,
    p_d_more,
    R: tl.constexpr,
    M: tl.constexpr,
):
    """Adds to both gradients; that of the read vectors is in two parts, each of which may lack."""
    i_m = tl.arange(0, memory.shape[1])
    for h in range(R):
        d_read = tl.zeros([memory.shape[1]], memory.dtype)
        if p_d_read_vectors is not None:
            d_read += load(p_d_read_vectors + h * M + i_m, i_m < M, memory.dtype)
        if p_d_more is not None:
            d_read += load(p_d_more + h * M + i_m, i_m < M, memory.dtype)
        d_memory += row(weightings, h)[:, None] * d_read[None, :]
        d_row = row(d_weightings, h) + tl.sum(memory * d_read[None, :], 1)
        d_weightings = with_row(d_weightings, h, d_row)
    return d_memory, d_weightings


@triton.jit
def write(
    memory,
    weightings,
    p_erase,
    p_add,
    R: tl.constexpr,
    W: tl.constexpr,
    M: tl.constexpr,
    RAW: tl.constexpr,
):
    """``M_i ∘ Π_h (1 − w_{h,i} e_h) + Σ_h w_{h,i} a_h`` over the heads from R on."""
    i_m = tl.arange(0, memory.shape[1])
    for h in range(W):
        erase = load_erase(p_erase + h * M, i_m, M, RAW, memory.dtype)
        memory *= 1.0 - row(weightings, R + h)[:, None] * erase[None, :]
    for h in range(W):
        add = load(p_add + h * M + i_m, i_m < M, memory.dtype)
        memory += row(weightings, R + h)[:, None] * add[None, :]
    return memory


@triton.jit
def write_backward(
    d_memory,
    d_weightings,
    memory,
    weightings,
    p_erase,
    p_add,
    p_d_erase,
    p_d_add,
    seen,
    R: tl.constexpr,
    W: tl.constexpr,
    M: tl.constexpr,
    RAW: tl.constexpr,
):
    """Gradient of the memory, and that of the weightings added to theirs; stores the others.

    The product over the other heads is taken anew for each: ``1 − w e`` may be 0, so it cannot be
    divided out, and keeping prefixes would cost a memory's worth of registers per head.
    """
    i_m = tl.arange(0, memory.shape[1])
    pull = d_memory * memory
    for h in range(W):
        weight = row(weightings, R + h)
        erase = load_erase(p_erase + h * M, i_m, M, RAW, memory.dtype)
        add = load(p_add + h * M + i_m, i_m < M, memory.dtype)
        others = pull
        if W > 1:
            for j in range(W):
                other = load_erase(p_erase + j * M, i_m, M, RAW, memory.dtype)
                retention = 1.0 - row(weightings, R + j)[:, None] * other[None, :]
                others *= tl.where(j == h, 1.0, retention)
        d_row = tl.sum(add[None, :] * d_memory - erase[None, :] * others, 1)
        d_weightings = with_row(d_weightings, R + h, row(d_weightings, R + h) + d_row)
        d_erase = -tl.sum(weight[:, None] * others, 0)
        if RAW:
            raw = load(p_erase + h * M + i_m, i_m < M, memory.dtype)
            d_erase *= erase * sigmoid(-raw)
        store(p_d_erase + h * M + i_m, d_erase, i_m < M, seen)
        d_add = tl.sum(weight[:, None] * d_memory, 0)
        store(p_d_add + h * M + i_m, d_add, i_m < M, seen)
    for h in range(W):
        erase = load_erase(p_erase + h * M, i_m, M, RAW, memory.dtype)
        d_memory *= 1.0 - row(weightings, R + h)[:, None] * erase[None, :]
    return d_memory, d_weightings
