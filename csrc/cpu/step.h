// One time step of one sequence of the batch, and its backward.
#pragma once

#include "cpu/addressing.h"
#include "cpu/interface.h"
#include "cpu/memory.h"

namespace ntm::cpu::NTM_ISA {

// Heads address and read M_{t−1} and then write it: memory [M][N] and weightings [H][N] in place.
template <typename T>
inline void step(const Sizes& s, const Heads<T>& heads, Addressing<T>& a, T* memory, T* weightings,
                 int64_t row, T* read_vectors) {
  address(s, memory, heads, weightings, weightings, row, a);
  if (s.num_read_heads == 1 && s.num_write_heads == 1) {
    return read_write(s, memory, weightings, row, heads.erase, heads.add, read_vectors);
  }
  read(s, memory, s.num_read_heads, weightings, row, read_vectors);
  write(s, memory, weightings + s.num_read_heads * row, row, heads.erase, heads.add, memory);
}

// After `similarity_content_interpolate_shift` on the memory before the step. d_memory and
// d_weightings, of what the step left, become those of what it found; d_read_vectors [R, M];
// d_heads are set.
template <typename T>
inline void step_backward(const Sizes& s, const T* memory, const Heads<T>& heads, const T* previous,
                          const T* weightings, int64_t row, Addressing<T>& a, Products<T>& products,
                          const T* d_read_vectors, T* d_memory, T* d_weightings, int64_t d_row,
                          const Heads<T>& d_heads) {
  if (s.num_read_heads == 1 && s.num_write_heads == 1) {
    read_write_backward(s, memory, weightings, row, heads.erase, heads.add, d_read_vectors,
                        d_memory, d_weightings, d_row, d_heads.erase, d_heads.add);
  } else {
    write_backward(s, memory, weightings + s.num_read_heads * row, row, heads.erase, heads.add,
                   products, d_memory, d_weightings + s.num_read_heads * d_row, d_row,
                   d_heads.erase, d_heads.add);
    read_backward(s, memory, s.num_read_heads, weightings, row, d_read_vectors, d_weightings, d_row,
                  d_memory);
  }
  address_backward(s, memory, heads, previous, row, a, d_weightings, d_row, d_heads, d_memory);
}

}  // namespace ntm::cpu::NTM_ISA
