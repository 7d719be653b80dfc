"""What all tasks share: the batch they make, and how answers are scored."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ntm_kernels.fields import check_values
from ntm_kernels.tasks.checks import check_layout

__all__ = ["Batch", "Task", "Trial", "bits", "loss", "wrong", "wrong_bits"]


class Batch(NamedTuple):
    """Sequences with their answers, time-major.

    Attributes:
        inputs: ``[T, B, I]`` float32; zeros after a sequence's end.
        targets: ``[T, B, O]`` float32, 0 or 1 in the answer steps and 0 elsewhere.
        mask: ``[T, B]`` bool, True in the answer steps, the only ones that are scored.
        lengths: ``[B]`` int64, the steps of each sequence, answer included; T is the largest.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor
    lengths: Tensor

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None = None) -> Batch:
        """The same batch on another device, inputs and targets in another floating dtype."""
        return Batch(
            self.inputs.to(device, dtype),
            self.targets.to(device, dtype),
            self.mask.to(device),
            self.lengths.to(device),
        )

    def select(self, index: Tensor) -> Batch:
        """The sequences at ``index`` (``[K]`` int64), cut to the longest of them."""
        lengths = self.lengths[index]
        steps = int(lengths.max())
        return Batch(
            self.inputs[:steps, index],
            self.targets[:steps, index],
            self.mask[:steps, index],
            lengths,
        )

    def sorted_chunks(self, size: int) -> list[Batch]:
        """The same sequences by increasing length in batches of at most ``size``.

        Evaluating these costs far fewer padding steps than evaluating the whole.
        """
        order = torch.argsort(self.lengths, stable=True)
        return [self.select(index) for index in order.split(size)]


def import_name(kind: type) -> str:
    """``package.module:Class``, which says where a class comes from."""
    return f"{kind.__module__}:{kind.__qualname__}"


