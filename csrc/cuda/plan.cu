#include "plan.cuh"

#include <stdio.h>

namespace ntm {

namespace {

// A thread for about four elements of the memory, so that small problems do not pay for idle warps.
int threads_for(const NtmSizes& sizes) {
  const int64_t elements = static_cast<int64_t>(sizes.memory_size) * sizes.word_size;
  int threads = 2 * kWarp;
  while (threads < kMaxThreads && elements > 4 * threads) threads *= 2;
  return threads;
}

template <typename Space>
int64_t bytes_of(const Sizes& sizes, int tile_rows, int warps) {
  Arena arena(nullptr);
  const Space counted(arena, sizes, tile_rows, warps);
  (void)counted;
  return arena.used;
}

template <typename A>
int64_t space_bytes(bool backward, const Sizes& sizes, int tile_rows, int warps) {
  return backward ? bytes_of<BackwardSpace<A>>(sizes, tile_rows, warps)
                  : bytes_of<ForwardSpace<A>>(sizes, tile_rows, warps);
}

}  // namespace

NtmPlan plan_of(int op, bool backward, bool is_double, const NtmSizes& sizes, int shared_limit) {
  NtmPlan plan = {};
  plan.threads = threads_for(sizes);
  plan.tile_rows = sizes.memory_size;
  const int warps = plan.threads / kWarp;
  const Sizes shape(sizes);
  plan.shared_bytes =
      is_double ? space_bytes<double>(backward, shape, plan.tile_rows, warps)
                : space_bytes<float>(backward, shape, plan.tile_rows, warps);
  if (plan.shared_bytes > shared_limit)
    snprintf(plan.why_not, sizeof plan.why_not,
             "one sequence takes %lld bytes of shared memory, a block has %d",
             static_cast<long long>(plan.shared_bytes), shared_limit);
  return plan;
}

}  // namespace ntm

extern "C" void ntm_cuda_plan(int op, int backward, int is_double, const NtmSizes* sizes,
                              int shared_limit, NtmPlan* plan) {
  *plan = ntm::plan_of(op, backward != 0, is_double != 0, *sizes, shared_limit);
}

extern "C" int ntm_cuda_shared_limit() { return ntm::shared_limit(); }

extern "C" const char* ntm_cuda_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

extern "C" int64_t ntm_cuda_struct_bytes(int op) {
  switch (op) {
    case NTM_ADDRESS: return sizeof(NtmAddressParams);
    case NTM_READ: return sizeof(NtmReadParams);
    case NTM_WRITE: return sizeof(NtmWriteParams);
    case NTM_STEP: return sizeof(NtmStepParams);
    default: return sizeof(NtmSequenceParams);
  }
}
