// `sequence` backward: one launch for all steps, with a block for each sequence.
//
// The memory before each step is made again from the last checkpoint by repeating the writes since;
// its gradient stays in shared memory, or passes through it tile by tile from its place in the
// result. The gradients of the weights are left to matrix products after the loop.
//
// Seven barriers a step: content to shift | backward of sharpen | of interpolate and shift | of
// similarity and content | of read and write, to the memory | interface and, of the step before,
// the memory | recurrent and, of the step before, the similarity.
#include "launch.cuh"
#include "plan.cuh"
#include "sequence.cuh"

namespace ntm {

// Words of a row that a thread brings forward together.
constexpr int kWordsAtOnce = 5;

// The memory before step t: the last checkpoint, and the writes of the steps since. The memories
// before the `earlier` steps before it, one behind the other, come out on the way.
template <typename A>
__device__ void replay(const Block& block, const Tile<A>& tile, const NtmSequenceParams& params,
                       const Sizes& sizes, const Heads<A>& heads, int t, int earlier) {
  const int64_t b = blockIdx.x, B = gridDim.x;
  const int segment = t / params.sizes.checkpoint_every, last = t % params.sizes.checkpoint_every;
  const int64_t start = segment * params.sizes.checkpoint_every * B + b;  // of [T, B]
  const int N = sizes.N, M = tile.word_size, W = sizes.W, size = tile.rows * tile.stride();
  const int chunks = (tile.rows + kWarp - 1) / kWarp;
  const int some = max(1, min(kWordsAtOnce, M * chunks / block.warps));
#pragma unroll 1
  for (int unit = block.warp; unit / chunks * some < M; unit += block.warps) {
    const int row = unit % chunks * kWarp + block.lane, word = unit / chunks * some;
    if (row >= tile.rows) continue;
    const int words = min(some, M - word);
    const A* checkpoint = static_cast<const A*>(params.saved_checkpoints) +
                          ((segment * B + b) * M + word) * N + tile.first + row;
    const A* w = static_cast<const A*>(params.saved_weightings) + (start * sizes.H + sizes.R) * N +
                 tile.first + row;
    const A* erase = static_cast<const A*>(params.saved_interface) + start * heads.size +
                     heads.index(heads.erase) + word;
    A values[kWordsAtOnce];
#pragma unroll
    for (int i = 0; i < kWordsAtOnce; ++i)
      values[i] = i < words ? checkpoint[static_cast<int64_t>(i) * N] : A(0);
#pragma unroll 1
    for (int write = 0;; ++write) {
      if (write + earlier >= last) {
        A* to = &tile(row, word) + (write + earlier - last) * size;
#pragma unroll
        for (int i = 0; i < kWordsAtOnce; ++i)
          if (i < words) to[i] = values[i];
      }
      if (write == last) break;
      A added[kWordsAtOnce] = {};
#pragma unroll 1
      for (int head = 0; head < W; ++head) {
        const A weight = w[head * N];
        const A *e = erase + head * M, *a = e + W * M;
#pragma unroll
        for (int i = 0; i < kWordsAtOnce; ++i) {
          if (i >= words) continue;
          values[i] *= 1 - weight * e[i];
          added[i] += weight * a[i];
        }
      }
#pragma unroll
      for (int i = 0; i < kWordsAtOnce; ++i) values[i] += added[i];
      w += B * sizes.H * N;
      erase += B * heads.size;
    }
  }
}

// With `InRegisters`, beside a memory that stays in shared memory, part of the recurrent weight is
// held in registers.
template <typename A, bool InRegisters>
__global__ void __launch_bounds__(kMostThreads<A>, 1) sequence_backward_kernel(
    const __grid_constant__ NtmSequenceParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Sizes sizes(params.sizes);
  const bool is_lstm = sizes.is_lstm;
  const int64_t b = blockIdx.x, B = gridDim.x;
  PlacedPieces pieces(plan, shared, InRegisters ? nullptr : params.workspace);
  const SequenceBackwardSpace<A> space(pieces, sizes, plan.tile_rows, blockDim.x / kWarp);
  const Heads<A> heads(space.vector, sizes);
  const int N = sizes.N, M = sizes.M, C = sizes.C, T = sizes.T, P = heads.size;
  const int reads = sizes.R * M, weighting = sizes.H * N;
  const int64_t cells_of_memory = static_cast<int64_t>(N) * M;
  const bool resident = InRegisters || plan.tile_rows >= N;
  const int width = recurrent_width(sizes), gates = is_lstm ? 4 * C : C;
  const int length = length_of(params, sizes);
  const A* all_weightings = static_cast<const A*>(params.saved_weightings);
  const A* interfaces = static_cast<const A*>(params.saved_interface);
  const A* all_gates = static_cast<const A*>(params.saved_gates);
  const A* cells = static_cast<const A*>(params.saved_cells);
  A* d_interfaces = static_cast<A*>(params.d_interface);
  const Tile<A> d_whole{space.d_tile, 0, N, M, true};
  const BackwardChain<A> chain = space.chain(Block(), sizes);

  // dM' of a tile: what the later steps left, or else the gradient of the final memory.
  auto load_d_memory = [&](const Block& block, const Tile<A>& d_tile, bool first) {
    const int64_t offset = b * cells_of_memory + static_cast<int64_t>(d_tile.first) * M;
    if (!first)
      load_tile(d_tile, params.d_initial_memory, offset);
    else if (params.grad_final_memory.data != nullptr)
      load_tile(d_tile, params.grad_final_memory, offset);
    else
      clear_tile(block, d_tile);
  };
  const Block start;
  if (resident) load_d_memory(start, d_whole, true);
  load_or_clear(start, chain.d, params.grad_final_weightings, b * weighting, weighting);
  load_or_clear(start, space.d_recurrent, params.grad_final_read_vectors, b * reads, reads);
  if (is_lstm) {
    load_or_clear(start, space.d_recurrent + reads, params.grad_final_hidden, b * C, C);
    load_or_clear(start, space.d_cell, params.grad_final_cell, b * C, C);
  }
  for (int64_t t = length; t < T; ++t) {
    clear(start, params.d_x, (t * B + b) * gates, gates);
    clear(start, plain<A>(params.d_interface), (t * B + b) * P, P);
  }
  // Both are transposed.
  const Weight<A, InRegisters ? kHeldBackward.units : 0, kHeldBackward.columns> recurrent(
      start, static_cast<const A*>(params.recurrent_weight), width, gates, units_of(width),
      kRowsAtOnce, 1, space.near_weights, plan.near_units);
  const Weight<A> interface(start, static_cast<const A*>(params.interface_weight), C, P,
                            units_of(C), kRowsAtOnce, 1, space.near_interface,
                            plan.near_interface_units);
  __syncthreads();

  int kept = 0;  // of the memories before steps in shared memory, that of the step at work
  auto memory = [&] {
    return Tile<A>{space.tile + kept * N * Tile<A>::stride_of(M), 0, N, M, true};
  };
  // f(tile) for all of the memory.
  auto each_tile_of_memory = [&](auto f) {
    if (resident)
      f(memory());
    else
      each_tile(space.tile, sizes, plan.tile_rows, f);
  };

  // Ends step t, unless it is beyond the last, and begins the step before it.
  for (int t = length; t >= 0; --t) {
    const bool ends = t < length, begins = t > 0;
    const int64_t at = static_cast<int64_t>(t) * B + b, before = at - B;  // of [T, B]
    if (ends) {
      const Block block;
      if (resident)
        read_backward_weightings(block, memory(), space.d_reads, sizes.R, N, chain.weightings,
                                 chain.d, chain.weight_dots);
      address_backward(block, heads, sizes, chain, space.d_taps);
      __syncthreads();
    }
    if (ends) {
      const Block block;

      auto give = [&](int p, A d_raw) { space.d_raw[p] = d_interfaces[at * P + p] = d_raw; };
      auto give_scalar = [&](int p, A d) {
        give(p, d * heads.activate_backward_slope(p, interfaces[at * P + p]));
      };
      // Keys and add vectors are linear, and of the erase vector the activated is at hand.
      auto give_vector = [&](int p, A d) {
        const A erase = space.vector[p];
        give(p, heads.is_erase(p) ? d * erase * (1 - erase) : d);
      };
      scalars_backward(block, heads, sizes, chain, space.d_taps, true, give_scalar);
      each_tile_of_memory([&](const Tile<A>& tile) {
        const Tile<A> d_tile{space.d_tile, tile.first, tile.rows, M, tile.fresh};
        if (!resident) {
          replay(block, tile, params, sizes, heads, t, 0);
          load_d_memory(block, d_tile, t == length - 1);
          __syncthreads();
        }
        auto gather = [&](int p, A d) {
          A& sum = space.d_vector[p];
          if (resident)
            give_vector(p, d);
          else
            sum = tile.fresh ? d : sum + d;
        };
        similarity_read_write_backward(block, tile, d_tile, heads, Parts(sizes), N, space.d_reads,
                                       chain, true, gather);
        if (resident) return;
        __syncthreads();
        store_tile(d_tile, params.d_initial_memory,
                   b * cells_of_memory + static_cast<int64_t>(tile.first) * M);
        __syncthreads();
      });
      if (!resident)
        for (int p = block.thread; p < P; p += block.threads)
          if (p < sizes.H * M || p >= heads.index(heads.erase)) give_vector(p, space.d_vector[p]);
      __syncthreads();
    }

    const Block block;
    const int lane_row = block.lane % kRowsAtOnce;
    if (ends)  // the gradient of the previous weightings is the next dw
      for (int i = block.thread; i < weighting; i += block.threads) chain.d[i] = chain.previous[i];
    if (begins) {
      for (int p = block.thread; p < P; p += block.threads) {
        const A kept = interfaces[before * P + p];
        space.vector[p] = heads.is_erase(p) ? kept : heads.activate(p, kept);
      }
      for (int i = block.thread; i < weighting; i += block.threads)
        chain.weightings[i] = all_weightings[before * weighting + i];
      load_vector(block, chain.previous,
                  t == 1 ? params.initial_weightings : plain<A>(params.saved_weightings),
                  (t == 1 ? b : before - B) * weighting, weighting);
      for (int i = block.thread; i < reads; i += block.threads)
        space.d_reads[i] = load_or_zero<A>(params.grad_read_vectors, before * reads + i) +
                           (ends ? A(0) : space.d_recurrent[i]);
      if (resident && --kept < 0) {
        kept = (t - 1) % params.sizes.checkpoint_every % plan.memories;
        replay(block, Tile<A>{space.tile, 0, N, M, true}, params, sizes, heads, t - 1, kept);
      }
    }
    if (ends)
      interface.times(block, space.d_raw, [&](int unit, A sum) {
        const int row = kRowsAtOnce * unit + lane_row;
        if (row >= C) return;
        const A d_hidden = sum + load_or_zero<A>(params.grad_hidden, at * C + row);
        auto give = [&](int gate, A d_gate) {
          space.d_gates[gate * C + row] = d_gate;
          store(params.d_x, at * gates + gate * C + row, d_gate);
        };
        if (!is_lstm) {
          const A h = load<A>(params.out_hidden, at * C + row);
          give(0, d_hidden * (1 - h * h));
          return;
        }
        const A* gate = all_gates + at * gates + row;
        const A previous =
            t == 0 ? load<A>(params.initial_cell, b * C + row) : cells[before * C + row];
        const LstmUnitBackward<A> d(gate[0], gate[C], gate[2 * C], gate[3 * C], cells[at * C + row],
                                    previous, d_hidden + space.d_recurrent[reads + row],
                                    space.d_cell[row]);
        for (int kind = 0; kind < 4; ++kind) give(kind, d.gates[kind]);
        space.d_cell[row] = d.previous_cell;
      });
    __syncthreads();

    if (ends)
      recurrent.times(block, space.d_gates, [&](int unit, A sum) {
        const int row = kRowsAtOnce * unit + lane_row;
        if (row >= width) return;
        space.d_recurrent[row] = sum;
        if (begins && row < reads) space.d_reads[row] += sum;
      });
    if (begins) {
      activate_taps(block, heads, sizes);
      each_tile_of_memory([&](const Tile<A>& tile) {
        const Tile<A> d_tile{space.d_tile, tile.first, tile.rows, M, tile.fresh};
        if (!resident) {
          __syncthreads();
          replay(block, tile, params, sizes, heads, t - 1, 0);
          load_d_memory(block, d_tile, t == length);
          __syncthreads();
          read_backward_weightings(block, tile, space.d_reads, sizes.R, N, chain.weightings,
                                   chain.d, chain.weight_dots);
        }
        similarity_and_write_backward_weightings(block, tile, d_tile, heads, sizes, chain);
      });
    }
    __syncthreads();
  }

  const Block block;
  if (resident || length == 0) {
    each_tile(space.d_tile, sizes, plan.tile_rows, [&](const Tile<A>& d_tile) {
      if (!resident) {
        __syncthreads();
        load_d_memory(block, d_tile, true);
        __syncthreads();
      }
      store_tile(d_tile, params.d_initial_memory,
                 b * cells_of_memory + static_cast<int64_t>(d_tile.first) * M);
    });
  }
  store_vector(block, chain.d, params.d_initial_weightings, b * weighting, weighting);
  store_vector(block, space.d_recurrent, params.d_initial_read_vectors, b * reads, reads);
  if (is_lstm) {
    store_vector(block, space.d_recurrent + reads, params.d_initial_hidden, b * C, C);
    store_vector(block, space.d_cell, params.d_initial_cell, b * C, C);
  }
}

}  // namespace ntm

extern "C" int ntm_cuda_sequence_backward(const NtmSequenceParams* params, const NtmPlan* plan,
                                          void* stream) {
  const ntm::Kernel<NtmSequenceParams> single = plan->weights_held
                                                    ? ntm::sequence_backward_kernel<float, true>
                                                    : ntm::sequence_backward_kernel<float, false>;
  return ntm::dispatch(params, *plan, stream, single, ntm::sequence_backward_kernel<double, false>,
                       params->d_x.dtype);
}
