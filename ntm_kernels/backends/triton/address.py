"""The launches of ``address``."""

from __future__ import annotations

from ntm_kernels.backends.triton.memory_in_tiles import Tiled
from ntm_kernels.backends.triton.one_program_or_tiles import OneProgramOrTiles
from ntm_kernels.backends.triton.records import Heads
from ntm_kernels.ops import ADDRESS, AddressInputs, AddressOutputs, Sizes, StepOutputs
from ntm_kernels.ops.declare import some


class Address(OneProgramOrTiles[AddressInputs, AddressOutputs]):
    """``address`` in registers or in tiles."""

    op = ADDRESS
    letters = "H N M S"

    def forward_in_tiles(
        self, inputs: AddressInputs, outputs: AddressOutputs, sizes: Sizes
    ) -> None:
        tiled, heads = Tiled(self.launcher, inputs.memory, sizes), _heads(inputs)
        chain = tiled.address(heads, inputs.previous_weightings)
        tiled.sharpen_read_write(heads, chain, some(StepOutputs, weightings=outputs.weightings))

    def backward_in_tiles(
        self,
        grads: AddressOutputs,
        inputs: AddressInputs,
        outputs: AddressOutputs,
        d_inputs: AddressInputs,
        sizes: Sizes,
    ) -> None:
        tiled, heads, layout = (
            Tiled(self.launcher, inputs.memory, sizes),
            _heads(inputs),
            sizes.layout,
        )
        chain = tiled.address(heads, inputs.previous_weightings)
        d_weightings, parts = tiled.weighting(), tiled.gradient_parts(layout.size)
        means = tiled.read_write_backward(
            some(StepOutputs, weightings=grads.weightings),
            heads,
            chain=chain,
            d_weightings=d_weightings,
        )
        tiled.address_backward(
            d_weightings,
            means,
            heads,
            chain,
            inputs.previous_weightings,
            d_memory=d_inputs.memory,
            d_previous_weightings=d_inputs.previous_weightings,
            d_heads=Heads(*layout.split(parts)),
        )
        d_heads = layout.split(tiled.combined(parts))
        d_inputs.key.copy_(d_heads.key)
        d_inputs.strength.copy_(d_heads.strength)
        d_inputs.gate.copy_(d_heads.gate)
        d_inputs.shift.copy_(d_heads.shift)
        d_inputs.sharpening.copy_(d_heads.sharpening)


def _heads(inputs: AddressInputs) -> Heads:
    return Heads(
        key=inputs.key,
        strength=inputs.strength,
        gate=inputs.gate,
        shift=inputs.shift,
        sharpening=inputs.sharpening,
    )
