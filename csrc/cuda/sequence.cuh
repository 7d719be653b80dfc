// What both directions of `sequence` share: the pieces of shared memory, and a block's view of its
// sequence.
#pragma once
#include "controller.cuh"
#include "on_chip.cuh"
#include "plan.cuh"

namespace ntm {

// Of the interface weight; a backward has it transposed.
__host__ __device__ inline Shape interface_shape(const Sizes& sizes, bool backward) {
  const Shape shape{sizes.interface_size(), sizes.C};
  return backward ? shape.transposed() : shape;
}

// The part of the interface weight that is in shared memory, [near_interface_units, 4, columns], or
// with kHoldRows, where it is the whole weight, [fours of columns, rows, 4].
template <typename A, typename Pieces>
__host__ __device__ A* take_near_interface(Pieces& pieces, const Sizes& sizes, bool backward) {
  const Shape shape = interface_shape(sizes, backward);
  const bool by_rows = pieces.plan().weights_held == kHoldRows;
  const int64_t by_units =
      int64_t(kRowsAtOnce) * pieces.plan().near_interface_units * shape.columns;
  return pieces.template take<A>(by_rows ? InterfaceRows<A>::near_size(shape) : by_units);
}

template <typename A>
struct SequenceForwardSpace : ForwardSpace<A> {
  ControllerSpace<A> controller;
  A* near_interface;

  template <typename Pieces>
  __host__ __device__ SequenceForwardSpace(Pieces& pieces, const Sizes& sizes, int tile_rows,
                                           int warps)
      : ForwardSpace<A>(pieces, sizes, tile_rows, warps),
        controller(pieces, sizes),
        near_interface(take_near_interface<A>(pieces, sizes, false)) {}
};

template <typename A>
struct SequenceBackwardSpace : BackwardSpace<A> {
  ControllerBackwardSpace<A> controller;
  A* near_interface;
  A* d_parameters;  // [P], of the tiles so far
  A* d_interface;   // [P], before the activations

  template <typename Pieces>
  __host__ __device__ SequenceBackwardSpace(Pieces& pieces, const Sizes& sizes, int tile_rows,
                                            int warps)
      : BackwardSpace<A>(pieces, sizes, tile_rows, warps),
        controller(pieces, sizes),
        near_interface(take_near_interface<A>(pieces, sizes, true)) {
    d_parameters = pieces.template take<A>(sizes.interface_size());
    d_interface = pieces.template take<A>(sizes.interface_size());
  }
};

// A block's view of the sequence that it works on, which is the b-th of the batch.
//
// Its memory is `resident` if it stays in shared memory for all steps. Otherwise it has its place
// in global memory and passes through shared memory in tiles of `plan.tile_rows` rows.
// Only beside a resident memory are weights `Held` in registers.
template <typename A, int Held, typename Space>
struct SequenceOfBlock {
  const NtmSequenceParams& params;
  const NtmPlan& plan;
  const Sizes sizes;
  const Space space;
  const Heads<A> heads;
  const int64_t b, batch;
  const int length;

  __device__ SequenceOfBlock(const NtmSequenceParams& given, const NtmPlan& planned,
                             PlacedPieces pieces)
      : params(given),
        plan(planned),
        sizes(params.sizes),
        space(pieces, sizes, plan.tile_rows, blockDim.x / kWarp),
        heads(space.parameters, sizes),
        b(blockIdx.x),
        batch(gridDim.x),
        length(length_of()) {}

  // The place of step t in [T, B].
  __device__ int64_t at(int64_t t) const { return t * batch + b; }
  __device__ bool resident() const { return Held != kHoldNothing || plan.tile_rows >= sizes.N; }

  // Where a tile lies in an array [B, N, M].
  __device__ int64_t offset_of(const Tile<A>& tile) const {
    return b * sizes.memory_elements() + static_cast<int64_t>(tile.first) * sizes.M;
  }
  __device__ Tile<A> whole(A* at) const { return {at, 0, sizes.N, sizes.M, true}; }
  // f(tile) for each tile of the memory, which lie in shared memory one after another.
  template <typename F>
  __device__ void each_tile(A* at, F f) const {
#pragma unroll 1
    for (int first = 0; first < sizes.N; first += plan.tile_rows)
      f(Tile<A>{at, first, min(plan.tile_rows, sizes.N - first), sizes.M, first == 0});
  }

 private:
  // Lengths are clamped: they come from a tensor whose values nobody has checked.
  __device__ int length_of() const {
    if (params.lengths == nullptr) return sizes.T;
    const int64_t given = static_cast<const int64_t*>(params.lengths)[blockIdx.x];
    return static_cast<int>(max(int64_t(0), min(given, int64_t(sizes.T))));
  }
};

// Launches the kernel of one direction, `Of<A, Held, Deep>::kernel()`: for float or double, for one
// layer or several, and for the way in which the plan holds the weights.
template <template <typename, int, bool> class Of>
int dispatch_sequence(const NtmSequenceParams* params, const NtmPlan& plan, void* stream,
                      int64_t memory_dtype) {
  const bool deep = params->sizes.num_layers > 1;
  const auto in_float = deep                             ? Of<float, kHoldNothing, true>::kernel()
                        : plan.weights_held == kHoldRows ? Of<float, kHoldRows, false>::kernel()
                        : plan.weights_held == kHoldUnits
                            ? Of<float, kHoldUnits, false>::kernel()
                            : Of<float, kHoldNothing, false>::kernel();
  const auto in_double =
      deep ? Of<double, kHoldNothing, true>::kernel() : Of<double, kHoldNothing, false>::kernel();
  return dispatch(params, plan, stream, in_float, in_double, memory_dtype);
}

}  // namespace ntm
