// The CUDA language and runtime API as the emulator offers them; stands before the toolkit's own
// headers on the include path, from which it takes the vector types and the API's declarations.
#pragma once
#ifdef __CUDACC__
#error "the emulator's headers are not for nvcc"
#endif
#define CUDA_EMULATOR 1

#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

// Function and variable attributes mean nothing to the host; translate.py has dealt with __shared__
// and __launch_bounds__.
#undef __global__
#undef __device__
#undef __constant__
#undef __grid_constant__
#define __global__
#define __device__
#define __constant__ static const
#define __grid_constant__

// Rewritten at every switch between threads, all of which share one thread of the host.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace cuda_emulator {

/// Where a barrier or warp-wide operation stands in the source.
struct Site {
  const char* file;
  int line;
};

enum class Predicate { none, any, all, count };

/// Shared memory of the running block, NaN until it is written.
void* dynamic_shared();
void* static_shared(const void* identity, size_t bytes, size_t alignment);

int barrier(Predicate, int predicate, Site);
void grid_barrier(Site);
void sync_warp(unsigned mask, Site);
unsigned ballot(unsigned mask, bool predicate, Site);

/// Which lane a shuffle reads, as the PTX instruction defines it.
enum class Shuffle { index, up, down, exclusive_or };
uint64_t shuffle(Shuffle, unsigned mask, uint64_t value, int argument, int width, Site);

/// Orders two accesses of different blocks, with an atomic operation after it.
void fence();
/// Announces an atomic access, which races with plain accesses only.
void atomic_access(const void* address, size_t bytes);

void check_launch_bounds(unsigned max_threads, unsigned min_blocks = 0, unsigned max_cluster = 0);

struct Configuration {
  dim3 grid, block;
  size_t dynamic_shared = 0;
  cudaStream_t stream = nullptr;
  bool cooperative = false;  // all blocks are on the device together
};
/// Keeps the error as the last one, and returns it.
cudaError_t failed(cudaError_t);
cudaError_t run(const char* kernel, const void* function, const Configuration&,
                const std::function<void()>& thread);

/// What `kernel<<<grid, block, shared, stream>>>` becomes.
template <class... Parameters>
class Launcher {
 public:
  Launcher(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
           size_t dynamic_shared = 0, cudaStream_t stream = nullptr, bool cooperative = false)
      : name_(name),
        kernel_(kernel),
        configuration_{grid, block, dynamic_shared, stream, cooperative} {}

  template <class... Arguments>
  cudaError_t operator()(Arguments&&... arguments) const {
    const std::tuple<std::decay_t<Parameters>...> values(std::forward<Arguments>(arguments)...);
    return run(name_, reinterpret_cast<const void*>(kernel_), configuration_, [&] {
      auto own = values;  // parameters are private to a thread
      std::apply(kernel_, own);
    });
  }

 private:
  const char* name_;
  void (*kernel_)(Parameters...);
  Configuration configuration_;
};

template <class To, class From>
To convert_bits(const From& from) {
  To to{};
  std::memcpy(&to, &from, sizeof(from) < sizeof(to) ? sizeof(from) : sizeof(to));
  return to;
}

template <class T>
T shuffled(Shuffle kind, unsigned mask, T value, int argument, int width, Site site) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  return convert_bits<T>(shuffle(kind, mask, convert_bits<uint64_t>(value), argument, width, site));
}

template <class T, class Update>
__attribute__((no_sanitize("thread"))) T atomic(T* address, Update update) {
  atomic_access(address, sizeof(T));
  const T old = *address;
  *address = update(old);
  return old;
}

}  // namespace cuda_emulator

// The caller's place, through default arguments.
#define CUDA_EMULATOR_SITE ::cuda_emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

