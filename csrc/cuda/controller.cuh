// The controller's matrix-vector products and the LSTM, inside a sequence.
#pragma once
#include "block.cuh"

namespace ntm {

constexpr int kRowsAtOnce = 4;

// W x, four rows to a warp with its lanes along the columns: f(unit, four sums), in every lane.
// Row j of a unit is row `unit * unit_stride + j * row_stride` of weight [rows, columns].
template <typename A, typename F>
__device__ void matvec(const Block& block, const A* weight, int rows, int columns, int units,
                       int unit_stride, int row_stride, const A* x, F f) {
#pragma unroll 1
  for (int unit = block.warp; unit < units; unit += block.warps) {
    const A* row[kRowsAtOnce];
    A sums[kRowsAtOnce] = {};
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      const int at = min(unit * unit_stride + j * row_stride, rows - 1);
      row[j] = weight + static_cast<int64_t>(at) * columns;
    }
#pragma unroll 2
    for (int column = block.lane; column < columns; column += kWarp) {
      const A value = x[column];
#pragma unroll
      for (int j = 0; j < kRowsAtOnce; ++j) sums[j] += row[j][column] * value;
    }
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) sums[j] = warp_sum(sums[j]);
    f(unit, sums);
  }
}

// Of four sums that every lane has, lane j takes the j-th.
template <typename A>
__device__ A own_sum(const Block& block, const A* sums) {
  const A low = block.lane & 1 ? sums[1] : sums[0], high = block.lane & 1 ? sums[3] : sums[2];
  return block.lane & 2 ? high : low;
}

// c ← σ(f) c + σ(i) tanh(g), h ← σ(o) tanh(c) of one unit; gates i, f, g, o in the first four
// lanes.
template <typename A>
struct LstmUnit {
  A hidden, cell;
  A activated;  // this lane's gate

  __device__ LstmUnit(const Block& block, A gate, A previous_cell) {
    activated = block.lane == 2 ? tanh_of(gate) : sigmoid(gate);
    const A input = __shfl_sync(kAllLanes, activated, 0);
    const A forget = __shfl_sync(kAllLanes, activated, 1);
    const A candidate = __shfl_sync(kAllLanes, activated, 2);
    const A output = __shfl_sync(kAllLanes, activated, 3);
    cell = forget * previous_cell + input * candidate;
    hidden = output * tanh_of(cell);
  }
};

}  // namespace ntm
