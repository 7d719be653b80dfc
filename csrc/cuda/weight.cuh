// A weight matrix times a vector, which a block does at every step of a sequence.
//
// A model's weights do not change during a sequence, so a block keeps as much of them near as it
// can: some rows live in the registers of its warps from the first step to the last, more of them
// in the shared memory that is left, and only the rest is read from L2 at each product. The plan of
// a call (plan.cu) says how much goes where.
//
// Rows come in units of four. A unit belongs to one warp, whose lanes go along the columns, and its
// four sums are reduced together. A warp has neighbouring units, so that its results lie side by
// side.
#pragma once
#include "block.cuh"

namespace ntm {

constexpr int kRowsAtOnce = 4;                     // rows of a unit
constexpr int kUnitsAtOnce = kWarp / kRowsAtOnce;  // units whose sums fill the lanes of a warp

__host__ __device__ inline int units_of(int rows) {
  return (rows + kRowsAtOnce - 1) / kRowsAtOnce;
}

struct Shape {
  int rows, columns;
  __host__ __device__ Shape transposed() const { return {columns, rows}; }
};

// Which rows make a unit: four neighbours, or rows that lie a quarter of the matrix apart.
struct Units {
  int count;
  bool apart;
};

__host__ __device__ inline Units neighbouring_rows(int rows) {
  return {units_of(rows), false};
}
__host__ __device__ inline Units rows_apart(int rows) {
  return {rows / kRowsAtOnce, true};
}

// The first `Held` units of each warp live in its registers, if they have at most `Columns` columns
// for a lane. The next ones live in shared memory, as far as `near_units` go.
// Where no unit is in registers, a lane loads `Ahead` columns before it uses the first of them.
template <typename A, int Held = 0, int Columns = 1, int Ahead = 2>
class Weight {
 public:
  __device__ Weight(const Block& block, const void* weight, const Shape& shape, const Units& units,
                    A* near, int near_units)
      : weight_(static_cast<const A*>(weight)),
        near_(near),
        shape_(shape),
        units_(units),
        near_units_(near_units) {
    const int each = units.count / block.warps, more = units.count % block.warps;
    first_ = block.warp * each + min(block.warp, more);
    count_ = each + (block.warp < more ? 1 : 0);
  }

  // Brings near what has room there; a barrier must follow before the first product.
  __device__ void load(const Block& block) {
#pragma unroll
    for (int at = 0; at < Held; ++at)
#pragma unroll
      for (int j = 0; j < kRowsAtOnce; ++j)
#pragma unroll
        for (int c = 0; c < Columns; ++c) {
          const int column = block.lane + c * kWarp;
          held_[at][j][c] =
              at < count_ && column < shape_.columns ? row(first_ + at, j)[column] : A(0);
        }
#pragma unroll 1
    for (int at = Held; at < count_ && near_unit(block, at) < near_units_; ++at)
#pragma unroll 1
      for (int first = block.lane; first < shape_.columns; first += kColumnsAtOnce * kWarp)
        load_near(near_unit(block, at), first_ + at, first);
  }

  // W x, eight units to a call of f(unit, sum): lane 4 k + j has the sum of row j of the k-th of
  // them, so that whatever f does is done for all of them at once. All lanes call f, some of them
  // with a unit beyond the last.
  template <typename F>
  __device__ void times(const Block& block, const A* x, F f) const {
    A values[Columns];  // of x, for the rows in registers, which all use the same
    if constexpr (Held > 0) {
#pragma unroll
      for (int c = 0; c < Columns; ++c) {
        const int column = block.lane + c * kWarp;
        values[c] = column < shape_.columns ? x[column] : A(0);
      }
    }
    const int slot = block.lane / kRowsAtOnce;
#pragma unroll 1
    for (int first = 0; first < count_; first += kUnitsAtOnce) {
      A mine = 0;
      int at = first;
      if constexpr (Held > 0) {
        if (first == 0) {
#pragma unroll
          for (int round = 0; round < Held; ++round) {
            A sums[kRowsAtOnce] = {};
#pragma unroll
            for (int j = 0; j < kRowsAtOnce; ++j)
#pragma unroll
              for (int c = 0; c < Columns; ++c) sums[j] += held_[round][j][c] * values[c];
            const A own = own_sum(block, sums);
            if (slot == round) mine = own;
          }
          at = Held;
        }
      }
      const int last = min(count_, first + kUnitsAtOnce);
#pragma unroll 1
      for (; at < last; ++at) {
        const A own = product(block, at, x, values);
        if (slot == at - first) mine = own;
      }
      f(first + slot < last ? first_ + first + slot : shape_.rows, mine);
    }
  }

