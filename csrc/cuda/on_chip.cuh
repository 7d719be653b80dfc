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
};

template <typename A>
struct BackwardSpace {
  A *tile, *d_tile, *vector, *d_vector, *d_reads;
  A *similarity, *previous, *gated, *shifted, *weights, *d, *row_norms, *key_norms;
  Pair<A>*scores, *powers;
  A *weight_dots, *content_dots, *d_sharpening, *d_gate, *d_strength;

  template <typename Pieces>
  __host__ __device__ BackwardSpace(Pieces& pieces, const Sizes& sizes, int tile_rows, int warps) {
    const int64_t tile_size = static_cast<int64_t>(tile_rows) * Tile<A>::stride_of(sizes.M);
    const int64_t weighting = static_cast<int64_t>(sizes.H) * sizes.N;
    const int64_t addressing = sizes.S > 0 ? weighting : 0;
    const int partials = sizes.H * warps;
    tile = pieces.template take<A>(tile_size);
    d_tile = pieces.template take<A>(tile_size);
    vector = pieces.template take<A>(sizes.interface_size());
    d_vector = pieces.template take<A>(sizes.interface_size());
    d_reads = pieces.template take<A>(sizes.R * sizes.M);
    weights = pieces.template take_weighting<A>(weighting);
    d = pieces.template take_weighting<A>(weighting);
    similarity = pieces.template take_weighting<A>(addressing);
    previous = pieces.template take_weighting<A>(addressing);
    gated = pieces.template take_weighting<A>(addressing);
    shifted = pieces.template take_weighting<A>(addressing);
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

  __device__ Chain<A> chain(int warps) const {
    return {similarity,
            previous,
            gated,
            shifted,
            weights,
            d,
            row_norms,
            key_norms,
            {scores, warps, 0},
            {powers, warps, 0},
            {weight_dots, warps, 0},
            {content_dots, warps, 0},
            {d_sharpening, warps, 0},
            {d_gate, warps, 0},
            {d_strength, warps, 0}};
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

// From a loaded memory, activated parameters and previous weights to the weights, f(head, row, w).
// Ends without a barrier.
template <typename A, typename F>
__device__ void address(const Block& block, const Tile<A>& tile, const Heads<A>& heads,
                        const Sizes& sizes, const ForwardSpace<A>& space, F f) {
  const Partials<Pair<A>> scores{space.scores, block.warps, 0},
      powers{space.powers, block.warps, 0};
  const Rows all{0, sizes.N};
  content<A>(block, tile, heads, sizes, space.similarity, scores, nullptr, nullptr);
  __syncthreads();
  shift<false>(block, all, heads, sizes, space.similarity, space.previous, scores,
               sizes.S > kFewTaps, space.gated, space.shifted, powers);
  __syncthreads();
  sharpen(block, all, heads, sizes, space.shifted, powers, powers, f);
}

// From dw (in `chain.d`), K and the norms to the gradients of everything the chain starts from:
// d_heads, the previous weights' in `chain.previous`, the scalar products' in `chain.shifted`.
// Leaves the sums over columns, which a caller does along with its own, and ends with a barrier.
template <typename A>
__device__ void address_backward(const Block& block, const Heads<A>& heads, const Heads<A>& d_heads,
                                 const Sizes& sizes, const Chain<A>& chain) {
  const Rows all{0, sizes.N};
  shift<true>(block, all, heads, sizes, chain.similarity, chain.previous, chain.scores,
              sizes.S > kFewTaps, chain.gated, chain.shifted, chain.powers);
  sharpen_backward_dots(block, all, sizes, chain);
  __syncthreads();
  sharpen_backward(block, all, heads, sizes, chain);
  __syncthreads();
  shift_backward(block, all, heads, sizes, chain);
  shift_backward_taps(block, all, sizes, chain, [&](int head, int tap, A sum) {
    if (block.lane == 0) d_heads.shift[head * sizes.S + tap] = sum;
  });
  __syncthreads();
  content_backward(block, all, heads, sizes, chain);
  __syncthreads();
}

// The scalars of each head from the warps' partial sums.
template <typename A>
__device__ void fold_scalars(const Block& block, const Heads<A>& d_heads, const Sizes& sizes,
                             const Chain<A>& chain) {
#pragma unroll 1
  for (int head = block.warp; head < sizes.H; head += block.warps) {
    const A d_strength = fold_sum(block, chain.d_strength, head);
    const A d_gate = fold_sum(block, chain.d_gate, head);
    const A d_sharpening = fold_sum(block, chain.d_sharpening, head);
    if (block.lane == 0) {
      d_heads.strength[head] = d_strength;
      d_heads.gate[head] = d_gate;
      d_heads.sharpening[head] = d_sharpening;
    }
  }
}

// The gradient of a parameter once all of d_heads is there: of a key less what ‖k‖ takes back,
// Σ_i dK_i K_i / ‖k‖² = β dβ / ‖k‖².
template <typename A>
__device__ A head_gradient(int index, const Heads<A>& heads, const Heads<A>& d_heads,
                           const Sizes& sizes, const A* key_norms) {
  const A sum = d_heads.key[index];
  if (index >= sizes.H * sizes.M) return sum;
  const int head = index / sizes.M;
  const A norm = key_norms[head];
  if (!(norm > 0)) return sum;
  return sum - heads.key[index] * (heads.strength[head] * d_heads.strength[head] / (norm * norm));
}

// dM of the whole tile in place of dM': what the write, the read and the content make of it.
template <typename A>
__device__ void memory_backward(const Block& block, const Tile<A>& tile, const Tile<A>& d_tile,
                                int column, const Sizes& sizes, const Heads<A>& heads,
                                const A* d_reads, const Chain<A>& chain) {
  const int64_t N = sizes.N;
  for (int row = block.lane; row < tile.rows; row += kWarp) {
    const int at = tile.first + row;
    const A* w = chain.weights + at;
    A value = write_backward_memory(d_tile(row, column), w + sizes.R * N, sizes.W, N,
                                    heads.erase + column, sizes.M);
    value += outer_sum(w, sizes.R, N, d_reads + column, sizes.M);
    value += outer_sum(chain.shifted + at, sizes.H, N, heads.key + column, sizes.M);
    d_tile(row, column) = value - tile(row, column) * chain.row_norms[at];
  }
}

// All that a step's backward sums over the words of a row: K, the norms, and dw from read and
// write.
template <typename A>
__device__ void step_backward_rows(const Block& block, const Tile<A>& tile, const Tile<A>& d_tile,
                                   const Heads<A>& heads, const Sizes& sizes, const A* d_reads,
                                   const Chain<A>& chain) {
  const int64_t writing = static_cast<int64_t>(sizes.R) * sizes.N;
  content(block, tile, heads, sizes, chain.similarity, chain.scores, chain.row_norms,
          chain.key_norms);
  read_backward_weights(block, tile, d_reads, sizes.R, sizes.N, chain.d);
  write_backward_weights(block, tile, d_tile, chain.weights + writing, sizes.W, sizes.N,
                         heads.erase, heads.add, chain.d + writing);
}

// All that it sums over rows, and dM in place of dM'.
template <typename A>
__device__ void step_backward_columns(const Block& block, const Tile<A>& tile,
                                      const Tile<A>& d_tile, const Heads<A>& heads,
                                      const Heads<A>& d_heads, const Sizes& sizes, const A* d_reads,
                                      const Chain<A>& chain) {
  const A* writing = chain.weights + static_cast<int64_t>(sizes.R) * sizes.N;
#pragma unroll 1
  for (int column = block.warp; column < sizes.M; column += block.warps) {
    read(block, tile, column, chain.shifted, sizes.H, sizes.N, d_heads.key);
    write_backward_heads(block, tile, d_tile, column, writing, sizes.W, sizes.N, heads.erase,
                         d_heads.erase, d_heads.add);
    memory_backward(block, tile, d_tile, column, sizes, heads, d_reads, chain);
  }
}

}  // namespace ntm
