// Vectors of the width that the instruction set has, and loops over arrays of any length.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define NTM_INLINE inline __attribute__((always_inline))

namespace ntm::cpu::NTM_ISA {

// As wide as the registers. The compiler would pass every part of a wider vector through memory.
#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
inline constexpr bool kManyRegisters = true;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
inline constexpr bool kManyRegisters = false;
#else
inline constexpr int kVectorBytes = 16;
inline constexpr bool kManyRegisters = false;
#endif

template <typename T, int Bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes)));
};
template <typename T>
using Vec = typename VectorOf<T, kVectorBytes>::type;
template <typename T>
inline constexpr int kLanes = kVectorBytes / sizeof(T);

// The integer that is as wide as a T. A comparison of vectors of T gives a vector of these, −1
// where it is true.
template <typename T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = int32_t;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
};
template <typename T>
using Bits = typename BitsOf<T>::type;

template <typename T>
NTM_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

// Stands for a whole vector, where a function also takes a number of lanes.
struct Full {};

// A vector anywhere in an array of T. The compiler knows that a store of this type changes elements
// of type T alone, and keeps pointers and sizes in registers. Stores by memcpy could change
// anything.
template <typename T>
struct Unaligned {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(alignof(T))));
};

template <typename T>
NTM_INLINE Vec<T> load(const T* from, Full = {}) {
  Vec<T> x = *reinterpret_cast<const typename Unaligned<T>::type*>(from);
#if defined(__x86_64__)
  // Without this the compiler reads it from memory again for every use: three times in the backward
  // of a write.
  asm("" : "+v"(x));
#endif
  return x;
}

template <typename T>
NTM_INLINE void store(T* to, Vec<T> x, Full = {}) {
  *reinterpret_cast<typename Unaligned<T>::type*>(to) = x;
}

// Only the first `lanes`: the others are 0, and memory beyond the first is not touched.
template <typename T>
NTM_INLINE Vec<T> load(const T* from, int64_t lanes) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_maskz_loadu_ps((__mmask16)((1u << lanes) - 1), from);
  } else {
    return (Vec<T>)_mm512_maskz_loadu_pd((__mmask8)((1u << lanes) - 1), from);
  }
#else
  T parts[kLanes<T>] = {};
  for (int64_t lane = 0; lane < lanes; ++lane) parts[lane] = from[lane];
  return load(parts);
#endif
}

template <typename T>
NTM_INLINE void store(T* to, Vec<T> x, int64_t lanes) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << lanes) - 1), (__m512)x);
  } else {
    _mm512_mask_storeu_pd(to, (__mmask8)((1u << lanes) - 1), (__m512d)x);
  }
#else
  T parts[kLanes<T>];
  store(parts, x);
  for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = parts[lane];
#endif
}

template <typename T>
inline void copy(int64_t n, const T* from, T* to) {
  __builtin_memcpy(to, from, n * sizeof(T));
}

template <typename T>
inline void zero(int64_t n, T* to) {
  __builtin_memset(to, 0, n * sizeof(T));
}
// From the element `at` of an array; zeros if there is no array.
template <typename T>
inline void copy_or_zero(int64_t n, const T* from, int64_t at, T* to) {
  from ? copy(n, from + at, to) : zero(n, to);
}

// Asks for n elements to be read, or written, soon: from the memory into the second-level cache. A
// function that only calls this one has to be NTM_INLINE too: to g++ it has no effect, and a call
// of it is dropped.
template <int Write = 0, typename T>
NTM_INLINE void prefetch(int64_t n, const T* at) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = 0; i < n; i += line) __builtin_prefetch(at + i, Write, 2);
}

template <typename T, int... Lane>
constexpr Vec<Bits<T>> iota(std::integer_sequence<int, Lane...>) {
  return Vec<Bits<T>>{Lane...};
}

// first, first + 1, …
template <typename T>
NTM_INLINE Vec<Bits<T>> lanes_from(int64_t first) {
  return iota<T>(std::make_integer_sequence<int, kLanes<T>>{}) + (Bits<T>)first;
}

// x in the first `lanes`, `other` in the rest.
template <typename T>
NTM_INLINE Vec<T> keep(Vec<T> x, int64_t lanes, T other = 0) {
  return lanes_from<T>(0) < (Bits<T>)lanes ? x : broadcast(other);
}
template <typename T>
NTM_INLINE Vec<T> keep(Vec<T> x, Full, T = 0) {
  return x;
}

// body(i, lanes) for every vector of an array of n elements; lanes is Full or what is left.
template <typename T, typename Body>
NTM_INLINE void each(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) body(i, Full{});
  if (i < n) body(i, n - i);
}

// body(i, count) for the rows of a matrix, `Most` at a time, the rest Most / 2 at a time, and so
// on. count is a constant of the compiler.
template <int Most, typename Body>
NTM_INLINE void by_rows(int64_t rows, Body&& body, int64_t i = 0) {
  for (; i + Most <= rows; i += Most) body(i, std::integral_constant<int, Most>{});
  if constexpr (Most > 1) by_rows<Most / 2>(rows, body, i);
}

// body(i, count, lanes) for the vectors of an array of n elements, shared out like rows by
// `by_rows`. A last vector that is not whole comes by itself.
template <typename T, int Most, typename Body>
NTM_INLINE void by_vectors(int64_t n, Body&& body) {
  const int64_t whole = n / kLanes<T>;
  by_rows<Most>(whole, [&](int64_t v, auto count) { body(v * kLanes<T>, count, Full{}); });
  const int64_t rest = n - whole * kLanes<T>;
  if (rest) body(n - rest, std::integral_constant<int, 1>{}, rest);
}

