// The memory in shared memory: loading and storing it, reading and writing it, and their backwards.
//
// A tile is some rows of the memory that lie in shared memory, often all of them. Threads go
// through it in one of two ways:
//
// - By rows, for sums over the words of a row: some neighbouring lanes share a row (RowUnits).
// - By columns, for sums over the rows: a warp takes one or two and its lanes take the rows, so
//   that a sum needs no other warp. Work on single elements is done here too where it uses the same
//   elements: each warp then reads and writes its own columns and needs no barrier in between.
//
// Shared memory has 32 banks, and lanes that meet on one wait for each other. The rows of a tile
// are an odd number of words apart, which keeps the lanes of a warp on different banks both ways.
#pragma once
#include "block.cuh"
#include "interface.cuh"

namespace ntm {

template <typename A>
struct Tile {
  A* at;      // [rows, stride]
  int first;  // its first row in the memory
  int rows, word_size;
  bool fresh;  // the first tile of the memory: sums over rows start here, and go on in the others

  static __host__ __device__ int stride_of(int word_size) { return word_size | 1; }
  __device__ int stride() const { return stride_of(word_size); }
  __device__ A& operator()(int row, int word) const { return at[row * stride() + word]; }
  __device__ Rows range() const { return {first, rows}; }
};

// f(index, row, word) for each group of `Width` words of a tile; neighbouring threads have
// neighbouring groups. `index` is where the group lies in a global array of the tile's rows. Row
// and word are stepped rather than divided out of it, since divisions are slow.
template <int Width, int Unroll = 4, typename A, typename F>
__device__ void each_group(const Block& block, const Tile<A>& tile, F f) {
  const unsigned groups = static_cast<unsigned>(tile.word_size) / Width;
  const unsigned threads = block.threads, row_step = threads / groups;
  const unsigned group_step = threads - row_step * groups;
  unsigned row = block.thread / groups, group = block.thread - row * groups;
#pragma unroll Unroll
  for (unsigned index = block.thread; index < tile.rows * groups; index += threads) {
    f(index * Width, row, group * Width);
    row += row_step;
    group += group_step;
    if (group >= groups) {
      group -= groups;
      row += 1;
    }
  }
}

// Elements [offset, offset + rows * words) of an array into the tile, four at a time where they are
// aligned. Not inlined: this is code for every dtype and for two widths, and a kernel loads its
// memory in several places. Arguments come by value; references would have to point to a stack, in
// slow local memory.
template <typename A>
__device__ __attribute__((noinline)) void load_tile(Tile<A> tile, NtmArray array, int64_t offset) {
  const Block block;
  Visit<A>::typed(array, [&](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    const T* source = data + offset;
    if (in_fours(source, tile.word_size)) {
      each_group<4>(block, tile, [&](int index, int row, int word) {
        const Four<T> four = *reinterpret_cast<const Four<T>*>(source + index);
        A* to = &tile(row, word);
        for (int i = 0; i < 4; ++i) to[i] = lift(four.value[i]);
      });
    } else {
      each_group<1>(block, tile,
                    [&](int index, int row, int word) { tile(row, word) = lift(source[index]); });
    }
  });
}

template <typename A>
__device__ __attribute__((noinline)) void store_tile(Tile<A> tile, NtmArray array, int64_t offset) {
  const Block block;
  Visit<A>::typed(array, [&](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    T* target = data + offset;
    if (in_fours(target, tile.word_size)) {
      each_group<4>(block, tile, [&](int index, int row, int word) {
        Four<T> four;
        const A* from = &tile(row, word);
        for (int i = 0; i < 4; ++i) lower(from[i], four.value + i);
        *reinterpret_cast<Four<T>*>(target + index) = four;
      });
    } else {
      each_group<1>(block, tile,
                    [&](int index, int row, int word) { lower(tile(row, word), target + index); });
    }
  });
}

template <typename A>
__device__ void clear_tile(const Block& block, const Tile<A>& tile) {
  for (int i = block.thread; i < tile.rows * tile.stride(); i += block.threads) tile.at[i] = 0;
}

// An array of the arithmetic dtype.
template <typename A>
__host__ __device__ NtmArray plain(void* data) {
  return {data, sizeof(A) == 8 ? NTM_FLOAT64 : NTM_FLOAT32};
}

// How lanes share rows. A unit is the rows that a warp sums up at a time, `lanes` of its lanes to a
// row. One lane a row is best if there are rows enough for all warps, as no sum then crosses lanes.
// For fewer rows `lanes` is the largest power of two for which every warp has at most one unit.
struct RowUnits {
  static constexpr int kMostShift = 5;  // all 32 lanes
  int shift, lanes, units;
  __device__ RowUnits(int rows, int warps) {
    // Opaque, since a kernel needs this in several phases, and must not keep it in registers.
    const int chunks = opaque((rows + kWarp - 1) / kWarp);
    // The number of warps is a power of two. `shift` is how many more leading zeros chunks − 1 has
    // than warps − 1: chunks · 2^shift is the largest such number that is at most `warps`.
    shift = min(kMostShift, max(0, __clz(chunks - 1) - __clz(warps - 1)));
    lanes = 1 << shift;
    units = chunks << shift;
  }
  // The first of a lane's words; the others follow at a distance of `lanes`.
  __device__ int part(int lane) const { return lane & (lanes - 1); }
  // The rows of a warp are `lanes` apart. A lane at word p of row r is on bank (r · stride + p) of
  // 32, and with an odd stride these are 32 different ones.
  __device__ int row(int unit, int lane) const {
    return (unit >> shift) * kWarp + (unit & (lanes - 1)) + (lane >> shift << shift);
  }
  template <typename A>
  __device__ A sum(A x) const {
    for (int other = lanes / 2; other > 0; other /= 2) x += __shfl_xor_sync(kAllLanes, x, other);
    return x;
  }
};

// f(word) for the words of a row that belong to one of its lanes, the first of which is `part`.
// Where two or four lanes share a row, the compiler knows how far apart the words are: then the
// addresses of several of them differ by a constant, which costs nothing.
template <int Lanes, typename F>
__device__ void each_word_of(int part, int words, F f) {
#pragma unroll 5
  for (int word = part; word < words; word += Lanes) f(word);
}
template <bool Unrolled, typename F>
__device__ void each_word(const RowUnits& units, int part, int words, F f) {
  if constexpr (Unrolled) {
    if (units.lanes == 2) return each_word_of<2>(part, words, f);
    if (units.lanes == 4) return each_word_of<4>(part, words, f);
  }
#pragma unroll 2
  for (int word = part; word < words; word += units.lanes) f(word);
}

// r = Σ_i w_i M_i for one column of the memory, by one warp: read vectors [R, M] from weightings
// [R, N]. The sums of earlier tiles are added to.
template <typename A>
__device__ void read(const Block& block, const Tile<A>& tile, int column, const A* weightings,
                     int heads, int N, A* read_vectors) {
#pragma unroll 1
  for (int head = 0; head < heads; head += kHeadsAtOnce<A>) {
    const int some = min(kHeadsAtOnce<A>, heads - head);
    const A* w = weightings + static_cast<int64_t>(head) * N + tile.first;
    A sums[kHeadsAtOnce<A>] = {};
#pragma unroll 2
    for (int row = block.lane; row < tile.rows; row += kWarp) {
      const A m = tile(row, column);
#pragma unroll
      for (int i = 0; i < kHeadsAtOnce<A>; ++i)
        if (i < some) sums[i] += w[static_cast<int64_t>(i) * N + row] * m;
    }
#pragma unroll
    for (int i = 0; i < kHeadsAtOnce<A>; ++i) {
      if (i >= some) continue;
      const A sum = warp_sum(sums[i]);
      A& to = read_vectors[(head + i) * tile.word_size + column];
      if (block.lane == 0) to = tile.fresh ? sum : to + sum;
    }
  }
}

// M_i ← M_i Π_h (1 − w_h,i e_h) + Σ_h w_h,i a_h for one column, by one warp; weightings [W, N].
template <typename A>
__device__ void write(const Block& block, const Tile<A>& tile, int column, const A* weightings,
                      int heads, int N, const A* erase, const A* add) {
#pragma unroll 2
  for (int row = block.lane; row < tile.rows; row += kWarp) {
    A kept = tile(row, column), added = 0;
#pragma unroll 1
    for (int head = 0; head < heads; ++head) {
      const A w = weightings[static_cast<int64_t>(head) * N + tile.first + row];
      kept *= 1 - w * erase[head * tile.word_size + column];
      added += w * add[head * tile.word_size + column];
    }
    tile(row, column) = kept + added;
  }
}

// `read` and `write` of a model with one head of each kind. A warp takes two columns: it loads the
// weightings of a row once for both, and each element of the memory once for reading and writing.
template <typename A>
__device__ void read_write_of_one(const Block& block, const Tile<A>& tile, const A* read_weighting,
                                  const A* write_weighting, const A* erase, const A* add,
                                  A* read_vector) {
  const int M = tile.word_size;
  const bool odd = block.lane % 2 != 0;
#pragma unroll 1
  for (int first = 2 * block.warp; first < M; first += 2 * block.warps) {
    // Of an odd number of columns the last is taken twice, and stored twice by the same thread.
    const int second = min(first + 1, M - 1);
    const A e[2] = {erase[first], erase[second]}, a[2] = {add[first], add[second]};
    A sums[2] = {};
#pragma unroll 2
    for (int row = block.lane; row < tile.rows; row += kWarp) {
      const A w = write_weighting[tile.first + row], read_w = read_weighting[tile.first + row];
      A &m = tile(row, first), &other_m = tile(row, second);
      const A before[2] = {m, other_m};
      sums[0] += read_w * before[0];
      sums[1] += read_w * before[1];
      m = before[0] * (1 - w * e[0]) + w * a[0];
      other_m = before[1] * (1 - w * e[1]) + w * a[1];
    }
    // Even lanes get the sum of the first column, odd lanes that of the second.
    const A sum = sum_of_parity(swapped_sum(odd, sums, 1));
    if (block.lane >= 2 || first + block.lane >= M) continue;
    A& to = read_vector[first + block.lane];
    to = tile.fresh ? sum : to + sum;
  }
}

// All heads' reading and writing of a tile. Each column is read before it is written, by the same
// warp. Weightings are those of the read heads and, behind them, of the write heads, [R + W, N].
template <typename A>
__device__ void read_write(const Block& block, const Tile<A>& tile, const Sizes& sizes,
                           const A* weightings, const Heads<A>& heads, A* read_vectors) {
  const A* writing = weightings + static_cast<int64_t>(sizes.R) * sizes.N;
  if (sizes.R == 1 && sizes.W == 1) {
    read_write_of_one(block, tile, weightings, writing, heads.erase, heads.add, read_vectors);
    return;
  }
#pragma unroll 1
  for (int column = block.warp; column < sizes.M; column += block.warps) {
    read(block, tile, column, weightings, sizes.R, sizes.N, read_vectors);
    write(block, tile, column, writing, sizes.W, sizes.N, heads.erase, heads.add);
  }
}

// What the write heads other than `head` leave of an element, Π_other (1 − w e). It is multiplied
// up each time: dividing the product of all heads by one factor would fail where that factor is 0.
template <typename A>
__device__ A kept_by_others(int head, int heads, const A* weightings, int64_t N, const A* erase,
                            int word_size) {
  A kept = 1;
#pragma unroll 1
  for (int other = 0; other < heads; ++other)
    if (other != head) kept *= 1 - weightings[other * N] * erase[other * word_size];
  return kept;
}

// Stores a warp's part of a sum over all rows, added to that of its earlier tiles.
template <typename A>
__device__ void add_part(const Tile<A>& tile, A& own, A part) {
  own = tile.fresh ? part : own + part;
}

// Adds up a part over the lanes first, then stores it as `add_part` does.
template <typename A>
__device__ void give_part(const Block& block, const Tile<A>& tile, const Partials<A>& partials,
                          int head, A part) {
  part = warp_sum(part);
  if (block.lane == 0) add_part(tile, partials.own(head, block.warp), part);
}

// `read_backward_weightings` with at most `AtOnce` heads in a pass over the memory.
template <int AtOnce, typename A>
__device__ void read_backward_weightings_of(const Block& block, const Tile<A>& tile,
                                            const A* d_read_vectors, int heads, int N,
                                            const A* weightings, A* d_weightings,
                                            const Partials<A>& dots) {
  const RowUnits units(tile.rows, block.warps);
#pragma unroll 1
  for (int head = 0; head < heads; head += AtOnce) {
    const int some = min(AtOnce, heads - head);
    const A* d_read = d_read_vectors + head * tile.word_size;
    A parts[AtOnce] = {};
#pragma unroll 1
    for (int unit = block.warp; unit < units.units; unit += block.warps) {
      const int row = units.row(unit, block.lane), part = units.part(block.lane);
      A sums[AtOnce] = {};
      if (row < tile.rows)
        each_word<AtOnce == 1>(units, part, tile.word_size, [&](int word) {
          const A m = tile(row, word);
#pragma unroll
          for (int i = 0; i < AtOnce; ++i)
            if (i < some) sums[i] += d_read[i * tile.word_size + word] * m;
        });
#pragma unroll
      for (int i = 0; i < AtOnce; ++i) {
        if (i >= some) continue;
        const A sum = units.sum(sums[i]);
        if (part != 0 || row >= tile.rows) continue;
        const int64_t at = static_cast<int64_t>(head + i) * N + tile.first + row;
        const A d = d_weightings[at] + sum;
        d_weightings[at] = d;
        if (dots.at != nullptr) parts[i] += d * weightings[at];
      }
    }
    if (dots.at == nullptr) continue;
#pragma unroll
    for (int i = 0; i < AtOnce; ++i)
      if (i < some) give_part(block, tile, dots, head + i, parts[i]);
  }
}

// The backward of `read` to the weightings, dw_i += dr · M_i, for heads [0, heads); weightings and
// d_weightings [heads, N], d_read_vectors [heads, M]. With `dots`, each warp also stores its part
// of Σ dw w, which `sharpen_backward` needs.
template <typename A>
__device__ void read_backward_weightings(const Block& block, const Tile<A>& tile,
                                         const A* d_read_vectors, int heads, int N,
                                         const A* weightings, A* d_weightings,
                                         const Partials<A>& dots) {
  if (heads == 1)  // known to the compiler in this call
    read_backward_weightings_of<1>(block, tile, d_read_vectors, 1, N, weightings, d_weightings,
                                   dots);
  else
    read_backward_weightings_of<kHeadsAtOnce<A>>(block, tile, d_read_vectors, heads, N, weightings,
                                                 d_weightings, dots);
}

// The backward of `write` to the weightings, where dM' is the gradient of the written memory:
//   dw_h,i += dM'_i · (a_h − e_h M_i Π_other (1 − w e)), weightings and d_weightings [W, N].
// With `dots`, also the parts of Σ dw w; the first write head is head `first_head` there.
//
// This is a sum over the words of each row, and is written as the parts of such a loop, a pass for
// each write head, so that `similarity` can run it inside its own loop over the same words.
template <typename A>
struct WriteBackwardWeightings {
  Tile<A> d_written;
  const A* weightings;
  int passes, N;
  const A *erase, *add;
  A* d_weightings;
  Partials<A> dots;
  int first_head;
  A sum, dot;

