// The table of kernels of one instruction set; compiled once for each, NTM_ISA being its name.
#include "kernels.h"

#include "cpu/optimizer.h"
#include "cpu/sequence.h"

namespace ntm::cpu::NTM_ISA {

// Heads whose parameters are arrays of their own: those of sequence b.
template <typename T>
Heads<T> heads_of(const Sizes& s, const Heads<const T>& all, int64_t b) {
  const int64_t heads = s.num_heads();
  Heads<T> at;
  at.key = const_cast<T*>(all.key) + b * heads * s.word_size;
  at.strength = const_cast<T*>(all.strength) + b * heads;
  at.gate = const_cast<T*>(all.gate) + b * heads;
  at.shift = const_cast<T*>(all.shift) + b * heads * s.num_taps;
  at.sharpening = const_cast<T*>(all.sharpening) + b * heads;
  at.erase = at.add = nullptr;
  return at;
}
template <typename T>
Heads<T> heads_of(const Sizes& s, const Heads<T>& all, int64_t b) {
  Heads<const T> same;
  same.key = all.key, same.strength = all.strength, same.gate = all.gate;
  same.shift = all.shift, same.sharpening = all.sharpening;
  return heads_of(s, same, b);
}

template <typename T>
void load_memory(const Sizes& s, const T* all, int64_t b, T* to) {
  transpose(s.memory_size, s.word_size, all + b * s.memory_size * s.word_size, s.word_size, to,
            s.row_stride());
}
template <typename T>
void store_memory(const Sizes& s, const T* from, int64_t b, T* all) {
  transpose(s.word_size, s.memory_size, from, s.row_stride(), all + b * s.memory_size * s.word_size,
            s.word_size);
}

template <typename T>
struct Scratch {
  T* memory;        // [M][N]
  T* d_memory;      // [M][N]
  T* weightings;    // [H, N]
  T* d_weightings;  // [H, N]
  T* activated;     // [P]
  T* d_reads;       // [R, M]
  Addressing<T> addressing;
  Products<T> products;

  Scratch(Arena& arena, const Sizes& s)
      : memory(arena.take<T>(s.transposed_size())),
        d_memory(arena.take<T>(s.transposed_size())),
        weightings(arena.take<T>(s.num_heads() * s.memory_size)),
        d_weightings(arena.take<T>(s.num_heads() * s.memory_size)),
        activated(arena.take<T>(s.interface_size())),
        d_reads(arena.take<T>(s.read_size())),
        addressing(arena, s),
        products(arena, s) {}
};

// body(b, scratch) for every sequence.
template <typename T, typename Body>
void each_sequence(const Sizes& s, int64_t begin, int64_t end, Body&& body) {
  Arena measure;
  Scratch<T>(measure, s);
  const Lease lease(measure.used());
  Arena arena(lease.data());
  Scratch<T> scratch(arena, s);
  for (int64_t b = begin; b < end; ++b) body(b, scratch);
}

template <typename T>
void address(const Sizes& s, const Address<T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, HN = s.num_heads() * N;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.memory, b, to.memory);
    address(s, to.memory, heads_of<T>(s, io.heads, b), io.previous + b * HN, io.weightings + b * HN,
            N, to.addressing);
  });
}

template <typename T>
void address_backward(const Sizes& s, const AddressBackward<T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, HN = s.num_heads() * N;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.memory, b, to.memory);
    zero(s.transposed_size(), to.d_memory);
    const Heads<T> heads = heads_of<T>(s, io.heads, b);
    T* const d_weightings = io.d_previous + b * HN;
    copy(HN, io.d_weightings + b * HN, d_weightings);
    match(s, to.memory, heads.key, to.addressing.row, to.addressing.matches);
    focus(s, to.addressing.matches, heads, io.previous + b * HN, N, to.addressing);
    address_backward(s, to.memory, heads, io.previous + b * HN, N, to.addressing, d_weightings, N,
                     heads_of<T>(s, io.d_heads, b), to.d_memory);
    store_memory(s, to.d_memory, b, io.d_memory);
  });
}

