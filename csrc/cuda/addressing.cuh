// The stages of addressing, from the similarities to the weightings, and their backwards.
//
// Each stage is done by all threads of a block, and computes some rows of weightings [H, N]: all N
// of them where a block holds the whole memory, or those of one tile of many. Weightings lie in
// shared memory or in the workspace. A barrier must stand between any two stages, since a stage
// reads rows that other threads have written.
//
// A stage often needs a sum or a maximum over all rows, as the softmax does. For this the stage
// before it leaves one partial result from each warp, `Partials`, and every warp that needs the
// result reduces them again for itself. The repeated work costs a few shuffles; to reduce them once
// would cost one more barrier.
#pragma once
#include <type_traits>

#include "block.cuh"
#include "interface.cuh"
#include "memory.cuh"

namespace ntm {

// The parameters of one head that the stages after the similarity use.
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

// A row of a memory that is a circle of N rows. Shifts may be longer than the circle.
__device__ inline int wrapped(int row, int N) {
  if (row < 0)
    row += N;
  else if (row >= N)
    row -= N;
  if (row >= 0 && row < N) return row;
  row %= N;
  return row < 0 ? row + N : row;
}

// Σ_o s_o value(row − sign · o, o is 0) over the offsets o of the taps: the circular convolution of
// a shift for sign 1, and the correlation of its backward for sign −1.
template <typename A, typename F>
__device__ A through_taps(const A* taps, int S, int row, int N, int sign, F value) {
  A sum = 0;
#pragma unroll 1
  for (int tap = 0; tap < S; ++tap)
    sum += taps[tap] * value(wrapped(row - sign * (tap - S / 2), N), tap == S / 2);
  return sum;
}

// The buffers that the stages of a forward work on; each but the partial results is [H, N].
template <typename A>
struct Chain {
  static constexpr bool kIsBackward = false;
  A* similarity;             // K
  A* previous;               // the weightings of the step before
  A* gated;                  // w^g, where it is kept
  A* shifted;                // (w̃ / the largest w̃ of the same warp)^γ; in a backward w̃
  Partials<Pair<A>> scores;  // the softmax of β K: maximum and sum of each warp
  Partials<Pair<A>> powers;  // the same of w̃^γ
};

// The buffers of a backward, which first runs the forward up to w̃ again. Shared memory is scarce,
// so later stages put their results in place of what no later stage needs.
template <typename A>
struct BackwardChain : Chain<A> {
  static constexpr bool kIsBackward = true;
  A* content;                  // w^c
  A* weightings;               // w
  A* d;                        // dw
  A *row_norms, *key_norms;    // ‖M_i‖ [N] and ‖k‖ [H]
  Partials<A> weighting_dots;  // Σ dw w, a part from each warp
  Partials<A> content_dots;    // Σ dw^c w^c
  Partials<A> weighting_sums;  // Σ w
  Partials<A> d_sharpening, d_gate, d_strength;

