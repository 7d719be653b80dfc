"""Copy: reproduce a sequence of random vectors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from typing_extensions import override

from ntm_kernels.tasks.base import Batch, Task, Trial, draw_bits, draw_sizes

__all__ = ["Copy"]


@dataclass(frozen=True)
class Copy(Task):
    """Random bit vectors, a delimiter, then blank inputs while the vectors are given back.

    Section 4.1 of Graves et al. (2014, arXiv 1410.5401). With L vectors a sequence has 2 L + 1
    steps:

    ======================= =================== =========== ================
    step                    bits (``width``)    delimiter   answer (if any)
    ======================= =================== =========== ================
    0 … L − 1               the vectors         0           0
    L                       0                   1           0
    L + 1 … 2 L             0                   0           1
    ======================= =================== =========== ================

    Targets are the ``width`` bits of the vectors, in the last L steps. Without the answer channel
    an all-zero vector looks like an answer step; with it every step is told apart.

    >>> task = Copy(width=3, max_length=4)
    >>> batch = task.sample(2, torch.Generator().manual_seed(0))
    >>> length = int(batch.lengths[0]) // 2
    >>> bool((batch.targets[length + 1 : 2 * length + 1, 0] == batch.inputs[:length, 0, :3]).all())
    True
    """

    name: ClassVar[str] = "copy"
    input_channels: ClassVar[str] = "bits, delimiter[, answer]"

    width: Annotated[int, "bits of a vector"] = 8
    min_length: Annotated[int, "fewest vectors of a sequence"] = 1
    max_length: Annotated[int, "most vectors of a sequence"] = 20
    answer_channel: Annotated[bool, "mark the answer steps on a channel of their own"] = False

    def __post_init__(self) -> None:
        self._require(self.width >= 1, "width must be at least 1")
        self._require(
            1 <= self.min_length <= self.max_length, "1 <= min_length <= max_length is needed"
        )

    @property
    @override
    def input_size(self) -> int:
        return self.width + 1 + self.answer_channel

    @property
    @override
    def output_size(self) -> int:
        return self.width

    @override
    def _draw(self, batch_size: int, generator: torch.Generator, same_length: bool) -> Batch:
        count = draw_sizes(self.min_length, self.max_length, batch_size, generator, same_length)
        most = int(count.max())
        step = torch.arange(2 * most + 1).unsqueeze(1)
        vectors = draw_bits(most, batch_size, self.width, generator=generator)
        vectors *= (step[:most] < count).unsqueeze(-1)
        mask = (step > count) & (step <= 2 * count)

        inputs = torch.zeros(2 * most + 1, batch_size, self.input_size)
        inputs[:most, :, : self.width] = vectors
        inputs[:, :, self.width] = step == count
        if self.answer_channel:
            inputs[:, :, self.width + 1] = mask

        source = (step - count - 1).clamp_(0, most - 1)
        targets = vectors[source, torch.arange(batch_size)] * mask.unsqueeze(-1)
        return Batch(inputs, targets, mask, 2 * count + 1)

    @override
    def curriculum(self) -> tuple[Task, ...]:
        """Few vectors, then up to twice as many in each stage."""
        lengths = [2**power for power in range(1, self.max_length.bit_length())]
        easier = (
            replace(self, max_length=most)
            for most in lengths
            if self.min_length <= most < self.max_length
        )
        return (*easier, self)

    @override
    def suite(self) -> dict[str, Task | Trial]:
        def of(length: int) -> Task:
            return replace(self, min_length=length, max_length=length)

        return {
            **{f"length {n}": of(n) for n in (20, 30, 50, 80, 120)},
            "length 1,000": Trial(of(1000), memory_size=2048, sequences=16),
            "length 10,000": Trial(of(10_000), memory_size=16_384, sequences=4),
        }
