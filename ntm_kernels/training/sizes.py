"""Says which options to change where sizes ask for more memory than there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch

from ntm_kernels.allocation import SIGNS
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.errors import TrainingError

__all__ = ["naming_sizes"]

_SIZES = (
    *("batch_size", "memory_size", "word_size", "num_read_heads", "num_write_heads"),
    *("shift_range", "hidden_size", "num_layers", "validation_size", "evaluation_size"),
)
_MESSAGES = (*SIGNS, "negative dimension")


@contextmanager
def naming_sizes(config: TrainConfig) -> Iterator[None]:
    """Turns the allocator's error into a :class:`TrainingError` that names options."""
    try:
        yield
    except (MemoryError, RuntimeError, TypeError, ValueError) as error:
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not (known or any(part in str(error) for part in _MESSAGES)):
            raise
        raise TrainingError(
            f"there is not enough memory on device {config.device!r} for these sizes; make "
            f"{' or '.join(_largest(config))} smaller"
        ) from error


def _largest(config: TrainConfig) -> list[str]:
    """The sizes farthest above their defaults, or where none is, those that cost the most."""
    sizes: list[tuple[float, str]] = []
    for owner, names in (
        (config, _SIZES),
        (config.task, tuple(field.name for field in fields(config.task))),
    ):
        defaults: dict[str, Any] = {field.name: field.default for field in fields(owner)}
        for name in names:
            value, default = getattr(owner, name), defaults[name]
            if type(value) is int and type(default) is int and value > default:
                option = f"--{name.replace('_', '-')} {value}"
                sizes.append((value / max(default, 1), option))
    if not sizes:
        return [f"--batch-size {config.batch_size}", f"--memory-size {config.memory_size}"]
    sizes.sort(reverse=True)
    return [option for ratio, option in sizes if ratio * 100 >= sizes[0][0]][:3]
