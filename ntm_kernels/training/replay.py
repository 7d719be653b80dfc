"""What a model did with one sequence, as images for the pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ntm_kernels import NTM, functional
from ntm_kernels.tasks import Batch, bits
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.models import answer

__all__ = ["Example", "Heads", "Image", "record_example", "record_heads", "walked_locations"]

#: ``[rows, T]``: one column for each step.
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
        return f"{wrong} of {total} bits wrong" if wrong else f"all {total} bits right"


@dataclass(frozen=True)
class Heads:
    """What an NTM's heads did, one image for each head.

    Attributes:
        write_weightings: ``[N, T]`` for each write head.
        read_weightings: ``[N, T]`` for each read head.
        added: add vectors ``[M, T]`` of each write head.
        read: read vectors ``[M, T]`` of each read head.
    """

    write_weightings: list[Image]
    read_weightings: list[Image]
    added: list[Image]
    read: list[Image]


def _image(values: Tensor) -> Image:
    """``[T, rows]`` as an image."""
    image: Image = values.double().cpu().numpy().T
    return image


@torch.no_grad()
def record_example(title: str, model: nn.Module, batch: Batch, config: TrainConfig) -> Example:
    """Answers the first sequence of a batch."""
    batch = batch.select(torch.zeros(1, dtype=torch.long, device=batch.lengths.device))
    logits = answer(model, batch.inputs, config)
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

    The trace has weightings, erase and add vectors; the read vectors follow from them by writing
    the memory again from its initial value.
    """
    inputs = batch.inputs[:, :1]
    state = model.initial_state(1)
    _, _, trace = model(inputs, return_trace=True)
    num_read_heads = state.read_vectors.shape[1]
    read_weightings, write_weightings = trace.weightings.split(
        [num_read_heads, trace.weightings.shape[2] - num_read_heads], dim=2
    )
    memory, read_vectors = state.memory, []
    for t in range(len(inputs)):
        read_vectors.append(functional.read(memory, read_weightings[t]))
        memory = functional.write(memory, write_weightings[t], trace.erase[t], trace.add[t])
    read = torch.stack(read_vectors)

    def by_head(values: Tensor) -> list[Image]:
        return [_image(values[:, 0, head]) for head in range(values.shape[2])]

    return Heads(
        write_weightings=by_head(write_weightings),
        read_weightings=by_head(read_weightings),
        added=by_head(trace.add),
        read=by_head(read),
    )


def walked_locations(heads: Heads, threshold: float = 0.02) -> NDArray[np.int64]:
    """The locations to show, from top to bottom, so that the first write head walks down.

    These are the shortest stretch of the circular memory that has every location on which a head
    ever put a weight of ``threshold``, in falling order if that is how the head mostly moves. When
    all of the memory is used, the stretch begins where the head does.

    >>> weighting = np.eye(6)[:, [1, 0, 5]]
    >>> walked_locations(Heads([weighting], [weighting], [], []))
    array([1, 0, 5])
    """
    weightings = heads.write_weightings + heads.read_weightings
    size = len(weightings[0])
    highest = np.max([weighting.max(axis=1) for weighting in weightings], axis=0)
    used = np.flatnonzero(highest >= threshold)
    focus = heads.write_weightings[0].argmax(axis=0)
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
