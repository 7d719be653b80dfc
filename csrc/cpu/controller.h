// The controller of a sequence, forward and backward: all that depends on which controller it is,
// and on its layers, is in this file.
//
// `Controller` owns the state that goes from one step to the next: the read vectors r, and the
// hidden state h of every layer, and for an LSTM the cell of every layer. One step of a group of
// sequences goes through the layers from the first to the top. In each layer one product with the
// weights gives the gates of all sequences, from which each sequence gets its hidden state.
//
// The state of a sequence lies in one row, beside the input x of the step: [x, r, h of the first
// layer, h of the second, …]. Every layer finds the factors of its product side by side there: the
// first layer reads [x, r, h], and a layer above reads the h of the layer below, which is already
// that of this step, and its own h, which is still that of the step before. So no product needs its
// input gathered. A layer of a feed-forward controller reads one h less.
//
// `ControllerBackward` goes through the layers from the top to the first. It holds the gradients of
// the state in the same order, [r, h of the first layer, …]. So the product of a layer's backward
// adds to the gradients of all that the layer has read at once.
//
// `with_controller` chooses the type, once a call: no step asks which controller it has.
#pragma once

#include "cpu/arena.h"
#include "cpu/gemm.h"
#include "cpu/math.h"
#include "cpu/weights.h"
#include "kernels.h"

namespace ntm::cpu::NTM_ISA {

// The sequences of the batch that go through all steps together: `rows` of them from `begin`.
// Arrays of a group have its sequences side by side, as rows of one matrix.
struct Group {
  int64_t batch;
  const int64_t* lengths;  // [B] or null
  const bool* resets;      // [T, B] or null
  int64_t begin = 0, rows = 0;

  int64_t sequence(int64_t i) const { return begin + i; }
  // In an array [T, B, …].
  int64_t row(int64_t t, int64_t i = 0) const { return t * batch + begin + i; }
  bool active(int64_t t, int64_t i) const { return !lengths || t < lengths[begin + i]; }
  // The state before the step is the initial one, put back after the step before.
  bool restarts(int64_t t, int64_t i) const { return t > 0 && resets && resets[row(t, i)]; }
  // The state before the step is the initial one.
  bool starts(int64_t t, int64_t i) const { return t == 0 || restarts(t, i); }
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
// Feed-forward: no state, and nothing to save beyond the hidden states.
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
        width_(s.input_columns() + s.read_size() + s.num_layers * s.hidden_size),
        rows_(rows),
        seen_(arena.take<T>(rows * width_)),
        gates_(arena.take<T>(rows * s.gate_size())),
        cells_(arena.take<T>(Kind::has_state ? s.num_layers * rows * s.hidden_size : 0)),
        product_(arena, s, rows, std::max(s.input_columns() + s.recurrent_size(), s.upper_size())) {
  }

  // r of the i-th sequence, where the controller sees it in the step after.
  T* read_vectors(int64_t i) { return seen_ + i * width_ + s_.input_columns(); }

  // Of sequence b, the i-th of its group.
  void load_state(int64_t b, int64_t i) {
    const int64_t reads = s_.read_size(), C = s_.hidden_size;
    copy(reads, io_.inputs.initial_read_vectors + b * reads, read_vectors(i));
    for (int64_t layer = 0; Kind::has_state && layer < s_.num_layers; ++layer) {
      const int64_t at = (layer * s_.batch + b) * C;
      copy(C, io_.inputs.initial_hidden + at, hidden(layer, i));
      copy(C, io_.inputs.initial_cell + at, cell(layer, i));
    }
  }

