// A whole sequence: a few sequences of the batch together from the first step to the last, so that
// the matrix products have several rows and everything stays in the cache; no thread ever waits for
// another.
//
// Backward, segment by segment from the last to the first: the memories of a segment are rebuilt
// from its checkpoint by repeating the writes, then its steps are undone one by one.
#pragma once

#include <algorithm>

#include "cpu/controller.h"
#include "cpu/step.h"
#include "kernels.h"
#include "workspace.h"

namespace ntm::cpu::NTM_ISA {

template <typename T>
inline void zero(int64_t n, T* to) {
  __builtin_memset(to, 0, n * sizeof(T));
}
template <typename T>
inline void copy_or_zero(int64_t n, const T* from, T* to) {
  from ? copy(n, from, to) : zero(n, to);
}

NTM_INLINE bool active(const int64_t* lengths, int64_t b, int64_t t) {
  return !lengths || t < lengths[b];
}

// Of `count` sequences, those to take together. They share one reading of the weights, for which
// they give up the cache to each other: not where a memory is larger than the weights. Eight fill
// the tiles of a product; more bring nothing.
inline int64_t together(const Sizes& s, int64_t count) {
  const int64_t weights =
      s.gate_size() * (s.recurrent_size() + s.input_columns()) + s.interface_size() * s.hidden_size;
  const int64_t worthwhile = std::clamp<int64_t>(weights / s.transposed_size(), 1, 8);
  return std::min(worthwhile, count);
}

template <typename T>
struct SequenceScratch {
  T* memory;      // [rows][M][N]
  T* weightings;  // [rows, H, N]
  T* seen;        // [rows, K + I] r, h and x side by side
  T* cell;        // [rows, C]
  T* gates;       // [rows, G]
  T* interface;   // [rows, P]
  T* activated;   // [P]
  Addressing<T> addressing;

