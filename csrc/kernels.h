// The kernels that each instruction set has, as one table of functions on raw pointers for float
// and one for double. `isa()` gives the table to use.
//
// All arrays are contiguous, of the shape in their comment. A kernel computes the sequences
// begin … end − 1 of the batch; several threads call it at once, each for sequences of its own.
#pragma once

#include <cstdint>

#include "records.h"
#include "sizes.h"

namespace ntm::cpu {

// The arrays of an op forward; a tensor that is not there is null.
template <typename Op, typename T>
struct Forward {
  typename Op::template Inputs<const T*> inputs;
  typename Op::template Outputs<T*> outputs;
};

// The arrays of an op backward. A gradient of an output that is null counts as 0.
template <typename Op, typename T>
struct Backward {
  typename Op::template Inputs<const T*> inputs;
  typename Op::template Outputs<const T*> grads;
  typename Op::template Inputs<T*> d_inputs;
};

// `sequence` reads its weights packed as factors of matrix products, not those among the inputs.
// What the backward needs is saved if the arrays of `saved` are not null.
template <typename T>
struct SequenceForward {
  ops::SequenceInputs<const T*> inputs;
  const T* gate_weight;        // [G, I + K] of x, r and h, packed transposed
  const T* upper_gate_weight;  // [U][G, J], each packed transposed
  const T* interface_weight;   // [P, C] packed transposed
  const int64_t* lengths;      // [B] or null
  const bool* resets;          // [T, B] or null
  ops::SequenceOutputs<T*> outputs;
  ops::SequenceSaved<T*> saved;
};

template <typename T>
struct SequenceBackward {
  ops::SequenceInputs<const T*> inputs;
  const T* recurrent_weight;               // [G, K] packed
  const T* upper_weight;                   // [U][G, J], each packed
  const T* interface_weight;               // [P, C] packed
  const int64_t* lengths;                  // [B] or null
  const bool* resets;                      // [T, B] or null
  ops::SequenceOutputs<const T*> outputs;  // those that are kept
  ops::SequenceSaved<const T*> saved;
  ops::SequenceOutputs<const T*> grads;
  T* d_projected;                    // [T, B, G] of the first layer's gates
  T* d_upper_gates;                  // [U, T, B, G]
  T* d_interface;                    // [T, B, P] raw
  ops::SequenceInputs<T*> d_inputs;  // the initial state alone
};

// The hidden states [T, B, C] of one layer of the controller. Those of the top layer are an output;
// those of the layers below are in `lower` [U, T, B, C], or null if they are not saved.
template <typename V>
V* hidden_of(const Sizes& s, int64_t layer, V* top, V* lower) {
  if (layer + 1 == s.num_layers) return top;
  return lower ? lower + layer * s.time * s.batch * s.hidden_size : nullptr;
}

// The gradient of a weight that was multiplied by several inputs x side by side:
// d_weight [rows, columns] = Σ_i d[i][row] x[i][column] for each x, summed over the `count` steps
// of all sequences. Where x is a state that goes from step to step, its first `first_count` rows
// (the first step) are in another array than the rest.
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
  Part parts[3];  // a part without columns is left out
};

// The hyperparameters of an update of RMSProp, and one parameter with its gradient and state.
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

template <typename Arguments>
using Kernel = void (*)(const Sizes&, const Arguments&, int64_t begin, int64_t end);

// The two directions of an op without a controller, and of all of these ops.
template <typename Op, typename T>
struct OpKernels {
  Kernel<Forward<Op, T>> forward;
  Kernel<Backward<Op, T>> backward;
};
template <typename T>
struct HeadKernels {
  template <typename... Ops>
  struct Of : OpKernels<Ops, T>... {};
};

template <typename T>
struct Kernels : ops::WithoutController<HeadKernels<T>::template Of> {
  Kernel<SequenceForward<T>> sequence;
  Kernel<SequenceBackward<T>> sequence_backward;

  int64_t (*packed_weight_size)(const Sizes&, int64_t columns, int64_t inner);
  // Pack weight [inner, columns]; or the transpose of weight [columns, rows], as the rows from `at`
  // on of a packed factor [inner, columns].
  void (*pack_weight)(const Sizes&, int64_t columns, int64_t inner, const T* weight, T* packed);
  void (*pack_weight_transposed)(const Sizes&, int64_t columns, int64_t inner, int64_t at,
                                 int64_t rows, const T* weight, T* packed);
  // Into how many blocks of rows the gradient is cut, and the kernel for the blocks begin … end
  // − 1.
  int64_t (*weight_gradient_blocks)(const WeightGradient<T>&);
  void (*weight_gradient)(const WeightGradient<T>&, int64_t begin, int64_t end);
  void (*graves_rmsprop)(const RMSpropRates<T>&, int64_t count, const RMSpropArrays<T>&);
};

struct Isa {
  const char* name;
  bool has_amx;  // its kernels can multiply in bfloat16
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

// Whether the kernels of `isa()` can multiply in bfloat16, and this machine lets the process do it.
bool multiplies_in_bfloat16();

}  // namespace ntm::cpu
