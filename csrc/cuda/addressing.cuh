// The addressing chain, stage by stage, each with its backward. A barrier stands between any two.
//
// Weightings are [H, N], in shared memory or in the workspace; a stage computes the given rows of
// them, the whole memory in a block of its own or one tile of many. Stages hand on per-warp partial
// results; every reader reduces them again, which costs shuffles where it would cost a barrier.
#pragma once
#include <type_traits>

#include "block.cuh"
#include "interface.cuh"
#include "memory.cuh"

namespace ntm {

// The parameters of one head that the chain uses after the similarities.
template <typename A>
struct HeadScalars {
  A strength, gate, sharpening;
  const A* taps;
  __device__ HeadScalars(const Heads<A>& heads, int head, int num_taps)
      : strength(heads.strength[head]),
        gate(heads.gate[head]),
        sharpening(heads.sharpening[head]),
        taps(heads.shift + head * num_taps) {}
};

__device__ inline int wrapped(int row, int N) {
  if (row >= 0 && row < N) return row;
  row %= N;
  return row < 0 ? row + N : row;
}

// Σ_o s_o value(row − sign · o, o = 0), the circular convolution (sign 1) or correlation (sign −1).
template <typename A, typename F>
__device__ A through_taps(const A* taps, int S, int row, int N, int sign, F value) {
  A sum = 0;
#pragma unroll 1
  for (int tap = 0; tap < S; ++tap)
    sum += taps[tap] * value(wrapped(row - sign * (tap - S / 2), N), tap == S / 2);
  return sum;
}

// What the stages work on, weightings each [H, N].
template <typename A>
struct Chain {
  static constexpr bool kKeeps = false;
  A *similarity, *previous;
  A* gated;                  // w^g, where it is kept
  A* shifted;                // (w̃ / its warp's maximum)^γ
  Partials<Pair<A>> scores;  // of β K, from every warp
  Partials<Pair<A>> powers;  // of w̃^γ
};

// What the stages of a backward work on besides. `previous` becomes the gradient of the previous
// weightings, `shifted` w̃, then dw^c and then the gradient of the scalar products k·M_i, `content`
// w^c and then what the norm of the row takes of them, and `d` goes from dw to dw̃.
template <typename A>
struct BackwardChain : Chain<A> {
  static constexpr bool kKeeps = true;
  A* content;
  A *weightings, *d;
  A *row_norms, *key_norms;  // [N] and [H]
  Partials<A> weight_dots;   // Σ dw w, from every warp
  Partials<A> content_dots;  // Σ dw^c w^c
  Partials<A> d_sharpening, d_gate, d_strength;
};

// K[k, M_i] = k·M_i / (‖k‖‖M_i‖), 0 below the cut-off, and the pairs of β K from which
// `content_interpolate_shift` has the softmax.
// All keys share a pass; ‖k‖ comes for free beside k·M_i. What goes along uses the same words.
template <typename A, typename C, typename F = Nothing>
__device__ void similarity(const Block& block, const Tile<A>& tile, const Heads<A>& heads,
                           const Sizes& sizes, const C& chain, F along = {}) {
  constexpr bool kAlong = !std::is_same_v<F, Nothing>;
  const RowUnits units(tile.rows, block.warps);
  const int M = tile.word_size;
#pragma unroll 1
  for (int pass = 0; pass * kHeadsAtOnce<A> < sizes.H || pass < along.passes; ++pass) {
    const int head = pass * kHeadsAtOnce<A>, some = min(kHeadsAtOnce<A>, sizes.H - head);
    const bool goes_along = pass < along.passes;
    const A* keys = heads.key + head * M;
    if constexpr (kAlong) along.begin_pass();
    Pair<A> pairs[kHeadsAtOnce<A>];
#pragma unroll
    for (int i = 0; i < kHeadsAtOnce<A>; ++i) pairs[i] = {-Constants<A>::infinity, 0};
#pragma unroll 1
    for (int unit = block.warp; unit < units.units; unit += block.warps) {
      const int row = units.row(unit, block.lane), part = units.part(block.lane);
      A dots[kHeadsAtOnce<A>] = {}, squares[kHeadsAtOnce<A>] = {}, square = 0;
      if constexpr (kAlong) along.begin_row();
      if (row < tile.rows) {
#pragma unroll 2
        for (int word = part; word < M; word += units.lanes) {
          const A m = tile(row, word);
          square += m * m;
          if constexpr (kAlong)
            if (goes_along) along.word(pass, row, word, m);
#pragma unroll
          for (int i = 0; i < kHeadsAtOnce<A>; ++i) {
            if (i >= some) continue;
            const A k = keys[i * M + word];
            dots[i] += m * k;
            squares[i] += k * k;
          }
        }
      }
      const A row_norm = sqrt_of(units.sum(square));
      const bool mine = part == 0 && row < tile.rows;
      if constexpr (kAlong)
        if (goes_along) along.end_row(units, pass, row, mine);
      if constexpr (C::kKeeps)
        if (mine && head == 0) chain.row_norms[tile.first + row] = row_norm;
#pragma unroll
      for (int i = 0; i < kHeadsAtOnce<A>; ++i) {
        if (i >= some) continue;
        const A dot = units.sum(dots[i]), key_norm = sqrt_of(units.sum(squares[i]));
        const A norms = key_norm * row_norm;
        if (!mine) continue;
        if constexpr (C::kKeeps)
          if (tile.first + row == 0) chain.key_norms[head + i] = key_norm;
        const A alike = norms < Constants<A>::cosine_eps ? A(0) : dot / norms;
        chain.similarity[static_cast<int64_t>(head + i) * sizes.N + tile.first + row] = alike;
        const A score = heads.strength[head + i] * alike;
        pairs[i] = joined(pairs[i], {score, 1});
      }
    }
#pragma unroll
    for (int i = 0; i < kHeadsAtOnce<A>; ++i) {
      if (i >= some) continue;
      const Pair<A> all = warp_softmax(pairs[i]);
      Pair<A>& own = chain.scores.own(head + i, block.warp);
      if (block.lane == 0) own = tile.fresh ? all : joined(own, all);
    }
    if constexpr (kAlong)
      if (goes_along) along.end_pass(block, pass);
  }
}

template <typename A>
__device__ A content_weight(A similarity, A strength, const Pair<A>& softmax) {
  return exp_of(strength * similarity - softmax.peak) / softmax.sum;
}

// w^g = g w^c + (1 − g) w_{t−1}
template <typename A>
__device__ A interpolate(A content, A previous, A gate) {
  return gate * content + (1 - gate) * previous;
}

// Content weighting, interpolation and shift of the rows, w̃, and the pairs of w̃^γ from which
// `sharpen` has its sum. A backward keeps w^c, w^g and w̃; a forward leaves w̃^γ in place of w̃.
//
// With `gated_first` w^g goes through `gated` behind a barrier; without, every tap gates its row
// again, which is cheaper for few taps and needs nothing of other tiles but their similarities.
template <typename A, typename C>
__device__ void content_interpolate_shift(const Block& block, const Rows& rows,
                                          const Heads<A>& heads, const Sizes& sizes, const C& chain,
                                          bool gated_first) {
  const int N = sizes.N, S = sizes.S, share = chain.powers.share;
  if (gated_first) {
    rows.each_head(block, sizes.H, share, [&](int head, int slot) {
      const HeadScalars<A> scalars(heads, head, S);
      const Pair<A> softmax = fold_softmax(block, chain.scores, head);
      rows.each(block, slot, [&](int row) {
        const int64_t at = static_cast<int64_t>(head) * N + row;
        const A content = content_weight(chain.similarity[at], scalars.strength, softmax);
        chain.gated[at] = interpolate(content, chain.previous[at], scalars.gate);
        if constexpr (C::kKeeps) chain.content[at] = content;
      });
    });
    __syncthreads();
  }
  rows.each_head(block, sizes.H, share, [&](int head, int slot) {
    const HeadScalars<A> scalars(heads, head, S);
    const Pair<A> softmax = fold_softmax(block, chain.scores, head);
    const int64_t base = static_cast<int64_t>(head) * N;
    A peak = 0;
    rows.each(block, slot, [&](int row) {
      const A value = through_taps(scalars.taps, S, row, N, 1, [&](int from, bool own) {
        const int64_t at = base + from;
        if (gated_first) return chain.gated[at];
        const A content = content_weight(chain.similarity[at], scalars.strength, softmax);
        const A gated = interpolate(content, chain.previous[at], scalars.gate);
        if constexpr (C::kKeeps) {
          if (own) {
            chain.content[at] = content;
            chain.gated[at] = gated;
          }
        }
        return gated;
      });
      chain.shifted[base + row] = value;
      peak = larger(peak, value);
    });
    peak = warp_max(peak);
    A sum = 0;
    rows.each(block, slot, [&](int row) {
      A& value = chain.shifted[base + row];
      // Of 0 the root is 0, and of what is negative it is NaN, as its logarithm.
      const A power = peak > 0 ? power_of_ratio(value / peak, scalars.sharpening) : sqrt_of(value);
      if constexpr (!C::kKeeps) value = power;
      sum += power;
    });
    sum = warp_sum(sum);
    if (block.lane == 0) chain.powers.own(head, slot) = {peak, sum};
  });
}

// Whether some w̃ reaches ε, or is NaN or negative: not to be hidden behind a uniform weighting.
template <typename A>
__device__ bool focused(const Pair<A>& powers) {
  return powers.peak >= Constants<A>::focus_eps || powers.sum != powers.sum;
}

// w = w̃^γ / Σ w̃^γ from what `content_interpolate_shift` left; f(head, row, w). Uniform where no w̃
// reaches ε. `own` are the pairs of the warps that wrote these rows, `all` the same or already
// reduced.
template <typename A, typename F>
__device__ void sharpen(const Block& block, const Rows& rows, const Heads<A>& heads,
                        const Sizes& sizes, const A* shifted, const Partials<Pair<A>>& own,
                        const Partials<Pair<A>>& all, F f) {
  rows.each_head(block, sizes.H, own.share, [&](int head, int slot) {
    const A sharpening = heads.sharpening[head];
    const Pair<A> total = fold_powers(block, all, head, sharpening);
    const A peak = own.own(head, slot).peak;
    const bool any = focused(total);
    const A scale = any ? power_of_ratio(peak / total.peak, sharpening) / total.sum : A(0);
    rows.each(block, slot, [&](int row) {
      const A power = shifted[static_cast<int64_t>(head) * sizes.N + row];
      f(head, row, any ? power * scale : A(1) / sizes.N);
    });
  });
}

// Σ dw w, for callers whose dw comes from elsewhere than `read_backward_weightings` and its like.
template <typename A>
__device__ void sharpen_backward_dots(const Block& block, const Tile<A>& tile, const Sizes& sizes,
                                      const BackwardChain<A>& chain) {
#pragma unroll 1
  for (int head = 0; head < sizes.H; ++head) {
    const int64_t base = static_cast<int64_t>(head) * sizes.N + tile.first;
    A dot = 0;
    for (int at = block.thread; at < tile.rows; at += block.threads)
      dot += chain.d[base + at] * chain.weightings[base + at];
    give_part(block, tile, chain.weight_dots, head, dot);
  }
}

// dw_i/dw̃_j = γ w̃_j^{γ−1} / Σ w̃^γ (δ_ij − w_i), never dividing by w̃_j, and
// dw_i/dγ = w_i (log w̃_i − Σ_j w_j log w̃_j).
template <typename A>
__device__ void sharpen_backward(const Block& block, const Rows& rows, const Heads<A>& heads,
                                 const Sizes& sizes, const BackwardChain<A>& chain) {
  rows.each_head(block, sizes.H, chain.d_sharpening.share, [&](int head, int slot) {
    const int64_t base = static_cast<int64_t>(head) * sizes.N;
    const A sharpening = heads.sharpening[head];
    const Pair<A> total = fold_powers(block, chain.powers, head, sharpening);
    const A dot = fold_sum(block, chain.weight_dots, head);
    const bool any = focused(total);
    const A slope = any ? sharpening / (total.sum * total.peak) : A(0);
    // w̃^{γ−1} at 0; for γ ≤ 0, where w̃^γ jumps, no slope at all.
    const A at_zero = sharpening == 1                    ? A(1)
                      : sharpening > 0 && sharpening < 1 ? Constants<A>::infinity
                                                         : A(0);
    A d_sharpening = 0;
    rows.each(block, slot, [&](int row) {
      const int64_t at = base + row;
      const A centred = chain.d[at] - dot;
      if (!any) {
        chain.d[at] = 0;
        return;
      }
      const A ratio = chain.shifted[at] / total.peak;
      const A power = ratio == 0 ? at_zero : power_of_ratio(ratio, sharpening - 1);
      chain.d[at] = slope * power * centred;
      if (ratio != 0) d_sharpening += centred * chain.weightings[at] * log_of(ratio);
    });
    d_sharpening = warp_sum(d_sharpening);
    if (block.lane == 0) chain.d_sharpening.own(head, slot) = d_sharpening;
  });
}

// Backward of interpolation and shift: dw^g_j = Σ_o s_o dw̃_{j+o}, dw^c = g dw^g,
// dw_{t−1} = (1 − g) dw^g, dg = Σ dw^g (w^c − w_{t−1}); and Σ dw^c w^c for the softmax.
template <typename A>
__device__ void interpolate_shift_backward(const Block& block, const Rows& rows,
                                           const Heads<A>& heads, const Sizes& sizes,
                                           const BackwardChain<A>& chain) {
  rows.each_head(block, sizes.H, chain.d_gate.share, [&](int head, int slot) {
    const int64_t base = static_cast<int64_t>(head) * sizes.N;
    const A gate = heads.gate[head];
    A d_gate = 0, dot = 0;
    rows.each(block, slot, [&](int row) {
      const int64_t at = base + row;
      const A d_gated = through_taps(heads.shift + head * sizes.S, sizes.S, row, sizes.N, -1,
                                     [&](int from, bool) { return chain.d[base + from]; });
      const A content = chain.content[at], d_content = gate * d_gated;
      d_gate += d_gated * (content - chain.previous[at]);
      dot += d_content * content;
      chain.shifted[at] = d_content;
      chain.previous[at] = (1 - gate) * d_gated;
    });
    d_gate = warp_sum(d_gate);
    dot = warp_sum(dot);
    if (block.lane == 0) {
      chain.d_gate.own(head, slot) = d_gate;
      chain.content_dots.own(head, slot) = dot;
    }
  });
}

// ds_o = Σ_i dw̃_i w^g_{i−o}, a warp for each head and tap, from the last warp on.
template <typename A>
__device__ void shift_backward_taps(const Block& block, const Rows& rows, const Sizes& sizes,
                                    const BackwardChain<A>& chain, A* d_taps) {
#pragma unroll 1
  for (int task = block.warps - 1 - block.warp; task < sizes.H * sizes.S; task += block.warps) {
    const int head = task / sizes.S, tap = task % sizes.S;
    const int64_t base = static_cast<int64_t>(head) * sizes.N;
    A sum = 0;
    for (int at = block.lane; at < rows.rows; at += kWarp) {
      const int row = rows.first + at;
      sum += chain.d[base + row] * chain.gated[base + wrapped(row - (tap - sizes.S / 2), sizes.N)];
    }
    sum = warp_sum(sum);
    if (block.lane == 0) d_taps[task] = sum;
  }
}

// Backward of the cosine and of the softmax, up to the products k·M_i, from which
// `similarity_read_write_backward` goes on: dK = β w^c (dw^c − Σ dw^c w^c), d(k·M_i) = dK /
// (‖k‖‖M_i‖) and what the norm of the row takes of it, dK K / ‖M_i‖²; dβ = Σ dK K / β.
template <typename A>
__device__ void similarity_content_backward(const Block& block, const Rows& rows,
                                            const Heads<A>& heads, const Sizes& sizes,
                                            const BackwardChain<A>& chain) {
  rows.each_head(block, sizes.H, chain.d_strength.share, [&](int head, int slot) {
    const int64_t base = static_cast<int64_t>(head) * sizes.N;
    const A strength = heads.strength[head], key_norm = chain.key_norms[head];
    const A dot = fold_sum(block, chain.content_dots, head);
    A d_strength = 0;
    rows.each(block, slot, [&](int row) {
      const int64_t at = base + row;
      const A similarity = chain.similarity[at];
      const A d_score = chain.content[at] * (chain.shifted[at] - dot);
      d_strength += d_score * similarity;
      const A row_norm = chain.row_norms[row], norms = key_norm * row_norm;
      const bool alike = !(norms < Constants<A>::cosine_eps);
      const A d_product = alike ? strength * d_score / norms : A(0);
      chain.shifted[at] = d_product;
      chain.content[at] = alike ? d_product * similarity * key_norm / row_norm : A(0);
    });
    d_strength = warp_sum(d_strength);
    if (block.lane == 0) chain.d_strength.own(head, slot) = d_strength;
  });
}

}  // namespace ntm
