"""``step``: activate, address, read and write in one launch, ``csrc/cuda/step.cu``."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from torch import Tensor

from ntm_kernels.backends.cuda.run import CudaKernel
from ntm_kernels.ops import STEP, Field, StepInputs, StepOutputs, record


@record
class Saved(NamedTuple):
    """The weightings of the outputs before they are rounded to their dtype."""

    weightings: Annotated[Tensor, Field("B H N")]


class Step(CudaKernel[StepInputs, StepOutputs, Saved]):
    """``step`` by ``ntm_cuda_step_forward`` and ``ntm_cuda_step_backward``."""

    op = STEP
    saved = Saved
