// How a block works that has a sequence of its own: the buffers that it keeps in shared memory, and
// the order of the stages of addressing, with the barriers between them.
#pragma once
#include "addressing.cuh"
#include "interface.cuh"
#include "memory.cuh"

namespace ntm {

// The buffers of a forward. Ops without addressing, `read` and `write`, have sizes without taps,
// and get no buffers for it.
template <typename A>
struct ForwardSpace {
  A *tile, *parameters, *read_vectors, *similarity, *previous, *shifted, *gated;
  Pair<A>*scores, *powers;

  // Weightings are taken apart from the rest, since they may lie in the workspace.
  template <typename Pieces>
  __host__ __device__ ForwardSpace(Pieces& pieces, const Sizes& sizes, int tile_rows, int warps) {
    const int64_t weighting = static_cast<int64_t>(sizes.H) * sizes.N;
    const int64_t addressing = sizes.S > 0 ? weighting : 0;
    tile = pieces.template take<A>(static_cast<int64_t>(tile_rows) * Tile<A>::stride_of(sizes.M));
    parameters = pieces.template take<A>(sizes.interface_size());
    read_vectors = pieces.template take<A>(sizes.R * sizes.M);
    previous = pieces.template take_weighting<A>(weighting);
    similarity = pieces.template take_weighting<A>(addressing);
    shifted = pieces.template take_weighting<A>(addressing);
    gated = pieces.template take_weighting<A>(sizes.S > kFewTaps ? addressing : 0);
    scores = pieces.template take<Pair<A>>(sizes.H * warps);
    powers = pieces.template take<Pair<A>>(sizes.H * warps);
  }

  __device__ Chain<A> chain(const Block& block, const Sizes& sizes) const {
    const int share = Rows{0, sizes.N}.shares(block);
    return {similarity,
            previous,
            gated,
            shifted,
            {scores, block.warps, 0, block.warps},
            {powers, share, 0, share}};
  }
};

template <typename A>
struct BackwardSpace {
  A *tile, *d_tile, *parameters, *d_read_vectors, *d_taps;
  A *similarity, *previous, *gated, *shifted, *content, *weightings, *d;
  A *row_norms, *key_norms;
  Pair<A>*scores, *powers;
  A *weighting_dots, *content_dots, *d_sharpening, *d_gate, *d_strength;

  template <typename Pieces>
  __host__ __device__ BackwardSpace(Pieces& pieces, const Sizes& sizes, int tile_rows, int warps) {
    const int64_t tile_size = static_cast<int64_t>(tile_rows) * Tile<A>::stride_of(sizes.M);
    const int64_t weighting = static_cast<int64_t>(sizes.H) * sizes.N;
    const int64_t addressing = sizes.S > 0 ? weighting : 0;
    const int partials = sizes.H * warps;
    tile = pieces.template take<A>(pieces.plan().memories * tile_size);
    d_tile = pieces.template take<A>(tile_size);
    parameters = pieces.template take<A>(sizes.interface_size());
    d_read_vectors = pieces.template take<A>(sizes.R * sizes.M);
    d_taps = pieces.template take<A>(sizes.H * sizes.S);
    weightings = pieces.template take_weighting<A>(weighting);
    d = pieces.template take_weighting<A>(weighting);
    similarity = pieces.template take_weighting<A>(addressing);
    previous = pieces.template take_weighting<A>(addressing);
    gated = pieces.template take_weighting<A>(addressing);
    shifted = pieces.template take_weighting<A>(addressing);
    content = pieces.template take_weighting<A>(addressing);
    row_norms = pieces.template take_weighting<A>(sizes.N);
    key_norms = pieces.template take<A>(sizes.H);
    scores = pieces.template take<Pair<A>>(partials);
    powers = pieces.template take<Pair<A>>(partials);
    weighting_dots = pieces.template take<A>(partials);
    content_dots = pieces.template take<A>(partials);
    d_sharpening = pieces.template take<A>(partials);
    d_gate = pieces.template take<A>(partials);
    d_strength = pieces.template take<A>(partials);
  }

