// `address`, `read`, `write` and `step` from records of tensors to records of tensors. Each is one
// kernel forward and one backward, so one function serves them all.
#include "kernels.h"
#include "ops.h"

namespace ntm {
namespace {

// The sizes of a call of each op.
Sizes sizes_of(const ops::AddressInputs<Tensor>& inputs, const ops::AddressOptions&) {
  return ntm::sizes_of(inputs.memory, inputs.shift.size(1), 0, inputs.shift.size(2));
}
Sizes sizes_of(const ops::ReadInputs<Tensor>& inputs, const ops::ReadOptions&) {
  return ntm::sizes_of(inputs.memory, inputs.weightings.size(1), 0, 1);
}
Sizes sizes_of(const ops::WriteInputs<Tensor>& inputs, const ops::WriteOptions&) {
  return ntm::sizes_of(inputs.memory, 0, inputs.weightings.size(1), 1);
}
Sizes sizes_of(const ops::StepInputs<Tensor>& inputs, const ops::StepOptions& options) {
  return ntm::sizes_of(inputs.memory, options.num_read_heads, options.num_write_heads,
                       2 * options.shift_range + 1);
}

template <typename Op, typename T>
const cpu::OpKernels<Op, T>& kernels() {
  return cpu::isa().kernels<T>();
}

}  // namespace

template <typename Op>
Sizes sizes(const typename Op::template Inputs<Tensor>& inputs,
            const typename Op::Options& options) {
  return sizes_of(inputs, options);
}

template <typename Op>
Result<Op> forward(const typename Op::template Inputs<Tensor>& inputs,
                   const typename Op::Options& options, bool) {
  const Sizes s = sizes_of(inputs, options);
  return in_arithmetic_of(first_of(inputs), [&](auto zero) -> Result<Op> {
    using T = decltype(zero);
    const auto from = lifted<T>(inputs);
    const auto to = allocate<T, Op::template Outputs>(s, Dtypes(inputs));
    run(kernels<Op, T>().forward, s, s.batch * step_work(s),
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
  const Sizes s = sizes_of(inputs, options);
  return in_arithmetic_of(first_of(inputs), [&](auto zero) -> typename Op::template Inputs<Tensor> {
    using T = decltype(zero);
    const auto from = lifted<T>(inputs);
    const auto given = lifted<T>(grads);
    const auto to = allocate<T, Op::template Inputs>(s, Dtypes(inputs));
    run(kernels<Op, T>().backward, s, 3 * s.batch * step_work(s),
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
