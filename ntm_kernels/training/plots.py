"""Pictures of a run: its answers, what its heads did, and how it learnt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FormatStrFormatter, LinearLocator, MaxNLocator
from numpy.typing import NDArray
from torch import nn

from ntm_kernels import NTM
from ntm_kernels.tasks import Batch, Task, Trial
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.evaluation import (
    AS_TRAINED,
    few_sequences,
    test_sets,
    validation_optimum,
)
from ntm_kernels.training.files import make_folder, writing
from ntm_kernels.training.landmarks import landmarks
from ntm_kernels.training.metrics import read_metrics
from ntm_kernels.training.models import compute_dtype, memory_of_at_least
from ntm_kernels.training.replay import (
    MOST_COLUMNS,
    MOST_ROWS,
    Example,
    Heads,
    Image,
    block_size,
    largest,
    record_example,
    record_heads,
)

__all__ = [
    "draw_answers",
    "draw_heads",
    "draw_learning_curve",
    "draw_long_heads",
    "draw_run",
    "draw_summary",
]

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 4,
    "savefig.dpi": 150,
}
_BITS, _SIGNED, _WEIGHTINGS = "viridis", "RdBu_r", "inferno"
_WRONG = ListedColormap([(0.0, 0.0, 0.0, 0.0), (1.0, 0.1, 0.1, 1.0)])
# Inches of the widest image of a sheet of answers.
_WIDE = 11.0
# Answer steps of a long sequence that are drawn one by one.
_LAST_STEPS = 60


@dataclass(frozen=True)
class _Panel:
    """An image to draw, with its words, colours and range of values.

    Attributes:
        block: how many locations share a row, and how many steps a column.
        first: the number of the first step.
        numbers: the numbers of the locations from top to bottom, where these are not 0, 1, 2 …
        wrong: where to draw red over the image.
    """

    title: str
    label: str
    image: Image
    colours: str
    low: float
    high: float
    block: tuple[int, int] = (1, 1)
    first: int = 0
    numbers: NDArray[np.int64] | None = None
    wrong: NDArray[np.bool_] | None = None


def draw_run(
    model: nn.Module,
    config: TrainConfig,
    run_dir: Path | None,
    folder: Path | None = None,
    tests: Mapping[str, Trial] | None = None,
) -> list[Path]:
    """Draws the pictures of a run into a folder, by default its ``pictures``; no display is needed.

    ``tests`` are drawn instead of the test sets. Without ``run_dir`` nothing of the training is.

    ``answers.png`` shows targets and outputs for every test set; ``heads_….png``, for every test
    set of an NTM, the weightings over time beside what is written and read;
    ``learning_curve.png`` the costs in metrics.csv beside those published, and ``summary.png`` the
    same above one sequence with the run's answer and the heads' weightings. Where a sequence is too
    long for a column each step, ``heads_….png`` shows the last answer steps, the error of all
    answer steps, and the weightings.

    Returns:
        The files written.
    """
    if folder is None:
        folder = (Path() if run_dir is None else run_dir) / "pictures"
    make_folder(folder)
    figures, examples, heads = {}, [], []
    with matplotlib.rc_context(_STYLE):
        for title, trial in (test_sets(config) if tests is None else tests).items():
            batch = _pick(title, trial.task, config)
            with memory_of_at_least(model, trial.memory_size):
                examples.append(record_example(title, model, batch, config))
                if isinstance(model, NTM):
                    heads.append(record_heads(model, batch))
            if isinstance(model, NTM):
                # A title of a task of one's own may hold what no file name can.
                name = re.sub(r"[^\w.-]+", "_", f"heads_{title}")
                draw = draw_long_heads if examples[-1].is_long else draw_heads
                figures[name] = draw(examples[-1], heads[-1], config)
        figures["answers"] = draw_answers(examples)
        if run_dir is not None and (run_dir / "metrics.csv").exists():
            rows = read_metrics(run_dir / "metrics.csv")
            figures["learning_curve"] = draw_learning_curve(rows, config)
            figures["summary"] = draw_summary(
                rows, examples[0], heads[0] if heads else None, config
            )
        drawn = []
        for name, figure in figures.items():
            drawn.append(folder / f"{name}.png")
            FigureCanvasAgg(figure)
            with writing(drawn[-1]):
                figure.savefig(drawn[-1])
    return drawn


def _pick(title: str, task: Task, config: TrainConfig) -> Batch:
    """The longest of a few fresh sequences, as a batch of one."""
    some = few_sequences(task, config, f"picture {title}")
    longest = some.select(some.lengths.argmax().view(1))
    return longest.to(config.device, compute_dtype(config))


def _sheet(
    columns: Sequence[Sequence[_Panel]], title: str, *, cell: float, smallest: float, gap: float
) -> tuple[Figure, list[list[Axes]]]:
    """Lays images out in columns, all with cells ``cell`` inches wide.

    Cells are square unless that would make an image lower than ``smallest`` inches; above each
    image with a title are ``gap`` inches. Where several steps share a cell, the whole image is
    ``_WIDE`` inches wide.
    """
    # The numbers of a large memory need room.
    numbers = [p.numbers.max() for c in columns for p in c if p.numbers is not None]
    left = 0.65 + 0.08 * max(0, len(str(max(numbers, default=0))) - 3)
    head, foot, right = 0.4, 0.45, 0.75

    def width(panel: _Panel) -> float:
        return _WIDE if panel.block[1] > 1 else panel.image.shape[1] * cell

    widths = [left + max(3.0, *map(width, column)) + right for column in columns]

    def height(panel: _Panel) -> float:
        return max(panel.image.shape[0] * cell, smallest)

    count = max(len(column) for column in columns)
    above = [gap if any(i < len(c) and c[i].title for c in columns) else 0.1 for i in range(count)]
    rows = [max(height(c[i]) for c in columns if i < len(c)) + above[i] for i in range(count)]
    size = (sum(widths), head + sum(rows) + foot)
    figure = Figure(figsize=size)
    figure.text(left / size[0], 1 - 0.28 / size[1], title, fontsize=12, weight="bold")

    axes: list[list[Axes]] = []
    for number, column in enumerate(columns):
        axes.append([])
        for row, panel in enumerate(column):
            x, top = sum(widths[:number]) + left, size[1] - head - sum(rows[:row]) - above[row]
            wide, high = width(panel), height(panel)
            place = (x / size[0], (top - high) / size[1], wide / size[0], high / size[1])
            beside = ((x + wide + 0.08) / size[0], place[1], 0.1 / size[0], place[3])
            axes[-1].append(_image_axes(figure, panel, place, beside))
    return figure, axes


def _image_axes(
    figure: Figure,
    panel: _Panel,
    place: tuple[float, float, float, float],
    beside: tuple[float, float, float, float],
) -> Axes:
    axes = figure.add_axes(place)
    drawn = _show(axes, panel)
    bar = figure.colorbar(drawn, cax=figure.add_axes(beside))
    bar.ax.tick_params(length=2, labelsize=7)
    bar.ax.yaxis.set_major_locator(LinearLocator(3))
    bar.ax.yaxis.set_major_formatter(FormatStrFormatter("%.2g"))
    bar.outline.set_visible(False)
    return axes


def _show(axes: Axes, panel: _Panel) -> AxesImage:
    rows, columns = panel.image.shape
    # The axes count locations and steps. The last row or column may stand for fewer than others.
    down, across = rows * panel.block[0], columns * panel.block[1]
    left = panel.first - 0.5
    place = (left, left + across, down - 0.5, -0.5)
    drawn = axes.imshow(
        panel.image,
        cmap=panel.colours,
        vmin=panel.low,
        vmax=panel.high,
        aspect="auto",
        interpolation="nearest",
        extent=place,
    )
    if panel.wrong is not None:
        axes.imshow(
            panel.wrong,
            cmap=_WRONG,
            vmin=0,
            vmax=1,
            aspect="auto",
            interpolation="nearest",
            extent=place,
        )
    # The frame would cover rows and columns at the edges that are as narrow as its lines.
    above = 0.02 if panel.block[0] > 1 else 0.0
    beside = 0.004 if panel.block[1] > 1 else 0.0
    axes.set_xlim(left - beside * across, left + (1 + beside) * across)
    axes.set_ylim((1 + above) * down - 0.5, -above * down - 0.5)
    if panel.label == "location":
        axes.set_facecolor(matplotlib.colormaps[panel.colours](0.0))
    counts = zip(("locations", "steps"), panel.block, strict=True)
    shared = " × ".join(f"{count} {what}" for what, count in counts if count > 1)
    axes.set_title(panel.title + (f" (largest of {shared})" if shared else ""))
    axes.set_ylabel(panel.label)
    axes.tick_params(length=2.5)
    # Numbers beside a low image, or below a narrow one, would overlap if there were six of them.
    inches = axes.get_window_extent()
    high, wide = inches.height / axes.figure.dpi, inches.width / axes.figure.dpi
    digits = len(str(panel.first + across))
    most = max(1, min(6, int(high / 0.2)))
    for axis, bins in (
        (axes.xaxis, max(1, min(6, int(wide / (0.1 * digits + 0.1))))),
        (axes.yaxis, most),
    ):
        axis.set_major_locator(MaxNLocator(nbins=bins, integer=True, min_n_ticks=1))
    if panel.numbers is not None:
        rows_with_ticks = _round_numbers(panel.numbers, most)
        labels = [str(number) for number in panel.numbers[rows_with_ticks]]
        axes.set_yticks(rows_with_ticks, labels)
    return drawn


def _round_numbers(numbers: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Where to put ticks on numbered rows: at round numbers that are not too close together.

    >>> _round_numbers(np.arange(95, 130), most=4)
    array([ 5, 15, 25])
    """
    ticks = MaxNLocator(nbins=most, integer=True).tick_values(0, len(numbers))
    distance = round(ticks[1] - ticks[0])
    kept: list[int] = []
    for row in np.flatnonzero(numbers % distance == 0).tolist():
        # The numbers go around the circle of locations, where the last one need not be round.
        if not kept or row - kept[-1] >= 0.6 * distance:
            kept.append(row)
    return np.array(kept)


