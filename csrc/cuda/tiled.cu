// `address` and `step` on a memory that is too large for the shared memory of one block.
//
// The memory is cut into tiles of some rows. One launch does it all: its blocks are on the device
// together, and go through the phases side by side. In a phase each block works on the tiles that
// are its share, of all sequences of the batch, and a barrier of the whole grid ends the phase.
//
// Weightings lie in the workspace, in global memory, since a shift takes rows from other tiles. A
// sum over all rows takes three phases: every block stores a partial result for each of its tiles
// and warps, blocks reduce those of one head each (`fold_head`), and after the next barrier all
// blocks read the result.
//
// A memory is loaded twice, for the similarity and for reading and writing. Between these phases a
// block keeps its last tile in shared memory, and so begins the last phase with that one,
// backwards.
#include <cooperative_groups.h>

#include "tiled.cuh"

namespace ntm {

namespace {

// What a phase works on: one tile of one sequence. It is made anew for each of them, with all that
// is needed to find the tile's part of every array.
template <typename A, bool Backward>
struct TileOfGrid {
  const TiledCall& call;
  Block block;
  Sizes sizes;
  int64_t b;
  int index, tiles;
  Tile<A> tile, d_tile;
  TiledSpace<A> space;
  Heads<A> heads;

  __device__ TileOfGrid(const TiledCall& tiled, const NtmPlan& plan, unsigned char* shared,
                        int64_t sequence, int tile_index)
      : TileOfGrid(tiled, plan,
                   PlacedPieces(plan, shared, tiled.workspace, sequence, tiled.sizes.batch),
                   sequence, tile_index) {}
  __device__ TileOfGrid(const TiledCall& tiled, const NtmPlan& plan, PlacedPieces pieces,
                        int64_t sequence, int tile_index)
      : call(tiled),
        sizes(tiled.sizes),
        b(sequence),
        index(tile_index),
        tiles(tiles_of(sizes, plan.tile_rows)),
        space(pieces, sizes, plan.tile_rows, block.warps, Backward),
        heads(space.parameters, sizes) {
    const int first = index * plan.tile_rows;
    tile = {space.tile, first, min(plan.tile_rows, sizes.N - first), sizes.M, true};
    d_tile = tile;
    d_tile.at = space.d_tile;
  }

  __device__ int64_t tile_at() const {
    return (b * sizes.N + tile.first) * static_cast<int64_t>(sizes.M);
  }

  // A step reads and writes; `address` does neither.
  __device__ bool is_step() const { return call.interface.data != nullptr; }

  __device__ void load_heads() const {
    if (is_step())
      load_interface(block, heads, call.interface, b);
    else
      load_parameters(block, heads, call, sizes, b);
  }

  // The same without keys, erase and add vectors, for a phase that touches no words of the memory.
  __device__ void load_scalars() const {
    if (is_step())
      load_interface(block, heads, call.interface, b, heads.index(heads.strength),
                     heads.index(heads.erase));
    else
      load_parameters(block, heads, call, sizes, b, false);
  }

  // The second half of either; a barrier must stand before it and after it.
  __device__ void finish_heads() const {
    if (is_step()) activate_taps(block, heads, sizes);
  }

  // The tile's rows of all weightings, from an array to the workspace and back. Zeros where there
  // is no array.
  __device__ void load_rows(A* to, const NtmArray& array) const {
#pragma unroll 1
    for (int head = 0; head < sizes.H; ++head) {
      const int64_t at = static_cast<int64_t>(head) * sizes.N + tile.first;
      for (int i = block.thread; i < tile.rows; i += block.threads)
        to[at + i] = load_or_zero<A>(array, b * sizes.H * sizes.N + at + i);
    }
  }
  __device__ void store_rows(const A* from, const NtmArray& array) const {
#pragma unroll 1
    for (int head = 0; head < sizes.H; ++head) {
      const int64_t at = static_cast<int64_t>(head) * sizes.N + tile.first;
      for (int i = block.thread; i < tile.rows; i += block.threads)
        store(array, b * sizes.H * sizes.N + at + i, from[at + i]);
    }
  }

