// The part of the CUDA runtime API that launchers need: the device, the limits of launches, memory.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "emulator.h"

namespace cuda_emulator {

const Device& device() {
  static const std::map<int, Device> known = {
      {75, {7, 5, 40, 1024, 64 << 10, 64 << 10}},
      {80, {8, 0, 108, 2048, 163 << 10, 164 << 10}},
      {86, {8, 6, 84, 1536, 99 << 10, 100 << 10}},
      {89, {8, 9, 142, 1536, 99 << 10, 100 << 10}},
      {90, {9, 0, 132, 2048, 227 << 10, 228 << 10}},
      {100, {10, 0, 148, 2048, 227 << 10, 228 << 10}},
      {120, {12, 0, 170, 1536, 99 << 10, 100 << 10}},
  };
  const char* name = std::getenv("CUDA_EMULATOR_ARCHITECTURE");
  const auto found = known.find(name ? std::atoi(name) : 90);
  if (found == known.end()) {
    std::fprintf(stderr, "CUDA_EMULATOR_ARCHITECTURE=%s is not known\n", name);
    std::abort();
  }
  return found->second;
}

namespace {

constexpr unsigned kMaxThreads = 1024;

thread_local cudaError_t last_error = cudaSuccess;
std::string failure;  // of the last launch that failed in its kernel
std::map<const void*, size_t> shared_limits;
void (*before_launch)() = nullptr;

int processors() {
  const char* some = std::getenv("CUDA_EMULATOR_PROCESSORS");
  return some ? std::atoi(some) : device().processors;
}

/// Blocks of a kernel that a multiprocessor holds together, as far as threads and shared memory
/// say; what registers say is not known here.
size_t blocks_per_processor(size_t threads, size_t dynamic_shared) {
  const size_t reserved = device().major >= 8 ? 1024 : 0;  // of shared memory, in every block
  return std::min({size_t(device().threads_per_processor) / threads,
                   device().shared_per_processor / (dynamic_shared + reserved), size_t(32)});
}

bool fits_together(const Configuration& configuration) {
  const dim3 grid = configuration.grid, block = configuration.block;
  return size_t(grid.x) * grid.y * grid.z <=
         processors() * blocks_per_processor(size_t(block.x) * block.y * block.z,
                                             configuration.dynamic_shared);
}

bool is_valid(const void* function, const Configuration& configuration) {
  const dim3 grid = configuration.grid, block = configuration.block;
  const auto limit = shared_limits.find(function);
  const size_t allowed = limit == shared_limits.end() ? kStaticLimit : limit->second;
  return grid.x && grid.y && grid.z && grid.x <= 0x7fffffffu && grid.y <= 65535 &&
         grid.z <= 65535 && block.x && block.y && block.z && block.x <= kMaxThreads &&
         block.y <= kMaxThreads && block.z <= 64 &&
         uint64_t(block.x) * block.y * block.z <= kMaxThreads &&
         configuration.dynamic_shared <= allowed;
}

}  // namespace

cudaError_t failed(cudaError_t error) {
  return last_error = error;
}

cudaError_t run(const char* kernel, const void* function, const Configuration& configuration,
                const std::function<void()>& thread) {
  if (const auto other = std::exchange(before_launch, nullptr)) other();
  if (!is_valid(function, configuration)) return failed(cudaErrorInvalidValue);
  if (configuration.cooperative && !fits_together(configuration))
    return failed(cudaErrorCooperativeLaunchTooLarge);
  std::string message = execute(kernel, function, configuration, thread);
  if (message.empty()) return cudaSuccess;
  failure = std::move(message);
  return failed(cudaErrorLaunchFailure);
}

}  // namespace cuda_emulator

using namespace cuda_emulator;

extern "C" {

/// Has `other` called once, when the next launch has been asked for and is not yet checked: what
/// another thread may do in between.
void cuda_emulator_before_launch(void (*other)()) {
  before_launch = other;
}

/// The last error stays until somebody asks for it, whatever succeeds in between. Each thread has
/// its own.
cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
  return last_error;
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "cudaError";
}
/// A failed launch tells what went wrong in the kernel.
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument: the launch exceeds a limit of the device or of the kernel";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in a cooperative launch";
    case cudaErrorLaunchFailure:
      return failure.c_str();
    default:
      return "an error that the emulator does not raise";
  }
}

cudaError_t cudaGetDeviceCount(int* count) {
  return *count = 1, cudaSuccess;
}
cudaError_t cudaGetDevice(int* index) {
  return *index = 0, cudaSuccess;
}
cudaError_t cudaSetDevice(int index) {
  return index ? failed(cudaErrorInvalidDevice) : cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  if (index != 0) return failed(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      return *value = device().major, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = device().minor, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      return *value = processors(), cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return *value = int(kStaticLimit), cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = int(device().shared_per_block), cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = int(device().shared_per_processor), cudaSuccess;
    case cudaDevAttrMaxThreadsPerBlock:
      return *value = int(kMaxThreads), cudaSuccess;
    case cudaDevAttrWarpSize:
      return *value = int(kWarp), cudaSuccess;
    case cudaDevAttrMaxGridDimX:
      return *value = 0x7fffffff, cudaSuccess;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return *value = 65535, cudaSuccess;
    default:
      return failed(cudaErrorInvalidValue);
  }
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      size_t(value) > device().shared_per_block)
    return failed(cudaErrorInvalidValue);
  shared_limits[kernel] = size_t(value);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads,
                                                          size_t dynamic_shared) {
  return *blocks = int(blocks_per_processor(size_t(threads), dynamic_shared)), cudaSuccess;
}

cudaError_t cudaMalloc(void** address, size_t bytes) {
  if (posix_memalign(address, 256, bytes ? bytes : 1)) return failed(cudaErrorMemoryAllocation);
  std::memset(*address, 0xff, bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* address) {
  return std::free(address), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  return std::memset(address, value, bytes), cudaSuccess;
}

}  // extern "C"
