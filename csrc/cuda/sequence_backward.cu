// `sequence` backward: one launch for all steps, from the last one to the first. A block has one
// sequence of the batch, as in the forward.
//
// Where data lives: dM, the gradient of the memory, stays in shared memory, or has its place in the
// result and passes through shared memory in tiles. The memories themselves are not kept by the
// forward, but for one at the start of each segment of steps, a checkpoint. The memory before any
// other step is replayed: made again from the checkpoint by repeating the writes since. If there is
// room, a replay leaves the memories of several steps of the segment in shared memory, and the
// steps before take theirs from there. The gradients of the weights are left to matrix products
// after the launch, over the gradients that it stores for all steps.
//
// A step has seven barriers. What works on step t and what prepares step t − 1 share phases:
//
//   address_backward      step t: content to shift again | sharpen_backward |
//                         interpolate_shift_backward | similarity_content_backward
//   read_write_backward   step t: its gradients go to the memory and to the heads' parameters
//   interface_backward    step t: to the gates of the controller
//     load_step, replay   step t − 1: what the forward saved, and the memory
//   controller_backward   step t: to the read vectors and hidden state of step t − 1. Of several
//                         layers each but the first is a phase of its own, with a barrier
//     similarity_step     step t − 1: the similarities again
#include "launch.cuh"
#include "plan.cuh"
#include "sequence.cuh"

namespace ntm {

// Words of a row that a thread replays together: their writes share the loads of the weightings.
constexpr int kWordsAtOnce = 5;

template <typename A, int Held, bool Deep>
struct SequenceBackward : SequenceOfBlock<A, Held, SequenceBackwardSpace<A>> {
  using Base = SequenceOfBlock<A, Held, SequenceBackwardSpace<A>>;
  using Base::at, Base::batch, Base::resident, Base::offset_of, Base::whole, Base::each_tile;
  using Base::params, Base::plan, Base::sizes, Base::space, Base::heads, Base::b, Base::length;

  const BackwardChain<A> chain;
  ControllerBackward<A, Held, Deep> controller;
  InterfaceWeight<A, Held, kAheadBackward> interface;
  // Shared memory has the memories before `plan.memories` steps in a row; that of the step at work
  // is in this place.
  int place = 0;

  __device__ SequenceBackward(const Block& block, const NtmSequenceParams& given,
                              const NtmPlan& planned, PlacedPieces pieces)
      : Base(given, planned, pieces),
        chain(space.chain(block, sizes)),
        controller(block, given, planned, sizes, space.controller),
        interface(block, given.interface_weight, interface_shape(sizes, true),
                  neighbouring_rows(sizes.C), space.near_interface, planned.near_interface_units) {}

  // The raw interface vector of a step.
  __device__ const A* saved_interface(int t) const {
    return static_cast<const A*>(params.saved_interface) + at(t) * heads.size;
  }
  __device__ A* d_interface(int t) const {
    return static_cast<A*>(params.d_interface) + at(t) * heads.size;
  }

  // dM of a tile as the step after left it; after the last step, the gradient of the final memory.
  __device__ void load_d_memory(const Block& block, const Tile<A>& d_tile, bool after_last) const {
    if (!after_last)
      load_tile(d_tile, params.d_initial_memory, offset_of(d_tile));
    else if (params.grad_final_memory.data != nullptr)
      load_tile(d_tile, params.grad_final_memory, offset_of(d_tile));
    else
      clear_tile(block, d_tile);
  }

  __device__ void load_grads(const Block& block) const {
    const int weighting = sizes.weighting_elements(), reads = sizes.read_elements();
    if (resident()) load_d_memory(block, whole(space.d_tile), true);
    load_or_clear(block, chain.d_weightings(), params.grad_final_weightings, b * weighting,
                  weighting);
    load_or_clear(block, controller.d_read_vectors(), params.grad_final_read_vectors, b * reads,
                  reads);
    controller.load_grads(block);
  }

  // Brings the weights to registers and shared memory. When to call it: see the kernel.
  __device__ void load_weights(const Block& block) {
    interface.load(block);
    controller.load_weights(block);
  }

  __device__ void clear_padding(const Block& block) const {
    for (int t = length; t < sizes.T; ++t) {
      controller.clear_padding(block, at(t));
      clear(block, plain<A>(params.d_interface), at(t) * heads.size, heads.size);
    }
  }