  SequenceScratch(Arena& arena, const Sizes& s, int64_t rows)
      : memory(arena.take<T>(rows * s.transposed_size())),
        weightings(arena.take<T>(rows * s.num_heads() * s.memory_size)),
        seen(arena.take<T>(rows * (s.recurrent_size() + s.input_columns()))),
        cell(arena.take<T>(rows * s.hidden_size)),
        gates(arena.take<T>(rows * s.gate_size())),
        interface(arena.take<T>(rows * s.interface_size())),
        activated(arena.take<T>(s.interface_size())),
        addressing(arena, s) {}
};

template <typename T>
inline void sequence_rows(const Sizes& s, const SequenceForward<T>& io, SequenceScratch<T>& scratch,
                          int64_t begin, int64_t rows) {
  const int64_t B = s.batch, C = s.hidden_size, K = s.recurrent_size(), G = s.gate_size(),
                P = s.interface_size();
  const int64_t reads = s.read_size(), HN = s.num_heads() * s.memory_size,
                NM = s.memory_size * s.word_size;
  const int64_t I = s.input_columns(), all = K + I;

  for (int64_t i = 0; i < rows; ++i) {
    const int64_t b = begin + i;
    T* const memory = scratch.memory + i * s.transposed_size();
    zero(s.transposed_size(), memory);  // what lies between the rows ends up in the checkpoints
    transpose(s.memory_size, s.word_size, io.inputs.initial_memory + b * NM, s.word_size, memory,
              s.row_stride());
    copy(HN, io.inputs.initial_weightings + b * HN, scratch.weightings + i * HN);
    copy(reads, io.inputs.initial_read_vectors + b * reads, scratch.seen + i * all);
    if (s.is_lstm) {
      copy(C, io.inputs.initial_hidden + b * C, scratch.seen + i * all + reads);
      copy(C, io.inputs.initial_cell + b * C, scratch.cell + i * C);
    }
  }

  for (int64_t t = 0; t < s.time; ++t) {
    const int64_t at = t * B + begin;  // of the first of these sequences in an array [T, B, …]
    T* const gates = io.saved.gates ? io.saved.gates + at * G : scratch.gates;
    T* const interface = io.saved.interface ? io.saved.interface + at * P : scratch.interface;
    T* const hiddens = io.outputs.hidden + at * C;
    for (int64_t i = 0; I && i < rows; ++i) {
      copy(I, io.inputs.x + (at + i) * I, scratch.seen + i * all + K);
    }
    const T* const start = I ? io.inputs.input_bias : io.inputs.x + at * G;
    gemm<T>(rows, G, all, {scratch.seen, all}, {io.gate_weight}, start, I ? 0 : G, gates, G);
    for (int64_t i = 0; i < rows; ++i) {
      T* const hidden = hiddens + i * C;
      if (!active(io.lengths, begin + i, t)) {
        zero(C, hidden);
      } else if (s.is_lstm) {
        lstm(C, gates + i * G, scratch.cell + i * C, scratch.cell + i * C, hidden);
        copy(C, hidden, scratch.seen + i * all + reads);
      } else {
        feedforward(C, gates + i * G, hidden);
      }
      if (io.saved.cells) copy(C, scratch.cell + i * C, io.saved.cells + (at + i) * C);
    }
    gemm<T>(rows, P, C, {hiddens, C}, {io.interface_weight}, io.inputs.interface_bias, 0, interface,
            P);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = at + i;
      T* const memory = scratch.memory + i * s.transposed_size();
      T* const weightings = scratch.weightings + i * HN;
      T* const read_vectors = scratch.seen + i * all;
      if (io.saved.checkpoints && t % s.checkpoint_every == 0) {
        const int64_t index = t / s.checkpoint_every * B + begin + i;
        copy(s.transposed_size(), memory, io.saved.checkpoints + index * s.transposed_size());
      }
      T* const activated =
          io.outputs.trace_interface ? io.outputs.trace_interface + row * P : scratch.activated;
      if (t + 1 < s.time) {
        if (io.saved.weightings) {
          prefetch<1>(HN, io.saved.weightings + (row + B) * HN);
          prefetch<1>(P, io.saved.interface + (row + B) * P);
          if (s.is_lstm) {
            prefetch<1>(G, io.saved.gates + (row + B) * G);
            prefetch<1>(C, io.saved.cells + (row + B) * C);
          }
        }
        prefetch<1>(C, io.outputs.hidden + (row + B) * C);
      }
      if (active(io.lengths, begin + i, t)) {
        activate(s, interface + i * P, activated);
        step(s, Heads<T>(activated, s), scratch.addressing, memory, weightings, s.memory_size,
             read_vectors);
        copy(reads, read_vectors, io.outputs.read_vectors + row * reads);
      } else {
        zero(reads, io.outputs.read_vectors + row * reads);
        if (io.outputs.trace_interface) zero(P, activated);
      }
      if (io.saved.weightings) copy(HN, weightings, io.saved.weightings + row * HN);
      if (io.outputs.trace_weightings) copy(HN, weightings, io.outputs.trace_weightings + row * HN);
    }
  }

  for (int64_t i = 0; i < rows; ++i) {
    const int64_t b = begin + i;
    transpose(s.word_size, s.memory_size, scratch.memory + i * s.transposed_size(), s.row_stride(),
              io.outputs.final_memory + b * NM, s.word_size);
    copy(HN, scratch.weightings + i * HN, io.outputs.final_weightings + b * HN);
    copy(reads, scratch.seen + i * all, io.outputs.final_read_vectors + b * reads);
    if (s.is_lstm) {
      copy(C, scratch.seen + i * all + reads, io.outputs.final_hidden + b * C);
      copy(C, scratch.cell + i * C, io.outputs.final_cell + b * C);
    }
  }
}

// body(begin, rows) for the sequences begin … end − 1, at most `most` at a time.
template <typename Body>
inline void by_groups(int64_t begin, int64_t end, int64_t most, Body&& body) {
  const int64_t groups = (end - begin + most - 1) / most;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t from = begin + group * (end - begin) / groups;
    body(from, begin + (group + 1) * (end - begin) / groups - from);
  }
}

