#include "plan.cuh"
extern "C" int ntm_cuda_sequence_forward(const NtmSequenceParams*, void*) { return 1; }
extern "C" int ntm_cuda_sequence_backward(const NtmSequenceParams*, void*) { return 1; }