  __device__ BackwardChain<A> chain(const Block& block, const Sizes& sizes) const {
    const int share = Rows{0, sizes.N}.shares(block);
    return {{similarity,
             previous,
             gated,
             shifted,
             {scores, block.warps, 0, block.warps},
             {powers, share, 0, share}},
            content,
            weightings,
            d,
            row_norms,
            key_norms,
            {weighting_dots, block.warps, 0, block.warps},
            {content_dots, share, 0, share},
            {d_gate, share, 0, share},  // done with before `interpolate_shift_backward` has a dg
            {d_sharpening, share, 0, share},
            {d_gate, share, 0, share},
            {d_strength, share, 0, share}};
  }
};

template <typename A>
__device__ void load_vector(const Block& block, A* to, const NtmArray& array, int64_t offset,
                            int count) {
#pragma unroll 1
  for (int i = block.thread; i < count; i += block.threads) to[i] = load<A>(array, offset + i);
}

template <typename A>
__device__ void load_or_clear(const Block& block, A* to, const NtmArray& array, int64_t offset,
                              int count) {
#pragma unroll 1
  for (int i = block.thread; i < count; i += block.threads)
    to[i] = load_or_zero<A>(array, offset + i);
}

// Zeros into part of an array, if there is one.
__device__ inline void clear(const Block& block, const NtmArray& array, int64_t offset,
                             int64_t count) {
  if (array.data == nullptr) return;
  // Zero is all bits zero in every dtype.
  const int halves = array.dtype == NTM_FLOAT64 ? 4 : array.dtype == NTM_FLOAT32 ? 2 : 1;
  unsigned short* data = static_cast<unsigned short*>(array.data) + halves * offset;
  for (int64_t i = block.thread; i < halves * count; i += block.threads) data[i] = 0;
}

template <typename A>
__device__ void store_vector(const Block& block, const A* from, const NtmArray& array,
                             int64_t offset, int count) {
#pragma unroll 1
  for (int i = block.thread; i < count; i += block.threads) store(array, offset + i, from[i]);
}

// The parameters of the heads of sequence b where they come activated, an array for each kind:
// `arrays` are the params of `address`, or a TiledCall. Without `keys` all but the keys.
template <typename A, typename Arrays>
__device__ void load_parameters(const Block& block, const Heads<A>& heads, const Arrays& arrays,
                                const Sizes& sizes, int64_t b, bool keys = true) {
  const int H = sizes.H, M = sizes.M, S = sizes.S;
  if (keys) load_vector(block, heads.key, arrays.key, b * H * M, H * M);
  load_vector(block, heads.strength, arrays.strength, b * H, H);
  load_vector(block, heads.gate, arrays.gate, b * H, H);
  load_vector(block, heads.shift, arrays.shift, b * H * S, H * S);
  load_vector(block, heads.sharpening, arrays.sharpening, b * H, H);
}

// The elements [first, last) of an interface vector, which are activated on the way. The taps stay
// raw until `activate_taps`, which has to wait for a barrier: their softmax needs all taps of a
// head.
template <typename A>
__device__ void load_interface(const Block& block, const Heads<A>& heads, const NtmArray& interface,
                               int64_t b, int first, int last) {
  for (int p = first + block.thread; p < last; p += block.threads)
    heads.key[p] = heads.activate(p, load<A>(interface, b * heads.size + p));
}
template <typename A>
__device__ void load_interface(const Block& block, const Heads<A>& heads, const NtmArray& interface,
                               int64_t b) {
  load_interface(block, heads, interface, b, 0, heads.size);
}

// All of addressing: from a loaded memory, activated parameters and the previous weightings to the
// weightings, f(head, row, w). There are two barriers inside, and none at the end.
template <typename A, typename F>
__device__ void address(const Block& block, const Tile<A>& tile, const Heads<A>& heads,
                        const Sizes& sizes, const Chain<A>& chain, F f) {
  const Rows all{0, sizes.N};
  similarity(block, tile, heads, sizes, chain);
  __syncthreads();
  content_interpolate_shift(block, all, heads, sizes, chain, sizes.S > kFewTaps);
  __syncthreads();
  sharpen(block, all, heads, sizes, chain.shifted, chain.powers, chain.powers, f);
}

// All of its backward but the sums over words and rows of the memory: from dw, the sums Σ dw w, the
// similarities and the norms to the gradients of the products k·M_i and of the previous weightings,
// and to partial sums of those of the scalars. `scalars_backward` and
// `similarity_read_write_backward` follow. There are three barriers inside, and none at the end.
template <typename A>
__device__ void address_backward(const Block& block, const Heads<A>& heads, const Sizes& sizes,
                                 const BackwardChain<A>& chain, A* d_taps) {
  const Rows all{0, sizes.N};
  content_interpolate_shift(block, all, heads, sizes, chain, sizes.S > kFewTaps);
  __syncthreads();
  sharpen_backward(block, all, heads, sizes, chain);
  __syncthreads();
  interpolate_shift_backward(block, all, heads, sizes, chain);
  shift_backward_taps(block, all, sizes, chain, d_taps);
  __syncthreads();
  similarity_content_backward(block, all, heads, sizes, chain);
}

// The gradients of each head's scalars and taps, give(index in the vector, gradient). A warp takes
// a head, beginning with the last warp. With `raw_taps` the gradients of taps are those before
// their softmax.
template <typename A, typename F>
__device__ void scalars_backward(const Block& block, const Heads<A>& heads, const Sizes& sizes,
                                 const BackwardChain<A>& chain, const A* d_taps, bool raw_taps,
                                 F give) {
  const int S = sizes.S;
#pragma unroll 1
  for (int head = block.warps - 1 - block.warp; head < sizes.H; head += block.warps) {
    // A quarter of the lanes adds up the partial results of each scalar. The last quarter repeats
    // the third, and nobody uses its sum.
    const int kind = block.lane % 4;
    const A* values = kind == 0   ? chain.d_strength.of(head)
                      : kind == 1 ? chain.d_gate.of(head)
                                  : chain.d_sharpening.of(head);
    A d = 0;
#pragma unroll 1
    for (int i = block.lane / 4; i < chain.d_strength.count; i += kWarp / 4) d += values[i];
#pragma unroll
    for (int other = 4; other < kWarp; other *= 2) d += __shfl_xor_sync(kAllLanes, d, other);
    const A* group = kind == 0 ? heads.strength : kind == 1 ? heads.gate : heads.sharpening;
    if (block.lane < 3) give(heads.index(group) + head, d);
    const int at = heads.index(heads.shift) + head * S;
    const A* d_tap = d_taps + head * S;
    if (raw_taps)
      activate_backward_taps(block, heads.key + at, d_tap, S,
                             [&](int tap, A d_raw) { give(at + tap, d_raw); });
    else
#pragma unroll 1
      for (int tap = block.lane; tap < S; tap += kWarp) give(at + tap, d_tap[tap]);
  }
}

// The part of a key's gradient that comes from its norm in the denominator of K is a multiple of
// the key, to be subtracted. This is the factor: Σ_i dK_i K_i / ‖k‖², which is β dβ / ‖k‖².
template <typename A>
__device__ A key_norm_part(A strength, A d_strength, A norm) {
  return norm > 0 ? strength * d_strength / (norm * norm) : A(0);
}

// `similarity` and `ReadWriteBackwardWeightings` in one loop over the words of each row, for a
// model with one head of each kind. Returns false, and does nothing, if the model has other heads
// or if no lanes share a row.
template <bool Reads, typename A>
__device__ bool similarity_and_read_write_backward_weightings_of_one(
    const Block& block, const Tile<A>& tile, const Tile<A>& d_tile, const Heads<A>& heads,
    const Sizes& sizes, const A* d_reads, const BackwardChain<A>& chain) {
  const RowUnits units(tile.rows, block.warps);
  if (sizes.R != 1 || sizes.W != 1 || units.lanes == 1) return false;
  similarity_of_pairs(block, tile, heads, sizes, units, chain,
                      ReadWriteBackwardWeightings<A, Reads>{d_tile, d_reads, heads.erase, heads.add,
                                                            chain.weightings, chain.d_weightings(),
                                                            chain.weighting_dots});
  return true;
}

// The similarity, and the part of dw that comes from writing.
template <typename A>
__device__ void similarity_and_write_backward_weightings(const Block& block, const Tile<A>& tile,
                                                         const Tile<A>& d_tile,
                                                         const Heads<A>& heads, const Sizes& sizes,
                                                         const BackwardChain<A>& chain) {
  if (similarity_and_read_write_backward_weightings_of_one<false, A>(block, tile, d_tile, heads,
                                                                     sizes, nullptr, chain))
    return;
  const int64_t writing = static_cast<int64_t>(sizes.R) * sizes.N;
  similarity(
      block, tile, heads, sizes, chain,
      WriteBackwardWeightings<A>{d_tile, chain.weightings + writing, sizes.W, sizes.N, heads.erase,
                                 heads.add, chain.d + writing, chain.weighting_dots, sizes.R});
}

// All that the backward of a step sums over the words of each row: K, the norms, and dw from
// reading and from writing.
template <typename A>
__device__ void similarity_and_read_write_backward_weightings(
    const Block& block, const Tile<A>& tile, const Tile<A>& d_tile, const Heads<A>& heads,
    const Sizes& sizes, const A* d_reads, const BackwardChain<A>& chain) {
  if (similarity_and_read_write_backward_weightings_of_one<true>(block, tile, d_tile, heads, sizes,
                                                                 d_reads, chain))
    return;
  similarity_and_write_backward_weightings(block, tile, d_tile, heads, sizes, chain);
  read_backward_weightings(block, tile, d_reads, sizes.R, sizes.N, chain.weightings, chain.d,
                           chain.weighting_dots);
}

// How many heads read, write and have keys, for `similarity_read_write_backward`; each op that uses
// it has its own.
struct Parts {
  int reads, writes, keys;
  __device__ explicit Parts(const Sizes& sizes) : Parts(sizes.R, sizes.W, sizes.H) {}
  __device__ Parts(int R, int W, int K) : reads(R), writes(W), keys(K) {}
};

// The gradients of a write head at two columns of a row, added to the sums of de and, behind them,
// of da. `d` is dM' for all write heads; the last of them leaves in it what its erasing, and that
// of the others, lets through to dM. `erase` are the head's own values.
template <typename A>
__device__ void write_backward_columns(int head, int heads, const A* weightings, int N,
                                       const A* const (&all_erase)[2], int M, const A (&erase)[2],
                                       const A (&m)[2], A (&d)[2], A (&sums)[4]) {
  const A w = weightings[head * N];
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const A d_added = w * d[c];
    const A others =
        heads == 1 ? A(1) : kept_by_others(head, heads, weightings, N, all_erase[c], M);
    sums[c] -= d_added * m[c] * others;
    sums[2 + c] += d_added;
    if (head == heads - 1) d[c] *= others * (1 - w * erase[c]);
  }
}

