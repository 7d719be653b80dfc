// torch.ops.ntm_cpu: tensors to pointers, the batch to threads. Arguments are checked in Python.
#include "ops.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/accumulate.h>
#include <torch/library.h>

#include <memory>

#include "kernels.h"
#include "workspace.h"

namespace ntm {
namespace {

at::ScalarType arithmetic_type(const Tensor& like) {
  return like.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Contiguous and in the dtype of T; held here for as long as pointers into it are used.
template <typename T>
class Lifted {
 public:
  Lifted(const Tensor& given) : tensor_(given) {
    constexpr at::ScalarType type = sizeof(T) == sizeof(double) ? at::kDouble : at::kFloat;
    if (tensor_.scalar_type() != type) tensor_ = tensor_.to(type);
    tensor_ = tensor_.contiguous();
  }
  Lifted(const MaybeTensor& given) : Lifted(given ? *given : Tensor(), given.has_value()) {}

  operator const T*() const { return tensor_.defined() ? tensor_.const_data_ptr<T>() : nullptr; }

 private:
  Lifted(const Tensor& given, bool present) {
    if (present) *this = Lifted(given);
  }
  Tensor tensor_;
};

// Storage in leased blocks, resizable like any other.
class Leased final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    auto lease = std::make_unique<Lease>(bytes);
    void* const data = lease->data();
    return {data, lease.release(), end, at::kCPU};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void end(void* lease) { delete static_cast<Lease*>(lease); }
};

// From this size on malloc gives memory back to the system and has it mapped and cleared again at
// the next call, for a tenth of the time of a training iteration: such tensors live in leased
// blocks.
constexpr size_t kLeased = size_t{1} << 17;

template <typename T>
struct New {
  Tensor tensor;
  explicit New(std::initializer_list<int64_t> shape)
      : New(at::IntArrayRef(shape.begin(), shape.size())) {}
  explicit New(at::IntArrayRef shape) {
    static Leased leased;
    constexpr at::ScalarType type = sizeof(T) == sizeof(double) ? at::kDouble : at::kFloat;
    const bool large = c10::multiply_integers(shape) * sizeof(T) >= kLeased;
    const c10::DispatchKeySet cpu(c10::DispatchKey::CPU);
    tensor = large ? at::detail::empty_generic(shape, &leased, cpu, type, std::nullopt)
                   : at::empty(shape, at::TensorOptions().dtype(type));
  }
  operator T*() const { return tensor.mutable_data_ptr<T>(); }
  Tensor as(const Tensor& like) const { return as(like.scalar_type()); }
  Tensor as(at::ScalarType type) const {
    return type == tensor.scalar_type() ? tensor : tensor.to(type);
  }
};

// Below this many multiplications, waking other threads costs more than it saves.
constexpr double kWorthThreads = 1 << 21;

template <typename Body>
void parallel(int64_t n, double work, const Body& body) {
  if (n == 0) return;
  if (work < kWorthThreads) return body(0, n);
  at::parallel_for(0, n, 1, body);
}

// Multiplications of one step of one sequence of the batch, roughly.
double step_work(const Sizes& s) {
  return double(s.num_heads()) * s.memory_size * (3 * s.word_size + s.num_taps + 60);
}

template <typename T, typename Arguments>
void run(typename cpu::Kernels<T>::template Kernel<Arguments> kernel, const Sizes& s, double work,
         const Arguments& arguments) {
  parallel(s.batch, work, [&](int64_t begin, int64_t end) { kernel(s, arguments, begin, end); });
}

// body(T{}) in the arithmetic of `like`.
template <typename Body>
auto in_arithmetic_of(const Tensor& like, const Body& body) {
  return arithmetic_type(like) == at::kDouble ? body(double{}) : body(float{});
}

Sizes sizes_of(const Tensor& memory, int64_t num_read_heads, int64_t num_write_heads,
               int64_t num_taps) {
  Sizes s;
  s.batch = memory.size(0), s.memory_size = memory.size(1), s.word_size = memory.size(2);
  s.num_read_heads = num_read_heads, s.num_write_heads = num_write_heads, s.num_taps = num_taps;
  return s;
}

Tensor address(const Tensor& memory, const Tensor& key, const Tensor& strength, const Tensor& gate,
               const Tensor& shift, const Tensor& sharpening, const Tensor& previous_weightings) {
  const Sizes s = sizes_of(memory, key.size(1), 0, shift.size(2));
  return in_arithmetic_of(memory, [&](auto zero) {
    using T = decltype(zero);
    const Lifted<T> memory_(memory), key_(key), strength_(strength), gate_(gate), shift_(shift),
        sharpening_(sharpening), previous(previous_weightings);
    const New<T> weightings({s.batch, s.num_heads(), s.memory_size});
    cpu::Address<T> io{memory_, {}, previous, weightings};
    io.heads.key = key_, io.heads.strength = strength_, io.heads.gate = gate_;
    io.heads.shift = shift_, io.heads.sharpening = sharpening_;
    run<T>(cpu::isa().kernels<T>().address, s, s.batch * step_work(s), io);
    return weightings.as(previous_weightings);
  });
}

Tensors address_backward(const Tensor& d_weightings, const Tensor& memory, const Tensor& key,
                         const Tensor& strength, const Tensor& gate, const Tensor& shift,
                         const Tensor& sharpening, const Tensor& previous_weightings) {
  const Sizes s = sizes_of(memory, key.size(1), 0, shift.size(2));
  return in_arithmetic_of(memory, [&](auto zero) -> Tensors {
    using T = decltype(zero);
    const int64_t B = s.batch, H = s.num_heads();
    const Lifted<T> memory_(memory), key_(key), strength_(strength), gate_(gate), shift_(shift),
        sharpening_(sharpening), previous(previous_weightings), d_weightings_(d_weightings);
    const New<T> d_memory({B, s.memory_size, s.word_size}), d_key({B, H, s.word_size}),
        d_strength({B, H}), d_gate({B, H}), d_shift({B, H, s.num_taps}), d_sharpening({B, H}),
        d_previous({B, H, s.memory_size});
    cpu::AddressBackward<T> io{memory_, {}, previous, d_weightings_, d_memory, {}, d_previous};
    io.heads.key = key_, io.heads.strength = strength_, io.heads.gate = gate_;
    io.heads.shift = shift_, io.heads.sharpening = sharpening_;
    io.d_heads.key = d_key, io.d_heads.strength = d_strength, io.d_heads.gate = d_gate;
    io.d_heads.shift = d_shift, io.d_heads.sharpening = d_sharpening;
    run<T>(cpu::isa().kernels<T>().address_backward, s, 2 * B * step_work(s), io);
    return {d_memory.as(memory),
            d_key.as(key),
            d_strength.as(strength),
            d_gate.as(gate),
            d_shift.as(shift),
            d_sharpening.as(sharpening),
            d_previous.as(previous_weightings)};
  });
}

Tensor read(const Tensor& memory, const Tensor& weightings) {
  const Sizes s = sizes_of(memory, weightings.size(1), 0, 1);
  return in_arithmetic_of(memory, [&](auto zero) {
    using T = decltype(zero);
    const Lifted<T> memory_(memory), weightings_(weightings);
    const New<T> read_vectors({s.batch, s.num_read_heads, s.word_size});
    const cpu::Read<T> io{memory_, weightings_, read_vectors};
    run<T>(cpu::isa().kernels<T>().read, s, s.batch * step_work(s), io);
    return read_vectors.as(memory);
  });
}

Tensors read_backward(const Tensor& d_read_vectors, const Tensor& memory,
                      const Tensor& weightings) {
  const Sizes s = sizes_of(memory, weightings.size(1), 0, 1);
  return in_arithmetic_of(memory, [&](auto zero) -> Tensors {
    using T = decltype(zero);
    const Lifted<T> memory_(memory), weightings_(weightings), d_read_vectors_(d_read_vectors);
    const New<T> d_memory(memory.sizes()), d_weightings(weightings.sizes());
    const cpu::ReadBackward<T> io{memory_, weightings_, d_read_vectors_, d_memory, d_weightings};
    run<T>(cpu::isa().kernels<T>().read_backward, s, s.batch * step_work(s), io);
    return {d_memory.as(memory), d_weightings.as(weightings)};
  });
}

Tensor write(const Tensor& memory, const Tensor& weightings, const Tensor& erase,
             const Tensor& add) {
  const Sizes s = sizes_of(memory, 0, weightings.size(1), 1);
  return in_arithmetic_of(memory, [&](auto zero) {
    using T = decltype(zero);
    const Lifted<T> memory_(memory), weightings_(weightings), erase_(erase), add_(add);
    const New<T> written(memory.sizes());
    const cpu::Write<T> io{memory_, weightings_, erase_, add_, written};
    run<T>(cpu::isa().kernels<T>().write, s, s.batch * step_work(s), io);
    return written.as(memory);
  });
}

Tensors write_backward(const Tensor& d_written, const Tensor& memory, const Tensor& weightings,
                       const Tensor& erase, const Tensor& add) {
  const Sizes s = sizes_of(memory, 0, weightings.size(1), 1);
  return in_arithmetic_of(memory, [&](auto zero) -> Tensors {
    using T = decltype(zero);
    const Lifted<T> memory_(memory), weightings_(weightings), erase_(erase), add_(add),
        d_written_(d_written);
    const New<T> d_memory(memory.sizes()), d_weightings(weightings.sizes()), d_erase(erase.sizes()),
        d_add(add.sizes());
    const cpu::WriteBackward<T> io{memory_,  weightings_,  erase_,  add_, d_written_,
                                   d_memory, d_weightings, d_erase, d_add};
    run<T>(cpu::isa().kernels<T>().write_backward, s, 2 * s.batch * step_work(s), io);
    return {d_memory.as(memory), d_weightings.as(weightings), d_erase.as(erase), d_add.as(add)};
  });
}

}  // namespace

Tensors step(const Tensor& memory, const Tensor& interface, const Tensor& previous_weightings,
             int64_t num_read_heads, int64_t num_write_heads, int64_t shift_range) {
  const Sizes s = sizes_of(memory, num_read_heads, num_write_heads, 2 * shift_range + 1);
  return in_arithmetic_of(memory, [&](auto zero) -> Tensors {
    using T = decltype(zero);
    const Lifted<T> memory_(memory), interface_(interface), previous(previous_weightings);
    const New<T> read_vectors({s.batch, num_read_heads, s.word_size}), written(memory.sizes()),
        weightings(previous_weightings.sizes());
    const cpu::Step<T> io{memory_, interface_, previous, read_vectors, written, weightings};
    run<T>(cpu::isa().kernels<T>().step, s, s.batch * step_work(s), io);
    return {read_vectors.as(memory), written.as(memory), weightings.as(previous_weightings)};
  });
}

Tensors step_backward(const MaybeTensor& d_read_vectors, const MaybeTensor& d_written,
                      const MaybeTensor& d_weightings, const Tensor& memory,
                      const Tensor& interface, const Tensor& previous_weightings,
                      int64_t num_read_heads, int64_t num_write_heads, int64_t shift_range) {
  const Sizes s = sizes_of(memory, num_read_heads, num_write_heads, 2 * shift_range + 1);
  return in_arithmetic_of(memory, [&](auto zero) -> Tensors {
    using T = decltype(zero);
    const Lifted<T> memory_(memory), interface_(interface), previous(previous_weightings),
        d_read_vectors_(d_read_vectors), d_written_(d_written), d_weightings_(d_weightings);
    const New<T> d_memory(memory.sizes()), d_interface(interface.sizes()),
        d_previous(previous_weightings.sizes());
    const cpu::StepBackward<T> io{memory_,         interface_,  previous,
                                  d_read_vectors_, d_written_,  d_weightings_,
                                  d_memory,        d_interface, d_previous};
    run<T>(cpu::isa().kernels<T>().step_backward, s, 3 * s.batch * step_work(s), io);
    return {d_memory.as(memory), d_interface.as(interface), d_previous.as(previous_weightings)};
  });
}

namespace {

Sizes sequence_sizes(const Tensor& input, const MaybeTensor& input_weight,
                     const Tensor& interface_weight, const Tensor& memory, bool lstm,
                     int64_t num_read_heads, int64_t num_write_heads, int64_t shift_range,
                     int64_t checkpoint_every) {
  Sizes s = sizes_of(memory, num_read_heads, num_write_heads, 2 * shift_range + 1);
  s.time = input.size(0), s.hidden_size = interface_weight.size(1);
  s.input_size = input_weight ? input_weight->size(1) : 0;
  s.checkpoint_every = checkpoint_every, s.lstm = lstm;
  return s;
}

double sequence_work(const Sizes& s) {
  const double products = double(s.gate_size()) * (s.recurrent_size() + s.input_size) +
                          double(s.interface_size()) * s.hidden_size;
  return double(s.time) * s.batch * (products + step_work(s));
}

// The tensors that `sequence` saves, in the order of cpu::Saved.
std::vector<std::vector<int64_t>> saved_shapes(const Sizes& s) {
  const int64_t T = s.time, B = s.batch, cells = s.lstm ? s.hidden_size : 0;
  return {{s.num_checkpoints(), B, s.word_size, s.row_stride()},
          {T, B, s.num_heads(), s.memory_size},
          {T, B, s.interface_size()},
          {T, B, s.lstm ? s.gate_size() : 0},
          {T, B, cells}};
}

template <typename T>
cpu::Saved<T> pointers(const Tensors& saved) {
  if (saved.empty()) return {};
  const auto at = [&](size_t i) { return static_cast<T*>(saved[i].data_ptr()); };
  return {at(0), at(1), at(2), at(3), at(4)};
}

// A weight as right factor of a product.
template <typename T>
Tensor packed(const cpu::Kernels<T>& kernels, const Tensor& weight) {
  const int64_t columns = weight.size(1), inner = weight.size(0);
  const New<T> to({kernels.packed_size(columns, inner)});
  kernels.pack(columns, inner, Lifted<T>(weight), to);
  return to.tensor;
}

// The transpose of a weight, and of a second one's columns beside it.
template <typename T>
Tensor packed_transposed(const cpu::Kernels<T>& kernels, const Tensor& weight,
                         const MaybeTensor& beside = std::nullopt) {
  const int64_t columns = weight.size(0), rows = weight.size(1);
  const int64_t inner = rows + (beside ? beside->size(1) : 0);
  const New<T> to({kernels.packed_size(columns, inner)});
  kernels.pack_transposed(columns, inner, 0, rows, Lifted<T>(weight), to);
  if (beside) kernels.pack_transposed(columns, inner, rows, inner - rows, Lifted<T>(*beside), to);
  return to.tensor;
}

}  // namespace

Tensors sequence(const Tensor& input, const Tensor& recurrent_weight,
                 const Tensor& interface_weight, const Tensor& interface_bias, const Tensor& memory,
                 const Tensor& weightings, const Tensor& read_vectors, const MaybeTensor& hidden,
                 const MaybeTensor& cell, const MaybeTensor& lengths,
                 const MaybeTensor& input_weight, const MaybeTensor& input_bias,
                 int64_t num_read_heads, int64_t num_write_heads, int64_t shift_range,
                 int64_t checkpoint_every, bool save_for_backward, bool return_trace) {
  const Sizes s = sequence_sizes(input, input_weight, interface_weight, memory, hidden.has_value(),
                                 num_read_heads, num_write_heads, shift_range, checkpoint_every);
  return in_arithmetic_of(memory, [&](auto zero) -> Tensors {
    using T = decltype(zero);
    const cpu::Kernels<T>& kernels = cpu::isa().kernels<T>();
    const int64_t B = s.batch, C = s.hidden_size, H = s.num_heads(), N = s.memory_size;
    const Lifted<T> input_(input), input_bias_(input_bias), bias(interface_bias), memory_(memory),
        weightings_(weightings), read_vectors_(read_vectors), hidden_(hidden), cell_(cell);
    const Tensor packed_gate = packed_transposed(kernels, recurrent_weight, input_weight);
    const Tensor packed_interface = packed_transposed(kernels, interface_weight);
    const Tensor lengths_ = lengths ? lengths->contiguous() : Tensor();

    const int64_t state = s.lstm ? B * C : 0;
    const New<T> hiddens({s.time, B, C}), reads({s.time, B, num_read_heads, s.word_size}),
        final_memory(memory.sizes()), final_weightings(weightings.sizes()),
        final_read_vectors(read_vectors.sizes()), final_hidden({state}), final_cell({state});
    const New<T> trace_weightings({return_trace ? s.time * B * H * N : 0}),
        trace_interface({return_trace ? s.time * B * s.interface_size() : 0});
    Tensors saved;
    if (save_for_backward) {
      for (const auto& shape : saved_shapes(s)) saved.push_back(New<T>(shape).tensor);
    }

    cpu::Sequence<T> io{
        input_weight ? nullptr : static_cast<const T*>(input_),
        input_weight ? static_cast<const T*>(input_) : nullptr,
        input_bias_,
        packed_gate.const_data_ptr<T>(),
        packed_interface.const_data_ptr<T>(),
        bias,
        lengths_.defined() ? lengths_.const_data_ptr<int64_t>() : nullptr,
        {memory_, weightings_, read_vectors_, hidden_, cell_},
        hiddens,
        reads,
        {final_memory, final_weightings, final_read_vectors, final_hidden, final_cell},
        return_trace ? static_cast<T*>(trace_weightings) : nullptr,
        return_trace ? static_cast<T*>(trace_interface) : nullptr,
        pointers<T>(saved)};
    if (!s.lstm) io.saved.gates = io.saved.cell = nullptr;
    run<T>(kernels.sequence, s, sequence_work(s), io);

    const Tensor& like_hidden = hidden ? *hidden : memory;
    const auto shaped = [](const Tensor& flat, bool wanted, at::IntArrayRef shape) {
      return wanted ? flat.view(shape) : flat;
    };
    Tensors results{hiddens.as(like_hidden),
                    reads.as(memory),
                    final_memory.as(memory),
                    final_weightings.as(weightings),
                    final_read_vectors.as(memory),
                    shaped(final_hidden.as(like_hidden), s.lstm, {B, C}),
                    shaped(final_cell.as(cell ? *cell : memory), s.lstm, {B, C}),
                    shaped(trace_weightings.as(weightings), return_trace, {s.time, B, H, N}),
                    shaped(trace_interface.tensor, return_trace, {s.time, B, s.interface_size()})};
    results.insert(results.end(), saved.begin(), saved.end());
    return results;
  });
}

Tensors sequence_backward(const std::vector<MaybeTensor>& grads, const Tensor& input,
                          const Tensor& recurrent_weight, const Tensor& interface_weight,
                          const Tensor& interface_bias, const Tensor& memory,
                          const Tensor& weightings, const Tensor& read_vectors,
                          const MaybeTensor& hidden, const MaybeTensor& cell,
                          const MaybeTensor& lengths, const MaybeTensor& input_weight,
                          const MaybeTensor& input_bias, const Tensor& out_hidden,
                          const Tensor& out_read_vectors, const Tensors& saved,
                          int64_t num_read_heads, int64_t num_write_heads, int64_t shift_range,
                          int64_t checkpoint_every) {
  const Sizes s = sequence_sizes(input, input_weight, interface_weight, memory, hidden.has_value(),
                                 num_read_heads, num_write_heads, shift_range, checkpoint_every);
  return in_arithmetic_of(memory, [&](auto zero) -> Tensors {
    using T = decltype(zero);
    const cpu::Kernels<T>& kernels = cpu::isa().kernels<T>();
    const int64_t B = s.batch, C = s.hidden_size, G = s.gate_size(), P = s.interface_size(),
                  I = s.input_size;
    const Lifted<T> input_(input), memory_(memory), weightings_(weightings),
        read_vectors_(read_vectors), hidden_(hidden), cell_(cell), hiddens(out_hidden),
        reads(out_read_vectors);
    const Tensor recurrent = packed(kernels, recurrent_weight);
    const Tensor interface = packed(kernels, interface_weight);
    const Lifted<T> d_hiddens(grads[0]), d_reads(grads[1]), d_memory(grads[2]),
        d_weightings(grads[3]), d_final_read_vectors(grads[4]), d_final_hidden(grads[5]),
        d_final_cell(grads[6]);
    const Tensor lengths_ = lengths ? lengths->contiguous() : Tensor();

    const int64_t state = s.lstm ? B * C : 0;
    const New<T> d_projected({s.time, B, G}), d_interface({s.time, B, P}),
        d_initial_memory(memory.sizes()), d_initial_weightings(weightings.sizes()),
        d_initial_read_vectors(read_vectors.sizes()), d_initial_hidden({state}),
        d_initial_cell({state});
    const auto kept = pointers<T>(saved);
    const cpu::SequenceBackward<T> io{
        recurrent.const_data_ptr<T>(),
        interface.const_data_ptr<T>(),
        lengths_.defined() ? lengths_.const_data_ptr<int64_t>() : nullptr,
        {memory_, weightings_, read_vectors_, hidden_, cell_},
        hiddens,
        {kept.checkpoints, kept.weightings, kept.interface, kept.gates, kept.cell},
        d_hiddens,
        d_reads,
        {d_memory, d_weightings, d_final_read_vectors, d_final_hidden, d_final_cell},
        d_projected,
        d_interface,
        {d_initial_memory, d_initial_weightings, d_initial_read_vectors, d_initial_hidden,
         d_initial_cell}};
    const double work = sequence_work(s);
    run<T>(kernels.sequence_backward, s, 2 * work, io);

    const New<T> d_recurrent_weight(recurrent_weight.sizes()),
        d_interface_weight(interface_weight.sizes()), d_bias(interface_bias.sizes()),
        d_input_weight({I ? G : 0, I}), d_input_bias({I ? G : 0});
    const int64_t steps = s.time * B, K = s.recurrent_size();
    const auto differentiate = [&](const cpu::WeightGradient<T>& gradient) {
      parallel(kernels.weight_gradient_blocks(gradient), work,
               [&](int64_t begin, int64_t end) { kernels.weight_gradient(gradient, begin, end); });
    };
    T* const d_recurrent = d_recurrent_weight;
    differentiate({steps,
                   G,
                   B,
                   d_projected,
                   I ? static_cast<T*>(d_input_bias) : nullptr,
                   {{s.read_size(), read_vectors_, reads, d_recurrent, K},
                    {s.lstm ? C : 0, hidden_, hiddens, d_recurrent + s.read_size(), K},
                    {I, input_, input_ + B * I, d_input_weight, I}}});
    differentiate(
        {steps, P, 0, d_interface, d_bias, {{C, nullptr, hiddens, d_interface_weight, C}}});

    const auto shaped = [&](const New<T>& flat, const MaybeTensor& like) {
      return s.lstm ? flat.as(*like).view({B, C}) : flat.tensor;
    };
    return {d_projected.as(input),
            d_recurrent_weight.as(recurrent_weight),
            d_interface_weight.as(interface_weight),
            d_bias.as(interface_bias),
            d_initial_memory.as(memory),
            d_initial_weightings.as(weightings),
            d_initial_read_vectors.as(read_vectors),
            shaped(d_initial_hidden, hidden),
            shaped(d_initial_cell, cell),
            d_input_weight.as(input_weight.value_or(recurrent_weight)),
            d_input_bias.as(input_bias.value_or(recurrent_weight))};
  });
}

namespace {

// All lists are as long as `parameters`, those of a state that is not kept empty; contiguous, of
// one dtype.
void graves_rmsprop(const Tensors& parameters, const Tensors& grads, const Tensors& square_avgs,
                    const Tensors& grad_avgs, const Tensors& deltas, double lr, double decay,
                    double momentum, double eps) {
  if (parameters.empty()) return;
  in_arithmetic_of(parameters[0], [&](auto zero) {
    using T = decltype(zero);
    const cpu::RMSpropRates<T> rates{T(lr), T(decay), T(momentum), T(eps)};
    const auto data = [](const Tensors& list, size_t i) -> T* {
      if (list.empty()) return nullptr;
      list[i].unsafeGetTensorImpl()->bump_version();  // so that autograd sees the change
      return list[i].mutable_data_ptr<T>();
    };
    for (size_t i = 0; i < parameters.size(); ++i) {
      cpu::isa().kernels<T>().graves_rmsprop(
          rates, parameters[i].numel(),
          {data(parameters, i), grads[i].const_data_ptr<T>(), data(square_avgs, i),
           data(grad_avgs, i), data(deltas, i)});
    }
  });
}

std::string isa_name() {
  return cpu::isa().name;
}

TORCH_LIBRARY(ntm_cpu, m) {
  m.def("isa() -> str", isa_name);
  m.def(
      "graves_rmsprop_(Tensor(a!)[] parameters, Tensor[] grads, Tensor(b!)[] square_avgs, "
      "Tensor(c!)[] grad_avgs, Tensor(d!)[] deltas, float lr, float decay, float momentum, "
      "float eps) -> ()");
  m.def(
      "address(Tensor memory, Tensor key, Tensor strength, Tensor gate, Tensor shift, "
      "Tensor sharpening, Tensor previous_weightings) -> Tensor");
  m.def(
      "address_backward(Tensor grad_weightings, Tensor memory, Tensor key, Tensor strength, Tensor "
      "gate, "
      "Tensor shift, Tensor sharpening, Tensor previous_weightings) -> Tensor[]");
  m.def("read(Tensor memory, Tensor weightings) -> Tensor");
  m.def("read_backward(Tensor grad_read_vectors, Tensor memory, Tensor weightings) -> Tensor[]");
  m.def("write(Tensor memory, Tensor weightings, Tensor erase, Tensor add) -> Tensor");
  m.def(
      "write_backward(Tensor grad_memory, Tensor memory, Tensor weightings, Tensor erase, Tensor "
      "add)"
      " -> Tensor[]");
  m.def(
      "step(Tensor memory, Tensor interface, Tensor previous_weightings, int num_read_heads, "
      "int num_write_heads, int shift_range) -> Tensor[]");
  m.def(
      "step_backward(Tensor? grad_read_vectors, Tensor? grad_memory, Tensor? grad_weightings, "
      "Tensor memory, Tensor interface, Tensor previous_weightings, int num_read_heads, "
      "int num_write_heads, int shift_range) -> Tensor[]");
  m.def(
      "sequence(Tensor input, Tensor recurrent_weight, Tensor interface_weight, "
      "Tensor interface_bias, Tensor memory, Tensor weightings, Tensor read_vectors, Tensor? "
      "hidden, "
      "Tensor? cell, Tensor? lengths, Tensor? input_weight, Tensor? input_bias, "
      "int num_read_heads, int num_write_heads, int shift_range, int checkpoint_every, "
      "bool save_for_backward, bool return_trace) -> Tensor[]");
  m.def(
      "sequence_backward(Tensor?[] grads, Tensor input, Tensor recurrent_weight, "
      "Tensor interface_weight, Tensor interface_bias, Tensor memory, Tensor weightings, "
      "Tensor read_vectors, Tensor? hidden, Tensor? cell, Tensor? lengths, Tensor? input_weight, "
      "Tensor? input_bias, Tensor hidden_out, Tensor read_vectors_out, Tensor[] saved, "
      "int num_read_heads, int num_write_heads, int shift_range, int checkpoint_every)"
      " -> Tensor[]");
}

TORCH_LIBRARY_IMPL(ntm_cpu, CPU, m) {
  m.impl("graves_rmsprop_", graves_rmsprop);
  m.impl("address", address);
  m.impl("address_backward", address_backward);
  m.impl("read", read);
  m.impl("read_backward", read_backward);
  m.impl("write", write);
  m.impl("write_backward", write_backward);
  m.impl("step", step);
  m.impl("step_backward", step_backward);
  m.impl("sequence", sequence);
  m.impl("sequence_backward", sequence_backward);
}

}  // namespace
}  // namespace ntm
