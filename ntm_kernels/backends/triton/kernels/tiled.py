"""Memories too large for one program: several programs per sequence, several launches.

A program walks through the tiles of its own run of locations. What needs all locations of a
weighting (a softmax, the sharpening's normalisation, a read, the gradient of a parameter) is left
as one part per program, and a later kernel adds up the parts in their order: no atomics, the same
bits every time. What the circular shift needs from beyond a tile's edge comes from the second-level
cache.

Forward: ``scores``, ``shift`` and ``finish`` (sharpening, read, write). Backward, after ``scores``
and ``shift`` again: ``finish_backward``, ``sharpen_backward``, ``shift_backward`` (and
interpolation) and ``scores_backward`` (content and similarity). ``combine`` adds up the parts of
read vectors and of parameters' gradients.

Grids are ``[B, G]``, with G programs of ``run`` locations each per sequence. Parameters of a step
are views into its interface vector, P apart; those of ``address`` and ``write`` are tensors of
their own. Gradients of parameters come in parts ``[B, G, D]``, laid out like an interface vector.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import stages

# One compilation serves batches of any size, which the number of parts depends on.
VARYING = ("G",)


@triton.jit
def softmax_total(
    p_tops, p_sums, G, H: tl.constexpr, BH: tl.constexpr, BG: tl.constexpr, ACC: tl.constexpr
):
    """Every head's largest score and sum of exponentials, from those of all parts."""
    i_h, i_g = tl.arange(0, BH), tl.arange(0, BG)
    tops = stages.load_rows(p_tops, i_h, i_g, H, G, ACC)
    sums = stages.load_rows(p_sums, i_h, i_g, H, G, ACC)
    tops = tl.where((i_g < G)[None, :], tops, -float("inf"))
    top = tl.max(tops, 1)
    total = tl.sum(sums * tl.exp(tops - top[:, None]), 1)
    return top, tl.where(i_h < H, total, 1.0)


@triton.jit
def power_total(
    p_peaks, p_powers, sharpening, G, H: tl.constexpr, BH: tl.constexpr, BG: tl.constexpr
):
    """Every head's largest ``w̃`` and sum of powers relative to it, from those of all parts."""
    i_h, i_g = tl.arange(0, BH), tl.arange(0, BG)
    peaks = stages.load_rows(p_peaks, i_h, i_g, H, G, sharpening.dtype)
    powers = stages.load_rows(p_powers, i_h, i_g, H, G, sharpening.dtype)
    peak = tl.max(peaks, 1)
    ratio = peaks / tl.where(peak == 0, 1.0, peak)[:, None]
    return peak, tl.sum(powers * stages.power(ratio, sharpening[:, None], 0.0), 1)


@triton.jit
def part_total(p_parts, G, H: tl.constexpr, BH: tl.constexpr, BG: tl.constexpr, ACC: tl.constexpr):
    """The sum of every head's parts."""
    parts = stages.load_rows(p_parts, tl.arange(0, BH), tl.arange(0, BG), H, G, ACC)
    return tl.sum(parts, 1)


@triton.jit
def store_part(p_parts, part, i_g, G, H: tl.constexpr):
    """One number per head into ``[H, G]``."""
    i_h = tl.arange(0, part.shape[0])
    tl.store(p_parts + i_h * G + i_g, part, mask=i_h < H)


@triton.jit
def load_at(
    p, index, inside, H: tl.constexpr, N: tl.constexpr, BH: tl.constexpr, ACC: tl.constexpr
):
    """Some locations of a weighting of all heads: ``[BH, len(index)]``."""
    i_h = tl.arange(0, BH)
    mask = (i_h[:, None] < H) & inside[None, :]
    return stages.load(p + i_h[:, None] * N + index[None, :], mask, ACC)


@triton.jit
def store_at(p, value, index, inside, H: tl.constexpr, N: tl.constexpr):
    i_h = tl.arange(0, value.shape[0])
    mask = (i_h[:, None] < H) & inside[None, :]
    tl.store(p + i_h[:, None] * N + index[None, :], value, mask=mask)


@triton.jit
def content_at(scores, top, total, inside):
    """The content weighting from the scores."""
    return tl.where(inside[None, :], tl.exp(scores - top[:, None]) / total[:, None], 0.0)


@triton.jit
def load_tile(p, i_n, inside, M: tl.constexpr, BM: tl.constexpr, ACC: tl.constexpr):
    i_m = tl.arange(0, BM)
    mask = inside[:, None] & (i_m < M)[None, :]
    return stages.load(p + i_n[:, None] * M + i_m[None, :], mask, ACC)


