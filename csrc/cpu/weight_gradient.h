// The gradients of weights and biases, once those of all steps are there: matrix products whose
// sums run over all steps of all sequences.
//
// The gradient is computed transposed, so that vectors run along the rows of the weight. A thread
// has some panels of those rows. It takes the long sum in chunks of steps. All columns and the bias
// are computed for one chunk before the next: the part of d that the chunk needs is then fetched
// from memory once, and it stays in the first-level cache while a panel is computed.
#pragma once

#include <algorithm>

#include "cpu/gemm.h"
#include "kernels.h"
#include "workspace.h"

namespace ntm::cpu::NTM_ISA {

inline constexpr int64_t kChunk = 64;

template <typename T>
inline int64_t weight_gradient_blocks(const WeightGradient<T>& g) {
  return panels<T>(g.rows);
}

// to[j] += Σ_i from[i][j], row after row.
template <typename T>
inline void accumulate_rows(int64_t rows, int64_t columns, const T* from, int64_t stride, T* to) {
  by_vectors<T, 8>(columns, [&](int64_t j, auto count, auto n) {
    constexpr int L = kLanes<T>;
    Vec<T> sums[count.value];
#pragma GCC unroll 8
    for (int k = 0; k < count.value; ++k) sums[k] = load(to + j + k * L, n);
    for (int64_t i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (int k = 0; k < count.value; ++k) sums[k] += load(from + i * stride + j + k * L, n);
    }
#pragma GCC unroll 8
    for (int k = 0; k < count.value; ++k) store(to + j + k * L, sums[k], n);
  });
}

// The blocks begin … end − 1.
template <typename T>
inline void weight_gradient(const WeightGradient<T>& g, int64_t begin, int64_t end) {
  const int64_t count = panels<T>(g.rows);
  const int64_t first = panel<T>(g.rows, count, begin).first * kLanes<T>;
  const Panel last = panel<T>(g.rows, count, end - 1);
  const int64_t width = std::min((last.first + last.vectors) * kLanes<T>, g.rows) - first;
  int64_t columns = 0;
  for (const auto& part : g.parts) columns += part.columns;
  const Lease lease(columns * width * sizeof(T));
  T* const sums = static_cast<T*>(lease.data());  // [columns of all parts][width], transposed
  zero(columns * width, sums);
  if (g.d_bias) zero(width, g.d_bias + first);

  // The steps from … to − 1, of which the inputs of a part lie in one array.
  const auto add = [&](int64_t from, int64_t to) {
    for (; from < to; from += kChunk) {
      const int64_t length = std::min(to - from, kChunk);
      const T* const d = g.d + from * g.rows + first;
      T* sums_of_part = sums;
      for (const auto& part : g.parts) {
        const int64_t n = part.columns;
        if (n == 0) continue;
        const T* const x =
            from < g.first_count ? part.first + from * n : part.rest + (from - g.first_count) * n;
        gemm<T>(n, width, length, {x, 1, n}, {d, g.rows}, sums_of_part, width, sums_of_part, width);
        sums_of_part += n * width;
      }
      if (g.d_bias) accumulate_rows(length, width, d, g.rows, g.d_bias + first);
    }
  };
  add(0, g.first_count);
  add(g.first_count, g.count);

  const T* from = sums;
  for (const auto& part : g.parts) {
    if (part.columns == 0) continue;
    transpose(part.columns, width, from, width, part.d_weight + first * part.stride, part.stride);
    from += part.columns * width;
  }
}

}  // namespace ntm::cpu::NTM_ISA
