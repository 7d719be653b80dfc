"""Checks of what a task draws: a wrong batch would be trained on without an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ntm_kernels.tasks.base import Batch, Task

__all__ = ["check_contents", "check_layout"]


def check_layout(task: Task, batch: Batch, batch_size: int) -> None:
    """Checks the types, shapes and dtypes of a batch.

    Raises:
        TypeError: it is no Batch of tensors.
        ValueError: a tensor has another shape or dtype than ``Batch`` says.
    """
    fields: dict[str, Any] = getattr(batch, "_asdict", dict)()
    if list(fields) != ["inputs", "targets", "mask", "lengths"]:
        raise TypeError(f"{_whose(task)} return a Batch, got {type(batch).__name__}")
    for name, value in fields.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{_whose(task)} return {name} as a tensor, got {type(value).__name__}")
    steps = len(batch.inputs) if batch.inputs.dim() else 0
    expected = {
        "inputs": ("[T, B, I]", (steps, batch_size, task.input_size), "floating point"),
        "targets": ("[T, B, O]", (steps, batch_size, task.output_size), "floating point"),
        "mask": ("[T, B]", (steps, batch_size), "bool"),
        "lengths": ("[B]", (batch_size,), "int64"),
    }
    for name, (letters, shape, kind) in expected.items():
        tensor: Tensor = fields[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        found = "floating point" if tensor.is_floating_point() else dtype
        if tensor.shape != shape or found != kind:
            raise ValueError(
                f"{_whose(task)} return {name} {letters} = {list(shape)}, {kind}; got "
                f"{list(tensor.shape)}, {dtype}"
            )


def check_contents(task: Task, batch: Batch) -> None:
    """Checks the values of a batch that has the right layout.

    Raises:
        ValueError: a target that is not 0 or 1, a sequence without an answer step, an answer step
            after the end of its sequence, or a T that is not the largest length.
    """
    steps = torch.arange(len(batch.mask)).unsqueeze(1)
    wrong = {
        "targets of 0 or 1": ((batch.targets != 0) & (batch.targets != 1)).any(),
        "an answer step, True in mask, in every sequence": ~batch.mask.any(dim=0).all(),
        "no answer step after the end of a sequence": (batch.mask & (steps >= batch.lengths)).any(),
        "inputs as long as the largest of lengths": batch.lengths.max() != len(batch.inputs),
    }
    for expected, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"{_whose(task)} return {expected}")


def _whose(task: Task) -> str:
    return f"the task {task.name}: _draw must"
