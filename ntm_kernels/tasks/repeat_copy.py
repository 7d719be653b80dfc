"""Repeat copy: reproduce a sequence of random vectors several times, then stop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from typing_extensions import override

from ntm_kernels.tasks.base import Batch, Task, Trial, draw_bits, draw_sizes

__all__ = ["RepeatCopy"]

# Most vectors, and most repeats, of the first stage of the curriculum.
_FIRST_STAGE = 3


@dataclass(frozen=True)
class RepeatCopy(Task):
    """Random bit vectors, a delimiter, a number of repeats; answered by that many copies.

    Section 4.2 of Graves et al. (2014, arXiv 1410.5401). With L vectors and K repeats a sequence
    has L + 2 + K L + 1 steps:

    ============================ =================== =========== ===================
    step                         bits (``width``)    delimiter   repeats
    ============================ =================== =========== ===================
    0 … L − 1                    the vectors         0           0
    L                            0                   1           0
    L + 1                        0                   0           K, normalised
    L + 2 … L + 2 + K L          0                   0           0
    ============================ =================== =========== ===================

    Targets, in the last K L + 1 steps, are the ``width`` bits and an end marker, which is 1 in the
    very last step alone, where the bits are 0. K is normalised to mean 0 and variance 1 over
    ``normalise_low`` … ``normalise_high``, the range of training, also when tested beyond it.

    With ``unary`` the repeats are counted out instead: their channel is 1 in the K steps L + 1 …
    L + K, and the answer begins in step L + K + 1. This is not the paper's task. It shows a model
    that was trained on few repeats what more of them are.

    >>> task = RepeatCopy(width=2, min_length=3, max_length=3, min_repeats=2, max_repeats=2)
    >>> batch = task.sample(1, torch.Generator().manual_seed(0))
    >>> batch.inputs.shape[0], int(batch.mask.sum()), batch.targets[-1, 0]
    (12, 7, tensor([0., 0., 1.]))
    """

    name: ClassVar[str] = "repeat_copy"
    input_channels: ClassVar[str] = "bits, delimiter, repeats"

    width: Annotated[int, "bits of a vector"] = 8
    min_length: Annotated[int, "fewest vectors of a sequence"] = 1
    max_length: Annotated[int, "most vectors of a sequence"] = 10
    min_repeats: Annotated[int, "fewest repeats"] = 1
    max_repeats: Annotated[int, "most repeats"] = 10
    normalise_low: Annotated[int, "lower end of the range over which repeats are normalised"] = 1
    normalise_high: Annotated[int, "upper end of the range over which repeats are normalised"] = 10
    unary: Annotated[bool, "show the repeats as so many steps, not as one number"] = False

    def __post_init__(self) -> None:
        self._require(self.width >= 1, "width must be at least 1")
        self._require(
            1 <= self.min_length <= self.max_length, "1 <= min_length <= max_length is needed"
        )
        self._require(
            1 <= self.min_repeats <= self.max_repeats, "1 <= min_repeats <= max_repeats is needed"
        )
        self._require(
            1 <= self.normalise_low < self.normalise_high,
            "1 <= normalise_low < normalise_high is needed",
        )

    @property
    @override
    def input_size(self) -> int:
        return self.width + 2

    @property
    @override
    def output_size(self) -> int:
        return self.width + 1

    def normalise(self, repeats: torch.Tensor) -> torch.Tensor:
        """The value that the repeats channel shows for a number of repeats."""
        values = self.normalise_high - self.normalise_low + 1
        mean = (self.normalise_low + self.normalise_high) / 2
        deviation = ((values**2 - 1) / 12) ** 0.5
        return (repeats - mean) / deviation

    @override
    def _draw(self, batch_size: int, generator: torch.Generator, same_length: bool) -> Batch:
        count = draw_sizes(self.min_length, self.max_length, batch_size, generator, same_length)
        repeats = draw_sizes(self.min_repeats, self.max_repeats, batch_size, generator, same_length)
        shown = repeats if self.unary else torch.ones_like(repeats)
        start = count + 1 + shown
        most, lengths = int(count.max()), start + repeats * count + 1
        step = torch.arange(int(lengths.max())).unsqueeze(1)
        vectors = draw_bits(most, batch_size, self.width, generator=generator)
        vectors *= (step[:most] < count).unsqueeze(-1)

        inputs = torch.zeros(len(step), batch_size, self.input_size)
        inputs[:most, :, : self.width] = vectors
        inputs[:, :, self.width] = step == count
        value = 1 if self.unary else self.normalise(repeats)
        inputs[:, :, self.width + 1] = ((step > count) & (step < start)) * value

        answered = step - start
        copying = (answered >= 0) & (answered < repeats * count)
        ending = answered == repeats * count
        targets = torch.zeros(len(step), batch_size, self.output_size)
        copied = vectors[answered % count, torch.arange(batch_size)]
        targets[:, :, : self.width] = copied * copying.unsqueeze(-1)
        targets[:, :, self.width] = ending
        return Batch(inputs, targets, copying | ending, lengths)

    @override
    def curriculum(self) -> tuple[Task, ...]:
        """Lengths and repeats up to 3, then one more in each stage."""
        largest = max(self.max_length, self.max_repeats)
        smallest = max(_FIRST_STAGE, self.min_length, self.min_repeats)
        easier = (
            replace(
                self,
                max_length=min(most, self.max_length),
                max_repeats=min(most, self.max_repeats),
            )
            for most in range(smallest, largest)
        )
        return (*easier, self)

    @property
    @override
    def output_parts(self) -> dict[str, slice]:
        return {"vectors": slice(self.width), "end marker": slice(self.width, self.width + 1)}

    @override
    def suite(self) -> dict[str, Task | Trial]:
        return {
            f"length {length}, {repeats} repeats": Trial(
                replace(
                    self,
                    min_length=length,
                    max_length=length,
                    min_repeats=repeats,
                    max_repeats=repeats,
                ),
                memory_size=256,
            )
            for length, repeats in ((10, 10), (20, 10), (10, 20))
        }
