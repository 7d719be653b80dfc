// Launching a kernel and saying what went wrong.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "params.h"

namespace ntm {

template <typename Params>
using Kernel = void (*)(Params, NtmPlan);

// A kernel may use more than 48 KB of shared memory only if that was asked for, on each device. The
// limit belongs to the kernel and not to one launch: between this and its launch, another thread
// may launch the same kernel with fewer bytes. So a limit is raised and never lowered.
inline cudaError_t allow_shared(const void* kernel, int64_t bytes) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int64_t> limits;  // of a kernel on a device
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  int64_t& limit = limits[{kernel, device}];
  if (bytes <= limit) return cudaSuccess;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes));
  if (error == cudaSuccess) limit = bytes;
  return error;
}

template <typename Params>
const void* address_of(Kernel<Params> kernel) {
  return reinterpret_cast<const void*>(kernel);
}

// Returns the error of this launch. The runtime's last error is not asked for: it may come from an
// earlier call, of torch for example.
template <typename Params>
cudaError_t start(Kernel<Params> kernel, const Params& params, const NtmPlan& plan, dim3 grid,
                  void* stream, bool together) {
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t configuration = {};
  configuration.gridDim = grid;
  configuration.blockDim = dim3(plan.threads);
  configuration.dynamicSmemBytes = plan.shared_bytes;
  configuration.stream = static_cast<cudaStream_t>(stream);
  configuration.attrs = &cooperative;
  configuration.numAttrs = together ? 1 : 0;
  return cudaLaunchKernelEx(&configuration, kernel, params, plan);
}

// The runtime also keeps an error until somebody asks for the last one, and torch asks after each
// of its own launches. An error that is returned here must not be reported there again.
inline cudaError_t cleared(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

template <typename Params>
cudaError_t launch(Kernel<Params> kernel, const Params& params, const NtmPlan& plan, dim3 grid,
                   void* stream) {
  cudaError_t error = allow_shared(address_of(kernel), plan.shared_bytes);
  if (error == cudaSuccess) error = start(kernel, params, plan, grid, stream, false);
  return cleared(error);
}

// A cooperative launch has at most this many blocks on a multiprocessor. Where registers or shared
// memory allow only one, the occupancy that the runtime computes says so.
constexpr int kMostTogether = 2;

// A cooperative launch, whose blocks may wait for one another: all of them must be on the device at
// the same time. So there is a block for each piece of work, but no more than the device holds, and
// a block may have to do several pieces.
template <typename Params>
cudaError_t launch_together(Kernel<Params> kernel, const Params& params, const NtmPlan& plan,
                            int64_t pieces, void* stream) {
  int device = 0, processors = 0, together = 0;
  cudaError_t error = allow_shared(address_of(kernel), plan.shared_bytes);
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&together, address_of(kernel),
                                                          plan.threads, plan.shared_bytes);
  if (error != cudaSuccess) return cleared(error);
  const int64_t most = processors * static_cast<int64_t>(std::min(together, kMostTogether));
  const dim3 grid(static_cast<unsigned>(std::min(pieces, most)));
  return cleared(start(kernel, params, plan, grid, stream, true));
}

}  // namespace ntm
