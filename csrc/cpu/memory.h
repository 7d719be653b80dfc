// Read and write of one sequence of the batch, each with its backward; the memory is [M][N].
#pragma once

#include "cpu/arena.h"
#include "cpu/gemm.h"
#include "sizes.h"

namespace ntm::cpu::NTM_ISA {

// r = Σ_i w_i M_i: weightings [heads][N] -> read_vectors [heads, M].
template <typename T>
inline void read(const Sizes& s, const T* memory, int64_t heads, const T* weightings, int64_t row,
                 T* read_vectors) {
  dots<T>(heads, s.word_size, s.memory_size, weightings, row, memory, s.row_stride(), read_vectors,
          s.word_size);
}

// Adds to d_weightings [heads][N] and d_memory [M][N].
template <typename T>
inline void read_backward(const Sizes& s, const T* memory, int64_t heads, const T* weightings,
                          int64_t row, const T* d_read_vectors, T* d_weightings, int64_t d_row,
                          T* d_memory) {
  gemm<T>(heads, s.memory_size, s.word_size, {d_read_vectors, s.word_size},
          {memory, s.row_stride()}, d_weightings, d_row, d_weightings, d_row);
  gemm<T>(s.word_size, s.memory_size, heads, {d_read_vectors, 1, s.word_size}, {weightings, row},
          d_memory, s.row_stride(), d_memory, s.row_stride());
}

// M_i ∘ Π_h (1 − w_{h,i} e_h) + Σ_h w_{h,i} a_h of the write heads: memory -> written, which may be
// the same. weightings [W][N], erase and add [W, M].
template <typename T>
inline void write(const Sizes& s, const T* memory, const T* weightings, int64_t row, const T* erase,
                  const T* add, T* written) {
  const int64_t stride = s.row_stride();
  if (s.num_write_heads == 1) {
    for (int64_t m = 0; m < s.word_size; ++m) {
      each<T>(s.memory_size, [&](int64_t i, auto n) {
        const Vec<T> x = load(memory + m * stride + i, n), w = load(weightings + i, n);
        store(written + m * stride + i, x - x * (w * erase[m]) + w * add[m], n);
      });
    }
    return;
  }
  for (int64_t m = 0; m < s.word_size; ++m) {
    each<T>(s.memory_size, [&](int64_t i, auto n) {
      Vec<T> kept = load(memory + m * stride + i, n), added{};
      for (int64_t h = 0; h < s.num_write_heads; ++h) {
        const Vec<T> w = load(weightings + h * row + i, n);
        kept -= kept * (w * erase[h * s.word_size + m]);
        added += w * add[h * s.word_size + m];
      }
      store(written + m * stride + i, kept + added, n);
    });
  }
}

// Room for the products over the other heads of one vector of locations.
template <typename T>
struct Products {
  T* before;   // [W] vectors: the product over the heads before
  T* d_erase;  // [W] vectors

