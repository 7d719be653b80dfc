// The addressing of all heads of one sequence of the batch, stage by stage, each with its backward.
//
// The stages hand their results on through the arrays of `Addressing`, where the backwards find
// them again. The memory is transposed, as memory.h explains; weightings are [H, N].
//
// Most stages end in a sum or a maximum over their row, which the next stage of the same head has
// to wait for. So a stage runs for all heads before the next one begins: meanwhile the processor
// computes the row of another head.
#pragma once

#include "cpu/arena.h"
#include "cpu/gemm.h"
#include "cpu/math.h"
#include "cpu/memory.h"
#include "sizes.h"

namespace ntm::cpu::NTM_ISA {

inline constexpr double kCosineEps = 1e-8;
inline constexpr double kFocusEps = 1e-20;

// The sums over the row of one head that `sharpen_backward` needs.
template <typename T>
struct Sharpened {
  T inverse;         // 1 / Σ (w̃ / max w̃)^γ
  T mean;            // Σ_i w_i dw_i
  T mean_logarithm;  // Σ_i w_i ln(w̃_i / max w̃)
};

// What the stages hand on. [H][N] stands for rows of N elements that are `row` apart. A circular
// row has room for `halo` elements before and after it: there `close_circle` repeats the ends, so
// that `shift` needs no index modulo N.
template <typename T>
struct Addressing {
  int64_t row;
  int64_t halo;
  T* dots;          // [1 + H][N] ‖M_i‖², then k·M_i of each head
  T* memory_norm;   // [N] ‖M_i‖
  T* key_norm;      // [H] ‖k‖
  T* norms;         // [H][N] ‖k‖ ‖M_i‖, or −∞ where that is below ε
  T* similarity;    // [H][N]
  T* highest;       // [H] the largest β K_i
  T* scale;         // [H] what makes the sum of a weighting 1
  T* content;       // [H][N], until `interpolate` without its scale
  T* gated;         // [H][N] circular
  T* shifted;       // [H][N]
  T* top;           // [H] the largest w̃, as `highest` gives it
  T* d_shifted;     // [H][N] circular
  T* d_dots;        // [H][N] before that d_content, in place
  T* mean;          // [H] Σ_i dw^c_i w^c_i
  T* through_norm;  // [N] Σ_h dK K / ‖M_i‖²: through ‖M_i‖, the gradient of M_i is minus M_i times
                    // this
  T* logarithm;     // [H][N] ln of w̃_i / max w̃
  Sharpened<T>* sharpened;  // [H]

