// The controller's matrix-vector products and the LSTM, inside a sequence.
#pragma once
#include "block.cuh"

namespace ntm {

constexpr int kRowsAtOnce = 4;
constexpr int kUnitsAtOnce = kWarp / kRowsAtOnce;

// A weight [rows, columns] in units of four rows, a unit to a warp with its lanes along the
// columns; row j of a unit is row `unit * unit_stride + j * row_stride`. A warp has neighbouring
// units, so that its results lie side by side. The first `Units` of each warp live in its registers
// if they have at most `Columns` columns per lane, the next ones in shared memory as far as they
// have room there (`near`), and the rest come from L2 at each product.
template <typename A, int Units = 0, int Columns = 1>
class Weight {
 public:
  __device__ Weight(const Block& block, const A* weight, int rows, int columns, int units,
                    int unit_stride, int row_stride, A* near, int near_units)
      : weight_(weight),
        near_(near),
        rows_(rows),
        columns_(columns),
        unit_stride_(unit_stride),
        row_stride_(row_stride),
        near_units_(near_units) {
    const int each = units / block.warps, more = units % block.warps;
    first_ = block.warp * each + min(block.warp, more);
    count_ = each + (block.warp < more ? 1 : 0);
#pragma unroll
    for (int at = 0; at < Units; ++at)
#pragma unroll
      for (int j = 0; j < kRowsAtOnce; ++j)
#pragma unroll
        for (int c = 0; c < Columns; ++c) {
          const int column = block.lane + c * kWarp;
          held_[at][j][c] = at < count_ && column < columns ? row(first_ + at, j)[column] : A(0);
        }
#pragma unroll 1
    for (int at = Units; at < count_ && near_unit(block, at) < near_units; ++at)
      for (int j = 0; j < kRowsAtOnce; ++j)
        for (int column = block.lane; column < columns; column += kWarp)
          near_row(near_unit(block, at), j)[column] = row(first_ + at, j)[column];
  }

  // W x. The sums of eight units, row j of the k-th in lane 4 k + j, go to one call of f(unit,
  // sum), so that what is done to them is done once; all lanes call, some with a unit beyond the
  // last.
  template <typename F>
  __device__ void times(const Block& block, const A* x, F f) const {
    A values[Columns];
    if constexpr (Units > 0) {
#pragma unroll
      for (int c = 0; c < Columns; ++c) {
        const int column = block.lane + c * kWarp;
        values[c] = column < columns_ ? x[column] : A(0);
      }
    }
    const int slot = block.lane / kRowsAtOnce;
#pragma unroll 1
    for (int first = 0; first < count_; first += kUnitsAtOnce) {
      A mine = 0;
      int at = first;
      if constexpr (Units > 0) {
        if (first == 0) {
#pragma unroll
          for (int round = 0; round < Units; ++round) {
            A sums[kRowsAtOnce] = {};
#pragma unroll
            for (int j = 0; j < kRowsAtOnce; ++j)
#pragma unroll
              for (int c = 0; c < Columns; ++c) sums[j] += held_[round][j][c] * values[c];
            const A own = own_sum(block, sums);
            if (slot == round) mine = own;
          }
          at = Units;
        }
      }
      const int last = min(count_, first + kUnitsAtOnce);
#pragma unroll 1
      for (; at < last; ++at) {
        const A own = product(block, at, x, values);
        if (slot == at - first) mine = own;
      }
      f(first + slot < last ? first_ + first + slot : rows_, mine);
    }
  }

 private:
  __device__ A product(const Block& block, int at, const A* x, const A* values) const {
    const int near = near_unit(block, at);
    const bool is_near = near < near_units_;
    const A* rows[kRowsAtOnce];
    A sums[kRowsAtOnce] = {};
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j)
      rows[j] = is_near ? near_row(near, j) : row(first_ + at, j);
    if constexpr (Units > 0) {
#pragma unroll
      for (int c = 0; c < Columns; ++c) {
        const int column = block.lane + c * kWarp;
        if (column >= columns_) break;
#pragma unroll
        for (int j = 0; j < kRowsAtOnce; ++j) sums[j] += rows[j][column] * values[c];
      }
    } else {
#pragma unroll 2
      for (int column = block.lane; column < columns_; column += kWarp) {
        const A value = x[column];
#pragma unroll
        for (int j = 0; j < kRowsAtOnce; ++j) sums[j] += rows[j][column] * value;
      }
    }
    return own_sum(block, sums);
  }
  // Where a warp's unit would lie in shared memory: all warps' first ones come first.
  __device__ int near_unit(const Block& block, int at) const {
    return (at - Units) * block.warps + block.warp;
  }
  __device__ const A* row(int unit, int j) const {
    const int at = min(unit * unit_stride_ + j * row_stride_, rows_ - 1);
    return weight_ + static_cast<int64_t>(at) * columns_;
  }
  __device__ A* near_row(int unit, int j) const {
    return near_ + (unit * kRowsAtOnce + j) * columns_;
  }

  const A* weight_;
  A* near_;
  int rows_, columns_, unit_stride_, row_stride_, near_units_;
  int first_, count_;  // this warp's units
  A held_[Units > 0 ? Units : 1][kRowsAtOnce][Columns];
};

__host__ __device__ inline int units_of(int rows) {
  return (rows + kRowsAtOnce - 1) / kRowsAtOnce;
}

// c ← σ(f) c + σ(i) tanh(g), h ← σ(o) tanh(c) of one unit; its gates i, f, g, o in four lanes.
template <typename A>
struct LstmUnit {
  A hidden, cell;
  A activated;  // this lane's gate

  __device__ LstmUnit(const Block& block, A gate, A previous_cell) {
    const int kind = block.lane % 4, first = block.lane - kind;
    activated = kind == 2 ? tanh_of(gate) : sigmoid(gate);
    const A input = __shfl_sync(kAllLanes, activated, first);
    const A forget = __shfl_sync(kAllLanes, activated, first + 1);
    const A candidate = __shfl_sync(kAllLanes, activated, first + 2);
    const A output = __shfl_sync(kAllLanes, activated, first + 3);
    cell = forget * previous_cell + input * candidate;
    hidden = output * tanh_of(cell);
  }
};

// Its backward by one thread: dc of the new cell in; of the raw gates and of the previous cell out.
template <typename A>
struct LstmUnitBackward {
  A gates[4], previous_cell;

  __device__ LstmUnitBackward(A input, A forget, A candidate, A output, A cell, A previous,
                              A d_hidden, A d_new_cell) {
    const A squashed = tanh_of(cell);
    const A d_cell = d_new_cell + d_hidden * output * (1 - squashed * squashed);
    gates[0] = d_cell * candidate * input * (1 - input);
    gates[1] = d_cell * previous * forget * (1 - forget);
    gates[2] = d_cell * input * (1 - candidate * candidate);
    gates[3] = d_hidden * squashed * output * (1 - output);
    previous_cell = d_cell * forget;
  }
};

}  // namespace ntm
