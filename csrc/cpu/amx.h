// Products in bfloat16 by the matrix instructions of x86 processors, AMX. Sums are in float32.
//
// AMX works on tiles, registers of up to 16 rows of 64 bytes. One instruction multiplies a tile of
// the left factor by one of the right factor and adds the product to a tile of sums. A tile of the
// left factor has 32 elements of each row. A tile of the right factor has 16 columns of 32
// elements: its row r holds the elements 2r and 2r + 1 of column 0, then those of column 1, and so
// on.
//
// A packed right factor is its tiles, one after the other along the inner index, and then those of
// the next 16 columns. Beyond the end of the factor they are 0.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/vec.h"

namespace ntm::cpu::NTM_ISA {

// Only the copy for AVX-512 has these functions, where the compiler knows AMX, and only for float.
// They may be called only on processors with AMX.
template <typename T>
struct Amx {
  static constexpr bool present = false;
};

#if defined(__clang__)
#define NTM_COMPILER_KNOWS_AMX (__clang_major__ >= 12)
#else
#define NTM_COMPILER_KNOWS_AMX (__GNUC__ >= 11)
#endif

#if defined(__AVX512F__) && NTM_COMPILER_KNOWS_AMX
#define NTM_AMX __attribute__((target("amx-tile,amx-bf16,avx512bf16")))

template <>
struct Amx<float> {
  using Bfloat16 = uint16_t;

  static constexpr bool present = true;
  static constexpr int64_t kInner = 32, kColumns = 16, kTile = kInner * kColumns;
  static constexpr int64_t kMostRows = 16;
  static constexpr int64_t kSums = 4;  // tiles of sums that a product has at once

  static int64_t tiles_along(int64_t inner) { return (inner + kInner - 1) / kInner; }
  static int64_t tiles_across(int64_t columns) { return (columns + kColumns - 1) / kColumns; }

  // Elements of a packed right factor [inner, columns].
  static int64_t packed_size(int64_t columns, int64_t inner) {
    return tiles_along(inner) * tiles_across(columns) * kTile;
  }

  // Packs weight [inner, columns].
  NTM_AMX static void pack(int64_t columns, int64_t inner, const float* weight, Bfloat16* packed) {
    // Lane 2l is taken from lane l of one row, lane 2l + 1 from lane l of the next.
    alignas(64) uint16_t lanes[kInner];
    for (int l = 0; l < kColumns; ++l) lanes[2 * l] = l, lanes[2 * l + 1] = kColumns + l;
    const __m512i in_pairs = _mm512_load_si512(lanes);
    for (int64_t n = 0; n < columns; n += kColumns) {
      const int64_t wide = std::min(kColumns, columns - n);
      for (int64_t k = 0; k < tiles_along(inner) * kInner; k += 2, packed += kInner) {
        const float* const from = weight + k * columns + n;
        const auto one = (__m512)load(from, k < inner ? wide : 0);
        const auto next = (__m512)load(from + columns, k + 1 < inner ? wide : 0);
        const auto both = (__m512i)_mm512_cvtne2ps_pbh(next, one);
        _mm512_storeu_si512(packed, _mm512_permutexvar_epi16(in_pairs, both));
      }
    }
  }

  // Packs the transpose of weight [columns, inner].
  NTM_AMX static void pack_transposed(int64_t columns, int64_t inner, const float* weight,
                                      Bfloat16* packed) {
    for (int64_t n = 0; n < columns; n += kColumns) {
      for (int64_t k = 0; k < inner; k += kInner, packed += kTile) {
        Vec<float> pairs[kColumns];  // each lane is two elements of 16 bits
        for (int64_t l = 0; l < kColumns; ++l) {
          const int64_t wide = n + l < columns ? inner - k : 0;
          pairs[l] = (Vec<float>)rounded(weight + (n + l) * inner + k, wide);
        }
        transpose<float>(pairs);
        for (int64_t r = 0; r < kColumns; ++r) {
          _mm512_storeu_si512(packed + r * kInner, (__m512i)pairs[r]);
        }
      }
    }
  }

