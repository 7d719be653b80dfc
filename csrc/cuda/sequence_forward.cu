// `sequence` forward: one launch for all steps. A block has one sequence of the batch from its
// first step to its last, so blocks never wait for one another.
//
// Where data lives: the weightings, the activated parameters of the heads, the read vectors and the
// controller's state stay in shared memory. So does the memory, if it fits; otherwise its place is
// the result of the op, and it passes through shared memory tile by tile, twice a step. Weights are
// near as far as there is room (weight.cuh). What the backward needs is stored on the way.
//
// How the threads share a step, between its six barriers:
//
//   controller_step   a warp takes rows of the recurrent weight, or a thread takes one; in each
//                     layer of the controller above the first, after one more barrier, a warp takes
//                     rows of that layer's weight
//   interface_step    a warp takes rows of the interface weight, or four threads take one
//   address           similarity: some lanes take a row of the memory
//                     content_interpolate_shift, sharpen: a thread takes a row of a weighting
//   read_write        a warp takes a column of the memory, or two
#include "launch.cuh"
#include "plan.cuh"
#include "sequence.cuh"

namespace ntm {

template <typename A, int Held, bool Deep>
struct SequenceForward : SequenceOfBlock<A, Held, SequenceForwardSpace<A>> {
  using Base = SequenceOfBlock<A, Held, SequenceForwardSpace<A>>;
  using Base::at, Base::resident, Base::offset_of, Base::whole, Base::each_tile;
  using Base::params, Base::plan, Base::sizes, Base::space, Base::heads, Base::b, Base::length;

  const Chain<A> chain;
  Controller<A, Held, Deep> controller;
  InterfaceWeight<A, Held, kAheadForward> interface;

  __device__ SequenceForward(const Block& block, const NtmSequenceParams& given,
                             const NtmPlan& planned, PlacedPieces pieces)
      : Base(given, planned, pieces),
        chain(space.chain(block, sizes)),
        controller(block, given, planned, sizes, space.controller),
        interface(block, given.interface_weight, interface_shape(sizes, false),
                  neighbouring_rows(sizes.interface_size()), space.near_interface,
                  planned.near_interface_units) {}

  __device__ void load_state(const Block& block) const {
    if (resident())
      load_tile(whole(space.tile), params.initial_memory, b * sizes.memory_elements());
    const int weighting = sizes.weighting_elements(), reads = sizes.read_elements();
    load_vector(block, space.previous, params.initial_weightings, b * weighting, weighting);
    load_vector(block, controller.read_vectors_before(0), params.initial_read_vectors, b * reads,
                reads);
    controller.load_state(block);
  }

  // Call this after all other loads. It leaves weights in registers, and every later call of a
  // function that is not inlined (`load_tile`) would have to save and restore them.
  __device__ void load_weights(const Block& block) {
    interface.load(block);
    controller.load_weights(block);
  }

  // The memory before a segment's first step is kept for the backward.
  __device__ bool is_checkpoint(int t) const {
    return params.saved_checkpoints != nullptr &&
           static_cast<unsigned>(t) % static_cast<unsigned>(params.sizes.checkpoint_every) == 0;
  }
  __device__ int64_t checkpoint_at(int t) const {
    return at(t / params.sizes.checkpoint_every) * sizes.memory_elements();
  }
  // A checkpoint is transposed: a warp of either direction then has neighbouring rows on its lanes.
  __device__ void store_checkpoint(const Tile<A>& tile, int t) const {
    const Block block;
    A* to = static_cast<A*>(params.saved_checkpoints) + checkpoint_at(t) + tile.first;
#pragma unroll 1
    for (int column = block.warp; column < tile.word_size; column += block.warps)
#pragma unroll 2
      for (int row = block.lane; row < tile.rows; row += kWarp)
        to[static_cast<int64_t>(column) * sizes.N + row] = tile(row, column);
  }

  // The hidden state. No thread touches the memory meanwhile, so a checkpoint is taken here.
  __device__ void controller_step(const Block& block, int t) const {
    controller.step(block, t, at(t));
    if (is_checkpoint(t) && resident()) store_checkpoint(whole(space.tile), t);
  }

  // The interface vector, and the parameters of the heads but for the taps: their softmax needs all
  // taps of a head, which come from several warps.
  __device__ void interface_step(const Block& block, int t) const {
    const A* bias = static_cast<const A*>(params.interface_bias);
    A* saved = static_cast<A*>(params.saved_interface);
    interface.times_by_rows(block, controller.output_after(t), [&](int p, A sum) {
      const A raw = sum + bias[p];
      space.parameters[p] = heads.activate(p, raw);
      if (saved != nullptr) saved[at(t) * heads.size + p] = raw;
    });
  }

  // The tile's memory before step t, for a phase that streams it.
  __device__ void load_memory(const Tile<A>& tile, int t) const {
    __syncthreads();  // no thread uses the tile before it any more
    load_tile(tile, t == 0 ? params.initial_memory : params.out_final_memory, offset_of(tile));
    __syncthreads();
  }