def _error_name(example: Example) -> str:
    return "error" if example.optimal is None else "distance from the optimum"


def _error_panel(example: Example, shown: NDArray[np.bool_], title: str) -> _Panel:
    """How far the outputs are from the right ones, or from the best predictor's if that is unsure.

    It has the steps ``shown``, or the largest error of each block of them, and nothing where none
    of these is an answer step.
    """
    best = example.targets if example.optimal is None else example.optimal
    error = np.where(example.answering, np.abs(example.outputs - best), -1.0)[:, shown]
    steps = error.shape[1]
    every = block_size(steps, MOST_COLUMNS)
    error = largest(error, every)
    wrong = largest(example.wrong[:, shown], every) > 0
    return _Panel(
        title,
        "bit",
        np.where(error < 0, np.nan, error),
        _BITS,
        0,
        1,
        block=(1, every),
        wrong=None if example.optimal is not None else wrong,
    )


def draw_answers(examples: Sequence[Example]) -> Figure:
    """Target above output for every example (figures 4 and 8 of the paper).

    Wrong bits are red; where even the best predictor is unsure, its answer stands below instead. An
    answer that is too long for a column each step is one image of its errors.
    """
    panels: list[_Panel] = []
    for example in examples:
        shown = example.answering
        title = f"{example.title}: {example.verdict}"
        if shown.sum() > MOST_COLUMNS:
            panels.append(_error_panel(example, shown, f"{title}; {_error_name(example)}"))
            continue
        panels.append(_Panel(title, "target", example.targets[:, shown], _BITS, 0, 1))
        wrong = example.wrong[:, shown] if example.optimal is None else None
        panels.append(_Panel("", "output", example.outputs[:, shown], _BITS, 0, 1, wrong=wrong))
        if example.optimal is not None:
            panels.append(_Panel("", "optimum", example.optimal[:, shown], _BITS, 0, 1))
    longest = max((p.image.shape[1] for p in panels if p.block[1] == 1), default=1)
    figure, [axes] = _sheet(
        [panels], "targets and outputs", cell=min(_WIDE / longest, 0.2), smallest=0.55, gap=0.46
    )
    for number, one in enumerate(axes):
        one.set_yticks([])
        if number + 1 < len(axes) and not panels[number + 1].title:
            one.set_xticklabels([])
    axes[-1].set_xlabel("answer step")
    return figure


