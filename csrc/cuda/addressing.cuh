// The addressing chain, stage by stage, each with its backward. A barrier stands between any two.
//
// Weightings are [H, N], in shared memory or in the workspace; a stage computes the given rows of
// them, the whole memory in a block of its own or one tile of many. Stages hand on per-warp partial
// results; every reader reduces them again, which costs shuffles where it would cost a barrier.
#pragma once
#include "block.cuh"
#include "interface.cuh"
#include "memory.cuh"

namespace ntm {

// The parameters of one head that the chain uses after the content scores.
template <typename A>
struct Focus {
  A strength, gate, sharpening;
  const A* taps;
  __device__ Focus(const Heads<A>& heads, int head, int num_taps)
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

// Σ_o s_o value(row − sign · o), the circular convolution (sign 1) or correlation (sign −1).
template <typename A, typename F>
__device__ A through_taps(const A* taps, int S, int row, int N, int sign, F value) {
  A sum = 0;
#pragma unroll 1
  for (int tap = 0; tap < S; ++tap)
    sum += taps[tap] * value(wrapped(row - sign * (tap - S / 2), N));
  return sum;
}

// Two parts of a softmax as one.
template <typename A>
__device__ Pair<A> joined(const Pair<A>& one, const Pair<A>& other) {
  const A peak = larger(one.peak, other.peak);
  const A sum = one.sum != 0 ? one.sum * exp_of(one.peak - peak) : A(0);
  return {peak, other.sum != 0 ? sum + other.sum * exp_of(other.peak - peak) : sum};
}

// K[k, M_i] = k·M_i / (‖k‖‖M_i‖), 0 below the cut-off, and the softmax's pairs of β K.
// All keys share a pass; ‖k‖ comes for free beside k·M_i. With `row_norms` both norms are kept.
template <typename A>
__device__ void content(const Block& block, const Tile<A>& tile, const Heads<A>& heads,
                        const Sizes& sizes, A* similarity, const Partials<Pair<A>>& scores,
                        A* row_norms, A* key_norms) {
  const RowUnits units(tile.rows, block.warps);
  const int M = tile.words;
#pragma unroll 1
  for (int head = 0; head < sizes.H; head += kHeadsAtOnce<A>) {
    const int some = min(kHeadsAtOnce<A>, sizes.H - head);
    const A* keys = heads.key + head * M;
    Pair<A> pairs[kHeadsAtOnce<A>];
#pragma unroll
    for (int i = 0; i < kHeadsAtOnce<A>; ++i) pairs[i] = {-Constants<A>::infinity, 0};
#pragma unroll 1
    for (int unit = block.warp; unit < units.units; unit += block.warps) {
      const int row = units.row(unit, block.lane), part = block.lane % units.lanes;
      A dots[kHeadsAtOnce<A>] = {}, squares[kHeadsAtOnce<A>] = {}, square = 0;
      if (row < tile.rows) {
#pragma unroll 2
        for (int word = part; word < M; word += units.lanes) {
          const A m = tile(row, word);
          square += m * m;
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
      if (row_norms != nullptr && mine && head == 0) row_norms[tile.first + row] = row_norm;
#pragma unroll
      for (int i = 0; i < kHeadsAtOnce<A>; ++i) {
        if (i >= some) continue;
        const A dot = units.sum(dots[i]), key_norm = sqrt_of(units.sum(squares[i]));
        const A norms = key_norm * row_norm;
        if (!mine) continue;
        if (key_norms != nullptr && tile.first + row == 0) key_norms[head + i] = key_norm;
        const A alike = norms < Constants<A>::cosine_eps ? A(0) : dot / norms;
        similarity[static_cast<int64_t>(head + i) * sizes.N + tile.first + row] = alike;
        const A score = heads.strength[head + i] * alike;
        pairs[i] = joined(pairs[i], {score, 1});
      }
    }
#pragma unroll
    for (int i = 0; i < kHeadsAtOnce<A>; ++i) {
      if (i >= some) continue;
      const A peak = warp_max(pairs[i].peak);
      const A term = pairs[i].sum != 0 ? pairs[i].sum * exp_of(pairs[i].peak - peak) : A(0);
      const A sum = warp_sum(term);
      Pair<A>& own = scores.own(head + i, block.warp);
      if (block.lane == 0) own = tile.fresh ? Pair<A>{peak, sum} : joined(own, {peak, sum});
    }
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

// Content weighting, interpolation and shift of the rows, w̃, and the pairs of the sharpening.
//
// The forward leaves (w̃ / warp's maximum)^γ in `shifted`; a backward (`Keep`) leaves w̃, and keeps
// w^g. With `gated_first` w^g goes through `gated` behind a barrier; without, every tap gates its
// row again, which is cheaper for few taps and needs nothing of other tiles but their similarities.
template <bool Keep, typename A>
__device__ void shift(const Block& block, const Rows& rows, const Heads<A>& heads,
                      const Sizes& sizes, const A* similarity, const A* previous,
                      const Partials<Pair<A>>& scores, bool gated_first, A* gated, A* shifted,
                      const Partials<Pair<A>>& powers) {
  const int N = sizes.N, S = sizes.S;
  auto gate_at = [&](int head, const Focus<A>& focus, const Pair<A>& softmax, int row) {
    const int64_t at = static_cast<int64_t>(head) * N + row;
    const A content = content_weight(similarity[at], focus.strength, softmax);
    return interpolate(content, previous[at], focus.gate);
  };
  if (gated_first) {
#pragma unroll 1
    for (int head = 0; head < sizes.H; ++head) {
      const Focus<A> focus(heads, head, S);
      const Pair<A> softmax = fold_softmax(block, scores, head);
      rows.each(block, head, [&](int row) {
        gated[static_cast<int64_t>(head) * N + row] = gate_at(head, focus, softmax, row);
      });
    }
    __syncthreads();
  }
#pragma unroll 1
  for (int head = 0; head < sizes.H; ++head) {
    const Focus<A> focus(heads, head, S);
    const Pair<A> softmax = fold_softmax(block, scores, head);
    const int64_t base = static_cast<int64_t>(head) * N;
    A peak = 0;
    rows.each(block, head, [&](int row) {
      A value;
      if (gated_first) {
        value =
            through_taps(focus.taps, S, row, N, 1, [&](int from) { return gated[base + from]; });
      } else {
        value = through_taps(focus.taps, S, row, N, 1,
                             [&](int from) { return gate_at(head, focus, softmax, from); });
        if (Keep) gated[base + row] = gate_at(head, focus, softmax, row);
      }
      shifted[base + row] = value;
      peak = larger(peak, value);
    });
    peak = warp_max(peak);
    A sum = 0;
    rows.each(block, head, [&](int row) {
      A& value = shifted[base + row];
      const A power = peak > 0 ? power_of_ratio(value / peak, focus.sharpening) : A(0);
      if (!Keep) value = power;
      sum += power;
    });
    sum = warp_sum(sum);
    Pair<A>& own = powers.own(head, block.warp);
    if (block.lane == 0) own = {peak, sum};
  }
}

// w = w̃^γ / Σ w̃^γ from what `shift` left; f(head, row, w). Uniform where no w̃ reaches ε.
// `own` are the pairs of the warps that wrote these rows, `all` the same or already reduced.
template <typename A, typename F>
__device__ void sharpen(const Block& block, const Rows& rows, const Heads<A>& heads,
                        const Sizes& sizes, const A* shifted, const Partials<Pair<A>>& own,
                        const Partials<Pair<A>>& all, F f) {
#pragma unroll 1
  for (int head = 0; head < sizes.H; ++head) {
    const A sharpening = heads.sharpening[head];
    const Pair<A> total = fold_powers(block, all, head, sharpening);
    const A peak = own.own(head, block.warp).peak;
    const bool any = total.peak >= Constants<A>::focus_eps;
    const A scale = any ? power_of_ratio(peak / total.peak, sharpening) / total.sum : A(0);
    rows.each(block, head, [&](int row) {
      const A power = shifted[static_cast<int64_t>(head) * sizes.N + row];
      f(head, row, any ? power * scale : A(1) / sizes.N);
    });
  }
}

// What the backward of the chain works on, each [H, N]. `d` comes in as dw.
template <typename A>
struct Chain {
  A* similarity;
  A* previous;  // becomes the gradient of the previous weights
  A* gated;
  A* shifted;  // w̃, then dw^c, then the gradient of the scalar products k·M_i
  A* weights;
  A* d;          // dw, then dw̃
  A* row_norms;  // [N], ‖M_i‖, then Σ_h dK_h K_h / ‖M_i‖²
  A* key_norms;  // [H]
  Partials<Pair<A>> scores, powers;
  Partials<A> weight_dots;   // Σ dw w
  Partials<A> content_dots;  // Σ dw^c w^c
  Partials<A> d_sharpening, d_gate, d_strength;
};

// Σ dw w, alongside `shift`.
template <typename A>
__device__ void sharpen_backward_dots(const Block& block, const Rows& rows, const Sizes& sizes,
                                      const Chain<A>& chain) {
#pragma unroll 1
  for (int head = 0; head < sizes.H; ++head) {
    const int64_t base = static_cast<int64_t>(head) * sizes.N;
    A dot = 0;
    rows.each(block, head,
              [&](int row) { dot += chain.d[base + row] * chain.weights[base + row]; });
    dot = warp_sum(dot);
    A& own = chain.weight_dots.own(head, block.warp);
    if (block.lane == 0) own = dot;
  }
}

// dw_i/dw̃_j = γ w̃_j^{γ−1} / Σ w̃^γ (δ_ij − w_i), never dividing by w̃_j, and
// dw_i/dγ = w_i (log w̃_i − Σ_j w_j log w̃_j).
template <typename A>
__device__ void sharpen_backward(const Block& block, const Rows& rows, const Heads<A>& heads,
                                 const Sizes& sizes, const Chain<A>& chain) {
#pragma unroll 1
  for (int head = 0; head < sizes.H; ++head) {
    const int64_t base = static_cast<int64_t>(head) * sizes.N;
    const A sharpening = heads.sharpening[head];
    const Pair<A> total = fold_powers(block, chain.powers, head, sharpening);
    const A dot = fold_sum(block, chain.weight_dots, head);
    const bool any = total.peak >= Constants<A>::focus_eps;
    const A slope = any ? sharpening / (total.sum * total.peak) : A(0);
    A d_sharpening = 0;
    rows.each(block, head, [&](int row) {
      const int64_t at = base + row;
      const A centred = chain.d[at] - dot;
      if (!any) {
        chain.d[at] = 0;
        return;
      }
      const A ratio = chain.shifted[at] / total.peak;
      chain.d[at] = slope * power_of_ratio(ratio, sharpening - 1) * centred;
      if (ratio > 0) d_sharpening += centred * chain.weights[at] * log_of(ratio);
    });
    d_sharpening = warp_sum(d_sharpening);
    A& own = chain.d_sharpening.own(head, block.warp);
    if (block.lane == 0) own = d_sharpening;
  }
}

// Backward of shift and interpolation: dw^g_j = Σ_o s_o dw̃_{j+o}, dw^c = g dw^g,
// dw_{t−1} = (1 − g) dw^g, dg = Σ dw^g (w^c − w_{t−1}); and Σ dw^c w^c for the softmax.
template <typename A>
__device__ void shift_backward(const Block& block, const Rows& rows, const Heads<A>& heads,
                               const Sizes& sizes, const Chain<A>& chain) {
#pragma unroll 1
  for (int head = 0; head < sizes.H; ++head) {
    const int64_t base = static_cast<int64_t>(head) * sizes.N;
    const Focus<A> focus(heads, head, sizes.S);
    const Pair<A> softmax = fold_softmax(block, chain.scores, head);
    A d_gate = 0, dot = 0;
    rows.each(block, head, [&](int row) {
      const int64_t at = base + row;
      const A d_gated = through_taps(focus.taps, sizes.S, row, sizes.N, -1,
                                     [&](int from) { return chain.d[base + from]; });
      const A content = content_weight(chain.similarity[at], focus.strength, softmax);
      const A d_content = focus.gate * d_gated;
      d_gate += d_gated * (content - chain.previous[at]);
      dot += d_content * content;
      chain.shifted[at] = d_content;
      chain.previous[at] = (1 - focus.gate) * d_gated;
    });
    d_gate = warp_sum(d_gate);
    dot = warp_sum(dot);
    A& own_gate = chain.d_gate.own(head, block.warp);
    A& own_dot = chain.content_dots.own(head, block.warp);
    if (block.lane == 0) own_gate = d_gate;
    if (block.lane == 0) own_dot = dot;
  }
}

// ds_o = Σ_i dw̃_i w^g_{i−o}, a warp for each head and tap; f(head, tap, sum).
template <typename A, typename F>
__device__ void shift_backward_taps(const Block& block, const Rows& rows, const Sizes& sizes,
                                    const Chain<A>& chain, F f) {
#pragma unroll 1
  for (int task = block.warps - 1 - block.warp; task < sizes.H * sizes.S; task += block.warps) {
    const int head = task / sizes.S, tap = task % sizes.S;
    const int64_t base = static_cast<int64_t>(head) * sizes.N;
    A sum = 0;
    for (int at = block.lane; at < rows.rows; at += kWarp) {
      const int row = rows.first + at;
      sum += chain.d[base + row] * chain.gated[base + wrapped(row - (tap - sizes.S / 2), sizes.N)];
    }
    f(head, tap, warp_sum(sum));
  }
}

// Backward of the softmax and of the cosine: dK = β w^c (dw^c − Σ dw^c w^c), d(k·M_i) = dK /
// (‖k‖‖M_i‖), dβ = Σ dK K / β, and of each row what its norm takes back, Σ_h dK K / ‖M_i‖².
template <typename A>
__device__ void content_backward(const Block& block, const Rows& rows, const Heads<A>& heads,
                                 const Sizes& sizes, const Chain<A>& chain) {
#pragma unroll 1
  for (int head = 0; head < sizes.H; ++head) {
    const int64_t base = static_cast<int64_t>(head) * sizes.N;
    const A strength = heads.strength[head], key_norm = chain.key_norms[head];
    const Pair<A> softmax = fold_softmax(block, chain.scores, head);
    const A dot = fold_sum(block, chain.content_dots, head);
    A d_strength = 0;
    // Without the turns of `Rows::each`: a row stays with its thread for all heads.
    for (int at = block.thread; at < rows.rows; at += block.threads) {
      const int row = rows.first + at;
      const A similarity = chain.similarity[base + row];
      const A d_score =
          content_weight(similarity, strength, softmax) * (chain.shifted[base + row] - dot);
      d_strength += d_score * similarity;
      const A row_norm = chain.row_norms[row], norms = key_norm * row_norm;
      const bool alike = !(norms < Constants<A>::cosine_eps);
      chain.shifted[base + row] = alike ? strength * d_score / norms : A(0);
    }
    d_strength = warp_sum(d_strength);
    A& own = chain.d_strength.own(head, block.warp);
    if (block.lane == 0) own = d_strength;
  }
  for (int at = block.thread; at < rows.rows; at += block.threads) {
    const int row = rows.first + at;
    const A row_norm = chain.row_norms[row];
    A pull = 0;
#pragma unroll 1
    for (int head = 0; head < sizes.H; ++head) {
      const int64_t base = static_cast<int64_t>(head) * sizes.N;
      pull += chain.shifted[base + row] * chain.similarity[base + row] * chain.key_norms[head];
    }
    chain.row_norms[row] = row_norm > 0 ? pull / row_norm : A(0);
  }
}

}  // namespace ntm