  // W x of a weight whose units are neighbouring rows: f(row, sum), once for each row.
  template <typename F>
  __device__ void times_by_rows(const Block& block, const A* x, F f) const {
    const int lane_row = block.lane % kRowsAtOnce;
    times(block, x, [&](int unit, A sum) {
      const int row = kRowsAtOnce * unit + lane_row;
      if (row < shape_.rows) f(row, sum);
    });
  }

 private:
  // How many columns a lane loads, of each row of a unit, before it stores the first of them to
  // shared memory. Each such round costs the latency of a load.
  static constexpr int kColumnsAtOnce = Columns > 4 ? Columns : 4;

  // Brings some columns of a unit to its place in shared memory, beginning with `first`. Beyond the
  // last column, that one is loaded again (see `ThreadRows::load_near`).
  __device__ void load_near(int near, int unit, int first) const {
    A values[kRowsAtOnce][kColumnsAtOnce];
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j)
#pragma unroll
      for (int c = 0; c < kColumnsAtOnce; ++c)
        values[j][c] = row(unit, j)[min(first + c * kWarp, shape_.columns - 1)];
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j)
#pragma unroll
      for (int c = 0; c < kColumnsAtOnce; ++c)
        if (first + c * kWarp < shape_.columns) near_row(near, j)[first + c * kWarp] = values[j][c];
  }

  // The sums of one unit that is not in registers, row j in the lanes with lane % 4 == j.
  __device__ A product(const Block& block, int at, const A* x, const A* values) const {
    const int near = near_unit(block, at);
    const bool is_near = near < near_units_;
    const A* rows[kRowsAtOnce];
    A sums[kRowsAtOnce] = {};
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j)
      rows[j] = is_near ? near_row(near, j) : row(first_ + at, j);
    if constexpr (Held > 0) {
#pragma unroll
      for (int c = 0; c < Columns; ++c) {
        const int column = block.lane + c * kWarp;
        if (column >= shape_.columns) break;
#pragma unroll
        for (int j = 0; j < kRowsAtOnce; ++j) sums[j] += rows[j][column] * values[c];
      }
    } else {
#pragma unroll Ahead
      for (int column = block.lane; column < shape_.columns; column += kWarp) {
        const A value = x[column];
#pragma unroll
        for (int j = 0; j < kRowsAtOnce; ++j) sums[j] += rows[j][column] * value;
      }
    }
    return own_sum(block, sums);
  }
  // The place in shared memory of a warp's unit: first come the first ones of all warps, then the
  // second ones, so that every warp has as many there as any other.
  __device__ int near_unit(const Block& block, int at) const {
    return (at - Held) * block.warps + block.warp;
  }
  // The last unit may lack rows; it then repeats the last row, whose sum is not used.
  __device__ const A* row(int unit, int j) const {
    const int at =
        units_.apart ? unit + j * units_.count : min(kRowsAtOnce * unit + j, shape_.rows - 1);
    return weight_ + static_cast<int64_t>(at) * shape_.columns;
  }
  __device__ A* near_row(int unit, int j) const {
    return near_ + (unit * kRowsAtOnce + j) * shape_.columns;
  }

  const A* weight_;
  A* near_;
  Shape shape_;
  Units units_;
  int near_units_;
  int first_, count_;  // this warp's units
  A held_[Held > 0 ? Held : 1][kRowsAtOnce][Columns];
};

}  // namespace ntm
