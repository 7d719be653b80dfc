// Activation of a raw interface vector [P] of one sequence, and its backward.
#pragma once

#include "cpu/math.h"
#include "sizes.h"

namespace ntm::cpu::NTM_ISA {

// Softmax over the taps of one head.
template <typename T>
inline void softmax(int64_t n, const T* from, T* to) {
  T top = from[0];
  for (int64_t i = 1; i < n; ++i) top = from[i] > top ? from[i] : top;
  Vec<T> total{};
  each<T>(n, [&](int64_t i, auto lanes) {
    const Vec<T> e = keep<T>(exp<T>(load(from + i, lanes) - top), lanes);
    total += e;
    store(to + i, e, lanes);
  });
  const T whole = sum<T>(total);
  each<T>(n, [&](int64_t i, auto lanes) { store(to + i, load(to + i, lanes) / whole, lanes); });
}

// raw [P] -> activated [P]; k and a linear, β = softplus, g = sigmoid, s = softmax, γ = 1 +
// softplus, e = sigmoid.
template <typename T>
inline void activate(const Sizes& s, const T* raw_vector, T* activated) {
  const Heads<const T> raw(raw_vector, s);
  const Heads<T> to(activated, s);
  const int64_t heads = s.heads(), written = s.write_heads * s.word;
  each<T>(heads * s.word, [&](int64_t i, auto n) { store(to.key + i, load(raw.key + i, n), n); });
  each<T>(heads, [&](int64_t i, auto n) {
    store(to.strength + i, softplus<T>(load(raw.strength + i, n)), n);
    store(to.gate + i, sigmoid<T>(load(raw.gate + i, n)), n);
    store(to.sharpening + i, softplus<T>(load(raw.sharpening + i, n)) + T(1), n);
  });
  for (int64_t h = 0; h < heads; ++h)
    softmax(s.taps, raw.shift + h * s.taps, to.shift + h * s.taps);
  each<T>(written, [&](int64_t i, auto n) {
    store(to.erase + i, sigmoid<T>(load(raw.erase + i, n)), n);
    store(to.add + i, load(raw.add + i, n), n);
  });
}

// d_interface [P]: from the gradient of the activated to that of the raw vector, in place. Slopes
// come from the raw values: 1 − sigmoid(x) would lose all digits where the sigmoid is nearly 1.
template <typename T>
inline void activate_backward(const Sizes& s, const T* raw_vector, const T* activated,
                              T* d_interface) {
  const Heads<const T> raw(raw_vector, s), active(activated, s);
  const Heads<T> d(d_interface, s);
  const auto scale = [](T* to, int64_t i, auto n, Vec<T> slope) {
    store(to + i, load(to + i, n) * slope, n);
  };
  each<T>(s.heads(), [&](int64_t i, auto n) {
    scale(d.strength, i, n, sigmoid<T>(load(raw.strength + i, n)));
    scale(d.gate, i, n, load(active.gate + i, n) * sigmoid<T>(-load(raw.gate + i, n)));
    scale(d.sharpening, i, n, sigmoid<T>(load(raw.sharpening + i, n)));
  });
  for (int64_t h = 0; h < s.heads(); ++h) {
    const T* taps = active.shift + h * s.taps;
    T* d_taps = d.shift + h * s.taps;
    T mean = 0;
    for (int64_t tap = 0; tap < s.taps; ++tap) mean += taps[tap] * d_taps[tap];
    for (int64_t tap = 0; tap < s.taps; ++tap) d_taps[tap] = taps[tap] * (d_taps[tap] - mean);
  }
  each<T>(s.write_heads * s.word, [&](int64_t i, auto n) {
    scale(d.erase, i, n, load(active.erase + i, n) * sigmoid<T>(-load(raw.erase + i, n)));
  });
}

}  // namespace ntm::cpu::NTM_ISA