// `key_norm_part` of two heads, `first` and the one behind it: a lane gets that of the head whose
// sum it has after `own_sum`.
template <typename A>
__device__ A own_key_norm_part(const Block& block, const Heads<A>& heads, int first, int last,
                               const BackwardChain<A>& chain) {
  A own = 0;
  for (int head = first; head < min(first + 2, last); ++head) {
    const A d_strength = fold_sum(block, chain.d_strength, head);
    const A part = key_norm_part(heads.strength[head], d_strength, chain.key_norms[head]);
    if (head == first + block.lane / 2 % 2) own = part;
  }
  return own;
}

// `key_norm_part` of the read head for even lanes, and of the write head for odd lanes, of a model
// with one head of each kind.
template <typename A>
__device__ A key_norm_part_of_parity(const Block& block, const Heads<A>& heads,
                                     const BackwardChain<A>& chain) {
  const int head = block.lane % 2;
  const A* parts = chain.d_strength.of(head);
  A d_strength = 0;
#pragma unroll 1
  for (int i = block.lane / 2; i < chain.d_strength.count; i += kWarp / 2) d_strength += parts[i];
  return key_norm_part(heads.strength[head], sum_of_parity(d_strength), chain.key_norms[head]);
}

// `similarity_read_write_backward` of a model with one head of each kind: one pass over the rows
// has everything, and all sums of two columns are reduced together.
template <typename A, typename F>
__device__ void similarity_read_write_backward_of_one(const Block& block, const Tile<A>& tile,
                                                      const Tile<A>& d_tile, const Heads<A>& heads,
                                                      int N, const A* d_reads,
                                                      const BackwardChain<A>& chain, bool whole,
                                                      F give) {
  const int M = tile.word_size;
  const A* read_weighting = chain.weightings + tile.first;
  const A* d_product = chain.d_products() + tile.first;
  const A* norm_part = chain.norm_parts() + tile.first;
  // After `own_sum` a lane has one of eight sums, of which four belong to a column: de, da, and dk
  // of the read head and of the write head. These are where they begin in the vector.
  const int lane_column = block.lane % 2, kind = block.lane / 2 % 4;
  const int begins = kind == 0   ? heads.index(heads.erase)
                     : kind == 1 ? heads.index(heads.add)
                                 : kind % 2 * M;
  A key_part = 0;
  if (whole && tile.fresh) {
    const A of_parity = key_norm_part_of_parity(block, heads, chain);
    key_part = __shfl_sync(kAllLanes, of_parity, kind % 2);
  }
#pragma unroll 1
  for (int first = 2 * block.warp; first < M; first += 2 * block.warps) {
    // Of an odd number of columns the last is taken twice, and stored twice by the same thread.
    const int column[2] = {first, min(first + 1, M - 1)};
    A erase[2], d_read[2], read_key[2], write_key[2], sums[8] = {};
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      erase[c] = heads.erase[column[c]];
      d_read[c] = d_reads[column[c]];
      read_key[c] = heads.key[column[c]];
      write_key[c] = heads.key[M + column[c]];
    }
#pragma unroll 2
    for (int row = block.lane; row < tile.rows; row += kWarp) {
      const A read_w = read_weighting[row], write_w = read_weighting[N + row];
      const A read_d_product = d_product[row], write_d_product = d_product[N + row];
      const A norm_parts = norm_part[row] + norm_part[N + row];
      const A m[2] = {tile(row, column[0]), tile(row, column[1])};
      A d[2] = {d_tile(row, column[0]), d_tile(row, column[1])};
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const A d_added = write_w * d[c];
        sums[c] -= d_added * m[c];
        sums[2 + c] += d_added;
        sums[4 + c] += read_d_product * m[c];
        sums[6 + c] += write_d_product * m[c];
        d[c] = d[c] * (1 - write_w * erase[c]) + read_w * d_read[c];
        d[c] += read_d_product * read_key[c] + write_d_product * write_key[c];
        d[c] -= norm_parts * m[c];
      }
      d_tile(row, column[0]) = d[0];
      d_tile(row, column[1]) = d[1];
    }
    const A own = own_sum(block, sums);
    const int at = first + lane_column;
    if (block.lane < 8 && at < M)
      give(begins + at, kind < 2 ? own : own - key_part * heads.key[begins + at]);
  }
}

