// The ops and the records of their tensors. Generated from ntm_kernels/ops by
// `python -m scripts.generate_records`; change those, not this.
//
// A record holds values of any type V under the names of the tensors: tensors, pointers to their
// data, or whether they are wanted. Every record has
//   from(f)      the record of f() for each of its fields, in order,
//   make(s, f)   the record of f(field) for each of its fields, in order,
//   map(f)       the record of f(value) for each of its values,
//   each(f)      which calls f(value) for each of its values, in order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sizes.h"

// clang-format off
namespace ntm::ops {

// Tensors of one kind have one dtype.
enum class Kind { memory, head_parameters, weightings, input, controller_weights, state, steps, resets, arithmetic };

struct Shape {
  int64_t sizes[4];
  size_t rank;
};

// A tensor of a record in a call of some sizes. The sizes know whether it is there.
struct Field {
  Shape shape;
  bool present;
  Kind kind;
};

template <typename V>
struct AddressInputs {
  V memory;  // [B, N, M]
  V key;  // [B, H, M]
  V strength;  // [B, H]
  V gate;  // [B, H]
  V shift;  // [B, H, S]
  V sharpening;  // [B, H]
  V previous_weightings;  // [B, H, N]
  static constexpr size_t count = 7;
  static constexpr bool differentiable[] = {true, true, true, true, true, true, true};
  static constexpr bool kept[] = {false, false, false, false, false, false, false};
  static constexpr Kind kinds[] = {Kind::memory, Kind::head_parameters, Kind::head_parameters, Kind::head_parameters, Kind::head_parameters, Kind::head_parameters, Kind::weightings};
  template <typename F> static AddressInputs from(F&& f) {
    (void)f;
    return {f(), f(), f(), f(), f(), f(), f()};
  }
  template <typename F> static AddressInputs make(const Sizes& s, F&& f) {
    (void)s, (void)f;
    return {
        f(Field{{{s.batch, s.memory_size, s.word_size}, 3}, true, Kind::memory}),
        f(Field{{{s.batch, s.num_heads(), s.word_size}, 3}, true, Kind::head_parameters}),
        f(Field{{{s.batch, s.num_heads()}, 2}, true, Kind::head_parameters}),
        f(Field{{{s.batch, s.num_heads()}, 2}, true, Kind::head_parameters}),
        f(Field{{{s.batch, s.num_heads(), s.num_taps}, 3}, true, Kind::head_parameters}),
        f(Field{{{s.batch, s.num_heads()}, 2}, true, Kind::head_parameters}),
        f(Field{{{s.batch, s.num_heads(), s.memory_size}, 3}, true, Kind::weightings}),
    };
  }
  template <typename W, typename F> AddressInputs<W> map(F&& f) const {
    (void)f;
    return {f(memory), f(key), f(strength), f(gate), f(shift), f(sharpening), f(previous_weightings)};
  }
  template <typename F> void each(F&& f) {
    (void)f;
    f(memory);
    f(key);
    f(strength);
    f(gate);
    f(shift);
    f(sharpening);
    f(previous_weightings);
  }
};

template <typename V>
struct AddressOutputs {
  V weightings;  // [B, H, N]
  static constexpr size_t count = 1;
  static constexpr bool differentiable[] = {true};
  static constexpr bool kept[] = {false};
  static constexpr Kind kinds[] = {Kind::weightings};
  template <typename F> static AddressOutputs from(F&& f) {
    (void)f;
    return {f()};
  }
  template <typename F> static AddressOutputs make(const Sizes& s, F&& f) {
    (void)s, (void)f;
    return {
        f(Field{{{s.batch, s.num_heads(), s.memory_size}, 3}, true, Kind::weightings}),
    };
  }
  template <typename W, typename F> AddressOutputs<W> map(F&& f) const {
    (void)f;
    return {f(weightings)};
  }
  template <typename F> void each(F&& f) {
    (void)f;
    f(weightings);
  }
};

struct AddressOptions {
  static constexpr size_t count = 0;
  template <typename F> void each(F&& f) {
    (void)f;
  }
};

struct Address {
  static constexpr const char* name = "address";
  static constexpr const char* schema =
      "cpu_address(Tensor memory, Tensor key, Tensor strength, Tensor gate, Tensor shift, Tensor sharpening, Tensor previous_weightings, bool save_for_backward) -> (Tensor weightings, Tensor[] saved)";
  static constexpr const char* backward_schema =
      "cpu_address_backward(Tensor? grad_weightings, Tensor memory, Tensor key, Tensor strength, Tensor gate, Tensor shift, Tensor sharpening, Tensor previous_weightings, Tensor[] saved, bool[] wanted) -> (Tensor d_memory, Tensor d_key, Tensor d_strength, Tensor d_gate, Tensor d_shift, Tensor d_sharpening, Tensor d_previous_weightings)";
  template <typename V> using Inputs = AddressInputs<V>;
  template <typename V> using Outputs = AddressOutputs<V>;
  using Options = AddressOptions;
};

template <typename V>
struct ReadInputs {
  V memory;  // [B, N, M]
  V weightings;  // [B, H, N]
  static constexpr size_t count = 2;
  static constexpr bool differentiable[] = {true, true};
  static constexpr bool kept[] = {false, false};
  static constexpr Kind kinds[] = {Kind::memory, Kind::weightings};
  template <typename F> static ReadInputs from(F&& f) {
    (void)f;
    return {f(), f()};
  }
  template <typename F> static ReadInputs make(const Sizes& s, F&& f) {
    (void)s, (void)f;
    return {
        f(Field{{{s.batch, s.memory_size, s.word_size}, 3}, true, Kind::memory}),
        f(Field{{{s.batch, s.num_heads(), s.memory_size}, 3}, true, Kind::weightings}),
    };
  }
  template <typename W, typename F> ReadInputs<W> map(F&& f) const {
    (void)f;
    return {f(memory), f(weightings)};
  }
  template <typename F> void each(F&& f) {
    (void)f;
    f(memory);
    f(weightings);
  }
};

template <typename V>
struct ReadOutputs {
  V read_vectors;  // [B, H, M]
  static constexpr size_t count = 1;
  static constexpr bool differentiable[] = {true};
  static constexpr bool kept[] = {false};
  static constexpr Kind kinds[] = {Kind::memory};
  template <typename F> static ReadOutputs from(F&& f) {
    (void)f;
    return {f()};
  }
  template <typename F> static ReadOutputs make(const Sizes& s, F&& f) {
    (void)s, (void)f;
    return {
        f(Field{{{s.batch, s.num_heads(), s.word_size}, 3}, true, Kind::memory}),
    };
  }
  template <typename W, typename F> ReadOutputs<W> map(F&& f) const {
    (void)f;
    return {f(read_vectors)};
  }
  template <typename F> void each(F&& f) {
    (void)f;
    f(read_vectors);
  }
};

struct ReadOptions {
  static constexpr size_t count = 0;
  template <typename F> void each(F&& f) {
    (void)f;
  }
};

struct Read {
  static constexpr const char* name = "read";
  static constexpr const char* schema =
      "cpu_read(Tensor memory, Tensor weightings, bool save_for_backward) -> (Tensor read_vectors, Tensor[] saved)";
  static constexpr const char* backward_schema =
      "cpu_read_backward(Tensor? grad_read_vectors, Tensor memory, Tensor weightings, Tensor[] saved, bool[] wanted) -> (Tensor d_memory, Tensor d_weightings)";
  template <typename V> using Inputs = ReadInputs<V>;
  template <typename V> using Outputs = ReadOutputs<V>;
  using Options = ReadOptions;
};

template <typename V>
struct WriteInputs {
  V memory;  // [B, N, M]
  V weightings;  // [B, H, N]
  V erase;  // [B, H, M]
  V add;  // [B, H, M]
  static constexpr size_t count = 4;
  static constexpr bool differentiable[] = {true, true, true, true};
  static constexpr bool kept[] = {false, false, false, false};
  static constexpr Kind kinds[] = {Kind::memory, Kind::weightings, Kind::head_parameters, Kind::head_parameters};
  template <typename F> static WriteInputs from(F&& f) {
    (void)f;
    return {f(), f(), f(), f()};
  }
  template <typename F> static WriteInputs make(const Sizes& s, F&& f) {
    (void)s, (void)f;
    return {
        f(Field{{{s.batch, s.memory_size, s.word_size}, 3}, true, Kind::memory}),
        f(Field{{{s.batch, s.num_heads(), s.memory_size}, 3}, true, Kind::weightings}),
        f(Field{{{s.batch, s.num_heads(), s.word_size}, 3}, true, Kind::head_parameters}),
        f(Field{{{s.batch, s.num_heads(), s.word_size}, 3}, true, Kind::head_parameters}),
    };
  }
  template <typename W, typename F> WriteInputs<W> map(F&& f) const {
    (void)f;
    return {f(memory), f(weightings), f(erase), f(add)};
  }
  template <typename F> void each(F&& f) {
    (void)f;
    f(memory);
    f(weightings);
    f(erase);
    f(add);
  }
};

template <typename V>
struct WriteOutputs {
  V memory;  // [B, N, M]
  static constexpr size_t count = 1;
  static constexpr bool differentiable[] = {true};
  static constexpr bool kept[] = {false};
  static constexpr Kind kinds[] = {Kind::memory};
  template <typename F> static WriteOutputs from(F&& f) {
    (void)f;
    return {f()};
  }
  template <typename F> static WriteOutputs make(const Sizes& s, F&& f) {
    (void)s, (void)f;
    return {
        f(Field{{{s.batch, s.memory_size, s.word_size}, 3}, true, Kind::memory}),
    };
  }
  template <typename W, typename F> WriteOutputs<W> map(F&& f) const {
    (void)f;
    return {f(memory)};
  }
  template <typename F> void each(F&& f) {
    (void)f;
    f(memory);
  }
};

struct WriteOptions {
  static constexpr size_t count = 0;
  template <typename F> void each(F&& f) {
    (void)f;
  }
};

struct Write {
  static constexpr const char* name = "write";
  static constexpr const char* schema =
      "cpu_write(Tensor memory, Tensor weightings, Tensor erase, Tensor add, bool save_for_backward) -> (Tensor memory, Tensor[] saved)";
  static constexpr const char* backward_schema =
      "cpu_write_backward(Tensor? grad_memory, Tensor memory, Tensor weightings, Tensor erase, Tensor add, Tensor[] saved, bool[] wanted) -> (Tensor d_memory, Tensor d_weightings, Tensor d_erase, Tensor d_add)";
  template <typename V> using Inputs = WriteInputs<V>;
  template <typename V> using Outputs = WriteOutputs<V>;
  using Options = WriteOptions;
};

template <typename V>
struct StepInputs {
  V memory;  // [B, N, M]
  V interface;  // [B, P]
  V previous_weightings;  // [B, H, N]
  static constexpr size_t count = 3;
  static constexpr bool differentiable[] = {true, true, true};
  static constexpr bool kept[] = {false, false, false};
  static constexpr Kind kinds[] = {Kind::memory, Kind::head_parameters, Kind::weightings};
  template <typename F> static StepInputs from(F&& f) {
    (void)f;
    return {f(), f(), f()};
  }
  template <typename F> static StepInputs make(const Sizes& s, F&& f) {
    (void)s, (void)f;
    return {
        f(Field{{{s.batch, s.memory_size, s.word_size}, 3}, true, Kind::memory}),
        f(Field{{{s.batch, s.interface_size()}, 2}, true, Kind::head_parameters}),
        f(Field{{{s.batch, s.num_heads(), s.memory_size}, 3}, true, Kind::weightings}),
    };
  }
  template <typename W, typename F> StepInputs<W> map(F&& f) const {
    (void)f;
    return {f(memory), f(interface), f(previous_weightings)};
  }
  template <typename F> void each(F&& f) {
    (void)f;
    f(memory);
    f(interface);
    f(previous_weightings);
  }
};

template <typename V>
struct StepOutputs {
  V read_vectors;  // [B, R, M]
  V memory;  // [B, N, M]
  V weightings;  // [B, H, N]
  static constexpr size_t count = 3;
  static constexpr bool differentiable[] = {true, true, true};
  static constexpr bool kept[] = {false, false, true};
  static constexpr Kind kinds[] = {Kind::memory, Kind::memory, Kind::weightings};
  template <typename F> static StepOutputs from(F&& f) {
    (void)f;
    return {f(), f(), f()};
  }
  template <typename F> static StepOutputs make(const Sizes& s, F&& f) {
    (void)s, (void)f;
    return {
        f(Field{{{s.batch, s.num_read_heads, s.word_size}, 3}, true, Kind::memory}),
        f(Field{{{s.batch, s.memory_size, s.word_size}, 3}, true, Kind::memory}),
        f(Field{{{s.batch, s.num_heads(), s.memory_size}, 3}, true, Kind::weightings}),
    };
  }
  template <typename W, typename F> StepOutputs<W> map(F&& f) const {
    (void)f;
    return {f(read_vectors), f(memory), f(weightings)};
  }
  template <typename F> void each(F&& f) {
    (void)f;
    f(read_vectors);
    f(memory);
    f(weightings);
  }
};

struct StepOptions {
  int64_t num_read_heads;
  int64_t num_write_heads;
  int64_t shift_range;
  static constexpr size_t count = 3;
  template <typename F> void each(F&& f) {
    (void)f;
    f(num_read_heads);
    f(num_write_heads);
    f(shift_range);
  }
};

struct Step {
  static constexpr const char* name = "step";
  static constexpr const char* schema =
      "cpu_step(Tensor memory, Tensor interface, Tensor previous_weightings, SymInt num_read_heads, SymInt num_write_heads, SymInt shift_range, bool save_for_backward) -> (Tensor read_vectors, Tensor memory, Tensor weightings, Tensor[] saved)";
  static constexpr const char* backward_schema =
      "cpu_step_backward(Tensor? grad_read_vectors, Tensor? grad_memory, Tensor? grad_weightings, Tensor memory, Tensor interface, Tensor previous_weightings, Tensor out_weightings, Tensor[] saved, SymInt num_read_heads, SymInt num_write_heads, SymInt shift_range, bool[] wanted) -> (Tensor d_memory, Tensor d_interface, Tensor d_previous_weightings)";
  template <typename V> using Inputs = StepInputs<V>;
  template <typename V> using Outputs = StepOutputs<V>;
  using Options = StepOptions;
};

template <typename V>
struct SequenceInputs {
  V x;  // [T, B, I]
  V recurrent_weight;  // [G, K]
  V interface_weight;  // [P, C]
  V interface_bias;  // [P]
  V initial_memory;  // [B, N, M]
  V initial_weightings;  // [B, H, N]
  V initial_read_vectors;  // [B, R, M]
  V initial_hidden;  // [L, B, C], or none unless is_lstm
  V initial_cell;  // [L, B, C], or none unless is_lstm
  V lengths;  // [B], or none unless has_lengths
  V input_weight;  // [G, I], or none unless projects_input
  V input_bias;  // [G], or none unless projects_input
  V resets;  // [T, B], or none unless has_resets
  V upper_weight;  // [U, G, J], or none unless is_deep
  V upper_bias;  // [U, G], or none unless is_deep
  static constexpr size_t count = 15;
  static constexpr bool differentiable[] = {true, true, true, true, true, true, true, true, true, false, true, true, false, true, true};
  static constexpr bool kept[] = {false, false, false, false, false, false, false, false, false, false, false, false, false, false, false};
  static constexpr Kind kinds[] = {Kind::input, Kind::controller_weights, Kind::controller_weights, Kind::controller_weights, Kind::memory, Kind::weightings, Kind::memory, Kind::state, Kind::state, Kind::steps, Kind::input, Kind::input, Kind::resets, Kind::controller_weights, Kind::controller_weights};
  template <typename F> static SequenceInputs from(F&& f) {
    (void)f;
    return {f(), f(), f(), f(), f(), f(), f(), f(), f(), f(), f(), f(), f(), f(), f()};
  }
  template <typename F> static SequenceInputs make(const Sizes& s, F&& f) {
    (void)s, (void)f;
    return {
        f(Field{{{s.time, s.batch, s.input_size}, 3}, true, Kind::input}),
        f(Field{{{s.gate_size(), s.recurrent_size()}, 2}, true, Kind::controller_weights}),
        f(Field{{{s.interface_size(), s.hidden_size}, 2}, true, Kind::controller_weights}),
        f(Field{{{s.interface_size()}, 1}, true, Kind::controller_weights}),
        f(Field{{{s.batch, s.memory_size, s.word_size}, 3}, true, Kind::memory}),
        f(Field{{{s.batch, s.num_heads(), s.memory_size}, 3}, true, Kind::weightings}),
        f(Field{{{s.batch, s.num_read_heads, s.word_size}, 3}, true, Kind::memory}),
        f(Field{{{s.num_layers, s.batch, s.hidden_size}, 3}, s.is_lstm, Kind::state}),
        f(Field{{{s.num_layers, s.batch, s.hidden_size}, 3}, s.is_lstm, Kind::state}),
        f(Field{{{s.batch}, 1}, s.has_lengths, Kind::steps}),
        f(Field{{{s.gate_size(), s.input_size}, 2}, s.projects_input, Kind::input}),
        f(Field{{{s.gate_size()}, 1}, s.projects_input, Kind::input}),
        f(Field{{{s.time, s.batch}, 2}, s.has_resets, Kind::resets}),
        f(Field{{{s.num_upper_layers(), s.gate_size(), s.upper_size()}, 3}, s.is_deep(), Kind::controller_weights}),
        f(Field{{{s.num_upper_layers(), s.gate_size()}, 2}, s.is_deep(), Kind::controller_weights}),
    };
  }
  template <typename W, typename F> SequenceInputs<W> map(F&& f) const {
    (void)f;
    return {f(x), f(recurrent_weight), f(interface_weight), f(interface_bias), f(initial_memory), f(initial_weightings), f(initial_read_vectors), f(initial_hidden), f(initial_cell), f(lengths), f(input_weight), f(input_bias), f(resets), f(upper_weight), f(upper_bias)};
  }
  template <typename F> void each(F&& f) {
    (void)f;
    f(x);
    f(recurrent_weight);
    f(interface_weight);
    f(interface_bias);
    f(initial_memory);
    f(initial_weightings);
    f(initial_read_vectors);
    f(initial_hidden);
    f(initial_cell);
    f(lengths);
    f(input_weight);
    f(input_bias);
    f(resets);
    f(upper_weight);
    f(upper_bias);
  }
};

template <typename V>
struct SequenceOutputs {
  V hidden;  // [T, B, C]
  V read_vectors;  // [T, B, R, M]
  V final_memory;  // [B, N, M]
  V final_weightings;  // [B, H, N]
  V final_read_vectors;  // [B, R, M]
  V final_hidden;  // [L, B, C], or none unless is_lstm
  V final_cell;  // [L, B, C], or none unless is_lstm
  V trace_weightings;  // [T, B, H, N], or none unless return_trace
  V trace_interface;  // [T, B, P], or none unless return_trace
  static constexpr size_t count = 9;
  static constexpr bool differentiable[] = {true, true, true, true, true, true, true, false, false};
  static constexpr bool kept[] = {true, true, false, false, false, false, false, false, false};
  static constexpr Kind kinds[] = {Kind::state, Kind::memory, Kind::memory, Kind::weightings, Kind::memory, Kind::state, Kind::state, Kind::weightings, Kind::arithmetic};
  template <typename F> static SequenceOutputs from(F&& f) {
    (void)f;
    return {f(), f(), f(), f(), f(), f(), f(), f(), f()};
  }
  template <typename F> static SequenceOutputs make(const Sizes& s, F&& f) {
    (void)s, (void)f;
    return {
        f(Field{{{s.time, s.batch, s.hidden_size}, 3}, true, Kind::state}),
        f(Field{{{s.time, s.batch, s.num_read_heads, s.word_size}, 4}, true, Kind::memory}),
        f(Field{{{s.batch, s.memory_size, s.word_size}, 3}, true, Kind::memory}),
        f(Field{{{s.batch, s.num_heads(), s.memory_size}, 3}, true, Kind::weightings}),
        f(Field{{{s.batch, s.num_read_heads, s.word_size}, 3}, true, Kind::memory}),
        f(Field{{{s.num_layers, s.batch, s.hidden_size}, 3}, s.is_lstm, Kind::state}),
        f(Field{{{s.num_layers, s.batch, s.hidden_size}, 3}, s.is_lstm, Kind::state}),
        f(Field{{{s.time, s.batch, s.num_heads(), s.memory_size}, 4}, s.return_trace, Kind::weightings}),
        f(Field{{{s.time, s.batch, s.interface_size()}, 3}, s.return_trace, Kind::arithmetic}),
    };
  }
  template <typename W, typename F> SequenceOutputs<W> map(F&& f) const {
    (void)f;
    return {f(hidden), f(read_vectors), f(final_memory), f(final_weightings), f(final_read_vectors), f(final_hidden), f(final_cell), f(trace_weightings), f(trace_interface)};
  }
  template <typename F> void each(F&& f) {
    (void)f;
    f(hidden);
    f(read_vectors);
    f(final_memory);
    f(final_weightings);
    f(final_read_vectors);
    f(final_hidden);
    f(final_cell);
    f(trace_weightings);
    f(trace_interface);
  }
};

template <typename V>
struct SequenceSaved {
  V checkpoints;  // [Q, B, M, Z]
  V weightings;  // [T, B, H, N]
  V interface;  // [T, B, P]
  V gates;  // [L, T, B, G], or none unless is_lstm
  V cells;  // [L, T, B, C], or none unless is_lstm
  V lower_hidden;  // [U, T, B, C], or none unless is_deep
  static constexpr size_t count = 6;
  static constexpr bool differentiable[] = {true, true, true, true, true, true};
  static constexpr bool kept[] = {false, false, false, false, false, false};
  static constexpr Kind kinds[] = {Kind::arithmetic, Kind::arithmetic, Kind::arithmetic, Kind::arithmetic, Kind::arithmetic, Kind::arithmetic};
  template <typename F> static SequenceSaved from(F&& f) {
    (void)f;
    return {f(), f(), f(), f(), f(), f()};
  }
  template <typename F> static SequenceSaved make(const Sizes& s, F&& f) {
    (void)s, (void)f;
    return {
        f(Field{{{s.num_checkpoints(), s.batch, s.word_size, s.row_stride()}, 4}, true, Kind::arithmetic}),
        f(Field{{{s.time, s.batch, s.num_heads(), s.memory_size}, 4}, true, Kind::arithmetic}),
        f(Field{{{s.time, s.batch, s.interface_size()}, 3}, true, Kind::arithmetic}),
        f(Field{{{s.num_layers, s.time, s.batch, s.gate_size()}, 4}, s.is_lstm, Kind::arithmetic}),
        f(Field{{{s.num_layers, s.time, s.batch, s.hidden_size}, 4}, s.is_lstm, Kind::arithmetic}),
        f(Field{{{s.num_upper_layers(), s.time, s.batch, s.hidden_size}, 4}, s.is_deep(), Kind::arithmetic}),
    };
  }
  template <typename W, typename F> SequenceSaved<W> map(F&& f) const {
    (void)f;
    return {f(checkpoints), f(weightings), f(interface), f(gates), f(cells), f(lower_hidden)};
  }
  template <typename F> void each(F&& f) {
    (void)f;
    f(checkpoints);
    f(weightings);
    f(interface);
    f(gates);
    f(cells);
    f(lower_hidden);
  }
};

struct SequenceOptions {
  int64_t num_read_heads;
  int64_t num_write_heads;
  int64_t shift_range;
  int64_t checkpoint_every;
  bool return_trace;
  bool bfloat16_products;
  static constexpr size_t count = 6;
  template <typename F> void each(F&& f) {
    (void)f;
    f(num_read_heads);
    f(num_write_heads);
    f(shift_range);
    f(checkpoint_every);
    f(return_trace);
    f(bfloat16_products);
  }
};

struct Sequence {
  static constexpr const char* name = "sequence";
  static constexpr const char* schema =
      "cpu_sequence(Tensor x, Tensor recurrent_weight, Tensor interface_weight, Tensor interface_bias, Tensor initial_memory, Tensor initial_weightings, Tensor initial_read_vectors, Tensor? initial_hidden, Tensor? initial_cell, Tensor? lengths, Tensor? input_weight, Tensor? input_bias, Tensor? resets, Tensor? upper_weight, Tensor? upper_bias, SymInt num_read_heads, SymInt num_write_heads, SymInt shift_range, SymInt? checkpoint_every, bool return_trace, bool bfloat16_products, bool save_for_backward) -> (Tensor hidden, Tensor read_vectors, Tensor final_memory, Tensor final_weightings, Tensor final_read_vectors, Tensor final_hidden, Tensor final_cell, Tensor trace_weightings, Tensor trace_interface, Tensor[] saved)";
  static constexpr const char* backward_schema =
      "cpu_sequence_backward(Tensor? grad_hidden, Tensor? grad_read_vectors, Tensor? grad_final_memory, Tensor? grad_final_weightings, Tensor? grad_final_read_vectors, Tensor? grad_final_hidden, Tensor? grad_final_cell, Tensor x, Tensor recurrent_weight, Tensor interface_weight, Tensor interface_bias, Tensor initial_memory, Tensor initial_weightings, Tensor initial_read_vectors, Tensor? initial_hidden, Tensor? initial_cell, Tensor? lengths, Tensor? input_weight, Tensor? input_bias, Tensor? resets, Tensor? upper_weight, Tensor? upper_bias, Tensor out_hidden, Tensor out_read_vectors, Tensor[] saved, SymInt num_read_heads, SymInt num_write_heads, SymInt shift_range, SymInt? checkpoint_every, bool return_trace, bool bfloat16_products, bool[] wanted) -> (Tensor d_x, Tensor d_recurrent_weight, Tensor d_interface_weight, Tensor d_interface_bias, Tensor d_initial_memory, Tensor d_initial_weightings, Tensor d_initial_read_vectors, Tensor d_initial_hidden, Tensor d_initial_cell, Tensor d_input_weight, Tensor d_input_bias, Tensor d_upper_weight, Tensor d_upper_bias)";
  template <typename V> using Inputs = SequenceInputs<V>;
  template <typename V> using Outputs = SequenceOutputs<V>;
  using Options = SequenceOptions;
};

template <template <typename...> class F>
using Every = F<Address, Read, Write, Step, Sequence>;
template <template <typename...> class F>
using WithoutController = F<Address, Read, Write, Step>;

// A hash of all of the above, which the package compares with its own.
constexpr const char* kDigest = "b8c25b4d21089671";

}  // namespace ntm::ops