  template <typename V>
  __device__ Partials<V> of_warps(V* at) const {
    return {at, tiles * block.warps, index * block.warps, block.warps};
  }
  template <typename V>
  __device__ Partials<V> of_all(V* at) const {
    return {at, 1, 0, 0};
  }
  __device__ Partials<A> of_block(A* at) const {
    return {at + static_cast<int64_t>(index) * sizes.H * block.warps, block.warps, 0, block.warps};
  }

  // At the start of a phase the partial results are either already reduced over all blocks, or
  // still those of this tile alone, which are then summed over the tiles at the end (`sum_tiles`).
  __device__ auto chain() const {
    const Chain<A> forward{space.similarity, space.previous,           space.gated,
                           space.shifted,    of_all(space.all_scores), of_all(space.all_powers)};
    if constexpr (Backward)
      return BackwardChain<A>{forward,
                              space.content,
                              static_cast<A*>(call.saved_weightings) + b * sizes.H * sizes.N,
                              space.d,
                              space.row_norms,
                              space.key_norms,
                              of_all(space.all_weighting_dots),
                              of_all(space.all_content_dots),
                              of_all(space.all_weighting_sums),
                              of_block(space.d_sharpening),
                              of_block(space.d_gate),
                              of_block(space.d_strength)};
    else
      return forward;
  }
  __device__ Heads<A> d_heads() const {
    return {space.vectors + static_cast<int64_t>(index) * heads.size, sizes};
  }
};

// The phases. Their names say which stages they do for one tile.

// Loads the tile and, in a backward, the gradient of the written memory. Does nothing if they are
// `here`: the block's last tile of the first phase is still in shared memory.
template <typename A, bool Backward>
__device__ void load_memories(const TileOfGrid<A, Backward>& my, bool here) {
  if (here) return;
  load_tile(my.tile, my.call.memory, my.tile_at());
  if constexpr (Backward) {
    if (my.call.d_written.data != nullptr)
      load_tile(my.d_tile, my.call.d_written, my.tile_at());
    else
      clear_tile(my.block, my.d_tile);
  }
}

template <typename A>
__device__ void load_d_reads(const TileOfGrid<A, true>& my) {
  const int reads = my.sizes.R * my.sizes.M;
  load_or_clear(my.block, my.space.d_read_vectors, my.call.d_read_vectors, my.b * reads, reads);
}

// K, the norms and the partial results of the softmax. A backward also adds up dw here, whose sums
// need the same words.
template <typename A, bool Backward>
__device__ void similarity_of_tile(const TileOfGrid<A, Backward>& my) {
  load_memories(my, false);
  my.load_heads();
  my.load_rows(my.space.previous, my.call.previous);
  if constexpr (Backward) {
    load_d_reads(my);
    my.load_rows(my.space.d, my.call.d_weightings);
  }
  __syncthreads();
  auto chain = my.chain();
  chain.scores = my.of_warps(my.space.scores);
  if constexpr (Backward) {
    chain.weighting_dots = my.of_warps(my.space.weighting_dots);
    similarity_and_read_write_backward_weightings(my.block, my.tile, my.d_tile, my.heads, my.sizes,
                                                  my.space.d_read_vectors, chain);
  } else {
    similarity(my.block, my.tile, my.heads, my.sizes, chain);
  }
}

template <typename A, bool Backward>
__device__ void content_interpolate_shift_of_tile(const TileOfGrid<A, Backward>& my) {
  my.load_scalars();
  __syncthreads();
  my.finish_heads();
  __syncthreads();
  auto chain = my.chain();
  chain.powers = my.of_warps(my.space.powers);
  if constexpr (Backward) chain.weighting_sums = my.of_warps(my.space.weighting_sums);
  content_interpolate_shift(my.block, my.tile.range(), my.heads, my.sizes, chain, false);
}

template <typename A>
__device__ void sharpen_read_write_of_tile(const TileOfGrid<A, false>& my, bool here) {
  const Sizes& sizes = my.sizes;
  const int64_t weighting = my.b * sizes.H * sizes.N;
  A* saved = static_cast<A*>(my.call.saved_weightings);
  const bool writes = my.call.written.data != nullptr;
  if (writes) load_memories(my, here);
  my.load_heads();
  __syncthreads();
  sharpen(my.block, my.tile.range(), my.heads, sizes, my.space.shifted,
          my.of_warps(my.space.powers), my.of_all(my.space.all_powers),
          [&](int head, int row, A w) {
            const int64_t at = static_cast<int64_t>(head) * sizes.N + row;
            my.space.previous[at] = w;
            store(my.call.weightings, weighting + at, w);
            if (saved != nullptr) saved[weighting + at] = w;
          });
  if (!writes) return;
  __syncthreads();
  A* reads = my.space.vectors + static_cast<int64_t>(my.index) * sizes.R * sizes.M;
  read_write<A>(my.block, my.tile, sizes, my.space.previous, my.heads, reads);
  __syncthreads();
  store_tile(my.tile, my.call.written, my.tile_at());
}

template <typename A>
__device__ void sharpen_backward_of_tile(const TileOfGrid<A, true>& my) {
  my.load_scalars();
  __syncthreads();
  sharpen_backward(my.block, my.tile.range(), my.heads, my.sizes, my.chain());
}

template <typename A>
__device__ void interpolate_shift_backward_of_tile(const TileOfGrid<A, true>& my) {
  my.load_scalars();
  __syncthreads();
  my.finish_heads();
  __syncthreads();
  BackwardChain<A> chain = my.chain();
  chain.content_dots = my.of_warps(my.space.content_dots);
  interpolate_shift_backward(my.block, my.tile.range(), my.heads, my.sizes, chain);
  shift_backward_taps(my.block, my.tile.range(), my.sizes, chain, my.d_heads().shift);
}

template <typename A>
__device__ void similarity_content_read_write_backward_of_tile(const TileOfGrid<A, true>& my,
                                                               bool here) {
  load_memories(my, here);
  my.load_heads();
  load_d_reads(my);
  my.store_rows(my.space.previous, my.call.d_previous);
  __syncthreads();
  const BackwardChain<A> chain = my.chain();
  const Heads<A> d_heads = my.d_heads();
  similarity_content_backward(my.block, my.tile.range(), my.heads, my.sizes, chain);
  __syncthreads();
  auto give = [&](int index, A d) { d_heads.key[index] = d; };
  scalars_backward(my.block, my.heads, my.sizes, chain, d_heads.shift, false, give);
  const Parts parts = my.is_step() ? Parts(my.sizes) : Parts(0, 0, my.sizes.H);
  similarity_read_write_backward<false>(my.block, my.tile, my.d_tile, my.heads, parts, my.sizes.N,
                                        my.space.d_read_vectors, chain, false, give);
  __syncthreads();
  store_tile(my.d_tile, my.call.d_memory, my.tile_at());
}

// The gradients of the parameters of a sequence's heads, from the sums over all tiles. Here the
// part of a key's gradient is subtracted that comes from its norm, and a step goes back through the
// activations.
template <typename A>
__device__ void finish_heads_backward(const TileOfGrid<A, true>& my) {
  const Block& block = my.block;
  const TiledCall& call = my.call;
  const Heads<A>& heads = my.heads;
  const Heads<A> d_heads(my.space.all_vectors, my.sizes);
  const int H = my.sizes.H, M = my.sizes.M, S = my.sizes.S;
  const int64_t b = my.b;
  my.load_heads();
  __syncthreads();
  my.finish_heads();
  __syncthreads();
  auto gradient = [&](int index) {
    const A d = d_heads.key[index];
    if (index >= H * M) return d;
    const int head = index / M;
    return d - heads.key[index] * key_norm_part(heads.strength[head], d_heads.strength[head],
                                                my.space.key_norms[head]);
  };
  if (my.is_step()) {
    for (int head = block.warp; head < H; head += block.warps) {
      A* d_taps = d_heads.shift + head * S;
      activate_backward_taps(block, heads.shift + head * S, d_taps, S,
                             [&](int tap, A d) { d_taps[tap] = d; });
    }
    __syncthreads();
    for (int p = block.thread; p < heads.size; p += block.threads) {
      const A slope = heads.activate_backward_slope(p, load<A>(call.interface, b * heads.size + p));
      store(call.d_interface, b * heads.size + p, slope * gradient(p));
    }
    return;
  }
  for (int i = block.thread; i < H * M; i += block.threads)
    store(call.d_key, b * H * M + i, gradient(i));
  store_vector(block, d_heads.strength, call.d_strength, b * H, H);
  store_vector(block, d_heads.gate, call.d_gate, b * H, H);
  store_vector(block, d_heads.shift, call.d_shift, b * H * S, H * S);
  store_vector(block, d_heads.sharpening, call.d_sharpening, b * H, H);
}

enum class Fold { scores, powers, content_dots };

// This warp's share of the partial results of a head, in the form of partial results of one head.
template <typename V>
__device__ Partials<V> share(const Block& block, const Partials<V>& partials, int head) {
  const int each = (partials.count + block.warps - 1) / block.warps;
  const int first = min(block.warp * each, partials.count);
  return {const_cast<V*>(partials.of(head)) + first, min(each, partials.count - first), 0};
}

// Reduces the partial results of one head, from all tiles, to one: each warp reduces a share of
// them, and then all warps' results are reduced once more.
template <Fold What, typename A, bool Backward>
__device__ void fold_head(const TileOfGrid<A, Backward>& my, int head) {
  __shared__ Pair<A> pairs[kTiledWarps];
  __shared__ A sums[kTiledWarps];
  const Block& block = my.block;
  const Partials<Pair<A>> of_warps{pairs, block.warps, 0};
  const Partials<A> sums_of_warps{sums, block.warps, 0};
  auto fold_sums = [&](A* from, A* to) {
    const A sum = fold_sum(block, share(block, my.of_warps(from), head), 0);
    if (block.lane == 0) sums[block.warp] = sum;
    __syncthreads();
    const A all = fold_sum(block, sums_of_warps, 0);
    if (block.thread == 0) to[head] = all;
  };
  if constexpr (What == Fold::scores) {
    const Pair<A> own = fold_softmax(block, share(block, my.of_warps(my.space.scores), head), 0);
    if (block.lane == 0) pairs[block.warp] = own;
    __syncthreads();
    const Pair<A> all = fold_softmax(block, of_warps, 0);
    if (block.thread == 0) my.space.all_scores[head] = all;
  } else if constexpr (What == Fold::powers) {
    my.load_scalars();
    __syncthreads();
    const A sharpening = my.heads.sharpening[head];
    const Pair<A> own =
        fold_powers(block, share(block, my.of_warps(my.space.powers), head), 0, sharpening);
    if (block.lane == 0) pairs[block.warp] = own;
    __syncthreads();
    const Pair<A> all = fold_powers(block, of_warps, 0, sharpening);
    if (block.thread == 0) my.space.all_powers[head] = all;
    if constexpr (Backward) {
      fold_sums(my.space.weighting_dots, my.space.all_weighting_dots);
      __syncthreads();
      fold_sums(my.space.weighting_sums, my.space.all_weighting_sums);
    }
  } else {
    fold_sums(my.space.content_dots, my.space.all_content_dots);
  }
}

// The sum over all tiles of the read vectors or, in a backward, of the gradients of the parameters:
// of 32 elements, the part-th. A lane has an element, and the warps share the tiles.
template <typename A, bool Backward>
__device__ void sum_tiles(const TileOfGrid<A, Backward>& my, int width, int part) {
  __shared__ A sums[kTiledWarps][kWarp];
  const Block& block = my.block;
  const int column = part * kWarp + block.lane;
  A sum = 0;
  if (column < width)
    for (int tile = block.warp; tile < my.tiles; tile += block.warps)
      sum += my.space.vectors[static_cast<int64_t>(tile) * width + column];
  sums[block.warp][block.lane] = sum;
  __syncthreads();
  if (block.warp != 0 || column >= width) return;
  sum = 0;
  for (int warp = 0; warp < block.warps; ++warp) sum += sums[warp][block.lane];
  if constexpr (Backward)
    my.space.all_vectors[column] = sum;
  else
    store(my.call.read_vectors, my.b * width + column, sum);
}

// All phases, with a barrier of the grid between any two of them.
template <typename A, bool Backward>
__global__ void __launch_bounds__(kMostThreads<A>, 1) tiled_kernel(
    const __grid_constant__ TiledCall call, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  using My = TileOfGrid<A, Backward>;
  const auto grid = cooperative_groups::this_grid();
  const Sizes sizes(call.sizes);
  const int tiles = tiles_of(sizes, plan.tile_rows);
  const int width = Backward ? sizes.interface_size() : sizes.R * sizes.M;
  // f(sequence, number, here) for this block's share of the numbers 0 … count − 1 of all sequences.
  // With `from_last` it goes backwards, and is told of the first call that its tile is `here`.
  auto each = [&](int count, bool from_last, auto f) {
    const int64_t all = count * static_cast<int64_t>(call.sizes.batch);
    const int64_t mine = (all - blockIdx.x + gridDim.x - 1) / gridDim.x;
#pragma unroll 1
    for (int64_t i = 0; i < mine; ++i) {
      const int64_t at = blockIdx.x + (from_last ? mine - 1 - i : i) * gridDim.x;
      f(at / count, static_cast<int>(at % count), from_last && i == 0);
      __syncthreads();
    }
  };
  auto each_tile = [&](auto f) {
    each(tiles, false, [&](int64_t b, int tile, bool) { f(My(call, plan, shared, b, tile)); });
  };
  auto each_tile_from_last = [&](auto f) {
    each(tiles, true,
         [&](int64_t b, int tile, bool here) { f(My(call, plan, shared, b, tile), here); });
  };
  auto each_of_sequence = [&](int count, auto f) {
    each(count, false,
         [&](int64_t b, int number, bool) { f(My(call, plan, shared, b, 0), number); });
  };

  each_tile([](const My& my) { similarity_of_tile(my); });
  grid.sync();
  each_of_sequence(sizes.H, [](const My& my, int head) { fold_head<Fold::scores>(my, head); });
  grid.sync();
  each_tile([](const My& my) { content_interpolate_shift_of_tile(my); });
  grid.sync();
  each_of_sequence(sizes.H, [](const My& my, int head) { fold_head<Fold::powers>(my, head); });
  grid.sync();
  if constexpr (Backward) {
    each_tile([](const My& my) { sharpen_backward_of_tile(my); });
    grid.sync();
    each_tile([](const My& my) { interpolate_shift_backward_of_tile(my); });
    grid.sync();
    each_of_sequence(sizes.H,
                     [](const My& my, int head) { fold_head<Fold::content_dots>(my, head); });
    grid.sync();
    each_tile_from_last(
        [](const My& my, bool here) { similarity_content_read_write_backward_of_tile(my, here); });
  } else {
    each_tile_from_last([](const My& my, bool here) { sharpen_read_write_of_tile(my, here); });
    if (call.written.data == nullptr) return;
  }
  grid.sync();
  each_of_sequence((width + kWarp - 1) / kWarp,
                   [&](const My& my, int part) { sum_tiles(my, width, part); });
  if constexpr (Backward) {
    grid.sync();
    each_of_sequence(1, [](const My& my, int) { finish_heads_backward(my); });
  }
}

template <bool Backward>
int launch_tiles(const TiledCall& call, const NtmPlan& plan, void* stream) {
  if (plan.why_not[0] != 0) return cudaErrorInvalidConfiguration;
  if (call.sizes.batch == 0) return cudaSuccess;
  const auto kernel = call.memory.dtype == NTM_FLOAT64 ? tiled_kernel<double, Backward>
                                                       : tiled_kernel<float, Backward>;
  const int64_t tiles = tiles_of(Sizes(call.sizes), plan.tile_rows);
  return launch_together(kernel, call, plan, tiles * call.sizes.batch, stream);
}

}  // namespace

int tiled_forward(const TiledCall& call, const NtmPlan& plan, void* stream) {
  return launch_tiles<false>(call, plan, stream);
}

int tiled_backward(const TiledCall& call, const NtmPlan& plan, void* stream) {
  return launch_tiles<true>(call, plan, stream);
}

}  // namespace ntm
