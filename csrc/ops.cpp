// torch.ops.ntm_native: tensors to pointers, the batch to threads. Arguments are checked in Python.
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
  return double(s.heads()) * s.locations * (3 * s.word + s.taps + 60);
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

Sizes sizes_of(const Tensor& memory, int64_t read_heads, int64_t write_heads, int64_t taps) {
  Sizes s;
  s.batch = memory.size(0), s.locations = memory.size(1), s.word = memory.size(2);
  s.read_heads = read_heads, s.write_heads = write_heads, s.taps = taps;
  return s;
}

Tensor address(const Tensor& memory, const Tensor& key, const Tensor& strength, const Tensor& gate,
               const Tensor& shift, const Tensor& sharpening, const Tensor& previous_weights) {
  const Sizes s = sizes_of(memory, key.size(1), 0, shift.size(2));
  return in_arithmetic_of(memory, [&](auto zero) {
    using T = decltype(zero);
    const Lifted<T> memory_(memory), key_(key), strength_(strength), gate_(gate), shift_(shift),
        sharpening_(sharpening), previous(previous_weights);
    const New<T> weights({s.batch, s.heads(), s.locations});
    cpu::Address<T> io{memory_, {}, previous, weights};
    io.heads.key = key_, io.heads.strength = strength_, io.heads.gate = gate_;
    io.heads.shift = shift_, io.heads.sharpening = sharpening_;
    run<T>(cpu::isa().kernels<T>().address, s, s.batch * step_work(s), io);
    return weights.as(previous_weights);
  });
}

Tensors address_backward(const Tensor& d_weights, const Tensor& memory, const Tensor& key,
                         const Tensor& strength, const Tensor& gate, const Tensor& shift,
                         const Tensor& sharpening, const Tensor& previous_weights) {
  const Sizes s = sizes_of(memory, key.size(1), 0, shift.size(2));
  return in_arithmetic_of(memory, [&](auto zero) -> Tensors {
    using T = decltype(zero);
    const int64_t B = s.batch, H = s.heads();
    const Lifted<T> memory_(memory), key_(key), strength_(strength), gate_(gate), shift_(shift),
        sharpening_(sharpening), previous(previous_weights), d_weights_(d_weights);
    const New<T> d_memory({B, s.locations, s.word}), d_key({B, H, s.word}), d_strength({B, H}),
        d_gate({B, H}), d_shift({B, H, s.taps}), d_sharpening({B, H}),
        d_previous({B, H, s.locations});
    cpu::AddressBackward<T> io{memory_, {}, previous, d_weights_, d_memory, {}, d_previous};
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
            d_previous.as(previous_weights)};
  });
}

Tensor read(const Tensor& memory, const Tensor& weights) {
  const Sizes s = sizes_of(memory, weights.size(1), 0, 1);
  return in_arithmetic_of(memory, [&](auto zero) {
    using T = decltype(zero);
    const Lifted<T> memory_(memory), weights_(weights);
    const New<T> read_vectors({s.batch, s.read_heads, s.word});
    const cpu::Read<T> io{memory_, weights_, read_vectors};
    run<T>(cpu::isa().kernels<T>().read, s, s.batch * step_work(s), io);
    return read_vectors.as(memory);
  });
}

Tensors read_backward(const Tensor& d_read_vectors, const Tensor& memory, const Tensor& weights) {
  const Sizes s = sizes_of(memory, weights.size(1), 0, 1);
  return in_arithmetic_of(memory, [&](auto zero) -> Tensors {
    using T = decltype(zero);
    const Lifted<T> memory_(memory), weights_(weights), d_read_vectors_(d_read_vectors);
    const New<T> d_memory(memory.sizes()), d_weights(weights.sizes());
    const cpu::ReadBackward<T> io{memory_, weights_, d_read_vectors_, d_memory, d_weights};
    run<T>(cpu::isa().kernels<T>().read_backward, s, s.batch * step_work(s), io);
    return {d_memory.as(memory), d_weights.as(weights)};
  });
}

