// `sequence` from records of tensors to records of tensors.
//
// The kernel goes through the steps. What does not depend on their order is done here, once a call:
// before the kernel the weights are packed, in the order in which its matrix products read them,
// and after its backward the gradients of the weights are computed, as products over all steps.
#include <ATen/ops/matmul.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>

#include "kernels.h"
#include "ops.h"

namespace ntm {
namespace {

using Inputs = ops::SequenceInputs<Tensor>;
using Outputs = ops::SequenceOutputs<Tensor>;
using Options = ops::SequenceOptions;

Sizes sizes_of(const Inputs& inputs, const Options& options) {
  Sizes s = ntm::sizes_of(inputs.initial_memory, options.num_read_heads, options.num_write_heads,
                          2 * options.shift_range + 1);
  s.time = inputs.x.size(0), s.input_size = inputs.x.size(2);
  s.hidden_size = inputs.interface_weight.size(1);
  s.checkpoint_every = options.checkpoint_every;
  s.is_lstm = inputs.initial_hidden.defined();
  if (inputs.upper_weight.defined()) s.num_layers = 1 + inputs.upper_weight.size(0);
  s.has_lengths = inputs.lengths.defined();
  s.has_resets = inputs.resets.defined();
  s.projects_input = inputs.input_weight.defined();
  s.return_trace = options.return_trace;
  // Under autocast a model's input comes projected.
  s.bfloat16_products = options.bfloat16_products && !s.projects_input &&
                        inputs.initial_memory.scalar_type() != at::kDouble &&
                        cpu::multiplies_in_bfloat16();
  return s;
}

double work_of(const Sizes& s) {
  return double(s.time) * s.batch * (double(s.weights_size()) + step_work(s));
}

template <typename V>
const V* data_of(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<V>() : nullptr;
}

Tensor contiguous_if(const Tensor& tensor) {
  return tensor.defined() ? tensor.contiguous() : tensor;
}

// Weights [inner, columns], each packed as the right factor of a product.
template <typename T>
New<T> packed(const cpu::Kernels<T>& kernels, const Sizes& s, int64_t count, int64_t inner,
              int64_t columns, const T* weights) {
  const int64_t size = kernels.packed_weight_size(s, columns, inner);
  const New<T> to{at::IntArrayRef(count * size)};
  for (int64_t i = 0; i < count; ++i) {
    kernels.pack_weight(s, columns, inner, weights + i * inner * columns, to + i * size);
  }
  return to;
}

// The transposes of weights [columns, inner], each packed as the right factor of a product.
template <typename T>
New<T> packed_transposed(const cpu::Kernels<T>& kernels, const Sizes& s, int64_t count,
                         int64_t columns, int64_t inner, const T* weights) {
  const int64_t size = kernels.packed_weight_size(s, columns, inner);
  const New<T> to{at::IntArrayRef(count * size)};
  for (int64_t i = 0; i < count; ++i) {
    const T* const weight = weights + i * columns * inner;
    kernels.pack_weight_transposed(s, columns, inner, 0, inner, weight, to + i * size);
  }
  return to;
}

// The weights of the first layer, packed transposed as one factor: its product then takes the input
// and what recurs at once.
template <typename T>
New<T> packed_gate_weight(const cpu::Kernels<T>& kernels, const Sizes& s,
                          const ops::SequenceInputs<Lifted<T>>& inputs) {
  const int64_t G = s.gate_size(), I = s.input_columns(), K = s.recurrent_size();
  const New<T> to{at::IntArrayRef(kernels.packed_weight_size(s, G, I + K))};
  if (I) kernels.pack_weight_transposed(s, G, I + K, 0, I, inputs.input_weight, to);
  kernels.pack_weight_transposed(s, G, I + K, I, K, inputs.recurrent_weight, to);
  return to;
}

// From the record of what a forward saves to the list that the op returns, and back.
template <typename T>
Tensors listed(const ops::SequenceSaved<New<T>>& saved) {
  Tensors list;
  ops::SequenceSaved<New<T>>(saved).each([&](const New<T>& one) {
    if (one.tensor.defined()) list.push_back(one.tensor);
  });
  return list;
}
ops::SequenceSaved<Tensor> restored(const Sizes& s, const Tensors& list) {
  auto next = list.begin();
  return ops::SequenceSaved<Tensor>::make(
      s, [&](const ops::Field& field) { return field.present ? *next++ : Tensor(); });
}

// A part of the state before each step, in two arrays: [B, size] at the first step and
// [T − 1, B, size] at those after. Without resets these are what the call started with and what the
// steps have returned; with resets they are copied into one array first.
template <typename T>
struct BeforeSteps {
  const T *first, *rest;
  New<T> copied;

