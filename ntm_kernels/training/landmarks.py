"""Costs published for the tasks of the paper, to see a run beside them."""

from __future__ import annotations

from dataclasses import dataclass

from ntm_kernels.tasks import AssociativeRecall, Copy, NGrams, PrioritySort, Task

__all__ = ["Landmark", "landmarks"]


@dataclass(frozen=True)
class Landmark:
    """What a published curve reaches.

    Attributes:
        text: whose it is, and what.
        low, high: the range it lies in, by ``axis``.
        axis: ``"bits"`` per sequence reached in the end, or thousand ``"sequences"`` after which
            the cost is near zero.
    """

    text: str
    low: float
    high: float
    axis: str = "bits"


_COPY = (
    Landmark("pytorch-ntm near zero after", 30, 30, "sequences"),
    Landmark("paper near zero after", 100, 200, "sequences"),
)
# Figures 3, 10, 13 and 18 of Graves et al. (2014, arXiv 1410.5401); the repository of pytorch-ntm.
_PUBLISHED: tuple[tuple[Task, tuple[Landmark, ...]], ...] = (
    (Copy(), _COPY),
    (Copy(answer_channel=True), _COPY),
    (AssociativeRecall(), (Landmark("paper near zero after", 30, 30, "sequences"),)),
    (NGrams(), (Landmark("paper", 133, 134), Landmark("paper, LSTM", 136, 136))),
    (PrioritySort(), (Landmark("paper", 10, 20), Landmark("paper, LSTM", 50, 58))),
)


def landmarks(task: Task) -> tuple[Landmark, ...]:
    """What was published for exactly this task; nothing where its sizes differ from the paper's.

    >>> from ntm_kernels import tasks
    >>> [mark.text for mark in landmarks(tasks.make("priority_sort"))]
    ['paper', 'paper, LSTM']
    >>> landmarks(tasks.make("priority_sort", num_items=3, num_answers=2))
    ()
    """
    # Compared, not looked up: a task of one's own may have parameters that cannot be hashed.
    return next((marks for published, marks in _PUBLISHED if published == task), ())
