// Functions of float and double under one name, and loads and stores that convert: kernels compute
// in `A`, float or double, whatever dtype an array has.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "params.h"

namespace ntm {

template <typename A>
struct Constants;
template <>
struct Constants<float> {
  static constexpr float infinity = __builtin_huge_valf();
  static constexpr float cosine_eps = 1e-8f, focus_eps = 1e-20f;
  static constexpr float log_of_2 = 0.693147180559945309f;
};
template <>
struct Constants<double> {
  static constexpr double infinity = __builtin_huge_val();
  static constexpr double cosine_eps = 1e-8, focus_eps = 1e-20;
  static constexpr double log_of_2 = 0.693147180559945309;
};

// A function of float and one of double under one name.
#define NTM_BOTH(name, of_float, of_double) \
  __device__ inline float name(float x) {   \
    return of_float(x);                     \
  }                                         \
  __device__ inline double name(double x) { \
    return of_double(x);                    \
  }
NTM_BOTH(exp_of, expf, exp)
NTM_BOTH(exp2_of, exp2f, exp2)
NTM_BOTH(log2_of, log2f, log2)
NTM_BOTH(log1p_of, log1pf, log1p)
NTM_BOTH(tanh_of, tanhf, tanh)
NTM_BOTH(sqrt_of, sqrtf, sqrt)
#undef NTM_BOTH

__device__ inline float larger(float x, float y) {
  return fmaxf(x, y);
}
__device__ inline double larger(double x, double y) {
  return fmax(x, y);
}

template <typename A>
__device__ A sigmoid(A x) {
  return 1 / (1 + exp_of(-x));
}

// The derivative of the sigmoid, σ(x) σ(−x). It is the same for −x, and is computed from e^−|x|, so
// that it has correct digits where the sigmoid is nearly 1.
template <typename A>
__device__ A sigmoid_slope(A x) {
  const A power = exp_of(x > 0 ? -x : x), sum = 1 + power;
  return power / (sum * sum);
}

template <typename A>
__device__ A softplus(A x) {
  return larger(x, A(0)) + log1p_of(exp_of(x > 0 ? -x : x));
}

// u^x, and 0 for u = 0 whatever x is; NaN for a negative u. For 0 <= u <= 1 and x >= 0 its error is
// an ulp of 1, not of the result.
template <typename A>
__device__ A power_of_ratio(A u, A x) {
  return u == 0 ? A(0) : exp2_of(x * log2_of(u));
}

__device__ inline float lift(float x) {
  return x;
}
__device__ inline double lift(double x) {
  return x;
}
__device__ inline float lift(__half x) {
  return __half2float(x);
}
__device__ inline float lift(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

__device__ inline void lower(float x, float* to) {
  *to = x;
}
__device__ inline void lower(double x, double* to) {
  *to = x;
}
__device__ inline void lower(float x, __half* to) {
  *to = __float2half_rn(x);
}
__device__ inline void lower(float x, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(x);
}

// Calls f with a pointer of the array's dtype. All threads of a launch take the same branch.
// Memories of float64 are computed in double, and all other dtypes in float.
template <typename A>
struct Visit;
template <>
struct Visit<double> {
  template <typename F>
  static __device__ void typed(const NtmArray& array, F f) {
    f(static_cast<double*>(array.data));
  }
};
template <>
struct Visit<float> {
  template <typename F>
  static __device__ void typed(const NtmArray& array, F f) {
    switch (array.dtype) {
      case NTM_FLOAT32:
        f(static_cast<float*>(array.data));
        break;
      case NTM_BFLOAT16:
        f(static_cast<__nv_bfloat16*>(array.data));
        break;
      default:
        f(static_cast<__half*>(array.data));
        break;
    }
  }
};

// Four neighbouring elements, as one load or store where they are aligned.
template <typename T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Four {
  T value[4];
};

// Whether an array that begins here, with rows of this many elements, consists of such fours.
template <typename T>
__device__ bool in_fours(const T* data, int word_size) {
  return word_size % 4 == 0 && reinterpret_cast<uintptr_t>(data) % alignof(Four<T>) == 0;
}

template <typename A>
__device__ A load(const NtmArray& array, int64_t index) {
  A value = 0;
  Visit<A>::typed(array, [&](auto* data) { value = lift(data[index]); });
  return value;
}

// 0 where there is no array.
template <typename A>
__device__ A load_or_zero(const NtmArray& array, int64_t index) {
  return array.data == nullptr ? A(0) : load<A>(array, index);
}

template <typename A>
__device__ void store(const NtmArray& array, int64_t index, A value) {
  Visit<A>::typed(array, [&](auto* data) { lower(value, data + index); });
}

}  // namespace ntm
