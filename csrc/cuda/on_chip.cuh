// What a block that holds a sequence's whole memory keeps in shared memory, and how the stages
// follow one another there. The same constructors count the bytes on the host.
#pragma once
#include "addressing.cuh"
#include "interface.cuh"
#include "memory.cuh"

namespace ntm {

// `Sizes` of an op without addressing (`read`, `write`) have no taps.
template <typename A>
struct ForwardSpace {
  A *tile, *vector, *reads, *similarity, *previous, *shifted, *gated;
  Pair<A>*scores, *powers;

  // Weightings may lie elsewhere than the rest.
  template <typename Pieces>
  __host__ __device__ ForwardSpace(Pieces& pieces, const Sizes& sizes, int tile_rows, int warps) {
    const int64_t weighting = static_cast<int64_t>(sizes.H) * sizes.N;
    const int64_t addressing = sizes.S > 0 ? weighting : 0;
    tile = pieces.template take<A>(static_cast<int64_t>(tile_rows) * Tile<A>::stride_of(sizes.M));
    vector = pieces.template take<A>(sizes.interface_size());
    reads = pieces.template take<A>(sizes.R * sizes.M);
    previous = pieces.template take_weighting<A>(weighting);
    similarity = pieces.template take_weighting<A>(addressing);
    shifted = pieces.template take_weighting<A>(addressing);
    gated = pieces.template take_weighting<A>(sizes.S > kFewTaps ? addressing : 0);
    scores = pieces.template take<Pair<A>>(sizes.H * warps);
    powers = pieces.template take<Pair<A>>(sizes.H * warps);
  }

  __device__ Chain<A> chain(const Block& block, const Sizes& sizes) const {
    const int share = Rows{0, sizes.N}.shares(block);
    return {similarity,
            previous,
            gated,
            shifted,
            {scores, block.warps, 0, block.warps},
            {powers, share, 0, share}};
  }
};

template <typename A>
struct BackwardSpace {
  A *tile, *d_tile, *vector, *d_reads, *d_taps;
  A *similarity, *previous, *gated, *shifted, *content, *weightings, *d;
  A *row_norms, *key_norms;
  Pair<A>*scores, *powers;
  A *weight_dots, *content_dots, *d_sharpening, *d_gate, *d_strength;

  template <typename Pieces>
  __host__ __device__ BackwardSpace(Pieces& pieces, const Sizes& sizes, int tile_rows, int warps) {
    const int64_t tile_size = static_cast<int64_t>(tile_rows) * Tile<A>::stride_of(sizes.M);
    const int64_t weighting = static_cast<int64_t>(sizes.H) * sizes.N;
    const int64_t addressing = sizes.S > 0 ? weighting : 0;
    const int partials = sizes.H * warps;
    tile = pieces.template take<A>(pieces.plan().memories * tile_size);
    d_tile = pieces.template take<A>(tile_size);
    vector = pieces.template take<A>(sizes.interface_size());
    d_reads = pieces.template take<A>(sizes.R * sizes.M);
    d_taps = pieces.template take<A>(sizes.H * sizes.S);
    weightings = pieces.template take_weighting<A>(weighting);
    d = pieces.template take_weighting<A>(weighting);
    similarity = pieces.template take_weighting<A>(addressing);
    previous = pieces.template take_weighting<A>(addressing);
    gated = pieces.template take_weighting<A>(addressing);
    shifted = pieces.template take_weighting<A>(addressing);
    content = pieces.template take_weighting<A>(addressing);
    row_norms = pieces.template take_weighting<A>(sizes.N);
    key_norms = pieces.template take<A>(sizes.H);
    scores = pieces.template take<Pair<A>>(partials);
    powers = pieces.template take<Pair<A>>(partials);
    weight_dots = pieces.template take<A>(partials);
    content_dots = pieces.template take<A>(partials);
    d_sharpening = pieces.template take<A>(partials);
    d_gate = pieces.template take<A>(partials);
    d_strength = pieces.template take<A>(partials);
  }