  // The writes of a step are replayed many times, so their erase and add vectors are activated
  // once, at the start. They take the place of d_interface in the result until the step has
  // computed it. A step has few of them, so all threads share those of all steps.
  __device__ void activate_writes(const Block& block) const {
    const unsigned first = heads.index(heads.erase), count = heads.size - first;
    const unsigned threads = block.threads, steps = threads / count;
    unsigned t = block.thread / count, p = block.thread - t * count;
#pragma unroll 1
    while (t < static_cast<unsigned>(length)) {
      d_interface(t)[first + p] = heads.activate(first + p, saved_interface(t)[first + p]);
      t += steps;
      p += threads - steps * count;
      if (p >= count) {
        p -= count;
        t += 1;
      }
    }
  }

  // Brings the memory before step t into shared memory: it starts from the checkpoint of the
  // segment and repeats the writes of the segment's steps before t. The memories before the
  // `earlier` steps that precede t come out on the way and are stored too: the earliest at `tile`,
  // each later one behind it, and that of step t last.
  //
  // Each thread replays a few words of one row for itself, in registers, without any barrier.
  __device__ void replay(const Block& block, const Tile<A>& tile, int t, int earlier) const {
    const int segment = t / params.sizes.checkpoint_every;
    const int writes = t % params.sizes.checkpoint_every;
    const int64_t start = at(segment * params.sizes.checkpoint_every);
    const int N = sizes.N, M = tile.word_size, size = tile.rows * tile.stride();
    const int chunks = (tile.rows + kWarp - 1) / kWarp;
    // A thread takes fewer words at a time if some warps would have nothing to do otherwise.
    const int some = max(1, min(kWordsAtOnce, M * chunks / block.warps));
#pragma unroll 1
    for (int unit = block.warp; unit / chunks * some < M; unit += block.warps) {
      const int row = unit % chunks * kWarp + block.lane, word = unit / chunks * some;
      if (row >= tile.rows) continue;
      const int words = min(some, M - word);
      const A* checkpoint = static_cast<const A*>(params.saved_checkpoints) +
                            (at(segment) * M + word) * N + tile.first + row;
      const A* weightings = static_cast<const A*>(params.saved_weightings) +
                            (start * sizes.H + sizes.R) * N + tile.first + row;
      const A* erase = static_cast<const A*>(params.d_interface) + start * heads.size +
                       heads.index(heads.erase) + word;
      A values[kWordsAtOnce];
#pragma unroll
      for (int i = 0; i < kWordsAtOnce; ++i)
        values[i] = i < words ? checkpoint[static_cast<int64_t>(i) * N] : A(0);
#pragma unroll 1
      for (int write = 0;; ++write) {
        if (write + earlier >= writes) {
          A* to = &tile(row, word) + (write + earlier - writes) * size;
#pragma unroll
          for (int i = 0; i < kWordsAtOnce; ++i)
            if (i < words) to[i] = values[i];
        }
        if (write == writes) break;
        replay_write(weightings, erase, words, values);
        weightings += batch * sizes.H * N;
        erase += batch * heads.size;
      }
    }
  }

