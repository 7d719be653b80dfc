// Elementary functions of vectors, to one or two units in the last place.
#pragma once

#include "cpu/vec.h"

namespace ntm::cpu::NTM_ISA {

template <typename T>
struct Real;

template <>
struct Real<float> {
  static constexpr int mantissa_bits = 23;
  static constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float smallest_normal = 1.17549435e-38f;
  static constexpr float two_to_mantissa = 8388608.0f;
  static constexpr float ln2_high =
      0.693359375f;  // few bits: its product with an exponent is exact
  static constexpr float ln2_low = -2.12194440e-4f;
  static constexpr float exp_is_zero_below = -87.0f;
  static constexpr float half_root = 0.70710678f;
  // (e^r − 1 − r) / r² for |r| ≤ ln(2)/2, interpolated at Chebyshev points.
  static constexpr float exp_terms[] = {0.5f, 1.6666576846e-1f, 4.1666554438e-2f, 8.3632029716e-3f,
                                        1.3926213467e-3f};
  static constexpr int log_terms = 5;
};

template <>
struct Real<double> {
  static constexpr int mantissa_bits = 52;
  static constexpr double round = 6755399441055744.0;
  static constexpr double smallest_normal = 2.2250738585072014e-308;
  static constexpr double two_to_mantissa = 4503599627370496.0;
  static constexpr double ln2_high = 0x1.62e42fee00000p-1;
  static constexpr double ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double exp_is_zero_below = -708.0;
  static constexpr double half_root = 0.70710678118654752;
  // The Taylor series.
  static constexpr double exp_terms[] = {
      1.0 / 2,         1.0 / 6,          1.0 / 24,          1.0 / 120,
      1.0 / 720,       1.0 / 5040,       1.0 / 40320,       1.0 / 362880,
      1.0 / 3628800.0, 1.0 / 39916800.0, 1.0 / 479001600.0, 1.0 / 6227020800.0,
  };
  static constexpr int log_terms = 11;
};

template <typename T>
NTM_INLINE Vec<Bits<T>> bits(Vec<T> x) {
  return (Vec<Bits<T>>)x;
}
template <typename T>
NTM_INLINE Vec<T> absolute(Vec<T> x) {
  return x < T(0) ? -x : x;
}

template <typename T>
NTM_INLINE Vec<T> root(Vec<T> x) {
#pragma GCC unroll 16
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    if constexpr (sizeof(T) == 4) {
      x[lane] = __builtin_sqrtf(x[lane]);
    } else {
      x[lane] = __builtin_sqrt(x[lane]);
    }
  }
  return x;
}

// x = n ln 2 + r: 2^n as a shift of the exponent, and e^r − 1.
template <typename T>
struct Reduced {
  Vec<Bits<T>> exponent;
  Vec<T> power;
};
template <typename T>
NTM_INLINE Reduced<T> reduce(Vec<T> x) {
  using C = Real<T>;
  constexpr T log2_e = T(1.4426950408889634);
  const Vec<T> rounded = x * log2_e + C::round;
  const Vec<T> n = rounded - C::round;
  const Vec<T> r = x - n * C::ln2_high - n * C::ln2_low;
  constexpr int last = sizeof(C::exp_terms) / sizeof(T) - 1;
  Vec<T> q = broadcast(C::exp_terms[last]);
#pragma GCC unroll 16
  for (int k = last - 1; k >= 0; --k) q = q * r + C::exp_terms[k];
  return {bits<T>(rounded) << C::mantissa_bits, q * (r * r) + r};
}

// e^x for x up to about ln of the largest number; what would be subnormal is 0.
template <typename T>
NTM_INLINE Vec<T> exp(Vec<T> x) {
  const Reduced<T> reduced = reduce<T>(x);
  const Vec<T> result = (Vec<T>)(bits<T>(reduced.power + T(1)) + reduced.exponent);
  return x < Real<T>::exp_is_zero_below ? Vec<T>{} : result;
}

// ln x for x ≥ 0; large and negative for 0.
template <typename T>
NTM_INLINE Vec<T> log(Vec<T> x) {
  using C = Real<T>;
  const auto subnormal = x < C::smallest_normal;
  x = subnormal ? x * C::two_to_mantissa : x;
  const Vec<Bits<T>> n = (bits<T>(x) - bits<T>(broadcast(C::half_root))) >> C::mantissa_bits;
  const Vec<T> f = (Vec<T>)(bits<T>(x) - (n << C::mantissa_bits)) - T(1);
  const Vec<T> e =
      __builtin_convertvector(n, Vec<T>) - (subnormal ? broadcast(T(C::mantissa_bits)) : Vec<T>{});
  // ln(1 + f) = 2 artanh(s) = f − f²/2 + s (f²/2 + R), R = 2/3 s² + 2/5 s⁴ + …
  const Vec<T> s = f / (f + T(2)), z = s * s;
  Vec<T> series = broadcast(T(2) / T(2 * C::log_terms + 1));
#pragma GCC unroll 16
  for (int k = C::log_terms - 1; k >= 1; --k) series = series * z + T(2) / T(2 * k + 1);
  const Vec<T> half_square = f * f * T(0.5);
  const Vec<T> tail = s * (half_square + series * z) + e * C::ln2_low;
  return e * C::ln2_high - ((half_square - tail) - f);
}

// 1 / (1 + e^−x), accurate in both tails.
template <typename T>
NTM_INLINE Vec<T> sigmoid(Vec<T> x) {
  const Vec<T> e = exp<T>(-absolute<T>(x));
  return (x < T(0) ? e : broadcast(T(1))) / (e + T(1));
}

// ln(1 + e^x) without overflow, and its slope.
template <typename T>
NTM_INLINE Vec<T> softplus(Vec<T> x) {
  const Vec<T> e = exp<T>(-absolute<T>(x));
  const Vec<T> u = e + T(1);
  return maximum(x, Vec<T>{}) + (log<T>(u) + (e - (u - T(1))) / u);
}

template <typename T>
NTM_INLINE Vec<T> tanh(Vec<T> x) {
  constexpr T saturated = 20;
  const Vec<T> size = absolute<T>(x);
  const Vec<T> doubled = T(-2) * (size > saturated ? broadcast(saturated) : size);
  const Reduced<T> reduced = reduce<T>(doubled);
  const Vec<T> scale = (Vec<T>)(bits<T>(broadcast(T(1))) + reduced.exponent);
  const Vec<T> minus_one = scale * reduced.power + (scale - T(1));  // e^(−2|x|) − 1
  const Vec<T> result = minus_one / (minus_one + T(2));
  return x < T(0) ? result : -result;
}

}  // namespace ntm::cpu::NTM_ISA
