// The derivatives of torch.ops.ntm_cpu.step and sequence, for calls that come straight from
// `ntm_kernels.functional`. A call through torch.ops.ntm has its derivative from there, in Python,
// which takes a good part of the time of a small one.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/matmul.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "ops.h"

namespace ntm {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

MaybeTensor maybe(const Tensor& tensor) {
  return tensor.defined() ? MaybeTensor(tensor) : std::nullopt;
}
Tensor or_undefined(const MaybeTensor& tensor) {
  return tensor.value_or(Tensor());
}
std::vector<MaybeTensor> maybe(const Tensor* tensors, size_t count) {
  std::vector<MaybeTensor> all;
  for (size_t i = 0; i < count; ++i) all.push_back(maybe(tensors[i]));
  return all;
}

bool none_defined(const variable_list& grads) {
  return std::none_of(grads.begin(), grads.end(), [](const auto& grad) { return grad.defined(); });
}

void require_plain(const variable_list& grads) {
  for (const Tensor& grad : grads) {
    TORCH_CHECK_NOT_IMPLEMENTED(!grad.defined() || grad.has_storage(),
                                "batched gradients (is_grads_batched, vectorize) are not "
                                "implemented; the functions of ntm_kernels.reference have them");
  }
}

// The backward op of torch.ops.ntm: its own derivative, which `create_graph` asks for, raises.
variable_list recorded(const char* backward, torch::jit::Stack stack) {
  c10::Dispatcher::singleton().findSchemaOrThrow(backward, "").callBoxed(stack);
  variable_list results;
  for (const auto& result : stack) results.push_back(result.toTensor());
  return results;
}

struct Step : Function<Step> {
  static variable_list forward(AutogradContext* ctx, const Tensor& memory, const Tensor& interface,
                               const Tensor& previous_weightings, int64_t num_read_heads,
                               int64_t num_write_heads, int64_t shift_range) {
    const at::AutoDispatchBelowADInplaceOrView below;
    variable_list results =
        step(memory, interface, previous_weightings, num_read_heads, num_write_heads, shift_range);
    ctx->set_materialize_grads(false);
    ctx->saved_data["numbers"] = std::vector<int64_t>{num_read_heads, num_write_heads, shift_range};
    ctx->save_for_backward({memory, interface, previous_weightings, results[2]});
    return results;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (none_defined(grads)) return variable_list(6);
    require_plain(grads);
    const variable_list kept = ctx->get_saved_variables();
    const auto numbers = ctx->saved_data["numbers"].toIntVector();
    variable_list results;
    if (at::GradMode::is_enabled()) {
      torch::jit::Stack stack;
      for (const Tensor& grad : grads) stack.emplace_back(maybe(grad));
      for (const Tensor& tensor : kept) stack.emplace_back(tensor);
      stack.emplace_back(Tensors());
      for (const int64_t number : numbers) stack.emplace_back(number);
      stack.emplace_back("cpu");
      results = recorded("ntm::step_backward", std::move(stack));
    } else {
      results = step_backward(maybe(grads[0]), maybe(grads[1]), maybe(grads[2]), kept[0], kept[1],
                              kept[2], numbers[0], numbers[1], numbers[2]);
    }
    results.resize(6);
    return results;
  }
};

struct Sequence : Function<Sequence> {
  // What is saved: the twelve arguments that are tensors, two results, and what `sequence` adds.
  static constexpr size_t kArguments = 12, kResults = 9, kDifferentiable = 7;
  enum : size_t { kHidden = 7, kCell, kLengths, kInputWeight, kInputBias };

