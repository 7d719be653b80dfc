// What both directions of `sequence` share: shared memory, and the ways to a step's memory.
#pragma once
#include "controller.cuh"
#include "on_chip.cuh"

namespace ntm {

// Width of what the controller gets from the step before: the read vectors, and h of an LSTM.
__host__ __device__ inline int recurrent_width(const Sizes& sizes) {
  return sizes.R * sizes.M + (sizes.is_lstm ? sizes.C : 0);
}

// The part of the recurrent weight that a warp holds in registers, as far as 128 of them allow:
// units of four rows, and columns per lane. The rest of the paper's weights fits beside its memory
// in the shared memory of sm_80.
struct Held {
  int units, columns;
};
constexpr Held kHeldForward{3, 4}, kHeldBackward{1, 13};

// Columns of the weights as the kernels of a direction use them (transposed backward).
__host__ __device__ inline int recurrent_columns(const Sizes& sizes, bool backward) {
  return backward ? (sizes.is_lstm ? 4 : 1) * sizes.C : recurrent_width(sizes);
}
__host__ __device__ inline int interface_columns(const Sizes& sizes, bool backward) {
  return backward ? sizes.interface_size() : sizes.C;
}

// The parts of the controller's weights that live in shared memory.
template <typename A>
struct NearWeights {
  A *near_weights, *near_interface;  // [near_units, 4, columns]
  template <typename Pieces>
  __host__ __device__ NearWeights(Pieces& pieces, const Sizes& sizes, bool backward) {
    near_weights = pieces.template take<A>(static_cast<int64_t>(pieces.plan().near_units) *
                                           kRowsAtOnce * recurrent_columns(sizes, backward));
    near_interface =
        pieces.template take<A>(static_cast<int64_t>(pieces.plan().near_interface_units) *
                                kRowsAtOnce * interface_columns(sizes, backward));
  }
};

template <typename A>
struct SequenceForwardSpace : ForwardSpace<A>, NearWeights<A> {
  A *recurrent, *next_recurrent;  // [R*M + C]: the read vectors, h
  A* cell;                        // [C]

  template <typename Pieces>
  __host__ __device__ SequenceForwardSpace(Pieces& pieces, const Sizes& sizes, int tile_rows,
                                           int warps)
      : ForwardSpace<A>(pieces, sizes, tile_rows, warps), NearWeights<A>(pieces, sizes, false) {
    recurrent = pieces.template take<A>(sizes.R * sizes.M + sizes.C);
    next_recurrent = pieces.template take<A>(sizes.R * sizes.M + sizes.C);
    cell = pieces.template take<A>(sizes.C);
  }
};

template <typename A>
struct SequenceBackwardSpace : BackwardSpace<A>, NearWeights<A> {
  A* d_recurrent;  // [R*M + C]
  A* d_cell;       // [C]
  A* d_gates;      // [4C], of a feed-forward controller [C]
  A* d_vector;     // [P], of the tiles so far
  A* d_raw;        // [P]

  template <typename Pieces>
  __host__ __device__ SequenceBackwardSpace(Pieces& pieces, const Sizes& sizes, int tile_rows,
                                            int warps)
      : BackwardSpace<A>(pieces, sizes, tile_rows, warps), NearWeights<A>(pieces, sizes, true) {
    d_recurrent = pieces.template take<A>(sizes.R * sizes.M + sizes.C);
    d_cell = pieces.template take<A>(sizes.C);
    d_gates = pieces.template take<A>(4 * sizes.C);
    d_vector = pieces.template take<A>(sizes.interface_size());
    d_raw = pieces.template take<A>(sizes.interface_size());
  }
};

// Steps of this block's sequence; what is given is not trusted, for nobody has looked at it.
__device__ inline int length_of(const NtmSequenceParams& params, const Sizes& sizes) {
  if (params.lengths == nullptr) return sizes.T;
  const int64_t length = static_cast<const int64_t*>(params.lengths)[blockIdx.x];
  return static_cast<int>(max(int64_t(0), min(length, int64_t(sizes.T))));
}

// f(tile) for each tile of the memory.
template <typename A, typename F>
__device__ void each_tile(A* at, const Sizes& sizes, int tile_rows, F f) {
#pragma unroll 1
  for (int first = 0; first < sizes.N; first += tile_rows)
    f(Tile<A>{at, first, min(tile_rows, sizes.N - first), sizes.M, first == 0});
}

}  // namespace ntm
