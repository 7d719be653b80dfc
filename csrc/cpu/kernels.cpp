// The table of kernels of one instruction set, with the kernels of the ops without a controller.
// The file is compiled once for each instruction set, whose name is the macro NTM_ISA.
#include "kernels.h"

#include "cpu/optimizer.h"
#include "cpu/sequence.h"
#include "cpu/weight_gradient.h"

namespace ntm::cpu::NTM_ISA {

// The addressing parameters of the heads of sequence b, or the places of their gradients.
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
struct Scratch {
  T* memory;          // [M][N]
  T* d_memory;        // [M][N]
  T* weightings;      // [H, N]
  T* activated;       // [P]
  T* d_read_vectors;  // [R, M]
  Addressing<T> addressing;
  Products<T> products;

  Scratch(Arena& arena, const Sizes& s)
      : memory(arena.take<T>(s.transposed_size())),
        d_memory(arena.take<T>(s.transposed_size())),
        weightings(arena.take<T>(s.weightings_size())),
        activated(arena.take<T>(s.interface_size())),
        d_read_vectors(arena.take<T>(s.read_size())),
        addressing(arena, s),
        products(arena, s) {}
};

// body(b, scratch) for every sequence.
template <typename T, typename Body>
void each_sequence(const Sizes& s, int64_t begin, int64_t end, Body&& body) {
  InBlock<Scratch<T>> scratch(s);
  for (int64_t b = begin; b < end; ++b) body(b, *scratch);
}

template <typename T>
void address(const Sizes& s, const Forward<ops::Address, T>& io, int64_t begin, int64_t end) {
  const int64_t NM = s.matrix_size(), HN = s.weightings_size();
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory + b * NM, to.memory);
    address(s, to.memory, heads_of<T>(s, io.inputs, b), io.inputs.previous_weightings + b * HN,
            io.outputs.weightings + b * HN, to.addressing);
  });
}

template <typename T>
void address_backward(const Sizes& s, const Backward<ops::Address, T>& io, int64_t begin,
                      int64_t end) {
  const int64_t NM = s.matrix_size(), HN = s.weightings_size();
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory + b * NM, to.memory);
    zero(s.transposed_size(), to.d_memory);
    const Heads<T> heads = heads_of<T>(s, io.inputs, b);
    const T* const previous = io.inputs.previous_weightings + b * HN;
    T* const d_weightings = io.d_inputs.previous_weightings + b * HN;
    copy(HN, io.grads.weightings + b * HN, d_weightings);
    similarity_dots(s, to.memory, heads.key, to.addressing.dots);
    similarity_content_interpolate_shift(s, to.addressing.dots, heads, previous, to.addressing);
    address_backward(s, to.memory, heads, previous, to.addressing, d_weightings,
                     heads_of<T>(s, io.d_inputs, b), to.d_memory);
    store_memory(s, to.d_memory, io.d_inputs.memory + b * NM);
  });
}

template <typename T>
void read(const Sizes& s, const Forward<ops::Read, T>& io, int64_t begin, int64_t end) {
  const int64_t NM = s.matrix_size(), R = s.num_read_heads, RN = R * s.memory_size;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory + b * NM, to.memory);
    read(s, to.memory, R, io.inputs.weightings + b * RN,
         io.outputs.read_vectors + b * s.read_size());
  });
}

template <typename T>
void read_backward(const Sizes& s, const Backward<ops::Read, T>& io, int64_t begin, int64_t end) {
  const int64_t NM = s.matrix_size(), R = s.num_read_heads, RN = R * s.memory_size;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory + b * NM, to.memory);
    zero(s.transposed_size(), to.d_memory);
    T* const d_weightings = io.d_inputs.weightings + b * RN;
    zero(RN, d_weightings);
    read_backward(s, to.memory, R, io.inputs.weightings + b * RN,
                  io.grads.read_vectors + b * s.read_size(), d_weightings, to.d_memory);
    store_memory(s, to.d_memory, io.d_inputs.memory + b * NM);
  });
}

