"""Memories too large for one program: several programs per sequence, several launches.

The grid of a kernel is ``[B, J]``: J programs per sequence, each with a run of ``run`` locations
that it walks through tile by tile. Within a launch no program waits for another. What needs all
locations of a weighting (a softmax, the normalisation of the sharpening, a read, the gradient of a
parameter) is left as one part per program, and a later kernel adds up the parts, always in the same
order. So there are no atomics, and two runs give the same bits. What the circular shift needs from
beyond a tile's edge was stored by the launch before, and comes from the second-level cache.

Forward: ``similarity``, ``content_interpolate_shift`` and ``sharpen_read_write``. Backward: the
first two again, then ``read_write_backward``, ``sharpen_backward``, ``interpolate_shift_backward``
and ``similarity_content_backward``. ``combine`` adds up the parts of read vectors and of gradients
of parameters. ``read`` and ``write``, whose weightings are given, take one of them each way.

Parameters are raw where ``shape.P`` is not 0: then they are views into interface vectors, P
elements apart. Those of ``address`` and ``write`` are activated, in tensors of their own. Gradients
of parameters come in parts ``[B, J, D]``, laid out like an interface vector.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import access, addressing, interface, math, memory

# One compilation serves batches of any size, which the number of parts depends on.
VARYING = ("J",)


@triton.jit
def softmax_total(chain, i_b, J, shape: tl.constexpr, block: tl.constexpr):
    """Every head's largest score and its sum of exponentials, from those of all parts."""
    i_h, i_j = tl.arange(0, block.H), tl.arange(0, block.J)
    i_parts = i_b * shape.H * J
    tops = access.load_rows(chain.tops + i_parts, i_h, i_j, shape.H, J, block.dtype)
    sums = access.load_rows(chain.sums + i_parts, i_h, i_j, shape.H, J, block.dtype)
    tops = tl.where((i_j < J)[None, :], tops, -float("inf"))
    top = tl.max(tops, 1)
    total = tl.sum(sums * tl.exp(tops - top[:, None]), 1)
    return top, tl.where(i_h < shape.H, total, 1.0)


@triton.jit
def power_total(chain, i_b, sharpening, J, shape: tl.constexpr, block: tl.constexpr):
    """Every head's largest ``w̃`` and its sum of powers relative to it, from those of all parts."""
    i_h, i_j = tl.arange(0, block.H), tl.arange(0, block.J)
    i_parts = i_b * shape.H * J
    peaks = access.load_rows(chain.peaks + i_parts, i_h, i_j, shape.H, J, block.dtype)
    powers = access.load_rows(chain.powers + i_parts, i_h, i_j, shape.H, J, block.dtype)
    peak = tl.max(peaks, 1)
    ratio = peaks / tl.where(peak == 0, 1.0, peak)[:, None]
    return peak, tl.sum(powers * math.power(ratio, sharpening[:, None], 0.0), 1)


@triton.jit
def part_total(p_parts, i_b, J, shape: tl.constexpr, block: tl.constexpr):
    """The sum of every head's parts."""
    i_h, i_j = tl.arange(0, block.H), tl.arange(0, block.J)
    p_parts += i_b * shape.H * J
    return tl.sum(access.load_rows(p_parts, i_h, i_j, shape.H, J, block.dtype), 1)


@triton.jit
def store_part(p_parts, part, i_b, i_j, J, shape: tl.constexpr):
    """One number per head into ``[B, H, J]``."""
    i_h = tl.arange(0, part.shape[0])
    tl.store(p_parts + i_b * shape.H * J + i_h * J + i_j, part, mask=i_h < shape.H)


@triton.jit
def load_at(p, i_b, index, inside, shape: tl.constexpr, block: tl.constexpr):
    """Some locations of the weightings of all heads: ``[block.H, len(index)]``."""
    i_h = tl.arange(0, block.H)
    p += i_b * shape.H * shape.N
    mask = (i_h[:, None] < shape.H) & inside[None, :]
    return access.load(p + i_h[:, None] * shape.N + index[None, :], mask, block.dtype)


@triton.jit
def store_at(p, value, i_b, index, inside, shape: tl.constexpr):
    i_h = tl.arange(0, value.shape[0])
    p += i_b * shape.H * shape.N
    mask = (i_h[:, None] < shape.H) & inside[None, :]
    tl.store(p + i_h[:, None] * shape.N + index[None, :], value, mask=mask)


