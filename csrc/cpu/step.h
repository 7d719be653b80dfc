// One time step of one sequence of the batch, and its backward.
#pragma once

#include "cpu/addressing.h"
#include "cpu/interface.h"
#include "cpu/memory.h"

namespace ntm::cpu::NTM_ISA {

// Heads address and read M_{t−1} and then write it: memory [M][N] and weights [H][N] in place.
template <typename T>
inline void step(const Sizes& s, const Heads<T>& heads, Addressing<T>& a, T* memory, T* weights,
                 int64_t row, T* read_vectors) {
  address(s, memory, heads, weights, weights, row, a);
  if (s.read_heads == 1 && s.write_heads == 1) {
    return read_write(s, memory, weights, row, heads.erase, heads.add, read_vectors);
  }
  read(s, memory, s.read_heads, weights, row, read_vectors);
  write(s, memory, weights + s.read_heads * row, row, heads.erase, heads.add, memory);
}

// After `focus` on the memory before the step. d_memory and d_weights, of what the step left,
// become those of what it found; d_read_vectors [R, M]; d_heads are set.
template <typename T>
inline void step_backward(const Sizes& s, const T* memory, const Heads<T>& heads, const T* previous,
                          const T* weights, int64_t row, Addressing<T>& a, Products<T>& products,
                          const T* d_read_vectors, T* d_memory, T* d_weights, int64_t d_row,
                          const Heads<T>& d_heads) {
  if (s.read_heads == 1 && s.write_heads == 1) {
    read_write_backward(s, memory, weights, row, heads.erase, heads.add, d_read_vectors, d_memory,
                        d_weights, d_row, d_heads.erase, d_heads.add);
  } else {
    write_backward(s, memory, weights + s.read_heads * row, row, heads.erase, heads.add, products,
                   d_memory, d_weights + s.read_heads * d_row, d_row, d_heads.erase, d_heads.add);
    read_backward(s, memory, s.read_heads, weights, row, d_read_vectors, d_weights, d_row,
                  d_memory);
  }
  address_backward(s, memory, heads, previous, row, a, d_weights, d_row, d_heads, d_memory);
}

}  // namespace ntm::cpu::NTM_ISA