  Products(Arena& arena, const Sizes& s) {
    before = arena.take<T>(s.num_write_heads * kLanes<T>);
    d_erase = arena.take<T>(s.num_write_heads * kLanes<T>);
  }
};

// The part of write_backward that goes through Π_h (1 − w_h e_h). Few heads, a fixed number, keep
// their sums in registers; 0 stands for any number, in `products`.
template <typename T, int Fixed>
inline void erase_backward(const Sizes& s, const T* memory, const T* weightings, int64_t row,
                           const T* erase, Products<T>& products, T* d_memory, T* d_weightings,
                           int64_t d_row, T* d_erase) {
  constexpr int L = kLanes<T>, room = Fixed ? Fixed : 1;
  const int64_t stride = s.row_stride(), word_size = s.word_size,
                heads = Fixed ? Fixed : s.num_write_heads;
  for (int64_t m = 0; m < word_size; ++m) {
    Vec<T> few_sums[room] = {};
    for (int64_t h = 0; !Fixed && h < heads; ++h) store(products.d_erase + h * L, Vec<T>{});
    each<T>(s.memory_size, [&](int64_t i, auto n) {
      T* const d = d_memory + m * stride + i;
      const Vec<T> d_written = load(d, n);
      Vec<T> few_before[room];
      Vec<T> kept = broadcast(T(1));
#pragma GCC unroll 5
      for (int64_t h = 0; h < heads; ++h) {
        if constexpr (Fixed) {
          few_before[h] = kept;
        } else {
          store(products.before + h * L, kept);
        }
        kept -= kept * (load(weightings + h * row + i, n) * erase[h * word_size + m]);
      }
      Vec<T> pull = d_written * load(memory + m * stride + i, n);
#pragma GCC unroll 5
      for (int64_t h = heads - 1; h >= 0; --h) {
        const Vec<T> w = load(weightings + h * row + i, n);
        Vec<T> d_kept;
        if constexpr (Fixed) {
          d_kept = pull * few_before[h];
          few_sums[h] += d_kept * w;
        } else {
          d_kept = pull * load(products.before + h * L);
          store(products.d_erase + h * L, load(products.d_erase + h * L) + d_kept * w);
        }
        T* const d_w = d_weightings + h * d_row + i;
        store(d_w, load(d_w, n) - d_kept * erase[h * word_size + m], n);
        if (h) pull -= pull * (w * erase[h * word_size + m]);
      }
      store(d, d_written * kept, n);
    });
    for (int64_t h = 0; h < heads; ++h) {
      if constexpr (Fixed) {
        d_erase[h * word_size + m] = -sum<T>(few_sums[h]);
      } else {
        d_erase[h * word_size + m] = -sum<T>(load(products.d_erase + h * L));
      }
    }
  }
}

// d_memory [M][N] becomes that of the memory before; d_weightings [W][N] is added to; d_erase and
// d_add [W, M]. Products over the other heads are prefixes times suffixes, never a division: 1 − w
// e may be exactly 0.
template <typename T>
inline void write_backward(const Sizes& s, const T* memory, const T* weightings, int64_t row,
                           const T* erase, const T* add, Products<T>& products, T* d_memory,
                           T* d_weightings, int64_t d_row, T* d_erase, T* d_add) {
  const int64_t stride = s.row_stride(), word_size = s.word_size;
  dots<T>(s.num_write_heads, word_size, s.memory_size, weightings, row, d_memory, stride, d_add,
          word_size);
  gemm<T>(s.num_write_heads, s.memory_size, word_size, {add, word_size}, {d_memory, stride},
          d_weightings, d_row, d_weightings, d_row);
  const auto backward = [&](auto heads) {
    erase_backward<T, heads.value>(s, memory, weightings, row, erase, products, d_memory,
                                   d_weightings, d_row, d_erase);
  };
  switch (s.num_write_heads) {
    case 1:
      return backward(std::integral_constant<int, 1>{});
    case 2:
      return backward(std::integral_constant<int, 2>{});
    case 3:
      return backward(std::integral_constant<int, 3>{});
    case 4:
      return backward(std::integral_constant<int, 4>{});
    case 5:
      return backward(std::integral_constant<int, 5>{});
    default:
      return backward(std::integral_constant<int, 0>{});
  }
}

// `read` and then `write` in place of one head each, weightings [2][N], in one pass over the
// memory.
template <typename T>
inline void read_write(const Sizes& s, T* memory, const T* weightings, int64_t row, const T* erase,
                       const T* add, T* read_vector) {
  const int64_t stride = s.row_stride();
  by_rows<kLanes<T>>(s.word_size, [&](int64_t m, auto rows) {
    Vec<T> sums[kLanes<T>] = {};
    each<T>(s.memory_size, [&](int64_t i, auto n) {
      const Vec<T> r = load(weightings + i, n), w = load(weightings + row + i, n);
#pragma GCC unroll 16
      for (int k = 0; k < rows.value; ++k) {
        T* const at = memory + (m + k) * stride + i;
        const Vec<T> x = load(at, n);
        sums[k] += r * x;
        store(at, x - x * (w * erase[m + k]) + w * add[m + k], n);
      }
    });
    store(read_vector + m, sum_rows<T>(sums), rows.value);
  });
}

// `write_backward` and then `read_backward` of one head each, in one pass over memory and gradient.
template <typename T>
inline void read_write_backward(const Sizes& s, const T* memory, const T* weightings, int64_t row,
                                const T* erase, const T* add, const T* d_read_vector, T* d_memory,
                                T* d_weightings, int64_t d_row, T* d_erase, T* d_add) {
  const int64_t stride = s.row_stride();
  by_rows<kLanes<T> / 2>(s.word_size, [&](int64_t m, auto rows) {
    constexpr int count = rows.value;
    Vec<T> sums[kLanes<T>] = {};  // of d_erase and then of d_add
    each<T>(s.memory_size, [&](int64_t i, auto n) {
      T *const d_r = d_weightings + i, *const d_w = d_weightings + d_row + i;
      const Vec<T> r = load(weightings + i, n), w = load(weightings + row + i, n);
      Vec<T> d_read = load(d_r, n), d_write = load(d_w, n);
#pragma GCC unroll 16
      for (int k = 0; k < count; ++k) {
        const int64_t at = (m + k) * stride + i;
        const Vec<T> x = load(memory + at, n), d = load(d_memory + at, n), d_added = d * w;
        sums[k] -= d_added * x;
        sums[count + k] += d_added;
        d_write += d * (add[m + k] - x * erase[m + k]);
        d_read += x * d_read_vector[m + k];
        store(d_memory + at, d - d_added * erase[m + k] + r * d_read_vector[m + k], n);
      }
      store(d_r, d_read, n);
      store(d_w, d_write, n);
    });
    T results[kLanes<T>];
    store(results, sum_rows<T>(sums));
    for (int k = 0; k < count; ++k) d_erase[m + k] = results[k], d_add[m + k] = results[count + k];
  });
}

}  // namespace ntm::cpu::NTM_ISA
