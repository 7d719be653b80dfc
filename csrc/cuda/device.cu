// What the library was compiled for, and what a device of this machine is.
#include <cuda_runtime.h>

#include "params.h"

// As in TORCH_CUDA_ARCH_LIST, separated by spaces.
extern "C" const char* ntm_cuda_architectures() {
  return NTM_CUDA_ARCHITECTURES;
}

// Of records.h: one of another layout must not be called.
extern "C" const char* ntm_cuda_layout() {
  return NTM_LAYOUT;
}

extern "C" int ntm_cuda_device(int index, NtmDevice* device) {
  const auto ask = [&](cudaDeviceAttr attribute, int32_t& value) {
    return cudaDeviceGetAttribute(&value, attribute, index);
  };
  cudaError_t error = ask(cudaDevAttrComputeCapabilityMajor, device->major);
  if (error == cudaSuccess) error = ask(cudaDevAttrComputeCapabilityMinor, device->minor);
  if (error == cudaSuccess)
    error = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin, device->shared_limit);
  return error;
}

extern "C" const char* ntm_cuda_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