  __device__ BackwardChain<A> chain(const Block& block, const Sizes& sizes) const {
    const int share = Rows{0, sizes.N}.shares(block);
    return {{similarity,
             previous,
             gated,
             shifted,
             {scores, block.warps, 0, block.warps},
             {powers, share, 0, share}},
            content,
            weightings,
            d,
            row_norms,
            key_norms,
            {weight_dots, block.warps, 0, block.warps},
            {content_dots, share, 0, share},
            {d_sharpening, share, 0, share},
            {d_gate, share, 0, share},
            {d_strength, share, 0, share}};
  }
};

template <typename A>
__device__ void load_vector(const Block& block, A* to, const NtmArray& array, int64_t offset,
                            int count) {
  for (int i = block.thread; i < count; i += block.threads) to[i] = load<A>(array, offset + i);
}

template <typename A>
__device__ void load_or_clear(const Block& block, A* to, const NtmArray& array, int64_t offset,
                              int count) {
  for (int i = block.thread; i < count; i += block.threads)
    to[i] = load_or_zero<A>(array, offset + i);
}

// Zeros, where there is anything to put them.
__device__ inline void clear(const Block& block, const NtmArray& array, int64_t offset,
                             int64_t count) {
  if (array.data == nullptr) return;
  // Zero is all bits zero in every dtype.
  const int halves = array.dtype == NTM_FLOAT64 ? 4 : array.dtype == NTM_FLOAT32 ? 2 : 1;
  unsigned short* data = static_cast<unsigned short*>(array.data) + halves * offset;
  for (int64_t i = block.thread; i < halves * count; i += block.threads) data[i] = 0;
}

template <typename A>
__device__ void store_vector(const Block& block, const A* from, const NtmArray& array,
                             int64_t offset, int count) {
  for (int i = block.thread; i < count; i += block.threads) store(array, offset + i, from[i]);
}

// From a loaded memory, activated parameters and previous weightings to the weightings, f(head,
// row, w). Ends without a barrier.
template <typename A, typename F>
__device__ void address(const Block& block, const Tile<A>& tile, const Heads<A>& heads,
                        const Sizes& sizes, const Chain<A>& chain, F f) {
  const Rows all{0, sizes.N};
  similarity(block, tile, heads, sizes, chain);
  __syncthreads();
  content_interpolate_shift(block, all, heads, sizes, chain, sizes.S > kFewTaps);
  __syncthreads();
  sharpen(block, all, heads, sizes, chain.shifted, chain.powers, chain.powers, f);
}

// From dw and its sums, K and the norms to the gradients of everything the chain starts from but
// what `similarity_read_write_backward` and `scalars_backward` sum up. Ends without a barrier.
template <typename A>
__device__ void address_backward(const Block& block, const Heads<A>& heads, const Sizes& sizes,
                                 const BackwardChain<A>& chain, A* d_taps) {
  const Rows all{0, sizes.N};
  content_interpolate_shift(block, all, heads, sizes, chain, sizes.S > kFewTaps);
  __syncthreads();
  sharpen_backward(block, all, heads, sizes, chain);
  __syncthreads();
  interpolate_shift_backward(block, all, heads, sizes, chain);
  shift_backward_taps(block, all, sizes, chain, d_taps);
  __syncthreads();
  similarity_content_backward(block, all, heads, sizes, chain);
}

// The gradients of each head's scalars and taps, give(index in the vector, gradient), a warp a
// head, from the last warp on. With `raw_taps` those of the taps before their softmax.
template <typename A, typename F>
__device__ void scalars_backward(const Block& block, const Heads<A>& heads, const Sizes& sizes,
                                 const BackwardChain<A>& chain, const A* d_taps, bool raw_taps,
                                 F give) {
  const int S = sizes.S;
#pragma unroll 1
  for (int head = block.warps - 1 - block.warp; head < sizes.H; head += block.warps) {
    const A d_strength = fold_sum(block, chain.d_strength, head);
    const A d_gate = fold_sum(block, chain.d_gate, head);
    const A d_sharpening = fold_sum(block, chain.d_sharpening, head);
    if (block.lane == 0) {
      give(heads.index(heads.strength) + head, d_strength);
      give(heads.index(heads.gate) + head, d_gate);
      give(heads.index(heads.sharpening) + head, d_sharpening);
    }
    const int at = heads.index(heads.shift) + head * S;
    const A* d = d_taps + head * S;
    if (raw_taps)
      activate_backward_taps(block, heads.key + at, d, S,
                             [&](int tap, A d_tap) { give(at + tap, d_tap); });
    else
      for (int tap = block.lane; tap < S; tap += kWarp) give(at + tap, d[tap]);
  }
}

// What ‖k‖ takes back of the gradient of a key, for each of it: Σ_i dK_i K_i / ‖k‖² = β dβ / ‖k‖².
template <typename A>
__device__ A key_pull(A strength, A d_strength, A norm) {
  return norm > 0 ? strength * d_strength / (norm * norm) : A(0);
}

// The similarity, and of dw what the write heads give.
template <typename A>
__device__ void similarity_and_write_backward_weightings(const Block& block, const Tile<A>& tile,
                                                         const Tile<A>& d_tile,
                                                         const Heads<A>& heads, const Sizes& sizes,
                                                         const BackwardChain<A>& chain) {
  const int64_t writing = static_cast<int64_t>(sizes.R) * sizes.N;
  similarity(
      block, tile, heads, sizes, chain,
      WriteBackwardWeightings<A>{d_tile, chain.weightings + writing, sizes.W, sizes.N, heads.erase,
                                 heads.add, chain.d + writing, chain.weight_dots, sizes.R});
}

// All that a step's backward sums over the words of a row: K, the norms, and dw from read and
// write.
template <typename A>
__device__ void similarity_and_read_write_backward_weightings(
    const Block& block, const Tile<A>& tile, const Tile<A>& d_tile, const Heads<A>& heads,
    const Sizes& sizes, const A* d_reads, const BackwardChain<A>& chain) {
  similarity_and_write_backward_weightings(block, tile, d_tile, heads, sizes, chain);
  read_backward_weightings(block, tile, d_reads, sizes.R, sizes.N, chain.weightings, chain.d,
                           chain.weight_dots);
}

// How many of each kind of head take part in `similarity_read_write_backward`.
struct Parts {
  int reads, writes, keys;
  __device__ explicit Parts(const Sizes& sizes) : Parts(sizes.R, sizes.W, sizes.H) {}
  __device__ Parts(int R, int W, int K) : reads(R), writes(W), keys(K) {}
};

// All that it sums over rows, give(index in the vector, gradient), and dM in place of dM':
//   dk = Σ_i d(k·M_i) M_i, da = Σ_i w_i dM'_i, de = −Σ_i w_i dM'_i M_i Π_other (1 − w e),
//   dM_i = dM'_i Π_h (1 − w_h e_h) + Σ w dr + Σ d(k·M_i) k − M_i (what its norm takes).
// A warp takes two columns; a pass over the rows one write head and, after the last of those, which
// need dM', two of the others at a time: four sums each way. With `whole`, dβ is known, and of dk
// is taken what ‖k‖ takes back.
template <typename A, typename F>
__device__ void similarity_read_write_backward(const Block& block, const Tile<A>& tile,
                                               const Tile<A>& d_tile, const Heads<A>& heads,
                                               const Parts& parts, int N, const A* d_reads,
                                               const BackwardChain<A>& chain, bool whole, F give) {
  const int M = tile.word_size, R = parts.reads, W = parts.writes, K = parts.keys;
  const int first_other = max(0, W - 1), passes = first_other + max(1, (max(R, K) + 1) / 2);
  const int lane_column = block.lane % 2, lane_half = block.lane / 2 % 2;
#pragma unroll 1
  for (int first = 2 * block.warp; first < M; first += 2 * block.warps) {
    const int column[2] = {first, min(first + 1, M - 1)};  // twice the same does no harm
    const bool mine = block.lane < 4 && first + lane_column < M;
#pragma unroll 1
    for (int pass = 0; pass < passes; ++pass) {
      const int other = 2 * (pass - first_other);
      A erase[2] = {}, d_read[4] = {}, key[4] = {}, d_write[4] = {}, d_key[4] = {};
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (pass < W) erase[c] = heads.erase[pass * M + column[c]];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = other + h;
          if (head >= 0 && head < R) d_read[2 * h + c] = d_reads[head * M + column[c]];
          if (head >= 0 && head < K) key[2 * h + c] = heads.key[head * M + column[c]];
        }
      }
#pragma unroll 1
      for (int row = block.lane; row < tile.rows; row += kWarp) {
        const int at = tile.first + row;
        const A m[2] = {tile(row, column[0]), tile(row, column[1])};
        A d[2] = {d_tile(row, column[0]), d_tile(row, column[1])};
        if (pass < W) {
          const A* writing = chain.weightings + R * N + at;
          const A w = writing[pass * N];
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const A pull = w * d[c];
            const A others =
                W == 1 ? A(1) : kept_by_others(pass, W, writing, N, heads.erase + column[c], M);
            d_write[c] -= pull * m[c] * others;
            d_write[2 + c] += pull;
            if (pass == W - 1) d[c] *= others * (1 - w * erase[c]);
          }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = other + h;
          if (head < 0) continue;
          if (head < R) {
            const A w = chain.weightings[head * N + at];
#pragma unroll
            for (int c = 0; c < 2; ++c) d[c] += w * d_read[2 * h + c];
          }
          if (head < K) {
            const A product = chain.shifted[head * N + at], pull = chain.content[head * N + at];
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              d_key[2 * h + c] += product * m[c];
              d[c] += product * key[2 * h + c] - pull * m[c];
            }
          }
        }
        d_tile(row, column[0]) = d[0];
        d_tile(row, column[1]) = d[1];
      }
      if (pass < W) {
        const A own = own_sum(block, d_write);
        const A* group = lane_half == 0 ? heads.erase : heads.add;
        if (mine) give(heads.index(group) + pass * M + first + lane_column, own);
      }
      if (other >= 0 && other < K) {
        const A own = own_sum(block, d_key);
        A own_pull = 0;
        for (int head = other; whole && tile.fresh && head < min(other + 2, K); ++head) {
          const A d_strength = fold_sum(block, chain.d_strength, head);
          const A pull = key_pull(heads.strength[head], d_strength, chain.key_norms[head]);
          if (head == other + lane_half) own_pull = pull;
        }
        const int at = (other + lane_half) * M + first + lane_column;
        if (mine && other + lane_half < K) give(at, own - own_pull * heads.key[at]);
      }
    }
  }
}

}  // namespace ntm