def draw_heads(example: Example, heads: Heads, config: TrainConfig) -> Figure:
    """Writing on the left, reading on the right (figure 6 of the paper).

    The memory is cut to the locations that any head uses.
    """
    every = block_size(len(heads.locations), MOST_ROWS)
    rows: dict[str, Any] = {"numbers": heads.locations, "block": (every, 1)}

    def panels(
        vectors: list[Image], weightings: list[Image], what: str, whose: str
    ) -> list[_Panel]:
        column = []
        bound = max(float(np.abs(vector).max()) for vector in vectors) or 1.0
        for head, (vector, weighting) in enumerate(zip(vectors, weightings, strict=True)):
            name = f"{whose} head" + (f" {head + 1}" if len(vectors) > 1 else "")
            column += [
                _Panel(f"{what}, {name}", "element", vector, _SIGNED, -bound, bound),
                _Panel(f"weightings, {name}", "location", weighting, _WEIGHTINGS, 0, 1, **rows),
            ]
        return column

    low, high = float(example.inputs.min()), float(example.inputs.max())
    left = [_Panel("inputs", "channel", example.inputs, _BITS, min(low, 0), max(high, 1))]
    left += panels(heads.added, heads.write_weightings, "add vectors", "write")
    right = [_Panel("outputs", "bit", example.outputs, _BITS, 0, 1)]
    right += panels(heads.read, heads.read_weightings, "read vectors", "read")

    title = f"{config.task.name.replace('_', ' ')}, {example.title}: {example.verdict}"
    figure, axes = _sheet(
        [left, right], title, cell=min(5.6 / len(example.answering), 0.16), smallest=0.6, gap=0.34
    )
    begin = int(np.argmax(example.answering))
    for column in axes:
        for one in column:
            if one is not column[-1]:
                one.set_xticklabels([])
            if begin:
                one.axvline(begin - 0.5, color="0.65", linewidth=0.9, linestyle=(0, (3, 3)))
        column[-1].set_xlabel("step" + (" (dashed: the answer begins)" if begin else ""))
    return figure


