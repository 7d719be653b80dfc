// Small kernels, each right when `bug` is 0 and wrong in one way when it is 1: what the emulator
// must catch. The input and output hold `blocks` rows of 64 floats.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

namespace {

constexpr int kThreads = 64;

__device__ float warp_sum(float value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  return value;
}

__global__ void __launch_bounds__(kThreads) missing_barrier(const float* x, float* y, int bug) {
  __shared__ float row[kThreads];
  const int i = threadIdx.x;
  row[i] = x[blockIdx.x * kThreads + i];
  if (!bug) __syncthreads();
  y[blockIdx.x * kThreads + i] = row[kThreads - 1 - i];
}

__global__ void missing_second_barrier(const float* x, float* y, int bug) {
  __shared__ float row[kThreads];
  const int i = threadIdx.x;
  float sum = 0.0f;
  for (int pass = 0; pass < 2; ++pass) {
    row[i] = x[blockIdx.x * kThreads + i] + pass;
    __syncthreads();
    sum += row[kThreads - 1 - i];
    if (!bug) __syncthreads();
  }
  y[blockIdx.x * kThreads + i] = sum;
}

__global__ void missing_syncwarp(const float* x, float* y, int bug) {
  __shared__ float row[kThreads];
  const int i = threadIdx.x;
  row[i] = x[blockIdx.x * kThreads + i];
  if (!bug) __syncwarp();
  y[blockIdx.x * kThreads + i] = row[i ^ 1];
}

__global__ void missing_second_syncwarp(const float* x, float* y, int bug) {
  __shared__ float row[kThreads];
  const int i = threadIdx.x;
  float sum = 0.0f;
  for (int pass = 0; pass < 2; ++pass) {
    row[i] = x[blockIdx.x * kThreads + i] + pass;
    __syncwarp();
    sum += row[i ^ 1];
    if (!bug) __syncwarp();
  }
  y[blockIdx.x * kThreads + i] = sum;
}

// A shuffle makes lanes meet, but orders no memory.
__global__ void shuffle_for_syncwarp(const float* x, float* y, int bug) {
  __shared__ float row[kThreads];
  const int i = threadIdx.x;
  row[i] = x[blockIdx.x * kThreads + i];
  if (bug)
    warp_sum(row[i]);
  else
    __syncwarp();
  y[blockIdx.x * kThreads + i] = row[i ^ 1];
}

__global__ void divergent_barrier(const float* x, float* y, int bug) {
  const int i = threadIdx.x;
  if (bug && i < 40)
    __syncthreads();
  else
    __syncthreads();
  y[blockIdx.x * kThreads + i] = x[blockIdx.x * kThreads + i];
}

__global__ void barrier_against_shuffle(const float* x, float* y, int bug) {
  const int i = threadIdx.x;
  float value = x[blockIdx.x * kThreads + i];
  if (bug && i == 7)
    __syncthreads();
  else
    value = __shfl_xor_sync(0xffffffffu, value, 0);
  if (!bug || i != 7) __syncthreads();
  y[blockIdx.x * kThreads + i] = value;
}

// Half a warp waits for the block while the other half waits for the warp.
__global__ void barrier_in_half_a_warp(const float* x, float* y, int bug) {
  const int i = threadIdx.x;
  if (bug && i < 16) __syncthreads();
  __syncwarp();
  y[blockIdx.x * kThreads + i] = x[blockIdx.x * kThreads + i];
}

__global__ void early_exit(const float* x, float* y, int bug) {
  const int i = threadIdx.x;
  if (bug && i == 45) return;
  y[blockIdx.x * kThreads + i] = warp_sum(x[blockIdx.x * kThreads + i]);
}

__global__ void lane_outside_mask(const float* x, float* y, int bug) {
  const int i = threadIdx.x, lane = i % 32;
  float value = x[blockIdx.x * kThreads + i];
  if (lane < 16) value = __shfl_sync(0x0000ffffu, value, bug ? 20 : 3);
  y[blockIdx.x * kThreads + i] = value;
}

__global__ void outside_global(const float* x, float* y, int bug) {
  const int i = threadIdx.x, last = blockIdx.x == gridDim.x - 1 && i == kThreads - 1;
  y[blockIdx.x * kThreads + i] = x[blockIdx.x * kThreads + i + (bug && last)];
}

__global__ void outside_static(const float* x, float* y, int bug) {
  __shared__ float row[kThreads];
  __shared__ float other[kThreads];
  const int i = threadIdx.x;
  float* const rows = row;  // through a pointer, the compiler no longer knows the bounds
  rows[i + (bug && i == kThreads - 1)] = x[blockIdx.x * kThreads + i];
  other[i] = 0.0f;
  y[blockIdx.x * kThreads + i] = row[i] + other[i];
}

__global__ void outside_dynamic(const float* x, float* y, int bug) {
  extern __shared__ __align__(16) float dynamic[];
  const int i = threadIdx.x;
  dynamic[i + (bug && i == kThreads - 1)] = x[blockIdx.x * kThreads + i];
  y[blockIdx.x * kThreads + i] = dynamic[i];
}

__global__ void misaligned_vector(const float* x, float* y, int bug) {
  const int i = threadIdx.x;
  const float4 value =
      *reinterpret_cast<const float4*>(x + blockIdx.x * kThreads + 4 * (i / 8) + bug);
  y[blockIdx.x * kThreads + i] = value.x + value.w;
}

__global__ void block_race(const float* x, float* y, int bug) {
  const int i = threadIdx.x;
  y[(bug && i == 0 ? 0 : blockIdx.x) * kThreads + i] = x[blockIdx.x * kThreads + i];
}

__global__ void block_race_by_reading(const float* x, float* y, int bug) {
  const int i = threadIdx.x, row = bug ? (blockIdx.x + 1) % gridDim.x : blockIdx.x;
  y[blockIdx.x * kThreads + i] = x[blockIdx.x * kThreads + i];
  y[blockIdx.x * kThreads + i] += y[row * kThreads + i];
}

__global__ void unset_shared(const float* x, float* y, int bug) {
  __shared__ float row[kThreads];
  const int i = threadIdx.x;
  if (!bug || i != 5) row[i] = x[blockIdx.x * kThreads + i];
  y[blockIdx.x * kThreads + i] = row[i];
}

__global__ void __launch_bounds__(kThreads / 2, 2) small_bounds(const float* x, float* y, int bug) {
  for (int i = threadIdx.x; i < kThreads; i += blockDim.x)
    y[blockIdx.x * kThreads + i] = x[blockIdx.x * kThreads + i];
}

// The last block to arrive adds up what all have written: right with a fence and an atomic counter.
__global__ void last_block(const float* x, float* y, unsigned* arrived, int bug) {
  __shared__ bool last;
  const int i = threadIdx.x;
  y[blockIdx.x * kThreads + i] = x[blockIdx.x * kThreads + i];
  if (!bug) __threadfence();
  __syncthreads();
  if (i == 0) last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  float sum = 0.0f;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += y[block * kThreads + i];
  y[i] = sum;
}

// Blocks of a cooperative launch hand their rows on to the next.
__global__ void missing_grid_barrier(const float* x, float* y, int bug) {
  const int i = threadIdx.x, next = (blockIdx.x + 1) % gridDim.x;
  y[blockIdx.x * kThreads + i] = x[blockIdx.x * kThreads + i];
  if (!bug) cooperative_groups::this_grid().sync();
  const float value = y[next * kThreads + i];
  cooperative_groups::this_grid().sync();
  y[blockIdx.x * kThreads + i] = value;
}

__global__ void missing_second_grid_barrier(const float* x, float* y, int bug) {
  const int i = threadIdx.x, next = (blockIdx.x + 1) % gridDim.x;
  y[blockIdx.x * kThreads + i] = x[blockIdx.x * kThreads + i];
  cooperative_groups::this_grid().sync();
  const float value = y[next * kThreads + i];
  if (!bug) cooperative_groups::this_grid().sync();
  y[blockIdx.x * kThreads + i] = value;
}

__global__ void absent_from_grid_barrier(const float* x, float* y, int bug) {
  y[blockIdx.x * kThreads + threadIdx.x] = x[blockIdx.x * kThreads + threadIdx.x];
  if (bug && blockIdx.x == 1) return;
  cooperative_groups::this_grid().sync();
}

// One warp reads shared memory once, `vector` floats each, `stride` floats apart.
__global__ void bank_conflicts(int stride, int vector, float* y) {
  __shared__ __align__(16) float row[32 * 33 + 4];
  for (int i = threadIdx.x; i < 32 * 33 + 4; i += 32) row[i] = 0.0f;
  __syncwarp();
  const float* const mine = row + stride * threadIdx.x;
  if (vector == 4) {
    const float4 value = *reinterpret_cast<const float4*>(mine);
    y[threadIdx.x] = value.x + value.w;
  } else {
    y[threadIdx.x] = *mine;
  }
}

}  // namespace

