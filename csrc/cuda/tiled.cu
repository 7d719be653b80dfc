#include "tiled.cuh"

namespace ntm {

namespace {

// What every kernel here starts from: grid (tiles, sequences).
template <typename A, bool Backward>
struct TileOfGrid {
  const TiledCall& call;
  Block block;
  Sizes sizes;
  int64_t b;
  int warps;  // of a block of the phases, whatever this block has
  int index, tiles;
  Tile<A> tile, d_tile;
  TiledSpace<A> space;
  Heads<A> heads;

  __device__ TileOfGrid(const TiledCall& tiled, const NtmPlan& plan, PlacedPieces pieces)
      : call(tiled),
        sizes(tiled.sizes),
        b(blockIdx.y),
        warps(plan.threads / kWarp),
        index(blockIdx.x),
        tiles(tiles_of(sizes, plan.tile_rows)),
        space(pieces, sizes, plan.tile_rows, warps, Backward),
        heads(space.vector, sizes) {
    const int first = index * plan.tile_rows;
    tile = {space.tile, first, min(plan.tile_rows, sizes.N - first), sizes.M, true};
    d_tile = tile;
    d_tile.at = space.d_tile;
  }

  __device__ int64_t tile_at() const {
    return (b * sizes.N + tile.first) * static_cast<int64_t>(sizes.M);
  }

  __device__ void load_heads() const {
    const int H = sizes.H, M = sizes.M, S = sizes.S;
    if (call.interface.data != nullptr) {
      for (int p = block.thread; p < heads.size; p += block.threads)
        heads.key[p] = heads.activate(p, load<A>(call.interface, b * heads.size + p));
      return;
    }
    load_vector(block, heads.key, call.key, b * H * M, H * M);
    load_vector(block, heads.strength, call.strength, b * H, H);
    load_vector(block, heads.gate, call.gate, b * H, H);
    load_vector(block, heads.shift, call.shift, b * H * S, H * S);
    load_vector(block, heads.sharpening, call.sharpening, b * H, H);
  }

  // After load_heads and a barrier, before another one.
  __device__ void finish_heads() const {
    if (call.interface.data != nullptr) activate_shift(block, heads, sizes);
  }

  // The tile's rows of a weighting between an array and the workspace; what is not given is 0.
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
    return {at, tiles * warps, index * warps, warps};
  }
  template <typename V>
  __device__ Partials<V> of_all(V* at) const {
    return {at, 1, 0, 0};
  }
  __device__ Partials<A> of_block(A* at) const {
    return {at + static_cast<int64_t>(index) * sizes.H * warps, warps, 0, warps};
  }

