// The controller of a sequence, forward and backward: all that depends on which controller it is,
// and on its layers, is in this file.
//
// `Controller` owns what goes from one step to the next: the read vectors, and for an LSTM its
// hidden and cell state. It knows what is saved, and computes one step of a group of sequences: one
// product with the weights gives the gates of all, from which each sequence gets its hidden state.
// `ControllerBackward` is the same backward, with the gradients of that state. `with_controller`
// chooses the type, once a call: no step asks which controller it has.
#pragma once

#include "cpu/arena.h"
#include "cpu/gemm.h"
#include "cpu/math.h"
#include "kernels.h"

namespace ntm::cpu::NTM_ISA {

// The sequences of the batch that go through all steps together: `rows` of them from `begin`.
// Arrays of a group have its sequences side by side, as rows of one matrix.
struct Group {
  int64_t batch;
  const int64_t* lengths;  // [B] or null
  int64_t begin = 0, rows = 0;

  int64_t sequence(int64_t i) const { return begin + i; }
  // In an array [T, B, …].
  int64_t row(int64_t t, int64_t i = 0) const { return t * batch + begin + i; }
  bool active(int64_t t, int64_t i) const { return !lengths || t < lengths[begin + i]; }
};

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

// d_hidden [C] -> d_gates [4, C] before their activation. d_cell [C] goes from the gradient of the
// cell to that of the previous cell, in place; gates are activated.
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

// LSTM: hidden and cell state go from step to step. Saved are the activated gates and the cells.
struct Lstm {
  static constexpr bool has_state = true;
};
// Feed-forward: no state, and nothing to save beyond the hidden state, which is an output.
struct Feedforward {
  static constexpr bool has_state = false;
};

// body(Lstm{}) or body(Feedforward{}), as a call has it.
template <typename Body>
inline void with_controller(const Sizes& s, const Body& body) {
  s.is_lstm ? body(Lstm{}) : body(Feedforward{});
}

template <typename T, typename Kind>
class Controller {
 public:
  Controller(Arena& arena, const Sizes& s, const SequenceForward<T>& io, int64_t rows)
      : s_(s),
        io_(io),
        width_(s.recurrent_size() + s.input_columns()),
        seen_(arena.take<T>(rows * width_)),
        gates_(arena.take<T>(rows * s.gate_size())),
        cells_(arena.take<T>(Kind::has_state ? rows * s.hidden_size : 0)) {}

  // r of the i-th sequence, where the controller sees it in the step after.
  T* read_vectors(int64_t i) { return seen_ + i * width_; }

  // Of sequence b, the i-th of its group.
  void load_state(int64_t b, int64_t i) {
    const int64_t reads = s_.read_size(), C = s_.hidden_size;
    copy(reads, io_.inputs.initial_read_vectors + b * reads, read_vectors(i));
    if constexpr (Kind::has_state) {
      copy(C, io_.inputs.initial_hidden + b * C, previous_hidden(i));
      copy(C, io_.inputs.initial_cell + b * C, cells_ + i * C);
    }
  }

  // One step of the group: the outputs `hidden`, which are 0 beyond the length of a sequence.
  void step(const Group& group, int64_t t) {
    const int64_t C = s_.hidden_size, G = s_.gate_size(), I = s_.input_columns(),
                  row = group.row(t);
    T* const gates = io_.saved.gates ? io_.saved.gates + row * G : gates_;
    for (int64_t i = 0; I && i < group.rows; ++i) {
      copy(I, io_.inputs.x + (row + i) * I, seen_ + i * width_ + s_.recurrent_size());
    }
    // An input that comes projected is like a bias, but another one for every row.
    const T* const bias = I ? io_.inputs.input_bias : io_.inputs.x + row * G;
    gemm<T>(group.rows, G, width_, {seen_, width_}, {io_.gate_weight}, bias, I ? 0 : G, gates, G);
    for (int64_t i = 0; i < group.rows; ++i) {
      T *const hidden = io_.outputs.hidden + (row + i) * C, *const cell = cells_ + i * C;
      if (!group.active(t, i)) {
        zero(C, hidden);
      } else if constexpr (Kind::has_state) {
        lstm(C, gates + i * G, cell, cell, hidden);
        copy(C, hidden, previous_hidden(i));
      } else {
        feedforward(C, gates + i * G, hidden);
      }
      if (Kind::has_state && io_.saved.cells) copy(C, cell, io_.saved.cells + (row + i) * C);
    }
  }

  // Asks for the memory that a later step will write.
  NTM_INLINE void prefetch_step(int64_t row) const {
    const int64_t C = s_.hidden_size, G = s_.gate_size();
    if (Kind::has_state && io_.saved.cells) {
      prefetch<1>(G, io_.saved.gates + row * G);
      prefetch<1>(C, io_.saved.cells + row * C);
    }
    prefetch<1>(C, io_.outputs.hidden + row * C);
  }

  void store_state(int64_t b, int64_t i) {
    const int64_t reads = s_.read_size(), C = s_.hidden_size;
    copy(reads, read_vectors(i), io_.outputs.final_read_vectors + b * reads);
    if constexpr (Kind::has_state) {
      copy(C, previous_hidden(i), io_.outputs.final_hidden + b * C);
      copy(C, cells_ + i * C, io_.outputs.final_cell + b * C);
    }
  }

