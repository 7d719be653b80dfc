"""``write``: the memory after all write heads."""

from typing import Annotated, NamedTuple

from torch import Tensor

from ntm_kernels import reference
from ntm_kernels.ops.declare import Field, NoOptions, Op, record
from ntm_kernels.ops.sizes import Sizes


@record
class WriteInputs(NamedTuple):
    """Memory, and weightings, erase and add vectors of the heads that write it."""

    memory: Annotated[Tensor, Field("B N M", "memory")]
    weightings: Annotated[Tensor, Field("B H N", "weightings")]
    erase: Annotated[Tensor, Field("B H M", "head_parameters")]
    add: Annotated[Tensor, Field("B H M", "head_parameters")]


@record
class WriteOutputs(NamedTuple):
    """The memory after the write."""

    memory: Annotated[Tensor, Field("B N M", "memory")]


def sizes(inputs: WriteInputs, options: NoOptions) -> Sizes:
    return Sizes.of(inputs.memory, 0, num_write_heads=inputs.weightings.shape[1])


def equations(inputs: WriteInputs, sizes: Sizes) -> WriteOutputs:
    return WriteOutputs(reference.write(inputs.memory, inputs.weightings, inputs.erase, inputs.add))


WRITE = Op("write", WriteInputs, WriteOutputs, NoOptions, sizes, equations)