  __device__ void begin_pass() { dot = 0; }
  __device__ void begin_row() { sum = 0; }
  __device__ void word(int head, int row, int word, A m) {
    const int word_size = d_written.word_size, at = head * word_size + word;
    const A others = passes == 1 ? A(1)
                                 : kept_by_others(head, passes, weightings + d_written.first + row,
                                                  N, erase + word, word_size);
    sum += d_written(row, word) * (add[at] - erase[at] * m * others);
  }
  __device__ void end_row(const RowUnits& units, int head, int row, bool mine) {
    sum = units.sum(sum);
    if (!mine) return;
    const int64_t at = static_cast<int64_t>(head) * N + d_written.first + row;
    sum += d_weightings[at];
    d_weightings[at] = sum;
    if (dots.at != nullptr) dot += sum * weightings[at];
  }
  __device__ void end_pass(const Block& block, int head) {
    if (dots.at != nullptr) give_part(block, d_written, dots, first_head + head, dot);
  }
};

// dw of a model with one head of each kind, where lanes share rows: what comes from writing and,
// with `Reads`, from reading. It is written as the parts of the loop of `similarity_of_pairs`, and
// divides the heads in the same way: even lanes get the sums of the read head, odd lanes those of
// the write head.
template <typename A, bool Reads>
struct ReadWriteBackwardWeightings {
  Tile<A> d_written;
  const A *d_read, *erase, *add;
  const A* weightings;  // [2, N]
  A* d_weightings;      // [2, N]
  Partials<A> dots;
  A sums[2];
  A own;