 private:
  T* previous_hidden(int64_t i) { return read_vectors(i) + s_.read_size(); }

  const Sizes& s_;
  const SequenceForward<T>& io_;
  int64_t width_;  // K + I
  T* seen_;        // [rows, K + I] side by side: r and h of the step before, and x
  T* gates_;       // [rows, G], if they are not saved
  T* cells_;       // [rows, C]
};

template <typename T, typename Kind>
class ControllerBackward {
 public:
  ControllerBackward(Arena& arena, const Sizes& s, const SequenceBackward<T>& io, int64_t rows)
      : s_(s),
        io_(io),
        d_recurrent_(arena.take<T>(rows * s.recurrent_size())),
        d_previous_(arena.take<T>(rows * s.recurrent_size())),
        d_hidden_(arena.take<T>(rows * s.hidden_size)),
        d_cells_(arena.take<T>(Kind::has_state ? rows * s.hidden_size : 0)) {}

  // The gradient of r of the i-th sequence, as the step after has seen it.
  T* d_read_vectors(int64_t i) { return d_recurrent_ + i * s_.recurrent_size(); }

  // Of sequence b, the i-th of its group.
  void load_grads(int64_t b, int64_t i) {
    const int64_t reads = s_.read_size(), C = s_.hidden_size;
    copy_or_zero(reads, io_.grads.final_read_vectors, b * reads, d_read_vectors(i));
    if constexpr (Kind::has_state) {
      copy_or_zero(C, io_.grads.final_hidden, b * C, d_carried(i));
      copy_or_zero(C, io_.grads.final_cell, b * C, d_cells_ + i * C);
    }
  }

  // [rows, C]: the gradient of the hidden state but for what comes through the interface vector,
  // which has to be added before `step_backward`.
  T* start_d_hidden(const Group& group, int64_t t) {
    const int64_t C = s_.hidden_size;
    for (int64_t i = 0; i < group.rows; ++i) {
      copy_or_zero(C, io_.grads.hidden, group.row(t, i) * C, d_hidden_ + i * C);
      if constexpr (Kind::has_state) accumulate(C, d_carried(i), d_hidden_ + i * C);
    }
    return d_hidden_;
  }

  // One step of the group: the gradients `d_projected` of the gates, which are 0 beyond the length
  // of a sequence, and those of what the step has seen.
  void step_backward(const Group& group, int64_t t) {
    const int64_t C = s_.hidden_size, G = s_.gate_size(), K = s_.recurrent_size();
    for (int64_t i = 0; i < group.rows; ++i) {
      const int64_t row = group.row(t, i);
      T* const d_gates = io_.d_projected + row * G;
      if (!group.active(t, i)) {
        zero(G, d_gates);
      } else if constexpr (Kind::has_state) {
        const T* const previous_cell = t ? io_.saved.cells + group.row(t - 1, i) * C
                                         : io_.inputs.initial_cell + group.sequence(i) * C;
        lstm_backward(C, io_.saved.gates + row * G, previous_cell, io_.saved.cells + row * C,
                      d_hidden_ + i * C, d_cells_ + i * C, d_gates);
      } else {
        feedforward_backward(C, io_.outputs.hidden + row * C, d_hidden_ + i * C, d_gates);
      }
    }
    gemm<T>(group.rows, K, G, {io_.d_projected + group.row(t) * G, G}, {io_.recurrent_weight},
            nullptr, 0, d_previous_, K);
    for (int64_t i = 0; i < group.rows; ++i) {
      if (group.active(t, i)) copy(K, d_previous_ + i * K, d_recurrent_ + i * K);
    }
  }

  // Asks for what `step_backward` will need.
  NTM_INLINE void prefetch_step(const Group& group, int64_t t, int64_t i) const {
    const int64_t C = s_.hidden_size, G = s_.gate_size(), row = group.row(t, i);
    prefetch<1>(G, io_.d_projected + row * G);
    if (!Kind::has_state) return;
    prefetch(G, io_.saved.gates + row * G);
    if (t) prefetch(C, io_.saved.cells + group.row(t - 1, i) * C);
  }

  void store_grads(int64_t b, int64_t i) {
    const int64_t reads = s_.read_size(), C = s_.hidden_size;
    copy(reads, d_read_vectors(i), io_.d_inputs.initial_read_vectors + b * reads);
    if constexpr (Kind::has_state) {
      copy(C, d_carried(i), io_.d_inputs.initial_hidden + b * C);
      copy(C, d_cells_ + i * C, io_.d_inputs.initial_cell + b * C);
    }
  }

 private:
  // The gradient of the hidden state of the i-th sequence, as the step after has seen it.
  T* d_carried(int64_t i) { return d_read_vectors(i) + s_.read_size(); }

  const Sizes& s_;
  const SequenceBackward<T>& io_;
  T* d_recurrent_;  // [rows, K] of r and h of this step, through the steps after it
  T* d_previous_;   // [rows, K] of r and h of the step before, through this step and those after
  T* d_hidden_;     // [rows, C]
  T* d_cells_;      // [rows, C] through the steps after
};

}  // namespace ntm::cpu::NTM_ISA