def draw_long_heads(example: Example, heads: Heads, config: TrainConfig) -> Figure:
    """The last answer steps one by one, then the errors and weightings of the whole sequence.

    A column of these stands for several steps, a row of the weightings for several locations, and
    each shows the largest value of its block.
    """
    end = int(np.flatnonzero(example.answering)[-1]) + 1
    first = max(0, end - _LAST_STEPS)
    last = slice(first, end)
    wrong = example.wrong[:, last] if example.optimal is None else None
    right = example.targets if example.optimal is None else example.optimal
    what = f"the last {end - first} of {int(example.answering.sum()):,} answer steps"
    name = "targets" if example.optimal is None else "optimum"
    panels = [
        _Panel(f"{name}, {what}", "bit", right[:, last], _BITS, 0, 1, first=first),
        _Panel("outputs", "bit", example.outputs[:, last], _BITS, 0, 1, first=first, wrong=wrong),
        _error_panel(
            example, np.ones_like(example.answering), f"{_error_name(example)}, all answer steps"
        ),
        *_weighting_panels(example, heads),
    ]
    high = [1.9 if panel.label == "location" else 0.6 for panel in panels]
    figure = Figure(figsize=(8, sum(high) + 0.42 * len(panels) + 0.6), layout="constrained")
    where = f"{example.title}, {heads.memory_size:,} locations"
    title = f"{config.task.name.replace('_', ' ')}, {where}: {example.verdict}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, weight="bold")
    images = figure.subplots(len(panels), height_ratios=high, squeeze=False)[:, 0]
    for number, (axes, panel) in enumerate(zip(images, panels, strict=True)):
        _show(axes, panel)
        if number not in (1, len(panels) - 1):
            axes.set_xticklabels([])
    images[-1].set_xlabel("step")
    return figure


def _weighting_panels(example: Example, heads: Heads) -> list[_Panel]:
    """The weightings of the write heads and of the read heads, the highest of all of one kind."""
    steps = len(example.answering)
    place: dict[str, Any] = {
        "block": (block_size(len(heads.locations), MOST_ROWS), block_size(steps, MOST_COLUMNS)),
        "numbers": heads.locations,
    }
    panels = []
    for whose, weightings in (("write", heads.write_weightings), ("read", heads.read_weightings)):
        name = f"weightings, {whose} head" + ("s" if len(weightings) > 1 else "")
        highest = np.max(weightings, axis=0)
        panels.append(_Panel(name, "location", highest, _WEIGHTINGS, 0, 1, **place))
    return panels


