"""The launches of ``step``."""

from __future__ import annotations

from ntm_kernels.backends.triton.memory_in_tiles import Tiled
from ntm_kernels.backends.triton.one_program_or_tiles import OneProgramOrTiles
from ntm_kernels.backends.triton.records import Heads
from ntm_kernels.ops import STEP, Sizes, StepInputs, StepOutputs


class Step(OneProgramOrTiles[StepInputs, StepOutputs]):
    """``step`` in registers or in tiles."""

    op = STEP
    letters = "R W H N M S P"

    def forward_in_tiles(self, inputs: StepInputs, outputs: StepOutputs, sizes: Sizes) -> None:
        tiled = Tiled(self.launcher, inputs.memory, sizes, raw=True)
        heads = Heads(*sizes.layout.split(inputs.interface))
        chain = tiled.address(heads, inputs.previous_weightings)
        tiled.sharpen_read_write(heads, chain, outputs)

    def backward_in_tiles(
        self,
        grads: StepOutputs,
        inputs: StepInputs,
        outputs: StepOutputs,
        d_inputs: StepInputs,
        sizes: Sizes,
    ) -> None:
        tiled, layout = Tiled(self.launcher, inputs.memory, sizes, raw=True), sizes.layout
        heads = Heads(*layout.split(inputs.interface))
        chain = tiled.address(heads, inputs.previous_weightings)
        parts = tiled.gradient_parts(layout.size)
        d_heads = Heads(*layout.split(parts))
        d_read_write, d_weightings = tiled.whole_memory(), tiled.weighting()
        means = tiled.read_write_backward(
            grads,
            heads,
            chain=chain,
            d_memory=d_read_write,
            d_weightings=d_weightings,
            d_heads=d_heads,
        )
        tiled.address_backward(
            d_weightings,
            means,
            heads,
            chain,
            inputs.previous_weightings,
            d_read_write=d_read_write,
            d_memory=d_inputs.memory,
            d_previous_weightings=d_inputs.previous_weightings,
            d_heads=d_heads,
        )
        tiled.combine(parts, d_inputs.interface)
