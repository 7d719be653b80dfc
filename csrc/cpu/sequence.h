// A whole sequence, forward and backward.
//
// A thread takes a few sequences of the batch, a group, through all steps together: the matrix
// products then have several rows for one reading of the weights, the state stays in the cache, and
// no thread ever waits for another. Within a step the products (controller, interface) run over the
// whole group; addressing, reading and writing run for one sequence after the other, so that its
// memory is in the first-level cache for all of them.
//
// The forward keeps the memory at some steps only, the checkpoints. The backward goes through the
// segments between them from the last to the first. In each it replays the writes from the
// checkpoint, which gives the memory before each step, then goes backward step by step.
#pragma once

#include <algorithm>

#include "cpu/addressing.h"
#include "cpu/controller.h"
#include "cpu/interface.h"
#include "cpu/memory.h"
#include "cpu/weights.h"
#include "kernels.h"

namespace ntm::cpu::NTM_ISA {

// The state and scratch of one group, and the phases of a step.
template <typename T, typename Controller>
class SequenceSteps {
 public:
  SequenceSteps(Arena& arena, const Sizes& s, const SequenceForward<T>& io, int64_t rows)
      : s_(s),
        io_(io),
        group_{s.batch, io.lengths, io.resets},
        controller_(arena, s, io, rows),
        memory_(arena.take<T>(rows * s.transposed_size())),
        weightings_(arena.take<T>(rows * s.weightings_size())),
        interface_(arena.take<T>(rows * s.interface_size())),
        activated_(arena.take<T>(rows * s.interface_size())),
        addressing_(arena, s),
        product_(arena, s, rows, s.hidden_size) {}

  void run(int64_t begin, int64_t rows) {
    group_.begin = begin, group_.rows = rows;
    for (int64_t i = 0; i < rows; ++i) load_state(i);
    for (int64_t t = 0; t < s_.time; ++t) {
      for (int64_t i = 0; i < rows; ++i) {
        if (group_.restarts(t, i)) load_state(i);
      }
      controller_.step(group_, t);
      interface_step(t);
      for (int64_t i = 0; i < rows; ++i) {
        save_checkpoint(t, i);
        if (t + 1 < s_.time) prefetch_step(t + 1, i);
        if (group_.active(t, i)) {
          address(t, i);
          read_write(t, i);
        } else {
          clear_padding(t, i);
        }
        save_weightings(t, i);
      }
    }
    store_state();
  }

 private:
  void load_state(int64_t i) {
    const int64_t HN = s_.weightings_size(), b = group_.sequence(i);
    zero(s_.transposed_size(), memory(i));  // checkpoints have the gaps between the rows too
    load_memory(s_, io_.inputs.initial_memory + b * s_.matrix_size(), memory(i));
    copy(HN, io_.inputs.initial_weightings + b * HN, weightings(i));
    controller_.load_state(b, i);
  }

  void interface_step(int64_t t) {
    const int64_t C = s_.hidden_size, P = s_.interface_size(), row = group_.row(t);
    T* const raw = io_.saved.interface ? io_.saved.interface + row * P : interface_;
    product_(group_.rows, P, C, {io_.outputs.hidden + row * C, C}, io_.interface_weight,
             io_.inputs.interface_bias, 0, raw, P);
    for (int64_t i = 0; i < group_.rows; ++i) {
      if (group_.active(t, i)) activate(s_, raw + i * P, activated(t, i));
    }
  }

  void address(int64_t t, int64_t i) {
    T *const previous = weightings(i), *const weightings = previous;  // in place
    NTM_ISA::address(s_, memory(i), Heads<T>(activated(t, i), s_), previous, weightings,
                     addressing_);
  }

  void read_write(int64_t t, int64_t i) {
    T* const read_vectors = controller_.read_vectors(i);
    NTM_ISA::read_write(s_, memory(i), Heads<T>(activated(t, i), s_), weightings(i), read_vectors);
    copy(s_.read_size(), read_vectors,
         io_.outputs.read_vectors + group_.row(t, i) * s_.read_size());
  }

  void clear_padding(int64_t t, int64_t i) {
    zero(s_.read_size(), io_.outputs.read_vectors + group_.row(t, i) * s_.read_size());
    if (io_.outputs.trace_interface) zero(s_.interface_size(), activated(t, i));
  }

  void save_checkpoint(int64_t t, int64_t i) {
    if (!io_.saved.checkpoints || t % s_.checkpoint_every) return;
    const int64_t size = s_.transposed_size();
    copy(size, memory(i), io_.saved.checkpoints + group_.row(t / s_.checkpoint_every, i) * size);
  }

