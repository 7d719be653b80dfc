// A weight that is on the chip as a whole, and its product with a vector.
//
// Each thread keeps its own part of the weight from the first step of a sequence to the last.
// `Lanes` neighbouring threads share a row. They take its columns in turn, four at a time; four
// neighbouring columns are called a four here. The first `Held` fours of a thread are in its
// registers, the others in shared memory.
//
// So a product W x takes two loads and four multiply-adds for four columns of 32 / Lanes rows, and
// one shuffle for each doubling of Lanes. A warp that went along a row (weight.cuh) would need six
// shuffles, and as many selects, for the sums of every four rows.
//
// Shared memory has the fours in the order in which a warp reads them: first that with which each
// thread begins, one thread after another, then the next of each. The threads of a warp then read
// neighbouring words, without bank conflicts. x is read by fours too, the same ones for all rows.
#pragma once
#include "weight.cuh"

namespace ntm {

template <typename A, int Lanes, int Held>
class ThreadRows {
 public:
  // Whether the fours of a row are enough to fill the registers of its threads. If not, all of them
  // are in shared memory.
  static __host__ __device__ bool fills_registers(const Shape& shape) {
    return Held > 0 && fours_of(shape) >= Lanes * Held;
  }
  // The fours of a row that are in registers, and in shared memory.
  static __host__ __device__ int held_fours(const Shape& shape) {
    return fills_registers(shape) ? Lanes * Held : 0;
  }
  static __host__ __device__ int near_fours(const Shape& shape) {
    return fours_of(shape) - held_fours(shape);
  }
  // The elements of the weight that are in shared memory.
  static __host__ __device__ int64_t near_size(const Shape& shape) {
    return int64_t(kFour) * near_fours(shape) * shape.rows;
  }
  // Whether a block with this many threads can use this class. Where there are registers to fill, a
  // thread has one row, or a part of one.
  static __host__ bool allows(const Shape& shape, int threads) {
    return shape.columns % kFour == 0 && (!fills_registers(shape) || Lanes * shape.rows <= threads);
  }

  // `near` has room for near_size(shape) elements.
  __device__ ThreadRows(const Block&, const void* weight, const Shape& shape, const Units& units,
                        A* near, int)
      : weight_(static_cast<const A*>(weight)),
        near_(reinterpret_cast<Four<A>*>(near)),
        shape_(shape),
        units_(units) {}

  // Brings the weight to its threads; a barrier must follow before the first product. The weight
  // may begin where no vector may be loaded. That is asked once, since loads in branches of their
  // own would not overlap.
  __device__ void load(const Block& block) {
    if (in_fours(weight_, shape_.columns))
      load_as(block, [](const A* from) { return *reinterpret_cast<const Four<A>*>(from); });
    else
      load_as(block, [](const A* from) { return Four<A>{{from[0], from[1], from[2], from[3]}}; });
  }

  // W x where one thread has a row. A call of f(unit, sum) is as in `Weight::times`, with the four
  // rows of a unit in neighbouring lanes: so threads take the rows in the order of the units.
  template <typename F>
  __device__ void times(const Block& block, const A* x, F f) const {
    static_assert(Lanes == 1, "a lane has the sum of a row");
    each_warp(block, [&](int thread) { f(thread / kRowsAtOnce, product(thread, x)); });
  }

  // W x of a weight whose units are neighbouring rows: f(row, sum), once for each row.
  template <typename F>
  __device__ void times_by_rows(const Block& block, const A* x, F f) const {
    each_warp(block, [&](int thread) {
      A sum = product(thread, x);
#pragma unroll
      for (int other = 1; other < Lanes; other *= 2) sum += __shfl_xor_sync(kAllLanes, sum, other);
      if (thread % Lanes == 0 && thread < Lanes * shape_.rows) f(thread / Lanes, sum);
    });
  }

 private:
  static constexpr int kFour = 4;
  // How many fours a thread loads before it stores the first of them to shared memory. Each such
  // round costs the latency of a load, so they should be few; the fours are in registers meanwhile.
  static constexpr int kAtOnce = 12;

  static __host__ __device__ int fours_of(const Shape& shape) {
    return static_cast<int>(static_cast<unsigned>(shape.columns) / kFour);
  }

