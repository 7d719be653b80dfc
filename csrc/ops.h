// The kernels as functions of tensors: what torch.ops.ntm_cpu runs on a CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace ntm {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using MaybeTensor = std::optional<Tensor>;

Tensors step(const Tensor& memory, const Tensor& interface, const Tensor& previous_weightings,
             int64_t num_read_heads, int64_t num_write_heads, int64_t shift_range);

Tensors step_backward(const MaybeTensor& d_read_vectors, const MaybeTensor& d_written,
                      const MaybeTensor& d_weightings, const Tensor& memory,
                      const Tensor& interface, const Tensor& previous_weightings,
                      int64_t num_read_heads, int64_t num_write_heads, int64_t shift_range);

// The results, and after those what the backward needs.
Tensors sequence(const Tensor& input, const Tensor& recurrent_weight,
                 const Tensor& interface_weight, const Tensor& interface_bias, const Tensor& memory,
                 const Tensor& weightings, const Tensor& read_vectors, const MaybeTensor& hidden,
                 const MaybeTensor& cell, const MaybeTensor& lengths,
                 const MaybeTensor& input_weight, const MaybeTensor& input_bias,
                 int64_t num_read_heads, int64_t num_write_heads, int64_t shift_range,
                 int64_t checkpoint_every, bool save_for_backward, bool return_trace);

// The gradient of the projected input comes first, those of its weight and bias last.
Tensors sequence_backward(const std::vector<MaybeTensor>& grads, const Tensor& input,
                          const Tensor& recurrent_weight, const Tensor& interface_weight,
                          const Tensor& interface_bias, const Tensor& memory,
                          const Tensor& weightings, const Tensor& read_vectors,
                          const MaybeTensor& hidden, const MaybeTensor& cell,
                          const MaybeTensor& lengths, const MaybeTensor& input_weight,
                          const MaybeTensor& input_bias, const Tensor& out_hidden,
                          const Tensor& out_read_vectors, const Tensors& saved,
                          int64_t num_read_heads, int64_t num_write_heads, int64_t shift_range,
                          int64_t checkpoint_every);

}  // namespace ntm
