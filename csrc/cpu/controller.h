// The controller of one sequence, after and before its matrix products.
#pragma once

#include "cpu/math.h"

namespace ntm::cpu::NTM_ISA {

// gates [4, C] in the order i, f, g, o are activated in place; cell [C] -> next_cell [C] (may be
// the same), hidden [C].
template <typename T>
inline void lstm(int64_t size, T* gates, const T* cell, T* next_cell, T* hidden) {
  each<T>(size, [&](int64_t c, auto n) {
    T* at = gates + c;
    const Vec<T> input = sigmoid<T>(load(at, n));
    const Vec<T> forget = sigmoid<T>(load(at + size, n));
    const Vec<T> candidate = tanh<T>(load(at + 2 * size, n));
    const Vec<T> output = sigmoid<T>(load(at + 3 * size, n));
    const Vec<T> next = forget * load(cell + c, n) + input * candidate;
    store(at, input, n);
    store(at + size, forget, n);
    store(at + 2 * size, candidate, n);
    store(at + 3 * size, output, n);
    store(next_cell + c, next, n);
    store(hidden + c, output * tanh<T>(next), n);
  });
}

// From d_hidden [C] and d_cell [C], which becomes that of the cell before, to d_gates [4, C].
template <typename T>
inline void lstm_backward(int64_t size, const T* gates, const T* previous_cell, const T* cell,
                          const T* d_hidden, T* d_cell, T* d_gates) {
  each<T>(size, [&](int64_t c, auto n) {
    const T* at = gates + c;
    T* to = d_gates + c;
    const Vec<T> input = load(at, n), forget = load(at + size, n);
    const Vec<T> candidate = load(at + 2 * size, n), output = load(at + 3 * size, n);
    const Vec<T> squashed = tanh<T>(load(cell + c, n)), d_h = load(d_hidden + c, n);
    const Vec<T> d_c = load(d_cell + c, n) + d_h * output * (T(1) - squashed * squashed);
    store(to, d_c * candidate * input * (T(1) - input), n);
    store(to + size, d_c * load(previous_cell + c, n) * forget * (T(1) - forget), n);
    store(to + 2 * size, d_c * input * (T(1) - candidate * candidate), n);
    store(to + 3 * size, d_h * squashed * output * (T(1) - output), n);
    store(d_cell + c, d_c * forget, n);
  });
}

// gates [C] -> hidden [C].
template <typename T>
inline void feedforward(int64_t size, const T* gates, T* hidden) {
  each<T>(size, [&](int64_t c, auto n) { store(hidden + c, tanh<T>(load(gates + c, n)), n); });
}

template <typename T>
inline void feedforward_backward(int64_t size, const T* hidden, const T* d_hidden, T* d_gates) {
  each<T>(size, [&](int64_t c, auto n) {
    const Vec<T> h = load(hidden + c, n);
    store(d_gates + c, load(d_hidden + c, n) * (T(1) - h * h), n);
  });
}

}  // namespace ntm::cpu::NTM_ISA