  BeforeSteps(const cpu::SequenceBackward<T>& io, const Sizes& s, int64_t size, const T* initial,
              const T* following)
      : first(initial), rest(following) {
    if (!s.has_resets || size == 0) return;
    copied = New<T>({s.time * s.batch, size});
    T* to = copied;
    for (int64_t row = 0; row < s.time * s.batch; ++row, to += size) {
      const bool starts = row < s.batch || io.resets[row];
      const T* const from =
          starts ? initial + row % s.batch * size : following + (row - s.batch) * size;
      std::copy_n(from, size, to);
    }
    first = copied, rest = copied + s.batch * size;
  }
};

// The gradients of the weights and bias of the controller's first layer, from what it has seen of
// the state before each step.
template <typename T>
cpu::WeightGradient<T> first_layer_gradient(const Sizes& s, const cpu::SequenceBackward<T>& io,
                                            const BeforeSteps<T>& read_vectors,
                                            const BeforeSteps<T>& hidden) {
  const int64_t B = s.batch, K = s.recurrent_size(), reads = s.read_size(), I = s.input_columns();
  T* const d_recurrent = io.d_inputs.recurrent_weight;
  return {.count = s.time * B,
          .rows = s.gate_size(),
          .first_count = B,
          .d = io.d_projected,
          .d_bias = io.d_inputs.input_bias,
          .parts = {{reads, read_vectors.first, read_vectors.rest, d_recurrent, K},
                    {K - reads, hidden.first, hidden.rest, d_recurrent + reads, K},
                    {I, io.inputs.x, io.inputs.x + B * I, io.d_inputs.input_weight, I}}};
}

// The same of a layer above the first, which sees the layer below at the same step.
template <typename T>
cpu::WeightGradient<T> upper_layer_gradient(const Sizes& s, const cpu::SequenceBackward<T>& io,
                                            int64_t layer, const BeforeSteps<T>& own) {
  const int64_t B = s.batch, C = s.hidden_size, G = s.gate_size(), J = s.upper_size(),
                upper = layer - 1;
  const T* const below = cpu::hidden_of(s, upper, io.outputs.hidden, io.saved.lower_hidden);
  T* const d_weight = io.d_inputs.upper_weight + upper * G * J;
  return {.count = s.time * B,
          .rows = G,
          .first_count = B,
          .d = io.d_upper_gates + upper * s.time * B * G,
          .d_bias = io.d_inputs.upper_bias + upper * G,
          .parts = {{C, below, below + B * C, d_weight, J},
                    {J - C, own.first, own.rest, d_weight + C, J}}};
}

template <typename T>
cpu::WeightGradient<T> interface_gradient(const Sizes& s, const cpu::SequenceBackward<T>& io) {
  const int64_t C = s.hidden_size;
  return {.count = s.time * s.batch,
          .rows = s.interface_size(),
          .first_count = 0,
          .d = io.d_interface,
          .d_bias = io.d_inputs.interface_bias,
          .parts = {{C, nullptr, io.outputs.hidden, io.d_inputs.interface_weight, C}}};
}

template <typename T>
void differentiate(const cpu::WeightGradient<T>& gradient, double work) {
  const cpu::Kernels<T>& kernels = cpu::isa().kernels<T>();
  parallel(kernels.weight_gradient_blocks(gradient), work,
           [&](int64_t begin, int64_t end) { kernels.weight_gradient(gradient, begin, end); });
}

// The gradients of all weights and biases, once those of all steps are there.
template <typename T>
void differentiate_weights(const Sizes& s, const cpu::SequenceBackward<T>& io) {
  const int64_t C = s.hidden_size;
  const auto hidden = [&](int64_t layer) {
    const T* const initial = io.inputs.initial_hidden;
    return BeforeSteps<T>(io, s, s.is_lstm ? C : 0,
                          initial ? initial + layer * s.batch * C : nullptr,
                          cpu::hidden_of(s, layer, io.outputs.hidden, io.saved.lower_hidden));
  };
  const BeforeSteps<T> read_vectors(io, s, s.read_size(), io.inputs.initial_read_vectors,
                                    io.outputs.read_vectors);
  differentiate(first_layer_gradient(s, io, read_vectors, hidden(0)), work_of(s));
  for (int64_t layer = 1; layer < s.num_layers; ++layer) {
    differentiate(upper_layer_gradient(s, io, layer, hidden(layer)), work_of(s));
  }
  differentiate(interface_gradient(s, io), work_of(s));
}

// The gradient of an input that was projected here; rounded once, after the product.
Tensor differentiate_input(const Tensor& d_projected, const Inputs& inputs) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const Tensor weight = inputs.input_weight.to(d_projected.scalar_type());
  return at::matmul(d_projected, weight).to(inputs.x.scalar_type());
}

}  // namespace