// to[i] += from[i].
template <typename T>
inline void accumulate(int64_t n, const T* from, T* to) {
  each<T>(n, [&](int64_t i, auto lanes) {
    store(to + i, load(to + i, lanes) + load(from + i, lanes), lanes);
  });
}

// to[i] += from[i], and 0 is left in from[i].
template <typename T>
inline void move_into(int64_t n, T* from, T* to) {
  accumulate(n, from, to);
  zero(n, from);
}

template <typename V>
NTM_INLINE V maximum(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
NTM_INLINE V minimum(V a, V b) {
  return a < b ? a : b;
}

// Lanes by their numbers in `a` and, from kLanes on, in `b`.
template <typename T, int... Lane>
NTM_INLINE Vec<T> lanes_of(Vec<T> a, Vec<T> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Lane...);
#else
  return __builtin_shuffle(a, b, Vec<Bits<T>>{Lane...});
#endif
}

// x with every lane l replaced by lane l ^ Bit.
template <typename T, int Bit, int... Lane>
NTM_INLINE Vec<T> exchange(Vec<T> x, std::integer_sequence<int, Lane...>) {
  return lanes_of<T, (Lane ^ Bit)...>(x, x);
}
// All lanes combined, in every lane.
template <typename T, int Bit = kLanes<T> / 2, typename Combine>
NTM_INLINE Vec<T> fold(Vec<T> x, Combine combine) {
  x = combine(x, exchange<T, Bit>(x, std::make_integer_sequence<int, kLanes<T>>{}));
  if constexpr (Bit > 1) {
    return fold<T, Bit / 2>(x, combine);
  } else {
    return x;
  }
}
template <typename T>
NTM_INLINE T sum(Vec<T> x) {
  return fold<T>(x, [](auto a, auto b) { return a + b; })[0];
}
template <typename T>
NTM_INLINE T peak(Vec<T> x) {
  return fold<T>(x, [](auto a, auto b) { return a > b ? a : b; })[0];
}

// Halves of the exchange of a 2 x 2 block in a transposition. Lane l of low_pairs is a[l], or where
// l has the bit b[l ^ Bit]; lane l of high_pairs is a[l ^ Bit], or where l has the bit b[l].
template <typename T, int Bit, int... Lane>
NTM_INLINE Vec<T> low_pairs(Vec<T> a, Vec<T> b, std::integer_sequence<int, Lane...>) {
  return lanes_of<T, ((Lane & Bit) ? (Lane ^ Bit) + kLanes<T> : Lane)...>(a, b);
}
template <typename T, int Bit, int... Lane>
NTM_INLINE Vec<T> high_pairs(Vec<T> a, Vec<T> b, std::integer_sequence<int, Lane...>) {
  return lanes_of<T, ((Lane & Bit) ? Lane + kLanes<T> : (Lane ^ Bit))...>(a, b);
}

// Exchanges rows and columns of a square of vectors.
template <typename T, int Bit = kLanes<T> / 2>
NTM_INLINE void transpose(Vec<T> (&x)[kLanes<T>]) {
  constexpr std::make_integer_sequence<int, kLanes<T>> lanes;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i & Bit) continue;
    const Vec<T> a = x[i], b = x[i | Bit];
    x[i] = low_pairs<T, Bit>(a, b, lanes);
    x[i | Bit] = high_pairs<T, Bit>(a, b, lanes);
  }
  if constexpr (Bit > 1) transpose<T, Bit / 2>(x);
}

// Lane l of the result is the sum of all lanes of x[l].
template <typename T, int Bit = kLanes<T> / 2>
NTM_INLINE Vec<T> sum_rows(Vec<T> (&x)[kLanes<T>]) {
  constexpr std::make_integer_sequence<int, kLanes<T>> lanes;
#pragma GCC unroll 16
  for (int i = 0; i < Bit; ++i) {
    const Vec<T> a = x[i], b = x[i | Bit];
    x[i] = low_pairs<T, Bit>(a, b, lanes) + high_pairs<T, Bit>(a, b, lanes);
  }
  if constexpr (Bit > 1) {
    return sum_rows<T, Bit / 2>(x);
  } else {
    return x[0];
  }
}

// to[j][i] = from[i][j] for i < rows, j < columns.
template <typename T>
inline void transpose(int64_t rows, int64_t columns, const T* from, int64_t from_stride, T* to,
                      int64_t to_stride) {
  each<T>(rows, [&](int64_t i, auto height) {
    each<T>(columns, [&](int64_t j, auto width) {
      constexpr bool whole_height = std::is_same_v<decltype(height), Full>;
      constexpr bool whole_width = std::is_same_v<decltype(width), Full>;
      int high = kLanes<T>, wide = kLanes<T>;
      if constexpr (!whole_height) high = (int)height;
      if constexpr (!whole_width) wide = (int)width;
      Vec<T> block[kLanes<T>];
#pragma GCC unroll 16
      for (int k = 0; k < kLanes<T>; ++k) {
        block[k] = k < high ? load(from + (i + k) * from_stride + j, width) : Vec<T>{};
      }
      transpose<T>(block);
#pragma GCC unroll 16
      for (int k = 0; k < kLanes<T>; ++k) {
        if (k < wide) store(to + (j + k) * to_stride + i, block[k], height);
      }
    });
  });
}

}  // namespace ntm::cpu::NTM_ISA