  void save_weightings(int64_t t, int64_t i) {
    const int64_t HN = s_.weightings_size();
    for (T* const all : {io_.saved.weightings, io_.outputs.trace_weightings}) {
      if (all) copy(HN, weightings(i), all + group_.row(t, i) * HN);
    }
  }

  void store_state() {
    const int64_t HN = s_.weightings_size(), NM = s_.matrix_size();
    for (int64_t i = 0; i < group_.rows; ++i) {
      const int64_t b = group_.sequence(i);
      store_memory(s_, memory(i), io_.outputs.final_memory + b * NM);
      copy(HN, weightings(i), io_.outputs.final_weightings + b * HN);
      controller_.store_state(b, i);
    }
  }

  // Asks for the memory that a later step will save its results in.
  NTM_INLINE void prefetch_step(int64_t t, int64_t i) const {
    const int64_t row = group_.row(t, i), P = s_.interface_size(), HN = s_.weightings_size();
    if (io_.saved.weightings) {
      prefetch<1>(HN, io_.saved.weightings + row * HN);
      prefetch<1>(P, io_.saved.interface + row * P);
    }
    controller_.prefetch_step(group_, t, i);
  }

  // Of the i-th sequence.
  T* memory(int64_t i) { return memory_ + i * s_.transposed_size(); }
  T* weightings(int64_t i) { return weightings_ + i * s_.weightings_size(); }
  T* activated(int64_t t, int64_t i) {
    const int64_t P = s_.interface_size();
    T* const trace = io_.outputs.trace_interface;
    return trace ? trace + group_.row(t, i) * P : activated_ + i * P;
  }

  const Sizes& s_;
  const SequenceForward<T>& io_;
  Group group_;
  Controller controller_;
  T* memory_;      // [rows][M][N]
  T* weightings_;  // [rows, H, N]
  T* interface_;   // [rows, P] raw, if it is not saved
  T* activated_;   // [rows, P], if there is no trace of it
  Addressing<T> addressing_;
  WeightProduct<T> product_;
};

// The same backward. `step` counts the steps of the running segment from 0, `t` those of the whole
// sequence. What `replay` computes is kept for one segment, so it is found by `step`.
template <typename T, typename Controller>
class SequenceStepsBackward {
 public:
  SequenceStepsBackward(Arena& arena, const Sizes& s, const SequenceBackward<T>& io, int64_t rows)
      : s_(s),
        io_(io),
        group_{s.batch, io.lengths, io.resets},
        controller_(arena, s, io, rows),
        memories_(arena.take<T>((most_steps() - 1) * rows * s.transposed_size())),
        dots_(arena.take<T>(most_steps() * rows * (1 + s.num_heads()) * Addressing<T>::row_of(s))),
        activated_(arena.take<T>(most_steps() * rows * s.interface_size())),
        d_memory_(arena.take<T>(rows * s.transposed_size())),
        d_weightings_(arena.take<T>(rows * s.weightings_size())),
        d_memory_at_resets_(arena.take<T>(s.has_resets ? rows * s.transposed_size() : 0)),
        d_weightings_at_resets_(arena.take<T>(s.has_resets ? rows * s.weightings_size() : 0)),
        addressing_(arena, s),
        products_(arena, s),
        product_(arena, s, rows, s.interface_size()) {}

  void run(int64_t begin, int64_t rows) {
    group_.begin = begin, group_.rows = rows;
    load_grads();
    for (int64_t segment = s_.num_checkpoints() - 1; segment >= 0; --segment) {
      from_ = segment * s_.checkpoint_every;
      checkpoint_ = io_.saved.checkpoints + group_.row(segment) * s_.transposed_size();
      const int64_t steps = std::min(s_.checkpoint_every, s_.time - from_);
      replay(steps);
      for (int64_t step = steps - 1; step >= 0; --step) {
        const int64_t t = from_ + step;
        for (int64_t i = 0; i < rows; ++i) {
          if (t) prefetch_step(t - 1, i);
          if (group_.active(t, i)) {
            replay_address(step, i);
            read_write_backward(step, i);
            address_backward(step, i);
          } else {
            clear_padding(t, i);
          }
        }
        interface_backward(step);
        controller_.step_backward(group_, t);
        for (int64_t i = 0; i < rows; ++i) {
          if (group_.restarts(t, i)) cut(i);
        }
      }
    }
    store_grads();
  }

