// The controller of a sequence, forward and backward: everything that its loop of steps does not
// know about it.
//
// `Controller` and `ControllerBackward` have what all controllers share: the matrix product with
// the weights, and the places of the arrays. Their `Units` turn the results of that product (the
// gates) into the hidden state, and own whatever else goes from one step to the next: the hidden
// and the cell state of an LSTM, nothing of a feed-forward controller. `with_controller` chooses
// the types, once a call, so that no step asks which controller it has.
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

// The units of an LSTM. They save their activated gates and their cells at every step.
template <typename T>
struct LstmUnits {
  int64_t size;
  const SequenceForward<T>& io;
  T* cells;  // [rows, C]

  LstmUnits(Arena& arena, const Sizes& s, const SequenceForward<T>& io, int64_t rows)
      : size(s.hidden_size), io(io), cells(arena.take<T>(rows * size)) {}

  // For sequence b, the i-th of its group. `previous_hidden` is where the controller sees it.
  void load_state(int64_t b, int64_t i, T* previous_hidden) {
    copy(size, io.inputs.initial_hidden + b * size, previous_hidden);
    copy(size, io.inputs.initial_cell + b * size, cells + i * size);
  }
  void step(int64_t i, T* gates, T* hidden, T* previous_hidden) {
    lstm(size, gates, cells + i * size, cells + i * size, hidden);
    copy(size, hidden, previous_hidden);  // of the next step
  }
  void save(int64_t row, int64_t i) {
    if (io.saved.cells) copy(size, cells + i * size, io.saved.cells + row * size);
  }
  NTM_INLINE void prefetch_saved(int64_t row) const {
    if (!io.saved.cells) return;
    prefetch<1>(4 * size, io.saved.gates + row * 4 * size);
    prefetch<1>(size, io.saved.cells + row * size);
  }
  void store_state(int64_t b, int64_t i, const T* hidden) {
    copy(size, hidden, io.outputs.final_hidden + b * size);
    copy(size, cells + i * size, io.outputs.final_cell + b * size);
  }
};

// The units of a feed-forward controller: no state, and nothing to save but the hidden state, which
// is an output.
template <typename T>
struct FeedforwardUnits {
  int64_t size;

  FeedforwardUnits(Arena&, const Sizes& s, const SequenceForward<T>&, int64_t)
      : size(s.hidden_size) {}

  void load_state(int64_t, int64_t, T*) {}
  void step(int64_t, T* gates, T* hidden, T*) { feedforward(size, gates, hidden); }
  void save(int64_t, int64_t) {}
  NTM_INLINE void prefetch_saved(int64_t) const {}
  void store_state(int64_t, int64_t, const T*) {}
};

template <typename T, typename Units>
class Controller {
 public:
  Controller(Arena& arena, const Sizes& s, const SequenceForward<T>& io, int64_t rows)
      : s_(s),
        io_(io),
        width_(s.recurrent_size() + s.input_columns()),
        seen_(arena.take<T>(rows * width_)),
        gates_(arena.take<T>(rows * s.gate_size())),
        units_(arena, s, io, rows) {}

  // r of the i-th sequence, where the controller sees it in the step after.
  T* read_vectors(int64_t i) { return seen_ + i * width_; }

  void load_state(const Group& group) {
    const int64_t reads = s_.read_size();
    for (int64_t i = 0; i < group.rows; ++i) {
      const int64_t b = group.sequence(i);
      copy(reads, io_.inputs.initial_read_vectors + b * reads, read_vectors(i));
      units_.load_state(b, i, previous_hidden(i));
    }
  }

  // One step of the group: the outputs `hidden`, which are 0 beyond the length of a sequence.
  void step(const Group& group, int64_t t) {
    const int64_t C = s_.hidden_size, G = s_.gate_size(), K = s_.recurrent_size(),
                  I = s_.input_columns(), row = group.row(t);
    T* const gates = io_.saved.gates ? io_.saved.gates + row * G : gates_;
    for (int64_t i = 0; I && i < group.rows; ++i) {
      copy(I, io_.inputs.x + (row + i) * I, seen_ + i * width_ + K);
    }
    // An input that comes projected is a bias of its own for every row.
    const T* const bias = I ? io_.inputs.input_bias : io_.inputs.x + row * G;
    gemm<T>(group.rows, G, width_, {seen_, width_}, {io_.gate_weight}, bias, I ? 0 : G, gates, G);
    for (int64_t i = 0; i < group.rows; ++i) {
      T* const hidden = io_.outputs.hidden + (row + i) * C;
      if (group.active(t, i)) {
        units_.step(i, gates + i * G, hidden, previous_hidden(i));
      } else {
        zero(C, hidden);
      }
      units_.save(row + i, i);
    }
  }