@triton.jit
def store_tile(p, value, i_n, inside, M: tl.constexpr):
    i_m = tl.arange(0, value.shape[1])
    mask = inside[:, None] & (i_m < M)[None, :]
    tl.store(p + i_n[:, None] * M + i_m[None, :], value, mask=mask)


@triton.jit(do_not_specialize=VARYING)
def scores_kernel(
    p_memory,  # [B, N, M]
    heads,  # Heads
    chain,  # Chain: finds scores, tops and sums
    G,
    run,
    H: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    P: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    RAW: tl.constexpr,
    ACC: tl.constexpr,
):
    i_b, i_g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p_key = heads.key + i_b * (P if RAW else H * M)
    p_strength = heads.strength + i_b * (P if RAW else H)
    strength = stages.load_strength(p_strength, H, BH, RAW, ACC)
    top, total = tl.full([BH], -float("inf"), ACC), tl.zeros([BH], ACC)
    for start in range(i_g * run, tl.minimum(i_g * run + run, N), BN):
        i_n = start + tl.arange(0, BN)
        inside = i_n < N
        memory = load_tile(p_memory + i_b * N * M, i_n, inside, M, BM, ACC)
        alike, _, _, _ = stages.similarity(memory, p_key, H, M, BH)
        scores = strength[:, None] * alike
        store_at(chain.scores + i_b * H * N, scores, i_n, inside, H, N)
        scores = tl.where(inside[None, :], scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        total *= tl.exp(top - higher)
        total += tl.sum(tl.exp(scores - higher[:, None]), 1)
        top = higher
    store_part(chain.tops + i_b * H * G, top, i_g, G, H)
    store_part(chain.sums + i_b * H * G, total, i_g, G, H)


@triton.jit(do_not_specialize=VARYING)
def shift_kernel(
    heads,  # Heads
    chain,  # Chain: finds shifted, peaks and powers
    p_previous,  # [B, H, N]
    G,
    run,
    H: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BS: tl.constexpr,
    BG: tl.constexpr,
    RAW: tl.constexpr,
    ACC: tl.constexpr,
):
    i_b, i_g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    gate = stages.load_gate(heads.gate + i_b * (P if RAW else H), H, BH, RAW, ACC)
    shift_weighting = stages.load_shift(
        heads.shift + i_b * (P if RAW else H * S), H, S, BH, BS, RAW, ACC
    )
    p_sharpening = heads.sharpening + i_b * (P if RAW else H)
    sharpening = stages.load_sharpening(p_sharpening, H, BH, RAW, ACC)
    p_tops = chain.tops + i_b * H * G
    p_sums = chain.sums + i_b * H * G
    top, total = softmax_total(p_tops, p_sums, G, H, BH, BG, ACC)
    p_scores = chain.scores + i_b * H * N
    p_previous += i_b * H * N
    peak, powers = tl.zeros([BH], ACC), tl.zeros([BH], ACC)
    for start in range(i_g * run, tl.minimum(i_g * run + run, N), BN):
        i_n = start + tl.arange(0, BN)
        inside = i_n < N
        shifted = tl.zeros([BH, BN], ACC)
        for s in range(S):
            i_from = stages.behind(i_n, s, N, S)
            scores = load_at(p_scores, i_from, inside, H, N, BH, ACC)
            previous = load_at(p_previous, i_from, inside, H, N, BH, ACC)
            gated = stages.interpolate(content_at(scores, top, total, inside), previous, gate)
            shifted += stages.column(shift_weighting, s)[:, None] * gated
        store_at(chain.shifted + i_b * H * N, shifted, i_n, inside, H, N)
        tile_peak, tile_powers = stages.powers_of(shifted, sharpening)
        higher = tl.maximum(peak, tile_peak)
        scale = tl.where(higher == 0, 1.0, higher)
        powers *= stages.power(peak / scale, sharpening, 0.0)
        powers += tile_powers * stages.power(tile_peak / scale, sharpening, 0.0)
        peak = higher
    store_part(chain.peaks + i_b * H * G, peak, i_g, G, H)
    store_part(chain.powers + i_b * H * G, powers + 0.0 * sharpening, i_g, G, H)


@triton.jit(do_not_specialize=VARYING)
def finish_kernel(
    p_memory,  # [B, N, M]; None if there is nothing to read or write
    heads,  # Heads
    chain,  # Chain; None if the weightings are given
    p_weightings,  # [B, H, N], given or found
    p_read_vectors,  # [B, G, R, M], in parts
    p_written,  # [B, N, M]
    G,
    run,
    R: tl.constexpr,
    W: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    P: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BG: tl.constexpr,
    RAW: tl.constexpr,
    ACC: tl.constexpr,
):
    i_b, i_g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p_weightings += i_b * H * N
    if chain is not None:
        p_sharpening = heads.sharpening + i_b * (P if RAW else H)
        sharpening = stages.load_sharpening(p_sharpening, H, BH, RAW, ACC)
        p_peaks = chain.peaks + i_b * H * G
        p_powers = chain.powers + i_b * H * G
        peak, total = power_total(p_peaks, p_powers, sharpening, G, H, BH, BG)
        p_shifted = chain.shifted + i_b * H * N
    if R > 0:
        p_read_vectors += (i_b * G + i_g) * R * M
    if W > 0:
        p_erase = heads.erase + i_b * (P if RAW else W * M)
        p_add = heads.add + i_b * (P if RAW else W * M)
    for start in range(i_g * run, tl.minimum(i_g * run + run, N), BN):
        i_n = start + tl.arange(0, BN)
        inside = i_n < N
        if chain is not None:
            shifted = load_at(p_shifted, i_n, inside, H, N, BH, ACC)
            weightings = stages.sharpen(shifted, peak, total, sharpening, inside, N)
            store_at(p_weightings, weightings, i_n, inside, H, N)
        else:
            weightings = load_at(p_weightings, i_n, inside, H, N, BH, ACC)
        if R + W > 0:
            memory = load_tile(p_memory + i_b * N * M, i_n, inside, M, BM, ACC)
        if R > 0:
            stages.read(memory, weightings, p_read_vectors, None, start > i_g * run, R, M)
            tl.debug_barrier()
        if W > 0:
            memory = stages.write(memory, weightings, p_erase, p_add, R, W, M, RAW)
            store_tile(p_written + i_b * N * M, memory, i_n, inside, M)


@triton.jit(do_not_specialize=VARYING)
def finish_backward_kernel(
    grads,  # StepOutputs, each of which may lack
    p_memory,  # [B, N, M]; None if nothing was read or written
    heads,  # Heads
    chain,  # Chain; None if the weightings were given
    p_weightings,  # [B, H, N]; None if they were found
    p_d_memory,  # [B, N, M]
    p_d_all_weightings,  # [B, H, N], by all ways
    p_means,  # [B, H, G], part of Σ dw w
    d_heads,  # Heads [B, G, D], in parts: erase and add
    G,
    run,
    R: tl.constexpr,
    W: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BG: tl.constexpr,
    RAW: tl.constexpr,
    ACC: tl.constexpr,
):
    i_b, i_g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if chain is not None:
        p_sharpening = heads.sharpening + i_b * (P if RAW else H)
        sharpening = stages.load_sharpening(p_sharpening, H, BH, RAW, ACC)
        p_peaks = chain.peaks + i_b * H * G
        p_powers = chain.powers + i_b * H * G
        peak, total = power_total(p_peaks, p_powers, sharpening, G, H, BH, BG)
    if W > 0:
        p_erase = heads.erase + i_b * (P if RAW else W * M)
        p_add = heads.add + i_b * (P if RAW else W * M)
        p_d_erase = d_heads.erase + (i_b * G + i_g) * D
        p_d_add = d_heads.add + (i_b * G + i_g) * D
    p_d_read_vectors = grads.read_vectors
    if p_d_read_vectors is not None:
        p_d_read_vectors += i_b * R * M
    mean = tl.zeros([BH], ACC)
    for start in range(i_g * run, tl.minimum(i_g * run + run, N), BN):
        i_n = start + tl.arange(0, BN)
        inside = i_n < N
        if chain is not None:
            shifted = load_at(chain.shifted + i_b * H * N, i_n, inside, H, N, BH, ACC)
            weightings = stages.sharpen(shifted, peak, total, sharpening, inside, N)
        else:
            weightings = load_at(p_weightings + i_b * H * N, i_n, inside, H, N, BH, ACC)
        d_weightings = tl.zeros([BH, BN], ACC)
        if grads.weightings is not None:
            d_weightings = load_at(grads.weightings + i_b * H * N, i_n, inside, H, N, BH, ACC)
        if R + W > 0:
            memory = load_tile(p_memory + i_b * N * M, i_n, inside, M, BM, ACC)
            d_memory = tl.zeros([BN, BM], ACC)
            if grads.memory is not None:
                d_memory = load_tile(grads.memory + i_b * N * M, i_n, inside, M, BM, ACC)
            if W > 0:
                d_memory, d_weightings = stages.write_backward(
                    d_memory,
                    d_weightings,
                    memory,
                    weightings,
                    p_erase,
                    p_add,
                    p_d_erase,
                    p_d_add,
                    start > i_g * run,
                    R,
                    W,
                    M,
                    RAW,
                )
            d_memory, d_weightings = stages.read_backward(
                d_memory, d_weightings, memory, weightings, p_d_read_vectors, None, R, M
            )
            store_tile(p_d_memory + i_b * N * M, d_memory, i_n, inside, M)
            tl.debug_barrier()
        store_at(p_d_all_weightings + i_b * H * N, d_weightings, i_n, inside, H, N)
        mean += tl.sum(d_weightings * weightings, 1)
    store_part(p_means + i_b * H * G, mean, i_g, G, H)


@triton.jit(do_not_specialize=VARYING)
def sharpen_backward_kernel(
    p_d_weightings,  # [B, H, N]
    p_means,  # [B, H, G]
    heads,  # Heads
    chain,  # Chain
    p_d_shifted,  # [B, H, N]
    d_heads,  # Heads [B, G, D], in parts: sharpening
    G,
    run,
    H: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BG: tl.constexpr,
    RAW: tl.constexpr,
    ACC: tl.constexpr,
):
    i_b, i_g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p_sharpening = heads.sharpening + i_b * (P if RAW else H)
    sharpening = stages.load_sharpening(p_sharpening, H, BH, RAW, ACC)
    p_peaks = chain.peaks + i_b * H * G
    p_powers = chain.powers + i_b * H * G
    peak, total = power_total(p_peaks, p_powers, sharpening, G, H, BH, BG)
    mean = part_total(p_means + i_b * H * G, G, H, BH, BG, ACC)
    d_sharpening = tl.zeros([BH], ACC)
    for start in range(i_g * run, tl.minimum(i_g * run + run, N), BN):
        i_n = start + tl.arange(0, BN)
        inside = i_n < N
        shifted = load_at(chain.shifted + i_b * H * N, i_n, inside, H, N, BH, ACC)
        d_weightings = load_at(p_d_weightings + i_b * H * N, i_n, inside, H, N, BH, ACC)
        weightings = stages.sharpen(shifted, peak, total, sharpening, inside, N)
        d_shifted, d_tile = stages.sharpen_backward(
            d_weightings, weightings, shifted, peak, total, sharpening, mean, inside
        )
        store_at(p_d_shifted + i_b * H * N, d_shifted, i_n, inside, H, N)
        d_sharpening += d_tile
    p_d_sharpening = d_heads.sharpening + (i_b * G + i_g) * D
    stages.store_strength_gradient(p_sharpening, p_d_sharpening, d_sharpening, False, H, RAW, ACC)


@triton.jit(do_not_specialize=VARYING)
def shift_backward_kernel(
    p_d_shifted,  # [B, H, N]
    heads,  # Heads
    chain,  # Chain
    p_previous,  # [B, H, N]
    p_d_content,  # [B, H, N]
    p_totals,  # [B, H, G], part of Σ dw^c w^c
    d_heads,  # Heads [B, G, D], in parts: gate and shift
    p_d_previous,  # [B, H, N]
    G,
    run,
    H: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BS: tl.constexpr,
    BG: tl.constexpr,
    RAW: tl.constexpr,
    ACC: tl.constexpr,
):
    i_b, i_g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p_gate = heads.gate + i_b * (P if RAW else H)
    gate = stages.load_gate(p_gate, H, BH, RAW, ACC)
    shift_weighting = stages.load_shift(
        heads.shift + i_b * (P if RAW else H * S), H, S, BH, BS, RAW, ACC
    )
    p_tops = chain.tops + i_b * H * G
    p_sums = chain.sums + i_b * H * G
    top, total = softmax_total(p_tops, p_sums, G, H, BH, BG, ACC)
    p_d_shifted += i_b * H * N
    d_gate, d_shift, content_total = (
        tl.zeros([BH], ACC),
        tl.zeros([BH, BS], ACC),
        tl.zeros([BH], ACC),
    )
    for start in range(i_g * run, tl.minimum(i_g * run + run, N), BN):
        i_n = start + tl.arange(0, BN)
        inside = i_n < N
        scores = load_at(chain.scores + i_b * H * N, i_n, inside, H, N, BH, ACC)
        previous = load_at(p_previous + i_b * H * N, i_n, inside, H, N, BH, ACC)
        by_content = content_at(scores, top, total, inside)
        gated = stages.interpolate(by_content, previous, gate)
        d_gated = tl.zeros([BH, BN], ACC)
        for s in range(S):
            i_to = stages.ahead(i_n, s, N, S)
            d_ahead = load_at(p_d_shifted, i_to, inside, H, N, BH, ACC)
            d_gated += stages.column(shift_weighting, s)[:, None] * d_ahead
            d_tap = stages.column(d_shift, s) + tl.sum(gated * d_ahead, 1)
            d_shift = stages.with_column(d_shift, s, d_tap)
        d_content, d_previous, d_tile = stages.interpolate_backward(
            d_gated, by_content, previous, gate
        )
        store_at(p_d_content + i_b * H * N, d_content, i_n, inside, H, N)
        store_at(p_d_previous + i_b * H * N, d_previous, i_n, inside, H, N)
        d_gate += d_tile
        content_total += tl.sum(d_content * by_content, 1)
    store_part(p_totals + i_b * H * G, content_total, i_g, G, H)
    i_part = (i_b * G + i_g) * D
    stages.store_gate_gradient(p_gate, d_heads.gate + i_part, d_gate, False, H, RAW, ACC)
    stages.store_shift_gradient(d_heads.shift + i_part, d_shift, shift_weighting, False, H, S, RAW)


@triton.jit(do_not_specialize=VARYING)
def scores_backward_kernel(
    p_d_content,  # [B, H, N]
    p_totals,  # [B, H, G]
    p_memory,  # [B, N, M]
    heads,  # Heads
    chain,  # Chain
    p_d_finish,  # [B, N, M], the memory's gradient by reads and writes, or None
    p_d_memory,  # [B, N, M]
    d_heads,  # Heads [B, G, D], in parts: key and strength
    G,
    run,
    H: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BG: tl.constexpr,
    RAW: tl.constexpr,
    ACC: tl.constexpr,
):
    i_b, i_g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p_key = heads.key + i_b * (P if RAW else H * M)
    p_strength = heads.strength + i_b * (P if RAW else H)
    strength = stages.load_strength(p_strength, H, BH, RAW, ACC)
    p_tops = chain.tops + i_b * H * G
    p_sums = chain.sums + i_b * H * G
    top, total = softmax_total(p_tops, p_sums, G, H, BH, BG, ACC)
    content_total = part_total(p_totals + i_b * H * G, G, H, BH, BG, ACC)
    p_d_key = d_heads.key + (i_b * G + i_g) * D
    p_d_strength = d_heads.strength + (i_b * G + i_g) * D
    d_strength = tl.zeros([BH], ACC)
    for start in range(i_g * run, tl.minimum(i_g * run + run, N), BN):
        i_n = start + tl.arange(0, BN)
        inside = i_n < N
        memory = load_tile(p_memory + i_b * N * M, i_n, inside, M, BM, ACC)
        alike, inverse_norms, key_square, memory_square = stages.similarity(memory, p_key, H, M, BH)
        scores = load_at(chain.scores + i_b * H * N, i_n, inside, H, N, BH, ACC)
        d_content = load_at(p_d_content + i_b * H * N, i_n, inside, H, N, BH, ACC)
        by_content = content_at(scores, top, total, inside)
        d_alike, d_tile = stages.content_backward(
            d_content, by_content, alike, strength, content_total
        )
        d_memory = tl.zeros_like(memory)
        if p_d_finish is not None:
            d_memory = load_tile(p_d_finish + i_b * N * M, i_n, inside, M, BM, ACC)
        d_memory = stages.similarity_backward(
            d_memory,
            d_alike,
            alike,
            inverse_norms,
            key_square,
            memory_square,
            memory,
            p_key,
            p_d_key,
            start > i_g * run,
            H,
            M,
        )
        store_tile(p_d_memory + i_b * N * M, d_memory, i_n, inside, M)
        d_strength += d_tile
        tl.debug_barrier()
    stages.store_strength_gradient(p_strength, p_d_strength, d_strength, False, H, RAW, ACC)


@triton.jit(do_not_specialize=VARYING)
def combine_kernel(
    p_parts,  # [B, G, D]
    p_total,  # [B, D]
    G,
    D,
    BG: tl.constexpr,
    BD: tl.constexpr,
    ACC: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    i_d = tl.program_id(1) * BD + tl.arange(0, BD)
    total = tl.zeros([BD], ACC)
    for start in range(0, G, BG):
        i_g = start + tl.arange(0, BG)
        inside = (i_g < G)[:, None] & (i_d < D)[None, :]
        parts = stages.load(p_parts + i_b * G * D + i_g[:, None] * D + i_d[None, :], inside, ACC)
        total += tl.sum(parts, 0)
    tl.store(p_total + i_b * D + i_d, total, mask=i_d < D)