// `similarity_read_write_backward` of any number of heads.
//
// A warp takes two columns for all rows, so that every sum is within one warp and no two warps meet
// on an element of dM. The first passes have a write head each. All but the last of them need dM'
// unchanged; read heads and keys, which change it, begin with the last one, two in a pass. So the
// operands and the sums of a pass fit into registers.
template <typename A, typename F>
__device__ void similarity_read_write_backward_of_several_heads(
    const Block& block, const Tile<A>& tile, const Tile<A>& d_tile, const Heads<A>& heads,
    const Parts& parts, int N, const A* d_reads, const BackwardChain<A>& chain, bool whole,
    F give) {
  const int M = tile.word_size, R = parts.reads, W = parts.writes, K = parts.keys;
  const int first_other = max(0, W - 1), passes = first_other + max(1, (max(R, K) + 1) / 2);
  // After `own_sum` a lane has one of four sums: that of a column, from one half of the array.
  const int lane_column = block.lane % 2, lane_half = block.lane / 2 % 2;
#pragma unroll 1
  for (int first = 2 * block.warp; first < M; first += 2 * block.warps) {
    // Of an odd number of columns the last is taken twice, and stored twice by the same thread.
    const int column[2] = {first, min(first + 1, M - 1)};
    const A* const all_erase[2] = {heads.erase + column[0], heads.erase + column[1]};
    const bool mine = block.lane < 4 && first + lane_column < M;
#pragma unroll 1
    for (int pass = 0; pass < passes; ++pass) {
      const int other = 2 * (pass - first_other);
      // Of two heads and two columns: element 2 h + c is that of head `other` + h and column c. The
      // sums of a write head are de of both columns, then da.
      A erase[2] = {}, d_read[4] = {}, key[4] = {}, d_write[4] = {}, d_key[4] = {};
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (pass < W) erase[c] = heads.erase[pass * M + column[c]];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = other + h;
          if (head >= 0 && head < R) d_read[2 * h + c] = d_reads[head * M + column[c]];
          if (head >= 0 && head < K) key[2 * h + c] = heads.key[head * M + column[c]];
        }
      }
#pragma unroll 1
      for (int row = block.lane; row < tile.rows; row += kWarp) {
        const int at = tile.first + row;
        const A m[2] = {tile(row, column[0]), tile(row, column[1])};
        A d[2] = {d_tile(row, column[0]), d_tile(row, column[1])};
        if (pass < W)
          write_backward_columns(pass, W, chain.weightings + R * N + at, N, all_erase, M, erase, m,
                                 d, d_write);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = other + h;
          if (head < 0) continue;
          if (head < R) {
            const A w = chain.weightings[head * N + at];
#pragma unroll
            for (int c = 0; c < 2; ++c) d[c] += w * d_read[2 * h + c];
          }
          if (head < K) {
            const A d_product = chain.d_products()[head * N + at];
            const A norm_part = chain.norm_parts()[head * N + at];
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              d_key[2 * h + c] += d_product * m[c];
              d[c] += d_product * key[2 * h + c] - norm_part * m[c];
            }
          }
        }
        d_tile(row, column[0]) = d[0];
        d_tile(row, column[1]) = d[1];
      }
      if (pass < W) {
        const A own = own_sum(block, d_write);
        const A* group = lane_half == 0 ? heads.erase : heads.add;
        if (mine) give(heads.index(group) + pass * M + first + lane_column, own);
      }
      if (other >= 0 && other < K) {
        const A own = own_sum(block, d_key);
        const A own_part =
            whole && tile.fresh ? own_key_norm_part(block, heads, other, K, chain) : A(0);
        const int at = (other + lane_half) * M + first + lane_column;
        if (mine && other + lane_half < K) give(at, own - own_part * heads.key[at]);
      }
    }
  }
}