  // Ask for what a later step will write.
  NTM_INLINE void prefetch_step(int64_t row) const {
    units_.prefetch_saved(row);
    prefetch<1>(s_.hidden_size, io_.outputs.hidden + row * s_.hidden_size);
  }

  void store_state(const Group& group) {
    const int64_t reads = s_.read_size();
    for (int64_t i = 0; i < group.rows; ++i) {
      const int64_t b = group.sequence(i);
      copy(reads, read_vectors(i), io_.outputs.final_read_vectors + b * reads);
      units_.store_state(b, i, previous_hidden(i));
    }
  }

 private:
  // Of units that see their own hidden state.
  T* previous_hidden(int64_t i) { return read_vectors(i) + s_.read_size(); }

  const Sizes& s_;
  const SequenceForward<T>& io_;
  int64_t width_;
  T* seen_;   // [rows, K + I] side by side what a step sees: r and h of the step before, and x
  T* gates_;  // [rows, G], if they are not saved
  Units units_;
};

template <typename T>
struct LstmUnitsBackward {
  int64_t size;
  const SequenceBackward<T>& io;
  T* d_cells;  // [rows, C] through the steps after

  LstmUnitsBackward(Arena& arena, const Sizes& s, const SequenceBackward<T>& io, int64_t rows)
      : size(s.hidden_size), io(io), d_cells(arena.take<T>(rows * size)) {}

  // d_carried is the gradient of the hidden state as the step after has seen it.
  void load_grads(int64_t b, int64_t i, T* d_carried) {
    copy_or_zero(size, io.grads.final_hidden, b * size, d_carried);
    copy_or_zero(size, io.grads.final_cell, b * size, d_cells + i * size);
  }
  void add_carried(const T* d_carried, T* d_hidden) { accumulate(size, d_carried, d_hidden); }
  void step(const Group& group, int64_t t, int64_t i, const T* d_hidden, T* d_gates) {
    const int64_t row = group.row(t, i);
    const T* const previous_cell = t ? io.saved.cells + group.row(t - 1, i) * size
                                     : io.inputs.initial_cell + group.sequence(i) * size;
    lstm_backward(size, io.saved.gates + row * 4 * size, previous_cell, io.saved.cells + row * size,
                  d_hidden, d_cells + i * size, d_gates);
  }
  NTM_INLINE void prefetch_step(const Group& group, int64_t t, int64_t i) const {
    prefetch(4 * size, io.saved.gates + group.row(t, i) * 4 * size);
    if (t) prefetch(size, io.saved.cells + group.row(t - 1, i) * size);
  }
  void store_grads(int64_t b, int64_t i, const T* d_carried) {
    copy(size, d_carried, io.d_inputs.initial_hidden + b * size);
    copy(size, d_cells + i * size, io.d_inputs.initial_cell + b * size);
  }
};

template <typename T>
struct FeedforwardUnitsBackward {
  int64_t size;
  const SequenceBackward<T>& io;

  FeedforwardUnitsBackward(Arena&, const Sizes& s, const SequenceBackward<T>& io, int64_t)
      : size(s.hidden_size), io(io) {}

  void load_grads(int64_t, int64_t, T*) {}
  void add_carried(const T*, T*) {}
  void step(const Group& group, int64_t t, int64_t i, const T* d_hidden, T* d_gates) {
    feedforward_backward(size, io.outputs.hidden + group.row(t, i) * size, d_hidden, d_gates);
  }
  NTM_INLINE void prefetch_step(const Group&, int64_t, int64_t) const {}
  void store_grads(int64_t, int64_t, const T*) {}
};

