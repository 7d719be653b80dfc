// The sizes of a call, and where the parameters of the heads lie in an interface vector.
#pragma once

#include <cstdint>

namespace ntm {

// Beside each size is its letter in the shapes of comments: [B, N, M] is batch, memory_size,
// word_size.
struct Sizes {
  int64_t batch = 0;             // B
  int64_t memory_size = 0;       // N
  int64_t word_size = 0;         // M
  int64_t num_read_heads = 0;    // R
  int64_t num_write_heads = 0;   // W
  int64_t num_taps = 1;          // S
  int64_t time = 0;              // T
  int64_t hidden_size = 0;       // C
  int64_t input_size = 0;        // I, or G if the input comes projected
  int64_t checkpoint_every = 1;  // steps between two checkpoints of the memory
  int64_t num_layers = 1;        // L, of the controller
  bool is_lstm = false;
  bool has_lengths = false;
  bool has_resets = false;
  bool projects_input = false;
  bool return_trace = false;
  bool bfloat16_products = false;  // the weights of a step are packed in bfloat16

  int64_t num_heads() const { return num_read_heads + num_write_heads; }         // H
  int64_t matrix_size() const { return memory_size * word_size; }                // N * M
  int64_t weightings_size() const { return num_heads() * memory_size; }          // H * N
  int64_t read_size() const { return num_read_heads * word_size; }               // R * M
  int64_t gate_size() const { return is_lstm ? 4 * hidden_size : hidden_size; }  // G
  int64_t recurrent_size() const { return is_lstm ? read_size() + hidden_size : read_size(); }  // K
  bool is_deep() const { return num_layers > 1; }
  int64_t num_upper_layers() const { return num_layers - 1; }                     // U
  int64_t upper_size() const { return is_lstm ? 2 * hidden_size : hidden_size; }  // J
  int64_t scalars() const { return num_heads() * (3 + num_taps); }  // per-head scalars
  int64_t interface_size() const {
    return (num_heads() + 2 * num_write_heads) * word_size + scalars();
  }  // P
  // Columns of the input weight, or 0 if the input comes projected.
  int64_t input_columns() const { return projects_input ? input_size : 0; }
  // Elements of all weights that a step multiplies with, of the controller and the interface.
  int64_t weights_size() const {
    return gate_size() * (recurrent_size() + input_columns() + num_upper_layers() * upper_size()) +
           interface_size() * hidden_size;
  }
  int64_t num_checkpoints() const { return (time + checkpoint_every - 1) / checkpoint_every; }

  // Elements from one row of a transposed memory [M][N] to the next. In float32 it is an odd number
  // of cache lines: with a power of two, all rows would share a few sets of the cache.
  int64_t row_stride() const { return (memory_size + 15) / 16 / 2 * 32 + 16; }
  int64_t transposed_size() const { return word_size * row_stride(); }
};

// The parameters of all heads of one sequence of the batch, read heads first.
template <typename T>
struct Heads {
  T* key;         // [H, M]
  T* strength;    // [H]
  T* gate;        // [H]
  T* shift;       // [H, S]
  T* sharpening;  // [H]
  T* erase;       // [W, M]
  T* add;         // [W, M]

  Heads() = default;
  // Views into one interface vector [P].
  Heads(T* interface, const Sizes& s)
      : key(interface),
        strength(key + s.num_heads() * s.word_size),
        gate(strength + s.num_heads()),
        shift(gate + s.num_heads()),
        sharpening(shift + s.num_heads() * s.num_taps),
        erase(sharpening + s.num_heads()),
        add(erase + s.num_write_heads * s.word_size) {}
};

}  // namespace ntm