 private:
  void load_grads() {
    const int64_t HN = s_.weightings_size(), NM = s_.matrix_size();
    for (int64_t i = 0; i < group_.rows; ++i) {
      const int64_t b = group_.sequence(i);
      load_memory_or_zero(s_, io_.grads.final_memory, b * NM, d_memory(i));
      copy_or_zero(HN, io_.grads.final_weightings, b * HN, d_weightings(i));
      controller_.load_grads(b, i);
      if (!s_.has_resets) continue;
      zero(s_.transposed_size(), d_memory_at_resets_ + i * s_.transposed_size());
      zero(HN, d_weightings_at_resets_ + i * HN);
    }
  }

  // The i-th sequence was reset before the step whose backward is done: the gradient of the state
  // goes to the initial state, and nothing goes further back.
  void cut(int64_t i) {
    const int64_t HN = s_.weightings_size(), size = s_.transposed_size();
    move_into(size, d_memory(i), d_memory_at_resets_ + i * size);
    move_into(HN, d_weightings(i), d_weightings_at_resets_ + i * HN);
    controller_.cut(i);
  }

  // The memory before each step of the segment, its products with the keys of that step, and the
  // activated interface vector.
  void replay(int64_t steps) {
    for (int64_t i = 0; i < group_.rows; ++i) {
      for (int64_t step = 0; step < steps && group_.active(from_ + step, i); ++step) {
        const Heads<T> heads = this->heads(step, i);
        activate(s_, raw(from_ + step, i), heads.key);
        const bool restarts = group_.restarts(from_ + step, i);
        if (step && restarts) {
          const T* const initial = io_.inputs.initial_memory;
          load_memory(s_, initial + group_.sequence(i) * s_.matrix_size(), replayed(step, i));
        }
        if (step == 0 || restarts) {
          similarity_dots(s_, memory(step, i), heads.key, dots(step, i));
          continue;
        }
        const Heads<T> before = this->heads(step - 1, i);
        const T* const of_writes =
            previous_weightings(from_ + step, i) + s_.num_read_heads * s_.memory_size;
        write_and_similarity_dots(s_, memory(step - 1, i), of_writes, before.erase, before.add,
                                  replayed(step, i), heads.key, dots(step, i));
      }
    }
  }

  // Before the backward of the step, both parts of which then go through the memory one after the
  // other, while it is in the first-level cache.
  void replay_address(int64_t step, int64_t i) {
    similarity_content_interpolate_shift(s_, dots(step, i), heads(step, i),
                                         previous_weightings(from_ + step, i), addressing_);
  }

  void read_write_backward(int64_t step, int64_t i) {
    const int64_t HN = s_.weightings_size(), reads = s_.read_size(),
                  row = group_.row(from_ + step, i);
    T* const d_read_vectors = controller_.d_read_vectors(i);
    if (io_.grads.read_vectors) {
      accumulate(reads, io_.grads.read_vectors + row * reads, d_read_vectors);
    }
    NTM_ISA::read_write_backward(s_, memory(step, i), heads(step, i),
                                 io_.saved.weightings + row * HN, d_read_vectors, products_,
                                 d_memory(i), d_weightings(i), d_heads(from_ + step, i));
  }

  void address_backward(int64_t step, int64_t i) {
    NTM_ISA::address_backward(s_, memory(step, i), heads(step, i),
                              previous_weightings(from_ + step, i), addressing_, d_weightings(i),
                              d_heads(from_ + step, i), d_memory(i));
  }

  void clear_padding(int64_t t, int64_t i) { zero(s_.interface_size(), d_interface(t, i)); }

  void interface_backward(int64_t step) {
    const int64_t C = s_.hidden_size, P = s_.interface_size(), t = from_ + step;
    for (int64_t i = 0; i < group_.rows; ++i) {
      if (!group_.active(t, i)) continue;
      activate_backward(s_, raw(t, i), heads(step, i).key, d_interface(t, i));
    }
    T* const d_hidden = controller_.start_d_hidden(group_, t);
    const int64_t stride = controller_.row_stride();
    product_(group_.rows, C, P, {d_interface(t, 0), P}, io_.interface_weight, d_hidden, stride,
             d_hidden, stride);
  }

  void store_grads() {
    const int64_t HN = s_.weightings_size(), NM = s_.matrix_size();
    for (int64_t i = 0; i < group_.rows; ++i) {
      const int64_t b = group_.sequence(i), size = s_.transposed_size();
      if (s_.has_resets) {
        accumulate(size, d_memory_at_resets_ + i * size, d_memory(i));
        accumulate(HN, d_weightings_at_resets_ + i * HN, d_weightings(i));
      }
      store_memory(s_, d_memory(i), io_.d_inputs.initial_memory + b * NM);
      copy(HN, d_weightings(i), io_.d_inputs.initial_weightings + b * HN);
      controller_.store_grads(b, i);
    }
  }