template <typename T>
inline void sequence(const Sizes& s, const SequenceForward<T>& io, int64_t begin, int64_t end) {
  const int64_t most = together(s, end - begin);
  Arena measure;
  SequenceScratch<T>(measure, s, most);
  const Lease lease(measure.used());
  Arena arena(lease.data());
  SequenceScratch<T> scratch(arena, s, most);
  by_groups(begin, end, most,
            [&](int64_t from, int64_t rows) { sequence_rows(s, io, scratch, from, rows); });
}

template <typename T>
struct SequenceBackwardScratch {
  T* memories;      // [every - 1][rows][M][N] before each step of a segment but the first
  T* dots;          // [every][rows][1 + H][N] of the memory before each step
  T* activated;     // [every][rows, P]
  T* d_memory;      // [rows][M][N]
  T* d_weightings;  // [rows, H, N]
  T* d_recurrent;   // [rows, K]
  T* d_before;      // [rows, K]
  T* d_hidden;      // [rows, C]
  T* d_cell;        // [rows, C]
  T* d_reads;       // [R, M]
  Addressing<T> addressing;
  Products<T> products;

  SequenceBackwardScratch(Arena& arena, const Sizes& s, int64_t rows)
      : memories(arena.take<T>((steps(s) - 1) * rows * s.transposed_size())),
        dots(arena.take<T>(steps(s) * rows * (1 + s.num_heads()) * Addressing<T>::row_of(s))),
        activated(arena.take<T>(steps(s) * rows * s.interface_size())),
        d_memory(arena.take<T>(rows * s.transposed_size())),
        d_weightings(arena.take<T>(rows * s.num_heads() * s.memory_size)),
        d_recurrent(arena.take<T>(rows * s.recurrent_size())),
        d_before(arena.take<T>(rows * s.recurrent_size())),
        d_hidden(arena.take<T>(rows * s.hidden_size)),
        d_cell(arena.take<T>(rows * s.hidden_size)),
        d_reads(arena.take<T>(s.read_size())),
        addressing(arena, s),
        products(arena, s) {}

  static int64_t steps(const Sizes& s) {
    return s.checkpoint_every < s.time ? s.checkpoint_every : s.time;
  }
};