  // The weightings, in place of the previous ones.
  __device__ void address(const Block& block, int t) const {
    const Rows all{0, sizes.N};
    activate_taps(block, heads, sizes);
    each_tile(space.tile, [&](const Tile<A>& tile) {
      if (!resident()) {
        load_memory(tile, t);
        if (is_checkpoint(t)) store_checkpoint(tile, t);
      }
      similarity(block, tile, heads, sizes, chain);
    });
    __syncthreads();

    if (A* trace = static_cast<A*>(params.out_trace_interface))
      for (int p = block.thread; p < heads.size; p += block.threads)
        trace[at(t) * heads.size + p] = space.parameters[p];
    content_interpolate_shift(block, all, heads, sizes, chain, sizes.S > kFewTaps);
    __syncthreads();

    A* saved = static_cast<A*>(params.saved_weightings);
    sharpen(block, all, heads, sizes, chain.shifted, chain.powers, chain.powers,
            [&](int head, int row, A w) {
              const int64_t index = static_cast<int64_t>(head) * sizes.N + row;
              const int64_t index_of_step = at(t) * sizes.weighting_elements() + index;
              space.previous[index] = w;  // no warp needs the previous weightings any more
              if (saved != nullptr) saved[index_of_step] = w;
              if (params.out_trace_weightings.data != nullptr)
                store(params.out_trace_weightings, index_of_step, w);
            });
  }

  __device__ void read_write(const Block& block, int t) const {
    const A* weightings = space.previous;  // by now those of this step
    A* read_vectors = controller.read_vectors_before(t + 1);
    each_tile(space.tile, [&](const Tile<A>& tile) {
      if (!resident()) load_memory(tile, t);
      ntm::read_write(block, tile, sizes, weightings, heads, read_vectors);
      if (resident()) return;
      __syncthreads();
      store_tile(tile, params.out_final_memory, offset_of(tile));
    });
  }

  __device__ void store_read_vectors(const Block& block, int t) const {
    const int reads = sizes.read_elements();
    store_vector(block, controller.read_vectors_before(t + 1), params.out_read_vectors,
                 at(t) * reads, reads);
  }

  // Zeros for all that is stored of each step, at the steps beyond the length of the sequence.
  __device__ void clear_padding(const Block& block) const {
    const int weighting = sizes.weighting_elements(), reads = sizes.read_elements();
    const int P = heads.size;
    for (int t = length; t < sizes.T; ++t) {
      controller.clear_padding(block, at(t));
      clear(block, params.out_read_vectors, at(t) * reads, reads);
      clear(block, params.out_trace_weightings, at(t) * weighting, weighting);
      clear(block, plain<A>(params.out_trace_interface), at(t) * P, P);
      clear(block, plain<A>(params.saved_weightings), at(t) * weighting, weighting);
      clear(block, plain<A>(params.saved_interface), at(t) * P, P);
      if (is_checkpoint(t))
        clear(block, plain<A>(params.saved_checkpoints), checkpoint_at(t), sizes.memory_elements());
    }
  }

  __device__ void store_state(const Block& block) const {
    const int weighting = sizes.weighting_elements(), reads = sizes.read_elements();
    if (resident()) {
      store_tile(whole(space.tile), params.out_final_memory, b * sizes.memory_elements());
    } else if (length == 0) {  // no step has stored the memory
      each_tile(space.tile, [&](const Tile<A>& tile) {
        load_memory(tile, 0);
        store_tile(tile, params.out_final_memory, offset_of(tile));
      });
    }
    store_vector(block, space.previous, params.out_final_weightings, b * weighting, weighting);
    store_vector(block, controller.read_vectors_before(length), params.out_final_read_vectors,
                 b * reads, reads);
    controller.store_state(block, length);
  }
};

template <typename A, int Held, bool Deep>
__global__ void __launch_bounds__(kMostThreads<A>, 1) sequence_forward_kernel(
    const __grid_constant__ NtmSequenceParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  SequenceForward<A, Held, Deep> sequence(
      Block(), params, plan, PlacedPieces(plan, shared, Held ? nullptr : params.workspace));
  sequence.load_state(Block());
  sequence.load_weights(Block());
  __syncthreads();
  for (int t = 0; t < sequence.length; ++t) {
    const Block block;
    sequence.controller_step(block, t);
    __syncthreads();
    sequence.interface_step(block, t);
    __syncthreads();
    sequence.address(block, t);  // two barriers: similarity | content to shift | sharpen
    __syncthreads();
    sequence.read_write(block, t);
    __syncthreads();
    sequence.store_read_vectors(block, t);
  }
  sequence.clear_padding(Block());
  sequence.store_state(Block());
}

template <typename A, int Held, bool Deep>
struct ForwardKernel {
  static Kernel<NtmSequenceParams> kernel() { return sequence_forward_kernel<A, Held, Deep>; }
};

}  // namespace ntm

extern "C" int ntm_cuda_sequence_forward(const NtmSequenceParams* params, const NtmPlan* plan,
                                         void* stream) {
  return ntm::dispatch_sequence<ntm::ForwardKernel>(params, *plan, stream,
                                                    params->out_final_memory.dtype);
}
