// Launching a kernel and saying what went wrong.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>

#include "params.h"

namespace ntm {

template <typename Params>
using Kernel = void (*)(Params, NtmPlan);

// A kernel may use more than 48 KB of shared memory only if that was asked for, on each device.
template <typename Params>
cudaError_t allow_shared(Kernel<Params> kernel, const NtmPlan& plan) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(plan.shared_bytes));
}

template <typename Params>
cudaError_t launch(Kernel<Params> kernel, const Params& params, const NtmPlan& plan, dim3 grid,
                   void* stream) {
  const cudaError_t error = allow_shared(kernel, plan);
  if (error != cudaSuccess) return error;
  kernel<<<grid, plan.threads, plan.shared_bytes, static_cast<cudaStream_t>(stream)>>>(params,
                                                                                       plan);
  return cudaGetLastError();
}

// Blocks of a cooperative launch on one multiprocessor: its registers are enough for two blocks of
// 256 threads with 128 registers each.
constexpr int kMostTogether = 2;

// A cooperative launch, whose blocks may wait for one another: all of them must be on the device at
// the same time. So there is a block for each piece of work, but no more than the device holds, and
// a block may have to do several pieces.
template <typename Params>
cudaError_t launch_together(Kernel<Params> kernel, const Params& params, const NtmPlan& plan,
                            int64_t pieces, void* stream) {
  int device = 0, processors = 0, together = 0;
  cudaError_t error = allow_shared(kernel, plan);
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &together, reinterpret_cast<const void*>(kernel), plan.threads, plan.shared_bytes);
  if (error != cudaSuccess) return error;
  const int64_t most = processors * static_cast<int64_t>(std::min(together, kMostTogether));
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t configuration = {};
  configuration.gridDim = dim3(static_cast<unsigned>(std::min(pieces, most)));
  configuration.blockDim = dim3(plan.threads);
  configuration.dynamicSmemBytes = plan.shared_bytes;
  configuration.stream = static_cast<cudaStream_t>(stream);
  configuration.attrs = &cooperative;
  configuration.numAttrs = 1;
  error = cudaLaunchKernelEx(&configuration, kernel, params, plan);
  return error != cudaSuccess ? error : cudaGetLastError();
}

}  // namespace ntm