// The backward of read and write, and the rest of that of the similarity, which
// `similarity_content_backward` has begun. It turns dM', the gradient of the memory after the step,
// into dM, that of the memory before it, in the same place, and sums over the rows, give(index in
// the vector, gradient):
//   dk = Σ_i d(k·M_i) M_i, da = Σ_i w_i dM'_i, de = −Σ_i w_i dM'_i M_i Π_other (1 − w e),
//   dM_i = dM'_i Π_h (1 − w_h e_h) + Σ w dr + Σ d(k·M_i) k − Σ (the norm's part) M_i.
//
// With `whole`, the tile is all of the memory: dβ is complete, and dk is given whole. Otherwise the
// part of dk that comes from ‖k‖ is left to whoever adds up the tiles.
//
// `OfOne` false leaves out the code for one head of each kind, for a kernel without registers for
// it.
template <bool OfOne = true, typename A, typename F>
__device__ void similarity_read_write_backward(const Block& block, const Tile<A>& tile,
                                               const Tile<A>& d_tile, const Heads<A>& heads,
                                               const Parts& parts, int N, const A* d_reads,
                                               const BackwardChain<A>& chain, bool whole, F give) {
  if constexpr (OfOne) {
    if (parts.reads == 1 && parts.writes == 1 && parts.keys == 2) {
      similarity_read_write_backward_of_one(block, tile, d_tile, heads, N, d_reads, chain, whole,
                                            give);
      return;
    }
  }
  similarity_read_write_backward_of_several_heads(block, tile, d_tile, heads, parts, N, d_reads,
                                                  chain, whole, give);
}

}  // namespace ntm