#define ENTRY(name, threads, dynamic)                                        \
  extern "C" int run_##name(const float* x, float* y, int blocks, int bug) { \
    name<<<blocks, threads, dynamic>>>(x, y, bug);                           \
    return cudaGetLastError();                                               \
  }

ENTRY(missing_barrier, kThreads, 0)
ENTRY(missing_second_barrier, kThreads, 0)
ENTRY(missing_syncwarp, kThreads, 0)
ENTRY(missing_second_syncwarp, kThreads, 0)
ENTRY(shuffle_for_syncwarp, kThreads, 0)
ENTRY(divergent_barrier, kThreads, 0)
ENTRY(barrier_against_shuffle, kThreads, 0)
ENTRY(barrier_in_half_a_warp, kThreads, 0)
ENTRY(early_exit, kThreads, 0)
ENTRY(lane_outside_mask, kThreads, 0)
ENTRY(outside_global, kThreads, 0)
ENTRY(outside_static, kThreads, 0)
ENTRY(outside_dynamic, kThreads, kThreads * sizeof(float))
ENTRY(misaligned_vector, kThreads, 0)
ENTRY(block_race, kThreads, 0)
ENTRY(block_race_by_reading, kThreads, 0)
ENTRY(unset_shared, kThreads, 0)
ENTRY(small_bounds, bug ? kThreads : kThreads / 2, 0)

