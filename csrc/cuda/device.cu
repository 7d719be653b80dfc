// Questions of Python to the library: what it was compiled for, and what a device of the machine
// is.
#include "launch.cuh"

// Written as in TORCH_CUDA_ARCH_LIST, separated by spaces.
extern "C" const char* ntm_cuda_architectures() {
  return NTM_CUDA_ARCHITECTURES;
}

// A digest of the structs in records.h. Python compares it with that of its own structs before it
// calls anything.
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
  return ntm::cleared(error);
}

extern "C" const char* ntm_cuda_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
