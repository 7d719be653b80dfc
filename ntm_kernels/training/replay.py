"""What a model did with one sequence, as images for the pictures.

The weightings of all steps and locations of a long sequence would not fit the working memory. They
are made a piece of the sequence at a time, and only the blocks that a picture shows are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ntm_kernels import NTM, functional
from ntm_kernels.nn.state import NTMState
from ntm_kernels.plotting.blocks import (
    MOST_COLUMNS,
    MOST_ROWS,
    Image,
    block_size,
    largest,
    walked_locations,
)
from ntm_kernels.reference import Trace
from ntm_kernels.tasks import Batch, bits, wrong_bits
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.evaluation import verdict, verdict_beside_optimum
from ntm_kernels.training.models import answer_in_pieces

__all__ = [
    "Example",
    "Heads",
    "record_example",
    "record_heads",
    "record_memories",
]

# Elements of the weightings of a trace that are held at once: 16 MiB in float32.
_TRACED = 2**22


@dataclass(frozen=True)
class Example:
    """One sequence with a model's answer to it.

    Attributes:
        title: the test set it is from.
        inputs: ``[I, T]``.
        targets: ``[O, T]``.
        outputs: ``[O, T]``, probabilities in the answer steps, 0 elsewhere.
        wrong: ``[O, T]``, True where an answer bit is wrong.
        answering: ``[T]``, True in the answer steps.
        optimal: ``[O, T]``, probabilities of the best predictor where even that is unsure.
        bits: cost of the outputs.
        optimal_bits: cost of the best predictor.
    """

    title: str
    inputs: Image
    targets: Image
    outputs: Image
    wrong: NDArray[np.bool_]
    answering: NDArray[np.bool_]
    optimal: Image | None
    bits: float
    optimal_bits: float

    @property
    def verdict(self) -> str:
        """How good the answer is, in words."""
        if self.optimal is not None:
            return verdict_beside_optimum(self.bits, self.optimal_bits)
        return verdict(int(self.wrong.sum()), int(self.answering.sum()) * len(self.targets))

    @property
    def is_long(self) -> bool:
        """Whether it has too many steps for a column each."""
        return len(self.answering) > MOST_COLUMNS


@dataclass(frozen=True)
class Heads:
    """What an NTM's heads did, one image for each head.

    Attributes:
        write_weightings: ``[rows, columns]`` for each write head.
        read_weightings: ``[rows, columns]`` for each read head.
        added: add vectors ``[M, T]`` of each write head; none of a sequence with more than
            ``MOST_COLUMNS`` steps.
        read: read vectors ``[M, T]`` of each read head; none of such a sequence.
        locations: the locations that the rows show, from top to bottom. There are more of them
            than rows if several share a row.
        memory_size: how many locations the memory has.
    """

    write_weightings: list[Image]
    read_weightings: list[Image]
    added: list[Image]
    read: list[Image]
    locations: NDArray[np.int64]
    memory_size: int


def _image(values: Tensor) -> Image:
    """``[T, rows]`` as an image."""
    image: Image = values.double().cpu().numpy().T
    return image


@torch.no_grad()
def record_example(title: str, model: nn.Module, batch: Batch, config: TrainConfig) -> Example:
    """Answers the first sequence of a batch."""
    batch = batch.select(torch.zeros(1, dtype=torch.long, device=batch.lengths.device))
    logits = answer_in_pieces(model, batch.inputs, config)
    optimal = config.task.optimal_answer(batch)
    return Example(
        title=title,
        inputs=_image(batch.inputs[:, 0]),
        targets=_image(batch.targets[:, 0]),
        outputs=_image(logits.sigmoid().where(batch.mask.unsqueeze(-1), 0)[:, 0]),
        wrong=wrong_bits(logits, batch)[:, 0].T.cpu().numpy(),
        answering=batch.mask[:, 0].cpu().numpy(),
        optimal=None if optimal is None else _image(optimal[:, 0]),
        bits=bits(logits, batch).item(),
        optimal_bits=config.task.optimal_bits(batch).item(),
    )


@torch.no_grad()
def record_heads(model: NTM, batch: Batch) -> Heads:
    """Runs an NTM on the first sequence of a batch and keeps what its heads did.

    A sequence whose trace does not fit the working memory is run twice: the first run finds the
    locations to show, the second their blocks.
    """
    runs = _Runs(model, batch.inputs[:, :1])
    highest, focus = _used_locations(runs)
    locations = walked_locations(highest, focus)
    vectors = _record_vectors(runs) if runs.steps <= MOST_COLUMNS else ([], [])
    read_weightings, write_weightings = _record_weightings(runs, locations)
    return Heads(write_weightings, read_weightings, *vectors, locations, model.memory_size)


class _Runs:
    """Iterates over what the heads do in one piece of the steps after the other, with the state
    before the piece.

    The steps of every piece but the last are a multiple of the steps in a block. A sequence of one
    piece is run once, however often it is asked for; a longer one is run again each time.
    """

    def __init__(self, model: NTM, inputs: Tensor) -> None:
        self.model, self.device, self.steps = model, inputs.device, len(inputs)
        self.start = model.initial_state(1)
        self.block = block_size(self.steps, MOST_COLUMNS)
        blocks = max(1, _TRACED // (self.start.weightings.numel() * self.block))
        self.pieces = inputs.split(blocks * self.block)
        self.only = list(self._run()) if len(self.pieces) == 1 else None

    def __iter__(self) -> Iterator[tuple[NTMState, Trace]]:
        return self._run() if self.only is None else iter(self.only)

    def _run(self) -> Iterator[tuple[NTMState, Trace]]:
        state = self.start
        for piece in self.pieces:
            _, after, trace = self.model(piece, state, return_trace=True)
            yield state, trace
            state = after


def _used_locations(runs: _Runs) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The highest weight ``[N]`` on each location, and the focus ``[T]`` of the first write head.

    The weight is the highest of all heads and steps.
    """
    highest: list[Tensor] = []
    focus: list[Tensor] = []
    for state, trace in runs:
        weightings = trace.weightings[:, 0]
        highest.append(weightings.amax(dim=(0, 1)))
        focus.append(weightings[:, state.read_vectors.shape[1]].argmax(dim=1))
    of_all = torch.stack(highest).amax(dim=0)
    return of_all.double().cpu().numpy(), torch.cat(focus).cpu().numpy()


