// `address`: the whole chain in one launch, forward and backward, with a block for each sequence.
#include "launch.cuh"
#include "on_chip.cuh"
#include "plan.cuh"
#include "tiled.cuh"

namespace ntm {

template <typename A>
__device__ void load_heads(const Block& block, const Heads<A>& heads,
                           const NtmAddressParams& params, const Sizes& sizes) {
  const int64_t b = blockIdx.x;
  const int H = sizes.H, M = sizes.M, S = sizes.S;
  load_vector(block, heads.key, params.key, b * H * M, H * M);
  load_vector(block, heads.strength, params.strength, b * H, H);
  load_vector(block, heads.gate, params.gate, b * H, H);
  load_vector(block, heads.shift, params.shift, b * H * S, H * S);
  load_vector(block, heads.sharpening, params.sharpening, b * H, H);
}

template <typename A>
__global__ void __launch_bounds__(kMaxThreads, 1) address_forward_kernel(
    const __grid_constant__ NtmAddressParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block block;
  const Sizes sizes(params.sizes);
  PlacedPieces pieces(plan, shared, params.workspace);
  const ForwardSpace<A> space(pieces, sizes, plan.tile_rows, block.warps);
  const Heads<A> heads(space.vector, sizes);
  const Tile<A> tile{space.tile, 0, sizes.N, sizes.M, true};
  const int64_t b = blockIdx.x, weighting = b * sizes.H * sizes.N;

  load_tile(tile, params.memory, b * sizes.N * sizes.M);
  load_heads(block, heads, params, sizes);
  load_vector(block, space.previous, params.previous_weights, weighting, sizes.H * sizes.N);
  __syncthreads();
  A* saved = static_cast<A*>(params.saved_weights);
  address(block, tile, heads, sizes, space, [&](int head, int row, A w) {
    const int64_t at = weighting + static_cast<int64_t>(head) * sizes.N + row;
    store(params.weights, at, w);
    if (saved != nullptr) saved[at] = w;
  });
}

template <typename A>
__global__ void __launch_bounds__(kMaxThreads, 1) address_backward_kernel(
    const __grid_constant__ NtmAddressParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block block;
  const Sizes sizes(params.sizes);
  PlacedPieces pieces(plan, shared, params.workspace);
  const BackwardSpace<A> space(pieces, sizes, plan.tile_rows, block.warps);
  const Heads<A> heads(space.vector, sizes), d_heads(space.d_vector, sizes);
  const Chain<A> chain = space.chain(block.warps);
  const Tile<A> tile{space.tile, 0, sizes.N, sizes.M, true};
  const int H = sizes.H, M = sizes.M, S = sizes.S;
  const int64_t b = blockIdx.x, memory = b * sizes.N * sizes.M, weighting = b * H * sizes.N;

  load_tile(tile, params.memory, memory);
  load_heads(block, heads, params, sizes);
  load_vector(block, chain.d, params.d_weights, weighting, H * sizes.N);
  load_vector(block, chain.previous, params.previous_weights, weighting, H * sizes.N);
  load_vector(block, chain.weights, plain<A>(params.saved_weights), weighting, H * sizes.N);
  __syncthreads();
  content(block, tile, heads, sizes, chain.similarity, chain.scores, chain.row_norms,
          chain.key_norms);
  __syncthreads();
  address_backward(block, heads, d_heads, sizes, chain);
  fold_scalars(block, d_heads, sizes, chain);
#pragma unroll 1
  for (int column = block.warp; column < M; column += block.warps) {
    read(block, tile, column, chain.shifted, H, sizes.N, d_heads.key);
    for (int row = block.lane; row < tile.rows; row += kWarp) {
      const A pull = outer_sum(chain.shifted + row, H, sizes.N, heads.key + column, M);
      tile(row, column) = pull - tile(row, column) * chain.row_norms[row];
    }
  }
  __syncthreads();
  store_tile(tile, params.d_memory, memory);
  store_vector(block, chain.previous, params.d_previous, weighting, H * sizes.N);
  for (int i = block.thread; i < H * M; i += block.threads)
    store(params.d_key, b * H * M + i, head_gradient(i, heads, d_heads, sizes, chain.key_norms));
  store_vector(block, d_heads.strength, params.d_strength, b * H, H);
  store_vector(block, d_heads.gate, params.d_gate, b * H, H);
  store_vector(block, d_heads.shift, params.d_shift, b * H * S, H * S);
  store_vector(block, d_heads.sharpening, params.d_sharpening, b * H, H);
}

static TiledCall tiled_call(const NtmAddressParams& params) {
  TiledCall call = {};
  call.sizes = params.sizes;
  call.memory = params.memory;
  call.previous = params.previous_weights;
  call.weights = params.weights;
  call.key = params.key;
  call.strength = params.strength;
  call.gate = params.gate;
  call.shift = params.shift;
  call.sharpening = params.sharpening;
  call.d_weights = params.d_weights;
  call.d_memory = params.d_memory;
  call.d_previous = params.d_previous;
  call.d_key = params.d_key;
  call.d_strength = params.d_strength;
  call.d_gate = params.d_gate;
  call.d_shift = params.d_shift;
  call.d_sharpening = params.d_sharpening;
  call.saved_weights = params.saved_weights;
  call.workspace = params.workspace;
  return call;
}

}  // namespace ntm

extern "C" int ntm_cuda_address_forward(const NtmAddressParams* params, const NtmPlan* plan,
                                        void* stream) {
  if (plan->tiled) {
    const ntm::TiledCall call = ntm::tiled_call(*params);
    return params->memory.dtype == NTM_FLOAT64 ? ntm::tiled_forward<double>(call, *plan, stream)
                                               : ntm::tiled_forward<float>(call, *plan, stream);
  }
  return ntm::dispatch(params, *plan, stream, ntm::address_forward_kernel<float>,
                       ntm::address_forward_kernel<double>, params->memory.dtype);
}

extern "C" int ntm_cuda_address_backward(const NtmAddressParams* params, const NtmPlan* plan,
                                         void* stream) {
  if (plan->tiled) {
    const ntm::TiledCall call = ntm::tiled_call(*params);
    return params->memory.dtype == NTM_FLOAT64 ? ntm::tiled_backward<double>(call, *plan, stream)
                                               : ntm::tiled_backward<float>(call, *plan, stream);
  }
  return ntm::dispatch(params, *plan, stream, ntm::address_backward_kernel<float>,
                       ntm::address_backward_kernel<double>, params->memory.dtype);
}
