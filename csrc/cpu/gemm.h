// Small matrix products.
//
// A product is computed tile by tile: a few rows times a few vectors of columns, whose sums stay in
// registers while the inner index runs. So each row of the right factor is read once for all rows
// of a tile.
//
// Every element is one chain of additions in the order of the inner index, whatever the other sizes
// are. A row of the result therefore has the same bits alone or beside others, on one thread or on
// many.
#pragma once

#include "cpu/vec.h"

namespace ntm::cpu::NTM_ISA {

// The largest tile: rows of a, vectors of columns of b. 32 registers hold 8 x 3 sums, with the
// vectors of b beside them, and 16 registers hold 6 x 2. Eight rows are a whole group of sequences,
// which then reads each weight from the second-level cache once.
inline constexpr int kTileRows = kManyRegisters ? 8 : 6;
inline constexpr int kTileVectors = kManyRegisters ? 3 : 2;

// A matrix seen through strides: element (i, j) is data[i * row + j * column].
template <typename T>
struct Strided {
  const T* data;
  int64_t row;
  int64_t column = 1;
};

// The right factor [K, n], read by vectors along n. Either plain: rows `stride` elements apart. Or
// packed (stride 0): one panel of columns after the other, each as wide as a tile and stored as
// [K][width], so that a product reads its memory from the beginning to the end.
template <typename T>
struct Columns {
  const T* data;
  int64_t stride = 0;
};

// A panel: its first vector of columns, and how many it has. The vectors of n columns are shared
// out over `count` panels as evenly as possible, since narrow tiles are slow.
struct Panel {
  int64_t first;
  int vectors;
};
template <typename T>
inline int64_t panels(int64_t n) {
  const int64_t vectors = (n + kLanes<T> - 1) / kLanes<T>;
  return (vectors + kTileVectors - 1) / kTileVectors;
}
template <typename T>
inline Panel panel(int64_t n, int64_t count, int64_t index) {
  const int64_t vectors = (n + kLanes<T> - 1) / kLanes<T>, extra = vectors % count;
  const int64_t before = index < extra ? index : extra;
  return {index * (vectors / count) + before, int(vectors / count + (index < extra))};
}

template <typename T>
struct Tile {
  int64_t inner;
  Strided<T> a;  // rows x inner
  const T* b;    // inner x vectors
  int64_t b_stride;
  const T* start;  // the sums are added to it; null stands for 0
  int64_t start_stride;
  T* c;
  int64_t c_stride;
  int64_t last;  // lanes of the last vector, kLanes if whole
};

// sums[i][j] += a[i] b[j] for one inner index: a column of a times a row of b.
template <typename T, int Rows, int Vectors, bool Ragged>
NTM_INLINE void add_product(const Tile<T>& t, const T* a, const T* b,
                            Vec<T> (&sums)[Rows][Vectors]) {
  constexpr int L = kLanes<T>;
  Vec<T> row[Vectors];
#pragma GCC unroll 4
  for (int j = 0; j < Vectors; ++j) {
    row[j] = Ragged && j == Vectors - 1 ? load(b + j * L, t.last) : load(b + j * L);
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
    const Vec<T> x = broadcast(a[i * t.a.row]);
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) sums[i][j] += x * row[j];
  }
}

template <typename T, int Rows, int Vectors, bool Ragged>
inline void tile(const Tile<T>& t) {
  constexpr int L = kLanes<T>, width = Vectors * L;
  Vec<T> sums[Rows][Vectors] = {};
  const T* a = t.a.data;
  const T* b = t.b;
  int64_t k = 0;
  // With a packed right factor and adjacent elements of a row, two inner indices at a time: the
  // compiler knows how far the second is from the first, so that fewer addresses are computed.
  if (t.a.column == 1 && t.b_stride == width) {
    for (; k + 2 <= t.inner; k += 2, a += 2, b += 2 * width) {
      add_product<T, Rows, Vectors, Ragged>(t, a, b, sums);
      add_product<T, Rows, Vectors, Ragged>(t, a + 1, b + width, sums);
    }
  }
  for (; k < t.inner; ++k, a += t.a.column, b += t.b_stride) {
    add_product<T, Rows, Vectors, Ragged>(t, a, b, sums);
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      const T* from = t.start + i * t.start_stride + j * L;
      T* to = t.c + i * t.c_stride + j * L;
      if (Ragged && j == Vectors - 1) {
        if (t.start) sums[i][j] += load(from, t.last);
        store(to, sums[i][j], t.last);
      } else {
        if (t.start) sums[i][j] += load(from);
        store(to, sums[i][j]);
      }
    }
  }
}

template <typename T, int Rows, int Vectors>
inline void tile_of(int rows, int vectors, const Tile<T>& t) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return tile_of<T, Rows - 1, Vectors>(rows, vectors, t);
  }
  if constexpr (Vectors > 1) {
    if (vectors < Vectors) return tile_of<T, Rows, Vectors - 1>(rows, vectors, t);
  }
  if (t.last < kLanes<T>) return tile<T, Rows, Vectors, true>(t);
  tile<T, Rows, Vectors, false>(t);
}

