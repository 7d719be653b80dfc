"""Priority sort: give back vectors by descending priority."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from typing_extensions import override

from ntm_kernels.tasks.base import Batch, Task, draw_bits

__all__ = ["PrioritySort"]


@dataclass(frozen=True)
class PrioritySort(Task):
    """Random bit vectors, each with a priority; answered with the highest ones in order.

    Section 4.5 of Graves et al. (2014, arXiv 1410.5401). A sequence has ``num_items`` steps with
    ``width`` bits and, on the last channel, a priority from U(−1, 1), then ``num_answers`` steps
    with blank inputs. Targets there are the bits of the vectors by descending priority, each vector
    moved as a whole. The sizes are fixed, so that no delimiter is needed.

    >>> batch = PrioritySort().sample(1, torch.Generator().manual_seed(0))
    >>> best = int(batch.inputs[:20, 0, 8].argmax())
    >>> bool((batch.targets[20, 0] == batch.inputs[best, 0, :8]).all())
    True
    """

    name: ClassVar[str] = "priority_sort"
    input_channels: ClassVar[str] = "bits, priority"

    width: Annotated[int, "bits of a vector"] = 8
    num_items: Annotated[int, "vectors shown"] = 20
    num_answers: Annotated[int, "vectors to give back, those of highest priority"] = 16

    def __post_init__(self) -> None:
        self._require(self.width >= 1, "width must be at least 1")
        self._require(
            1 <= self.num_answers <= self.num_items, "1 <= num_answers <= num_items is needed"
        )

    @property
    @override
    def input_size(self) -> int:
        return self.width + 1

    @property
    @override
    def output_size(self) -> int:
        return self.width

    @override
    def _draw(self, batch_size: int, generator: torch.Generator, same_length: bool) -> Batch:
        shown, steps = self.num_items, self.num_items + self.num_answers
        vectors = draw_bits(shown, batch_size, self.width, generator=generator)
        priority = torch.rand(shown, batch_size, generator=generator) * 2 - 1
        highest = priority.sort(dim=0, descending=True, stable=True).indices[: self.num_answers]

        inputs = torch.zeros(steps, batch_size, self.input_size)
        inputs[:shown, :, : self.width] = vectors
        inputs[:shown, :, self.width] = priority
        targets = torch.zeros(steps, batch_size, self.width)
        targets[shown:] = vectors[highest, torch.arange(batch_size)]
        mask = torch.zeros(steps, batch_size, dtype=torch.bool)
        mask[shown:] = True
        return Batch(inputs, targets, mask, torch.full((batch_size,), steps))

    @override
    def curriculum(self) -> tuple[Task, ...]:
        """Half as many vectors, then all."""
        shown, answered = self.num_items // 2, self.num_answers // 2
        if answered < 1:
            return (self,)
        return replace(self, num_items=shown, num_answers=answered), self

    @override
    def suite(self) -> dict[str, Task]:
        return {"30 items, give 24": replace(self, num_items=30, num_answers=24)}
