"""``read``: ``csrc/cuda/read_write.cu``."""

from __future__ import annotations

from ntm_kernels.backends.cuda.run import CudaKernel
from ntm_kernels.ops import READ, NothingSaved, ReadInputs, ReadOutputs


class Read(CudaKernel[ReadInputs, ReadOutputs, NothingSaved]):
    """``read`` by ``ntm_cuda_read_forward`` and ``ntm_cuda_read_backward``."""

    op = READ
