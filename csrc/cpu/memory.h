// Read and write of one sequence of the batch, and their backwards.
//
// Inside the kernels a memory is transposed, [M][N] with rows `Sizes::row_stride` apart: vectors
// run along the locations, of which there are many, and no sum over a word crosses the lanes of a
// vector. A value of a head (an element of its key, erase or add vector) is then one number for a
// whole vector of locations.
#pragma once

#include "cpu/arena.h"
#include "cpu/gemm.h"
#include "sizes.h"

namespace ntm::cpu::NTM_ISA {

// The memory [N, M] of one sequence, as tensors have it -> [M][N].
template <typename T>
inline void load_memory(const Sizes& s, const T* from, T* to) {
  transpose(s.memory_size, s.word_size, from, s.word_size, to, s.row_stride());
}
// The memory at the element `at` of an array, or zeros if there is no array.
template <typename T>
inline void load_memory_or_zero(const Sizes& s, const T* from, int64_t at, T* to) {
  from ? load_memory(s, from + at, to) : zero(s.transposed_size(), to);
}
template <typename T>
inline void store_memory(const Sizes& s, const T* from, T* to) {
  transpose(s.word_size, s.memory_size, from, s.row_stride(), to, s.word_size);
}

// r = Σ_i w_i M_i: weightings [heads, N] -> read_vectors [heads, M].
template <typename T>
inline void read(const Sizes& s, const T* memory, int64_t heads, const T* weightings,
                 T* read_vectors) {
  dots<T>(heads, s.word_size, s.memory_size, weightings, s.memory_size, memory, s.row_stride(),
          read_vectors, s.word_size);
}

// Adds to d_weightings [heads, N] and d_memory [M][N].
template <typename T>
inline void read_backward(const Sizes& s, const T* memory, int64_t heads, const T* weightings,
                          const T* d_read_vectors, T* d_weightings, T* d_memory) {
  const int64_t N = s.memory_size, stride = s.row_stride();
  gemm<T>(heads, N, s.word_size, {d_read_vectors, s.word_size}, {memory, stride}, d_weightings, N,
          d_weightings, N);
  gemm<T>(s.word_size, N, heads, {d_read_vectors, 1, s.word_size}, {weightings, N}, d_memory,
          stride, d_memory, stride);
}

// M_i ∘ Π_h (1 − w_{h,i} e_h) + Σ_h w_{h,i} a_h of the write heads: memory -> written, which may be
// the same array. Computed as M (1 − w e): M − M w e would make NaN of an infinite element.
// weightings [W, N], erase and add [W, M].
template <typename T>
inline void write(const Sizes& s, const T* memory, const T* weightings, const T* erase,
                  const T* add, T* written) {
  const int64_t stride = s.row_stride();
  if (s.num_write_heads == 1) {
    for (int64_t m = 0; m < s.word_size; ++m) {
      each<T>(s.memory_size, [&](int64_t i, auto n) {
        const Vec<T> x = load(memory + m * stride + i, n), w = load(weightings + i, n);
        store(written + m * stride + i, x * (T(1) - w * erase[m]) + w * add[m], n);
      });
    }
    return;
  }
  for (int64_t m = 0; m < s.word_size; ++m) {
    each<T>(s.memory_size, [&](int64_t i, auto n) {
      Vec<T> kept = load(memory + m * stride + i, n), added{};
      for (int64_t h = 0; h < s.num_write_heads; ++h) {
        const Vec<T> w = load(weightings + h * s.memory_size + i, n);
        kept *= T(1) - w * erase[h * s.word_size + m];
        added += w * add[h * s.word_size + m];
      }
      store(written + m * stride + i, kept + added, n);
    });
  }
}

// Where `erase_backward` keeps one vector of locations for each of many write heads.
template <typename T>
struct Products {
  T* before;   // [W] vectors: the product over the heads before
  T* d_erase;  // [W] vectors

