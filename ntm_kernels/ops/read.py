"""``read``: the read vectors of all heads."""

from typing import Annotated, NamedTuple

from torch import Tensor

from ntm_kernels import reference
from ntm_kernels.ops.declare import Field, NoOptions, Op, record
from ntm_kernels.ops.sizes import Sizes


@record
class ReadInputs(NamedTuple):
    """Memory, and the weightings of the heads that read it."""

    memory: Annotated[Tensor, Field("B N M", "memory")]
    weightings: Annotated[Tensor, Field("B H N", "weightings")]


@record
class ReadOutputs(NamedTuple):
    """What each head reads."""

    read_vectors: Annotated[Tensor, Field("B H M", "memory")]


def sizes(inputs: ReadInputs, options: NoOptions) -> Sizes:
    return Sizes.of(inputs.memory, inputs.weightings.shape[1])


def equations(inputs: ReadInputs, sizes: Sizes) -> ReadOutputs:
    return ReadOutputs(reference.read(inputs.memory, inputs.weightings))


READ = Op("read", ReadInputs, ReadOutputs, NoOptions, sizes, equations)