template <typename T, typename Units>
class ControllerBackward {
 public:
  ControllerBackward(Arena& arena, const Sizes& s, const SequenceBackward<T>& io, int64_t rows)
      : s_(s),
        io_(io),
        d_recurrent_(arena.take<T>(rows * s.recurrent_size())),
        d_previous_(arena.take<T>(rows * s.recurrent_size())),
        d_hidden_(arena.take<T>(rows * s.hidden_size)),
        units_(arena, s, io, rows) {}

  // The gradient of r of the i-th sequence, as the step after has seen it.
  T* d_read_vectors(int64_t i) { return d_recurrent_ + i * s_.recurrent_size(); }

  void load_grads(const Group& group) {
    const int64_t reads = s_.read_size();
    for (int64_t i = 0; i < group.rows; ++i) {
      const int64_t b = group.sequence(i);
      copy_or_zero(reads, io_.grads.final_read_vectors, b * reads, d_read_vectors(i));
      units_.load_grads(b, i, d_carried(i));
    }
  }

  // [rows, C]: the gradient of the hidden state without what comes through the interface vector,
  // which is to be added before `step`.
  T* start_d_hidden(const Group& group, int64_t t) {
    const int64_t C = s_.hidden_size;
    for (int64_t i = 0; i < group.rows; ++i) {
      copy_or_zero(C, io_.grads.hidden, group.row(t, i) * C, d_hidden_ + i * C);
      units_.add_carried(d_carried(i), d_hidden_ + i * C);
    }
    return d_hidden_;
  }

  // One step of the group: the gradients `d_projected` of the gates, which are 0 beyond the length
  // of a sequence, and those of r and h of the step before.
  void step(const Group& group, int64_t t) {
    const int64_t C = s_.hidden_size, G = s_.gate_size(), K = s_.recurrent_size();
    T* const d_gates = io_.d_projected + group.row(t) * G;
    for (int64_t i = 0; i < group.rows; ++i) {
      if (group.active(t, i)) {
        units_.step(group, t, i, d_hidden_ + i * C, d_gates + i * G);
      } else {
        zero(G, d_gates + i * G);
      }
    }
    gemm<T>(group.rows, K, G, {d_gates, G}, {io_.recurrent_weight}, nullptr, 0, d_previous_, K);
    for (int64_t i = 0; i < group.rows; ++i) {
      if (group.active(t, i)) copy(K, d_previous_ + i * K, d_recurrent_ + i * K);
    }
  }

  // Ask for what `step` will need.
  NTM_INLINE void prefetch_step(const Group& group, int64_t t, int64_t i) const {
    const int64_t G = s_.gate_size();
    prefetch<1>(G, io_.d_projected + group.row(t, i) * G);
    units_.prefetch_step(group, t, i);
  }

  void store_grads(const Group& group) {
    const int64_t reads = s_.read_size();
    for (int64_t i = 0; i < group.rows; ++i) {
      const int64_t b = group.sequence(i);
      copy(reads, d_read_vectors(i), io_.d_inputs.initial_read_vectors + b * reads);
      units_.store_grads(b, i, d_carried(i));
    }
  }

 private:
  // Of units that see their own hidden state.
  T* d_carried(int64_t i) { return d_read_vectors(i) + s_.read_size(); }

  const Sizes& s_;
  const SequenceBackward<T>& io_;
  T* d_recurrent_;  // [rows, K] of r and h of this step, through the steps after
  T* d_previous_;   // [rows, K] of r and h of the step before, through this step and those after
  T* d_hidden_;     // [rows, C]
  Units units_;
};

struct Lstm {
  template <typename T>
  using Forward = Controller<T, LstmUnits<T>>;
  template <typename T>
  using Backward = ControllerBackward<T, LstmUnitsBackward<T>>;
};
struct Feedforward {
  template <typename T>
  using Forward = Controller<T, FeedforwardUnits<T>>;
  template <typename T>
  using Backward = ControllerBackward<T, FeedforwardUnitsBackward<T>>;
};

// body(Lstm{}) or body(Feedforward{}), as a call has it.
template <typename Body>
inline void with_controller(const Sizes& s, const Body& body) {
  s.is_lstm ? body(Lstm{}) : body(Feedforward{});
}

}  // namespace ntm::cpu::NTM_ISA
