"""The tasks of the paper: synthetic, made on the fly, seeded.

>>> import torch
>>> from ntm_kernels import tasks
>>> task = tasks.make("copy", max_length=5)
>>> batch = task.sample(batch_size=4, generator=torch.Generator().manual_seed(0))
>>> torch.allclose(tasks.bits(torch.zeros_like(batch.targets), batch), 8.0 * (batch.lengths // 2))
True
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ntm_kernels.tasks.associative_recall import AssociativeRecall
from ntm_kernels.tasks.base import Batch, Task, bits, from_mapping, loss, wrong
from ntm_kernels.tasks.copy import Copy
from ntm_kernels.tasks.ngrams import NGrams, optimal_probabilities
from ntm_kernels.tasks.priority_sort import PrioritySort
from ntm_kernels.tasks.repeat_copy import RepeatCopy

__all__ = [
    "TASKS",
    "AssociativeRecall",
    "Batch",
    "Copy",
    "NGrams",
    "PrioritySort",
    "RepeatCopy",
    "Task",
    "bits",
    "from_dict",
    "loss",
    "make",
    "optimal_probabilities",
    "wrong",
]

#: Every task by its name.
TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Copy, RepeatCopy, AssociativeRecall, NGrams, PrioritySort)
}


def make(name: str, **parameters: Any) -> Task:
    """A task by its name, with parameters other than the paper's where given.

    Raises:
        ValueError: an unknown task or parameter, or a parameter outside its range.
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return from_mapping(TASKS[name], parameters)


def from_dict(values: Mapping[str, Any]) -> Task:
    """The task that :meth:`Task.to_dict` described."""
    parameters = dict(values)
    return make(parameters.pop("name", None), **parameters)
