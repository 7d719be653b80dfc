"""``step``: one time step of all heads from the raw interface vector."""

from typing import Annotated, NamedTuple

from torch import Tensor

from ntm_kernels import reference
from ntm_kernels.checks import Arguments, positive_int
from ntm_kernels.interface import InterfaceLayout
from ntm_kernels.ops.declare import Field, Op, check_record, record
from ntm_kernels.ops.sizes import Sizes


@record
class StepInputs(NamedTuple):
    """Memory, raw interface vector, and the weightings of the step before."""

    memory: Annotated[Tensor, Field("B N M", "memory")]
    interface: Annotated[Tensor, Field("B P", "head_parameters")]
    previous_weightings: Annotated[Tensor, Field("B H N", "weightings")]


@record
class StepOutputs(NamedTuple):
    """What the read heads read, the memory after the write, and all weightings."""

    read_vectors: Annotated[Tensor, Field("B R M", "memory")]
    memory: Annotated[Tensor, Field("B N M", "memory")]
    weightings: Annotated[Tensor, Field("B H N", "weightings", kept=True)]


class StepOptions(NamedTuple):
    """How the interface vector is cut."""

    num_read_heads: int
    num_write_heads: int
    shift_range: int


def sizes(inputs: StepInputs, options: StepOptions) -> Sizes:
    return Sizes.of(
        inputs.memory,
        options.num_read_heads,
        num_write_heads=options.num_write_heads,
        num_taps=2 * options.shift_range + 1,
    )


def check(given: Arguments, inputs: StepInputs, options: StepOptions) -> None:
    check_heads(given, inputs.memory, *options)
    check_record(given, inputs)


def check_heads(
    given: Arguments,
    memory: Tensor,
    num_read_heads: int,
    num_write_heads: int,
    shift_range: int,
    name: str = "memory",
) -> InterfaceLayout:
    """Check the options of the heads, and fix the sizes that follow from them and the memory."""
    reads = positive_int(given.op, "num_read_heads", num_read_heads)
    writes = positive_int(given.op, "num_write_heads", num_write_heads)
    largest = positive_int(given.op, "shift_range", shift_range, minimum=0)
    given.tensor(name, memory, "B N M")
    layout = InterfaceLayout(memory.shape[-1], reads, writes, largest)
    given.fix("R", reads, "num_read_heads")
    given.fix("H", layout.num_heads, "num_read_heads + num_write_heads")
    given.fix("P", layout.size, "the interface layout")
    return layout


def equations(inputs: StepInputs, sizes: Sizes) -> StepOutputs:
    outputs = reference.step(
        inputs.memory,
        inputs.interface,
        inputs.previous_weightings,
        num_read_heads=sizes.num_read_heads,
        num_write_heads=sizes.num_write_heads,
        shift_range=sizes.shift_range,
    )
    return StepOutputs._make(outputs)


STEP = Op("step", StepInputs, StepOutputs, StepOptions, sizes, equations, check)
