// Launching a kernel and saying what went wrong.
#pragma once
#include <cuda_runtime.h>

#include "params.h"

namespace ntm {

inline int shared_limit() {
  int device = 0, limit = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return limit;
}

template <typename Params>
using Kernel = void (*)(Params, NtmPlan);

// More shared memory than the default has to be asked for, per kernel and device.
template <typename Params>
cudaError_t launch(Kernel<Params> kernel, const Params& params, const NtmPlan& plan, dim3 grid,
                   void* stream) {
  const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 static_cast<int>(plan.shared_bytes));
  if (error != cudaSuccess) return error;
  kernel<<<grid, plan.threads, plan.shared_bytes, static_cast<cudaStream_t>(stream)>>>(params,
                                                                                       plan);
  return cudaGetLastError();
}

}  // namespace ntm
