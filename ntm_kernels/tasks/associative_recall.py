"""Associative recall: given an item of a list, answer with the one that followed it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from typing_extensions import override

from ntm_kernels.tasks.base import Batch, Task, Trial, draw_bits, draw_sizes

__all__ = ["AssociativeRecall"]


@dataclass(frozen=True)
class AssociativeRecall(Task):
    """A list of items, one of them again as a query, answered with the next item of the list.

    Section 4.3 of Graves et al. (2014, arXiv 1410.5401). An item is V = ``item_length`` random bit
    vectors and stands between delimiters. With n items a sequence has n (V + 1) + 2 V + 2 steps;
    from step s = n (V + 1) on:

    ========================== =================== ============== =============== ===============
    step                       bits (``width``)    item delimiter query delimiter answer (if any)
    ========================== =================== ============== =============== ===============
    i (V + 1), every item i    0                   1              0               0
    the V steps after each     item i              0              0               0
    s                          0                   0              1               0
    s + 1 … s + V              the item asked for  0              0               0
    s + V + 1                  0                   0              1               0
    s + V + 2 … s + 2 V + 1    0                   0              0               1
    ========================== =================== ============== =============== ===============

    The query is any item but the last, each as likely. Targets are the ``width`` bits of the item
    after it, in the last V steps. Items are independent, so two are equal now and then (one list in
    1400 at 20 items of 18 bits) and the answer is then ambiguous. The answer channel is not the
    paper's: without it an all-zero vector of the query looks like an answer step.

    >>> task = AssociativeRecall(min_items=3, max_items=3)
    >>> batch = task.sample(1, torch.Generator().manual_seed(0))
    >>> batch.inputs.shape, int(batch.mask.sum())
    (torch.Size([20, 1, 8]), 3)
    """

    name: ClassVar[str] = "associative_recall"
    input_channels: ClassVar[str] = "bits, item delimiter, query delimiter[, answer]"

    width: Annotated[int, "bits of a vector"] = 6
    item_length: Annotated[int, "vectors of an item"] = 3
    min_items: Annotated[int, "fewest items of a sequence"] = 2
    max_items: Annotated[int, "most items of a sequence"] = 6
    answer_channel: Annotated[bool, "mark the answer steps on a channel of their own"] = False

    def __post_init__(self) -> None:
        self._require(self.width >= 1, "width must be at least 1")
        self._require(self.item_length >= 1, "item_length must be at least 1")
        self._require(
            2 <= self.min_items <= self.max_items, "2 <= min_items <= max_items is needed"
        )

    @property
    @override
    def input_size(self) -> int:
        return self.width + 2 + self.answer_channel

    @property
    @override
    def output_size(self) -> int:
        return self.width

    @override
    def _draw(self, batch_size: int, generator: torch.Generator, same_length: bool) -> Batch:
        count = draw_sizes(self.min_items, self.max_items, batch_size, generator, same_length)
        most, size, width = int(count.max()), self.item_length, self.width
        # A uniform double below 1 times n - 1 picks one of the first n - 1 items of each list.
        uniform = torch.rand(batch_size, generator=generator, dtype=torch.float64)
        query = (uniform * (count - 1)).long()
        items = draw_bits(most, size, batch_size, width, generator=generator)

        listed = torch.zeros(most, size + 1, batch_size, self.input_size)
        listed[:, 1:, :, :width] = items
        listed[:, 0, :, width] = 1
        start = count * (size + 1)
        lengths = start + 2 * size + 2
        inputs = torch.zeros(int(lengths.max()), batch_size, self.input_size)
        shown = most * (size + 1)
        step = torch.arange(len(inputs)).unsqueeze(1)
        inputs[:shown] = listed.flatten(0, 1) * (step[:shown] < start).unsqueeze(-1)
        inputs[:, :, width + 1] = (step == start) | (step == start + size + 1)

        sequence = torch.arange(batch_size)
        part = torch.arange(size).unsqueeze(1)
        inputs[start + 1 + part, sequence, :width] = items[query, part, sequence]
        targets = torch.zeros(len(inputs), batch_size, width)
        targets[start + size + 2 + part, sequence] = items[query + 1, part, sequence]
        mask = (step >= start + size + 2) & (step < lengths)
        if self.answer_channel:
            inputs[:, :, width + 2] = mask
        return Batch(inputs, targets, mask, lengths)

    @override
    def curriculum(self) -> tuple[Task, ...]:
        """Lists of two items, then of up to one more in each stage."""
        easier = (replace(self, max_items=most) for most in range(self.min_items, self.max_items))
        return (*easier, self)

    @override
    def suite(self) -> dict[str, Task | Trial]:
        # A list takes a location for every vector, and for the delimiter of every item.
        sizes = {6: None, 10: None, 15: None, 20: 128, 50: 512, 100: 512}
        return {
            f"{n} items": Trial(replace(self, min_items=n, max_items=n), memory_size=size)
            for n, size in sizes.items()
        }
