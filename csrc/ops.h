// The ops on a CPU as functions from records of tensors to records of tensors. Arguments have been
// checked in Python.
#pragma once

#include "tensors.h"

namespace ntm {

// What a forward returns: its outputs, and what the backward needs beyond the inputs and the
// outputs that are kept.
template <typename Op>
struct Result {
  typename Op::template Outputs<Tensor> outputs;
  Tensors saved = {};
};

template <typename Op>
Sizes sizes(const typename Op::template Inputs<Tensor>& inputs,
            const typename Op::Options& options);

template <typename Op>
Result<Op> forward(const typename Op::template Inputs<Tensor>& inputs,
                   const typename Op::Options& options, bool save_for_backward);

// The gradient of each input. Only those `outputs` are there that the op keeps. A gradient that is
// not there counts as 0. The gradient of an input that is not wanted may be left out.
template <typename Op>
typename Op::template Inputs<Tensor> backward(const typename Op::template Outputs<Tensor>& grads,
                                              const typename Op::template Inputs<Tensor>& inputs,
                                              const typename Op::template Outputs<Tensor>& outputs,
                                              const Tensors& saved,
                                              const typename Op::Options& options,
                                              const typename Op::template Inputs<bool>& wanted);

}  // namespace ntm
