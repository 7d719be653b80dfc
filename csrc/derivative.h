// The derivative of an op for eager calls, which come straight from `ntm_kernels.ops.call`. All
// other calls take the one in Python (ntm_kernels/ops/library.py), derived from the same records.
// For a small call that one would cost a good part of the time.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <string>

#include "ops.h"

namespace ntm {

using torch::autograd::variable_list;

// Calls f(value, flag) for each value of `record` and each flag of `flags`, in order.
template <typename Record>
void with_flags(Record record, const bool* flags, const auto& f) {
  record.each([&](auto& value) { f(value, *flags++); });
}

template <typename Op>
struct Derivative : torch::autograd::Function<Derivative<Op>> {
  using Inputs = typename Op::template Inputs<Tensor>;
  using Outputs = typename Op::template Outputs<Tensor>;
  using Options = typename Op::Options;

  // Which inputs are there. An autograd function is not given undefined tensors.
  using Present = typename Op::template Inputs<bool>;

  // `tensors` are the inputs that are there, in order; returned are the outputs that are there.
  static variable_list forward(torch::autograd::AutogradContext* ctx, at::TensorList tensors,
                               const Present& present, Options options) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto next = tensors.begin();
    const Inputs inputs =
        present.template map<Tensor>([&](bool is_there) { return is_there ? *next++ : Tensor(); });
    Result<Op> result = ntm::forward<Op>(inputs, options, true);
    variable_list kept, outputs, not_differentiable;
    kept.reserve(Inputs::count + Outputs::count + result.saved.size());
    outputs.reserve(Outputs::count);
    Inputs(inputs).each([&](const Tensor& input) { kept.push_back(input); });
    with_flags(result.outputs, Outputs::kept, [&](const Tensor& output, bool is_kept) {
      if (is_kept) kept.push_back(output);
      if (output.defined()) outputs.push_back(output);
    });
    with_flags(result.outputs, Outputs::differentiable, [&](const Tensor& output, bool flag) {
      if (output.defined() && !flag) not_differentiable.push_back(output);
    });
    kept.insert(kept.end(), result.saved.begin(), result.saved.end());
    std::vector<int64_t> numbers;
    numbers.reserve(Options::count);
    options.each([&](auto number) { numbers.push_back(number); });
    ctx->set_materialize_grads(false);
    ctx->saved_data["options"] = std::move(numbers);
    ctx->mark_non_differentiable(not_differentiable);
    ctx->save_for_backward(std::move(kept));
    return outputs;
  }

  static variable_list backward(torch::autograd::AutogradContext* ctx, variable_list given) {
    const variable_list kept = ctx->get_saved_variables();
    auto next = kept.begin();
    Inputs inputs = Inputs::from([&] { return *next++; });
    size_t count = 0;
    inputs.each([&](const Tensor& input) { count += input.defined(); });
    variable_list of_arguments(count + 2);
    if (std::none_of(given.begin(), given.end(), [](const Tensor& g) { return g.defined(); })) {
      return of_arguments;
    }
    require_plain(given);
    const bool* is_kept = Outputs::kept;
    const auto outputs = Outputs::from([&] { return *is_kept++ ? *next++ : Tensor(); });
    const Tensors saved(next, kept.end());
    const auto options = options_of(ctx->saved_data["options"].toIntVector());
    auto grad = given.begin();
    const auto grads = Outputs::make(sizes<Op>(inputs, options), [&](const ops::Field& field) {
      return field.present ? *grad++ : Tensor();
    });
    // Each is asked once, since autograd has to look up every answer.
    std::array<bool, Inputs::count> flags{};
    size_t index = 0, edge = 0;
    inputs.each([&](const Tensor& input) {
      flags[index++] = input.defined() && ctx->needs_input_grad(edge++);
    });
    auto flag = flags.begin();
    const auto wanted = Op::template Inputs<bool>::from([&] { return *flag++; });
    Inputs found = at::GradMode::is_enabled()
                       ? recorded(grads, inputs, outputs, saved, options, wanted)
                       : ntm::backward<Op>(grads, inputs, outputs, saved, options, wanted);
    auto to = of_arguments.begin();
    index = 0;
    found.each([&](Tensor& gradient) {
      if (flags[index]) *to = std::move(gradient);
      to += kept[index++].defined();
    });
    return of_arguments;
  }

 private:
  static Options options_of(const std::vector<int64_t>& numbers) {
    Options options;
    auto number = numbers.begin();
    options.each([&](auto& option) { option = *number++; });
    return options;
  }

  // Refuses what `transform_of_grads` in ntm_kernels/checks.py sees.
  static void require_plain(const variable_list& grads) {
    for (const Tensor& grad : grads) {
      if (!grad.defined()) continue;
      TORCH_CHECK_TYPE(grad.layout() == at::kStrided, Op::name,
                       ": the gradient of an output must be a dense tensor, got one of layout ",
                       grad.layout(), "; convert it with to_dense()");
      const char* transform = nullptr;
      if (!grad.has_storage()) {
        transform = "batched gradients (is_grads_batched, vectorize, torch.func of a gradient)";
      } else if (grad._fw_grad(0).defined()) {  // below, a tangent would be lost
        transform = "forward-mode AD of a gradient";
      }
      TORCH_CHECK_NOT_IMPLEMENTED(transform == nullptr, Op::name, ": ", transform,
                                  ": not implemented on the backend 'cpu'; use backend='torch', "
                                  "which has every derivative, or ask for the gradients one by "
                                  "one, by an ordinary backward");
    }
  }

  // The gradients by the backward op of torch.ops.ntm, for `create_graph`. That op has a derivative
  // of its own, which raises: a second derivative is refused and not silently wrong.
  static Inputs recorded(const Outputs& grads, const Inputs& inputs, const Outputs& outputs,
                         const Tensors& saved, Options options,
                         const typename Op::template Inputs<bool>& wanted) {
    torch::jit::Stack stack;
    const auto push = [&](const Tensor& tensor) {
      stack.push_back(tensor.defined() ? c10::IValue(tensor) : c10::IValue());
    };
    with_flags(grads, Outputs::differentiable, [&](const Tensor& grad, bool differentiable) {
      if (differentiable) push(grad);
    });
    Inputs(inputs).each(push);
    with_flags(outputs, Outputs::kept, [&](const Tensor& output, bool is_kept) {
      if (is_kept) push(output);
    });
    stack.emplace_back(saved);
    options.each([&](auto option) { stack.emplace_back(option); });
    c10::List<bool> flags;
    with_flags(wanted, Inputs::differentiable, [&](bool flag, bool differentiable) {
      if (differentiable) flags.push_back(flag);
    });
    stack.emplace_back(flags);
    stack.emplace_back("cpu");
    const std::string name = std::string("ntm::") + Op::name + "_backward";
    c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "").callBoxed(stack);
    auto next = stack.begin();
    const bool* differentiable = Inputs::differentiable;
    return Inputs::from([&] { return *differentiable++ ? (next++)->toTensor() : Tensor(); });
  }
};

}  // namespace ntm
