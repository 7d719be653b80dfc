// The threads of a block, warp reductions, and sizes as kernels use them.
#pragma once
#include "arithmetic.cuh"

namespace ntm {

constexpr int kWarp = 32;
// Of a block. Half for double, whose values take two registers each.
template <typename A>
constexpr int kMostThreads = sizeof(A) == 8 ? 256 : 512;
constexpr unsigned kAllLanes = 0xffffffffu;
// Heads that share one pass over the memory: enough for the common models, few enough registers.
template <typename A>
constexpr int kHeadsAtOnce = sizeof(A) == 8 ? 2 : 3;
// Up to here a row's neighbours are gated again for every tap, which saves a barrier.
constexpr int kFewTaps = 5;

// A value of which the compiler knows nothing, so that what follows from it is worked out where it
// is used and does not wait in registers.
__device__ inline int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

struct Block {
  int thread, lane, warp, threads, warps;
  __device__ Block()
      : thread(opaque(threadIdx.x)),
        lane(thread % kWarp),
        warp(thread / kWarp),
        threads(blockDim.x),
        warps(blockDim.x / kWarp) {}
};

struct Sizes {
  int N, M, R, W, H, S, C, T;
  bool is_lstm;
  __host__ __device__ explicit Sizes(const NtmSizes& sizes)
      : N(sizes.memory_size),
        M(sizes.word_size),
        R(sizes.num_read_heads),
        W(sizes.num_write_heads),
        H(sizes.num_read_heads + sizes.num_write_heads),
        S(sizes.num_taps),
        C(sizes.hidden_size),
        T(sizes.time),
        is_lstm(sizes.is_lstm != 0) {}
  __host__ __device__ int interface_size() const { return H * (M + 3 + S) + 2 * W * M; }
};

template <typename A>
__device__ A warp_sum(A x) {
  for (int other = kWarp / 2; other > 0; other /= 2) x += __shfl_xor_sync(kAllLanes, x, other);
  return x;
}

template <typename A>
__device__ A warp_max(A x) {
  for (int other = kWarp / 2; other > 0; other /= 2)
    x = larger(x, __shfl_xor_sync(kAllLanes, x, other));
  return x;
}

// The sum over all lanes of sums[lane % 4]: six shuffles where four reductions take twenty.
template <typename A>
__device__ A own_sum(const Block& block, const A* sums) {
  const bool odd = block.lane & 1, high = block.lane & 2;
  const A low_pair =
      (odd ? sums[1] : sums[0]) + __shfl_xor_sync(kAllLanes, odd ? sums[0] : sums[1], 1);
  const A high_pair =
      (odd ? sums[3] : sums[2]) + __shfl_xor_sync(kAllLanes, odd ? sums[2] : sums[3], 1);
  A own =
      (high ? high_pair : low_pair) + __shfl_xor_sync(kAllLanes, high ? low_pair : high_pair, 2);
#pragma unroll
  for (int other = 4; other < kWarp; other *= 2) own += __shfl_xor_sync(kAllLanes, own, other);
  return own;
}

// A maximum and the sum of terms relative to it: what one warp knows of a softmax.
template <typename A>
struct alignas(2 * sizeof(A)) Pair {
  A peak, sum;
};

// Partial results of each head, to be reduced by every reader after the next barrier, always in the
// same order.
template <typename V>
struct Partials {
  V* at;      // [heads, count]
  int count;  // values of a head, of all blocks at work on a sequence
  int mine;   // the first of this block's values
  int share;  // how many there are of this block, each from one warp
  __device__ V& own(int head, int slot) const {
    return at[static_cast<int64_t>(head) * count + mine + slot];
  }
  __device__ const V* of(int head) const { return at + static_cast<int64_t>(head) * count; }
};

template <typename A>
__device__ A fold_sum(const Block& block, const Partials<A>& partials, int head) {
  const A* values = partials.of(head);
  A sum = 0;
  for (int i = block.lane; i < partials.count; i += kWarp) sum += values[i];
  return warp_sum(sum);
}

// Two parts of a softmax as one.
template <typename A>
__device__ Pair<A> joined(const Pair<A>& one, const Pair<A>& other) {
  const A peak = larger(one.peak, other.peak);
  const A sum = one.sum != 0 ? one.sum * exp_of(one.peak - peak) : A(0);
  return {peak, other.sum != 0 ? sum + other.sum * exp_of(other.peak - peak) : sum};
}

// The maximum of x and the sum of e^(x - maximum), of all the lanes' pairs; {−∞, 0} of none.
template <typename A>
__device__ Pair<A> warp_softmax(const Pair<A>& own) {
  const A peak = warp_max(own.peak);
  return {peak, warp_sum(own.sum != 0 ? own.sum * exp_of(own.peak - peak) : A(0))};
}

template <typename A>
__device__ Pair<A> fold_softmax(const Block& block, const Partials<Pair<A>>& partials, int head) {
  const Pair<A>* pairs = partials.of(head);
  Pair<A> own{-Constants<A>::infinity, 0};
  for (int i = block.lane; i < partials.count; i += kWarp) own = joined(own, pairs[i]);
  return warp_softmax(own);
}

// The maximum of x and the sum of (x / maximum)^power, of all the warps' pairs; {0, 0} if all are
// 0. NaN, which no maximum sees, is in the sum.
template <typename A>
__device__ Pair<A> fold_powers(const Block& block, const Partials<Pair<A>>& partials, int head,
                               A power) {
  const Pair<A>* pairs = partials.of(head);
  A peak = 0;
  for (int i = block.lane; i < partials.count; i += kWarp) peak = larger(peak, pairs[i].peak);
  peak = warp_max(peak);
  A sum = 0;
  for (int i = block.lane; i < partials.count; i += kWarp)
    sum += pairs[i].sum * (peak > 0 ? power_of_ratio(pairs[i].peak / peak, power) : A(0));
  return {peak, warp_sum(sum)};
}

// Rows [first, first + rows) of a weighting, cut into chunks of a warp's width. Chunks of the next
// head go to the next warps, so that a short weighting does not leave most of them idle.
struct Rows {
  int first, rows;
  __device__ int chunks() const { return (rows + kWarp - 1) / kWarp; }
  // How many warps have a chunk of a head.
  __device__ int shares(const Block& block) const { return min(chunks(), block.warps); }
  // The first chunk of a head that is this warp's, if there are so many.
  __device__ int start(const Block& block, int head) const {
    const int turn = static_cast<int>(static_cast<int64_t>(head) * chunks() % block.warps);
    return (block.warp + block.warps - turn) % block.warps;
  }
  // f(head, slot) for each head of which this warp has rows or partial results to fill in.
  template <typename F>
  __device__ void each_head(const Block& block, int heads, int share, F f) const {
#pragma unroll 1
    for (int head = 0; head < heads; ++head) {
      const int slot = start(block, head);
      if (slot < share) f(head, slot);
    }
  }
  // f(row) for each row of this thread, where `first <= row < first + rows`.
  template <typename F>
  __device__ void each(const Block& block, int slot, F f) const {
#pragma unroll 1
    for (int chunk = slot; chunk < chunks(); chunk += block.warps) {
      const int at = chunk * kWarp + block.lane;
      if (at < rows) f(first + at);
    }
  }
};

// Where the pieces of shared memory and workspace lie is worked out once, on the host: a space's
// constructor asks for its pieces in order, and on the device gets them from the plan, which is
// constant memory, so that no register has to remember an address.
class CountedPieces {
 public:
  __host__ __device__ explicit CountedPieces(NtmPlan& plan) : plan_(plan) {}
  template <typename V>
  __host__ __device__ V* take(int64_t count) {
    return counted<V>(count, shared_);
  }
  // Of a weighting, which may lie in the workspace.
  template <typename V>
  __host__ __device__ V* take_weighting(int64_t count) {
    return counted<V>(count, plan_.weightings_away ? workspace_ : shared_);
  }
  __host__ __device__ const NtmPlan& plan() const { return plan_; }
  int64_t shared_bytes() const { return 16 * shared_; }
  int64_t workspace_bytes() const { return 16 * workspace_; }

