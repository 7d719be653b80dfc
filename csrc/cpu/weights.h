// The weights that every step multiplies with, those of the controller and of the interface, and
// the products with them.
//
// Weights are packed once a call, before the first step: in the arithmetic type, as the right
// factor of `gemm`, or in bfloat16, as that of `Amx`. `Sizes::bfloat16_products` says which of the
// two a call has. Its products then round the rows of the group as well.
#pragma once

#include <cassert>

#include "cpu/amx.h"
#include "cpu/arena.h"
#include "cpu/gemm.h"
#include "sizes.h"

namespace ntm::cpu::NTM_ISA {

// Elements of type T that a packed weight takes.
template <typename T>
inline int64_t packed_weight_size(const Sizes& s, int64_t columns, int64_t inner) {
  if constexpr (Amx<T>::present) {
    using Element = typename Amx<T>::Bfloat16;
    if (s.bfloat16_products) {
      return Amx<T>::packed_size(columns, inner) * int64_t(sizeof(Element)) / int64_t(sizeof(T));
    }
  }
  return packed_size<T>(columns, inner);
}

// Packs weight [inner, columns].
template <typename T>
inline void pack_weight(const Sizes& s, int64_t columns, int64_t inner, const T* weight,
                        T* packed) {
  if constexpr (Amx<T>::present) {
    using Element = typename Amx<T>::Bfloat16;
    if (s.bfloat16_products) {
      return Amx<T>::pack(columns, inner, weight, reinterpret_cast<Element*>(packed));
    }
  }
  pack<T>(columns, inner, weight, packed);
}

// Packs the transpose of weight [columns, rows] as the rows from `at` on of a right factor
// [inner, columns]. In bfloat16 it is the whole factor: `rows` is `inner`.
template <typename T>
inline void pack_weight_transposed(const Sizes& s, int64_t columns, int64_t inner, int64_t at,
                                   int64_t rows, const T* weight, T* packed) {
  if constexpr (Amx<T>::present) {
    using Element = typename Amx<T>::Bfloat16;
    if (s.bfloat16_products) {
      assert(at == 0 && rows == inner);
      return Amx<T>::pack_transposed(columns, inner, weight, reinterpret_cast<Element*>(packed));
    }
  }
  pack_transposed<T>(columns, inner, at, rows, weight, packed);
}

// The products of the rows of a group, at most `most_rows` of them and with inner sizes up to
// `most_inner`, with packed weights.
template <typename T>
class WeightProduct {
 public:
  WeightProduct(Arena& arena, const Sizes& s, int64_t most_rows, int64_t most_inner) {
    if constexpr (Amx<T>::present) {
      using Element = typename Amx<T>::Bfloat16;
      if (s.bfloat16_products) {
        in_bfloat16_ = true;
        rounded_ = arena.take<Element>(Amx<T>::rounded_size(most_rows, most_inner));
      }
    }
  }

  // c = start + a weight, as in `gemm`.
  void operator()(int64_t rows, int64_t columns, int64_t inner, Strided<T> a, const T* weight,
                  const T* start, int64_t start_stride, T* c, int64_t c_stride) const {
    if constexpr (Amx<T>::present) {
      using Element = typename Amx<T>::Bfloat16;
      if (in_bfloat16_) {
        Amx<T>::round_rows(rows, inner, a.data, a.row, rounded_);
        return Amx<T>::product(rows, columns, inner, rounded_,
                               reinterpret_cast<const Element*>(weight), start, start_stride, c,
                               c_stride);
      }
    }
    gemm<T>(rows, columns, inner, a, {weight}, start, start_stride, c, c_stride);
  }

 private:
  bool in_bfloat16_ = false;
  uint16_t* rounded_ = nullptr;  // [rows][inner], bfloat16
};

}  // namespace ntm::cpu::NTM_ISA