def draw_learning_curve(rows: Sequence[dict[str, float]], config: TrainConfig) -> Figure:
    """Bits per sequence against sequences seen (figures 3, 7, 10, 13 and 18 of the paper)."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    _plot_costs(figure.add_subplot(), rows, config)
    return figure


def _plot_costs(axes: Axes, rows: Sequence[dict[str, float]], config: TrainConfig) -> None:
    # A cost of exactly 0 has no place on a logarithmic axis; no float32 run shows less than this.
    least = 1e-6
    styles: dict[str, dict[str, Any]] = {
        "train": {"label": "training", "color": "0.65", "linewidth": 0.8},
        "validation": {"label": "validation", "color": "C0", "marker": "o", "markersize": 3},
    }
    for name, style in styles.items():
        costs = [(row["sequences"], row[f"{name}_bits"]) for row in rows if f"{name}_bits" in row]
        axes.plot(
            [sequences / 1000 for sequences, _ in costs],
            [max(bits, least) for _, bits in costs],
            **style,
        )
    if optimum := validation_optimum(config):
        label = f"optimum of the validation set: {optimum:.1f} bits"
        axes.axhline(optimum, color="C3", linewidth=0.8, linestyle="--", label=label)
    else:
        axes.set_yscale("log")
        axes.axhline(config.learnt_bits, color="C3", linewidth=0.8, linestyle="--")
        axes.annotate(
            f"learnt: {config.learnt_bits:g} bits",
            (0, config.learnt_bits),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            color="C3",
        )
    for number, mark in enumerate(landmarks(config.task)):
        span = axes.axhspan if mark.axis == "bits" else axes.axvspan
        unit = "bits" if mark.axis == "bits" else "thousand sequences"
        reach = f"{mark.low:g}" + (f"–{mark.high:g}" if mark.high > mark.low else "")
        colour = f"C{number + 1}"
        span(mark.low, mark.high, label=f"{mark.text} {reach} {unit}", color=colour, alpha=0.22)
    _mark_changes(axes, rows)
    axes.set_xlim(left=0)
    axes.set_xlabel("thousand sequences")
    axes.set_ylabel("bits per sequence")
    axes.set_title(f"{config.task.name.replace('_', ' ')}, {AS_TRAINED}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _mark_changes(axes: Axes, rows: Sequence[dict[str, float]]) -> None:
    """A line where a stage of a curriculum begins and where the memory grows, with its name."""
    for before, row in pairwise(rows):
        at = row["sequences"] / 1000
        for column, name, style, height in (
            ("stage", "stage {:.0f}", ":", 0.99),
            ("memory_size", "N = {:.0f}", "--", 0.9),
        ):
            if column not in row or row[column] == before.get(column, row[column]):
                continue
            text = name.format(row[column])
            axes.axvline(at, color="0.4", linewidth=0.8, linestyle=style, gid=text)
            axes.text(
                at,
                height,
                f" {text}",
                transform=axes.get_xaxis_transform(),
                rotation=90,
                verticalalignment="top",
                fontsize=7,
                color="0.3",
            )


def draw_summary(
    rows: Sequence[dict[str, float]],
    example: Example,
    heads: Heads | None,
    config: TrainConfig,
) -> Figure:
    """A run in one picture: how it learnt, an answer, and where the heads were meanwhile.

    Of several heads, the highest weight that any of them puts on a location is shown.
    """
    title = f"{example.title}: {example.verdict}"
    steps = len(example.answering)
    every = block_size(steps, MOST_COLUMNS)
    inputs, low = largest(example.inputs, every), min(example.inputs.min(), 0)
    panels = [
        _Panel("inputs", "channel", inputs, _BITS, low, 1, block=(1, every)),
    ]
    if example.is_long:
        everything = np.ones_like(example.answering)
        panels.append(_error_panel(example, everything, f"{_error_name(example)}, {title}"))
    else:
        panels.append(_Panel("targets", "bit", example.targets, _BITS, 0, 1))
        panels.append(_Panel(f"outputs, {title}", "bit", example.outputs, _BITS, 0, 1))
        if example.optimal is not None:
            panels.append(_Panel("optimum", "bit", example.optimal, _BITS, 0, 1))
    if heads is not None:
        panels += _weighting_panels(example, heads)
    high = [0.9 if panel.label == "location" else 0.55 for panel in panels]
    figure = Figure(figsize=(8, 3.2 + sum(high) + 0.42 * len(panels)), layout="constrained")
    curve, *images = figure.subplots(1 + len(panels), height_ratios=[3.2, *high])
    _plot_costs(curve, rows, config)
    for axes, panel in zip(images, panels, strict=True):
        _show(axes, panel)
        if axes is not images[-1]:
            axes.set_xticklabels([])
    images[-1].set_xlabel("step")
    return figure
