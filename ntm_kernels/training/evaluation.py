"""How good a model is: on its own task and on the longer sequences of the paper."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ntm_kernels import tasks
from ntm_kernels.tasks import Batch, Task
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.models import answer_in_pieces, compute_dtype

__all__ = [
    "AS_TRAINED",
    "Score",
    "evaluate",
    "few_sequences",
    "fresh_generator",
    "score",
    "test_sets",
    "validation_optimum",
]

#: Title of the test on the task as it was trained.
AS_TRAINED = "as trained"
# Sequences evaluated at once: enough to fill the vector units, few enough to stay in the cache.
_CHUNK = 64
# Elements that the memories of these sequences have together, at most: 16 MiB in float32.
_MEMORY_ELEMENTS = 2**22
# Sequences of more steps than this are drawn one at a time where one is enough.
_LONG = 1000
_SECONDS_BETWEEN_LINES = 10


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
    at_once = _CHUNK
    if config.model == "ntm":
        fitting = _MEMORY_ELEMENTS // (config.memory_size * config.word_size)
        at_once = max(1, min(_CHUNK, fitting))
    chunks = batch.sorted_chunks(at_once)
    return [chunk.to(config.device, compute_dtype(config)) for chunk in chunks]


def few_sequences(task: Task, config: TrainConfig, purpose: str) -> Batch:
    """Some sequences of a task, to see one of them or how long they are: 32, or one long one."""
    one = task.sample(1, fresh_generator(config.seed, purpose))
    if len(one.inputs) > _LONG:
        return one
    return task.sample(32, fresh_generator(config.seed, purpose))


def test_sets(config: TrainConfig) -> dict[str, Task]:
    """The tasks on which a run is tested at its end, by their titles."""
    return {AS_TRAINED: config.task, **config.task.suite()}


@torch.no_grad()
def score(
    model: nn.Module,
    batches: Sequence[Batch],
    config: TrainConfig,
    advance: Callable[[int], None] = lambda steps: None,
    total: Callable[[Sequence[float]], Sequence[float]] = lambda sums: sums,
) -> Score:
    """Costs of a model's answers to some batches.

    Args:
        model: the model.
        batches: what it answers.
        config: its configuration.
        advance: called now and then with the number of steps since it was called last, added up
            over the sequences of a batch.
        total: adds up the sums over these batches with those over the batches of other processes.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=config.device)
    for batch in batches:
        logits = answer_in_pieces(model, batch.inputs, config, advance)
        costs, optimal = tasks.bits(logits, batch).double(), config.task.optimal_bits(batch)
        sums += torch.stack([costs.sum(), tasks.wrong(logits, batch).sum(), optimal.sum()])
    sequences, bits, wrong, optimal_bits = total(
        [sum(len(batch.lengths) for batch in batches), *sums.tolist()]
    )
    return Score(
        sequences=int(sequences),
        bits=bits / sequences,
        wrong=int(wrong),
        optimal_bits=optimal_bits / sequences,
    )


def validation_optimum(config: TrainConfig) -> float:
    """Bits per sequence of the best possible predictor on a run's validation set."""
    batches = fixed_set(config.task, config.validation_size, config, "validation")
    return float(torch.cat([config.task.optimal_bits(batch) for batch in batches]).mean())


def evaluate(
    model: nn.Module,
    config: TrainConfig,
    tests: Mapping[str, Task] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Score]:
    """Scores on fresh sequences of every test set, by title.

    Args:
        model: the model.
        config: its configuration.
        tests: the tasks to test by their titles, instead of :func:`test_sets`.
        report: takes a line about the size of every test, and more while a test takes long.
    """
    scores = {}
    for title, task in (test_sets(config) if tests is None else tests).items():
        batches = fixed_set(task, config.evaluation_size, config, f"test {title}")
        progress = _Progress(title, batches, report)
        scores[title] = score(model, batches, config, progress.advance)
    return scores


class _Progress:
    """Reports how large a test is, and every ten seconds how far it has come."""

    def __init__(self, title: str, batches: Sequence[Batch], report: Callable[[str], None]) -> None:
        self._title, self._report = title, report
        self._total = sum(batch.inputs.shape[0] * batch.inputs.shape[1] for batch in batches)
        self._done = 0
        self._started = self._last = time.perf_counter()
        sequences = sum(len(batch.lengths) for batch in batches)
        lengths = torch.cat([batch.lengths for batch in batches])
        shortest, longest = int(lengths.min()), int(lengths.max())
        steps = f"{longest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
        report(f"{title}: {sequences:,} sequence{'s' * (sequences > 1)} of {steps} steps")

    def advance(self, steps: int) -> None:
        self._done += steps
        now = time.perf_counter()
        if now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            share, seconds = self._done / self._total, now - self._started
            self._report(f"{self._title}: {share:.0%} of the steps in {seconds:.0f} s")
