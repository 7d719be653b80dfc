"""A finished run, tested with other sequences or another memory than it was trained with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from ntm_kernels import NTM
from ntm_kernels.tasks import Task, Trial
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.evaluation import few_sequences, test_sets
from ntm_kernels.training.models import memory_size_of
from ntm_kernels.training.options import words_of

__all__ = ["Retest", "retest"]

# Numbers that a test reads by default: steps of all its sequences, times the weights and the
# elements of the memory, since a step uses each of them. About a minute of a core.
_AFFORDABLE = 10**11


@dataclass(frozen=True)
class Retest:
    """A test that differs from those at the end of the training.

    Attributes:
        config: the run's configuration, with the task and the memory size of this test.
        tests: the tests by their titles.
        title: what is different, in words.
        memory_size: the memory size that was asked for; None leaves the model's own.
    """

    config: TrainConfig
    tests: Mapping[str, Trial]
    title: str
    memory_size: int | None

    @property
    def folder(self) -> Path:
        """Where the results go by default, from the folder of the run."""
        return Path("tests", re.sub(r"[^\w.-]+", "_", self.title))

    def fit(self, model: nn.Module) -> None:
        """Gives a model the memory size of this test.

        Raises:
            ValueError: what the model has learned fixes its memory size.
        """
        if self.memory_size is not None and isinstance(model, NTM):
            try:
                model.memory_size = self.memory_size
            except ValueError as error:
                raise ValueError(f"--memory-size {self.memory_size}: {error}") from error

    def affordable(self, model: nn.Module) -> TrainConfig:
        """The configuration with fewer sequences, if a test with all of them would take long."""
        config = self.config
        used = sum(parameter.numel() for parameter in model.parameters())
        used += (memory_size_of(model) or 0) * config.word_size
        steps = max(
            len(few_sequences(trial.task, config, "length").inputs) for trial in self.tests.values()
        )
        most = max(1, _AFFORDABLE // (steps * used))
        return replace(config, evaluation_size=min(config.evaluation_size, most))


def retest(config: TrainConfig, options: Mapping[str, Any]) -> Retest | None:
    """The test that options of ``eval`` ask for; None if they leave task and memory as they are.

    Args:
        config: the run's configuration, with the other options of ``eval`` applied.
        options: parameters of its task, and ``memory_size``.

    Raises:
        ValueError: a value is outside its range, or the run's model cannot do such a test.
    """
    if not options:
        return None
    parameters = dict(options)
    memory_size = parameters.pop("memory_size", None)
    task = replace(config.task, **parameters)
    _check_channels(config.task, task, parameters)
    changed = replace(config, task=task)
    if memory_size is not None:
        if config.model == "lstm":
            raise ValueError(
                f"--memory-size {memory_size}: this run trained the LSTM baseline, which has no "
                "memory; leave --memory-size out"
            )
        # The test has this size throughout.
        changed = replace(changed, memory_size=memory_size, grow_memory=None, grow_again=None)
    title = _title(task, parameters)
    return Retest(
        config=changed,
        tests={title: Trial(task)} if parameters else _at_own_size(test_sets(config)),
        title=", ".join(
            ([title] if parameters else []) + [f"N {memory_size}"] * (memory_size is not None)
        ),
        memory_size=memory_size,
    )


def _at_own_size(tests: Mapping[str, Trial]) -> dict[str, Trial]:
    """The tests without the memory sizes that they name: the size asked for holds for all."""
    return {title: trial._replace(memory_size=None) for title, trial in tests.items()}


def _check_channels(trained: Task, task: Task, parameters: Mapping[str, Any]) -> None:
    """Raises ValueError where a model of one task cannot take the sequences of the other."""
    before, now = (trained.input_size, trained.output_size), (task.input_size, task.output_size)
    if before != now:
        given = " ".join(words_of(parameters))
        raise ValueError(
            f"{given}: the sequences would have {now[0]} input and {now[1]} output channels, but "
            f"this run's model was trained with {before[0]} and {before[1]}; leave out the options "
            "that change the channels"
        )


def _title(task: Task, names: Mapping[str, Any]) -> str:
    """The parameters that were given, in words, in the order of the task's own.

    Where the least and the most of something are the same, it is named once.

    >>> from ntm_kernels.tasks import Copy
    >>> _title(Copy(min_length=30, max_length=30), {"min_length": 30, "max_length": 30})
    'length 30'
    >>> _title(Copy(max_length=30), {"max_length": 30})
    'max length 30'
    """
    words: dict[str, Any] = {}
    for name in (field.name for field in fields(task) if field.name in names):
        value, what = getattr(task, name), name.removeprefix("min_").removeprefix("max_")
        ends = [getattr(task, f"{end}_{what}", None) for end in ("min", "max")]
        shown = what if what != name and ends == [value, value] else name
        words[shown.replace("_", " ")] = value
    return ", ".join(f"{name} {value}" for name, value in words.items())