  // One step of the group: the outputs `hidden`, which are 0 beyond the length of a sequence.
  void step(const Group& group, int64_t t) {
    const int64_t G = s_.gate_size(), I = s_.input_columns(), J = s_.upper_size();
    const T* const x = io_.inputs.x + group.row(t) * s_.input_size;
    for (int64_t i = 0; I && i < group.rows; ++i) copy(I, x + i * I, seen_ + i * width_);
    // An input that comes projected is like a bias, but another one for every row.
    T* const first = gates(group, t, 0);
    product_(group.rows, G, I + s_.recurrent_size(), {seen_, width_}, io_.gate_weight,
             I ? io_.inputs.input_bias : x, I ? 0 : G, first, G);
    layer_step(group, t, 0, first);
    for (int64_t layer = 1; layer < s_.num_layers; ++layer) {
      T* const gates = this->gates(group, t, layer);
      product_(group.rows, G, J, {hidden(layer - 1, 0), width_},
               io_.upper_gate_weight + (layer - 1) * packed_weight_size<T>(s_, G, J),
               io_.inputs.upper_bias + (layer - 1) * G, 0, gates, G);
      layer_step(group, t, layer, gates);
    }
  }

  // Asks for the memory that a later step will write.
  NTM_INLINE void prefetch_step(const Group& group, int64_t t, int64_t i) const {
    const int64_t C = s_.hidden_size, G = s_.gate_size();
    for (int64_t layer = 0; io_.saved.cells && layer < s_.num_layers; ++layer) {
      const int64_t row = group.row(layer * s_.time + t, i);
      prefetch<1>(G, io_.saved.gates + row * G);
      prefetch<1>(C, io_.saved.cells + row * C);
    }
    prefetch<1>(C, io_.outputs.hidden + group.row(t, i) * C);
  }

  void store_state(int64_t b, int64_t i) {
    const int64_t reads = s_.read_size(), C = s_.hidden_size;
    copy(reads, read_vectors(i), io_.outputs.final_read_vectors + b * reads);
    for (int64_t layer = 0; Kind::has_state && layer < s_.num_layers; ++layer) {
      const int64_t at = (layer * s_.batch + b) * C;
      copy(C, hidden(layer, i), io_.outputs.final_hidden + at);
      copy(C, cell(layer, i), io_.outputs.final_cell + at);
    }
  }

 private:
  // From the gates [rows, G] of one layer to its hidden state and cell after the step.
  void layer_step(const Group& group, int64_t t, int64_t layer, T* gates) {
    const int64_t C = s_.hidden_size, G = s_.gate_size();
    T* const all = hidden_of(s_, layer, io_.outputs.hidden, io_.saved.lower_hidden);
    for (int64_t i = 0; i < group.rows; ++i, gates += G) {
      T *const hidden = this->hidden(layer, i), *const cell = this->cell(layer, i);
      T* const to = all ? all + group.row(t, i) * C : nullptr;
      if (!group.active(t, i)) {
        if (to) zero(C, to);
      } else {
        if constexpr (Kind::has_state) {
          lstm(C, gates, cell, cell, hidden);
        } else {
          feedforward(C, gates, hidden);
        }
        if (to) copy(C, hidden, to);
      }
      if (io_.saved.cells) {
        copy(C, cell, io_.saved.cells + group.row(layer * s_.time + t, i) * C);
      }
    }
  }

  // [rows, G]
  T* gates(const Group& group, int64_t t, int64_t layer) {
    T* const saved = io_.saved.gates;
    return saved ? saved + group.row(layer * s_.time + t) * s_.gate_size() : gates_;
  }
  T* hidden(int64_t layer, int64_t i) {
    return read_vectors(i) + s_.read_size() + layer * s_.hidden_size;
  }
  T* cell(int64_t layer, int64_t i) { return cells_ + (layer * rows_ + i) * s_.hidden_size; }

