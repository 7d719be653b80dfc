// `sequence` forward: one launch for all steps, with a block for each sequence.
//
// The memory stays in shared memory for all steps, or else passes through it tile by tile, twice a
// step, from its place in the result. Six barriers a step: hidden state | interface |
// similarity | content to shift | sharpen | read and write.
#include "launch.cuh"
#include "plan.cuh"
#include "sequence.cuh"

namespace ntm {

// A checkpoint is transposed: a warp of either direction then has neighbouring rows on its lanes.
template <typename A>
__device__ void store_checkpoint(const Tile<A>& tile, const NtmSequenceParams& params,
                                 int64_t offset, int N) {
  const Block block;
  A* to = static_cast<A*>(params.saved_checkpoints) + offset + tile.first;
#pragma unroll 1
  for (int column = block.warp; column < tile.word_size; column += block.warps)
#pragma unroll 2
    for (int row = block.lane; row < tile.rows; row += kWarp)
      to[static_cast<int64_t>(column) * N + row] = tile(row, column);
}

// With `InRegisters`, beside a memory that stays in shared memory, part of the recurrent weight is
// held in registers.
template <typename A, bool InRegisters>
__global__ void __launch_bounds__(kMostThreads<A>, 1) sequence_forward_kernel(
    const __grid_constant__ NtmSequenceParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block block;
  const Sizes sizes(params.sizes);
  const bool is_lstm = sizes.is_lstm;
  const int64_t b = blockIdx.x, B = gridDim.x;
  PlacedPieces pieces(plan, shared, InRegisters ? nullptr : params.workspace);
  const SequenceForwardSpace<A> space(pieces, sizes, plan.tile_rows, block.warps);
  const Heads<A> heads(space.vector, sizes);
  const Chain<A> chain = space.chain(Block(), sizes);
  const Rows all{0, sizes.N};
  const int N = sizes.N, M = sizes.M, C = sizes.C, T = sizes.T, P = heads.size;
  const int reads = sizes.R * M, weighting = sizes.H * N;
  const int64_t cells_of_memory = static_cast<int64_t>(N) * M;
  const bool resident = InRegisters || plan.tile_rows >= N;
  const int width = recurrent_width(sizes), gates = is_lstm ? 4 * C : C;
  const int length = length_of(params, sizes), lane_row = block.lane % kRowsAtOnce;
  const NtmArray checkpoints = plain<A>(params.saved_checkpoints);
  const A* interface_bias = static_cast<const A*>(params.interface_bias);
  A* all_weightings = static_cast<A*>(params.saved_weightings);
  A* interfaces = static_cast<A*>(params.saved_interface);
  A* trace_interface = static_cast<A*>(params.out_trace_interface);

  if (resident)
    load_tile(Tile<A>{space.tile, 0, N, M, true}, params.initial_memory, b * cells_of_memory);
  load_vector(block, space.previous, params.initial_weightings, b * weighting, weighting);
  load_vector(block, space.recurrent, params.initial_read_vectors, b * reads, reads);
  if (is_lstm) {
    load_vector(block, space.recurrent + reads, params.initial_hidden, b * C, C);
    load_vector(block, space.cell, params.initial_cell, b * C, C);
  }
  const Weight<A, InRegisters ? kHeldForward.units : 0, kHeldForward.columns> recurrent(
      block, static_cast<const A*>(params.recurrent_weight), gates, width,
      is_lstm ? C : units_of(C), is_lstm ? 1 : kRowsAtOnce, is_lstm ? C : 1, space.near_weights,
      plan.near_units);
  const Weight<A> interface(block, static_cast<const A*>(params.interface_weight), P, C,
                            units_of(P), kRowsAtOnce, 1, space.near_interface,
                            plan.near_interface_units);
  __syncthreads();

  A *now = space.recurrent, *next = space.next_recurrent;
  for (int t = 0; t < length; ++t) {
    const Block block;
    const int64_t at = static_cast<int64_t>(t) * B + b;  // of [T, B]
    A* hidden = next + reads;
    const bool checkpoint = checkpoints.data != nullptr && t % params.sizes.checkpoint_every == 0;
    const int64_t checkpoint_at = (t / params.sizes.checkpoint_every * B + b) * cells_of_memory;

    if (is_lstm) {
      recurrent.times(block, now, [&](int unit, A gate) {
        const bool real = unit < C;
        const int64_t gate_at = at * gates + lane_row * C + unit;
        if (real) gate += load<A>(params.x, gate_at);
        const LstmUnit<A> lstm(block, gate, real ? space.cell[unit] : A(0));
        __syncwarp();  // every lane has read the cell
        if (!real) return;
        if (params.saved_gates != nullptr)
          static_cast<A*>(params.saved_gates)[gate_at] = lstm.activated;
        if (lane_row != 0) return;
        space.cell[unit] = lstm.cell;
        hidden[unit] = lstm.hidden;
        store(params.out_hidden, at * C + unit, lstm.hidden);
        if (params.saved_cells != nullptr)
          static_cast<A*>(params.saved_cells)[at * C + unit] = lstm.cell;
      });
    } else {
      recurrent.times(block, now, [&](int unit, A sum) {
        const int row = kRowsAtOnce * unit + lane_row;
        if (row >= C) return;
        hidden[row] = tanh_of(sum + load<A>(params.x, at * C + row));
        store(params.out_hidden, at * C + row, hidden[row]);
      });
    }
    if (checkpoint && resident)
      store_checkpoint(Tile<A>{space.tile, 0, N, M, true}, params, checkpoint_at, N);
    __syncthreads();

    interface.times(block, hidden, [&](int unit, A sum) {
      const int row = kRowsAtOnce * unit + lane_row;
      if (row >= P) return;
      const A raw = sum + interface_bias[row];
      const A active = heads.activate(row, raw);
      space.vector[row] = active;
      // Of the erase vector, which the backward needs step after step, the activated is kept.
      if (interfaces != nullptr) interfaces[at * P + row] = heads.is_erase(row) ? active : raw;
    });
    __syncthreads();

    activate_taps(block, heads, sizes);
    each_tile(space.tile, sizes, plan.tile_rows, [&](const Tile<A>& tile) {
      if (!resident) {
        const int64_t offset = static_cast<int64_t>(tile.first) * M;
        __syncthreads();
        load_tile(tile, t == 0 ? params.initial_memory : params.out_final_memory,
                  b * cells_of_memory + offset);
        __syncthreads();
        if (checkpoint) store_checkpoint(tile, params, checkpoint_at, N);
      }
      similarity(block, tile, heads, sizes, chain);
    });
    __syncthreads();

    if (trace_interface != nullptr)
      for (int p = block.thread; p < P; p += block.threads)
        trace_interface[at * P + p] = space.vector[p];
    content_interpolate_shift(block, all, heads, sizes, chain, sizes.S > kFewTaps);
    __syncthreads();

    sharpen(block, all, heads, sizes, chain.shifted, chain.powers, chain.powers,
            [&](int head, int row, A w) {
              const int64_t index = static_cast<int64_t>(head) * N + row;
              space.previous[index] = w;  // no warp needs the previous weightings any more
              if (all_weightings != nullptr) all_weightings[at * weighting + index] = w;
              if (params.out_trace_weightings.data != nullptr)
                store(params.out_trace_weightings, at * weighting + index, w);
            });
    __syncthreads();

    each_tile(space.tile, sizes, plan.tile_rows, [&](const Tile<A>& tile) {
      const int64_t offset = b * cells_of_memory + static_cast<int64_t>(tile.first) * M;
      if (!resident) {
        load_tile(tile, t == 0 ? params.initial_memory : params.out_final_memory, offset);
        __syncthreads();
      }
#pragma unroll 1
      for (int column = block.warp; column < M; column += block.warps) {
        read(block, tile, column, space.previous, sizes.R, N, next);
        write(block, tile, column, space.previous + static_cast<int64_t>(sizes.R) * N, sizes.W, N,
              heads.erase, heads.add);
      }
      __syncthreads();
      if (!resident) {
        store_tile(tile, params.out_final_memory, offset);
        __syncthreads();
      }
    });
    for (int i = block.thread; i < reads; i += block.threads)
      store(params.out_read_vectors, at * reads + i, next[i]);
    A* last = now;
    now = next;
    next = last;
  }

  const int every = params.sizes.checkpoint_every;
  for (int64_t t = length; t < T; ++t) {
    const int64_t at = t * B + b;
    clear(block, params.out_hidden, at * C, C);
    clear(block, params.out_read_vectors, at * reads, reads);
    clear(block, params.out_trace_weightings, at * weighting, weighting);
    clear(block, plain<A>(params.out_trace_interface), at * P, P);
    clear(block, plain<A>(params.saved_weightings), at * weighting, weighting);
    clear(block, plain<A>(params.saved_interface), at * P, P);
    clear(block, plain<A>(params.saved_gates), at * gates, gates);
    clear(block, plain<A>(params.saved_cells), at * C, C);
    if (t % every == 0)
      clear(block, checkpoints, (t / every * B + b) * cells_of_memory, cells_of_memory);
  }
  if (resident) {
    store_tile(Tile<A>{space.tile, 0, N, M, true}, params.out_final_memory, b * cells_of_memory);
  } else if (length == 0) {
    each_tile(space.tile, sizes, plan.tile_rows, [&](const Tile<A>& tile) {
      const int64_t offset = b * cells_of_memory + static_cast<int64_t>(tile.first) * M;
      load_tile(tile, params.initial_memory, offset);
      __syncthreads();
      store_tile(tile, params.out_final_memory, offset);
      __syncthreads();
    });
  }
  store_vector(block, space.previous, params.out_final_weightings, b * weighting, weighting);
  store_vector(block, now, params.out_final_read_vectors, b * reads, reads);
  if (is_lstm) {
    store_vector(block, now + reads, params.out_final_hidden, b * C, C);
    store_vector(block, space.cell, params.out_final_cell, b * C, C);
  }
}

}  // namespace ntm

extern "C" int ntm_cuda_sequence_forward(const NtmSequenceParams* params, const NtmPlan* plan,
                                         void* stream) {
  const ntm::Kernel<NtmSequenceParams> single = plan->weights_held
                                                    ? ntm::sequence_forward_kernel<float, true>
                                                    : ntm::sequence_forward_kernel<float, false>;
  return ntm::dispatch(params, *plan, stream, single, ntm::sequence_forward_kernel<double, false>,
                       params->out_final_memory.dtype);
}
