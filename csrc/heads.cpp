// `address`, `read`, `write` and `step` from records of tensors to records of tensors. Each is one
// kernel forward and one backward, so one function serves them all.
#include "kernels.h"
#include "ops.h"

namespace ntm {
namespace {

// For each op, the sizes of a call and its kernels.
template <typename Op>
struct Kernel;

template <>
struct Kernel<ops::Address> {
  static Sizes sizes(const ops::AddressInputs<Tensor>& inputs, const ops::AddressOptions&) {
    return sizes_of(inputs.memory, inputs.shift.size(1), 0, inputs.shift.size(2));
  }
  template <typename T>
  static constexpr auto forward = &cpu::Kernels<T>::address;
  template <typename T>
  static constexpr auto backward = &cpu::Kernels<T>::address_backward;
};

template <>
struct Kernel<ops::Read> {
  static Sizes sizes(const ops::ReadInputs<Tensor>& inputs, const ops::ReadOptions&) {
    return sizes_of(inputs.memory, inputs.weightings.size(1), 0, 1);
  }
  template <typename T>
  static constexpr auto forward = &cpu::Kernels<T>::read;
  template <typename T>
  static constexpr auto backward = &cpu::Kernels<T>::read_backward;
};

template <>
struct Kernel<ops::Write> {
  static Sizes sizes(const ops::WriteInputs<Tensor>& inputs, const ops::WriteOptions&) {
    return sizes_of(inputs.memory, 0, inputs.weightings.size(1), 1);
  }
  template <typename T>
  static constexpr auto forward = &cpu::Kernels<T>::write;
  template <typename T>
  static constexpr auto backward = &cpu::Kernels<T>::write_backward;
};

template <>
struct Kernel<ops::Step> {
  static Sizes sizes(const ops::StepInputs<Tensor>& inputs, const ops::StepOptions& options) {
    return sizes_of(inputs.memory, options.num_read_heads, options.num_write_heads,
                    2 * options.shift_range + 1);
  }
  template <typename T>
  static constexpr auto forward = &cpu::Kernels<T>::step;
  template <typename T>
  static constexpr auto backward = &cpu::Kernels<T>::step_backward;
};

}  // namespace

template <typename Op>
Sizes sizes(const typename Op::template Inputs<Tensor>& inputs,
            const typename Op::Options& options) {
  return Kernel<Op>::sizes(inputs, options);
}

template <typename Op>
Result<Op> forward(const typename Op::template Inputs<Tensor>& inputs,
                   const typename Op::Options& options, bool) {
  const Sizes s = Kernel<Op>::sizes(inputs, options);
  return in_arithmetic_of(inputs.memory, [&](auto zero) -> Result<Op> {
    using T = decltype(zero);
    const auto from = lifted<T>(inputs);
    const auto to = allocate<T, Op::template Outputs>(s, Dtypes(inputs));
    run(cpu::isa().kernels<T>().*Kernel<Op>::template forward<T>, s, s.batch * step_work(s),
        cpu::Forward<Op, T>{.inputs = pointers<const T*>(from), .outputs = pointers<T*>(to)});
    return {results(to)};
  });
}

template <typename Op>
typename Op::template Inputs<Tensor> backward(const typename Op::template Outputs<Tensor>& grads,
                                              const typename Op::template Inputs<Tensor>& inputs,
                                              const typename Op::template Outputs<Tensor>&,
                                              const Tensors&, const typename Op::Options& options,
                                              const typename Op::template Inputs<bool>&) {
  const Sizes s = Kernel<Op>::sizes(inputs, options);
  return in_arithmetic_of(inputs.memory, [&](auto zero) -> typename Op::template Inputs<Tensor> {
    using T = decltype(zero);
    const auto from = lifted<T>(inputs);
    const auto given = lifted<T>(grads);
    const auto to = allocate<T, Op::template Inputs>(s, Dtypes(inputs));
    run(cpu::isa().kernels<T>().*Kernel<Op>::template backward<T>, s, 3 * s.batch * step_work(s),
        cpu::Backward<Op, T>{.inputs = pointers<const T*>(from),
                             .grads = pointers<const T*>(given),
                             .d_inputs = pointers<T*>(to)});
    return results(to);
  });
}

#define NTM_INSTANTIATE(Op)                                                                       \
  template Sizes sizes<Op>(const Op::Inputs<Tensor>&, const Op::Options&);                        \
  template Result<Op> forward<Op>(const Op::Inputs<Tensor>&, const Op::Options&, bool);           \
  template Op::Inputs<Tensor> backward<Op>(const Op::Outputs<Tensor>&, const Op::Inputs<Tensor>&, \
                                           const Op::Outputs<Tensor>&, const Tensors&,            \
                                           const Op::Options&, const Op::Inputs<bool>&);

NTM_INSTANTIATE(ops::Address)
NTM_INSTANTIATE(ops::Read)
NTM_INSTANTIATE(ops::Write)
NTM_INSTANTIATE(ops::Step)

}  // namespace ntm
