// `address`: all stages of addressing in one launch, forward and backward, with a block for each
// sequence. Memories that are too large for a block go to tiled.cu.
#include "launch.cuh"
#include "on_chip.cuh"
#include "plan.cuh"
#include "tiled.cuh"

namespace ntm {

template <typename A>
__global__ void __launch_bounds__(kMostThreads<A>, 1) address_forward_kernel(
    const __grid_constant__ NtmAddressParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block block;
  const Sizes sizes(params.sizes);
  PlacedPieces pieces(plan, shared);
  const ForwardSpace<A> space(pieces, sizes, plan.tile_rows, block.warps);
  const Heads<A> heads(space.parameters, sizes);
  const Tile<A> tile{space.tile, 0, sizes.N, sizes.M, true};
  const int64_t b = blockIdx.x, weighting = b * sizes.H * sizes.N;

  load_tile(tile, params.memory, b * sizes.N * sizes.M);
  load_parameters(block, heads, params, sizes, b);
  load_vector(block, space.previous, params.previous_weightings, weighting, sizes.H * sizes.N);
  __syncthreads();
  A* saved = static_cast<A*>(params.saved_weightings);
  address(block, tile, heads, sizes, space.chain(block, sizes), [&](int head, int row, A w) {
    const int64_t at = weighting + static_cast<int64_t>(head) * sizes.N + row;
    store(params.out_weightings, at, w);
    if (saved != nullptr) saved[at] = w;
  });
}

// Stores the gradient of one parameter, given by its index in the vector of all parameters, in the
// array of its kind.
template <typename A>
__device__ void store_parameter(const Heads<A>& heads, const NtmAddressParams& params,
                                const Sizes& sizes, int index, A d) {
  const int64_t b = blockIdx.x;
  const A* at = heads.key + index;
  if (at < heads.strength)
    store(params.d_key, b * sizes.H * sizes.M + index, d);
  else if (at < heads.gate)
    store(params.d_strength, b * sizes.H + (at - heads.strength), d);
  else if (at < heads.shift)
    store(params.d_gate, b * sizes.H + (at - heads.gate), d);
  else if (at < heads.sharpening)
    store(params.d_shift, b * sizes.H * sizes.S + (at - heads.shift), d);
  else
    store(params.d_sharpening, b * sizes.H + (at - heads.sharpening), d);
}

template <typename A>
__global__ void __launch_bounds__(kMostThreads<A>, 1) address_backward_kernel(
    const __grid_constant__ NtmAddressParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block block;
  const Sizes sizes(params.sizes);
  PlacedPieces pieces(plan, shared);
  const BackwardSpace<A> space(pieces, sizes, plan.tile_rows, block.warps);
  const Heads<A> heads(space.parameters, sizes);
  const BackwardChain<A> chain = space.chain(block, sizes);
  const Tile<A> tile{space.tile, 0, sizes.N, sizes.M, true},
      d_tile{space.d_tile, 0, sizes.N, sizes.M, true};
  const int H = sizes.H;
  const int64_t b = blockIdx.x, memory = b * sizes.N * sizes.M, weighting = b * H * sizes.N;

  load_tile(tile, params.memory, memory);
  load_parameters(block, heads, params, sizes, b);
  load_vector(block, chain.d, params.grad_weightings, weighting, H * sizes.N);
  load_vector(block, chain.previous, params.previous_weightings, weighting, H * sizes.N);
  load_vector(block, chain.weightings, plain<A>(params.saved_weightings), weighting, H * sizes.N);
  clear_tile(block, d_tile);
  __syncthreads();
  similarity(block, tile, heads, sizes, chain);
  sharpen_backward_dots(block, tile, sizes, chain);
  __syncthreads();
  address_backward(block, heads, sizes, chain, space.d_taps);
  __syncthreads();
  auto give = [&](int index, A d) { store_parameter(heads, params, sizes, index, d); };
  scalars_backward(block, heads, sizes, chain, space.d_taps, false, give);
  similarity_read_write_backward(block, tile, d_tile, heads, Parts(0, 0, H), sizes.N,
                                 space.d_read_vectors, chain, true, give);
  __syncthreads();
  store_tile(d_tile, params.d_memory, memory);
  store_vector(block, chain.previous, params.d_previous_weightings, weighting, H * sizes.N);
}

static TiledCall tiled_call(const NtmAddressParams& params) {
  TiledCall call = {};
  call.sizes = params.sizes;
  call.memory = params.memory;
  call.previous = params.previous_weightings;
  call.weightings = params.out_weightings;
  call.key = params.key;
  call.strength = params.strength;
  call.gate = params.gate;
  call.shift = params.shift;
  call.sharpening = params.sharpening;
  call.d_weightings = params.grad_weightings;
  call.d_memory = params.d_memory;
  call.d_previous = params.d_previous_weightings;
  call.d_key = params.d_key;
  call.d_strength = params.d_strength;
  call.d_gate = params.d_gate;
  call.d_shift = params.d_shift;
  call.d_sharpening = params.d_sharpening;
  call.saved_weightings = params.saved_weightings;
  call.workspace = params.workspace;
  return call;
}

}  // namespace ntm

extern "C" int ntm_cuda_address_forward(const NtmAddressParams* params, const NtmPlan* plan,
                                        void* stream) {
  if (plan->tiled) return ntm::tiled_forward(ntm::tiled_call(*params), *plan, stream);
  return ntm::dispatch(params, *plan, stream, ntm::address_forward_kernel<float>,
                       ntm::address_forward_kernel<double>, params->memory.dtype);
}

extern "C" int ntm_cuda_address_backward(const NtmAddressParams* params, const NtmPlan* plan,
                                         void* stream) {
  if (plan->tiled) return ntm::tiled_backward(ntm::tiled_call(*params), *plan, stream);
  return ntm::dispatch(params, *plan, stream, ntm::address_backward_kernel<float>,
                       ntm::address_backward_kernel<double>, params->memory.dtype);
}