inline void __syncthreads(CUDA_EMULATOR_SITE) {
  ::cuda_emulator::barrier(::cuda_emulator::Predicate::none, 0, site);
}
inline int __syncthreads_or(int predicate, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::barrier(::cuda_emulator::Predicate::any, predicate, site);
}
inline int __syncthreads_and(int predicate, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::barrier(::cuda_emulator::Predicate::all, predicate, site);
}
inline int __syncthreads_count(int predicate, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::barrier(::cuda_emulator::Predicate::count, predicate, site);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_EMULATOR_SITE) {
  ::cuda_emulator::sync_warp(mask, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::shuffled(::cuda_emulator::Shuffle::index, mask, value, lane, width, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::shuffled(::cuda_emulator::Shuffle::up, mask, value, int(delta), width,
                                   site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::shuffled(::cuda_emulator::Shuffle::down, mask, value, int(delta), width,
                                   site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::shuffled(::cuda_emulator::Shuffle::exclusive_or, mask, value, lanes,
                                   width, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::ballot(mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::ballot(mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::ballot(mask, predicate == 0, site) == 0;
}

inline void __threadfence() {
  ::cuda_emulator::fence();
}
inline void __threadfence_block() {}
template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return ::cuda_emulator::atomic(address, [&](T old) { return T(old + value); });
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return ::cuda_emulator::atomic(address, [&](T old) { return std::max(old, value); });
}
template <class T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return ::cuda_emulator::atomic(address, [&](T) { return value; });
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return ::cuda_emulator::atomic(address, [&](T old) { return old == compare ? value : old; });
}
/// As in the toolkit: counts up to `limit`, then starts from 0.
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return ::cuda_emulator::atomic(address, [&](unsigned old) { return old >= limit ? 0 : old + 1; });
}

// Loads and stores with a cache hint.
template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldca(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcg(T* address, std::type_identity_t<T> value) {
  *address = value;
}
template <class T>
void __stcs(T* address, std::type_identity_t<T> value) {
  *address = value;
}

// Arithmetic. The fast forms are as exact as the host's.
inline float __expf(float x) {
  return expf(x);
}
inline float __logf(float x) {
  return logf(x);
}
inline float __log2f(float x) {
  return log2f(x);
}
inline float __powf(float x, float y) {
  return powf(x, y);
}
inline float __fdividef(float x, float y) {
  return x / y;
}
inline float __fdiv_rn(float x, float y) {
  return x / y;
}
inline float __frcp_rn(float x) {
  return 1.0f / x;
}
inline float __fsqrt_rn(float x) {
  return sqrtf(x);
}
inline float __fmaf_rn(float x, float y, float z) {
  return fmaf(x, y, z);
}
inline float __fmul_rn(float x, float y) {
  return x * y;
}
inline float __fadd_rn(float x, float y) {
  return x + y;
}
inline float __saturatef(float x) {
  return x > 0.0f ? fminf(x, 1.0f) : 0.0f;
}
inline float rsqrtf(float x) {
  return 1.0f / sqrtf(x);
}
inline double rsqrt(double x) {
  return 1.0 / sqrt(x);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(unsigned(x));
}
inline int __float_as_int(float x) {
  return ::cuda_emulator::convert_bits<int>(x);
}
inline unsigned __float_as_uint(float x) {
  return ::cuda_emulator::convert_bits<unsigned>(x);
}
inline float __int_as_float(int x) {
  return ::cuda_emulator::convert_bits<float>(x);
}
inline float __uint_as_float(unsigned x) {
  return ::cuda_emulator::convert_bits<float>(x);
}
template <class A, class B>
std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>> max(
    A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
  return T(a) < T(b) ? T(b) : T(a);
}
template <class A, class B>
std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>> min(
    A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
  return T(b) < T(a) ? T(b) : T(a);
}

// The C++ part of the runtime API.
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  return ::cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class T>
cudaError_t cudaMalloc(T** address, size_t bytes) {
  return ::cudaMalloc(reinterpret_cast<void**>(address), bytes);
}
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* configuration,
                               void (*kernel)(Parameters...), Arguments&&... arguments) {
  bool cooperative = false;
  for (unsigned i = 0; i < configuration->numAttrs; ++i) {
    if (configuration->attrs[i].id != cudaLaunchAttributeCooperative)
      return ::cuda_emulator::failed(cudaErrorNotSupported);
    cooperative = configuration->attrs[i].val.cooperative != 0;
  }
  return ::cuda_emulator::Launcher<Parameters...>(
      "kernel", kernel, configuration->gridDim, configuration->blockDim,
      configuration->dynamicSmemBytes, configuration->stream,
      cooperative)(std::forward<Arguments>(arguments)...);
}