  const Sizes& s_;
  const SequenceForward<T>& io_;
  int64_t width_;  // I + R·M + L·C
  int64_t rows_;
  T* seen_;   // [rows, I + R·M + L·C] side by side: x, r and h of every layer
  T* gates_;  // [rows, G] of one layer, if they are not saved
  T* cells_;  // [L, rows, C]
  WeightProduct<T> product_;
};

template <typename T, typename Kind>
class ControllerBackward {
 public:
  ControllerBackward(Arena& arena, const Sizes& s, const SequenceBackward<T>& io, int64_t rows)
      : s_(s),
        io_(io),
        width_(s.read_size() + s.num_layers * s.hidden_size),
        rows_(rows),
        d_state_(arena.take<T>(rows * width_)),
        d_cells_(arena.take<T>(Kind::has_state ? s.num_layers * rows * s.hidden_size : 0)),
        d_state_at_resets_(arena.take<T>(s.has_resets ? rows * width_ : 0)),
        d_cells_at_resets_(arena.take<T>(
            s.has_resets && Kind::has_state ? s.num_layers * rows * s.hidden_size : 0)),
        product_(arena, s, rows, s.gate_size()) {}

  // The gradient of r of the i-th sequence, as the step after has seen it.
  T* d_read_vectors(int64_t i) { return d_state_ + i * width_; }

  // Of sequence b, the i-th of its group.
  void load_grads(int64_t b, int64_t i) {
    const int64_t reads = s_.read_size(), C = s_.hidden_size;
    copy_or_zero(reads, io_.grads.final_read_vectors, b * reads, d_read_vectors(i));
    for (int64_t layer = 0; layer < s_.num_layers; ++layer) {
      const int64_t at = (layer * s_.batch + b) * C;
      copy_or_zero(C, io_.grads.final_hidden, at, d_hidden(layer, i));
      if constexpr (Kind::has_state) copy_or_zero(C, io_.grads.final_cell, at, d_cell(layer, i));
    }
    if (!s_.has_resets) return;
    zero(width_, d_state_at_resets_ + i * width_);
    for (int64_t layer = 0; Kind::has_state && layer < s_.num_layers; ++layer) {
      zero(C, d_cells_at_resets_ + (layer * rows_ + i) * C);
    }
  }

  // The i-th sequence was reset before this step: the gradient of the state goes to the initial
  // state, and nothing goes further back.
  void cut(int64_t i) {
    const int64_t C = s_.hidden_size;
    move_into(width_, d_read_vectors(i), d_state_at_resets_ + i * width_);
    for (int64_t layer = 0; Kind::has_state && layer < s_.num_layers; ++layer) {
      move_into(C, d_cell(layer, i), d_cells_at_resets_ + (layer * rows_ + i) * C);
    }
  }

  // The gradient of the top layer's hidden state, [rows, C] with `row_stride` elements from one
  // row to the next. The part that comes through the interface vector has to be added to it before
  // `step_backward`.
  T* start_d_hidden(const Group& group, int64_t t) {
    const int64_t C = s_.hidden_size, top = s_.num_layers - 1;
    for (int64_t i = 0; io_.grads.hidden && i < group.rows; ++i) {
      if (!group.active(t, i)) continue;
      accumulate(C, io_.grads.hidden + group.row(t, i) * C, d_hidden(top, i));
    }
    return d_hidden(top, 0);
  }
  int64_t row_stride() const { return width_; }

  // One step of the group: the gradients of the gates of all layers, which are 0 beyond the length
  // of a sequence, and those of the state before the step.
  void step_backward(const Group& group, int64_t t) {
    const int64_t G = s_.gate_size(), J = s_.upper_size();
    for (int64_t layer = s_.num_layers - 1; layer > 0; --layer) {
      T* const d_gates = io_.d_upper_gates + group.row((layer - 1) * s_.time + t) * G;
      layer_backward(group, t, layer, d_gates);
      T* const d_seen = d_hidden(layer - 1, 0);
      product_(group.rows, J, G, {d_gates, G},
               io_.upper_weight + (layer - 1) * packed_weight_size<T>(s_, J, G), d_seen, width_,
               d_seen, width_);
    }
    T* const d_gates = io_.d_projected + group.row(t) * G;
    layer_backward(group, t, 0, d_gates);
    for (int64_t i = 0; i < group.rows; ++i) {
      if (group.active(t, i)) zero(s_.read_size(), d_read_vectors(i));
    }
    product_(group.rows, s_.recurrent_size(), G, {d_gates, G}, io_.recurrent_weight, d_state_,
             width_, d_state_, width_);
  }

