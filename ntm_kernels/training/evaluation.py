"""How good a model is: on its own task and on the longer sequences of the paper."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ntm_kernels import tasks
from ntm_kernels.tasks import Batch, Task, Trial
from ntm_kernels.tasks.checks import check_contents
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.models import (
    answer_in_pieces,
    compute_dtype,
    memory_of_at_least,
    memory_size_of,
    threads_of,
)

__all__ = [
    "AS_TRAINED",
    "PartScore",
    "Score",
    "evaluate",
    "few_sequences",
    "fresh_generator",
    "score",
    "sequence_to_show",
    "test_sets",
    "validation_optimum",
    "verdict",
    "verdict_beside_optimum",
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


class PartScore(NamedTuple):
    """Errors in some of the output channels.

    Attributes:
        steps: answer steps.
        wrong_steps: how many of these have a wrong bit in the channels.
        wrong_sequences: how many sequences have one.
    """

    steps: int
    wrong_steps: int
    wrong_sequences: int

    def __str__(self) -> str:
        return f"{self.wrong_steps / self.steps:.2%} of steps, {self.wrong_sequences} sequences"


class Score(NamedTuple):
    """Costs over a set of sequences.

    Attributes:
        sequences: how many.
        bits: mean cost of a sequence.
        wrong: how many sequences have any wrong answer bit.
        optimal_bits: mean cost of the best possible predictor on the same sequences.
        memory_size: the model's memory locations then; None of a model without a memory.
        parts: of each of ``Task.output_parts``, what is wrong in it.
    """

    sequences: int
    bits: float
    wrong: int
    optimal_bits: float
    memory_size: int | None
    parts: dict[str, PartScore]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        parts = {name: part._asdict() for name, part in self.parts.items()}
        return {**self._asdict(), "parts": parts}

    def __str__(self) -> str:
        optimum = f" (optimum {self.optimal_bits:.2f})" if self.optimal_bits else ""
        locations = "" if self.memory_size is None else f", N = {self.memory_size:,}"
        parts = "".join(f"; {name}: {part}" for name, part in self.parts.items())
        return (
            f"{self.bits:10.4f} bits per sequence{optimum}, {self.wrong} of {self.sequences} "
            f"sequences wrong{locations}{parts}"
        )


def verdict(wrong: int, total: int) -> str:
    """How good an answer is, from the number of its wrong bits and of all its bits.

    >>> verdict(0, 160), verdict(3, 1600)
    ('all 160 bits right', '3 of 1,600 bits wrong')
    """
    return f"{wrong:,} of {total:,} bits wrong" if wrong else f"all {total:,} bits right"


def verdict_beside_optimum(bits: float, optimal_bits: float) -> str:
    """How good an answer is where even the best predictor is unsure."""
    return f"{bits:.1f} bits, the optimum is {optimal_bits:.1f}"


def fresh_generator(seed: int, purpose: str) -> torch.Generator:
    """A generator for one purpose of a run, unrelated to those for its other purposes."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def fixed_set(
    task: Task,
    size: int,
    config: TrainConfig,
    purpose: str,
    *,
    seed: int | None = None,
    memory_size: int | None = None,
) -> list[Batch]:
    """Sequences that depend on a seed and the purpose alone, in chunks of similar length.

    Args:
        task: where they come from.
        size: how many.
        config: of the run.
        purpose: what they are for.
        seed: unset: that of the run.
        memory_size: the locations with which they are to be answered; unset: those of the run.

    Raises:
        ValueError: the task draws batches that are not as :class:`~ntm_kernels.tasks.Batch` says.
    """
    generator = fresh_generator(config.seed if seed is None else seed, purpose)
    batch = task.sample(size, generator)
    check_contents(task, batch)
    at_once = _CHUNK
    if config.model == "ntm":
        locations = config.memory_size if memory_size is None else memory_size
        at_once = max(1, min(_CHUNK, _MEMORY_ELEMENTS // (locations * config.word_size)))
    chunks = batch.sorted_chunks(at_once)
    return [chunk.to(config.device, compute_dtype(config)) for chunk in chunks]


def few_sequences(task: Task, config: TrainConfig, purpose: str) -> Batch:
    """Some sequences of a task, to see one of them or how long they are: 32, or one long one."""
    one = task.sample(1, fresh_generator(config.seed, purpose))
    if len(one.inputs) > _LONG:
        return one
    return task.sample(32, fresh_generator(config.seed, purpose))


def sequence_to_show(title: str, task: Task, config: TrainConfig) -> Batch:
    """The sequence that the pictures of a test show: the longest of a few, as a batch of one."""
    some = few_sequences(task, config, f"picture {title}")
    longest = some.select(some.lengths.argmax().view(1))
    return longest.to(config.device, compute_dtype(config))


def test_sets(config: TrainConfig) -> dict[str, Trial]:
    """The tests of a run at its end, by their titles.

    The long ones are among them if ``config.long_tests``.
    """
    harder = config.task.trials().items()
    wanted = {t: trial for t, trial in harder if config.long_tests or trial.sequences is None}
    return {AS_TRAINED: Trial(config.task), **wanted}


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
    parts = config.task.output_parts
    errors = torch.zeros(len(parts), 3, dtype=torch.float64, device=config.device)
    for batch in batches:
        logits = answer_in_pieces(model, batch.inputs, config, advance)
        costs, optimal = tasks.bits(logits, batch).double(), config.task.optimal_bits(batch)
        wrong_bits = tasks.wrong_bits(logits, batch)
        wrong_sequences = wrong_bits.any(dim=2).any(dim=0)
        sums += torch.stack([costs.sum(), wrong_sequences.sum(), optimal.sum()])
        for number, channels in enumerate(parts.values()):
            wrong_steps = wrong_bits[..., channels].any(dim=2)
            of_part = [batch.mask.sum(), wrong_steps.sum(), wrong_steps.any(dim=0).sum()]
            errors[number] += torch.stack(of_part)
    sequences, bits, wrong, optimal_bits, *of_parts = total(
        [sum(len(batch.lengths) for batch in batches), *sums.tolist(), *errors.flatten().tolist()]
    )
    return Score(
        sequences=int(sequences),
        bits=bits / sequences,
        wrong=int(wrong),
        optimal_bits=optimal_bits / sequences,
        memory_size=memory_size_of(model),
        parts={
            name: PartScore(*map(int, of_parts[3 * number : 3 * number + 3]))
            for number, name in enumerate(parts)
        },
    )


def validation_optimum(config: TrainConfig) -> float:
    """Bits per sequence of the best possible predictor on a run's validation set."""
    batches = fixed_set(config.task, config.validation_size, config, "validation")
    return float(torch.cat([config.task.optimal_bits(batch) for batch in batches]).mean())


def evaluate(
    model: nn.Module,
    config: TrainConfig,
    tests: Mapping[str, Trial] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Score]:
    """Scores on fresh sequences of every test set, by title.

    Args:
        model: the model.
        config: its configuration.
        tests: the tests to make by their titles, instead of :func:`test_sets`.
        report: takes a line about the size of every test, and more while a test takes long.
    """
    scores = {}
    for title, trial in (test_sets(config) if tests is None else tests).items():
        size = min(config.evaluation_size, trial.sequences or config.evaluation_size)
        with threads_of(config), memory_of_at_least(model, trial.memory_size) as locations:
            batches = fixed_set(
                trial.task,
                size,
                config,
                f"test {title}",
                seed=config.evaluation_seed,
                memory_size=locations,
            )
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
