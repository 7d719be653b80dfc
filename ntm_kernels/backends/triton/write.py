"""The launches of ``write``."""

from __future__ import annotations

from ntm_kernels.backends.triton.memory_in_tiles import Tiled
from ntm_kernels.backends.triton.one_program_or_tiles import OneProgramOrTiles
from ntm_kernels.backends.triton.records import Heads
from ntm_kernels.ops import WRITE, Sizes, StepOutputs, WriteInputs, WriteOutputs
from ntm_kernels.ops.declare import some


class Write(OneProgramOrTiles[WriteInputs, WriteOutputs]):
    """``write`` in registers or in tiles."""

    op = WRITE
    letters = "W H N M"

    def forward_in_tiles(self, inputs: WriteInputs, outputs: WriteOutputs, sizes: Sizes) -> None:
        tiled = Tiled(self.launcher, inputs.memory, sizes)
        after = some(StepOutputs, memory=outputs.memory, weightings=inputs.weightings)
        tiled.sharpen_read_write(Heads(erase=inputs.erase, add=inputs.add), None, after)

    def backward_in_tiles(
        self,
        grads: WriteOutputs,
        inputs: WriteInputs,
        outputs: WriteOutputs,
        d_inputs: WriteInputs,
        sizes: Sizes,
    ) -> None:
        tiled = Tiled(self.launcher, inputs.memory, sizes)
        parts = tiled.gradient_parts(2 * sizes.num_write_heads * sizes.word_size)
        d_erase, d_add = parts.chunk(2, -1)
        tiled.read_write_backward(
            some(StepOutputs, memory=grads.memory),
            Heads(erase=inputs.erase, add=inputs.add),
            weightings=inputs.weightings,
            d_memory=d_inputs.memory,
            d_weightings=d_inputs.weightings,
            d_heads=Heads(erase=d_erase, add=d_add),
        )
        d_erase, d_add = tiled.combined(parts).chunk(2, -1)
        d_inputs.erase.copy_(d_erase.view_as(d_inputs.erase))
        d_inputs.add.copy_(d_add.view_as(d_inputs.add))
