"""``plot_trace``: where the heads of an NTM were, and what they wrote and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ntm_kernels.plotting.blocks import (
    MOST_COLUMNS,
    MOST_ROWS,
    Image,
    block_size,
    largest,
    walked_locations,
)
from ntm_kernels.reference import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_heads_sheet", "plot_trace"]


def plot_trace(
    trace: Trace,
    *,
    sequence: int = 0,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    read_vectors: Tensor | None = None,
    locations: Sequence[int] | None = None,
    answer_from: int | None = None,
    title: str = "",
) -> Figure:
    """Draws what every head did with one sequence: writing on the left, reading on the right.

    Each head has its weightings over time, one column a step and one row a location, on a scale
    from 0 to 1. Write heads have their add vectors above. A column stands for several steps where
    there are more than 800, a row for several locations where more than 300 are shown; it shows the
    largest value of them.

    Args:
        trace: of ``model(x, return_trace=True)``, of ``NTMCell.unroll`` or of
            ``functional.sequence``, on any device.
        sequence: which of the batch.
        inputs: ``[T, B, I]``, drawn above the write heads.
        outputs: ``[T, B, O]``, drawn above the read heads; probabilities have the scale 0 to 1.
        read_vectors: ``[T, B, R, M]``, drawn above the weightings of their head.
        locations: those to show, from top to bottom; unset: those that a head ever put a weight of
            0.02 on, so that the first write head walks down.
        answer_from: a step to mark with a dashed line.
        title: the words above.

    Returns:
        A matplotlib figure of its own, unknown to pyplot; ``figure.savefig(path)`` writes it.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a shape that does not fit the trace, or a sequence or location out of range.

    >>> import torch, ntm_kernels
    >>> model = ntm_kernels.NTM(3, 2, 8, memory_size=16, word_size=4, num_read_heads=2)
    >>> x = torch.randn(20, 1, 3)
    >>> output, state, trace = model(x, return_trace=True)
    >>> figure = ntm_kernels.plot_trace(trace, inputs=x, outputs=output.sigmoid())
    >>> [title for axes in figure.axes if (title := axes.get_title("left"))][:3]
    ['inputs', 'add vectors, write head', 'weightings, write head']
    """
    _check(trace, sequence, {"inputs": inputs, "outputs": outputs, "read_vectors": read_vectors})
    steps, _, heads, memory_size = trace.weightings.shape
    num_write_heads = trace.erase.shape[2]
    weightings = _array(trace.weightings[:, sequence])
    shown = _shown_locations(weightings, heads - num_write_heads, memory_size, locations)
    every = block_size(steps, MOST_COLUMNS)
    rows = block_size(len(shown), MOST_ROWS)
    images = [largest(weightings[:, head, shown].T, every, rows) for head in range(heads)]

    def vectors(value: Tensor | None) -> list[Image]:
        if value is None:
            return []
        return [largest(_array(one).T, every) for one in value[:, sequence].unbind(1)]

    def channels(value: Tensor | None) -> Image | None:
        return None if value is None else largest(_array(value[:, sequence]).T, every)

    return draw_heads_sheet(
        inputs=channels(inputs),
        outputs=channels(outputs),
        added=vectors(trace.add),
        read=vectors(read_vectors),
        write_weightings=images[heads - num_write_heads :],
        read_weightings=images[: heads - num_write_heads],
        locations=shown,
        block=(rows, every),
        begin=answer_from or 0,
        title=title,
    )


def _check(trace: Trace, sequence: int, given: Mapping[str, Tensor | None]) -> None:
    steps, batch, _, _ = trace.weightings.shape
    if not 0 <= sequence < batch:
        raise ValueError(f"plot_trace: sequence must be in 0 … {batch - 1}, got {sequence}")
    for name, value in given.items():
        dims = 4 if name == "read_vectors" else 3
        if value is not None and (value.dim() != dims or value.shape[:2] != (steps, batch)):
            raise ValueError(
                f"plot_trace: {name} must have {dims} dimensions, the first {steps} and {batch} as "
                f"in the trace, got {list(value.shape)}"
            )


def _array(values: Tensor) -> Any:
    return values.detach().double().cpu().numpy()


def _shown_locations(
    weightings: Image, first_write: int, memory_size: int, asked: Sequence[int] | None
) -> Any:
    """The numbers of the locations to show, of weightings ``[T, H, N]``."""
    if asked is None:
        if len(weightings) == 0 or first_write == weightings.shape[1]:
            return np.arange(memory_size)
        focus = weightings[:, first_write].argmax(axis=1)
        return walked_locations(weightings.max(axis=(0, 1)), focus)
    shown = np.asarray(list(asked), dtype=np.int64)
    if len(shown) == 0 or shown.min() < 0 or shown.max() >= memory_size:
        raise ValueError(
            f"plot_trace: locations must be some of 0 … {memory_size - 1}, got {list(asked)}"
        )
    return shown


def draw_heads_sheet(
    *,
    inputs: Image | None,
    outputs: Image | None,
    added: Sequence[Image],
    read: Sequence[Image],
    write_weightings: Sequence[Image],
    read_weightings: Sequence[Image],
    locations: Any,
    block: tuple[int, int],
    begin: int,
    title: str,
) -> Figure:
    """Writing on the left, reading on the right (figure 6 of the paper).

    Args:
        inputs, outputs: ``[channels, columns]``, above the heads of their side.
        added, read: a vector ``[M, columns]`` for each write or read head, or none of a side.
        write_weightings, read_weightings: ``[rows, columns]`` for each head.
        locations: the numbers of the locations that the rows show.
        block: how many locations share a row, and how many steps a column.
        begin: the step where a dashed line stands; 0: none.
        title: the words above.
    """
    import matplotlib

    from ntm_kernels.plotting.heads import channels_panel, heads_panels
    from ntm_kernels.plotting.sheet import STYLE, sheet

    left = [
        channels_panel("inputs", "channel", inputs, block[1]),
        *heads_panels("write", added, write_weightings, locations, block),
    ]
    right = [
        channels_panel("outputs", "bit", outputs, block[1]),
        *heads_panels("read", read, read_weightings, locations, block),
    ]
    columns = [column for column in (left, right) if any(column)]
    steps = max(panel.image.shape[1] for column in columns for panel in column if panel)
    with matplotlib.rc_context(STYLE):
        figure, axes = sheet(
            columns,
            title,
            cell=min(5.6 / max(steps, 1), 0.16),
            smallest=0.6,
            gap=0.34,
            # Many heads, one below the other, would make a sheet that no screen shows.
            tallest=max(1.6, 6.0 / max(len(write_weightings), len(read_weightings), 1)),
        )
        for column in axes:
            for one in column:
                if one is not column[-1]:
                    one.set_xticklabels([])
                if begin:
                    one.axvline(begin - 0.5, color="0.65", linewidth=0.9, linestyle=(0, (3, 3)))
            column[-1].set_xlabel("step" + (" (dashed: the answer begins)" if begin else ""))
    return figure
