"""``write``: ``csrc/cuda/read_write.cu``."""

from __future__ import annotations

from ntm_kernels.backends.cuda.run import CudaKernel
from ntm_kernels.ops import WRITE, NothingSaved, WriteInputs, WriteOutputs


class Write(CudaKernel[WriteInputs, WriteOutputs, NothingSaved]):
    """``write`` by ``ntm_cuda_write_forward`` and ``ntm_cuda_write_backward``."""

    op = WRITE
