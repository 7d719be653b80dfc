// Launching a kernel and saying what went wrong.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>

#include "params.h"

namespace ntm {

template <typename Params>
using Kernel = void (*)(Params, NtmPlan);

// More shared memory than the default has to be asked for, per kernel and device.
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

// Blocks of a multiprocessor in a cooperative launch: what its registers hold of 256 threads with
// 128 each.
constexpr int kMostTogether = 2;

// As many blocks as there are pieces of work and the device holds together, which they are.
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