  Addressing(Arena& arena, const Sizes& s) : row(row_of(s)), halo((s.num_taps / 2 + 15) / 16 * 16) {
    const int64_t heads = s.num_heads();
    dots = arena.take<T>((1 + heads) * row);
    memory_norm = arena.take<T>(row);
    key_norm = arena.take<T>(heads);
    norms = arena.take<T>(heads * row);
    similarity = arena.take<T>(heads * row);
    highest = arena.take<T>(heads);
    scale = arena.take<T>(heads);
    content = arena.take<T>(heads * row);
    gated = arena.take<T>(heads * circular()) + halo;
    shifted = arena.take<T>(heads * row);
    top = arena.take<T>(heads);
    d_shifted = arena.take<T>(heads * circular()) + halo;
    d_dots = arena.take<T>(heads * row);
    mean = arena.take<T>(heads);
    through_norm = arena.take<T>(row);
    logarithm = arena.take<T>(heads * row);
    sharpened = arena.take<Sharpened<T>>(heads);
  }
  static int64_t row_of(const Sizes& s) { return (s.memory_size + 15) / 16 * 16; }
  int64_t circular() const { return row + 2 * halo; }
};

// Continues x [n] by `reach` elements on both sides, as if its ends were joined to a circle. Where
// `reach` is larger than n, the circle is repeated: the copies are then copied themselves.
template <typename T>
inline void close_circle(int64_t n, int64_t reach, T* x) {
  for (int64_t i = 0; i < reach; ++i) {
    x[-1 - i] = x[n - 1 - i];
    x[n + i] = x[i];
  }
}

// ‖M_i‖² and k·M_i of all heads: memory [M][N] -> dots [1 + H][N]. Two heads, the usual number, are
// done in one pass over the memory, with the sums of several vectors of locations in registers.
template <typename T>
inline void similarity_dots(const Sizes& s, const T* memory, const T* key, T* dots) {
  const int64_t heads = s.num_heads(), stride = s.row_stride(), row = Addressing<T>::row_of(s);
  if (heads == 2) {
    by_vectors<T, kManyRegisters ? 8 : 4>(s.memory_size, [&](int64_t i, auto count, auto n) {
      constexpr int L = kLanes<T>;
      Vec<T> square[count.value] = {}, first[count.value] = {}, second[count.value] = {};
      for (int64_t m = 0; m < s.word_size; ++m) {
#pragma GCC unroll 8
        for (int k = 0; k < count.value; ++k) {
          const Vec<T> x = load(memory + m * stride + i + k * L, n);
          square[k] += x * x;
          first[k] += x * key[m];
          second[k] += x * key[s.word_size + m];
        }
      }
#pragma GCC unroll 8
      for (int k = 0; k < count.value; ++k) {
        T* const to = dots + i + k * L;
        store(to, square[k], n), store(to + row, first[k], n), store(to + 2 * row, second[k], n);
      }
    });
    return;
  }
  gemm<T>(heads, s.memory_size, s.word_size, {key, s.word_size}, {memory, stride}, nullptr, 0,
          dots + row, row);
  each<T>(s.memory_size, [&](int64_t i, auto n) {
    Vec<T> square{};
    for (int64_t m = 0; m < s.word_size; ++m) {
      const Vec<T> x = load(memory + m * stride + i, n);
      square += x * x;
    }
    store(dots + i, square, n);
  });
}

// `write`, then `similarity_dots` of the written memory with the keys of the step after: in the
// usual case one pass instead of two. weightings [W, N].
template <typename T>
inline void write_and_similarity_dots(const Sizes& s, const T* memory, const T* weightings,
                                      const T* erase, const T* add, T* written, const T* key,
                                      T* dots) {
  const int64_t stride = s.row_stride(), row = Addressing<T>::row_of(s);
  if (s.num_write_heads != 1 || s.num_heads() != 2) {
    write(s, memory, weightings, erase, add, written);
    return similarity_dots(s, written, key, dots);
  }
  by_vectors<T, kManyRegisters ? 4 : 2>(s.memory_size, [&](int64_t i, auto count, auto n) {
    constexpr int L = kLanes<T>;
    Vec<T> square[count.value] = {}, first[count.value] = {}, second[count.value] = {};
    Vec<T> w[count.value];
#pragma GCC unroll 8
    for (int k = 0; k < count.value; ++k) w[k] = load(weightings + i + k * L, n);
    for (int64_t m = 0; m < s.word_size; ++m) {
      // Loaded before the stores, since for all that the compiler knows these may change them.
      const T erased = erase[m], added = add[m], one = key[m], other = key[s.word_size + m];
#pragma GCC unroll 8
      for (int k = 0; k < count.value; ++k) {
        const int64_t at = m * stride + i + k * L;
        const Vec<T> old = load(memory + at, n);
        const Vec<T> x = old * (T(1) - w[k] * erased) + w[k] * added;
        store(written + at, x, n);
        square[k] += x * x;
        first[k] += x * one;
        second[k] += x * other;
      }
    }
#pragma GCC unroll 8
    for (int k = 0; k < count.value; ++k) {
      T* const to = dots + i + k * L;
      store(to, square[k], n), store(to + row, first[k], n), store(to + 2 * row, second[k], n);
    }
  });
}

// ‖M_i‖, and ‖k‖ of all heads.
template <typename T>
inline void norms(const Sizes& s, const T* dots, const T* key, Addressing<T>& a) {
  for (int64_t h = 0; h < s.num_heads(); ++h) {
    Vec<T> square{};
    each<T>(s.word_size, [&](int64_t m, auto n) {
      const Vec<T> k = load(key + h * s.word_size + m, n);
      square += k * k;
    });
    a.key_norm[h] = root<T>(broadcast(sum<T>(square)))[0];
  }
  each<T>(s.memory_size,
          [&](int64_t i, auto n) { store(a.memory_norm + i, root<T>(load(dots + i, n)), n); });
}

// K_i = k·M_i / (‖k‖ ‖M_i‖) of head h, from the results of `similarity_dots` and `norms`, and the
// largest β K_i. Where the product of the norms is below ε it is taken for −∞: the quotient is then
// 0.
template <typename T>
inline void similarity(const Sizes& s, int64_t h, const T* dots, T strength, Addressing<T>& a) {
  constexpr T infinity = __builtin_inf();
  const T key_norm = a.key_norm[h];
  Vec<T> top = broadcast(-infinity);
  each<T>(s.memory_size, [&](int64_t i, auto n) {
    const Vec<T> product = load(a.memory_norm + i, n) * key_norm;
    const Vec<T> norms = product < T(kCosineEps) ? broadcast(-infinity) : product;
    const Vec<T> similarity = load(dots + (1 + h) * a.row + i, n) / norms;
    store(a.norms + h * a.row + i, norms, n);
    store(a.similarity + h * a.row + i, similarity, n);
    top = maximum(top, keep<T>(similarity * strength, n, -infinity));
  });
  a.highest[h] = peak<T>(top);
}

// d_key [H, M] += Σ_i d_dots_i M_i, and d_memory [M][N] += Σ_h d_dots k − through_norm M.
template <typename T>
inline void similarity_dots_backward(const Sizes& s, const T* memory, const T* key,
                                     const Addressing<T>& a, T* d_key, T* d_memory) {
  const int64_t heads = s.num_heads(), stride = s.row_stride(), word_size = s.word_size;
  if (heads == 2) {
    by_rows<kLanes<T> / 2>(word_size, [&](int64_t m, auto rows) {
      constexpr int count = rows.value;
      Vec<T> sums[kLanes<T>] = {};  // of the first key and then of the second
      each<T>(s.memory_size, [&](int64_t i, auto n) {
        const Vec<T> first = load(a.d_dots + i, n), second = load(a.d_dots + a.row + i, n);
        const Vec<T> through_norm = load(a.through_norm + i, n);
#pragma GCC unroll 16
        for (int k = 0; k < count; ++k) {
          const int64_t at = (m + k) * stride + i;
          const Vec<T> x = load(memory + at, n);
          sums[k] += first * x;
          sums[count + k] += second * x;
          store(d_memory + at,
                load(d_memory + at, n) - x * through_norm + first * key[m + k] +
                    second * key[word_size + m + k],
                n);
        }
      });
      T results[kLanes<T>];
      store(results, sum_rows<T>(sums));
      for (int k = 0; k < count; ++k) {
        d_key[m + k] += results[k], d_key[word_size + m + k] += results[count + k];
      }
    });
    return;
  }
  dots<T, true>(heads, word_size, s.memory_size, a.d_dots, a.row, memory, stride, d_key, word_size);
  for (int64_t m = 0; m < word_size; ++m) {
    each<T>(s.memory_size, [&](int64_t i, auto n) {
      T* const to = d_memory + m * stride + i;
      store(to, load(to, n) - load(memory + m * stride + i, n) * load(a.through_norm + i, n), n);
    });
  }
  gemm<T>(word_size, s.memory_size, heads, {key, 1, word_size}, {a.d_dots, a.row}, d_memory, stride,
          d_memory, stride);
}

// d_content [N] of head h -> d_similarity and from that d_dots [N], in place. Sets the part of the
// head's d_key [M] that comes through the norm of the key, and adds the head's to `through_norm`.
// Returns dβ. `mean` is Σ_i dw^c_i w^c_i.
//
// dK/dk = M_i / (‖k‖‖M_i‖) − K k / ‖k‖²: the first term comes from the product k·M_i, the second
// from the norm of k in the denominator. dK/dM_i is the same with k and M_i exchanged.
template <typename T>
inline T content_similarity_backward(const Sizes& s, int64_t h, T strength, T mean, const T* key,
                                     Addressing<T>& a, T* d_key) {
  Vec<T> d_strength{}, total{};
  each<T>(s.memory_size, [&](int64_t i, auto n) {
    const int64_t at = h * a.row + i;
    const Vec<T> similarity = load(a.similarity + at, n);
    const Vec<T> d_logit = (load(a.d_dots + at, n) - mean) * load(a.content + at, n);
    d_strength += d_logit * similarity;
    // Below ε the gradient is 0. To rely on the similarity, which is 0 there too, would let a NaN
    // in the gradient through.
    const Vec<T> norms = load(a.norms + at, n);
    const Vec<T> d = norms < T(0) ? Vec<T>{} : d_logit * strength;
    const Vec<T> scaled = d * similarity;  // dK K
    total += scaled;
    store(a.through_norm + i, h ? load(a.through_norm + i, n) + scaled : scaled, n);
    store(a.d_dots + at, d / norms, n);
  });
  const T square = a.key_norm[h] * a.key_norm[h];
  const T through_key_norm = square == 0 ? 0 : sum<T>(total) / square;
  each<T>(s.word_size,
          [&](int64_t m, auto n) { store(d_key + m, load(key + m, n) * -through_key_norm, n); });
  return sum<T>(d_strength);
}

// After `content_similarity_backward` of all heads: adds the rest of d_key [H, M], and adds to
// d_memory [M][N].
template <typename T>
inline void similarity_backward(const Sizes& s, const T* memory, const T* key, Addressing<T>& a,
                                T* d_key, T* d_memory) {
  each<T>(s.memory_size, [&](int64_t i, auto n) {
    const Vec<T> norm = load(a.memory_norm + i, n), square = norm * norm;
    const Vec<T> total = load(a.through_norm + i, n);
    store(a.through_norm + i, square == T(0) ? Vec<T>{} : total / square, n);
  });
  similarity_dots_backward(s, memory, key, a, d_key, d_memory);
}

// w^c = softmax_i(β K_i) of head h, but for its scale; the largest β K_i is subtracted first.
template <typename T>
inline void content(const Sizes& s, int64_t h, T strength, Addressing<T>& a) {
  const T highest = a.highest[h];
  Vec<T> total{};
  each<T>(s.memory_size, [&](int64_t i, auto n) {
    const int64_t at = h * a.row + i;
    const Vec<T> e = keep<T>(exp<T>(load(a.similarity + at, n) * strength - highest), n);
    total += e;
    store(a.content + at, e, n);
  });
  a.scale[h] = 1 / sum<T>(total);
}

// w^g = g w^c + (1 − g) w_{t−1} of head h.
template <typename T>
inline void interpolate(const Sizes& s, int64_t h, const T* previous, T gate, Addressing<T>& a) {
  T* const gated = a.gated + h * a.circular();
  const T scale = a.scale[h], kept = 1 - gate;
  each<T>(s.memory_size, [&](int64_t i, auto n) {
    const Vec<T> w = load(a.content + h * a.row + i, n) * scale;
    store(a.content + h * a.row + i, w, n);
    store(gated + i, w * gate + load(previous + i, n) * kept, n);
  });
  close_circle(s.memory_size, s.num_taps / 2, gated);
}

// The largest w̃ [n], by which `sharpen` divides; or NaN, to make all weightings NaN, where a w̃ is
// negative or infinite. A w̃ that is NaN is larger than no other and makes the sums of `sharpen` NaN
// by itself, but where no other reaches ε they are not computed: there the result is NaN. `top` and
// `lowest` are the largest and smallest w̃ of each lane.
template <typename T>
NTM_INLINE T highest(int64_t n, const T* shifted, Vec<T> top, Vec<T> lowest) {
  constexpr T infinity = __builtin_inf(), nan = __builtin_nan("");
  const T result = peak<T>(lowest < T(0) ? broadcast(infinity) : top);
  if (result >= T(kFocusEps)) return result < infinity ? result : nan;
  Vec<T> total{};
  each<T>(n, [&](int64_t i, auto lanes) { total += load(shifted + i, lanes); });
  const T all = sum<T>(total);
  return all == all ? result : all;
}

// The taps of a shift: three, the usual number, are in registers (`Fixed`), any other number is in
// memory (`Fixed` is 0).
template <typename T, int Fixed>
struct Taps {
  int64_t count;
  const T* any;
  T few[Fixed ? Fixed : 1];

