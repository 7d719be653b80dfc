// One update of the RMSProp of Graves (2013), arXiv 1308.0850, equations 38 to 45.
#pragma once

#include "cpu/math.h"
#include "kernels.h"

namespace ntm::cpu::NTM_ISA {

// n ← ρ n + (1 − ρ) g², m ← ρ m + (1 − ρ) g, Δ ← μ Δ − lr g / √(max(n − m², 0) + ε), θ ← θ + Δ.
template <typename T>
inline void graves_rmsprop(const RMSpropRates<T>& rates, int64_t count,
                           const RMSpropArrays<T>& arrays) {
  const T fresh = 1 - rates.decay;
  each<T>(count, [&](int64_t i, auto n) {
    const Vec<T> g = load(arrays.grad + i, n);
    const Vec<T> square = load(arrays.square_avg + i, n) * rates.decay + g * g * fresh;
    store(arrays.square_avg + i, square, n);
    Vec<T> variance = square;
    if (arrays.grad_avg) {
      const Vec<T> mean = load(arrays.grad_avg + i, n) * rates.decay + g * fresh;
      store(arrays.grad_avg + i, mean, n);
      variance = maximum(square - mean * mean, Vec<T>{});
    }
    Vec<T> delta = g * -rates.lr / root<T>(variance + rates.eps);
    if (arrays.delta) {
      delta += load(arrays.delta + i, n) * rates.momentum;
      store(arrays.delta + i, delta, n);
    }
    store(arrays.parameter + i, load(arrays.parameter + i, n) + delta, n);
  });
}

}  // namespace ntm::cpu::NTM_ISA
