// The interface of tiled.cu: `address` and `step` on memories that are too large for one block.
#pragma once
#include "launch.cuh"
#include "on_chip.cuh"

namespace ntm {

// The arrays of a `step` or of an `address`. An `address` has no read vectors, no written memory
// and no interface: its parameters come activated, an array for each kind, and all of its heads
// count as read heads.
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
// An upper bound of the kernel's static shared memory, which a plan has to leave free.
constexpr int kTiledStatic = 3 * 1024;

__host__ __device__ inline int tiles_of(const Sizes& sizes, int tile_rows) {
  return (sizes.N + tile_rows - 1) / tile_rows;
}

template <typename A>
struct TiledSpace {
  // In shared memory.
  A *tile, *d_tile, *parameters, *d_read_vectors;
  // In the workspace, for each sequence.
  A *previous, *similarity, *shifted, *gated, *content, *d;
  A *row_norms, *key_norms;
  // Partial results of each warp of each tile, [H, tiles, warps], and reduced to one, [H].
  Pair<A>*scores, *powers, *all_scores, *all_powers;
  A *weighting_dots, *content_dots, *weighting_sums;
  A *all_weighting_dots, *all_content_dots, *all_weighting_sums;
  A *d_sharpening, *d_gate, *d_strength;  // [tiles, H, warps]
  A* vectors;      // [tiles, P]: each tile's gradients of the parameters; forward its read vectors
  A* all_vectors;  // [P]: their sums over the tiles

  template <typename Pieces>
  __host__ __device__ TiledSpace(Pieces& pieces, const Sizes& sizes, int tile_rows, int warps,
                                 bool backward) {
    const int64_t tile_size = static_cast<int64_t>(tile_rows) * Tile<A>::stride_of(sizes.M);
    const int64_t weighting = static_cast<int64_t>(sizes.H) * sizes.N;
    const int64_t tiles = tiles_of(sizes, tile_rows), partials = tiles * sizes.H * warps;
    const int64_t of_backward = backward ? 1 : 0;
    tile = pieces.template take<A>(tile_size);
    d_tile = pieces.template take<A>(of_backward * tile_size);
    parameters = pieces.template take<A>(sizes.interface_size());
    d_read_vectors = pieces.template take<A>(of_backward * sizes.R * sizes.M);
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
    weighting_dots = pieces.template take_weighting<A>(of_backward * partials);
    content_dots = pieces.template take_weighting<A>(of_backward * partials);
    weighting_sums = pieces.template take_weighting<A>(of_backward * partials);
    all_weighting_dots = pieces.template take_weighting<A>(of_backward * sizes.H);
    all_content_dots = pieces.template take_weighting<A>(of_backward * sizes.H);
    all_weighting_sums = pieces.template take_weighting<A>(of_backward * sizes.H);
    d_sharpening = pieces.template take_weighting<A>(of_backward * partials);
    d_gate = pieces.template take_weighting<A>(of_backward * partials);
    d_strength = pieces.template take_weighting<A>(of_backward * partials);
    const int64_t width = backward ? sizes.interface_size() : sizes.R * sizes.M;
    vectors = pieces.template take_weighting<A>(tiles * width);
    all_vectors = pieces.template take_weighting<A>(of_backward * width);
  }
};

int tiled_forward(const TiledCall& call, const NtmPlan& plan, void* stream);
int tiled_backward(const TiledCall& call, const NtmPlan& plan, void* stream);

}  // namespace ntm