 private:
  template <typename V>
  __host__ __device__ V* counted(int64_t count, int64_t& used) {
    plan_.offsets[next_++] = static_cast<int32_t>(used);
    used += (count * static_cast<int64_t>(sizeof(V)) + 15) / 16;
    return nullptr;
  }
  NtmPlan& plan_;
  int next_ = 0;
  int64_t shared_ = 0, workspace_ = 0;  // in units of 16 bytes
};

class PlacedPieces {
 public:
  // Sequence b of the batch has the b-th part of the workspace.
  __device__ PlacedPieces(const NtmPlan& plan, unsigned char* shared, void* workspace, int64_t b,
                          int64_t batch)
      : plan_(plan), shared_(shared), weightings_(shared) {
    if (workspace != nullptr && plan.weightings_away)
      weightings_ = static_cast<unsigned char*>(workspace) + b * (plan.workspace_bytes / batch);
  }
  __device__ PlacedPieces(const NtmPlan& plan, unsigned char* shared, void* workspace)
      : PlacedPieces(plan, shared, workspace, blockIdx.x, gridDim.x) {}
  __device__ const NtmPlan& plan() const { return plan_; }
  template <typename V>
  __device__ V* take(int64_t) {
    return reinterpret_cast<V*>(shared_ + 16 * static_cast<int64_t>(plan_.offsets[next_++]));
  }
  template <typename V>
  __device__ V* take_weighting(int64_t) {
    return reinterpret_cast<V*>(weightings_ + 16 * static_cast<int64_t>(plan_.offsets[next_++]));
  }

 private:
  const NtmPlan& plan_;
  unsigned char *shared_, *weightings_;
  int next_ = 0;
};

}  // namespace ntm
