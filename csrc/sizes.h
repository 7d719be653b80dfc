// Sizes of a call, and where the heads' parameters stand in an interface vector.
#pragma once

#include <cstdint>

namespace ntm {

// The letters of the shape tags: [B, N, M] is batch, locations, word.
struct Sizes {
  int64_t batch = 0;        // B
  int64_t locations = 0;    // N
  int64_t word = 0;         // M
  int64_t read_heads = 0;   // R
  int64_t write_heads = 0;  // W
  int64_t taps = 1;         // S
  int64_t time = 0;         // T
  int64_t hidden = 0;       // C
  int64_t input = 0;        // I, or 0 if the input comes projected
  int64_t every = 1;        // steps between two checkpoints of the memory
  bool lstm = false;

  int64_t heads() const { return read_heads + write_heads; }               // H
  int64_t reads() const { return read_heads * word; }                      // R * M
  int64_t gates() const { return lstm ? 4 * hidden : hidden; }             // G
  int64_t recurrent() const { return lstm ? reads() + hidden : reads(); }  // K
  int64_t scalars() const { return heads() * (3 + taps); }                 // per-head scalars
  int64_t interface() const { return (heads() + 2 * write_heads) * word + scalars(); }  // P
  int64_t checkpoints() const { return (time + every - 1) / every; }

  // Floats from one row of a transposed memory [M][N] to the next: an odd number of cache lines,
  // so that rows never fall into the same cache set.
  int64_t stride() const { return (locations + 15) / 16 / 2 * 32 + 16; }
  int64_t memory() const { return word * stride(); }
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
        strength(key + s.heads() * s.word),
        gate(strength + s.heads()),
        shift(gate + s.heads()),
        sharpening(shift + s.heads() * s.taps),
        erase(sharpening + s.heads()),
        add(erase + s.write_heads * s.word) {}
};

}  // namespace ntm
