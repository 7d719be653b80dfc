// `read` and `write`, forward and backward, with a block for each sequence. The memory must fit
// into shared memory.
#include "launch.cuh"
#include "on_chip.cuh"
#include "plan.cuh"

namespace ntm {

template <typename A>
__global__ void __launch_bounds__(kMostThreads<A>, 1) read_forward_kernel(
    const __grid_constant__ NtmReadParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block block;
  const Sizes sizes(params.sizes);
  PlacedPieces pieces(plan, shared);
  const ForwardSpace<A> space(pieces, sizes, plan.tile_rows, block.warps);
  const Tile<A> tile{space.tile, 0, sizes.N, sizes.M, true};
  const int64_t b = blockIdx.x;

  load_tile(tile, params.memory, b * sizes.N * sizes.M);
  load_vector(block, space.previous, params.weightings, b * sizes.R * sizes.N, sizes.R * sizes.N);
  __syncthreads();
#pragma unroll 1
  for (int column = block.warp; column < sizes.M; column += block.warps)
    read(block, tile, column, space.previous, sizes.R, sizes.N, space.read_vectors);
  __syncthreads();
  store_vector(block, space.read_vectors, params.out_read_vectors, b * sizes.R * sizes.M,
               sizes.R * sizes.M);
}

template <typename A>
__global__ void __launch_bounds__(kMostThreads<A>, 1) read_backward_kernel(
    const __grid_constant__ NtmReadParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block block;
  const Sizes sizes(params.sizes);
  PlacedPieces pieces(plan, shared);
  const BackwardSpace<A> space(pieces, sizes, plan.tile_rows, block.warps);
  const BackwardChain<A> chain = space.chain(block, sizes);
  const Heads<A> heads(space.parameters, 0, 0, sizes.M, 0);
  const Tile<A> tile{space.tile, 0, sizes.N, sizes.M, true},
      d_tile{space.d_tile, 0, sizes.N, sizes.M, true};
  const int R = sizes.R, N = sizes.N, M = sizes.M;
  const int64_t b = blockIdx.x, memory = b * N * M, weighting = b * R * N;

  load_tile(tile, params.memory, memory);
  clear_tile(block, d_tile);
  load_vector(block, space.d_read_vectors, params.grad_read_vectors, b * R * M, R * M);
  load_vector(block, chain.weightings, params.weightings, weighting, R * N);
  for (int i = block.thread; i < R * N; i += block.threads) chain.d[i] = 0;
  __syncthreads();
  read_backward_weightings(block, tile, space.d_read_vectors, R, N, chain.weightings, chain.d, {});
  similarity_read_write_backward(block, tile, d_tile, heads, Parts(R, 0, 0), N,
                                 space.d_read_vectors, chain, true, [](int, A) {});
  __syncthreads();
  store_tile(d_tile, params.d_memory, memory);
  store_vector(block, chain.d, params.d_weightings, weighting, R * N);
}

template <typename A>
__global__ void __launch_bounds__(kMostThreads<A>, 1) write_forward_kernel(
    const __grid_constant__ NtmWriteParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block block;
  const Sizes sizes(params.sizes);
  PlacedPieces pieces(plan, shared);
  const ForwardSpace<A> space(pieces, sizes, plan.tile_rows, block.warps);
  const Heads<A> heads(space.parameters, 0, sizes.W, sizes.M, 0);
  const Tile<A> tile{space.tile, 0, sizes.N, sizes.M, true};
  const int W = sizes.W, N = sizes.N, M = sizes.M;
  const int64_t b = blockIdx.x, memory = b * N * M;

  load_tile(tile, params.memory, memory);
  load_vector(block, space.previous, params.weightings, b * W * N, W * N);
  load_vector(block, heads.erase, params.erase, b * W * M, W * M);
  load_vector(block, heads.add, params.add, b * W * M, W * M);
  __syncthreads();
#pragma unroll 1
  for (int column = block.warp; column < M; column += block.warps)
    write(block, tile, column, space.previous, W, N, heads.erase, heads.add);
  __syncthreads();
  store_tile(tile, params.out_memory, memory);
}

template <typename A>
__global__ void __launch_bounds__(kMostThreads<A>, 1) write_backward_kernel(
    const __grid_constant__ NtmWriteParams params, const __grid_constant__ NtmPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block block;
  const Sizes sizes(params.sizes);
  PlacedPieces pieces(plan, shared);
  const BackwardSpace<A> space(pieces, sizes, plan.tile_rows, block.warps);
  const Heads<A> heads(space.parameters, 0, sizes.W, sizes.M, 0);
  const BackwardChain<A> chain = space.chain(block, sizes);
  const Tile<A> tile{space.tile, 0, sizes.N, sizes.M, true},
      d_tile{space.d_tile, 0, sizes.N, sizes.M, true};
  const int W = sizes.W, N = sizes.N, M = sizes.M;
  const int64_t b = blockIdx.x, memory = b * N * M, weighting = b * W * N, words = b * W * M;

  load_tile(tile, params.memory, memory);
  load_tile(d_tile, params.grad_memory, memory);
  load_vector(block, chain.weightings, params.weightings, weighting, W * N);
  load_vector(block, heads.erase, params.erase, words, W * M);
  load_vector(block, heads.add, params.add, words, W * M);
  for (int i = block.thread; i < W * N; i += block.threads) chain.d[i] = 0;
  __syncthreads();
  write_backward_weightings(
      block, tile,
      WriteBackwardWeightings<A>{
          d_tile, chain.weightings, W, N, heads.erase, heads.add, chain.d, {}, 0});
  __syncthreads();
  similarity_read_write_backward(block, tile, d_tile, heads, Parts(0, W, 0), N,
                                 space.d_read_vectors, chain, true, [&](int index, A d) {
                                   const bool adds = index >= W * M;
                                   store(adds ? params.d_add : params.d_erase,
                                         b * W * M + (adds ? index - W * M : index), d);
                                 });
  __syncthreads();
  store_tile(d_tile, params.d_memory, memory);
  store_vector(block, chain.d, params.d_weightings, weighting, W * N);
}

}  // namespace ntm

extern "C" int ntm_cuda_read_forward(const NtmReadParams* params, const NtmPlan* plan,
                                     void* stream) {
  return ntm::dispatch(params, *plan, stream, ntm::read_forward_kernel<float>,
                       ntm::read_forward_kernel<double>, params->memory.dtype);
}

extern "C" int ntm_cuda_read_backward(const NtmReadParams* params, const NtmPlan* plan,
                                      void* stream) {
  return ntm::dispatch(params, *plan, stream, ntm::read_backward_kernel<float>,
                       ntm::read_backward_kernel<double>, params->memory.dtype);
}

extern "C" int ntm_cuda_write_forward(const NtmWriteParams* params, const NtmPlan* plan,
                                      void* stream) {
  return ntm::dispatch(params, *plan, stream, ntm::write_forward_kernel<float>,
                       ntm::write_forward_kernel<double>, params->memory.dtype);
}

extern "C" int ntm_cuda_write_backward(const NtmWriteParams* params, const NtmPlan* plan,
                                       void* stream) {
  return ntm::dispatch(params, *plan, stream, ntm::write_backward_kernel<float>,
                       ntm::write_backward_kernel<double>, params->memory.dtype);
}