int launch_together(void (*kernel)(const float*, float*, int), const float* x, float* y, int blocks,
                    int bug, bool cooperative = true) {
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = cooperative;
  cudaLaunchConfig_t configuration{};
  configuration.gridDim = dim3(blocks);
  configuration.blockDim = dim3(kThreads);
  configuration.attrs = &together;
  configuration.numAttrs = 1;
  cudaLaunchKernelEx(&configuration, kernel, x, y, bug);
  return cudaGetLastError();
}

#define GRID_ENTRY(name)                                                     \
  extern "C" int run_##name(const float* x, float* y, int blocks, int bug) { \
    return launch_together(name, x, y, blocks, bug);                         \
  }

GRID_ENTRY(missing_grid_barrier)
GRID_ENTRY(missing_second_grid_barrier)
GRID_ENTRY(absent_from_grid_barrier)

extern "C" int run_grid_barrier_alone(const float* x, float* y, int blocks, int bug) {
  return launch_together(missing_grid_barrier, x, y, blocks, 0, !bug);
}
// More blocks than any device holds at a time.
extern "C" int run_too_many_together(const float* x, float* y, int blocks, int bug) {
  return launch_together(missing_grid_barrier, x, y, bug ? 10000 : blocks, 0);
}
extern "C" int run_last_block(const float* x, float* y, int blocks, int bug) {
  unsigned* arrived;
  cudaMalloc(&arrived, sizeof *arrived);
  cudaMemsetAsync(arrived, 0, sizeof *arrived, nullptr);
  last_block<<<blocks, kThreads>>>(x, y, arrived, bug);
  const auto error = cudaGetLastError();
  cudaFree(arrived);
  return error;
}
// More dynamic shared memory than was asked for with cudaFuncSetAttribute, or than there is.
extern "C" int run_too_much_shared(const float* x, float* y, int blocks, int bug) {
  const size_t bytes = 60 << 10;
  const int limit = bug ? int(bytes) - 4 : int(bytes);
  if (const auto error =
          cudaFuncSetAttribute(outside_dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, limit))
    return error;
  outside_dynamic<<<blocks, kThreads, bytes>>>(x, y, 0);
  return cudaGetLastError();
}
extern "C" int run_bank_conflicts(int stride, int vector) {
  float* y;
  cudaMalloc(&y, 32 * sizeof *y);
  bank_conflicts<<<1, 32>>>(stride, vector, y);
  const auto error = cudaGetLastError();
  cudaFree(y);
  return error;
}
