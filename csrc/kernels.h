// What each instruction set offers: one table of kernels over raw pointers, for float and double.
//
// All arrays are contiguous, of the shape in their comment. A kernel serves the sequences
// begin … end − 1 of the batch and is called by several threads at once for different ones.
#pragma once

#include <cstdint>

#include "sizes.h"

namespace ntm::cpu {

template <typename T>
struct Address {
  const T* memory;       // [B, N, M]
  Heads<const T> heads;  // of the first sequence: key [B, H, M], strength [B, H], …
  const T* previous;     // [B, H, N]
  T* weightings;         // [B, H, N]
};

template <typename T>
struct AddressBackward {
  const T* memory;  // [B, N, M]
  Heads<const T> heads;
  const T* previous;      // [B, H, N]
  const T* d_weightings;  // [B, H, N]
  T* d_memory;            // [B, N, M]
  Heads<T> d_heads;
  T* d_previous;  // [B, H, N]
};

template <typename T>
struct Read {
  const T* memory;      // [B, N, M]
  const T* weightings;  // [B, R, N]
  T* read_vectors;      // [B, R, M]
};

template <typename T>
struct ReadBackward {
  const T* memory;          // [B, N, M]
  const T* weightings;      // [B, R, N]
  const T* d_read_vectors;  // [B, R, M]
  T* d_memory;              // [B, N, M]
  T* d_weightings;          // [B, R, N]
};

template <typename T>
struct Write {
  const T* memory;      // [B, N, M]
  const T* weightings;  // [B, W, N]
  const T* erase;       // [B, W, M]
  const T* add;         // [B, W, M]
  T* written;           // [B, N, M]
};

template <typename T>
struct WriteBackward {
  const T* memory;      // [B, N, M]
  const T* weightings;  // [B, W, N]
  const T* erase;       // [B, W, M]
  const T* add;         // [B, W, M]
  const T* d_written;   // [B, N, M]
  T* d_memory;          // [B, N, M]
  T* d_weightings;      // [B, W, N]
  T* d_erase;           // [B, W, M]
  T* d_add;             // [B, W, M]
};

template <typename T>
struct Step {
  const T* memory;     // [B, N, M]
  const T* interface;  // [B, P] raw
  const T* previous;   // [B, H, N]
  T* read_vectors;     // [B, R, M]
  T* written;          // [B, N, M]
  T* weightings;       // [B, H, N]
};

template <typename T>
struct StepBackward {
  const T* memory;          // [B, N, M]
  const T* interface;       // [B, P] raw
  const T* previous;        // [B, H, N]
  const T* d_read_vectors;  // [B, R, M] or null for 0, as the next two
  const T* d_written;       // [B, N, M]
  const T* d_weightings;    // [B, H, N]
  T* d_memory;              // [B, N, M]
  T* d_interface;           // [B, P]
  T* d_previous;            // [B, H, N]
};

// The state between two steps: given at the first, gradients of it, or after the last.
template <typename T>
struct State {
  T* memory;        // [B, N, M]
  T* weightings;    // [B, H, N]
  T* read_vectors;  // [B, R, M]
  T* hidden;        // [B, C], LSTM only
  T* cell;          // [B, C], LSTM only
};

// What a forward leaves for its backward; all null if there will be none.
template <typename T>
struct Saved {
  T* checkpoints;  // [ceil(T / every), B, M, stride] memory before every `every`-th step,
                   // transposed
  T* weightings;   // [T, B, H, N]
  T* interface;    // [T, B, P] raw
  T* gates;        // [T, B, G] activated, LSTM only
  T* cell;         // [T, B, C], LSTM only
};

template <typename T>
struct Sequence {
  const T* projected;         // [T, B, G], or null
  const T* input;             // [T, B, I], or null
  const T* input_bias;        // [G], or null
  const T* gate_weight;       // [G, K + I] of r, h and x, packed transposed
  const T* interface_weight;  // [P, C] packed transposed
  const T* interface_bias;    // [P]
  const int64_t* lengths;     // [B] or null
  State<const T> initial;
  T* hidden;        // [T, B, C]
  T* read_vectors;  // [T, B, R, M]
  State<T> final;
  T* trace_weightings;  // [T, B, H, N] or null
  T* trace_interface;   // [T, B, P] activated, or null
  Saved<T> saved;
};

template <typename T>
struct SequenceBackward {
  const T* recurrent_weight;  // [G, K] packed
  const T* interface_weight;  // [P, C] packed
  const int64_t* lengths;     // [B] or null
  State<const T> initial;
  const T* hidden;  // [T, B, C]
  Saved<const T> saved;
  const T* d_hidden;        // [T, B, C] or null for 0, as what follows
  const T* d_read_vectors;  // [T, B, R, M]
  State<const T> d_final;
  T* d_projected;  // [T, B, G]
  T* d_interface;  // [T, B, P] raw
  State<T> d_initial;
};

// d_weight [rows, columns] = Σ_i d[i][row] x[i][column] for each of some arrays x: over `count`
// rows of d, the first `first_count` of which go with `first` and the others with `rest`.
template <typename T>
struct WeightGradient {
  struct Part {
    int64_t columns;
    const T* first;  // [first_count, columns]
    const T* rest;   // [count − first_count, columns]
    T* d_weight;     // [rows, columns]
    int64_t stride;  // from one row of d_weight to the next
  };
  int64_t count;
  int64_t rows;
  int64_t first_count;
  const T* d;     // [count, rows]
  T* d_bias;      // [rows] Σ_i d[i][row], or null
  Part parts[3];  // those not used have no columns
};

// The hyperparameters of an update, and one parameter with its gradient and state.
template <typename T>
struct RMSpropRates {
  T lr, decay, momentum, eps;
};
template <typename T>
struct RMSpropArrays {
  T* parameter;
  const T* grad;
  T* square_avg;
  T* grad_avg;  // null unless centered
  T* delta;     // null without momentum
};

template <typename T>
struct Kernels {
  template <typename Arguments>
  using Kernel = void (*)(const Sizes&, const Arguments&, int64_t begin, int64_t end);

