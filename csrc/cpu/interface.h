// Activation of a raw interface vector [P] of one sequence, and its backward.
#pragma once

#include "cpu/math.h"
#include "sizes.h"

namespace ntm::cpu::NTM_ISA {

// The scalars of all heads lie side by side as [β | g | taps | γ] and are activated in one pass.
// Each kind has another function, but all are functions of e^−|x|: every vector computes them all,
// and each lane takes the one of its place.
struct Places {
  int64_t gate, shift, sharpening, end;
  explicit Places(const Sizes& s)
      : gate(s.num_heads()),
        shift(2 * s.num_heads()),
        sharpening(shift + s.num_heads() * s.num_taps),
        end(s.scalars()) {}
};

// raw [P] -> activated [P]: k and a as they are, β = softplus, g = sigmoid, s = softmax over the
// taps, γ = 1 + softplus, e = sigmoid.
template <typename T>
inline void activate(const Sizes& s, const T* raw_vector, T* activated) {
  const Heads<const T> raw(raw_vector, s);
  const Heads<T> to(activated, s);
  const Places places(s);
  const int64_t written = s.num_write_heads * s.word_size;
  copy(s.num_heads() * s.word_size + places.end, raw.key, to.key);
  for (T* shift = to.shift; shift < to.sharpening; shift += s.num_taps) {
    T top = shift[0];
    for (int64_t tap = 1; tap < s.num_taps; ++tap) top = shift[tap] > top ? shift[tap] : top;
    for (int64_t tap = 0; tap < s.num_taps; ++tap) shift[tap] -= top;
  }
  each<T>(places.end, [&](int64_t i, auto n) {
    const Vec<T> x = load(to.strength + i, n), e = exp<T>(-absolute<T>(x));
    const Vec<Bits<T>> place = lanes_from<T>(i);
    const Vec<T> positive = softplus<T>(x, e);
    Vec<T> y = place < (Bits<T>)places.sharpening ? e : positive + T(1);
    y = place < (Bits<T>)places.shift ? sigmoid<T>(x, e) : y;
    y = place < (Bits<T>)places.gate ? positive : y;
    store(to.strength + i, y, n);
  });
  for (T* shift = to.shift; shift < to.sharpening; shift += s.num_taps) {
    T total = 0;
    for (int64_t tap = 0; tap < s.num_taps; ++tap) total += shift[tap];
    for (int64_t tap = 0; tap < s.num_taps; ++tap) shift[tap] /= total;
  }
  each<T>(written,
          [&](int64_t i, auto n) { store(to.erase + i, sigmoid<T>(load(raw.erase + i, n)), n); });
  copy(written, raw.add, to.add);
}

// d_interface [P] goes from the gradient of the activated to that of the raw vector, in place. The
// slopes are computed from the raw values as sigmoid(−x): 1 − sigmoid(x) has no correct digit where
// the sigmoid is nearly 1.
template <typename T>
inline void activate_backward(const Sizes& s, const T* raw_vector, const T* activated,
                              T* d_interface) {
  const Heads<const T> raw(raw_vector, s), active(activated, s);
  const Heads<T> d(d_interface, s);
  const Places places(s);
  each<T>(places.end, [&](int64_t i, auto n) {
    const Vec<T> x = load(raw.strength + i, n), y = load(active.strength + i, n);
    const Vec<Bits<T>> place = lanes_from<T>(i);
    const auto gate = (place >= (Bits<T>)places.gate) & (place < (Bits<T>)places.shift);
    const auto shift = (place >= (Bits<T>)places.shift) & (place < (Bits<T>)places.sharpening);
    const Vec<T> rising = sigmoid<T>(gate ? -x : x);
    const Vec<T> slope = shift ? y : gate ? y * rising : rising;
    store(d.strength + i, load(d.strength + i, n) * slope, n);
  });
  for (int64_t i = 0; i < s.num_heads() * s.num_taps; i += s.num_taps) {
    T total = 0;
    for (int64_t tap = i; tap < i + s.num_taps; ++tap) total += d.shift[tap];
    for (int64_t tap = i; tap < i + s.num_taps; ++tap) d.shift[tap] -= active.shift[tap] * total;
  }
  each<T>(s.num_write_heads * s.word_size, [&](int64_t i, auto n) {
    const Vec<T> slope = load(active.erase + i, n) * sigmoid<T>(-load(raw.erase + i, n));
    store(d.erase + i, load(d.erase + i, n) * slope, n);
  });
}

}  // namespace ntm::cpu::NTM_ISA
