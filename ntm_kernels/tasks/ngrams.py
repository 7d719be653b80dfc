"""Dynamic N-grams: predict the next bit of a sequence from a random 6-gram table."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from ntm_kernels.tasks.base import Batch, Task, Trial

__all__ = ["NGrams", "optimal_probabilities"]


@dataclass(frozen=True)
class NGrams(Task):
    """Bits drawn from a table of their own for each sequence; the next bit is predicted.

    Section 4.4 of Graves et al. (2014, arXiv 1410.5401). The first ``context`` bits are fair coins.
    Each later one is 1 with a probability looked up by the ``context`` bits before it in a table
    that is drawn anew for every sequence, each entry from Beta(½, ½).

    The one input channel shows bit t − 1 in step t (0 in step 0), the one target is bit t, and all
    steps are answer steps, the coins included.

    >>> batch = NGrams().sample(4, torch.Generator().manual_seed(0))
    >>> bool((batch.inputs[1:] == batch.targets[:-1]).all()), batch.inputs.shape
    (True, torch.Size([200, 4, 1]))
    """

    name: ClassVar[str] = "ngrams"
    input_channels: ClassVar[str] = "previous bit"

    length: Annotated[int, "bits of a sequence"] = 200
    context: Annotated[int, "bits on which the next one depends"] = 5

    def __post_init__(self) -> None:
        self._require(1 <= self.context <= 16, "context must be in 1 ... 16")
        self._require(self.length > self.context, "length must be greater than context")

    @property
    @override
    def input_size(self) -> int:
        return 1

    @property
    @override
    def output_size(self) -> int:
        return 1

    @override
    def _draw(self, batch_size: int, generator: torch.Generator, same_length: bool) -> Batch:
        contexts, drawn = 2**self.context, self.length - self.context
        # The sine squared of a uniform angle in (0, π/2) is Beta(½, ½).
        angle = torch.rand(batch_size, contexts, generator=generator) * (math.pi / 2)
        coins = torch.randint(2, (self.context, batch_size), generator=generator)
        uniform = torch.rand(drawn, batch_size, 1, generator=generator)

        # Step t maps every context to the next one; composing the maps of all steps by doubling
        # gives the whole walk in log2(T) operations instead of T.
        bit = (uniform < angle.sin().square()).long()
        walk = (torch.arange(contexts) * 2 % contexts) + bit
        stride = 1
        while stride < drawn:
            walk = torch.cat([walk[:stride], walk[stride:].gather(2, walk[:-stride])])
            stride *= 2
        place = 2 ** torch.arange(self.context - 1, -1, -1).unsqueeze(1)
        first = (coins * place).sum(dim=0)
        after = walk[:, torch.arange(batch_size), first]

        targets = torch.cat([coins, after % 2]).unsqueeze(-1).float()
        inputs = torch.cat([torch.zeros(1, batch_size, 1), targets[:-1]])
        mask = torch.ones(self.length, batch_size, dtype=torch.bool)
        lengths = torch.full((batch_size,), self.length)
        return Batch(inputs, targets, mask, lengths)

    @override
    def curriculum(self) -> tuple[Task, ...]:
        """Short sequences of a smaller context, which a small memory can hold, then the task.

        Contexts of 3 bits or fewer are few enough for the controller to count by itself: the stage
        has none, unless the task has.
        """
        shorter = replace(
            self,
            context=self.context - 1 if self.context > 4 else self.context,
            length=max(self.context + 1, self.length * 2 // 5),
        )
        return (self,) if shorter == self else (shorter, self)

    @override
    def suite(self) -> dict[str, Task | Trial]:
        # A model that keeps every context that it saw takes one location for each step.
        return {
            f"{n:,} bits": Trial(replace(self, length=n), memory_size=size)
            for n, size in ((400, 512), (1000, 1024))
        }

    @override
    def optimal_answer(self, batch: Batch) -> Tensor:
        return optimal_probabilities(batch.targets[:, :, 0], self.context).unsqueeze(-1)


def optimal_probabilities(sequence: Tensor, context: int = 5) -> Tensor:
    """Probability that each bit is 1 under the optimal estimator of the paper, section 4.4.

    P(1) = (N₁ + ½) / (N₀ + N₁ + 1), where N₀ and N₁ count the zeros and ones seen so far after the
    same ``context`` bits; ½ for the first ``context`` bits.

    Args:
        sequence: ``[T, B]``, 0 or 1.
        context: bits on which the next one depends.

    Returns:
        ``[T, B]`` float64, on the sequence's device.

    >>> optimal_probabilities(torch.tensor([[0.0], [0.0], [0.0], [1.0]]), context=1).flatten()
    tensor([0.5000, 0.5000, 0.2500, 0.1667], dtype=torch.float64)
    """
    steps, batch = sequence.shape
    ones = sequence.long()
    counts = sequence.new_full((2**context, batch, 2), 0.5, dtype=torch.float64)
    everyone = torch.arange(batch, device=sequence.device)
    probabilities = sequence.new_full((steps, batch), 0.5, dtype=torch.float64)
    place = 2 ** torch.arange(context - 1, -1, -1, device=sequence.device).unsqueeze(1)
    for t in range(context, steps):
        seen = (ones[t - context : t] * place).sum(dim=0)
        both = counts[seen, everyone]
        probabilities[t] = both[:, 1] / both.sum(dim=1)
        counts[seen, everyone, ones[t]] += 1
    return probabilities
