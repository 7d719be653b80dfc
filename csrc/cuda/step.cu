// `step`: activate, address, read and write in one launch, forward and backward, with a block for
// each sequence. The block loads its memory into shared memory, works there, and stores it, so that
// global memory sees one read and one write of each element. Memories that are too large for a
// block go to tiled.cu.
#include "launch.cuh"
#include "on_chip.cuh"
#include "plan.cuh"
#include "tiled.cuh"

namespace ntm {

template <typename A>
__global__ void __launch_bounds__(kMostThreads<A>, 1) step_forward_kernel(
    const __grid_constant__ NtmStepParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block block;
  const Sizes sizes(params.sizes);
  PlacedPieces pieces(plan, shared);
  const ForwardSpace<A> space(pieces, sizes, plan.tile_rows, block.warps);
  const Heads<A> heads(space.parameters, sizes);
  const Tile<A> tile{space.tile, 0, sizes.N, sizes.M, true};
  const int64_t b = blockIdx.x;
  const int64_t memory = b * sizes.N * sizes.M, weighting = b * sizes.H * sizes.N;

  load_tile(tile, params.memory, memory);
  load_interface(block, heads, params.interface, b);
  load_vector(block, space.previous, params.previous_weightings, weighting, sizes.H * sizes.N);
  __syncthreads();
  activate_taps(block, heads, sizes);
  A* saved = static_cast<A*>(params.saved_weightings);
  address(block, tile, heads, sizes, space.chain(block, sizes), [&](int head, int row, A w) {
    const int64_t at = static_cast<int64_t>(head) * sizes.N + row;
    space.previous[at] = w;  // no warp needs the previous weightings any more
    store(params.out_weightings, weighting + at, w);
    if (saved != nullptr) saved[weighting + at] = w;
  });
  __syncthreads();
  read_write<A>(block, tile, sizes, space.previous, heads, space.read_vectors);
  __syncthreads();
  store_tile(tile, params.out_memory, memory);
  store_vector(block, space.read_vectors, params.out_read_vectors, b * sizes.R * sizes.M,
               sizes.R * sizes.M);
}

template <typename A>
__global__ void __launch_bounds__(kMostThreads<A>, 1) step_backward_kernel(
    const __grid_constant__ NtmStepParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block block;
  const Sizes sizes(params.sizes);
  PlacedPieces pieces(plan, shared);
  const BackwardSpace<A> space(pieces, sizes, plan.tile_rows, block.warps);
  const Heads<A> heads(space.parameters, sizes);
  const BackwardChain<A> chain = space.chain(block, sizes);
  const Tile<A> tile{space.tile, 0, sizes.N, sizes.M, true},
      d_tile{space.d_tile, 0, sizes.N, sizes.M, true};
  const int64_t b = blockIdx.x;
  const int64_t memory = b * sizes.N * sizes.M, weighting = b * sizes.H * sizes.N;
  const int64_t reads = b * sizes.R * sizes.M, interface = b * heads.size;

  load_tile(tile, params.memory, memory);
  if (params.grad_memory.data != nullptr)
    load_tile(d_tile, params.grad_memory, memory);
  else
    clear_tile(block, d_tile);
  load_interface(block, heads, params.interface, b);
  load_or_clear(block, space.d_read_vectors, params.grad_read_vectors, reads, sizes.R * sizes.M);
  load_or_clear(block, chain.d, params.grad_weightings, weighting, sizes.H * sizes.N);
  load_vector(block, chain.previous, params.previous_weightings, weighting, sizes.H * sizes.N);
  load_vector(block, chain.weightings, plain<A>(params.saved_weightings), weighting,
              sizes.H * sizes.N);
  __syncthreads();
  activate_taps(block, heads, sizes);
  similarity_and_read_write_backward_weightings(block, tile, d_tile, heads, sizes,
                                                space.d_read_vectors, chain);
  __syncthreads();
  address_backward(block, heads, sizes, chain, space.d_taps);
  __syncthreads();
  auto give = [&](int p, A d_active) {
    const A slope = heads.activate_backward_slope(p, load<A>(params.interface, interface + p));
    store(params.d_interface, interface + p, d_active * slope);
  };
  scalars_backward(block, heads, sizes, chain, space.d_taps, true, give);
  similarity_read_write_backward(block, tile, d_tile, heads, Parts(sizes), sizes.N,
                                 space.d_read_vectors, chain, true, give);
  __syncthreads();
  store_tile(d_tile, params.d_memory, memory);
  store_vector(block, chain.previous, params.d_previous_weightings, weighting, sizes.H * sizes.N);
}

static TiledCall tiled_call(const NtmStepParams& params) {
  TiledCall call = {};
  call.sizes = params.sizes;
  call.memory = params.memory;
  call.previous = params.previous_weightings;
  call.weightings = params.out_weightings;
  call.read_vectors = params.out_read_vectors;
  call.written = params.out_memory;
  call.interface = params.interface;
  call.d_weightings = params.grad_weightings;
  call.d_read_vectors = params.grad_read_vectors;
  call.d_written = params.grad_memory;
  call.d_memory = params.d_memory;
  call.d_previous = params.d_previous_weightings;
  call.d_interface = params.d_interface;
  call.saved_weightings = params.saved_weightings;
  call.workspace = params.workspace;
  return call;
}

}  // namespace ntm

extern "C" int ntm_cuda_step_forward(const NtmStepParams* params, const NtmPlan* plan,
                                     void* stream) {
  if (plan->tiled) return ntm::tiled_forward(ntm::tiled_call(*params), *plan, stream);
  return ntm::dispatch(params, *plan, stream, ntm::step_forward_kernel<float>,
                       ntm::step_forward_kernel<double>, params->memory.dtype);
}

extern "C" int ntm_cuda_step_backward(const NtmStepParams* params, const NtmPlan* plan,
                                      void* stream) {
  if (plan->tiled) return ntm::tiled_backward(ntm::tiled_call(*params), *plan, stream);
  return ntm::dispatch(params, *plan, stream, ntm::step_backward_kernel<float>,
                       ntm::step_backward_kernel<double>, params->memory.dtype);
}