  // One step's write to some words of a row. `weightings` and `erase` are of its first write head.
  __device__ void replay_write(const A* weightings, const A* erase, int words,
                               A (&values)[kWordsAtOnce]) const {
    const int M = sizes.M;
    A added[kWordsAtOnce] = {};
#pragma unroll 1
    for (int head = 0; head < sizes.W; ++head) {
      const A w = weightings[head * sizes.N];
      const A *e = erase + head * M, *a = e + sizes.W * M;
#pragma unroll
      for (int i = 0; i < kWordsAtOnce; ++i) {
        if (i >= words) continue;
        values[i] *= 1 - w * e[i];
        added[i] += w * a[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kWordsAtOnce; ++i) values[i] += added[i];
  }

  // The memory before the step at work, where it is resident.
  __device__ Tile<A> memory() const {
    return whole(space.tile + place * sizes.N * Tile<A>::stride_of(sizes.M));
  }
  // f(tile) for the memory before the step at work: the whole of it where it is resident, else each
  // tile, into which f has to bring it.
  template <typename F>
  __device__ void each_tile_of_memory(F f) const {
    if (resident())
      f(memory());
    else
      each_tile(space.tile, f);
  }
  // The same rows of dM.
  __device__ Tile<A> d_tile_of(const Tile<A>& tile) const {
    return {space.d_tile, tile.first, tile.rows, tile.word_size, tile.fresh};
  }
  // Brings both to a tile that passes through shared memory.
  __device__ void stream(const Block& block, const Tile<A>& tile, int t, bool after_last) const {
    replay(block, tile, t, 0);
    load_d_memory(block, d_tile_of(tile), after_last);
    __syncthreads();
  }

  // From dw to the gradients of the similarities' products and of the previous weightings. The part
  // of dw that comes from reading is added here where the memory is resident: the phase before has
  // completed the gradients of the read vectors.
  __device__ void address_backward(const Block& block) const {
    if (resident())
      read_backward_weightings(block, memory(), space.d_read_vectors, sizes.R, sizes.N,
                               chain.weightings, chain.d_weightings(), chain.weighting_dots);
    ntm::address_backward(block, heads, sizes, chain, space.d_taps);
  }

  // From the gradients of what the heads read, wrote and addressed to dM and d_interface. Sums over
  // the rows of a tile at a time are gathered in d_parameters first.
  __device__ void read_write_backward(const Block& block, int t) const {
    A* stored = d_interface(t);
    auto give = [&](int p, A d_raw) { space.d_interface[p] = stored[p] = d_raw; };
    auto give_scalar = [&](int p, A d) {
      give(p, d * heads.activate_backward_slope(p, saved_interface(t)[p]));
    };
    // Keys and add vectors are linear.
    auto give_vector = [&](int p, A d) { give(p, heads.is_erase(p) ? d * stored[p] : d); };
    // The gradient of the previous weightings is where dw of the step before starts from.
#pragma unroll 1
    for (int i = block.thread; i < sizes.weighting_elements(); i += block.threads)
      chain.d_weightings()[i] = chain.d_previous()[i];
    scalars_backward(block, heads, sizes, chain, space.d_taps, true, give_scalar);
    each_tile_of_memory([&](const Tile<A>& tile) {
      const Tile<A> d_tile = d_tile_of(tile);
      if (!resident()) stream(block, tile, t, t == length - 1);
      auto gather = [&](int p, A d) {
        A& sum = space.d_parameters[p];
        if (resident())
          give_vector(p, d);
        else
          sum = tile.fresh ? d : sum + d;
      };
      similarity_read_write_backward(block, tile, d_tile, heads, Parts(sizes), sizes.N,
                                     space.d_read_vectors, chain, true, gather);
      if (resident()) return;
      __syncthreads();
      store_tile(d_tile, params.d_initial_memory, offset_of(tile));
      __syncthreads();
    });
    if (!resident())
      for (int p = block.thread; p < heads.size; p += block.threads)
        if (p < sizes.H * sizes.M || p >= heads.index(heads.erase))
          give_vector(p, space.d_parameters[p]);
  }

  // What the forward saved of step t. No replay needs the writes of this step from here on, and the
  // slopes of its erase vectors take their place. The slopes come from the raw values, since 1 − e
  // has no correct digit where e is nearly 1. The gradient of its read vectors comes from outside
  // and, after the last step, from the final ones; `controller_backward` adds that of the step
  // after.
  __device__ void load_step(const Block& block, int t) {
    const int weighting = sizes.weighting_elements(), reads = sizes.read_elements();
#pragma unroll 1
    for (int p = block.thread; p < heads.size; p += block.threads)
      space.parameters[p] = heads.activate(p, saved_interface(t)[p]);
    // A loop of its own, as only erase vectors have slopes.
#pragma unroll 1
    for (int p = heads.index(heads.erase) + block.thread; heads.is_erase(p); p += block.threads)
      d_interface(t)[p] = sigmoid_slope(saved_interface(t)[p]);
    load_vector(block, chain.weightings, plain<A>(params.saved_weightings), at(t) * weighting,
                weighting);
    load_vector(block, chain.previous,
                t == 0 ? params.initial_weightings : plain<A>(params.saved_weightings),
                (t == 0 ? b : at(t - 1)) * weighting, weighting);
#pragma unroll 1
    for (int i = block.thread; i < reads; i += block.threads)
      space.d_read_vectors[i] = load_or_zero<A>(params.grad_read_vectors, at(t) * reads + i) +
                                (t == length - 1 ? controller.d_read_vectors()[i] : A(0));
    if (resident() && --place < 0) {
      place = t % params.sizes.checkpoint_every % plan.memories;
      replay(block, whole(space.tile), t, place);
    }
  }

  // From d_interface to the gradient of the controller's output, and on to that of its gates.
  __device__ void interface_backward(const Block& block, int t) const {
    interface.times_by_rows(block, space.d_interface, [&](int unit, A d) {
      const int64_t index = at(t) * sizes.C + unit;
      controller.output_backward(unit, d + load_or_zero<A>(params.grad_hidden, index), t, at(t));
    });
  }

  // From the gates to what the controller saw of the step before.
  __device__ void controller_backward(int t) const {
    controller.upper_backward(t, at(t));
    const Block block;
    controller.recurrent_backward(block, [&](int row, A d) {
      if (t > 0 && row < sizes.read_elements()) space.d_read_vectors[row] += d;
    });
  }

  // The similarities of step t again, and the part of dw that comes from writing: both are sums
  // over the words of a row. Where the memory is not resident, that from reading is added too,
  // which saves it from passing through shared memory once more.
  __device__ void similarity_step(const Block& block, int t) const {
    activate_taps(block, heads, sizes);
    each_tile_of_memory([&](const Tile<A>& tile) {
      if (!resident()) {
        __syncthreads();
        stream(block, tile, t, t == length - 1);
        read_backward_weightings(block, tile, space.d_read_vectors, sizes.R, sizes.N,
                                 chain.weightings, chain.d_weightings(), chain.weighting_dots);
      }
      similarity_and_write_backward_weightings(block, tile, d_tile_of(tile), heads, sizes, chain);
    });
  }

  __device__ void store_grads(const Block& block) const {
    const int weighting = sizes.weighting_elements(), reads = sizes.read_elements();
    if (resident()) {
      store_tile(whole(space.d_tile), params.d_initial_memory, b * sizes.memory_elements());
    } else if (length == 0) {  // no step has stored dM
      each_tile(space.d_tile, [&](const Tile<A>& d_tile) {
        __syncthreads();
        load_d_memory(block, d_tile, true);
        __syncthreads();
        store_tile(d_tile, params.d_initial_memory, offset_of(d_tile));
      });
    }
    store_vector(block, chain.d_weightings(), params.d_initial_weightings, b * weighting,
                 weighting);
    store_vector(block, controller.d_read_vectors(), params.d_initial_read_vectors, b * reads,
                 reads);
    controller.store_grads(block);
  }
};

template <typename A, int Held, bool Deep>
__global__ void __launch_bounds__(kMostThreadsOfSequenceBackward, 1) sequence_backward_kernel(
    const __grid_constant__ NtmSequenceParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  SequenceBackward<A, Held, Deep> sequence(
      Block(), params, plan, PlacedPieces(plan, shared, Held ? nullptr : params.workspace));
  // With one layer, weights are loaded last: they stay in registers, which later calls would have
  // to save. With several layers no weight stays in registers, and ptxas spills unless they are
  // loaded first.
  if constexpr (Deep) sequence.load_weights(Block());
  sequence.load_grads(Block());
  sequence.clear_padding(Block());
  sequence.activate_writes(Block());
  if constexpr (!Deep) sequence.load_weights(Block());
  __syncthreads();
  // Each round ends step t, unless it is beyond the last one, and begins the step before it.
  for (int t = sequence.length; t >= 0; --t) {
    const bool ends = t < sequence.length, begins = t > 0;
    if (ends) {
      sequence.address_backward(Block());  // three barriers, between the stages of the header
      __syncthreads();
      sequence.read_write_backward(Block(), t);
      __syncthreads();
    }
    const Block block;
    if (begins) sequence.load_step(block, t - 1);
    if (ends) sequence.interface_backward(block, t);
    __syncthreads();
    if (ends) sequence.controller_backward(t);
    if (begins) sequence.similarity_step(Block(), t - 1);
    __syncthreads();
  }
  sequence.store_grads(Block());
}

template <typename A, int Held, bool Deep>
struct BackwardKernel {
  static Kernel<NtmSequenceParams> kernel() { return sequence_backward_kernel<A, Held, Deep>; }
};

}  // namespace ntm

extern "C" int ntm_cuda_sequence_backward(const NtmSequenceParams* params, const NtmPlan* plan,
                                          void* stream) {
  return ntm::dispatch_sequence<ntm::BackwardKernel>(params, *plan, stream,
                                                     params->d_initial_memory.dtype);
}