@dataclass(frozen=True)
class Task(abc.ABC):
    """What a model is trained on: its sizes, and a source of fresh sequences.

    Every task is a frozen dataclass of its parameters, which are numbers, text or None; two equal
    tasks make the same sequences from the same generator state. The text in a parameter's
    annotation is the help of its command line option. A subclass that sets no ``name`` is called
    ``package.module:Class``.
    """

    name: ClassVar[str]
    #: What the input channels carry, in order.
    input_channels: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # The name of the class it is derived from would let a run be taken for one of that task.
        if "name" not in vars(cls):
            cls.name = import_name(cls)

    @property
    @abc.abstractmethod
    def input_size(self) -> int:
        """Channels I of the inputs."""

    @property
    @abc.abstractmethod
    def output_size(self) -> int:
        """Channels O of the targets."""

    @abc.abstractmethod
    def _draw(self, batch_size: int, generator: torch.Generator, same_length: bool) -> Batch:
        """What :meth:`sample` returns, on the CPU."""

    def sample(
        self,
        batch_size: int,
        generator: torch.Generator,
        device: torch.device | str | None = None,
        *,
        same_length: bool = False,
    ) -> Batch:
        """Makes fresh sequences.

        Args:
            batch_size: B, ≥ 1.
            generator: a CPU generator; its state decides the sequences on whatever device.
            device: where the batch is wanted.
            same_length: gives all sequences of the batch one length, drawn once (no padding),
                instead of one each.

        Returns:
            The batch; the task's own docstring lays out its channels.

        Raises:
            TypeError: :meth:`_draw` returned something else than a batch.
            ValueError: no sequences wanted, a generator on another device, or :meth:`_draw`
                returned tensors of another shape or dtype than :class:`Batch` says.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if generator.device.type != "cpu":
            raise ValueError(f"generator must be a CPU generator, got one on {generator.device}")
        batch = self._draw(batch_size, generator, same_length)
        check_layout(self, batch, batch_size)
        return batch.to(device)

    def curriculum(self) -> tuple[Task, ...]:
        """The tasks to train on one after the other, from an easy one to this one, the last.

        All have the channels of this one. Where a task declares no easier ones it is the only one.
        """
        return (self,)

    def suite(self) -> Mapping[str, Task | Trial]:
        """The harder tasks on which a model trained on this one is tested, by their titles.

        A :class:`Trial` instead of a task says what else the test needs.
        """
        return {}

    def trials(self) -> dict[str, Trial]:
        """:meth:`suite` with a :class:`Trial` for every test."""
        suite = self.suite().items()
        return {title: one if isinstance(one, Trial) else Trial(one) for title, one in suite}

    @property
    def output_parts(self) -> Mapping[str, slice]:
        """Groups of output channels whose errors are counted apart too, by their names."""
        return {}

    def optimal_answer(self, batch: Batch) -> Tensor | None:
        """Probabilities ``[T, B, O]`` float64 of the best predictor; None if it is sure."""
        return None

    def optimal_bits(self, batch: Batch) -> Tensor:
        """Cost ``[B]`` of :meth:`optimal_answer` in bits per sequence, float64; else 0."""
        optimal = self.optimal_answer(batch)
        if optimal is None:
            return torch.zeros(len(batch.lengths), dtype=torch.float64, device=batch.lengths.device)
        of_bit = torch.where(batch.targets > 0.5, optimal, 1 - optimal)
        return -(of_bit.log2() * batch.mask.unsqueeze(-1)).sum(dim=(0, 2))

    def to_dict(self) -> dict[str, Any]:
        """Name and parameters as JSON values; :func:`ntm_kernels.tasks.from_dict` inverts it."""
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in fields(self)}}

    def _require(self, condition: bool, expected: str) -> None:
        """Raises ValueError unless the condition holds, with the parameters that it names."""
        if not condition:
            named = (f.name for f in fields(self) if f.name in expected.split())
            given = ", ".join(f"{name}={getattr(self, name)}" for name in named)
            raise ValueError(f"{self.name}: {expected}, got {given}")


class Trial(NamedTuple):
    """A task to test a trained model on.

    Attributes:
        task: where the sequences come from.
        memory_size: the fewest memory locations that the test needs. A model with fewer gets so
            many for the test, unless something it has learned fixes their number.
        sequences: how many sequences at most, of a test so long that few must do. Such a test is
            made only where it is asked for (``--long-tests``).
    """

    task: Task
    memory_size: int | None = None
    sequences: int | None = None


def draw_sizes(
    low: int, high: int, batch_size: int, generator: torch.Generator, same_length: bool
) -> Tensor:
    """``[B]`` int64, uniform on low … high, drawn one by one or once for all."""
    drawn = torch.randint(low, high + 1, (1 if same_length else batch_size,), generator=generator)
    return drawn.expand(batch_size)


def draw_bits(*shape: int, generator: torch.Generator) -> Tensor:
    """Fair coins, float32."""
    return torch.randint(2, shape, generator=generator, dtype=torch.float32)


def _check_logits(logits: Tensor, batch: Batch) -> None:
    if logits.shape != batch.targets.shape:
        raise ValueError(
            "logits must have the shape of the batch's targets "
            f"{tuple(batch.targets.shape)}, got {tuple(logits.shape)}"
        )


def loss(logits: Tensor, batch: Batch, answer_steps: float | None = None) -> Tensor:
    """Binary cross-entropy in nats, averaged over all answer bits of the batch.

    Args:
        logits: ``[T, B, O]``, the model's output without an activation.
        batch: the batch that was answered.
        answer_steps: the answer steps to average over, added up over the sequences. By default
            these are those of the batch. For the parts of a larger batch give those of the larger
            one: the losses of all parts then add up to its own.

    Returns:
        A scalar.

    >>> from ntm_kernels import tasks
    >>> batch = tasks.make("copy").sample(4, torch.Generator().manual_seed(0))
    >>> logits = torch.zeros_like(batch.targets)
    >>> parts = [batch.select(torch.tensor(part)) for part in ([0, 1], [2, 3])]
    >>> steps = int(batch.mask.sum())
    >>> sums = sum(loss(logits[: len(p.mask), :2], p, steps) for p in parts)
    >>> torch.allclose(sums, loss(logits, batch))
    True
    """
    _check_logits(logits, batch)
    mask = batch.mask
    steps = mask.sum() if answer_steps is None else answer_steps
    # A quotient of the mask itself would be of float32 precision, also in float64.
    weight = mask.unsqueeze(-1).to(logits.dtype) / (steps * logits.shape[-1])
    return F.binary_cross_entropy_with_logits(logits, batch.targets, weight, reduction="sum")


def bits(logits: Tensor, batch: Batch) -> Tensor:
    """Cost of each sequence in bits: cross-entropy summed over its answer steps, by ln 2.

    Shapes as in :func:`loss`; returns ``[B]``.
    """
    _check_logits(logits, batch)
    # Without its dtype the mask would be divided in float32, also for logits in float64.
    mask = batch.mask.unsqueeze(-1).to(torch.result_type(logits, batch.targets))
    weight = mask / math.log(2)
    cost = F.binary_cross_entropy_with_logits(logits, batch.targets, weight, reduction="none")
    return cost.sum(dim=(0, 2))


def wrong(logits: Tensor, batch: Batch) -> Tensor:
    """Whether any answer bit of a sequence is wrong: ``[B]`` bool, from :func:`wrong_bits`."""
    return wrong_bits(logits, batch).any(dim=2).any(dim=0)


def wrong_bits(logits: Tensor, batch: Batch) -> Tensor:
    """Which answer bits are wrong: ``[T, B, O]`` bool, False outside of the answer steps.

    A logit above 0 answers 1, and any other answers 0. NaN is wrong.
    """
    _check_logits(logits, batch)
    right = torch.where(batch.targets > 0.5, logits > 0, logits <= 0)
    return ~right & batch.mask.unsqueeze(-1)


def from_mapping(cls: type[Task], values: Mapping[str, Any]) -> Task:
    """A task of class ``cls`` from its parameters.

    Raises:
        ValueError: an unknown or missing parameter, or a value of another type or outside its
            range.
    """
    known = [f.name for f in fields(cls)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise ValueError(f"{cls.name} has no parameter {', '.join(unknown)}; {has}")
    missing = [
        f.name
        for f in fields(cls)
        if f.default is MISSING and f.default_factory is MISSING and f.name not in values
    ]
    if missing:
        raise ValueError(f"{cls.name} has no default for {', '.join(missing)}: give a value")
    try:
        check_values(cls, values)
    except ValueError as error:
        raise ValueError(f"{cls.name}: {error}") from error
    return cls(**values)
