// The interface vector: where the parameters of the heads lie in it, their activation, and its
// backward.
#pragma once
#include "block.cuh"

namespace ntm {

// The parameters of all heads as one vector, grouped by kind, with read heads before write heads in
// each group. `write` has erase and add vectors alone, and `address` all others.
template <typename A>
struct Heads {
  A* key;         // [H, M]
  A* strength;    // [H]
  A* gate;        // [H]
  A* shift;       // [H, S]
  A* sharpening;  // [H]
  A* erase;       // [W, M]
  A* add;         // [W, M]
  int size;

  __device__ Heads(A* vector, int addressing, int writing, int word_size, int num_taps) {
    key = vector;
    strength = key + addressing * word_size;
    gate = strength + addressing;
    shift = gate + addressing;
    sharpening = shift + addressing * num_taps;
    erase = sharpening + addressing;
    add = erase + writing * word_size;
    size = static_cast<int>(add + writing * word_size - vector);
  }
  __device__ Heads(A* vector, const Sizes& sizes)
      : Heads(vector, sizes.H, sizes.W, sizes.M, sizes.S) {}

  // Where a group, or one of its elements, lies in the vector.
  __device__ int index(const A* at) const { return static_cast<int>(at - key); }
  __device__ bool is_erase(int index) const { return key + index >= erase && key + index < add; }

  // From raw to activated. The taps stay raw: their softmax is left to `activate_taps`.
  __device__ A activate(int index, A raw) const {
    const A* at = key + index;
    if (at < strength) return raw;
    if (at < gate) return softplus(raw);
    if (at < shift) return sigmoid(raw);
    if (at < sharpening) return raw;
    if (at < erase) return 1 + softplus(raw);
    if (at < add) return sigmoid(raw);
    return raw;
  }

  // The derivative of `activate` at a raw value.
  __device__ A activate_backward_slope(int index, A raw) const {
    const A* at = key + index;
    if (at < strength) return 1;
    if (at < gate) return sigmoid(raw);
    if (at < shift) return sigmoid_slope(raw);
    if (at < sharpening) return 1;
    if (at < erase) return sigmoid(raw);
    if (at < add) return sigmoid_slope(raw);
    return 1;
  }
};

// The softmax of the raw taps, in place. A warp takes a head. The last warp begins, since the first
// ones have more rows of the stage that runs beside this.
template <typename A>
__device__ void activate_taps(const Block& block, const Heads<A>& heads, const Sizes& sizes) {
#pragma unroll 1
  for (int head = block.warps - 1 - block.warp; head < sizes.H; head += block.warps) {
    A* taps = heads.shift + head * sizes.S;
    A peak = -Constants<A>::infinity;
#pragma unroll 1
    for (int tap = block.lane; tap < sizes.S; tap += kWarp) peak = larger(peak, taps[tap]);
    peak = warp_max(peak);
    A sum = 0;
#pragma unroll 1
    for (int tap = block.lane; tap < sizes.S; tap += kWarp) sum += exp_of(taps[tap] - peak);
    sum = warp_sum(sum);
#pragma unroll 1
    for (int tap = block.lane; tap < sizes.S; tap += kWarp)
      taps[tap] = exp_of(taps[tap] - peak) / sum;
  }
}

// The backward of the softmax of one head's taps, by one warp: give(tap, gradient of the raw tap).
template <typename A, typename F>
__device__ void activate_backward_taps(const Block& block, const A* taps, const A* d_taps, int S,
                                       F give) {
  A dot = 0;
#pragma unroll 1
  for (int tap = block.lane; tap < S; tap += kWarp) dot += d_taps[tap] * taps[tap];
  dot = warp_sum(dot);
#pragma unroll 1
  for (int tap = block.lane; tap < S; tap += kWarp) give(tap, taps[tap] * (d_taps[tap] - dot));
}

}  // namespace ntm
