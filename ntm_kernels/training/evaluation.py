"""How good a model is: on its own task and on the longer sequences of the paper."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from ntm_kernels import tasks
from ntm_kernels.tasks import Batch, Task
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.models import answer, compute_dtype

__all__ = [
    "AS_TRAINED",
    "Score",
    "evaluate",
    "fresh_generator",
    "score",
    "test_sets",
    "validation_optimum",
]

#: Title of the test on the task as it was trained.
AS_TRAINED = "as trained"
# Sequences evaluated at once: enough to fill the vector units, few enough to stay in the cache.
_CHUNK = 64


class Score(NamedTuple):
    """Costs over a set of sequences.

    Attributes:
        sequences: how many.
        bits: mean cost of a sequence.
        wrong: how many sequences have any wrong answer bit.
        optimal_bits: mean cost of the best possible predictor on the same sequences.
    """

    sequences: int
    bits: float
    wrong: int
    optimal_bits: float


def fresh_generator(seed: int, purpose: str) -> torch.Generator:
    """A generator for one purpose of a run, unrelated to those for its other purposes."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def fixed_set(task: Task, size: int, config: TrainConfig, purpose: str) -> list[Batch]:
    """Sequences that depend on the seed and the purpose alone, in chunks of similar length."""
    batch = task.sample(size, fresh_generator(config.seed, purpose))
    chunks = batch.sorted_chunks(_CHUNK)
    return [chunk.to(config.device, compute_dtype(config)) for chunk in chunks]


def test_sets(config: TrainConfig) -> dict[str, Task]:
    """The tasks on which a run is tested at its end, by their titles."""
    return {AS_TRAINED: config.task, **config.task.suite()}


@torch.no_grad()
def score(model: nn.Module, batches: Sequence[Batch], config: TrainConfig) -> Score:
    """Costs of a model's answers to some batches."""
    costs, wrong, optimal = [], [], []
    for batch in batches:
        logits = answer(model, batch.inputs, config)
        costs.append(tasks.bits(logits, batch).double())
        wrong.append(tasks.wrong(logits, batch))
        optimal.append(config.task.optimal_bits(batch))
    return Score(
        sequences=sum(len(cost) for cost in costs),
        bits=float(torch.cat(costs).mean()),
        wrong=int(torch.cat(wrong).sum()),
        optimal_bits=float(torch.cat(optimal).mean()),
    )


def validation_optimum(config: TrainConfig) -> float:
    """Bits per sequence of the best possible predictor on a run's validation set."""
    batches = fixed_set(config.task, config.validation_size, config, "validation")
    return float(torch.cat([config.task.optimal_bits(batch) for batch in batches]).mean())


def evaluate(model: nn.Module, config: TrainConfig) -> dict[str, Score]:
    """Scores on fresh sequences of every test set, by title."""
    return {
        title: score(
            model, fixed_set(task, config.evaluation_size, config, f"test {title}"), config
        )
        for title, task in test_sets(config).items()
    }
