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
  static constexpr float ln2 = 0.69314718f;
  static constexpr float log2_e = 1.44269504f;
  static constexpr float exp_is_zero_below = -87.0f;
  static constexpr float exp2_is_zero_below = -126.0f;
  static constexpr float exp2_is_infinite_from = 128.0f;
  // (e^r − 1 − r) / r² for |r| ≤ ln(2)/2, interpolated at Chebyshev points.
  static constexpr float exp_terms[] = {0.5f, 1.6666576846e-1f, 4.1666554438e-2f, 8.3632029716e-3f,
                                        1.3926213467e-3f};
  // (f − ln(1 + f)) / f² for f from −1/4 to 1/2, interpolated at Chebyshev points.
  static constexpr float log_terms[] = {5.000000000e-1f,  -3.333339545e-1f, 2.500015388e-1f,
                                        -1.999359251e-1f, 1.664764409e-1f,  -1.443845675e-1f,
                                        1.312287691e-1f,  -1.062562920e-1f, 4.738242478e-2f};
};

template <>
struct Real<double> {
  static constexpr int mantissa_bits = 52;
  static constexpr double round = 6755399441055744.0;
  static constexpr double smallest_normal = 2.2250738585072014e-308;
  static constexpr double two_to_mantissa = 4503599627370496.0;
  static constexpr double ln2_high = 0x1.62e42fee00000p-1;
  static constexpr double ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double ln2 = 0.69314718055994531;
  static constexpr double log2_e = 1.4426950408889634;
  static constexpr double exp_is_zero_below = -708.0;
  static constexpr double exp2_is_zero_below = -1022.0;
  static constexpr double exp2_is_infinite_from = 1024.0;
  // The Taylor series.
  static constexpr double exp_terms[] = {
      1.0 / 2,         1.0 / 6,          1.0 / 24,          1.0 / 120,
      1.0 / 720,       1.0 / 5040,       1.0 / 40320,       1.0 / 362880,
      1.0 / 3628800.0, 1.0 / 39916800.0, 1.0 / 479001600.0, 1.0 / 6227020800.0,
  };
};

// Unsigned: in lanes whose result is not used, sums of bits may overflow, which signed ones must
// not.
template <typename T>
using Pattern = Vec<std::make_unsigned_t<Bits<T>>>;
template <typename T>
NTM_INLINE Pattern<T> bits(Vec<T> x) {
  return (Pattern<T>)x;
}
template <typename T>
NTM_INLINE Vec<T> absolute(Vec<T> x) {
  return (Vec<T>)(bits<T>(x) & ~bits<T>(broadcast(T(-0.0))));
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

#if defined(__AVX512F__)
// All lanes: g++ 12 warns of the intrinsics without a mask.
template <typename T>
inline constexpr auto kAll = std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8>(-1);
#endif

// x 2^n for an integer n, and 0 where `vanishes`.
template <typename T, typename Mask>
NTM_INLINE Vec<T> scaled(Vec<T> x, Vec<T> n, Mask vanishes) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    x = (Vec<T>)_mm512_maskz_scalef_ps(kAll<T>, (__m512)x, (__m512)n);
  } else {
    x = (Vec<T>)_mm512_maskz_scalef_pd(kAll<T>, (__m512d)x, (__m512d)n);
  }
#else
  const auto shifted =
      (Vec<T>)(bits<T>(x) + (bits<T>(n + Real<T>::round) << Real<T>::mantissa_bits));
  x = n == n ? shifted : n;  // the bits of NaN are no number to add to an exponent
#endif
  return vanishes ? Vec<T>{} : x;
}

// e^r − 1 for |r| ≤ ln(2)/2.
template <typename T>
NTM_INLINE Vec<T> exp_less_one(Vec<T> r) {
  using C = Real<T>;
  constexpr int last = sizeof(C::exp_terms) / sizeof(T) - 1;
  Vec<T> q = broadcast(C::exp_terms[last]);
#pragma GCC unroll 16
  for (int k = last - 1; k >= 0; --k) q = q * r + C::exp_terms[k];
  return q * (r * r) + r;
}

// x = n ln 2 + r with an integer n and |r| ≤ ln(2)/2.
template <typename T>
struct Reduced {
  Vec<T> n, r;
};
template <typename T>
NTM_INLINE Reduced<T> reduce(Vec<T> x) {
  using C = Real<T>;
  const Vec<T> n = (x * C::log2_e + C::round) - C::round;
  return {n, x - n * C::ln2_high - n * C::ln2_low};
}

// e^x for x up to about ln of the largest number; what would be subnormal is 0.
template <typename T>
NTM_INLINE Vec<T> exp(Vec<T> x) {
  const Reduced<T> reduced = reduce<T>(x);
  return scaled<T>(exp_less_one<T>(reduced.r) + T(1), reduced.n, x < Real<T>::exp_is_zero_below);
}

// 2^x for any x: 0 where it would be subnormal, infinite where it is too large.
template <typename T>
NTM_INLINE Vec<T> exp2(Vec<T> x) {
  using C = Real<T>;
#if !defined(__AVX512F__)
  x = minimum(broadcast(C::exp2_is_infinite_from), x);  // NaN stays
#endif
  const Vec<T> n = (x + C::round) - C::round;
  return scaled<T>(exp_less_one<T>((x - n) * C::ln2) + T(1), n, x < C::exp2_is_zero_below);
}