template <typename T>
void read(const Sizes& s, const Read<T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, R = s.num_read_heads;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.memory, b, to.memory);
    read(s, to.memory, R, io.weightings + b * R * N, N, io.read_vectors + b * s.read_size());
  });
}

template <typename T>
void read_backward(const Sizes& s, const ReadBackward<T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, R = s.num_read_heads;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.memory, b, to.memory);
    zero(s.transposed_size(), to.d_memory);
    T* const d_weightings = io.d_weightings + b * R * N;
    zero(R * N, d_weightings);
    read_backward(s, to.memory, R, io.weightings + b * R * N, N,
                  io.d_read_vectors + b * s.read_size(), d_weightings, N, to.d_memory);
    store_memory(s, to.d_memory, b, io.d_memory);
  });
}

template <typename T>
void write(const Sizes& s, const Write<T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, W = s.num_write_heads, words = W * s.word_size;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.memory, b, to.memory);
    write(s, to.memory, io.weightings + b * W * N, N, io.erase + b * words, io.add + b * words,
          to.memory);
    store_memory(s, to.memory, b, io.written);
  });
}

template <typename T>
void write_backward(const Sizes& s, const WriteBackward<T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, W = s.num_write_heads, words = W * s.word_size;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.memory, b, to.memory);
    load_memory(s, io.d_written, b, to.d_memory);
    T* const d_weightings = io.d_weightings + b * W * N;
    zero(W * N, d_weightings);
    write_backward(s, to.memory, io.weightings + b * W * N, N, io.erase + b * words,
                   io.add + b * words, to.products, to.d_memory, d_weightings, N,
                   io.d_erase + b * words, io.d_add + b * words);
    store_memory(s, to.d_memory, b, io.d_memory);
  });
}

template <typename T>
void step(const Sizes& s, const Step<T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, HN = s.num_heads() * N, P = s.interface_size();
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.memory, b, to.memory);
    activate(s, io.interface + b * P, to.activated);
    T* const weightings = io.weightings + b * HN;
    copy(HN, io.previous + b * HN, weightings);
    step(s, Heads<T>(to.activated, s), to.addressing, to.memory, weightings, N,
         io.read_vectors + b * s.read_size());
    store_memory(s, to.memory, b, io.written);
  });
}

template <typename T>
void step_backward(const Sizes& s, const StepBackward<T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, HN = s.num_heads() * N, P = s.interface_size();
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.memory, b, to.memory);
    if (io.d_written) {
      load_memory(s, io.d_written, b, to.d_memory);
    } else {
      zero(s.transposed_size(), to.d_memory);
    }
    const T* const previous = io.previous + b * HN;
    const T* const raw = io.interface + b * P;
    T* const d_weightings = io.d_previous + b * HN;
    copy_or_zero(HN, io.d_weightings ? io.d_weightings + b * HN : nullptr, d_weightings);
    copy_or_zero(s.read_size(), io.d_read_vectors ? io.d_read_vectors + b * s.read_size() : nullptr,
                 to.d_reads);
    activate(s, raw, to.activated);
    const Heads<T> heads(to.activated, s);
    address(s, to.memory, heads, previous, to.weightings, N, to.addressing);
    step_backward(s, to.memory, heads, previous, to.weightings, N, to.addressing, to.products,
                  to.d_reads, to.d_memory, d_weightings, N, Heads<T>(io.d_interface + b * P, s));
    activate_backward(s, raw, to.activated, io.d_interface + b * P);
    store_memory(s, to.d_memory, b, io.d_memory);
  });
}

template <typename T>
constexpr Kernels<T> kernels() {
  return {address<T>,
          address_backward<T>,
          read<T>,
          read_backward<T>,
          write<T>,
          write_backward<T>,
          step<T>,
          step_backward<T>,
          sequence<T>,
          sequence_backward<T>,
          packed_size<T>,
          pack<T>,
          pack_transposed<T>,
          weight_gradient_blocks<T>,
          weight_gradient<T>,
          graves_rmsprop<T>};
}

#define NTM_NAME_(name) #name
#define NTM_NAME(name) NTM_NAME_(name)

extern const Isa isa;
const Isa isa{NTM_NAME(NTM_ISA), kernels<float>(), kernels<double>()};

}  // namespace ntm::cpu::NTM_ISA