Tensor write(const Tensor& memory, const Tensor& weights, const Tensor& erase, const Tensor& add) {
  const Sizes s = sizes_of(memory, 0, weights.size(1), 1);
  return in_arithmetic_of(memory, [&](auto zero) {
    using T = decltype(zero);
    const Lifted<T> memory_(memory), weights_(weights), erase_(erase), add_(add);
    const New<T> written(memory.sizes());
    const cpu::Write<T> io{memory_, weights_, erase_, add_, written};
    run<T>(cpu::isa().kernels<T>().write, s, s.batch * step_work(s), io);
    return written.as(memory);
  });
}

Tensors write_backward(const Tensor& d_written, const Tensor& memory, const Tensor& weights,
                       const Tensor& erase, const Tensor& add) {
  const Sizes s = sizes_of(memory, 0, weights.size(1), 1);
  return in_arithmetic_of(memory, [&](auto zero) -> Tensors {
    using T = decltype(zero);
    const Lifted<T> memory_(memory), weights_(weights), erase_(erase), add_(add),
        d_written_(d_written);
    const New<T> d_memory(memory.sizes()), d_weights(weights.sizes()), d_erase(erase.sizes()),
        d_add(add.sizes());
    const cpu::WriteBackward<T> io{memory_,  weights_,  erase_,  add_, d_written_,
                                   d_memory, d_weights, d_erase, d_add};
    run<T>(cpu::isa().kernels<T>().write_backward, s, 2 * s.batch * step_work(s), io);
    return {d_memory.as(memory), d_weights.as(weights), d_erase.as(erase), d_add.as(add)};
  });
}

}  // namespace

Tensors step(const Tensor& memory, const Tensor& interface, const Tensor& previous_weights,
             int64_t read_heads, int64_t write_heads, int64_t shift_range) {
  const Sizes s = sizes_of(memory, read_heads, write_heads, 2 * shift_range + 1);
  return in_arithmetic_of(memory, [&](auto zero) -> Tensors {
    using T = decltype(zero);
    const Lifted<T> memory_(memory), interface_(interface), previous(previous_weights);
    const New<T> read_vectors({s.batch, read_heads, s.word}), written(memory.sizes()),
        weights(previous_weights.sizes());
    const cpu::Step<T> io{memory_, interface_, previous, read_vectors, written, weights};
    run<T>(cpu::isa().kernels<T>().step, s, s.batch * step_work(s), io);
    return {read_vectors.as(memory), written.as(memory), weights.as(previous_weights)};
  });
}

Tensors step_backward(const MaybeTensor& d_read_vectors, const MaybeTensor& d_written,
                      const MaybeTensor& d_weights, const Tensor& memory, const Tensor& interface,
                      const Tensor& previous_weights, int64_t read_heads, int64_t write_heads,
                      int64_t shift_range) {
  const Sizes s = sizes_of(memory, read_heads, write_heads, 2 * shift_range + 1);
  return in_arithmetic_of(memory, [&](auto zero) -> Tensors {
    using T = decltype(zero);
    const Lifted<T> memory_(memory), interface_(interface), previous(previous_weights),
        d_read_vectors_(d_read_vectors), d_written_(d_written), d_weights_(d_weights);
    const New<T> d_memory(memory.sizes()), d_interface(interface.sizes()),
        d_previous(previous_weights.sizes());
    const cpu::StepBackward<T> io{memory_,    interface_, previous,    d_read_vectors_, d_written_,
                                  d_weights_, d_memory,   d_interface, d_previous};
    run<T>(cpu::isa().kernels<T>().step_backward, s, 3 * s.batch * step_work(s), io);
    return {d_memory.as(memory), d_interface.as(interface), d_previous.as(previous_weights)};
  });
}

