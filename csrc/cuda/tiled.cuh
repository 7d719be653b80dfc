// `address` and `step` on memories too large for one block: one launch whose blocks, all on the
// device together, go phase by phase through the tiles of all sequences. What a block knows of a
// sum goes through the workspace.
#pragma once
#include "launch.cuh"
#include "on_chip.cuh"

namespace ntm {

// A step, or an addressing: then there are neither read vectors nor a written memory, all heads
// count as read heads, and the parameters come activated, each in an array of its own.
struct TiledCall {
  NtmSizes sizes;
  NtmArray memory, previous, weightings, read_vectors, written;
  NtmArray interface, key, strength, gate, shift, sharpening;
  NtmArray d_weightings, d_read_vectors, d_written, d_memory, d_previous;
  NtmArray d_interface, d_key, d_strength, d_gate, d_shift, d_sharpening;
  void* saved_weightings;
  void* workspace;
};

constexpr int kTiledThreads = 256, kTiledWarps = kTiledThreads / kWarp;
// Static shared memory of the kernel, at most.
constexpr int kTiledStatic = 3 * 1024;

__host__ __device__ inline int tiles_of(const Sizes& sizes, int tile_rows) {
  return (sizes.N + tile_rows - 1) / tile_rows;
}

template <typename A>
struct TiledSpace {
  // Shared memory.
  A *tile, *d_tile, *vector, *d_reads;
  // Workspace of one sequence.
  A *previous, *similarity, *shifted, *gated, *content, *d;
  A *row_norms, *key_norms;
  Pair<A>*scores, *powers, *all_scores, *all_powers;  // of every warp; of all
  A *weight_dots, *content_dots, *all_weight_dots, *all_content_dots;
  A *d_sharpening, *d_gate, *d_strength;  // [tiles, H, warps]
  A* vectors;                             // [tiles, P]: what each tile gives to d_heads; to reads
  A* all_vectors;                         // [P]

  template <typename Pieces>
  __host__ __device__ TiledSpace(Pieces& pieces, const Sizes& sizes, int tile_rows, int warps,
                                 bool backward) {
    const int64_t tile_size = static_cast<int64_t>(tile_rows) * Tile<A>::stride_of(sizes.M);
    const int64_t weighting = static_cast<int64_t>(sizes.H) * sizes.N;
    const int64_t tiles = tiles_of(sizes, tile_rows), partials = tiles * sizes.H * warps;
    const int64_t of_backward = backward ? 1 : 0;
    tile = pieces.template take<A>(tile_size);
    d_tile = pieces.template take<A>(of_backward * tile_size);
    vector = pieces.template take<A>(sizes.interface_size());
    d_reads = pieces.template take<A>(of_backward * sizes.R * sizes.M);
    previous = pieces.template take_weighting<A>(weighting);
    similarity = pieces.template take_weighting<A>(weighting);
    shifted = pieces.template take_weighting<A>(weighting);
    gated = pieces.template take_weighting<A>(of_backward * weighting);
    content = pieces.template take_weighting<A>(of_backward * weighting);
    d = pieces.template take_weighting<A>(of_backward * weighting);
    row_norms = pieces.template take_weighting<A>(of_backward * sizes.N);
    key_norms = pieces.template take_weighting<A>(of_backward * sizes.H);
    scores = pieces.template take_weighting<Pair<A>>(partials);
    powers = pieces.template take_weighting<Pair<A>>(partials);
    all_scores = pieces.template take_weighting<Pair<A>>(sizes.H);
    all_powers = pieces.template take_weighting<Pair<A>>(sizes.H);
    weight_dots = pieces.template take_weighting<A>(of_backward * partials);
    content_dots = pieces.template take_weighting<A>(of_backward * partials);
    all_weight_dots = pieces.template take_weighting<A>(of_backward * sizes.H);
    all_content_dots = pieces.template take_weighting<A>(of_backward * sizes.H);
    d_sharpening = pieces.template take_weighting<A>(of_backward * partials);
    d_gate = pieces.template take_weighting<A>(of_backward * partials);
    d_strength = pieces.template take_weighting<A>(of_backward * partials);
    const int64_t width = backward ? sizes.interface_size() : sizes.R * sizes.M;
    vectors = pieces.template take_weighting<A>(tiles * width);
    all_vectors = pieces.template take_weighting<A>(of_backward * width);
  }
};

template <typename A>
int tiled_forward(const TiledCall& call, const NtmPlan& plan, void* stream);
template <typename A>
int tiled_backward(const TiledCall& call, const NtmPlan& plan, void* stream);

}  // namespace ntm