template <typename T>
inline void sequence_backward_rows(const Sizes& s, const SequenceBackward<T>& io,
                                   SequenceBackwardScratch<T>& scratch, int64_t begin,
                                   int64_t rows) {
  const int64_t B = s.batch, C = s.hidden_size, K = s.recurrent_size(), G = s.gate_size(),
                P = s.interface_size();
  const int64_t reads = s.read_size(), HN = s.num_heads() * s.memory_size,
                NM = s.memory_size * s.word_size;
  const T* checkpoint = nullptr;  // of the running segment
  const auto memory_at = [&](int64_t step, int64_t i) -> const T* {
    return step ? scratch.memories + ((step - 1) * rows + i) * s.transposed_size()
                : checkpoint + i * s.transposed_size();
  };
  const int64_t dots_row = scratch.addressing.row;
  const auto dots_at = [&](int64_t step, int64_t i) {
    return scratch.dots + (step * rows + i) * (1 + s.num_heads()) * dots_row;
  };
  const auto heads_at = [&](int64_t step, int64_t i) {
    return Heads<T>(scratch.activated + (step * rows + i) * P, s);
  };

  for (int64_t i = 0; i < rows; ++i) {
    const int64_t b = begin + i;
    T* const d_memory = scratch.d_memory + i * s.transposed_size();
    if (io.grads.final_memory) {
      transpose(s.memory_size, s.word_size, io.grads.final_memory + b * NM, s.word_size, d_memory,
                s.row_stride());
    } else {
      zero(s.transposed_size(), d_memory);
    }
    const auto start = [&](int64_t n, const T* from, T* to) {
      copy_or_zero(n, from ? from + b * n : nullptr, to);
    };
    start(HN, io.grads.final_weightings, scratch.d_weightings + i * HN);
    start(reads, io.grads.final_read_vectors, scratch.d_recurrent + i * K);
    if (s.is_lstm) {
      start(C, io.grads.final_hidden, scratch.d_recurrent + i * K + reads);
      start(C, io.grads.final_cell, scratch.d_cell + i * C);
    }
  }

  for (int64_t segment = s.num_checkpoints() - 1; segment >= 0; --segment) {
    const int64_t from = segment * s.checkpoint_every;
    const int64_t steps = from + s.checkpoint_every < s.time ? s.checkpoint_every : s.time - from;
    checkpoint = io.saved.checkpoints + (segment * B + begin) * s.transposed_size();
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t step = 0; step < steps; ++step) {
        if (!active(io.lengths, begin + i, from + step)) break;
        const int64_t row = (from + step) * B + begin + i;
        const Heads<T> heads = heads_at(step, i);
        activate(s, io.saved.interface + row * P, heads.key);
        if (step == 0) {
          similarity_dots(s, memory_at(0, i), heads.key, dots_row, dots_at(0, i));
          continue;
        }
        const Heads<T> before = heads_at(step - 1, i);
        const T* const weightings =
            io.saved.weightings + (row - B) * HN + s.num_read_heads * s.memory_size;
        write_and_similarity_dots(s, memory_at(step - 1, i), weightings, s.memory_size,
                                  before.erase, before.add,
                                  scratch.memories + ((step - 1) * rows + i) * s.transposed_size(),
                                  heads.key, dots_row, dots_at(step, i));
      }
    }

    for (int64_t step = steps - 1; step >= 0; --step) {
      const int64_t t = from + step, at = t * B + begin;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t row = at + i;
        T* const d_interface = io.d_interface + row * P;
        if (!active(io.lengths, begin + i, t)) {
          zero(P, d_interface);
          continue;
        }
        const Heads<T> heads = heads_at(step, i);
        const T* const previous = t ? io.saved.weightings + (row - B) * HN
                                    : io.inputs.initial_weightings + (begin + i) * HN;
        const T* d_reads = scratch.d_recurrent + i * K;
        if (io.grads.read_vectors) {
          const T* more = io.grads.read_vectors + row * reads;
          each<T>(reads, [&](int64_t j, auto n) {
            store(scratch.d_reads + j, load(d_reads + j, n) + load(more + j, n), n);
          });
          d_reads = scratch.d_reads;
        }
        if (t) {
          const int64_t before = row - B;
          prefetch(P, io.saved.interface + before * P);
          prefetch<1>(P, io.d_interface + before * P);
          prefetch<1>(G, io.d_projected + before * G);
          if (s.is_lstm) {
            prefetch(G, io.saved.gates + before * G);
            if (t > 1) prefetch(C, io.saved.cells + (before - B) * C);
          }
          if (t > 1) prefetch(HN, io.saved.weightings + (before - B) * HN);
        }
        similarity_content_interpolate_shift(s, dots_at(step, i), heads, previous, s.memory_size,
                                             scratch.addressing);
        step_backward(s, memory_at(step, i), heads, previous, io.saved.weightings + row * HN,
                      s.memory_size, scratch.addressing, scratch.products, d_reads,
                      scratch.d_memory + i * s.transposed_size(), scratch.d_weightings + i * HN,
                      s.memory_size, Heads<T>(d_interface, s));
        activate_backward(s, io.saved.interface + row * P, heads.key, d_interface);
      }

      for (int64_t i = 0; i < rows; ++i) {
        T* const d_hidden = scratch.d_hidden + i * C;
        copy_or_zero(C, io.grads.hidden ? io.grads.hidden + (at + i) * C : nullptr, d_hidden);
        if (s.is_lstm) {
          const T* more = scratch.d_recurrent + i * K + reads;
          each<T>(C, [&](int64_t c, auto n) {
            store(d_hidden + c, load(d_hidden + c, n) + load(more + c, n), n);
          });
        }
      }
      gemm<T>(rows, C, P, {io.d_interface + at * P, P}, {io.interface_weight}, scratch.d_hidden, C,
              scratch.d_hidden, C);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t row = at + i;
        T* const d_gates = io.d_projected + row * G;
        const T* const d_hidden = scratch.d_hidden + i * C;
        if (!active(io.lengths, begin + i, t)) {
          zero(G, d_gates);
        } else if (s.is_lstm) {
          const T* const previous =
              t ? io.saved.cells + (row - B) * C : io.inputs.initial_cell + (begin + i) * C;
          lstm_backward(C, io.saved.gates + row * G, previous, io.saved.cells + row * C, d_hidden,
                        scratch.d_cell + i * C, d_gates);
        } else {
          feedforward_backward(C, io.outputs.hidden + row * C, d_hidden, d_gates);
        }
      }
      gemm<T>(rows, K, G, {io.d_projected + at * G, G}, {io.recurrent_weight}, nullptr, 0,
              scratch.d_before, K);
      for (int64_t i = 0; i < rows; ++i) {
        if (!active(io.lengths, begin + i, t)) continue;
        copy(K, scratch.d_before + i * K, scratch.d_recurrent + i * K);
      }
    }
  }

  for (int64_t i = 0; i < rows; ++i) {
    const int64_t b = begin + i;
    transpose(s.word_size, s.memory_size, scratch.d_memory + i * s.transposed_size(),
              s.row_stride(), io.d_inputs.initial_memory + b * NM, s.word_size);
    copy(HN, scratch.d_weightings + i * HN, io.d_inputs.initial_weightings + b * HN);
    copy(reads, scratch.d_recurrent + i * K, io.d_inputs.initial_read_vectors + b * reads);
    if (s.is_lstm) {
      copy(C, scratch.d_recurrent + i * K + reads, io.d_inputs.initial_hidden + b * C);
      copy(C, scratch.d_cell + i * C, io.d_inputs.initial_cell + b * C);
    }
  }
}

