"""``address``: the whole chain in one launch, ``csrc/cuda/address.cu``."""

from __future__ import annotations

from ntm_kernels.backends.cuda.run import CudaKernel, SavedWeightings
from ntm_kernels.ops import ADDRESS, AddressInputs, AddressOutputs


class Address(CudaKernel[AddressInputs, AddressOutputs, SavedWeightings]):
    """``address`` by ``ntm_cuda_address_forward`` and ``ntm_cuda_address_backward``."""

    op = ADDRESS
    saved = SavedWeightings