  // What a thread has: the place of its row in the order of the threads, the row itself, and which
  // of the row's lanes it is. Threads beyond the last row repeat that row; nobody uses their sums.
  struct Part {
    int place, row, lane;
    __device__ Part(const ThreadRows& rows, int thread)
        : place(min(thread / Lanes, rows.shape_.rows - 1)),
          row(rows.units_.apart ? place / kRowsAtOnce + place % kRowsAtOnce * rows.units_.count
                                : place),
          lane(thread % Lanes) {}
  };

  // f(thread) for each round of warps that have rows: whole warps, since f may shuffle.
  template <typename F>
  __device__ void each_warp(const Block& block, F f) const {
#pragma unroll 1
    for (int first = block.warp * kWarp; first < Lanes * shape_.rows; first += block.threads)
      f(first + block.lane);
  }

  // `load`, where read(address) is how a four is loaded. What stays in registers comes last, so
  // that the other loads have these registers too.
  template <typename F>
  __device__ void load_as(const Block& block, F read) {
#pragma unroll 1
    for (int thread = block.thread; thread < Lanes * shape_.rows; thread += block.threads)
      load_near(Part(*this, thread), read);
    if constexpr (Held > 0) {
      if (fills_registers(shape_)) {
        const A* from = given(Part(*this, block.thread));
#pragma unroll
        for (int j = 0; j < Held; ++j) held_[j] = read(from + kFour * Lanes * j);
      }
    }
  }

  // Brings the fours of a thread that are not in registers to shared memory.
  template <typename F>
  __device__ void load_near(const Part& part, F read) const {
    const int held = held_fours(shape_) / Lanes;
    const int count = (fours_of(shape_) - part.lane + Lanes - 1) / Lanes - held;
    const A* from = given(part) + kFour * Lanes * held;
#pragma unroll 1
    for (int first = 0; first < count; first += kAtOnce) {
      Four<A> fours[kAtOnce];
      // Beyond the last four, that one is loaded again. A condition for each load would need more
      // predicate registers than there are: the first loads would be waited for before the others.
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        fours[i] = read(from + kFour * Lanes * min(first + i, count - 1));
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (first + i < count) *near_four(part, first + i) = fours[i];
    }
  }

  // The first four of a thread, as it was given.
  __device__ const A* given(const Part& part) const {
    return weight_ + static_cast<int64_t>(part.row) * shape_.columns + kFour * part.lane;
  }

  // Where the j-th four of a thread is in shared memory. In the last round some lanes of a row may
  // have no four left; those that have one lie side by side.
  __device__ Four<A>* near_four(const Part& part, int j) const {
    const int lanes = min(Lanes, near_fours(shape_) - j * Lanes);
    return near_ + j * Lanes * shape_.rows + part.place * lanes + part.lane;
  }

  // The part of a sum that belongs to one thread. Four sums, since each addition to one of them
  // waits for the one before.
  __device__ A product(int thread, const A* x) const {
    const Part part(*this, thread);
    const Four<A>* fours = reinterpret_cast<const Four<A>*>(x) + part.lane;
    A sums[kFour] = {};
    int held = 0;
    if constexpr (Held > 0) {
      if (fills_registers(shape_)) {
        held = Held;
#pragma unroll
        for (int j = 0; j < Held; ++j) add_product(held_[j], fours[Lanes * j], sums);
      }
    }
    fours += Lanes * held;
    // Opaque, since the rounds would take registers from step to step, of which none are left.
    const int count = opaque(near_fours(shape_)), rounds = count / Lanes, rest = count % Lanes;
    const Four<A>* near = near_ + part.place * Lanes + part.lane;
#pragma unroll 4
    for (int j = 0; j < rounds; ++j) {
      add_product(*near, fours[Lanes * j], sums);
      near += Lanes * shape_.rows;
    }
    if (part.lane < rest) add_product(*near_four(part, rounds), fours[Lanes * rounds], sums);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  // By value, so that each is one load of 16 bytes, for the emulator's counts too.
  static __device__ void add_product(Four<A> one, Four<A> other, A (&sums)[kFour]) {
#pragma unroll
    for (int i = 0; i < kFour; ++i) sums[i] += one.value[i] * other.value[i];
  }

  const A* weight_;
  Four<A>* near_;
  Shape shape_;
  Units units_;
  Four<A> held_[Held > 0 ? Held : 1];
};

}  // namespace ntm
