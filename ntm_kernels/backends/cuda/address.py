"""``address``: the whole chain in one launch, ``csrc/cuda/address.cu``."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from torch import Tensor

from ntm_kernels.backends.cuda.run import CudaKernel
from ntm_kernels.ops import ADDRESS, AddressInputs, AddressOutputs, Field, record


@record
class Saved(NamedTuple):
    """The weightings of the outputs before they are rounded to their dtype."""

    weightings: Annotated[Tensor, Field("B H N")]


class Address(CudaKernel[AddressInputs, AddressOutputs, Saved]):
    """``address`` by ``ntm_cuda_address_forward`` and ``ntm_cuda_address_backward``."""

    op = ADDRESS
    saved = Saved