template <>
Sizes sizes<ops::Sequence>(const Inputs& inputs, const Options& options) {
  return sizes_of(inputs, options);
}

template <>
Result<ops::Sequence> forward<ops::Sequence>(const Inputs& inputs, const Options& options,
                                             bool save_for_backward) {
  const Sizes s = sizes_of(inputs, options);
  return in_arithmetic_of(inputs.initial_memory, [&](auto zero) -> Result<ops::Sequence> {
    using T = decltype(zero);
    const cpu::Kernels<T>& kernels = cpu::isa().kernels<T>();
    const Dtypes dtypes(inputs);
    const auto from = lifted<T>(inputs);
    const New<T> gate_weight = packed_gate_weight(kernels, s, from);
    const New<T> upper_gate_weight = packed_transposed<T>(
        kernels, s, s.num_upper_layers(), s.gate_size(), s.upper_size(), from.upper_weight);
    const New<T> interface_weight = packed_transposed<T>(kernels, s, 1, s.interface_size(),
                                                         s.hidden_size, from.interface_weight);
    const Tensor lengths = contiguous_if(inputs.lengths), resets = contiguous_if(inputs.resets);
    const auto to = allocate<T, ops::SequenceOutputs>(s, dtypes);
    const auto saved = save_for_backward ? allocate<T, ops::SequenceSaved>(s, dtypes)
                                         : ops::SequenceSaved<New<T>>{};
    run(kernels.sequence, s, work_of(s),
        cpu::SequenceForward<T>{.inputs = pointers<const T*>(from),
                                .gate_weight = gate_weight,
                                .upper_gate_weight = upper_gate_weight,
                                .interface_weight = interface_weight,
                                .lengths = data_of<int64_t>(lengths),
                                .resets = data_of<bool>(resets),
                                .outputs = pointers<T*>(to),
                                .saved = pointers<T*>(saved)});
    return {results(to), listed(saved)};
  });
}

template <>
Inputs backward<ops::Sequence>(const Outputs& grads, const Inputs& inputs, const Outputs& outputs,
                               const Tensors& saved, const Options& options,
                               const ops::SequenceInputs<bool>& wanted) {
  const Sizes s = sizes_of(inputs, options);
  return in_arithmetic_of(inputs.initial_memory, [&](auto zero) -> Inputs {
    using T = decltype(zero);
    const cpu::Kernels<T>& kernels = cpu::isa().kernels<T>();
    const auto from = lifted<T>(inputs);
    const auto kept = lifted<T>(outputs);
    const auto given = lifted<T>(grads);
    const auto left = lifted<T>(restored(s, saved));
    const New<T> recurrent_weight =
        packed<T>(kernels, s, 1, s.gate_size(), s.recurrent_size(), from.recurrent_weight);
    const New<T> upper_weight = packed<T>(kernels, s, s.num_upper_layers(), s.gate_size(),
                                          s.upper_size(), from.upper_weight);
    const New<T> interface_weight =
        packed<T>(kernels, s, 1, s.interface_size(), s.hidden_size, from.interface_weight);
    const Tensor lengths = contiguous_if(inputs.lengths), resets = contiguous_if(inputs.resets);
    auto to = allocate<T, ops::SequenceInputs>(s, Dtypes(inputs));
    const New<T> d_projected({s.time, s.batch, s.gate_size()}, to.x.wanted);
    const New<T> d_upper_gates({s.num_upper_layers(), s.time, s.batch, s.gate_size()});
    const New<T> d_interface({s.time, s.batch, s.interface_size()});
    // Lengths have no gradient. That of x is d_projected, if x came projected, or follows from it.
    to.lengths = to.resets = to.x = New<T>();
    const cpu::SequenceBackward<T> io{.inputs = pointers<const T*>(from),
                                      .recurrent_weight = recurrent_weight,
                                      .upper_weight = upper_weight,
                                      .interface_weight = interface_weight,
                                      .lengths = data_of<int64_t>(lengths),
                                      .resets = data_of<bool>(resets),
                                      .outputs = pointers<const T*>(kept),
                                      .saved = pointers<const T*>(left),
                                      .grads = pointers<const T*>(given),
                                      .d_projected = d_projected,
                                      .d_upper_gates = d_upper_gates,
                                      .d_interface = d_interface,
                                      .d_inputs = pointers<T*>(to)};
    run(kernels.sequence_backward, s, 2 * work_of(s), io);
    differentiate_weights(s, io);
    Inputs found = results(to);
    if (!s.projects_input) {
      found.x = d_projected.result();
    } else if (wanted.x) {
      found.x = differentiate_input(d_projected.tensor, inputs);
    }
    return found;
  });
}

}  // namespace ntm