  static variable_list forward(AutogradContext* ctx, const Tensor& input,
                               const Tensor& recurrent_weight, const Tensor& interface_weight,
                               const Tensor& interface_bias, const Tensor& memory,
                               const Tensor& weightings, const Tensor& read_vectors,
                               const MaybeTensor& hidden, const MaybeTensor& cell,
                               const MaybeTensor& lengths, const MaybeTensor& input_weight,
                               const MaybeTensor& input_bias, int64_t num_read_heads,
                               int64_t num_write_heads, int64_t shift_range,
                               int64_t checkpoint_every, bool return_trace) {
    const at::AutoDispatchBelowADInplaceOrView below;
    variable_list results =
        sequence(input, recurrent_weight, interface_weight, interface_bias, memory, weightings,
                 read_vectors, hidden, cell, lengths, input_weight, input_bias, num_read_heads,
                 num_write_heads, shift_range, checkpoint_every, true, return_trace);
    variable_list kept{input,
                       recurrent_weight,
                       interface_weight,
                       interface_bias,
                       memory,
                       weightings,
                       read_vectors,
                       or_undefined(hidden),
                       or_undefined(cell),
                       or_undefined(lengths),
                       or_undefined(input_weight),
                       or_undefined(input_bias),
                       results[0],
                       results[1]};
    kept.insert(kept.end(), results.begin() + kResults, results.end());
    results.resize(kResults);
    ctx->set_materialize_grads(false);
    ctx->saved_data["numbers"] =
        std::vector<int64_t>{num_read_heads, num_write_heads, shift_range, checkpoint_every};
    ctx->mark_non_differentiable({results[7], results[8]});
    ctx->save_for_backward(std::move(kept));
    return results;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list of_arguments(kArguments + 5);
    grads.resize(kDifferentiable);
    if (none_defined(grads)) return of_arguments;
    require_plain(grads);
    const variable_list kept = ctx->get_saved_variables();
    const Tensors saved(kept.begin() + kArguments + 2, kept.end());
    const auto numbers = ctx->saved_data["numbers"].toIntVector();
    const bool input_needs_grad = ctx->needs_input_grad(0);
    variable_list results;
    if (at::GradMode::is_enabled()) {
      torch::jit::Stack stack;
      for (const Tensor& grad : grads) stack.emplace_back(maybe(grad));
      for (size_t i = 0; i < kArguments + 2; ++i) stack.emplace_back(maybe(kept[i]));
      stack.emplace_back(saved);
      for (size_t i = 0; i < 3; ++i) stack.emplace_back(numbers[i]);
      stack.emplace_back(kept[kHidden].defined() ? "lstm" : "feedforward");
      stack.emplace_back(numbers[3]);
      stack.emplace_back(input_needs_grad);
      stack.emplace_back("cpu");
      results = recorded("ntm::sequence_backward", std::move(stack));
    } else {
      results = sequence_backward(
          maybe(grads.data(), kDifferentiable), kept[0], kept[1], kept[2], kept[3], kept[4],
          kept[5], kept[6], maybe(kept[kHidden]), maybe(kept[kCell]), maybe(kept[kLengths]),
          maybe(kept[kInputWeight]), maybe(kept[kInputBias]), kept[kArguments],
          kept[kArguments + 1], saved, numbers[0], numbers[1], numbers[2], numbers[3]);
      if (kept[kInputWeight].defined() && input_needs_grad) {
        const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
        const Tensor weight = kept[kInputWeight].to(results[0].scalar_type());
        results[0] = at::matmul(results[0], weight).to(kept[0].scalar_type());
      }
    }
    const auto set = [&](size_t argument, size_t result) {
      if (kept[argument].defined()) of_arguments[argument] = results[result];
    };
    for (size_t i = 0; i < kLengths; ++i) set(i, i);
    set(kInputWeight, 9), set(kInputBias, 10);
    if (!input_needs_grad) of_arguments[0] = Tensor();
    return of_arguments;
  }
};

template <typename... Given>
bool needs_grad(const Given&... given) {
  const auto one = [](const MaybeTensor& tensor) { return tensor && tensor->requires_grad(); };
  return at::GradMode::is_enabled() && (one(given) || ...);
}

Tensors step_recorded(const Tensor& memory, const Tensor& interface,
                      const Tensor& previous_weightings, int64_t num_read_heads,
                      int64_t num_write_heads, int64_t shift_range) {
  if (needs_grad(memory, interface, previous_weightings)) {
    return Step::apply(memory, interface, previous_weightings, num_read_heads, num_write_heads,
                       shift_range);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return step(memory, interface, previous_weightings, num_read_heads, num_write_heads, shift_range);
}

Tensors sequence_recorded(const Tensor& input, const Tensor& recurrent_weight,
                          const Tensor& interface_weight, const Tensor& interface_bias,
                          const Tensor& memory, const Tensor& weightings,
                          const Tensor& read_vectors, const MaybeTensor& hidden,
                          const MaybeTensor& cell, const MaybeTensor& lengths,
                          const MaybeTensor& input_weight, const MaybeTensor& input_bias,
                          int64_t num_read_heads, int64_t num_write_heads, int64_t shift_range,
                          int64_t checkpoint_every, bool save_for_backward, bool return_trace) {
  if (needs_grad(input, recurrent_weight, interface_weight, interface_bias, memory, weightings,
                 read_vectors, hidden, cell, input_weight, input_bias)) {
    return Sequence::apply(input, recurrent_weight, interface_weight, interface_bias, memory,
                           weightings, read_vectors, hidden, cell, lengths, input_weight,
                           input_bias, num_read_heads, num_write_heads, shift_range,
                           checkpoint_every, return_trace);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return sequence(input, recurrent_weight, interface_weight, interface_bias, memory, weightings,
                  read_vectors, hidden, cell, lengths, input_weight, input_bias, num_read_heads,
                  num_write_heads, shift_range, checkpoint_every, save_for_backward, return_trace);
}

TORCH_LIBRARY_IMPL(ntm_cpu, AutogradCPU, m) {
  m.impl("step", step_recorded);
  m.impl("sequence", sequence_recorded);
}

}  // namespace
}  // namespace ntm