  // Elements of `rows` rows of a left factor, rounded, each in whole tiles.
  static int64_t rounded_size(int64_t rows, int64_t inner) {
    return rows * tiles_along(inner) * kInner;
  }

  NTM_AMX static void round_rows(int64_t rows, int64_t inner, const float* a, int64_t a_stride,
                                 Bfloat16* to) {
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t k = 0; k < inner; k += kInner, to += kInner) {
        _mm512_storeu_si512(to, rounded(a + m * a_stride + k, inner - k));
      }
    }
  }

  // c[m][n] = start[m][n] + Σ_k a[m][k] b[k][n] for 1 to kMostRows rows, as `gemm` has it: a comes
  // from `round_rows`, b is packed. Tiles 0 … 3 are sums, tile 4 is of a, tile 5 of b.
  NTM_AMX static void product(int64_t rows, int64_t columns, int64_t inner, const Bfloat16* a,
                              const Bfloat16* b, const float* start, int64_t start_stride, float* c,
                              int64_t c_stride) {
    constexpr int64_t kWide = kSums * kColumns;
    const int64_t along = tiles_along(inner), a_bytes = along * kInner * sizeof(Bfloat16);
    const int64_t next = along * kTile;  // from a tile of b to that of the next columns
    configure(rows);
    read_by_tiles(a);
    for (int64_t n = 0; n < columns; n += kWide, b += kSums * next) {
      const int64_t across = tiles_across(std::min(kWide, columns - n));
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t k = 0; k < along; ++k) {
        const Bfloat16* const at = b + k * kTile;
        _tile_loadd(4, a + k * kInner, a_bytes);
        _tile_loadd(5, at, 64);
        _tile_dpbf16ps(0, 4, 5);
        if (across > 1) {
          _tile_loadd(5, at + next, 64);
          _tile_dpbf16ps(1, 4, 5);
        }
        if (across > 2) {
          _tile_loadd(5, at + 2 * next, 64);
          _tile_dpbf16ps(2, 4, 5);
        }
        if (across > 3) {
          _tile_loadd(5, at + 3 * next, 64);
          _tile_dpbf16ps(3, 4, 5);
        }
      }
      alignas(64) float sums[kMostRows * kWide];
      _tile_stored(0, sums, kWide * sizeof(float));
      _tile_stored(1, sums + kColumns, kWide * sizeof(float));
      _tile_stored(2, sums + 2 * kColumns, kWide * sizeof(float));
      _tile_stored(3, sums + 3 * kColumns, kWide * sizeof(float));
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t j = 0; j < across * kColumns; j += kColumns) {
          const int64_t wide = std::min(kColumns, columns - n - j);
          Vec<float> sum = load(sums + m * kWide + j);
          if (start) sum += load(start + m * start_stride + n + j, wide);
          store(c + m * c_stride + n + j, sum, wide);
        }
      }
    }
    _tile_release();
  }

 private:
  // The first n of 32 elements, rounded; the others are 0.
  NTM_AMX static __m512i rounded(const float* from, int64_t n) {
    const auto low = (__m512)load(from, std::clamp<int64_t>(n, 0, 16));
    const auto high = (__m512)load(from + 16, std::clamp<int64_t>(n - 16, 0, 16));
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
  }

  // Says that what was written to `at` will be read. The intrinsics of g++ 12 do not say it, and
  // the stores could then come after them, or be left out.
  static void read_by_tiles(const void* at) { asm volatile("" : : "r"(at) : "memory"); }

  // Gives the tiles of a product with so many rows their shapes.
  NTM_AMX static void configure(int64_t rows) {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {};
    } shapes;
    for (int tile = 0; tile < 5; ++tile) shapes.rows[tile] = (uint8_t)rows;
    shapes.rows[5] = kInner / 2;
    read_by_tiles(&shapes);
    _tile_loadconfig(&shapes);
  }
};
#endif

}  // namespace ntm::cpu::NTM_ISA