// x = 2^exponent (1 + f) for x > 0, 1 + f from about 3/4 to 3/2.
template <typename T>
struct Split {
  Vec<T> exponent, f;
};
template <typename T>
NTM_INLINE Split<T> split(Vec<T> x) {
#if defined(__AVX512F__)
  Vec<T> floor, mantissa;
  if constexpr (sizeof(T) == 4) {
    floor = (Vec<T>)_mm512_maskz_getexp_ps(kAll<T>, (__m512)x);
    mantissa = (Vec<T>)_mm512_maskz_getmant_ps(kAll<T>, (__m512)x, _MM_MANT_NORM_p75_1p5,
                                               _MM_MANT_SIGN_src);
  } else {
    floor = (Vec<T>)_mm512_maskz_getexp_pd(kAll<T>, (__m512d)x);
    mantissa = (Vec<T>)_mm512_maskz_getmant_pd(kAll<T>, (__m512d)x, _MM_MANT_NORM_p75_1p5,
                                               _MM_MANT_SIGN_src);
  }
  return {mantissa < T(1) ? floor + T(1) : floor, mantissa - T(1)};
#else
  using C = Real<T>;
  const auto subnormal = x < C::smallest_normal;
  x = subnormal ? x * C::two_to_mantissa : x;
  const Pattern<T> above = bits<T>(x) - bits<T>(broadcast(T(0.75)));
  const Vec<Bits<T>> n = (Vec<Bits<T>>)above >> C::mantissa_bits;
  const Vec<T> shifted = subnormal ? broadcast(T(C::mantissa_bits)) : Vec<T>{};
  return {__builtin_convertvector(n, Vec<T>) - shifted,
          (Vec<T>)(bits<T>(x) - ((Pattern<T>)n << C::mantissa_bits)) - T(1)};
#endif
}

// f − ln(1 + f) for f from about −1/4 to 1/2. In float it is a polynomial, which needs no division.
// In double the polynomial would be too long. There it is f²/2 − s (f²/2 + R) with s = f / (f + 2):
// the series ln(1 + f) = 2 artanh(s), where R = 2/3 s² + 2/5 s⁴ + …
template <typename T>
NTM_INLINE Vec<T> log_deficit(Vec<T> f) {
  const Vec<T> square = f * f;
  if constexpr (sizeof(T) == 4) {
    constexpr auto& terms = Real<T>::log_terms;
    constexpr int last = sizeof(terms) / sizeof(T) - 1;
    Vec<T> q = broadcast(terms[last]);
#pragma GCC unroll 16
    for (int k = last - 1; k >= 0; --k) q = q * f + terms[k];
    return q * square;
  } else {
    constexpr int terms = 11;
    const Vec<T> s = f / (f + T(2)), z = s * s;
    Vec<T> series = broadcast(T(2) / T(2 * terms + 1));
#pragma GCC unroll 16
    for (int k = terms - 1; k >= 1; --k) series = series * z + T(2) / T(2 * k + 1);
    const Vec<T> half_square = square * T(0.5);
    return half_square - s * (half_square + series * z);
  }
}

// ln x and log₂ x for x > 0. The result at 0 is not to be used.
template <typename T>
NTM_INLINE Vec<T> log(Vec<T> x) {
  using C = Real<T>;
  const Split<T> parts = split<T>(x);
  const Vec<T> less = log_deficit<T>(parts.f) - parts.exponent * C::ln2_low;
  return parts.exponent * C::ln2_high - (less - parts.f);
}
template <typename T>
NTM_INLINE Vec<T> log2(Vec<T> x) {
  const Split<T> parts = split<T>(x);
  return parts.exponent + (parts.f - log_deficit<T>(parts.f)) * Real<T>::log2_e;
}

// 1 / (1 + e^−x), accurate in both tails; e is e^−|x|.
template <typename T>
NTM_INLINE Vec<T> sigmoid(Vec<T> x, Vec<T> e) {
  return (x < T(0) ? e : broadcast(T(1))) / (e + T(1));
}
template <typename T>
NTM_INLINE Vec<T> sigmoid(Vec<T> x) {
  return sigmoid<T>(x, exp<T>(-absolute<T>(x)));
}

// ln(1 + e^x) without overflow; e is e^−|x|.
template <typename T>
NTM_INLINE Vec<T> softplus(Vec<T> x, Vec<T> e) {
  const Vec<T> u = e + T(1);
  return maximum(x, Vec<T>{}) + (log<T>(u) + (e - (u - T(1))) / u);
}

template <typename T>
NTM_INLINE Vec<T> tanh(Vec<T> x) {
  constexpr T saturated = 20;
  const Vec<T> size = absolute<T>(x);
  const Vec<T> doubled = T(-2) * (size > saturated ? broadcast(saturated) : size);
  const Reduced<T> reduced = reduce<T>(doubled);
  const Vec<T> scale = scaled<T>(broadcast(T(1)), reduced.n, reduced.n > T(0));
  const Vec<T> minus_one = scale * exp_less_one<T>(reduced.r) + (scale - T(1));  // e^(−2|x|) − 1
  const Vec<T> result = minus_one / (minus_one + T(2));
  return x < T(0) ? result : -result;
}

}  // namespace ntm::cpu::NTM_ISA
