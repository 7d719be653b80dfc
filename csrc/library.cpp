// Registers torch.ops.ntm.cpu_…: the ops, as `ntm_kernels.ops.call` calls them, and the few other
// functions of the compiled library. The schemas come with the records.
#include <torch/library.h>

#include "derivative.h"
#include "kernels.h"

// The torch that this was compiled for. Python looks for it in the file, before it loads the
// library: with another torch that may crash.
extern "C" __attribute__((used, visibility("default"))) const char ntm_cpu_torch[] =
    "ntm_kernels: compiled for torch " NTM_TORCH_VERSION;

namespace ntm {
namespace {

// Reads the arguments of an op from its stack, first to last.
class Reader {
 public:
  Reader(const torch::jit::Stack& stack, size_t count) : stack_(stack), at_(stack.size() - count) {}

  Tensor tensor() {
    const c10::IValue& value = stack_[at_++];
    return value.isNone() ? Tensor() : value.toTensor();
  }
  template <typename Record>
  Record tensors() {
    return Record::from([&] { return tensor(); });
  }
  // Only the tensors whose flag is set are on the stack.
  template <typename Record>
  Record tensors(const bool* flags) {
    return Record::from([&] { return *flags++ ? tensor() : Tensor(); });
  }
  template <typename Options>
  Options options() {
    Options all;
    all.each([&](auto& option) {
      if constexpr (std::is_same_v<std::decay_t<decltype(option)>, bool>) {
        option = stack_[at_++].toBool();
      } else {
        option = stack_[at_++].toInt();
      }
    });
    return all;
  }
  bool flag() { return stack_[at_++].toBool(); }
  Tensors list() { return stack_[at_++].toTensorVector(); }
  c10::List<bool> flags() { return stack_[at_++].toBoolList(); }

 private:
  const torch::jit::Stack& stack_;
  size_t at_;
};

template <typename Op>
struct Call {
  typename Op::template Inputs<Tensor> inputs;
  typename Op::Options options;
  bool save_for_backward;

  static constexpr size_t count = Op::template Inputs<Tensor>::count + Op::Options::count + 1;