  Kernel<Address<T>> address;
  Kernel<AddressBackward<T>> address_backward;
  Kernel<Read<T>> read;
  Kernel<ReadBackward<T>> read_backward;
  Kernel<Write<T>> write;
  Kernel<WriteBackward<T>> write_backward;
  Kernel<Step<T>> step;
  Kernel<StepBackward<T>> step_backward;
  Kernel<Sequence<T>> sequence;
  Kernel<SequenceBackward<T>> sequence_backward;

  int64_t (*packed_size)(int64_t columns, int64_t inner);
  // From weight [inner, columns]; rows `at` … of a packed [inner, columns] from [columns, rows].
  void (*pack)(int64_t columns, int64_t inner, const T* weight, T* packed);
  void (*pack_transposed)(int64_t columns, int64_t inner, int64_t at, int64_t rows, const T* weight,
                          T* packed);
  // Blocks of rows of the gradient that can be computed apart, and the kernel for some of them.
  int64_t (*weight_gradient_blocks)(const WeightGradient<T>&);
  void (*weight_gradient)(const WeightGradient<T>&, int64_t begin, int64_t end);
  void (*graves_rmsprop)(const RMSpropRates<T>&, int64_t count, const RMSpropArrays<T>&);
};

struct Isa {
  const char* name;
  Kernels<float> single_precision;
  Kernels<double> double_precision;

  template <typename T>
  const Kernels<T>& kernels() const {
    if constexpr (sizeof(T) == sizeof(float)) {
      return single_precision;
    } else {
      return double_precision;
    }
  }
};

// The best that this machine has, or the one named by NTM_KERNELS_ISA.
const Isa& isa();

}  // namespace ntm::cpu