  // Asks for what the backward of a step will need.
  NTM_INLINE void prefetch_step(int64_t t, int64_t i) const {
    const int64_t HN = s_.weightings_size();
    prefetch(s_.interface_size(), raw(t, i));
    prefetch<1>(s_.interface_size(), d_interface(t, i));
    controller_.prefetch_step(group_, t, i);
    if (t) prefetch(HN, previous_weightings(t, i));
  }

  // The arrays of the i-th sequence. Of one step of the segment:
  const T* memory(int64_t step, int64_t i) const {
    return step ? replayed(step, i) : checkpoint_ + i * s_.transposed_size();
  }
  T* replayed(int64_t step, int64_t i) const {
    return memories_ + ((step - 1) * group_.rows + i) * s_.transposed_size();
  }
  T* dots(int64_t step, int64_t i) const {
    return dots_ + (step * group_.rows + i) * (1 + s_.num_heads()) * addressing_.row;
  }
  Heads<T> heads(int64_t step, int64_t i) const {
    return Heads<T>(activated_ + (step * group_.rows + i) * s_.interface_size(), s_);
  }
  // Of one step of the whole sequence:
  const T* raw(int64_t t, int64_t i) const {
    return io_.saved.interface + group_.row(t, i) * s_.interface_size();
  }
  const T* previous_weightings(int64_t t, int64_t i) const {
    return group_.starts(t, i)
               ? io_.inputs.initial_weightings + group_.sequence(i) * s_.weightings_size()
               : io_.saved.weightings + group_.row(t - 1, i) * s_.weightings_size();
  }
  T* d_interface(int64_t t, int64_t i) const {
    return io_.d_interface + group_.row(t, i) * s_.interface_size();
  }
  Heads<T> d_heads(int64_t t, int64_t i) const { return Heads<T>(d_interface(t, i), s_); }
  // Gradients that go from step to step. The backward of a step replaces each, in place.
  T* d_memory(int64_t i) const { return d_memory_ + i * s_.transposed_size(); }
  T* d_weightings(int64_t i) const { return d_weightings_ + i * s_.weightings_size(); }

  int64_t most_steps() const { return std::min(s_.checkpoint_every, s_.time); }

  const Sizes& s_;
  const SequenceBackward<T>& io_;
  Group group_;
  int64_t from_ = 0;               // the first step of the running segment
  const T* checkpoint_ = nullptr;  // [rows][M][N] before that step
  Controller controller_;
  T* memories_;      // [steps − 1][rows][M][N] before each step of a segment but the first
  T* dots_;          // [steps][rows][1 + H][N] of the memory before each step
  T* activated_;     // [steps][rows, P]
  T* d_memory_;      // [rows][M][N]
  T* d_weightings_;  // [rows, H, N]
  // The sums of those that were cut off at resets.
  T *d_memory_at_resets_, *d_weightings_at_resets_;
  Addressing<T> addressing_;
  Products<T> products_;
  WeightProduct<T> product_;
};

// How many of `count` sequences make a group. The sequences of a group share one reading of the
// weights at each step, and they share the cache with each other's memories. So their memories
// together should be no larger than the weights. With eight sequences the tiles of a product are
// full, and more would gain nothing.
inline int64_t group_size(const Sizes& s, int64_t count) {
  return std::min(std::clamp<int64_t>(s.weights_size() / s.transposed_size(), 1, 8), count);
}

// Runs Steps on the sequences begin … end − 1, in groups that are as even as they can be.
template <typename Steps, typename Io>
inline void run_groups(const Sizes& s, const Io& io, int64_t begin, int64_t end) {
  const int64_t count = end - begin, most = group_size(s, count);
  const int64_t groups = (count + most - 1) / most;
  InBlock<Steps> steps(s, io, most);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t from = group * count / groups, to = (group + 1) * count / groups;
    (*steps).run(begin + from, to - from);
  }
}

template <typename T>
inline void sequence(const Sizes& s, const SequenceForward<T>& io, int64_t begin, int64_t end) {
  with_controller(s, [&](auto kind) {
    run_groups<SequenceSteps<T, Controller<T, decltype(kind)>>>(s, io, begin, end);
  });
}

template <typename T>
inline void sequence_backward(const Sizes& s, const SequenceBackward<T>& io, int64_t begin,
                              int64_t end) {
  with_controller(s, [&](auto kind) {
    run_groups<SequenceStepsBackward<T, ControllerBackward<T, decltype(kind)>>>(s, io, begin, end);
  });
}

}  // namespace ntm::cpu::NTM_ISA