  Taps(int64_t num_taps, const T* shift) : count(Fixed ? Fixed : num_taps), any(shift) {
    for (int64_t tap = 0; tap < Fixed; ++tap) few[tap] = shift[tap];
  }
  NTM_INLINE T operator[](int64_t tap) const { return Fixed ? few[tap] : any[tap]; }
  // Σ_o s_o x_{i − direction · o}. Tap 0 is that of offset −S/2.
  template <typename Lanes>
  NTM_INLINE Vec<T> weighted(const T* x, int64_t direction, Lanes n) const {
    Vec<T> total{};
#pragma GCC unroll 4
    for (int64_t tap = 0; tap < (Fixed ? Fixed : count); ++tap) {
      total += load(x - direction * (tap - count / 2), n) * (*this)[tap];
    }
    return total;
  }
};
// body(taps) with the taps of a shift.
template <typename T, typename Body>
NTM_INLINE T with_taps(int64_t num_taps, const T* shift, const Body& body) {
  if (num_taps == 3) return body(Taps<T, 3>(num_taps, shift));
  return body(Taps<T, 0>(num_taps, shift));
}

// w̃_i = Σ_o s_o w^g_{i−o}, with `gated` continued by `close_circle`. Returns the largest w̃ for
// `sharpen`.
template <typename T>
inline T shift(int64_t memory_size, const T* gated, const T* shift_weighting, int64_t num_taps,
               T* shifted) {
  return with_taps<T>(num_taps, shift_weighting, [&](const auto& taps) {
    Vec<T> top{}, lowest{};
    each<T>(memory_size, [&](int64_t i, auto n) {
      const Vec<T> w = taps.weighted(gated + i, 1, n);
      store(shifted + i, w, n);
      top = maximum(w, top), lowest = minimum(w, lowest);
    });
    return highest(memory_size, shifted, top, lowest);
  });
}

// ds_o = Σ_i dw̃_i w^g_{i−o}.
template <typename T>
inline void shift_backward(const Sizes& s, const T* d_shifted, const T* gated, T* d_shift) {
  by_rows<4>(s.num_taps, [&](int64_t tap, auto count) {
    Vec<T> total[count.value] = {};
    each<T>(s.memory_size, [&](int64_t i, auto n) {
      const Vec<T> d = load(d_shifted + i, n);
#pragma GCC unroll 4
      for (int k = 0; k < count.value; ++k) {
        total[k] += d * load(gated + i - (tap + k - s.num_taps / 2), n);
      }
    });
#pragma GCC unroll 4
    for (int k = 0; k < count.value; ++k) d_shift[tap + k] = sum<T>(total[k]);
  });
}

// dw^g_j = Σ_o s_o dw̃_{j+o} goes on to d_content and d_previous [N]. d_shifted is continued by
// `close_circle`. Sets dg and returns Σ_i dw^c_i w^c_i.
template <typename T, int Fixed>
inline T shift_interpolate_backward(int64_t memory_size, const T* d_shifted,
                                    const Taps<T, Fixed>& taps, const T* content, const T* previous,
                                    T gate, T* d_content, T* d_previous, T* d_gate) {
  const T kept = 1 - gate;
  Vec<T> through_gate{}, mean{};
  each<T>(memory_size, [&](int64_t i, auto n) {
    const Vec<T> d = taps.weighted(d_shifted + i, -1, n), w = load(content + i, n);
    through_gate += d * (w - load(previous + i, n));
    mean += d * gate * w;
    store(d_previous + i, d * kept, n);
    store(d_content + i, d * gate, n);
  });
  *d_gate = sum<T>(through_gate);
  return sum<T>(mean);
}

// Whether no w̃ reaches ε, in which case the weighting is uniform. With a γ that is not finite it is
// computed all the same, and is NaN.
template <typename T>
inline bool unfocused(T top, T sharpening) {
  return top < T(kFocusEps) && sharpening - sharpening == 0;
}

// w_i = w̃_i^γ / Σ_j w̃_j^γ of head h, but for its scale, with w̃_i / max w̃ in place of w̃_i so that
// no power underflows to 0 everywhere; uniform where no w̃_i reaches ε.
template <typename T>
inline void sharpen(const Sizes& s, int64_t h, T sharpening, T* weightings, Addressing<T>& a) {
  const T top = a.top[h];
  if (unfocused(top, sharpening)) {
    for (int64_t i = 0; i < s.memory_size; ++i) weightings[i] = T(1) / s.memory_size;
    a.scale[h] = 1;
    return;
  }
  Vec<T> total{};
  each<T>(s.memory_size, [&](int64_t i, auto n) {
    const Vec<T> ratio = load(a.shifted + h * a.row + i, n) / top;
    const Vec<T> any = exp2<T>(log2<T>(ratio) * sharpening);
    const Vec<T> power = keep<T>(ratio > T(0) ? any : ratio, n);  // 0 and NaN stay
    total += power;
    store(weightings + i, power, n);
  });
  a.scale[h] = 1 / sum<T>(total);
}

template <typename T>
inline void scale(int64_t n, T factor, T* x) {
  each<T>(n, [&](int64_t i, auto lanes) { store(x + i, load(x + i, lanes) * factor, lanes); });
}

// dw_i/dw̃_j = γ w̃_j^{γ−1} / Σ w̃^γ (δ_ij − w_i), where w̃_j^{γ−1} is computed as a power of its own:
// w_j / w̃_j would be 0 / 0 where w̃_j is 0. dw_i/dγ = w_i (log w̃_i − Σ_j w_j log w̃_j).
//
// This is the first half: the powers (w̃ / max w̃)^{γ−1}, which it leaves in d_shifted, the
// logarithms, and the sums over the row of head h.
template <typename T>
inline void sharpen_backward_sums(const Sizes& s, int64_t h, const T* d_weightings, T sharpening,
                                  Addressing<T>& a) {
  if (unfocused(a.top[h], sharpening)) return;
  const T top = a.top[h], exponent = sharpening - 1, to_base_two = exponent * Real<T>::log2_e;
  T *const logarithm = a.logarithm + h * a.row, *const powers = a.d_shifted + h * a.circular();
  Vec<T> total{}, weighted{}, logarithms{};
  each<T>(s.memory_size, [&](int64_t i, auto n) {
    const Vec<T> ratio = load(a.shifted + h * a.row + i, n) / top;
    const auto present = ratio > T(0);
    const Vec<T> any = log<T>(ratio), power = exp2<T>(any * to_base_two);
    const Vec<T> logs = present ? any : ratio;                            // 0 and NaN stay
    const Vec<T> lesser = present ? power : broadcast(T(exponent == 0));  // 0⁰ = 1
    const Vec<T> whole = lesser * ratio;
    total += whole;
    weighted += whole * load(d_weightings + i, n);
    logarithms += whole * logs;
    store(logarithm + i, logs, n);
    store(powers + i, lesser, n);
  });
  const T inverse = 1 / sum<T>(total);
  a.sharpened[h] = {inverse, sum<T>(weighted) * inverse, sum<T>(logarithms) * inverse};
}

// The second half: from the powers to d_shifted, in place. Returns dγ. Both factors of its terms
// have their weighted mean subtracted, so a rounding error in one mean is multiplied by a sum that
// is zero.
template <typename T>
inline T sharpen_backward(const Sizes& s, int64_t h, const T* d_weightings, T sharpening,
                          Addressing<T>& a) {
  const T *const shifted = a.shifted + h * a.row, *const logarithm = a.logarithm + h * a.row;
  T* const d_shifted = a.d_shifted + h * a.circular();
  if (unfocused(a.top[h], sharpening)) {
    zero(s.memory_size, d_shifted);
    return 0;
  }
  const T inverse = a.sharpened[h].inverse, mean = a.sharpened[h].mean,
          mean_logarithm = a.sharpened[h].mean_logarithm;
  const T slope = sharpening * inverse / a.top[h], scale = inverse / a.top[h];
  Vec<T> d_sharpening{};
  each<T>(s.memory_size, [&](int64_t i, auto n) {
    const Vec<T> lesser = load(d_shifted + i, n), centred = load(d_weightings + i, n) - mean;
    const Vec<T> weight = lesser * (load(shifted + i, n) * scale);
    d_sharpening += centred * weight * (load(logarithm + i, n) - mean_logarithm);
    store(d_shifted + i, lesser * centred * slope, n);
  });
  if (sharpening > 0 && sharpening < 1) {  // out of its domain: there w̃^γ is infinitely steep at 0
    for (int64_t i = 0; i < s.memory_size; ++i) {
      if (shifted[i] == 0) d_shifted[i] = (d_weightings[i] - mean) * slope * T(__builtin_inf());
    }
  }
  return sum<T>(d_sharpening);
}

// From the results of `similarity_dots` to w̃ of all heads; previous are weightings [H, N].
template <typename T>
inline void similarity_content_interpolate_shift(const Sizes& s, const T* dots,
                                                 const Heads<T>& heads, const T* previous,
                                                 Addressing<T>& a) {
  const int64_t H = s.num_heads(), N = s.memory_size, S = s.num_taps;
  norms(s, dots, heads.key, a);
  for (int64_t h = 0; h < H; ++h) similarity(s, h, dots, heads.strength[h], a);
  for (int64_t h = 0; h < H; ++h) content(s, h, heads.strength[h], a);
  for (int64_t h = 0; h < H; ++h) interpolate(s, h, previous + h * N, heads.gate[h], a);
  for (int64_t h = 0; h < H; ++h) {
    a.top[h] = shift(N, a.gated + h * a.circular(), heads.shift + h * S, S, a.shifted + h * a.row);
  }
}

// The weightings [H, N] of all heads; they may be in the same array as the previous ones.
template <typename T>
inline void address(const Sizes& s, const T* memory, const Heads<T>& heads, const T* previous,
                    T* weightings, Addressing<T>& a) {
  const int64_t H = s.num_heads(), N = s.memory_size;
  similarity_dots(s, memory, heads.key, a.dots);
  similarity_content_interpolate_shift(s, a.dots, heads, previous, a);
  for (int64_t h = 0; h < H; ++h) sharpen(s, h, heads.sharpening[h], weightings + h * N, a);
  for (int64_t h = 0; h < H; ++h) scale(N, a.scale[h], weightings + h * N);
}

// After `similarity_content_interpolate_shift`, whose results it needs. d_weightings [H, N] goes
// from the gradient of the weightings to that of the previous ones, in place; d_memory [M][N] is
// added to; the addressing parameters of d_heads are set.
template <typename T>
inline void address_backward(const Sizes& s, const T* memory, const Heads<T>& heads,
                             const T* previous, Addressing<T>& a, T* d_weightings,
                             const Heads<T>& d_heads, T* d_memory) {
  const int64_t H = s.num_heads(), N = s.memory_size, M = s.word_size, S = s.num_taps;
  for (int64_t h = 0; h < H; ++h) {
    sharpen_backward_sums(s, h, d_weightings + h * N, heads.sharpening[h], a);
  }
  for (int64_t h = 0; h < H; ++h) {
    d_heads.sharpening[h] = sharpen_backward(s, h, d_weightings + h * N, heads.sharpening[h], a);
    close_circle(N, S / 2, a.d_shifted + h * a.circular());
  }
  for (int64_t h = 0; h < H; ++h) {
    const T* const d_shifted = a.d_shifted + h * a.circular();
    shift_backward(s, d_shifted, a.gated + h * a.circular(), d_heads.shift + h * S);
    a.mean[h] = with_taps<T>(S, heads.shift + h * S, [&](const auto& taps) {
      return shift_interpolate_backward(N, d_shifted, taps, a.content + h * a.row, previous + h * N,
                                        heads.gate[h], a.d_dots + h * a.row, d_weightings + h * N,
                                        d_heads.gate + h);
    });
  }
  for (int64_t h = 0; h < H; ++h) {
    d_heads.strength[h] = content_similarity_backward(s, h, heads.strength[h], a.mean[h],
                                                      heads.key + h * M, a, d_heads.key + h * M);
  }
  similarity_backward(s, memory, heads.key, a, d_heads.key, d_memory);
}

}  // namespace ntm::cpu::NTM_ISA
