// `sequence` backward: one launch for all steps, with a block for each sequence.
//
// The memory before each step is made again from the last checkpoint by repeating the writes since;
// its gradient stays in shared memory, or passes through it tile by tile from its place in the
// result. The gradients of the weights are left to matrix products after the loop.
#include "launch.cuh"
#include "plan.cuh"
#include "sequence.cuh"

namespace ntm {

// The memory before step t: the last checkpoint, and the writes of the steps since.
template <typename A>
__device__ void replay(const Block& block, const Tile<A>& tile, const NtmSequenceParams& params,
                       const Sizes& sizes, const Heads<A>& heads, int t) {
  const int64_t b = blockIdx.x, B = gridDim.x;
  const int segment = t / params.sizes.checkpoint_every;
  const A* checkpoint = static_cast<const A*>(params.checkpoints) +
                        ((segment * B + b) * sizes.N + tile.first) * sizes.M;
  const A* all_weights = static_cast<const A*>(params.all_weights);
  const A* interfaces = static_cast<const A*>(params.interfaces);
  const int64_t erase_at = heads.erase - heads.key, add_at = heads.add - heads.key;
  each_group<1>(block, tile, [&](int index, int row, int word) {
    A value = checkpoint[index];
#pragma unroll 1
    for (int step = segment * params.sizes.checkpoint_every; step < t; ++step) {
      const int64_t at = step * B + b;
      const A* w = all_weights + (at * sizes.H + sizes.R) * sizes.N + tile.first + row;
      const A* interface = interfaces + at * heads.size + word;
      A added = 0;
#pragma unroll 1
      for (int head = 0; head < sizes.W; ++head) {
        const A weight = w[static_cast<int64_t>(head) * sizes.N];
        value *= 1 - weight * interface[erase_at + head * sizes.M];
        added += weight * interface[add_at + head * sizes.M];
      }
      value += added;
    }
    tile(row, word) = value;
  });
}

template <typename A>
__global__ void __launch_bounds__(kMaxThreads, 1) sequence_backward_kernel(
    const __grid_constant__ NtmSequenceParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block block;
  const Sizes sizes(params.sizes);
  const bool is_lstm = sizes.is_lstm;
  const int64_t b = blockIdx.x, B = gridDim.x;
  PlacedPieces pieces(plan, shared, params.workspace);
  const SequenceBackwardSpace<A> space(pieces, sizes, plan.tile_rows, block.warps);
  const Heads<A> heads(space.vector, sizes), d_heads(space.d_vector, sizes);
  Chain<A> chain = space.chain(block.warps);
  const int N = sizes.N, M = sizes.M, C = sizes.C, T = sizes.T, P = heads.size;
  const int reads = sizes.R * M, weighting = sizes.H * N;
  const int64_t cells_of_memory = static_cast<int64_t>(N) * M;
  const bool resident = plan.tile_rows >= N;
  const int width = recurrent_width(sizes), gates = is_lstm ? 4 * C : C;
  const int length = length_of(params, sizes), lane_row = block.lane % kRowsAtOnce;
  // Both are transposed.
  const Weight<A, 0> recurrent(block, static_cast<const A*>(params.recurrent_weight), width, gates,
                               units_of(width), kRowsAtOnce, 1, space.near_weights,
                               plan.near_units);
  const Weight<A, 0> interface(block, static_cast<const A*>(params.interface_weight), C, P,
                               units_of(C), kRowsAtOnce, 1, space.near_interface,
                               plan.near_interface_units);
  const A* all_weights = static_cast<const A*>(params.all_weights);
  const A* interfaces = static_cast<const A*>(params.interfaces);
  const A* all_gates = static_cast<const A*>(params.gates);
  const A* cells = static_cast<const A*>(params.cells);
  A* d_interfaces = static_cast<A*>(params.d_interfaces);

  // dM' of a tile: what the later steps left, or else the gradient of the final memory.
  auto load_d_memory = [&](const Tile<A>& d_tile, bool first) {
    const int64_t offset = b * cells_of_memory + static_cast<int64_t>(d_tile.first) * M;
    if (!first)
      load_tile(d_tile, params.d_initial_memory, offset);
    else if (params.d_memory.data != nullptr)
      load_tile(d_tile, params.d_memory, offset);
    else
      clear_tile(block, d_tile);
  };
  if (resident) load_d_memory(Tile<A>{space.d_tile, 0, N, M, true}, true);
  load_or_clear(block, chain.d, params.d_weights, b * weighting, weighting);
  load_or_clear(block, space.d_recurrent, params.d_final_reads, b * reads, reads);
  if (is_lstm) {
    load_or_clear(block, space.d_recurrent + reads, params.d_final_hidden, b * C, C);
    load_or_clear(block, space.d_cell, params.d_final_cell, b * C, C);
  }
  for (int64_t t = length; t < T; ++t) {
    clear(block, params.d_projected, (t * B + b) * gates, gates);
    clear(block, plain<A>(params.d_interfaces), (t * B + b) * P, P);
  }
  __syncthreads();

  for (int t = length - 1; t >= 0; --t) {
    const int64_t at = static_cast<int64_t>(t) * B + b, before = at - B;
    const bool first = t == length - 1;
    for (int p = block.thread; p < P; p += block.threads) {
      const A kept = interfaces[at * P + p];
      space.vector[p] = heads.is_erase(p) ? kept : heads.activate(p, kept);
    }
    for (int i = block.thread; i < weighting; i += block.threads)
      chain.weights[i] = all_weights[at * weighting + i];
    load_vector(block, chain.previous,
                t == 0 ? params.initial_weights : plain<A>(params.all_weights),
                (t == 0 ? b : before) * weighting, weighting);
    for (int i = block.thread; i < reads; i += block.threads)
      space.d_reads[i] =
          space.d_recurrent[i] + load_or_zero<A>(params.d_read_vectors, at * reads + i);
    if (resident) replay(block, Tile<A>{space.tile, 0, N, M, true}, params, sizes, heads, t);
    __syncthreads();

    activate_shift(block, heads, sizes);
    each_tile(space.tile, sizes, plan.tile_rows, [&](const Tile<A>& tile) {
      const Tile<A> d_tile{space.d_tile, tile.first, tile.rows, M, tile.fresh};
      if (!resident) {
        __syncthreads();
        replay(block, tile, params, sizes, heads, t);
        load_d_memory(d_tile, first);
        __syncthreads();
      }
      step_backward_rows(block, tile, d_tile, heads, sizes, space.d_reads, chain);
    });
    __syncthreads();

    address_backward(block, heads, d_heads, sizes, chain);
    fold_scalars(block, d_heads, sizes, chain);
    each_tile(space.tile, sizes, plan.tile_rows, [&](const Tile<A>& tile) {
      const Tile<A> d_tile{space.d_tile, tile.first, tile.rows, M, tile.fresh};
      if (!resident) {
        replay(block, tile, params, sizes, heads, t);
        load_d_memory(d_tile, first);
        __syncthreads();
      }
      step_backward_columns(block, tile, d_tile, heads, d_heads, sizes, space.d_reads, chain);
      if (!resident) {
        __syncthreads();
        store_tile(d_tile, params.d_initial_memory,
                   b * cells_of_memory + static_cast<int64_t>(tile.first) * M);
        __syncthreads();
      }
    });
    activate_shift_backward(block, heads, d_heads, sizes);
    __syncthreads();

    for (int p = block.thread; p < P; p += block.threads) {
      const A kept = interfaces[at * P + p];
      const A slope = heads.is_erase(p) ? kept * (1 - kept) : heads.slope(p, kept);
      const A d_raw = slope * head_gradient(p, heads, d_heads, sizes, chain.key_norms);
      space.d_raw[p] = d_raw;
      d_interfaces[at * P + p] = d_raw;
    }
    __syncthreads();

    interface.times(block, space.d_raw, [&](int unit, A sum) {
      const int row = kRowsAtOnce * unit + lane_row;
      if (row >= C) return;
      A d_hidden = sum + load_or_zero<A>(params.d_hidden, at * C + row);
      auto give = [&](int gate, A d_gate) {
        space.d_gates[gate * C + row] = d_gate;
        store(params.d_projected, at * gates + gate * C + row, d_gate);
      };
      if (!is_lstm) {
        const A h = load<A>(params.hidden, at * C + row);
        give(0, d_hidden * (1 - h * h));
        return;
      }
      d_hidden += space.d_recurrent[reads + row];
      const A* gate = all_gates + at * gates + row;
      const A i = gate[0], f = gate[C], g = gate[2 * C], o = gate[3 * C];
      const A squashed = tanh_of(cells[at * C + row]);
      const A previous =
          t == 0 ? load<A>(params.initial_cell, b * C + row) : cells[before * C + row];
      const A d_cell = space.d_cell[row] + d_hidden * o * (1 - squashed * squashed);
      give(0, d_cell * g * i * (1 - i));
      give(1, d_cell * previous * f * (1 - f));
      give(2, d_cell * i * (1 - g * g));
      give(3, d_hidden * squashed * o * (1 - o));
      space.d_cell[row] = d_cell * f;
    });
    __syncthreads();

    recurrent.times(block, space.d_gates, [&](int unit, A sum) {
      const int row = kRowsAtOnce * unit + lane_row;
      if (row < width) space.d_recurrent[row] = sum;
    });
    A* d_previous = chain.previous;
    chain.previous = chain.d;
    chain.d = d_previous;
    __syncthreads();
  }

  if (resident || length == 0) {
    each_tile(space.d_tile, sizes, plan.tile_rows, [&](const Tile<A>& d_tile) {
      if (!resident) {
        __syncthreads();
        load_d_memory(d_tile, true);
        __syncthreads();
      }
      store_tile(d_tile, params.d_initial_memory,
                 b * cells_of_memory + static_cast<int64_t>(d_tile.first) * M);
    });
  }
  store_vector(block, chain.d, params.d_initial_weights, b * weighting, weighting);
  store_vector(block, space.d_recurrent, params.d_initial_reads, b * reads, reads);
  if (is_lstm) {
    store_vector(block, space.d_recurrent + reads, params.d_initial_hidden, b * C, C);
    store_vector(block, space.d_cell, params.d_initial_cell, b * C, C);
  }
}

}  // namespace ntm

extern "C" int ntm_cuda_sequence_backward(const NtmSequenceParams* params, const NtmPlan* plan,
                                          void* stream) {
  return ntm::dispatch(params, *plan, stream, ntm::sequence_backward_kernel<float>,
                       ntm::sequence_backward_kernel<double>, params->d_projected.dtype);
}
