// The gradients of weights and biases, once those of all steps are there: matrix products whose
// sums run over all steps of all sequences.
//
// The gradient is computed transposed, so that vectors run along the rows of the weight. A thread
// has some panels of those rows. It takes the long sum in chunks of steps: the part of d that a
// chunk needs stays in the first-level cache while all columns are computed.
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

// The blocks begin … end − 1.
template <typename T>
inline void weight_gradient(const WeightGradient<T>& g, int64_t begin, int64_t end) {
  const int64_t count = panels<T>(g.rows);
  const int64_t first = panel<T>(g.rows, count, begin).first * kLanes<T>;
  const Panel last = panel<T>(g.rows, count, end - 1);
  const int64_t width = std::min((last.first + last.vectors) * kLanes<T>, g.rows) - first;
  int64_t most = 0;
  for (const auto& part : g.parts) most = std::max(most, part.columns);
  const Lease lease(most * width * sizeof(T));
  T* const sums = static_cast<T*>(lease.data());  // [columns][width], the gradient transposed

  for (const auto& part : g.parts) {
    const int64_t n = part.columns;
    if (n == 0) continue;
    zero(n * width, sums);
    const auto add = [&](int64_t rows, const T* x, const T* d) {
      for (int64_t from = 0; from < rows; from += kChunk) {
        const int64_t length = std::min(rows - from, kChunk);
        gemm<T>(n, width, length, {x + from * n, 1, n}, {d + from * g.rows + first, g.rows}, sums,
                width, sums, width);
      }
    };
    add(g.first_count, part.first, g.d);
    add(g.count - g.first_count, part.rest, g.d + g.first_count * g.rows);
    transpose(n, width, sums, width, part.d_weight + first * part.stride, part.stride);
  }

  if (!g.d_bias) return;
  zero(width, g.d_bias + first);
  for (int64_t i = 0; i < g.count; ++i)
    accumulate(width, g.d + i * g.rows + first, g.d_bias + first);
}

}  // namespace ntm::cpu::NTM_ISA
