"""``address``: the weightings of all heads from activated parameters."""

from typing import Annotated, NamedTuple

from torch import Tensor

from ntm_kernels import reference
from ntm_kernels.checks import Arguments
from ntm_kernels.ops.declare import Field, NoOptions, Op, check_record, record
from ntm_kernels.ops.sizes import Sizes


@record
class AddressInputs(NamedTuple):
    """Memory, activated parameters of all heads, and the weightings of the step before."""

    memory: Annotated[Tensor, Field("B N M", "memory")]
    key: Annotated[Tensor, Field("B H M", "head_parameters")]
    strength: Annotated[Tensor, Field("B H", "head_parameters")]
    gate: Annotated[Tensor, Field("B H", "head_parameters")]
    shift: Annotated[Tensor, Field("B H S", "head_parameters")]
    sharpening: Annotated[Tensor, Field("B H", "head_parameters")]
    previous_weightings: Annotated[Tensor, Field("B H N", "weightings")]


@record
class AddressOutputs(NamedTuple):
    """The weightings of all heads."""

    weightings: Annotated[Tensor, Field("B H N", "weightings")]


def sizes(inputs: AddressInputs, options: NoOptions) -> Sizes:
    _, num_heads, num_taps = inputs.shift.shape
    return Sizes.of(inputs.memory, num_heads, num_taps=num_taps)


def check(given: Arguments, inputs: AddressInputs, options: NoOptions) -> None:
    check_record(given, inputs)
    num_taps = inputs.shift.shape[-1]
    if num_taps % 2 == 0:
        raise ValueError(
            f"address: shift must have an odd number of taps, offsets −r … +r, got {num_taps}"
        )


def equations(inputs: AddressInputs, sizes: Sizes) -> AddressOutputs:
    weightings = reference.address(
        inputs.memory,
        inputs.key,
        inputs.strength,
        inputs.gate,
        inputs.shift,
        inputs.sharpening,
        inputs.previous_weightings,
    )
    return AddressOutputs(weightings)


ADDRESS = Op("address", AddressInputs, AddressOutputs, NoOptions, sizes, equations, check)