namespace {

Sizes sequence_sizes(const Tensor& input, const MaybeTensor& input_weight,
                     const Tensor& interface_weight, const Tensor& memory, bool lstm,
                     int64_t read_heads, int64_t write_heads, int64_t shift_range,
                     int64_t checkpoint_every) {
  Sizes s = sizes_of(memory, read_heads, write_heads, 2 * shift_range + 1);
  s.time = input.size(0), s.hidden = interface_weight.size(1);
  s.input = input_weight ? input_weight->size(1) : 0;
  s.every = checkpoint_every, s.lstm = lstm;
  return s;
}

double sequence_work(const Sizes& s) {
  const double products =
      double(s.gates()) * (s.recurrent() + s.input) + double(s.interface()) * s.hidden;
  return double(s.time) * s.batch * (products + step_work(s));
}

// The tensors that `sequence` saves, in the order of cpu::Saved.
std::vector<std::vector<int64_t>> saved_shapes(const Sizes& s) {
  const int64_t T = s.time, B = s.batch, cells = s.lstm ? s.hidden : 0;
  return {{s.checkpoints(), B, s.word, s.stride()},
          {T, B, s.heads(), s.locations},
          {T, B, s.interface()},
          {T, B, s.lstm ? s.gates() : 0},
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
                 const Tensor& weights, const Tensor& read_vectors, const MaybeTensor& hidden,
                 const MaybeTensor& cell, const MaybeTensor& lengths,
                 const MaybeTensor& input_weight, const MaybeTensor& input_bias, int64_t read_heads,
                 int64_t write_heads, int64_t shift_range, int64_t checkpoint_every,
                 bool save_for_backward, bool return_trace) {
  const Sizes s = sequence_sizes(input, input_weight, interface_weight, memory, hidden.has_value(),
                                 read_heads, write_heads, shift_range, checkpoint_every);
  return in_arithmetic_of(memory, [&](auto zero) -> Tensors {
    using T = decltype(zero);
    const cpu::Kernels<T>& kernels = cpu::isa().kernels<T>();
    const int64_t B = s.batch, C = s.hidden, H = s.heads(), N = s.locations;
    const Lifted<T> input_(input), input_bias_(input_bias), bias(interface_bias), memory_(memory),
        weights_(weights), read_vectors_(read_vectors), hidden_(hidden), cell_(cell);
    const Tensor packed_gate = packed_transposed(kernels, recurrent_weight, input_weight);
    const Tensor packed_interface = packed_transposed(kernels, interface_weight);
    const Tensor lengths_ = lengths ? lengths->contiguous() : Tensor();

    const int64_t state = s.lstm ? B * C : 0;
    const New<T> hiddens({s.time, B, C}), reads({s.time, B, read_heads, s.word}),
        last_memory(memory.sizes()), last_weights(weights.sizes()),
        last_reads(read_vectors.sizes()), last_hidden({state}), last_cell({state});
    const New<T> trace_weights({return_trace ? s.time * B * H * N : 0}),
        trace_interface({return_trace ? s.time * B * s.interface() : 0});
    Tensors saved;
    if (save_for_backward) {
      for (const auto& shape : saved_shapes(s)) saved.push_back(New<T>(shape).tensor);
    }

    cpu::Sequence<T> io{input_weight ? nullptr : static_cast<const T*>(input_),
                        input_weight ? static_cast<const T*>(input_) : nullptr,
                        input_bias_,
                        packed_gate.const_data_ptr<T>(),
                        packed_interface.const_data_ptr<T>(),
                        bias,
                        lengths_.defined() ? lengths_.const_data_ptr<int64_t>() : nullptr,
                        {memory_, weights_, read_vectors_, hidden_, cell_},
                        hiddens,
                        reads,
                        {last_memory, last_weights, last_reads, last_hidden, last_cell},
                        return_trace ? static_cast<T*>(trace_weights) : nullptr,
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
                    last_memory.as(memory),
                    last_weights.as(weights),
                    last_reads.as(memory),
                    shaped(last_hidden.as(like_hidden), s.lstm, {B, C}),
                    shaped(last_cell.as(cell ? *cell : memory), s.lstm, {B, C}),
                    shaped(trace_weights.as(weights), return_trace, {s.time, B, H, N}),
                    shaped(trace_interface.tensor, return_trace, {s.time, B, s.interface()})};
    results.insert(results.end(), saved.begin(), saved.end());
    return results;
  });
}

Tensors sequence_backward(const std::vector<MaybeTensor>& grads, const Tensor& input,
                          const Tensor& recurrent_weight, const Tensor& interface_weight,
                          const Tensor& interface_bias, const Tensor& memory, const Tensor& weights,
                          const Tensor& read_vectors, const MaybeTensor& hidden,
                          const MaybeTensor& cell, const MaybeTensor& lengths,
                          const MaybeTensor& input_weight, const MaybeTensor& input_bias,
                          const Tensor& out_hidden, const Tensor& out_read_vectors,
                          const Tensors& saved, int64_t read_heads, int64_t write_heads,
                          int64_t shift_range, int64_t checkpoint_every) {
  const Sizes s = sequence_sizes(input, input_weight, interface_weight, memory, hidden.has_value(),
                                 read_heads, write_heads, shift_range, checkpoint_every);
  return in_arithmetic_of(memory, [&](auto zero) -> Tensors {
    using T = decltype(zero);
    const cpu::Kernels<T>& kernels = cpu::isa().kernels<T>();
    const int64_t B = s.batch, C = s.hidden, G = s.gates(), P = s.interface(), I = s.input;
    const Lifted<T> input_(input), memory_(memory), weights_(weights), read_vectors_(read_vectors),
        hidden_(hidden), cell_(cell), hiddens(out_hidden), reads(out_read_vectors);
    const Tensor recurrent = packed(kernels, recurrent_weight);
    const Tensor interface = packed(kernels, interface_weight);
    const Lifted<T> d_hiddens(grads[0]), d_reads(grads[1]), d_memory(grads[2]), d_weights(grads[3]),
        d_last_reads(grads[4]), d_last_hidden(grads[5]), d_last_cell(grads[6]);
    const Tensor lengths_ = lengths ? lengths->contiguous() : Tensor();

    const int64_t state = s.lstm ? B * C : 0;
    const New<T> d_projected({s.time, B, G}), d_interface({s.time, B, P}),
        d_first_memory(memory.sizes()), d_first_weights(weights.sizes()),
        d_first_reads(read_vectors.sizes()), d_first_hidden({state}), d_first_cell({state});
    const auto kept = pointers<T>(saved);
    const cpu::SequenceBackward<T> io{
        recurrent.const_data_ptr<T>(),
        interface.const_data_ptr<T>(),
        lengths_.defined() ? lengths_.const_data_ptr<int64_t>() : nullptr,
        {memory_, weights_, read_vectors_, hidden_, cell_},
        hiddens,
        {kept.checkpoints, kept.weights, kept.interface, kept.gates, kept.cell},
        d_hiddens,
        d_reads,
        {d_memory, d_weights, d_last_reads, d_last_hidden, d_last_cell},
        d_projected,
        d_interface,
        {d_first_memory, d_first_weights, d_first_reads, d_first_hidden, d_first_cell}};
    const double work = sequence_work(s);
    run<T>(kernels.sequence_backward, s, 2 * work, io);

    const New<T> d_recurrent_weight(recurrent_weight.sizes()),
        d_interface_weight(interface_weight.sizes()), d_bias(interface_bias.sizes()),
        d_input_weight({I ? G : 0, I}), d_input_bias({I ? G : 0});
    const int64_t steps = s.time * B, K = s.recurrent();
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
                   {{s.reads(), read_vectors_, reads, d_recurrent, K},
                    {s.lstm ? C : 0, hidden_, hiddens, d_recurrent + s.reads(), K},
                    {I, input_, input_ + B * I, d_input_weight, I}}});
    differentiate(
        {steps, P, 0, d_interface, d_bias, {{C, nullptr, hiddens, d_interface_weight, C}}});

    const auto shaped = [&](const New<T>& flat, const MaybeTensor& like) {
      return s.lstm ? flat.as(*like).view({B, C}) : flat.tensor;
    };
    // Of an input that is projected here only the product with its weight is rounded.
    return {I ? d_projected.tensor : d_projected.as(input),
            d_recurrent_weight.as(recurrent_weight),
            d_interface_weight.as(interface_weight),
            d_bias.as(interface_bias),
            d_first_memory.as(memory),
            d_first_weights.as(weights),
            d_first_reads.as(read_vectors),
            shaped(d_first_hidden, hidden),
            shaped(d_first_cell, cell),
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

int64_t released_bytes() {
  return static_cast<int64_t>(release_workspaces());
}

TORCH_LIBRARY(ntm_native, m) {
  m.def("isa() -> str", isa_name);
  m.def("release_workspaces() -> int", released_bytes);
  m.def(
      "graves_rmsprop_(Tensor(a!)[] parameters, Tensor[] grads, Tensor(b!)[] square_avgs, "
      "Tensor(c!)[] grad_avgs, Tensor(d!)[] deltas, float lr, float decay, float momentum, "
      "float eps) -> ()");
  m.def(
      "address(Tensor memory, Tensor key, Tensor strength, Tensor gate, Tensor shift, "
      "Tensor sharpening, Tensor previous_weights) -> Tensor");
  m.def(
      "address_backward(Tensor grad_weights, Tensor memory, Tensor key, Tensor strength, Tensor "
      "gate, "
      "Tensor shift, Tensor sharpening, Tensor previous_weights) -> Tensor[]");
  m.def("read(Tensor memory, Tensor weights) -> Tensor");
  m.def("read_backward(Tensor grad_read_vectors, Tensor memory, Tensor weights) -> Tensor[]");
  m.def("write(Tensor memory, Tensor weights, Tensor erase, Tensor add) -> Tensor");
  m.def(
      "write_backward(Tensor grad_memory, Tensor memory, Tensor weights, Tensor erase, Tensor add)"
      " -> Tensor[]");
  m.def(
      "step(Tensor memory, Tensor interface, Tensor previous_weights, int num_read_heads, "
      "int num_write_heads, int shift_range) -> Tensor[]");
  m.def(
      "step_backward(Tensor? grad_read_vectors, Tensor? grad_memory, Tensor? grad_weights, "
      "Tensor memory, Tensor interface, Tensor previous_weights, int num_read_heads, "
      "int num_write_heads, int shift_range) -> Tensor[]");
  m.def(
      "sequence(Tensor input, Tensor recurrent_weight, Tensor interface_weight, "
      "Tensor interface_bias, Tensor memory, Tensor weights, Tensor read_vectors, Tensor? hidden, "
      "Tensor? cell, Tensor? lengths, Tensor? input_weight, Tensor? input_bias, "
      "int num_read_heads, int num_write_heads, int shift_range, int checkpoint_every, "
      "bool save_for_backward, bool return_trace) -> Tensor[]");
  m.def(
      "sequence_backward(Tensor?[] grads, Tensor input, Tensor recurrent_weight, "
      "Tensor interface_weight, Tensor interface_bias, Tensor memory, Tensor weights, "
      "Tensor read_vectors, Tensor? hidden, Tensor? cell, Tensor? lengths, Tensor? input_weight, "
      "Tensor? input_bias, Tensor hidden_out, Tensor read_vectors_out, Tensor[] saved, "
      "int num_read_heads, int num_write_heads, int shift_range, int checkpoint_every)"
      " -> Tensor[]");
}

TORCH_LIBRARY_IMPL(ntm_native, CPU, m) {
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
