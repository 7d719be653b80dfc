// How a call will be run. A plan follows from the sizes of the call and the shared memory that a
// block may have on the device, and from nothing else, so the host can make it without a GPU.
#pragma once
#include "launch.cuh"
#include "on_chip.cuh"

namespace ntm {

NtmPlan plan_of(int op, bool backward, bool is_double, const NtmSizes& sizes, int shared_limit);

// Launches the kernel for float or double, by the dtype of the memory, with a block for each
// sequence of the batch.
template <typename Params>
int dispatch(const Params* params, const NtmPlan& plan, void* stream, Kernel<Params> in_float,
             Kernel<Params> in_double, int64_t memory_dtype) {
  if (plan.why_not[0] != 0) return cudaErrorInvalidConfiguration;
  if (params->sizes.batch == 0) return cudaSuccess;
  return launch(memory_dtype == NTM_FLOAT64 ? in_double : in_float, *params, plan,
                dim3(params->sizes.batch), stream);
}

}  // namespace ntm
