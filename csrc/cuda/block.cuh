// The threads of a block, sums over a warp, partial results of warps, the sizes of a call, and
// where a block's buffers lie.
#pragma once
#include "arithmetic.cuh"

namespace ntm {

constexpr int kWarp = 32;
// Threads of a block, at most: with 512 each has up to 128 registers. A double takes two.
template <typename A>
constexpr int kMostThreads = sizeof(A) == 8 ? 256 : 512;
// The backward of a sequence keeps so much in registers that it gives each thread twice as many.
constexpr int kMostThreadsOfSequenceBackward = 256;
constexpr unsigned kAllLanes = 0xffffffffu;
// Heads that share one pass over the memory. More would need more registers for their sums.
template <typename A>
constexpr int kHeadsAtOnce = sizeof(A) == 8 ? 2 : 3;
// Up to this number of taps w^g of the neighbouring rows is computed again for each tap, which
// saves a barrier.
constexpr int kFewTaps = 5;

// The same value, but the compiler cannot know that. It then computes indices from it where they
// are used, again in each phase, and does not keep them in registers through the whole kernel.
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
  int N, M, R, W, H, S, C, L, T;
  bool is_lstm;
  __host__ __device__ explicit Sizes(const NtmSizes& sizes)
      : N(sizes.memory_size),
        M(sizes.word_size),
        R(sizes.num_read_heads),
        W(sizes.num_write_heads),
        H(sizes.num_read_heads + sizes.num_write_heads),
        S(sizes.num_taps),
        C(sizes.hidden_size),
        L(sizes.num_layers),
        T(sizes.time),
        is_lstm(sizes.is_lstm != 0) {}
  __host__ __device__ int interface_size() const { return H * (M + 3 + S) + 2 * W * M; }
  // Elements of what a sequence has at each step.
  __host__ __device__ int64_t memory_elements() const { return static_cast<int64_t>(N) * M; }
  __host__ __device__ int weighting_elements() const { return H * N; }
  __host__ __device__ int read_elements() const { return R * M; }
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

// The sum over the even lanes of a warp for an even lane, and over the odd lanes for an odd one.
template <typename A>
__device__ A sum_of_parity(A x) {
#pragma unroll
  for (int other = 2; other < kWarp; other *= 2) x += __shfl_xor_sync(kAllLanes, x, other);
  return x;
}

template <typename A>
__device__ A max_of_parity(A x) {
#pragma unroll
  for (int other = 2; other < kWarp; other *= 2)
    x = larger(x, __shfl_xor_sync(kAllLanes, x, other));
  return x;
}

// Two sums over a lane and the one that is `other` lanes away: this lane gets the second if it is
// `high`, and the other lane, which must not be, the first.
template <typename A>
__device__ A swapped_sum(bool high, const A (&sums)[2], int other) {
  return (high ? sums[1] : sums[0]) + __shfl_xor_sync(kAllLanes, high ? sums[0] : sums[1], other);
}

// Several sums over the warp at once, 2, 4, 8 or 16: a lane gets that of sums[lane % Count]. At
// each of the first exchanges a lane gives away the half of its sums that it will not keep. So four
// sums take six shuffles in all, where four separate reductions would take twenty. The array is
// used up.
template <typename A, int Count>
__device__ A own_sum(const Block& block, A (&sums)[Count]) {
#pragma unroll
  for (int other = 1; other < Count; other *= 2)
#pragma unroll
    for (int i = 0; 2 * i * other < Count; ++i)
      sums[i] = swapped_sum<A>((block.lane & other) != 0, {sums[2 * i], sums[2 * i + 1]}, other);
  A own = sums[0];
#pragma unroll
  for (int other = Count; other < kWarp; other *= 2) own += __shfl_xor_sync(kAllLanes, own, other);
  return own;
}

// A maximum, and a sum of terms divided by that of the maximum: a softmax over some rows.
template <typename A>
struct alignas(2 * sizeof(A)) Pair {
  A peak, sum;
};

// Partial results of each head, one from each warp that had some of its rows. After the next
// barrier, every warp that needs the result reduces them for itself. The order is always the same,
// so results do not change from run to run.
template <typename V>
struct Partials {
  V* at;      // [heads, count]
  int count;  // values of a head, from all blocks that work on the sequence
  int mine;   // the first value of this block
  int share;  // values of this block
  __device__ V& own(int head, int slot) const {
    return at[static_cast<int64_t>(head) * count + mine + slot];
  }
  __device__ const V* of(int head) const { return at + static_cast<int64_t>(head) * count; }
};

template <typename A>
__device__ A fold_sum(const Block& block, const Partials<A>& partials, int head) {
  const A* values = partials.of(head);
  A sum = 0;
#pragma unroll 1
  for (int i = block.lane; i < partials.count; i += kWarp) sum += values[i];
  return warp_sum(sum);
}

// The sums of two sets of partial results, for the price of one: even lanes add up the first.
template <typename A>
__device__ void fold_two_sums(const Block& block, const Partials<A>& first,
                              const Partials<A>& second, int head, A (&sums)[2]) {
  const bool odd = block.lane % 2 != 0;
  const A* values = odd ? second.of(head) : first.of(head);
  const int count = odd ? second.count : first.count;
  A sum = 0;
#pragma unroll 1
  for (int i = block.lane / 2; i < count; i += kWarp / 2) sum += values[i];
  sum = sum_of_parity(sum);
  sums[0] = __shfl_sync(kAllLanes, sum, 0);
  sums[1] = __shfl_sync(kAllLanes, sum, 1);
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
#pragma unroll 1
  for (int i = block.lane; i < partials.count; i += kWarp) own = joined(own, pairs[i]);
  return warp_softmax(own);
}

// The maximum of x and the sum of (x / maximum)^power, from the pairs of all warps; {0, 0} if all x
// are 0. A maximum ignores NaN, but the sum does not, and shows it. The sum starts from 0 · power,
// so that it also shows a power that is infinite or NaN.
template <typename A>
__device__ Pair<A> fold_powers(const Block& block, const Partials<Pair<A>>& partials, int head,
                               A power) {
  const Pair<A>* pairs = partials.of(head);
  A peak = 0;
#pragma unroll 1
  for (int i = block.lane; i < partials.count; i += kWarp) peak = larger(peak, pairs[i].peak);
  peak = warp_max(peak);
  A sum = A(0) * power;
#pragma unroll 1
  for (int i = block.lane; i < partials.count; i += kWarp)
    sum += pairs[i].sum * (peak > 0 ? power_of_ratio(pairs[i].peak / peak, power) : A(0));
  return {peak, warp_sum(sum)};
}

// How the rows [first, first + rows) of all weightings are dealt to the threads: in chunks of 32
// rows, one row to a lane. The chunks of all heads are dealt out in turn, so that weightings with
// few rows still keep many warps busy. Every stage deals rows in the same way.
struct Rows {
  int first, rows;
  __device__ int chunks() const { return (rows + kWarp - 1) / kWarp; }
  // How many warps have rows of a head, which is how many partial results it gets.
  __device__ int shares(const Block& block) const { return min(chunks(), block.warps); }
  // The first chunk of a head that belongs to this warp. There is none if this is not below
  // chunks().
  __device__ int start(const Block& block, int head) const {
    // The number of warps is a power of two, of which the unsigned product keeps the remainder.
    const unsigned turn = static_cast<unsigned>(head) * static_cast<unsigned>(chunks());
    return static_cast<int>((static_cast<unsigned>(block.warp) - turn) & (block.warps - 1u));
  }
  // f(head, slot) for each head of which this warp has a partial result to store. With tiles a warp
  // may have a partial result to store and no rows.
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

// A kernel's buffers are the members of a "space", such as ForwardSpace. Its constructor takes them
// one after another from `pieces`, and runs twice. On the host, with CountedPieces, it writes the
// offset of each buffer into the plan and adds up the bytes. On the device, with PlacedPieces, it
// gets the addresses back. The plan is a kernel parameter, which lies in constant memory: an
// address can be read again wherever it is needed, and takes no register in between.
class CountedPieces {
 public:
  __host__ __device__ explicit CountedPieces(NtmPlan& plan) : plan_(plan) {}
  template <typename V>
  __host__ __device__ V* take(int64_t count) {
    return counted<V>(count, shared_);
  }
  // A weighting, or what is as long; the plan may put these into the workspace, in global memory.
  template <typename V>
  __host__ __device__ V* take_weighting(int64_t count) {
    return counted<V>(count, plan_.weightings_away ? workspace_ : shared_);
  }
  __host__ __device__ const NtmPlan& plan() const { return plan_; }
  int64_t shared_bytes() const { return 16 * shared_; }
  int64_t workspace_bytes() const { return 16 * workspace_; }
  // Whether the plan has an offset for each of the buffers. If not, some are left out.
  bool fit() const { return next_ <= kMostPieces; }