// c[m][n] = start[m][n] + Σ_k a[m][k] b[k][n]. start may be c itself, or null for 0; with a
// start_stride of 0 it is one row for all. It is added last: if the sum began with a large bias,
// the small terms would be rounded away one by one.
template <typename T>
inline void gemm(int64_t rows, int64_t columns, int64_t inner, Strided<T> a, Columns<T> b,
                 const T* start, int64_t start_stride, T* c, int64_t c_stride) {
  constexpr int L = kLanes<T>;
  const int64_t blocks = (rows + kTileRows - 1) / kTileRows, count = panels<T>(columns);
  for (int64_t index = 0; index < count; ++index) {
    const Panel p = panel<T>(columns, count, index);
    const int64_t n = p.first * L, whole = n + p.vectors * L;
    Tile<T> t;
    t.inner = inner;
    t.b = b.data + (b.stride ? n : n * inner);
    t.b_stride = b.stride ? b.stride : p.vectors * L;
    t.start_stride = start_stride;
    t.c_stride = c_stride;
    t.last = whole <= columns ? L : L - (whole - columns);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t m = block * rows / blocks, height = (block + 1) * rows / blocks - m;
      t.a = {a.data + m * a.row, a.row, a.column};
      t.start = start ? start + m * start_stride + n : nullptr;
      t.c = c + m * c_stride + n;
      tile_of<T, kTileRows, kTileVectors>((int)height, p.vectors, t);
    }
  }
}

template <typename T>
inline int64_t packed_size(int64_t columns, int64_t inner) {
  return (columns + kLanes<T> - 1) / kLanes<T> * kLanes<T> * inner;
}

// body(n, width, present) for every panel of a right factor: its first column, its width in whole
// vectors, and how many of its columns exist. A packed panel has zeros in the others.
template <typename T, typename Body>
inline void by_panels(int64_t columns, Body&& body) {
  const int64_t count = panels<T>(columns);
  for (int64_t index = 0; index < count; ++index) {
    const Panel p = panel<T>(columns, count, index);
    const int64_t n = p.first * kLanes<T>, width = p.vectors * kLanes<T>;
    body(n, width, n + width <= columns ? width : columns - n);
  }
}

// Packs weight [inner, columns].
template <typename T>
inline void pack(int64_t columns, int64_t inner, const T* weight, T* packed) {
  by_panels<T>(columns, [&](int64_t n, int64_t width, int64_t present) {
    for (int64_t k = 0; k < inner; ++k) {
      T* const to = packed + n * inner + k * width;
      each<T>(present, [&](int64_t j, auto lanes) {
        store(to + j, load(weight + k * columns + n + j, lanes), lanes);
      });
      for (int64_t j = present; j < width; ++j) to[j] = 0;
    }
  });
}

// Packs the transpose of weight [columns, rows] as the rows from `at` on of a right factor
// [inner, columns].
template <typename T>
inline void pack_transposed(int64_t columns, int64_t inner, int64_t at, int64_t rows,
                            const T* weight, T* packed) {
  by_panels<T>(columns, [&](int64_t n, int64_t width, int64_t present) {
    T* const to = packed + n * inner + at * width;
    transpose(present, rows, weight + n * rows, rows, to, width);
    for (int64_t k = 0; k < rows; ++k) {
      for (int64_t j = present; j < width; ++j) to[k * width + j] = 0;
    }
  });
}

// c[i][j] = Σ_n a[i][n] b[j][n] for `Rows` rows of a, with vectors along n. In blocks of
// Rows x (lanes / Rows) elements: their sums are as many vectors as a vector has lanes, which
// `sum_rows` reduces all together.
template <typename T, int Rows, bool Add>
inline void dots_of(int64_t columns, int64_t n, const T* a, int64_t a_stride, const T* b,
                    int64_t b_stride, T* c, int64_t c_stride) {
  constexpr int L = kLanes<T>, Wide = L / Rows;
  for (int64_t j = 0; j < columns; j += Wide) {
    const T* row[Wide];
    for (int q = 0; q < Wide; ++q) row[q] = b + (j + q < columns ? j + q : j) * b_stride;
    Vec<T> sums[L] = {};
    each<T>(n, [&](int64_t i, auto lanes) {
      Vec<T> left[Rows];
#pragma GCC unroll 16
      for (int p = 0; p < Rows; ++p) left[p] = load(a + p * a_stride + i, lanes);
#pragma GCC unroll 16
      for (int q = 0; q < Wide; ++q) {
        const Vec<T> right = load(row[q] + i, lanes);
#pragma GCC unroll 16
        for (int p = 0; p < Rows; ++p) sums[p * Wide + q] += left[p] * right;
      }
    });
    T results[L];
    store(results, sum_rows<T>(sums));
    const int64_t wide = columns - j < Wide ? columns - j : Wide;
    for (int p = 0; p < Rows; ++p) {
      for (int64_t q = 0; q < wide; ++q) {
        T& to = c[p * c_stride + j + q];
        to = results[p * Wide + q] + (Add ? to : T(0));
      }
    }
  }
}

// c[m][k] = Σ_n a[m][n] b[k][n], or with Add c[m][k] += the sum.
template <typename T, bool Add = false>
inline void dots(int64_t rows, int64_t columns, int64_t n, const T* a, int64_t a_stride, const T* b,
                 int64_t b_stride, T* c, int64_t c_stride) {
  for (int64_t i = 0; i < rows;) {
    const T* from = a + i * a_stride;
    T* to = c + i * c_stride;
    constexpr int many = kLanes<T> < 4 ? kLanes<T> : 4;
    if (i + many <= rows) {
      dots_of<T, many, Add>(columns, n, from, a_stride, b, b_stride, to, c_stride);
      i += many;
    } else if (i + 2 <= rows) {
      dots_of<T, 2, Add>(columns, n, from, a_stride, b, b_stride, to, c_stride);
      i += 2;
    } else {
      dots_of<T, 1, Add>(columns, n, from, a_stride, b, b_stride, to, c_stride);
      i += 1;
    }
  }
}

}  // namespace ntm::cpu::NTM_ISA
