// Which way a call is run, from its sizes and the shared memory of a block: the one table of
// limits.
#pragma once
#include "launch.cuh"
#include "on_chip.cuh"

namespace ntm {

NtmPlan plan_of(int op, bool backward, bool is_double, const NtmSizes& sizes, int shared_limit);

// Runs the kernel of the arithmetic dtype with a block for each sequence.
template <typename Params>
int dispatch(const Params* params, const NtmPlan& plan, void* stream, Kernel<Params> single,
             Kernel<Params> twice, int64_t memory_dtype) {
  if (plan.why_not[0] != 0) return cudaErrorInvalidConfiguration;
  if (params->sizes.batch == 0) return cudaSuccess;
  return launch(memory_dtype == NTM_FLOAT64 ? twice : single, *params, plan,
                dim3(params->sizes.batch), stream);
}

}  // namespace ntm