@triton.jit
def load_tile(p, i_b, i_n, inside, shape: tl.constexpr, block: tl.constexpr):
    """Some rows of a memory."""
    i_m = tl.arange(0, block.M)
    p += i_b * shape.N * shape.M
    mask = inside[:, None] & (i_m < shape.M)[None, :]
    return access.load(p + i_n[:, None] * shape.M + i_m[None, :], mask, block.dtype)


@triton.jit
def store_tile(p, value, i_b, i_n, inside, shape: tl.constexpr):
    i_m = tl.arange(0, value.shape[1])
    p += i_b * shape.N * shape.M
    mask = inside[:, None] & (i_m < shape.M)[None, :]
    tl.store(p + i_n[:, None] * shape.M + i_m[None, :], value, mask=mask)


@triton.jit
def content_of_tile(scores, top, total, inside):
    """The content weighting from the scores."""
    return tl.where(inside[None, :], tl.exp(scores - top[:, None]) / total[:, None], 0.0)


@triton.jit(do_not_specialize=VARYING)
def similarity_kernel(
    p_memory,  # [B, N, M]
    heads,  # Heads
    chain,  # Chain: finds scores, tops and sums
    J,
    run,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b, i_j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    RAW: tl.constexpr = shape.P > 0
    heads = interface.address_heads_at(heads, i_b, shape.P, shape)
    strength = interface.activate_strength(heads.strength, shape, block, RAW)
    # The sum is relative to the largest score so far, so a larger one scales it down.
    top = access.zeros(block.H, block.dtype) - float("inf")
    total = access.zeros(block.H, block.dtype)
    for start in range(i_j * run, tl.minimum(i_j * run + run, shape.N), block.N):
        i_n = start + tl.arange(0, block.N)
        inside = i_n < shape.N
        rows = load_tile(p_memory, i_b, i_n, inside, shape, block)
        cosine = addressing.similarity(rows, heads.key, shape, block)
        scores = strength[:, None] * cosine.similarity
        store_at(chain.scores, scores, i_b, i_n, inside, shape)
        scores = tl.where(inside[None, :], scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        total *= tl.exp(top - higher)
        total += tl.sum(tl.exp(scores - higher[:, None]), 1)
        top = higher
    store_part(chain.tops, top, i_b, i_j, J, shape)
    store_part(chain.sums, total, i_b, i_j, J, shape)


@triton.jit(do_not_specialize=VARYING)
def content_interpolate_shift_kernel(
    heads,  # Heads
    chain,  # Chain: finds shifted, peaks and powers
    p_previous,  # [B, H, N]
    J,
    run,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b, i_j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    RAW: tl.constexpr = shape.P > 0
    heads = interface.address_heads_at(heads, i_b, shape.P, shape)
    gate = interface.activate_gate(heads.gate, shape, block, RAW)
    taps = interface.activate_shift(heads.shift, shape, block, RAW)
    sharpening = interface.activate_sharpening(heads.sharpening, shape, block, RAW)
    top, total = softmax_total(chain, i_b, J, shape, block)
    # The powers are relative to the largest w̃ so far, so a larger one scales them down.
    peak, powers = access.zeros(block.H, block.dtype), access.zeros(block.H, block.dtype)
    for start in range(i_j * run, tl.minimum(i_j * run + run, shape.N), block.N):
        i_n = start + tl.arange(0, block.N)
        inside = i_n < shape.N
        shifted = access.zero_rows(block.H, block.N, block.dtype)
        for s in range(shape.S):
            i_from = addressing.behind(i_n, s, shape)
            scores = load_at(chain.scores, i_b, i_from, inside, shape, block)
            previous = load_at(p_previous, i_b, i_from, inside, shape, block)
            content = content_of_tile(scores, top, total, inside)
            gated = addressing.interpolate(content, previous, gate)
            shifted += access.column(taps, s)[:, None] * gated
        store_at(chain.shifted, shifted, i_b, i_n, inside, shape)
        tile_peak, tile_powers = addressing.powers_of(shifted, sharpening)
        higher = tl.maximum(peak, tile_peak)
        scale = tl.where(higher == 0, 1.0, higher)
        powers *= math.power(peak / scale, sharpening, 0.0)
        powers += tile_powers * math.power(tile_peak / scale, sharpening, 0.0)
        peak = higher
    store_part(chain.peaks, peak, i_b, i_j, J, shape)
    store_part(chain.powers, powers + 0.0 * sharpening, i_b, i_j, J, shape)


@triton.jit(do_not_specialize=VARYING)
def sharpen_read_write_kernel(
    p_memory,  # [B, N, M]; None if there is nothing to read or write
    heads,  # Heads
    chain,  # Chain; None if the weightings are given
    p_weightings,  # [B, H, N], given or found
    p_read_vectors,  # [B, J, R, M], in parts
    p_written,  # [B, N, M]
    J,
    run,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b, i_j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    RAW: tl.constexpr = shape.P > 0
    if chain is not None:
        p_sharpening = heads.sharpening + i_b * (shape.P if RAW else shape.H)
        sharpening = interface.activate_sharpening(p_sharpening, shape, block, RAW)
        peak, total = power_total(chain, i_b, sharpening, J, shape, block)
    if shape.R > 0:
        p_read_vectors += (i_b * J + i_j) * shape.R * shape.M
    if shape.W > 0:
        writing = interface.write_heads_at(heads, i_b, shape.P, shape)
    for start in range(i_j * run, tl.minimum(i_j * run + run, shape.N), block.N):
        i_n = start + tl.arange(0, block.N)
        inside = i_n < shape.N
        if chain is not None:
            shifted = load_at(chain.shifted, i_b, i_n, inside, shape, block)
            weightings = addressing.sharpen(shifted, peak, total, sharpening, inside, shape)
            store_at(p_weightings, weightings, i_b, i_n, inside, shape)
        else:
            weightings = load_at(p_weightings, i_b, i_n, inside, shape, block)
        if shape.R + shape.W > 0:
            rows = load_tile(p_memory, i_b, i_n, inside, shape, block)
        if shape.R > 0:
            # The next tile adds to what this one stores.
            memory.read(rows, weightings, p_read_vectors, None, start > i_j * run, shape)
            tl.debug_barrier()
        if shape.W > 0:
            rows = memory.write(rows, weightings, writing, shape, RAW)
            store_tile(p_written, rows, i_b, i_n, inside, shape)


@triton.jit(do_not_specialize=VARYING)
def read_write_backward_kernel(
    grads,  # StepOutputs, each of which may be None
    p_memory,  # [B, N, M]; None if nothing was read or written
    heads,  # Heads
    chain,  # Chain; None if the weightings were given
    p_weightings,  # [B, H, N]; None if they were found
    p_d_memory,  # [B, N, M]
    p_d_all_weightings,  # [B, H, N], by all ways
    p_means,  # [B, H, J], part of Σ dw w
    d_heads,  # Heads [B, J, D], in parts: erase and add
    J,
    run,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b, i_j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    RAW: tl.constexpr = shape.P > 0
    if chain is not None:
        p_sharpening = heads.sharpening + i_b * (shape.P if RAW else shape.H)
        sharpening = interface.activate_sharpening(p_sharpening, shape, block, RAW)
        peak, total = power_total(chain, i_b, sharpening, J, shape, block)
    if shape.W > 0:
        writing = interface.write_heads_at(heads, i_b, shape.P, shape)
        d_writing = interface.write_heads_at(d_heads, i_b * J + i_j, shape.D, shape)
    p_d_read_vectors = grads.read_vectors
    if p_d_read_vectors is not None:
        p_d_read_vectors += i_b * shape.R * shape.M
    mean = access.zeros(block.H, block.dtype)
    for start in range(i_j * run, tl.minimum(i_j * run + run, shape.N), block.N):
        i_n = start + tl.arange(0, block.N)
        inside = i_n < shape.N
        if chain is not None:
            shifted = load_at(chain.shifted, i_b, i_n, inside, shape, block)
            weightings = addressing.sharpen(shifted, peak, total, sharpening, inside, shape)
        else:
            weightings = load_at(p_weightings, i_b, i_n, inside, shape, block)
        d_weightings = access.zero_rows(block.H, block.N, block.dtype)
        if grads.weightings is not None:
            d_weightings = load_at(grads.weightings, i_b, i_n, inside, shape, block)
        if shape.R + shape.W > 0:
            rows = load_tile(p_memory, i_b, i_n, inside, shape, block)
            d_rows = access.zero_rows(block.N, block.M, block.dtype)
            if grads.memory is not None:
                d_rows = load_tile(grads.memory, i_b, i_n, inside, shape, block)
            if shape.W > 0:
                seen = start > i_j * run
                d_rows, d_weightings = memory.write_backward(
                    d_rows, d_weightings, rows, weightings, writing, d_writing, seen, shape, RAW
                )
            d_rows, d_weightings = memory.read_backward(
                d_rows, d_weightings, rows, weightings, p_d_read_vectors, None, shape
            )
            store_tile(p_d_memory, d_rows, i_b, i_n, inside, shape)
            # The next tile adds to the parts of erase and add that this one stored.
            tl.debug_barrier()
        store_at(p_d_all_weightings, d_weightings, i_b, i_n, inside, shape)
        mean += tl.sum(d_weightings * weightings, 1)
    store_part(p_means, mean, i_b, i_j, J, shape)


@triton.jit(do_not_specialize=VARYING)
def sharpen_backward_kernel(
    p_d_weightings,  # [B, H, N]
    p_means,  # [B, H, J]
    heads,  # Heads
    chain,  # Chain
    p_d_shifted,  # [B, H, N]
    d_heads,  # Heads [B, J, D], in parts: sharpening
    J,
    run,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b, i_j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    RAW: tl.constexpr = shape.P > 0
    heads = interface.address_heads_at(heads, i_b, shape.P, shape)
    d_heads = interface.address_heads_at(d_heads, i_b * J + i_j, shape.D, shape)
    sharpening = interface.activate_sharpening(heads.sharpening, shape, block, RAW)
    peak, total = power_total(chain, i_b, sharpening, J, shape, block)
    mean = part_total(p_means, i_b, J, shape, block)
    d_sharpening = access.zeros(block.H, block.dtype)
    for start in range(i_j * run, tl.minimum(i_j * run + run, shape.N), block.N):
        i_n = start + tl.arange(0, block.N)
        inside = i_n < shape.N
        shifted = load_at(chain.shifted, i_b, i_n, inside, shape, block)
        d_weightings = load_at(p_d_weightings, i_b, i_n, inside, shape, block)
        weightings = addressing.sharpen(shifted, peak, total, sharpening, inside, shape)
        d_shifted, d_tile = addressing.sharpen_backward(
            d_weightings, weightings, shifted, peak, total, sharpening, mean, inside
        )
        store_at(p_d_shifted, d_shifted, i_b, i_n, inside, shape)
        d_sharpening += d_tile
    interface.activate_backward_softplus(
        heads.sharpening, d_heads.sharpening, d_sharpening, shape, block, RAW
    )


@triton.jit(do_not_specialize=VARYING)
def interpolate_shift_backward_kernel(
    p_d_shifted,  # [B, H, N]
    heads,  # Heads
    chain,  # Chain
    p_previous,  # [B, H, N]
    p_d_content,  # [B, H, N]
    p_totals,  # [B, H, J], part of Σ dw^c w^c
    d_heads,  # Heads [B, J, D], in parts: gate and shift
    p_d_previous,  # [B, H, N]
    J,
    run,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b, i_j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    RAW: tl.constexpr = shape.P > 0
    heads = interface.address_heads_at(heads, i_b, shape.P, shape)
    d_heads = interface.address_heads_at(d_heads, i_b * J + i_j, shape.D, shape)
    gate = interface.activate_gate(heads.gate, shape, block, RAW)
    taps = interface.activate_shift(heads.shift, shape, block, RAW)
    top, total = softmax_total(chain, i_b, J, shape, block)
    d_gate, content_total = access.zeros(block.H, block.dtype), access.zeros(block.H, block.dtype)
    d_taps = access.zero_rows(block.H, block.S, block.dtype)
    for start in range(i_j * run, tl.minimum(i_j * run + run, shape.N), block.N):
        i_n = start + tl.arange(0, block.N)
        inside = i_n < shape.N
        scores = load_at(chain.scores, i_b, i_n, inside, shape, block)
        previous = load_at(p_previous, i_b, i_n, inside, shape, block)
        content = content_of_tile(scores, top, total, inside)
        gated = addressing.interpolate(content, previous, gate)
        d_gated = access.zero_rows(block.H, block.N, block.dtype)
        for s in range(shape.S):
            i_to = addressing.ahead(i_n, s, shape)
            d_ahead = load_at(p_d_shifted, i_b, i_to, inside, shape, block)
            d_gated += access.column(taps, s)[:, None] * d_ahead
            d_tap = access.column(d_taps, s) + tl.sum(gated * d_ahead, 1)
            d_taps = access.with_column(d_taps, s, d_tap)
        d_content, d_previous, d_tile = addressing.interpolate_backward(
            d_gated, content, previous, gate
        )
        store_at(p_d_content, d_content, i_b, i_n, inside, shape)
        store_at(p_d_previous, d_previous, i_b, i_n, inside, shape)
        d_gate += d_tile
        content_total += tl.sum(d_content * content, 1)
    store_part(p_totals, content_total, i_b, i_j, J, shape)
    interface.activate_backward_gate(heads.gate, d_heads.gate, d_gate, shape, block, RAW)
    interface.activate_backward_shift(taps, d_heads.shift, d_taps, shape, block, RAW)


@triton.jit(do_not_specialize=VARYING)
def similarity_content_backward_kernel(
    p_d_content,  # [B, H, N]
    p_totals,  # [B, H, J]
    p_memory,  # [B, N, M]
    heads,  # Heads
    chain,  # Chain
    p_d_read_write,  # [B, N, M], the memory's gradient by reads and writes, or None
    p_d_memory,  # [B, N, M]
    d_heads,  # Heads [B, J, D], in parts: key and strength
    J,
    run,
    shape: tl.constexpr,
    block: tl.constexpr,
):
    i_b, i_j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    RAW: tl.constexpr = shape.P > 0
    heads = interface.address_heads_at(heads, i_b, shape.P, shape)
    d_heads = interface.address_heads_at(d_heads, i_b * J + i_j, shape.D, shape)
    strength = interface.activate_strength(heads.strength, shape, block, RAW)
    top, total = softmax_total(chain, i_b, J, shape, block)
    content_total = part_total(p_totals, i_b, J, shape, block)
    d_strength = access.zeros(block.H, block.dtype)
    for start in range(i_j * run, tl.minimum(i_j * run + run, shape.N), block.N):
        i_n = start + tl.arange(0, block.N)
        inside = i_n < shape.N
        rows = load_tile(p_memory, i_b, i_n, inside, shape, block)
        cosine = addressing.similarity(rows, heads.key, shape, block)
        scores = load_at(chain.scores, i_b, i_n, inside, shape, block)
        d_content = load_at(p_d_content, i_b, i_n, inside, shape, block)
        content = content_of_tile(scores, top, total, inside)
        d_similarity, d_tile = addressing.content_backward(
            d_content, content, cosine.similarity, strength, content_total
        )
        d_rows = tl.zeros_like(rows)
        if p_d_read_write is not None:
            d_rows = load_tile(p_d_read_write, i_b, i_n, inside, shape, block)
        seen = start > i_j * run
        d_rows = addressing.similarity_backward(
            d_rows, d_similarity, cosine, rows, heads.key, d_heads.key, seen, shape
        )
        store_tile(p_d_memory, d_rows, i_b, i_n, inside, shape)
        d_strength += d_tile
        # The next tile adds to the part of the keys that this one stored.
        tl.debug_barrier()
    interface.activate_backward_softplus(
        heads.strength, d_heads.strength, d_strength, shape, block, RAW
    )


@triton.jit(do_not_specialize=VARYING)
def combine_kernel(
    p_parts,  # [B, J, D]
    p_total,  # [B, D]
    J,
    D,
    block: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    i_d = tl.program_id(1) * block.D + tl.arange(0, block.D)
    total = access.zeros(block.D, block.dtype)
    for start in range(0, J, block.J):
        i_j = start + tl.arange(0, block.J)
        inside = (i_j < J)[:, None] & (i_d < D)[None, :]
        p = p_parts + i_b * J * D + i_j[:, None] * D + i_d[None, :]
        total += tl.sum(access.load(p, inside, block.dtype), 0)
    tl.store(p_total + i_b * D + i_d, total, mask=i_d < D)