def _record_weightings(
    runs: _Runs, locations: NDArray[np.int64]
) -> tuple[list[Image], list[Image]]:
    """The weightings of the read heads and of the write heads on some locations, in blocks."""
    rows = block_size(len(locations), MOST_ROWS)
    chosen = torch.from_numpy(locations.copy()).to(runs.device)
    pieces: list[list[Image]] = []
    for state, trace in runs:
        num_read_heads = state.read_vectors.shape[1]
        by_head = trace.weightings[:, 0].index_select(2, chosen).unbind(1)
        pieces.append([largest(_image(one), runs.block, rows) for one in by_head])
    images = [np.concatenate(parts, axis=1) for parts in zip(*pieces, strict=True)]
    return images[:num_read_heads], images[num_read_heads:]


def _steps(state: NTMState, trace: Trace) -> Iterator[tuple[Tensor, Tensor]]:
    """The read vectors ``[B, R, M]`` of every step and the memory ``[B, N, M]`` after it.

    A trace has neither: they follow from it by writing the memory again.
    """
    memory, num_read_heads = state.memory, state.read_vectors.shape[1]
    for t in range(len(trace.weightings)):
        of_reads, of_writes = trace.weightings[t].tensor_split([num_read_heads], dim=1)
        read_vectors = functional.read(memory, of_reads)
        memory = functional.write(memory, of_writes, trace.erase[t], trace.add[t])
        yield read_vectors, memory


def _record_vectors(runs: _Runs) -> tuple[list[Image], list[Image]]:
    """Add vectors of the write heads and read vectors of the read heads."""
    added, read = [], []
    for state, trace in runs:
        read += [read_vectors for read_vectors, _ in _steps(state, trace)]
        added.append(trace.add)

    def by_head(values: Tensor) -> list[Image]:
        return [_image(values[:, 0, head]) for head in range(values.shape[2])]

    return by_head(torch.cat(added)), by_head(torch.stack(read))


@torch.no_grad()
def record_memories(model: NTM, batch: Batch, locations: NDArray[np.int64]) -> NDArray[np.float64]:
    """Runs an NTM on the first sequence of a batch and keeps the memory after every step.

    Args:
        model: the model.
        batch: sequences, of which the first counts.
        locations: the locations to keep, in the order in which they are wanted.

    Returns:
        ``[T, len(locations), M]``.
    """
    runs = _Runs(model, batch.inputs[:, :1])
    chosen = torch.from_numpy(locations.copy()).to(runs.device)
    memories = [
        memory[0].index_select(0, chosen)
        for state, trace in runs
        for _, memory in _steps(state, trace)
    ]
    kept: NDArray[np.float64] = torch.stack(memories).double().cpu().numpy()
    return kept
