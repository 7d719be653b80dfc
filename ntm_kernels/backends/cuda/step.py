"""``step``: activate, address, read and write in one launch, ``csrc/cuda/step.cu``."""

from __future__ import annotations

from ntm_kernels.backends.cuda.run import CudaKernel, SavedWeightings
from ntm_kernels.ops import STEP, StepInputs, StepOutputs


class Step(CudaKernel[StepInputs, StepOutputs, SavedWeightings]):
    """``step`` by ``ntm_cuda_step_forward`` and ``ntm_cuda_step_backward``."""

    op = STEP
    saved = SavedWeightings