 private:
  static constexpr int kMostPieces = sizeof(NtmPlan::offsets) / sizeof(int32_t);
  template <typename V>
  __host__ __device__ V* counted(int64_t count, int64_t& used) {
    if (next_ < kMostPieces) plan_.offsets[next_] = static_cast<int32_t>(used);
    next_ += 1;
    used += (count * static_cast<int64_t>(sizeof(V)) + 15) / 16;
    return nullptr;
  }
  NtmPlan& plan_;
  int next_ = 0;
  int64_t shared_ = 0, workspace_ = 0;  // in units of 16 bytes
};

class PlacedPieces {
 public:
  // The workspace has an equal part for each sequence of the batch.
  __device__ PlacedPieces(const NtmPlan& plan, unsigned char* shared, void* workspace, int64_t b,
                          int64_t batch)
      : plan_(plan), shared_(shared), weightings_(shared) {
    if (workspace != nullptr && plan.weightings_away)
      weightings_ = static_cast<unsigned char*>(workspace) + b * (plan.workspace_bytes / batch);
  }
  __device__ PlacedPieces(const NtmPlan& plan, unsigned char* shared, void* workspace)
      : PlacedPieces(plan, shared, workspace, blockIdx.x, gridDim.x) {}
  // For kernels without a workspace. Since every buffer is then known to lie in shared memory, the
  // compiler addresses it with 32 bits.
  __device__ PlacedPieces(const NtmPlan& plan, unsigned char* shared)
      : plan_(plan), shared_(shared), weightings_(shared) {}
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
