"""The launches of ``read``."""

from __future__ import annotations

from ntm_kernels.backends.triton.memory_in_tiles import Tiled
from ntm_kernels.backends.triton.one_program_or_tiles import OneProgramOrTiles
from ntm_kernels.backends.triton.records import Heads
from ntm_kernels.ops import READ, ReadInputs, ReadOutputs, Sizes, StepOutputs
from ntm_kernels.ops.declare import some


class Read(OneProgramOrTiles[ReadInputs, ReadOutputs]):
    """``read`` in registers or in tiles."""

    op = READ
    letters = "R H N M"

    def forward_in_tiles(self, inputs: ReadInputs, outputs: ReadOutputs, sizes: Sizes) -> None:
        tiled = Tiled(self.launcher, inputs.memory, sizes)
        after = some(StepOutputs, read_vectors=outputs.read_vectors, weightings=inputs.weightings)
        tiled.sharpen_read_write(Heads(), None, after)

    def backward_in_tiles(
        self,
        grads: ReadOutputs,
        inputs: ReadInputs,
        outputs: ReadOutputs,
        d_inputs: ReadInputs,
        sizes: Sizes,
    ) -> None:
        tiled = Tiled(self.launcher, inputs.memory, sizes)
        d_after = some(StepOutputs, read_vectors=grads.read_vectors)
        tiled.read_write_backward(
            d_after,
            Heads(),
            weightings=inputs.weightings,
            d_memory=d_inputs.memory,
            d_weightings=d_inputs.weightings,
        )