  __device__ void word(int row, int word, A m) {
    if constexpr (Reads) sums[0] += d_read[word] * m;
    sums[1] += d_written(row, word) * (add[word] - erase[word] * m);
  }
  __device__ void end_words(bool odd, const RowUnits& units) {
    own = swapped_sum(odd, sums, 1);
#pragma unroll 1
    for (int other = 2; other < units.lanes; other *= 2)
      own += __shfl_xor_sync(kAllLanes, own, other);
  }
  // All lanes of a row have its sums by now. Those of which `counts` is true store them.
  __device__ void end_rows(const Block& block, const Tile<A>& tile, int N, int row, bool counts) {
    const int head = block.lane % 2;
    const bool is_wanted = Reads || head == 1;
    A dot = 0;
    if (counts && is_wanted) {
      const int64_t at = static_cast<int64_t>(head) * N + tile.first + row;
      own += d_weightings[at];
      d_weightings[at] = own;
      dot = own * weightings[at];
    }
    dot = sum_of_parity(dot);
    if (block.lane < 2 && is_wanted) add_part(tile, dots.own(head, block.warp), dot);
  }
};

// All passes of `WriteBackwardWeightings`, in a loop of its own.
template <typename A, typename F>
__device__ void write_backward_weightings(const Block& block, const Tile<A>& tile, F parts) {
  const RowUnits units(tile.rows, block.warps);
#pragma unroll 1
  for (int pass = 0; pass < parts.passes; ++pass) {
    parts.begin_pass();
#pragma unroll 1
    for (int unit = block.warp; unit < units.units; unit += block.warps) {
      const int row = units.row(unit, block.lane), part = units.part(block.lane);
      parts.begin_row();
      if (row < tile.rows) {
#pragma unroll 2
        for (int word = part; word < tile.word_size; word += units.lanes)
          parts.word(pass, row, word, tile(row, word));
      }
      parts.end_row(units, pass, row, part == 0 && row < tile.rows);
    }
    parts.end_pass(block, pass);
  }
}

// For a `similarity` that has no other sum to run.
struct NoOtherSums {
  static constexpr int passes = 0;
};

}  // namespace ntm