  // Partial results that a phase finds are reduced, or its own block's.
  __device__ auto chain() const {
    const Chain<A> forward{space.similarity, space.previous,           space.gated,
                           space.shifted,    of_all(space.all_scores), of_all(space.all_powers)};
    if constexpr (Backward)
      return BackwardChain<A>{forward,
                              space.content,
                              static_cast<A*>(call.saved_weights) + b * sizes.H * sizes.N,
                              space.d,
                              space.row_norms,
                              space.key_norms,
                              of_all(space.all_weight_dots),
                              of_all(space.all_content_dots),
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

#define NTM_TILED_KERNEL(name)                                \
  template <typename A, bool Backward>                        \
  __global__ void __launch_bounds__(kMostThreads<A>, 1) name( \
      const __grid_constant__ TiledCall call, const __grid_constant__ NtmPlan plan)

#define NTM_TILE_OF_GRID                                                              \
  extern __shared__ __align__(16) unsigned char shared[];                             \
  const TileOfGrid<A, Backward> my(                                                   \
      call, plan, PlacedPieces(plan, shared, call.workspace, blockIdx.y, gridDim.y)); \
  const Block& block = my.block;                                                      \
  const Sizes& sizes = my.sizes

// K, norms and the scores' pairs; backward also dw.
NTM_TILED_KERNEL(content_tiles) {
  NTM_TILE_OF_GRID;
  load_tile(my.tile, call.memory, my.tile_at());
  my.load_heads();
  my.load_rows(my.space.previous, call.previous);
  if constexpr (Backward) {
    if (call.d_written.data != nullptr)
      load_tile(my.d_tile, call.d_written, my.tile_at());
    else
      clear_tile(block, my.d_tile);
    const int reads = sizes.R * sizes.M;
    load_or_clear(block, my.space.d_reads, call.d_read_vectors, my.b * reads, reads);
    my.load_rows(my.space.d, call.d_weights);
  }
  __syncthreads();
  auto chain = my.chain();
  chain.scores = my.of_warps(my.space.scores);
  if constexpr (Backward) {
    chain.weight_dots = my.of_warps(my.space.weight_dots);
    rows_backward(block, my.tile, my.d_tile, my.heads, sizes, my.space.d_reads, chain);
  } else {
    content(block, my.tile, my.heads, sizes, chain);
  }
}

NTM_TILED_KERNEL(shift_tiles) {
  NTM_TILE_OF_GRID;
  my.load_heads();
  __syncthreads();
  my.finish_heads();
  __syncthreads();
  auto chain = my.chain();
  chain.powers = my.of_warps(my.space.powers);
  shift(block, my.tile.range(), my.heads, sizes, chain, false);
}

NTM_TILED_KERNEL(write_tiles) {
  NTM_TILE_OF_GRID;
  const int64_t weighting = my.b * sizes.H * sizes.N;
  A* saved = static_cast<A*>(call.saved_weights);
  const bool writes = call.written.data != nullptr;
  if (writes) load_tile(my.tile, call.memory, my.tile_at());
  my.load_heads();
  __syncthreads();
  sharpen(block, my.tile.range(), my.heads, sizes, my.space.shifted, my.of_warps(my.space.powers),
          my.of_all(my.space.all_powers), [&](int head, int row, A w) {
            const int64_t at = static_cast<int64_t>(head) * sizes.N + row;
            my.space.previous[at] = w;
            store(call.weights, weighting + at, w);
            if (saved != nullptr) saved[weighting + at] = w;
          });
  if (!writes) return;
  __syncthreads();
  A* reads = my.space.vectors + static_cast<int64_t>(my.index) * sizes.R * sizes.M;
  const A* writing = my.space.previous + static_cast<int64_t>(sizes.R) * sizes.N;
#pragma unroll 1
  for (int column = block.warp; column < sizes.M; column += block.warps) {
    read(block, my.tile, column, my.space.previous, sizes.R, sizes.N, reads);
    write(block, my.tile, column, writing, sizes.W, sizes.N, my.heads.erase, my.heads.add);
  }
  __syncthreads();
  store_tile(my.tile, call.written, my.tile_at());
}

NTM_TILED_KERNEL(sharpen_backward_tiles) {
  NTM_TILE_OF_GRID;
  my.load_heads();
  __syncthreads();
  sharpen_backward(block, my.tile.range(), my.heads, sizes, my.chain());
}

NTM_TILED_KERNEL(shift_backward_tiles) {
  NTM_TILE_OF_GRID;
  my.load_heads();
  __syncthreads();
  my.finish_heads();
  __syncthreads();
  BackwardChain<A> chain = my.chain();
  chain.content_dots = my.of_warps(my.space.content_dots);
  shift_backward(block, my.tile.range(), my.heads, sizes, chain);
  shift_backward_taps(block, my.tile.range(), sizes, chain, my.d_heads().shift);
}

NTM_TILED_KERNEL(memory_backward_tiles) {
  NTM_TILE_OF_GRID;
  load_tile(my.tile, call.memory, my.tile_at());
  if (call.d_written.data != nullptr)
    load_tile(my.d_tile, call.d_written, my.tile_at());
  else
    clear_tile(block, my.d_tile);
  my.load_heads();
  const int reads = sizes.R * sizes.M;
  load_or_clear(block, my.space.d_reads, call.d_read_vectors, my.b * reads, reads);
  my.store_rows(my.space.previous, call.d_previous);
  __syncthreads();
  const BackwardChain<A> chain = my.chain();
  const Heads<A> d_heads = my.d_heads();
  content_backward(block, my.tile.range(), my.heads, sizes, chain);
  __syncthreads();
  auto give = [&](int index, A d) { d_heads.key[index] = d; };
  scalars_backward(block, my.heads, sizes, chain, d_heads.shift, false, give);
  columns_backward(block, my.tile, my.d_tile, my.heads, Parts(sizes), sizes.N, my.space.d_reads,
                   chain, false, give);
  __syncthreads();
  store_tile(my.d_tile, call.d_memory, my.tile_at());
}

// Grid (1, sequences): the gradients of the parameters from the sums over all tiles.
NTM_TILED_KERNEL(finish_heads_backward) {
  NTM_TILE_OF_GRID;
  const Heads<A>& heads = my.heads;
  const Heads<A> d_heads(my.space.all_vectors, sizes);
  const int H = sizes.H, M = sizes.M, S = sizes.S;
  const int64_t b = my.b;
  my.load_heads();
  __syncthreads();
  my.finish_heads();
  __syncthreads();
  auto gradient = [&](int index) {
    const A d = d_heads.key[index];
    if (index >= H * M) return d;
    const int head = index / M;
    return d - heads.key[index] *
                   key_pull(heads.strength[head], d_heads.strength[head], my.space.key_norms[head]);
  };
  if (call.interface.data != nullptr) {
    for (int head = block.warp; head < H; head += block.warps) {
      A* d_taps = d_heads.shift + head * S;
      taps_backward(block, heads.shift + head * S, d_taps, S,
                    [&](int tap, A d) { d_taps[tap] = d; });
    }
    __syncthreads();
    for (int p = block.thread; p < heads.size; p += block.threads) {
      const A slope = heads.slope(p, load<A>(call.interface, b * heads.size + p));
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

// This warp's share of a head's partial results, as partial results of a single head.
template <typename V>
__device__ Partials<V> share(const Block& block, const Partials<V>& partials, int head) {
  const int each = (partials.count + block.warps - 1) / block.warps;
  const int first = min(block.warp * each, partials.count);
  return {const_cast<V*>(partials.of(head)) + first, min(each, partials.count - first), 0};
}

// Grid (heads, sequences): all partial results of a head as one.
template <typename A, bool Backward, Fold What>
__global__ void __launch_bounds__(kMostThreads<A>, 1) fold_tiles(
    const __grid_constant__ TiledCall call, const __grid_constant__ NtmPlan plan) {
  NTM_TILE_OF_GRID;
  __shared__ Pair<A> pairs[kWarp];
  __shared__ A sums[kWarp];
  const int head = blockIdx.x;
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
    my.load_heads();
    __syncthreads();
    const A sharpening = my.heads.sharpening[head];
    const Pair<A> own =
        fold_powers(block, share(block, my.of_warps(my.space.powers), head), 0, sharpening);
    if (block.lane == 0) pairs[block.warp] = own;
    __syncthreads();
    const Pair<A> all = fold_powers(block, of_warps, 0, sharpening);
    if (block.thread == 0) my.space.all_powers[head] = all;
    if constexpr (Backward) fold_sums(my.space.weight_dots, my.space.all_weight_dots);
  } else {
    fold_sums(my.space.content_dots, my.space.all_content_dots);
  }
}

// Grid (columns / 32, sequences): Σ over tiles of the vectors, to the read vectors or for d_heads.
NTM_TILED_KERNEL(sum_tiles) {
  NTM_TILE_OF_GRID;
  __shared__ A sums[kWarp][kWarp];
  const int width = Backward ? my.heads.size : sizes.R * sizes.M;
  const int column = blockIdx.x * kWarp + block.lane;
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
    store(call.read_vectors, my.b * width + column, sum);
}

// Launches one after another until one fails.
class Launches {
 public:
  Launches(const TiledCall& call, const NtmPlan& plan, void* stream)
      : call_(call), plan_(plan), stream_(stream) {}
  Launches& operator()(Kernel<TiledCall> kernel, int width) {
    if (error_ == cudaSuccess)
      error_ = launch(kernel, call_, plan_, dim3(width, call_.sizes.batch), stream_);
    return *this;
  }
  cudaError_t error() const { return error_; }

 private:
  const TiledCall& call_;
  const NtmPlan& plan_;
  void* stream_;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace

template <typename A>
int tiled_forward(const TiledCall& call, const NtmPlan& plan, void* stream) {
  if (call.sizes.batch == 0) return cudaSuccess;
  const Sizes sizes(call.sizes);
  const int tiles = tiles_of(sizes, plan.tile_rows);
  Launches launches(call, plan, stream);
  launches(content_tiles<A, false>, tiles)(fold_tiles<A, false, Fold::scores>, sizes.H);
  launches(shift_tiles<A, false>, tiles)(fold_tiles<A, false, Fold::powers>, sizes.H);
  launches(write_tiles<A, false>, tiles);
  if (call.written.data != nullptr)
    launches(sum_tiles<A, false>, (sizes.R * sizes.M + kWarp - 1) / kWarp);
  return launches.error();
}

template <typename A>
int tiled_backward(const TiledCall& call, const NtmPlan& plan, void* stream) {
  if (call.sizes.batch == 0) return cudaSuccess;
  const Sizes sizes(call.sizes);
  const int tiles = tiles_of(sizes, plan.tile_rows);
  Launches launches(call, plan, stream);
  launches(content_tiles<A, true>, tiles)(fold_tiles<A, true, Fold::scores>, sizes.H);
  launches(shift_tiles<A, true>, tiles)(fold_tiles<A, true, Fold::powers>, sizes.H);
  launches(sharpen_backward_tiles<A, true>, tiles)(shift_backward_tiles<A, true>, tiles);
  launches(fold_tiles<A, true, Fold::content_dots>, sizes.H);
  launches(memory_backward_tiles<A, true>, tiles);
  launches(sum_tiles<A, true>, (sizes.interface_size() + kWarp - 1) / kWarp);
  launches(finish_heads_backward<A, true>, 1);
  return launches.error();
}

template int tiled_forward<float>(const TiledCall&, const NtmPlan&, void*);
template int tiled_forward<double>(const TiledCall&, const NtmPlan&, void*);
template int tiled_backward<float>(const TiledCall&, const NtmPlan&, void*);
template int tiled_backward<double>(const TiledCall&, const NtmPlan&, void*);

}  // namespace ntm
