// The table of kernels of one instruction set; compiled once for each, NTM_ISA being its name.
#include "kernels.h"

#include "cpu/optimizer.h"
#include "cpu/sequence.h"

namespace ntm::cpu::NTM_ISA {

// The parameters of sequence b, of heads that write nothing.
template <typename T, typename V>
Heads<T> heads_of(const Sizes& s, const ops::AddressInputs<V*>& all, int64_t b) {
  const int64_t H = s.num_heads();
  const auto at = [&](V* of_all, int64_t n) { return const_cast<T*>(of_all) + b * n; };
  Heads<T> heads;
  heads.key = at(all.key, H * s.word_size);
  heads.strength = at(all.strength, H);
  heads.gate = at(all.gate, H);
  heads.shift = at(all.shift, H * s.num_taps);
  heads.sharpening = at(all.sharpening, H);
  heads.erase = heads.add = nullptr;
  return heads;
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
void address(const Sizes& s, const Forward<ops::Address, T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, HN = s.num_heads() * N;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory, b, to.memory);
    address(s, to.memory, heads_of<T>(s, io.inputs, b), io.inputs.previous_weightings + b * HN,
            io.outputs.weightings + b * HN, N, to.addressing);
  });
}

template <typename T>
void address_backward(const Sizes& s, const Backward<ops::Address, T>& io, int64_t begin,
                      int64_t end) {
  const int64_t N = s.memory_size, HN = s.num_heads() * N;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory, b, to.memory);
    zero(s.transposed_size(), to.d_memory);
    const Heads<T> heads = heads_of<T>(s, io.inputs, b);
    T* const d_weightings = io.d_inputs.previous_weightings + b * HN;
    copy(HN, io.grads.weightings + b * HN, d_weightings);
    similarity_dots(s, to.memory, heads.key, to.addressing.row, to.addressing.dots);
    similarity_content_interpolate_shift(s, to.addressing.dots, heads,
                                         io.inputs.previous_weightings + b * HN, N, to.addressing);
    address_backward(s, to.memory, heads, io.inputs.previous_weightings + b * HN, N, to.addressing,
                     d_weightings, N, heads_of<T>(s, io.d_inputs, b), to.d_memory);
    store_memory(s, to.d_memory, b, io.d_inputs.memory);
  });
}

template <typename T>
void read(const Sizes& s, const Forward<ops::Read, T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, R = s.num_read_heads;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory, b, to.memory);
    read(s, to.memory, R, io.inputs.weightings + b * R * N, N,
         io.outputs.read_vectors + b * s.read_size());
  });
}

template <typename T>
void read_backward(const Sizes& s, const Backward<ops::Read, T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, R = s.num_read_heads;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory, b, to.memory);
    zero(s.transposed_size(), to.d_memory);
    T* const d_weightings = io.d_inputs.weightings + b * R * N;
    zero(R * N, d_weightings);
    read_backward(s, to.memory, R, io.inputs.weightings + b * R * N, N,
                  io.grads.read_vectors + b * s.read_size(), d_weightings, N, to.d_memory);
    store_memory(s, to.d_memory, b, io.d_inputs.memory);
  });
}

template <typename T>
void write(const Sizes& s, const Forward<ops::Write, T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, W = s.num_write_heads, words = W * s.word_size;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory, b, to.memory);
    write(s, to.memory, io.inputs.weightings + b * W * N, N, io.inputs.erase + b * words,
          io.inputs.add + b * words, to.memory);
    store_memory(s, to.memory, b, io.outputs.memory);
  });
}

template <typename T>
void write_backward(const Sizes& s, const Backward<ops::Write, T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, W = s.num_write_heads, words = W * s.word_size;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory, b, to.memory);
    load_memory(s, io.grads.memory, b, to.d_memory);
    T* const d_weightings = io.d_inputs.weightings + b * W * N;
    zero(W * N, d_weightings);
    write_backward(s, to.memory, io.inputs.weightings + b * W * N, N, io.inputs.erase + b * words,
                   io.inputs.add + b * words, to.products, to.d_memory, d_weightings, N,
                   io.d_inputs.erase + b * words, io.d_inputs.add + b * words);
    store_memory(s, to.d_memory, b, io.d_inputs.memory);
  });
}

template <typename T>
void step(const Sizes& s, const Forward<ops::Step, T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, HN = s.num_heads() * N, P = s.interface_size();
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory, b, to.memory);
    activate(s, io.inputs.interface + b * P, to.activated);
    T* const weightings = io.outputs.weightings + b * HN;
    copy(HN, io.inputs.previous_weightings + b * HN, weightings);
    step(s, Heads<T>(to.activated, s), to.addressing, to.memory, weightings, N,
         io.outputs.read_vectors + b * s.read_size());
    store_memory(s, to.memory, b, io.outputs.memory);
  });
}

template <typename T>
void step_backward(const Sizes& s, const Backward<ops::Step, T>& io, int64_t begin, int64_t end) {
  const int64_t N = s.memory_size, HN = s.num_heads() * N, P = s.interface_size();
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory, b, to.memory);
    if (io.grads.memory) {
      load_memory(s, io.grads.memory, b, to.d_memory);
    } else {
      zero(s.transposed_size(), to.d_memory);
    }
    const T* const previous = io.inputs.previous_weightings + b * HN;
    const T* const raw = io.inputs.interface + b * P;
    T* const d_weightings = io.d_inputs.previous_weightings + b * HN;
    copy_or_zero(HN, io.grads.weightings ? io.grads.weightings + b * HN : nullptr, d_weightings);
    copy_or_zero(s.read_size(),
                 io.grads.read_vectors ? io.grads.read_vectors + b * s.read_size() : nullptr,
                 to.d_reads);
    activate(s, raw, to.activated);
    const Heads<T> heads(to.activated, s);
    address(s, to.memory, heads, previous, to.weightings, N, to.addressing);
    step_backward(s, to.memory, heads, previous, to.weightings, N, to.addressing, to.products,
                  to.d_reads, to.d_memory, d_weightings, N,
                  Heads<T>(io.d_inputs.interface + b * P, s));
    activate_backward(s, raw, to.activated, io.d_inputs.interface + b * P);
    store_memory(s, to.d_memory, b, io.d_inputs.memory);
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
