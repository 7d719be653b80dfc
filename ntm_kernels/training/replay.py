"""What a model did with one sequence, as images for the pictures.

A picture has fewer columns and rows than a long sequence has steps and a large memory has
locations. One column then stands for a block of steps, one row for a block of locations, and shows
the largest value of its block, so that neither a wrong bit nor a narrow focus can vanish. The
weightings of all steps and locations would not fit the working memory. They are made a piece of the
sequence at a time, and only the blocks are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ntm_kernels import NTM, functional
from ntm_kernels.nn.state import NTMState
from ntm_kernels.reference import Trace
from ntm_kernels.tasks import Batch, bits
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.models import answer_in_pieces

__all__ = [
    "MOST_COLUMNS",
    "MOST_ROWS",
    "Example",
    "Heads",
    "Image",
    "block_size",
    "largest",
    "record_example",
    "record_heads",
    "walked_locations",
]

#: Columns of an image at most; a sequence with more steps has several of them in a column.
MOST_COLUMNS = 800
#: Rows of an image of weightings at most.
MOST_ROWS = 300
# Weights of a trace that are held at once: 16 MiB in float32.
_TRACED = 2**22

#: ``[rows, columns]``: one column for each step, or for each block of steps.
Image = NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """One sequence with a model's answer to it.

    Attributes:
        title: the test set it is from.
        inputs: ``[I, T]``.
        targets: ``[O, T]``.
        outputs: ``[O, T]``, probabilities in the answer steps, 0 elsewhere.
        answering: ``[T]``, True in the answer steps.
        optimal: ``[O, T]``, probabilities of the best predictor where even that is unsure.
        bits: cost of the outputs.
        optimal_bits: cost of the best predictor.
    """

    title: str
    inputs: Image
    targets: Image
    outputs: Image
    answering: NDArray[np.bool_]
    optimal: Image | None
    bits: float
    optimal_bits: float

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """``[O, T]``, where rounding the output does not give the target."""
        different: NDArray[np.bool_] = (self.outputs > 0.5) != (self.targets > 0.5)
        return different & self.answering

    @property
    def verdict(self) -> str:
        """How good the answer is, in words."""
        if self.optimal is not None:
            return f"{self.bits:.1f} bits, the optimum is {self.optimal_bits:.1f}"
        wrong, total = int(self.wrong.sum()), int(self.answering.sum()) * len(self.targets)
        return f"{wrong:,} of {total:,} bits wrong" if wrong else f"all {total:,} bits right"

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


def block_size(count: int, most: int) -> int:
    """How many of ``count`` steps or locations share a block, so that there are ``most`` at most.

    >>> block_size(20001, most=800), block_size(41, most=800)
    (26, 1)
    """
    return -(-count // most)


def largest(image: NDArray[Any], steps: int, locations: int = 1) -> Image:
    """The largest value of each block of so many steps and locations of an image.

    >>> largest(np.eye(4), steps=2)
    array([[1., 0.],
           [1., 0.],
           [0., 1.],
           [0., 1.]])
    """
    for axis, every in enumerate((locations, steps)):
        if every > 1:
            image = np.maximum.reduceat(image, range(0, image.shape[axis], every), axis=axis)
    return image


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
        outputs=_image((logits.sigmoid() * batch.mask.unsqueeze(-1))[:, 0]),
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


def _record_vectors(runs: _Runs) -> tuple[list[Image], list[Image]]:
    """Add vectors of the write heads and read vectors of the read heads.

    A trace has no read vectors: they follow from it by writing the memory again.
    """
    added, read = [], []
    for state, trace in runs:
        memory, num_read_heads = state.memory, state.read_vectors.shape[1]
        for t in range(len(trace.weightings)):
            of_reads, of_writes = trace.weightings[t].tensor_split([num_read_heads], dim=1)
            read.append(functional.read(memory, of_reads))
            memory = functional.write(memory, of_writes, trace.erase[t], trace.add[t])
        added.append(trace.add)

    def by_head(values: Tensor) -> list[Image]:
        return [_image(values[:, 0, head]) for head in range(values.shape[2])]

    return by_head(torch.cat(added)), by_head(torch.stack(read))


def walked_locations(
    highest: NDArray[np.float64], focus: NDArray[np.int64], threshold: float = 0.02
) -> NDArray[np.int64]:
    """The locations to show, from top to bottom, so that the first write head walks down.

    These are the shortest stretch of the circular memory that has every location on which a head
    ever put a weight of ``threshold``, in falling order if that is how the head mostly moves. When
    all of the memory is used, the stretch begins where the head does.

    Args:
        highest: ``[N]``, the highest weight that any head ever put on each location.
        focus: ``[T]``, where the first write head was at each step.

    >>> walked_locations(np.array([1.0, 1, 0, 0, 0, 1]), np.array([1, 0, 5]))
    array([1, 0, 5])
    """
    size = len(highest)
    used = np.flatnonzero(highest >= threshold)
    moves = (np.diff(focus) + size // 2) % size - size // 2
    falling = moves.sum() < 0
    if len(used) in (0, size):
        stretch = focus[0] + np.arange(size) + (1 if falling else 0)
    else:
        # The stretch starts after the longest gap between neighbours around the circle.
        gaps = np.diff(used, prepend=used[-1] - size)
        stretch = used[gaps.argmax()] + np.arange(size - gaps.max() + 1)
    shown: NDArray[np.int64] = stretch[::-1] % size if falling else stretch % size
    return shown