  static Call read(const torch::jit::Stack& stack) {
    Reader from(stack, count);
    auto inputs = from.tensors<typename Op::template Inputs<Tensor>>();
    auto options = from.options<typename Op::Options>();
    return {std::move(inputs), options, from.flag()};
  }
};

// Replaces the arguments on the stack by the outputs and the list of saved tensors. An output that
// is not there is an undefined tensor, which is None in Python.
template <typename Op>
void answer(torch::jit::Stack& stack, Result<Op> result) {
  torch::jit::drop(stack, Call<Op>::count);
  result.outputs.each([&](Tensor& output) { stack.emplace_back(std::move(output)); });
  stack.emplace_back(std::move(result.saved));
}

template <typename Op>
void forward_boxed(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  const auto call = Call<Op>::read(*stack);
  answer<Op>(*stack, forward<Op>(call.inputs, call.options, call.save_for_backward));
}

template <typename Op>
void recorded_boxed(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  auto call = Call<Op>::read(*stack);
  bool needs_grad = false;
  call.inputs.each(
      [&](const Tensor& tensor) { needs_grad |= tensor.defined() && tensor.requires_grad(); });
  if (!needs_grad || !at::GradMode::is_enabled()) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return answer<Op>(*stack, forward<Op>(call.inputs, call.options, call.save_for_backward));
  }
  Tensors tensors;
  tensors.reserve(Op::template Inputs<Tensor>::count);
  call.inputs.each([&](const Tensor& tensor) {
    if (tensor.defined()) tensors.push_back(tensor);
  });
  const variable_list there = Derivative<Op>::apply(
      at::TensorList(tensors),
      call.inputs.template map<bool>([](const Tensor& tensor) { return tensor.defined(); }),
      call.options);
  auto next = there.begin();
  answer<Op>(*stack, {Op::template Outputs<Tensor>::make(
                         sizes<Op>(call.inputs, call.options), [&](const ops::Field& field) {
                           return field.present ? *next++ : Tensor();
                         })});
}

template <typename Op>
void backward_boxed(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  using Inputs = typename Op::template Inputs<Tensor>;
  using Outputs = typename Op::template Outputs<Tensor>;
  const auto counted = [](const bool* flags, size_t n) {
    return std::count(flags, flags + n, true);
  };
  const size_t count = counted(Outputs::differentiable, Outputs::count) + Inputs::count +
                       counted(Outputs::kept, Outputs::count) + 1 + Op::Options::count + 1;
  Reader from(*stack, count);
  const auto grads = from.tensors<Outputs>(Outputs::differentiable);
  const auto inputs = from.tensors<Inputs>();
  const auto outputs = from.tensors<Outputs>(Outputs::kept);
  const Tensors saved = from.list();
  const auto options = from.options<typename Op::Options>();
  const c10::List<bool> flags = from.flags();
  size_t index = 0;
  const bool* differentiable = Inputs::differentiable;
  const auto wanted = Op::template Inputs<bool>::from(
      [&] { return *differentiable++ ? bool(flags[index++]) : false; });
  const Inputs found = backward<Op>(grads, inputs, outputs, saved, options, wanted);
  torch::jit::drop(*stack, count);
  with_flags(found, Inputs::differentiable, [&](const Tensor& gradient, bool is_result) {
    if (is_result) stack->emplace_back(gradient);
  });
}

// All lists are as long as `parameters`, but the list of a state that is not kept is empty. All
// tensors are contiguous and of one dtype.
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

std::string records_digest() {
  return ops::kDigest;
}

int64_t released_bytes() {
  return static_cast<int64_t>(release_workspaces());
}

template <typename... Ops>
struct All {
  static void define(torch::Library& m) {
    (m.def(Ops::schema), ...), (m.def(Ops::backward_schema), ...);
  }

  template <void (*Boxed)(const c10::OperatorHandle&, torch::jit::Stack*)>
  static torch::CppFunction boxed() {
    return torch::CppFunction::makeFromBoxedFunction<Boxed>();
  }
  static void compute(torch::Library& m) {
    (m.impl(name<Ops>("").c_str(), boxed<&forward_boxed<Ops>>()), ...);
    (m.impl(name<Ops>("_backward").c_str(), boxed<&backward_boxed<Ops>>()), ...);
  }
  static void record(torch::Library& m) {
    (m.impl(name<Ops>("").c_str(), boxed<&recorded_boxed<Ops>>()), ...);
  }

 private:
  template <typename Op>
  static std::string name(const char* ending) {
    return std::string("cpu_") + Op::name + ending;
  }
};

using Ops = ops::Every<All>;

TORCH_LIBRARY_FRAGMENT(ntm, m) {
  Ops::define(m);
  m.def("cpu_isa() -> str", isa_name);
  m.def("cpu_records() -> str", records_digest);
  m.def("cpu_multiplies_in_bfloat16() -> bool", cpu::multiplies_in_bfloat16);
  m.def("cpu_release_workspaces() -> int", released_bytes);
  m.def(
      "cpu_graves_rmsprop_(Tensor(a!)[] parameters, Tensor[] grads, Tensor(b!)[] square_avgs, "
      "Tensor(c!)[] grad_avgs, Tensor(d!)[] deltas, float lr, float decay, float momentum, "
      "float eps) -> ()");
}

TORCH_LIBRARY_IMPL(ntm, CPU, m) {
  Ops::compute(m);
  m.impl("cpu_graves_rmsprop_", graves_rmsprop);
}

TORCH_LIBRARY_IMPL(ntm, AutogradCPU, m) {
  Ops::record(m);
}

}  // namespace
}  // namespace ntm