  Products(Arena& arena, const Sizes& s)
      : before(arena.take<T>(s.num_write_heads * kLanes<T>)),
        d_erase(arena.take<T>(s.num_write_heads * kLanes<T>)) {}
};

// The part of `write_backward` that goes through Π_h (1 − w_h e_h). The derivative by one factor is
// the product of all others: those of the heads before (a prefix, computed in ascending order)
// times those of the heads after (a suffix, multiplied into the gradient in descending order).
// Dividing the whole product by the factor would fail where 1 − w e is exactly 0.
//
// With `Fixed` write heads, a number known to the compiler, prefixes and sums stay in registers.
// For any other number of heads `Fixed` is 0, and they are kept in `products`.
template <typename T, int Fixed>
inline void erase_backward(const Sizes& s, const T* memory, const T* weightings, const T* erase,
                           Products<T>& products, T* d_memory, T* d_weightings, T* d_erase) {
  constexpr int L = kLanes<T>, room = Fixed ? Fixed : 1;
  const int64_t stride = s.row_stride(), N = s.memory_size, word_size = s.word_size,
                heads = Fixed ? Fixed : s.num_write_heads;
  for (int64_t m = 0; m < word_size; ++m) {
    Vec<T> few_sums[room] = {};
    for (int64_t h = 0; !Fixed && h < heads; ++h) store(products.d_erase + h * L, Vec<T>{});
    each<T>(N, [&](int64_t i, auto n) {
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
        kept *= T(1) - load(weightings + h * N + i, n) * erase[h * word_size + m];
      }
      // The gradient of the product of the factors 0 … h, the factors after h multiplied in.
      Vec<T> d_product = d_written * load(memory + m * stride + i, n);
#pragma GCC unroll 5
      for (int64_t h = heads - 1; h >= 0; --h) {
        const Vec<T> w = load(weightings + h * N + i, n);
        Vec<T> d_factor;
        if constexpr (Fixed) {
          d_factor = d_product * few_before[h];
          few_sums[h] += d_factor * w;
        } else {
          d_factor = d_product * load(products.before + h * L);
          store(products.d_erase + h * L, load(products.d_erase + h * L) + d_factor * w);
        }
        T* const d_w = d_weightings + h * N + i;
        store(d_w, load(d_w, n) - d_factor * erase[h * word_size + m], n);
        if (h) d_product *= T(1) - w * erase[h * word_size + m];
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

// d_memory [M][N] goes from the gradient of the written memory to that of the memory before, in
// place. d_weightings [W, N] is added to; d_erase and d_add [W, M] are set.
template <typename T>
inline void write_backward(const Sizes& s, const T* memory, const T* weightings, const T* erase,
                           const T* add, Products<T>& products, T* d_memory, T* d_weightings,
                           T* d_erase, T* d_add) {
  const int64_t stride = s.row_stride(), N = s.memory_size, word_size = s.word_size;
  dots<T>(s.num_write_heads, word_size, N, weightings, N, d_memory, stride, d_add, word_size);
  gemm<T>(s.num_write_heads, N, word_size, {add, word_size}, {d_memory, stride}, d_weightings, N,
          d_weightings, N);
  const auto backward = [&](auto heads) {
    erase_backward<T, heads.value>(s, memory, weightings, erase, products, d_memory, d_weightings,
                                   d_erase);
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

// `read` by the read heads, then `write` by the write heads, in place: weightings [H, N]. One head
// of each kind, the usual case, does both in one pass over the memory.
template <typename T>
inline void read_write(const Sizes& s, T* memory, const Heads<T>& heads, const T* weightings,
                       T* read_vectors) {
  const int64_t stride = s.row_stride();
  const T* const write_weightings = weightings + s.num_read_heads * s.memory_size;
  const T *const erase = heads.erase, *const add = heads.add;
  if (s.num_read_heads != 1 || s.num_write_heads != 1) {
    read(s, memory, s.num_read_heads, weightings, read_vectors);
    return write(s, memory, write_weightings, erase, add, memory);
  }
  by_rows<kLanes<T>>(s.word_size, [&](int64_t m, auto rows) {
    Vec<T> sums[kLanes<T>] = {};
    each<T>(s.memory_size, [&](int64_t i, auto n) {
      const Vec<T> r = load(weightings + i, n), w = load(write_weightings + i, n);
#pragma GCC unroll 16
      for (int k = 0; k < rows.value; ++k) {
        T* const at = memory + (m + k) * stride + i;
        const Vec<T> x = load(at, n);
        sums[k] += r * x;
        store(at, x * (T(1) - w * erase[m + k]) + w * add[m + k], n);
      }
    });
    store(read_vectors + m, sum_rows<T>(sums), rows.value);
  });
}

// `write_backward`, then `read_backward`: the forward in reverse order. d_memory goes from the
// gradient of the written memory to that of the memory before, d_weightings [H, N] is added to,
// erase and add of d_heads are set. One head of each kind does all in one pass over memory and
// gradient.
template <typename T>
inline void read_write_backward(const Sizes& s, const T* memory, const Heads<T>& heads,
                                const T* weightings, const T* d_read_vectors, Products<T>& products,
                                T* d_memory, T* d_weightings, const Heads<T>& d_heads) {
  const int64_t stride = s.row_stride(), of_writes = s.num_read_heads * s.memory_size;
  const T *const erase = heads.erase, *const add = heads.add;
  if (s.num_read_heads != 1 || s.num_write_heads != 1) {
    write_backward(s, memory, weightings + of_writes, erase, add, products, d_memory,
                   d_weightings + of_writes, d_heads.erase, d_heads.add);
    return read_backward(s, memory, s.num_read_heads, weightings, d_read_vectors, d_weightings,
                         d_memory);
  }
  by_rows<kLanes<T> / 2>(s.word_size, [&](int64_t m, auto rows) {
    constexpr int count = rows.value;
    Vec<T> sums[kLanes<T>] = {};  // of d_erase and then of d_add
    each<T>(s.memory_size, [&](int64_t i, auto n) {
      T *const d_r = d_weightings + i, *const d_w = d_weightings + of_writes + i;
      const Vec<T> r = load(weightings + i, n), w = load(weightings + of_writes + i, n);
      Vec<T> d_read = load(d_r, n), d_write = load(d_w, n);
#pragma GCC unroll 16
      for (int k = 0; k < count; ++k) {
        const int64_t at = (m + k) * stride + i;
        const Vec<T> x = load(memory + at, n), d = load(d_memory + at, n), d_added = d * w;
        sums[k] -= d_added * x;
        sums[count + k] += d_added;
        d_write += d * (add[m + k] - x * erase[m + k]);
        d_read += x * d_read_vectors[m + k];
        store(d_memory + at, d - d_added * erase[m + k] + r * d_read_vectors[m + k], n);
      }
      store(d_r, d_read, n);
      store(d_w, d_write, n);
    });
    T results[kLanes<T>];
    store(results, sum_rows<T>(sums));
    for (int k = 0; k < count; ++k) {
      d_heads.erase[m + k] = results[k], d_heads.add[m + k] = results[count + k];
    }
  });
}

}  // namespace ntm::cpu::NTM_ISA