template <typename T>
void write(const Sizes& s, const Forward<ops::Write, T>& io, int64_t begin, int64_t end) {
  const int64_t NM = s.matrix_size(), WN = s.num_write_heads * s.memory_size,
                WM = s.num_write_heads * s.word_size;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory + b * NM, to.memory);
    write(s, to.memory, io.inputs.weightings + b * WN, io.inputs.erase + b * WM,
          io.inputs.add + b * WM, to.memory);
    store_memory(s, to.memory, io.outputs.memory + b * NM);
  });
}

template <typename T>
void write_backward(const Sizes& s, const Backward<ops::Write, T>& io, int64_t begin, int64_t end) {
  const int64_t NM = s.matrix_size(), WN = s.num_write_heads * s.memory_size,
                WM = s.num_write_heads * s.word_size;
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory + b * NM, to.memory);
    load_memory(s, io.grads.memory + b * NM, to.d_memory);
    T* const d_weightings = io.d_inputs.weightings + b * WN;
    zero(WN, d_weightings);
    write_backward(s, to.memory, io.inputs.weightings + b * WN, io.inputs.erase + b * WM,
                   io.inputs.add + b * WM, to.products, to.d_memory, d_weightings,
                   io.d_inputs.erase + b * WM, io.d_inputs.add + b * WM);
    store_memory(s, to.d_memory, io.d_inputs.memory + b * NM);
  });
}

template <typename T>
void step(const Sizes& s, const Forward<ops::Step, T>& io, int64_t begin, int64_t end) {
  const int64_t NM = s.matrix_size(), HN = s.weightings_size();
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory + b * NM, to.memory);
    activate(s, io.inputs.interface + b * s.interface_size(), to.activated);
    const Heads<T> heads(to.activated, s);
    T* const weightings = io.outputs.weightings + b * HN;
    address(s, to.memory, heads, io.inputs.previous_weightings + b * HN, weightings, to.addressing);
    read_write(s, to.memory, heads, weightings, io.outputs.read_vectors + b * s.read_size());
    store_memory(s, to.memory, io.outputs.memory + b * NM);
  });
}

template <typename T>
void step_backward(const Sizes& s, const Backward<ops::Step, T>& io, int64_t begin, int64_t end) {
  const int64_t NM = s.matrix_size(), HN = s.weightings_size(), P = s.interface_size();
  each_sequence<T>(s, begin, end, [&](int64_t b, Scratch<T>& to) {
    load_memory(s, io.inputs.memory + b * NM, to.memory);
    load_memory_or_zero(s, io.grads.memory, b * NM, to.d_memory);
    const T* const previous = io.inputs.previous_weightings + b * HN;
    const T* const raw = io.inputs.interface + b * P;
    T* const d_weightings = io.d_inputs.previous_weightings + b * HN;
    T* const d_interface = io.d_inputs.interface + b * P;
    copy_or_zero(HN, io.grads.weightings, b * HN, d_weightings);
    copy_or_zero(s.read_size(), io.grads.read_vectors, b * s.read_size(), to.d_read_vectors);
    activate(s, raw, to.activated);
    const Heads<T> heads(to.activated, s), d_heads(d_interface, s);
    address(s, to.memory, heads, previous, to.weightings, to.addressing);
    read_write_backward(s, to.memory, heads, to.weightings, to.d_read_vectors, to.products,
                        to.d_memory, d_weightings, d_heads);
    address_backward(s, to.memory, heads, previous, to.addressing, d_weightings, d_heads,
                     to.d_memory);
    activate_backward(s, raw, to.activated, d_interface);
    store_memory(s, to.d_memory, io.d_inputs.memory + b * NM);
  });
}

template <typename T>
constexpr Kernels<T> kernels() {
  return {{{address<T>, address_backward<T>},
           {read<T>, read_backward<T>},
           {write<T>, write_backward<T>},
           {step<T>, step_backward<T>}},
          sequence<T>,
          sequence_backward<T>,
          packed_weight_size<T>,
          pack_weight<T>,
          pack_weight_transposed<T>,
          weight_gradient_blocks<T>,
          weight_gradient<T>,
          graves_rmsprop<T>};
}

#define NTM_NAME_(name) #name
#define NTM_NAME(name) NTM_NAME_(name)

extern const Isa isa;
const Isa isa{NTM_NAME(NTM_ISA), Amx<float>::present, kernels<float>(), kernels<double>()};

}  // namespace ntm::cpu::NTM_ISA