  // Asks for what `step_backward` will need.
  NTM_INLINE void prefetch_step(const Group& group, int64_t t, int64_t i) const {
    const int64_t C = s_.hidden_size, G = s_.gate_size();
    prefetch<1>(G, io_.d_projected + group.row(t, i) * G);
    for (int64_t layer = 0; Kind::has_state && layer < s_.num_layers; ++layer) {
      const int64_t row = group.row(layer * s_.time + t, i);
      prefetch(G, io_.saved.gates + row * G);
      if (t) prefetch(C, io_.saved.cells + (row - s_.batch) * C);
    }
  }

  void store_grads(int64_t b, int64_t i) {
    const int64_t reads = s_.read_size(), C = s_.hidden_size;
    if (s_.has_resets) {
      accumulate(width_, d_state_at_resets_ + i * width_, d_read_vectors(i));
      for (int64_t layer = 0; Kind::has_state && layer < s_.num_layers; ++layer) {
        accumulate(C, d_cells_at_resets_ + (layer * rows_ + i) * C, d_cell(layer, i));
      }
    }
    copy(reads, d_read_vectors(i), io_.d_inputs.initial_read_vectors + b * reads);
    for (int64_t layer = 0; Kind::has_state && layer < s_.num_layers; ++layer) {
      const int64_t at = (layer * s_.batch + b) * C;
      copy(C, d_hidden(layer, i), io_.d_inputs.initial_hidden + at);
      copy(C, d_cell(layer, i), io_.d_inputs.initial_cell + at);
    }
  }

 private:
  // From the gradient of one layer's hidden state to that of its gates, `d_gates` [rows, G]. The
  // former is used up then: it starts again from 0, for the hidden state before the step. That of a
  // sequence that is over waits as it is, since the product with its d_gates adds 0 to it.
  void layer_backward(const Group& group, int64_t t, int64_t layer, T* d_gates) {
    const int64_t C = s_.hidden_size, G = s_.gate_size();
    for (int64_t i = 0; i < group.rows; ++i, d_gates += G) {
      if (!group.active(t, i)) {
        zero(G, d_gates);
        continue;
      }
      T* const d_hidden = this->d_hidden(layer, i);
      if constexpr (Kind::has_state) {
        const int64_t row = group.row(layer * s_.time + t, i);  // in an array [L, T, B, …]
        const T* const cell = io_.saved.cells + row * C;
        const T* const previous_cell =
            group.starts(t, i)
                ? io_.inputs.initial_cell + (layer * s_.batch + group.sequence(i)) * C
                : cell - s_.batch * C;
        lstm_backward(C, io_.saved.gates + row * G, previous_cell, cell, d_hidden, d_cell(layer, i),
                      d_gates);
      } else {
        const T* const all = hidden_of(s_, layer, io_.outputs.hidden, io_.saved.lower_hidden);
        feedforward_backward(C, all + group.row(t, i) * C, d_hidden, d_gates);
      }
      zero(C, d_hidden);
    }
  }

  // Of the hidden state and cell of a layer, for the i-th sequence.
  T* d_hidden(int64_t layer, int64_t i) {
    return d_read_vectors(i) + s_.read_size() + layer * s_.hidden_size;
  }
  T* d_cell(int64_t layer, int64_t i) { return d_cells_ + (layer * rows_ + i) * s_.hidden_size; }

  const Sizes& s_;
  const SequenceBackward<T>& io_;
  int64_t width_;  // R·M + L·C
  int64_t rows_;
  // Gradients that go from step to step. The backward of a step replaces each, in place.
  T* d_state_;  // [rows, R·M + L·C] side by side: of r and of h of every layer
  T* d_cells_;  // [L, rows, C]
  // The sums of those that were cut off at resets.
  T *d_state_at_resets_, *d_cells_at_resets_;
  WeightProduct<T> product_;
};

}  // namespace ntm::cpu::NTM_ISA
