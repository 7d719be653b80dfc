"""One time step, ``address``, ``read`` and ``write``, with its hand-derived backward."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ntm_kernels.backends.base import Kernel
from ntm_kernels.backends.torch.address import Addressing, address, address_backward
from ntm_kernels.backends.torch.interface import (
    activate,
    activate_backward,
    activation_slopes,
)
from ntm_kernels.backends.torch.lift import lift, lower, with_zeros
from ntm_kernels.backends.torch.read import read, read_backward
from ntm_kernels.backends.torch.write import write, write_backward
from ntm_kernels.interface import HeadParameters
from ntm_kernels.ops import (
    AddressInputs,
    NothingSaved,
    ReadInputs,
    Sizes,
    StepInputs,
    StepOutputs,
    WriteInputs,
)


class HeadsInputs(NamedTuple):
    """What a step starts from, the head parameters activated."""

    memory: Tensor  # [B, N, M]
    heads: HeadParameters
    previous_weightings: Tensor  # [B, H, N]


def addressed(inputs: HeadsInputs) -> AddressInputs:
    """The inputs of ``address`` among those of a step."""
    heads = inputs.heads
    return AddressInputs(
        memory=inputs.memory,
        key=heads.key,
        strength=heads.strength,
        gate=heads.gate,
        shift=heads.shift,
        sharpening=heads.sharpening,
        previous_weightings=inputs.previous_weightings,
    )


def step(inputs: HeadsInputs, num_read_heads: int) -> StepOutputs:
    weightings = address(addressed(inputs)).weightings
    memory, heads = inputs.memory, inputs.heads
    to_read, to_write = weightings.tensor_split((num_read_heads,), 1)
    written = write(memory, to_write, heads.erase, heads.add)
    return StepOutputs(read(memory, to_read), written, weightings)


def step_backward(grads: StepOutputs, forward: Addressing, inputs: HeadsInputs) -> HeadsInputs:
    """Gradients of memory, activated head parameters and previous weightings."""
    memory, heads = inputs.memory, inputs.heads
    num_read_heads = grads.read_vectors.shape[1]
    to_read, to_write = forward.weightings.tensor_split((num_read_heads,), 1)
    d_write = write_backward(grads.memory, WriteInputs(memory, to_write, heads.erase, heads.add))
    d_read = read_backward(grads.read_vectors, ReadInputs(memory, to_read))
    d_weightings = grads.weightings.clone()
    into_read, into_write = d_weightings.tensor_split((num_read_heads,), 1)
    into_read += d_read.weightings
    into_write += d_write.weightings
    d_address = address_backward(d_weightings, forward, addressed(inputs))
    d_heads = HeadParameters(
        key=d_address.key,
        strength=d_address.strength,
        gate=d_address.gate,
        shift=d_address.shift,
        sharpening=d_address.sharpening,
        erase=d_write.erase,
        add=d_write.add,
    )
    d_memory = d_write.memory.add_(d_read.memory).add_(d_address.memory)
    return HeadsInputs(d_memory, d_heads, d_address.previous_weightings)


class Step(Kernel[StepInputs, StepOutputs, NothingSaved]):
    """The op ``step``."""

    def forward(
        self, inputs: StepInputs, sizes: Sizes, save_for_backward: bool
    ) -> tuple[StepOutputs, NothingSaved]:
        memory, interface, previous_weightings = lift(inputs)
        heads = activate(interface, sizes.layout)
        outputs = step(HeadsInputs(memory, heads, previous_weightings), sizes.num_read_heads)
        return lower(outputs, inputs), NothingSaved()

    def backward(
        self,
        grads: StepOutputs,
        inputs: StepInputs,
        outputs: StepOutputs,
        saved: NothingSaved,
        sizes: Sizes,
        wanted: frozenset[str],
    ) -> StepInputs:
        memory, interface, previous_weightings = lift(inputs)
        layout = sizes.layout
        heads = activate(interface, layout)
        given = HeadsInputs(memory, heads, previous_weightings)
        forward = address(addressed(given))
        back = step_backward(with_zeros(lift(grads), sizes, memory), forward, given)
        slopes = activation_slopes(interface, heads, layout)
        d_interface = activate_backward(back.heads, slopes, heads.shift)
        return lower(StepInputs(back.memory, d_interface, back.previous_weightings), inputs)