template <typename T>
inline void sequence_backward(const Sizes& s, const SequenceBackward<T>& io, int64_t begin,
                              int64_t end) {
  const int64_t most = together(s, end - begin);
  Arena measure;
  SequenceBackwardScratch<T>(measure, s, most);
  const Lease lease(measure.used());
  Arena arena(lease.data());
  SequenceBackwardScratch<T> scratch(arena, s, most);
  by_groups(begin, end, most, [&](int64_t from, int64_t rows) {
    sequence_backward_rows(s, io, scratch, from, rows);
  });
}

// Columns of the transposed gradient are taken by panels, its rows by tiles, and the long sum in
// chunks whose part of d stays in the first cache.
inline constexpr int64_t kChunk = 64;

template <typename T>
inline int64_t weight_gradient_blocks(const WeightGradient<T>& g) {
  return panels<T>(g.rows);
}

template <typename T>
inline void weight_gradient(const WeightGradient<T>& g, int64_t begin, int64_t end) {
  const int64_t count = panels<T>(g.rows);
  const int64_t first = panel<T>(g.rows, count, begin).first * kLanes<T>;
  const Panel last = panel<T>(g.rows, count, end - 1);
  int64_t stop = (last.first + last.vectors) * kLanes<T>;
  stop = stop < g.rows ? stop : g.rows;
  const int64_t width = stop - first;
  int64_t most = 0;
  for (const auto& part : g.parts) most = part.columns > most ? part.columns : most;
  const Lease lease(most * width * sizeof(T));
  T* const sums = static_cast<T*>(lease.data());  // [columns][width], the gradient transposed

  for (const auto& part : g.parts) {
    const int64_t n = part.columns;
    if (n == 0) continue;
    zero(n * width, sums);
    const auto add = [&](int64_t rows, const T* x, const T* d) {
      for (int64_t from = 0; from < rows; from += kChunk) {
        const int64_t length = rows - from < kChunk ? rows - from : kChunk;
        gemm<T>(n, width, length, {x + from * n, 1, n}, {d + from * g.rows + first, g.rows}, sums,
                width, sums, width);
      }
    };
    add(g.first_count, part.first, g.d);
    add(g.count - g.first_count, part.rest, g.d + g.first_count * g.rows);
    transpose(n, width, sums, width, part.d_weight + first * part.stride, part.stride);
  }

  if (!g.d_bias) return;
  zero(width, g.d_bias + first);
  for (int64_t i = 0; i < g.count; ++i) {
    each<T>(width, [&](int64_t j, auto n) {
      T* const to = g.d_bias + first + j;
      store(to, load(to, n) + load(g.d + i * g.rows + first + j, n), n);
    });
  }
}

}  // namespace ntm::cpu::NTM_ISA