  // What a buffer holds once a stage of the backward has replaced what it held before.
  __device__ A* d_weightings() const { return d; }             // until sharpen_backward
  __device__ A* d_shifted() const { return d; }                // from sharpen_backward on
  __device__ A* d_content() const { return this->shifted; }    // from interpolate_shift_backward on
  __device__ A* d_previous() const { return this->previous; }  // from interpolate_shift_backward on
  __device__ A* d_products() const { return this->shifted; }  // from similarity_content_backward on
  __device__ A* norm_parts() const { return content; }        // from similarity_content_backward on
};

// K of one row, and 0 where ‖k‖‖M_i‖ is below ε.
template <typename A>
__device__ A cosine(A dot, A key_norm, A row_norm) {
  const A norms = key_norm * row_norm;
  return norms < Constants<A>::cosine_eps ? A(0) : dot / norms;
}

// Stores a warp's part of the softmax of β K, joined with that of its earlier tiles.
template <typename A>
__device__ void give_score(const Tile<A>& tile, Pair<A>& own, const Pair<A>& part) {
  own = tile.fresh ? part : joined(own, part);
}

// `similarity` where the lanes of a row are several; each warp then has one unit of rows or none.
//
// A pass serves two heads. A lane sums up its words for both of them. In the first exchange with
// its neighbour it gives away the sums of one head: from then on even lanes have the first head and
// odd lanes the second, so that one sequence of instructions does all that follows for both.
//
// A backward of a model with one head of each kind adds up `ReadWriteBackwardWeightings` in the
// same loop, as `others`.
template <typename A, typename C, typename F = NoOtherSums>
__device__ void similarity_of_pairs(const Block& block, const Tile<A>& tile, const Heads<A>& heads,
                                    const Sizes& sizes, const RowUnits& units, const C& chain,
                                    F others = {}) {
  constexpr bool kHasOthers = !std::is_same_v<F, NoOtherSums>;
  const int M = tile.word_size, H = sizes.H;
  const int row = units.row(block.warp, block.lane), part = units.part(block.lane);
  const bool real = block.warp < units.units && row < tile.rows;
  const bool odd = block.lane % 2 != 0;
#pragma unroll 1
  for (int pass = 0; 2 * pass < H; ++pass) {
    // Beyond the last head of an odd number, the last is taken again, and nothing is stored.
    const int first = 2 * pass, second = min(2 * pass + 1, H - 1);
    const int own = odd ? second : first;
    const bool is_head = 2 * pass + odd < H;
    const A *key = heads.key + first * M, *other_key = heads.key + second * M;
    A dots[2] = {}, squares[2] = {}, square = 0;
    if (real)
      each_word<true>(units, part, M, [&](int word) {
        const A m = tile(row, word), k = key[word], other_k = other_key[word];
        square += m * m;
        dots[0] += m * k;
        dots[1] += m * other_k;
        squares[0] += k * k;
        squares[1] += other_k * other_k;
        if constexpr (kHasOthers) others.word(row, word, m);
      });
    A dot = swapped_sum(odd, dots, 1), key_square = swapped_sum(odd, squares, 1);
    square += __shfl_xor_sync(kAllLanes, square, 1);
    if constexpr (kHasOthers) others.end_words(odd, units);
#pragma unroll 1
    for (int other = 2; other < units.lanes; other *= 2) {
      dot += __shfl_xor_sync(kAllLanes, dot, other);
      key_square += __shfl_xor_sync(kAllLanes, key_square, other);
      square += __shfl_xor_sync(kAllLanes, square, other);
    }
    const A row_norm = sqrt_of(square), key_norm = sqrt_of(key_square);
    const A alike = cosine(dot, key_norm, row_norm);
    // All lanes of a row have the same results by now. The first two of them count, one a head.
    const bool counts = real && part < 2;
    const A score = real ? heads.strength[own] * alike : -Constants<A>::infinity;
    const A peak = max_of_parity(score);
    const A sum = sum_of_parity(counts ? exp_of(score - peak) : A(0));
    if constexpr (kHasOthers) others.end_rows(block, tile, sizes.N, row, counts);
    if (!is_head) continue;
    if (block.lane < 2) give_score(tile, chain.scores.own(own, block.warp), {peak, sum});
    if (!counts) continue;
    chain.similarity[static_cast<int64_t>(own) * sizes.N + tile.first + row] = alike;
    if constexpr (C::kIsBackward) {
      if (own == 0) chain.row_norms[tile.first + row] = row_norm;
      if (tile.first + row == 0) chain.key_norms[own] = key_norm;
    }
  }
}

// `similarity` for any number of lanes a row. A pass over the rows serves several heads, so that a
// word is loaded once for all of them, and another sum over the words of each row, `other_sums`.
template <typename A, typename C, typename F>
__device__ void similarity_of_rows(const Block& block, const Tile<A>& tile, const Heads<A>& heads,
                                   const Sizes& sizes, const RowUnits& units, const C& chain,
                                   F& other_sums) {
  constexpr bool kHasOthers = !std::is_same_v<F, NoOtherSums>;
  const int M = tile.word_size;
#pragma unroll 1
  for (int pass = 0; pass * kHeadsAtOnce<A> < sizes.H || pass < other_sums.passes; ++pass) {
    const int head = pass * kHeadsAtOnce<A>, some = min(kHeadsAtOnce<A>, sizes.H - head);
    const bool has_other = pass < other_sums.passes;
    const A* keys = heads.key + head * M;
    if constexpr (kHasOthers)
      if (has_other) other_sums.begin_pass();
    // A lane joins the pairs of its rows; first the warp, later the block joins those.
    Pair<A> pairs[kHeadsAtOnce<A>];
#pragma unroll
    for (int i = 0; i < kHeadsAtOnce<A>; ++i) pairs[i] = {-Constants<A>::infinity, 0};
#pragma unroll 1
    for (int unit = block.warp; unit < units.units; unit += block.warps) {
      const int row = units.row(unit, block.lane), part = units.part(block.lane);
      A dots[kHeadsAtOnce<A>] = {}, squares[kHeadsAtOnce<A>] = {}, square = 0;
      if constexpr (kHasOthers) other_sums.begin_row();
      if (row < tile.rows) {
#pragma unroll 2
        for (int word = part; word < M; word += units.lanes) {
          const A m = tile(row, word);
          square += m * m;
          if constexpr (kHasOthers)
            if (has_other) other_sums.word(pass, row, word, m);
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
      if constexpr (kHasOthers)
        if (has_other) other_sums.end_row(units, pass, row, mine);
      if constexpr (C::kIsBackward)
        if (mine && head == 0) chain.row_norms[tile.first + row] = row_norm;
#pragma unroll
      for (int i = 0; i < kHeadsAtOnce<A>; ++i) {
        if (i >= some) continue;
        const A dot = units.sum(dots[i]), key_norm = sqrt_of(units.sum(squares[i]));
        if (!mine) continue;
        const A alike = cosine(dot, key_norm, row_norm);
        if constexpr (C::kIsBackward)
          if (tile.first + row == 0) chain.key_norms[head + i] = key_norm;
        chain.similarity[static_cast<int64_t>(head + i) * sizes.N + tile.first + row] = alike;
        pairs[i] = joined(pairs[i], {heads.strength[head + i] * alike, 1});
      }
    }
#pragma unroll
    for (int i = 0; i < kHeadsAtOnce<A>; ++i) {
      if (i >= some) continue;
      const Pair<A> all = warp_softmax(pairs[i]);
      if (block.lane == 0) give_score(tile, chain.scores.own(head + i, block.warp), all);
    }
    if constexpr (kHasOthers)
      if (has_other) other_sums.end_pass(block, pass);
  }
}

// K_i = k·M_i / (‖k‖‖M_i‖), and 0 where ‖k‖‖M_i‖ is below ε; and of each warp the maximum and the
// sum of the softmax of β K, for `content_interpolate_shift`.
//
// Some lanes share a row (RowUnits in memory.cuh) and go along its words. ‖k‖ is summed again in
// every row: its words are at hand for k·M_i anyway. A backward has another sum over the words of
// each row, `other_sums`. Where lanes share rows, the heads go by pairs, and that sum has a loop of
// its own.
template <typename A, typename C, typename F = NoOtherSums>
__device__ void similarity(const Block& block, const Tile<A>& tile, const Heads<A>& heads,
                           const Sizes& sizes, const C& chain, F other_sums = {}) {
  const RowUnits units(tile.rows, block.warps);
  if (units.lanes == 1) {
    similarity_of_rows(block, tile, heads, sizes, units, chain, other_sums);
    return;
  }
  similarity_of_pairs(block, tile, heads, sizes, units, chain);
  if constexpr (!std::is_same_v<F, NoOtherSums>) write_backward_weightings(block, tile, other_sums);
}

// w^c of one row; `scale` is 1 / softmax.sum.
template <typename A>
__device__ A content_of_row(A similarity, A strength, const Pair<A>& softmax, A scale) {
  return exp_of(strength * similarity - softmax.peak) * scale;
}

// w^g = g w^c + (1 − g) w_{t−1}
template <typename A>
__device__ A interpolate(A content, A previous, A gate) {
  return gate * content + (1 - gate) * previous;
}

// From the similarities to w̃, and of each warp the maximum of w̃ and the sum of w̃^γ, for
// `sharpen`. A backward keeps w^c, w^g and w̃, and adds up w, for `sharpen_backward`. A forward
// needs none of them: it leaves the powers (w̃ / maximum of the warp)^γ in place of w̃, so that
// `sharpen` has only to scale them.
//
// A shift needs w^g of the neighbouring rows, which other threads have. With `gated_first` all rows
// of w^g are stored, and a barrier follows. Without, each tap computes w^g of its row again from
// the similarity, which is cheaper for few taps, and lets a tile do without the w^g of its
// neighbours. With `gated_first` all threads of the block must call this with the same rows.
template <typename A, typename C>
__device__ void content_interpolate_shift(const Block& block, const Rows& rows,
                                          const Heads<A>& heads, const Sizes& sizes, const C& chain,
                                          bool gated_first) {
  const int N = sizes.N, S = sizes.S, share = chain.powers.share;
  if (gated_first) {
    rows.each_head(block, sizes.H, share, [&](int head, int slot) {
      const HeadScalars<A> scalars(heads, head, S);
      const Pair<A> softmax = fold_softmax(block, chain.scores, head);
      const A scale = 1 / softmax.sum;
      rows.each(block, slot, [&](int row) {
        const int64_t at = static_cast<int64_t>(head) * N + row;
        const A content = content_of_row(chain.similarity[at], scalars.strength, softmax, scale);
        chain.gated[at] = interpolate(content, chain.previous[at], scalars.gate);
        if constexpr (C::kIsBackward) chain.content[at] = content;
      });
    });
    __syncthreads();
  }
  rows.each_head(block, sizes.H, share, [&](int head, int slot) {
    const HeadScalars<A> scalars(heads, head, S);
    const Pair<A> softmax = fold_softmax(block, chain.scores, head);
    const A scale = 1 / softmax.sum;
    const int64_t base = static_cast<int64_t>(head) * N;
    A peak = 0;
    rows.each(block, slot, [&](int row) {
      const A value = through_taps(scalars.taps, S, row, N, 1, [&](int from, bool own) {
        const int64_t at = base + from;
        if (gated_first) return chain.gated[at];
        const A content = content_of_row(chain.similarity[at], scalars.strength, softmax, scale);
        const A gated = interpolate(content, chain.previous[at], scalars.gate);
        if constexpr (C::kIsBackward) {
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
    // The reciprocal of a maximum below ε may be infinite. The maximum itself is not multiplied by
    // it: the product may be just below 1, and a high power of that 0.
    const bool has_reciprocal = peak >= Constants<A>::focus_eps;
    const A reciprocal = 1 / peak;
    A sum = 0, total_weighting = 0;
    rows.each(block, slot, [&](int row) {
      A& value = chain.shifted[base + row];
      // Where no w̃ of this warp is positive, the square root gives what a power would: 0 of a
      // w̃ that is 0, and NaN of one that is negative.
      const A ratio = value == peak ? A(1) : has_reciprocal ? value * reciprocal : value / peak;
      const A power = peak > 0 ? power_of_ratio(ratio, scalars.sharpening) : sqrt_of(value);
      if constexpr (C::kIsBackward)
        total_weighting += chain.weightings[base + row];
      else
        value = power;
      sum += power;
    });
    if constexpr (C::kIsBackward) {
      total_weighting = warp_sum(total_weighting);
      if (block.lane == 0) chain.weighting_sums.own(head, slot) = total_weighting;
    }
    sum = warp_sum(sum);
    if (block.lane == 0) chain.powers.own(head, slot) = {peak, sum};
  });
}

// Whether `sharpen` can divide by the sum: some w̃ reaches ε. NaN and negative values count too, so
// that they show in the weighting and are not hidden behind a uniform one.
template <typename A>
__device__ bool focused(const Pair<A>& powers) {
  return powers.peak >= Constants<A>::focus_eps || powers.sum != powers.sum;
}

// w = w̃^γ / Σ w̃^γ from the powers that `content_interpolate_shift` left; f(head, row, w) gets
// them. The weighting is uniform where no w̃ reaches ε.
//
// A warp must scale the same rows as the warp whose maximum they were divided by, and does: rows
// are dealt out in the same way. `own` are the partial results of these warps; `all` are those from
// which the total follows, the same ones or, with tiles, one that is already reduced.
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

// Σ dw w, for an op whose dw is given and not computed here. Otherwise the functions that compute
// dw sum this up on the way.
template <typename A>
__device__ void sharpen_backward_dots(const Block& block, const Tile<A>& tile, const Sizes& sizes,
                                      const BackwardChain<A>& chain) {
#pragma unroll 1
  for (int head = 0; head < sizes.H; ++head) {
    const int64_t base = static_cast<int64_t>(head) * sizes.N + tile.first;
    A dot = 0;
    for (int at = block.thread; at < tile.rows; at += block.threads)
      dot += chain.d_weightings()[base + at] * chain.weightings[base + at];
    give_part(block, tile, chain.weighting_dots, head, dot);
  }
}

// From dw to dw̃, in the same place, and dγ:
//   dw̃_j = γ w̃_j^{γ−1} / Σ w̃^γ (dw_j − Σ_i dw_i w_i),
//   dγ = Σ_i (dw_i − Σ_j dw_j w_j) w_i log w̃_i.
// No formula divides by w̃_j, which may be 0. Logarithms are of w̃ / its maximum; the difference is
// the same for all rows, and the other factors sum to zero.
//
// The difference is computed as dw_j Σ_i w_i − Σ_i dw_i w_i. Rounded weightings do not sum to
// exactly one, and where nearly all of a weighting is in one row, the plain difference is small in
// that row and would consist of this error. A double has digits enough for the plain difference.
template <typename A>
__device__ void sharpen_backward(const Block& block, const Rows& rows, const Heads<A>& heads,
                                 const Sizes& sizes, const BackwardChain<A>& chain) {
  rows.each_head(block, sizes.H, chain.d_sharpening.share, [&](int head, int slot) {
    const int64_t base = static_cast<int64_t>(head) * sizes.N;
    const A sharpening = heads.sharpening[head];
    const Pair<A> total = fold_powers(block, chain.powers, head, sharpening);
    A sums[2];
    fold_two_sums(block, chain.weighting_dots, chain.weighting_sums, head, sums);
    const A dot = sums[0], total_weighting = sizeof(A) == 4 ? sums[1] : A(1);
    const bool any = focused(total);
    // Where any w̃ reaches ε, the reciprocal of the largest is finite.
    const A reciprocal = 1 / total.peak;
    const A slope = any ? sharpening * reciprocal / total.sum : A(0);
    // 0^{γ−1}. For γ ≤ 0 the power w̃^γ jumps at 0, and the slope is taken as 0.
    const A at_zero = sharpening == 1                    ? A(1)
                      : sharpening > 0 && sharpening < 1 ? Constants<A>::infinity
                                                         : A(0);
    A d_sharpening = 0;
    rows.each(block, slot, [&](int row) {
      const int64_t at = base + row;
      const A centred = chain.d_weightings()[at] * total_weighting - dot;
      if (!any) {
        chain.d_shifted()[at] = 0;
        return;
      }
      const A shifted = chain.shifted[at];
      const A ratio = shifted == total.peak ? A(1) : shifted * reciprocal;
      const A log_ratio = log2_of(ratio);
      const A power = ratio == 0 ? at_zero : exp2_of((sharpening - 1) * log_ratio);
      chain.d_shifted()[at] = slope * power * centred;
      if (ratio != 0) d_sharpening += centred * chain.weightings[at] * log_ratio;
    });
    d_sharpening = warp_sum(d_sharpening) * Constants<A>::log_of_2;
    if (block.lane == 0) chain.d_sharpening.own(head, slot) = d_sharpening;
  });
}

// From dw̃ to dw^c, in place of w̃, and to the gradient of the previous weightings, in their place:
//   dw^g_j = Σ_o s_o dw̃_{j+o}, dw^c = g dw^g, dw_{t−1} = (1 − g) dw^g,
//   dg = Σ dw^g (w^c − w_{t−1}), and Σ dw^c w^c for the backward of the softmax.
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
      const A d_gated =
          through_taps(heads.shift + head * sizes.S, sizes.S, row, sizes.N, -1,
                       [&](int from, bool) { return chain.d_shifted()[base + from]; });
      const A content = chain.content[at], d_content = gate * d_gated;
      d_gate += d_gated * (content - chain.previous[at]);
      dot += d_content * content;
      chain.d_content()[at] = d_content;
      chain.d_previous()[at] = (1 - gate) * d_gated;
    });
    d_gate = warp_sum(d_gate);
    dot = warp_sum(dot);
    if (block.lane == 0) {
      chain.d_gate.own(head, slot) = d_gate;
      chain.content_dots.own(head, slot) = dot;
    }
  });
}

// ds_o = Σ_i dw̃_i w^g_{i−o}. A warp takes a head and a tap. The last warp begins: the first ones
// have more rows of `interpolate_shift_backward`, which runs between the same barriers.
template <typename A>
__device__ void shift_backward_taps(const Block& block, const Rows& rows, const Sizes& sizes,
                                    const BackwardChain<A>& chain, A* d_taps) {
#pragma unroll 1
  for (int task = block.warps - 1 - block.warp; task < sizes.H * sizes.S; task += block.warps) {
    const int head = static_cast<int>(static_cast<unsigned>(task) / static_cast<unsigned>(sizes.S));
    const int tap = task - head * sizes.S;
    const int64_t base = static_cast<int64_t>(head) * sizes.N;
    A sum = 0;
#pragma unroll 1
    for (int at = block.lane; at < rows.rows; at += kWarp) {
      const int row = rows.first + at;
      sum += chain.d_shifted()[base + row] *
             chain.gated[base + wrapped(row - (tap - sizes.S / 2), sizes.N)];
    }
    sum = warp_sum(sum);
    if (block.lane == 0) d_taps[task] = sum;
  }
}

// The backward of the softmax and of the cosine as far as it needs no words of the memory:
//   d(βK_i) = w^c_i (dw^c_i − Σ_j dw^c_j w^c_j), dβ = Σ d(βK_i) K_i, dK_i = β d(βK_i).
// K is the product k·M_i divided by two norms, so dK goes three ways. It leaves d(k·M_i) = dK_i /
// (‖k‖‖M_i‖), in place of dw^c, and for the norm of each row dK_i K_i / ‖M_i‖², in place of w^c.
// `similarity_read_write_backward` goes on from there; ‖k‖ is left to `key_norm_part`.
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
      const A d_score = chain.content[at] * (chain.d_content()[at] - dot);
      d_strength += d_score * similarity;
      const A row_norm = chain.row_norms[row], norms = key_norm * row_norm;
      const bool alike = !(norms < Constants<A>::cosine_eps);
      const A reciprocal = 1 / norms;
      const A d_product = alike ? strength * d_score * reciprocal : A(0);
      chain.d_products()[at] = d_product;
      // ‖k‖ / ‖M_i‖ = ‖k‖ (‖k‖ / norms)
      chain.norm_parts()[at] =
          alike ? d_product * similarity * key_norm * (key_norm * reciprocal) : A(0);
    });
    d_strength = warp_sum(d_strength);
    if (block.lane == 0) chain.d_strength.own(head, slot) = d_strength;
  });
}

}  // namespace ntm
