"""Pictures of a run: its answers, what its heads did, and how it learnt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FormatStrFormatter, FuncFormatter, LinearLocator, MaxNLocator
from numpy.typing import NDArray
from torch import nn

from ntm_kernels import NTM
from ntm_kernels.tasks import Batch, Task
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.evaluation import (
    AS_TRAINED,
    fresh_generator,
    test_sets,
    validation_optimum,
)
from ntm_kernels.training.files import make_folder, writing
from ntm_kernels.training.landmarks import landmarks
from ntm_kernels.training.metrics import read_metrics
from ntm_kernels.training.models import compute_dtype
from ntm_kernels.training.replay import (
    Example,
    Heads,
    Image,
    record_example,
    record_heads,
    walked_locations,
)

__all__ = ["draw_answers", "draw_heads", "draw_learning_curve", "draw_run", "draw_summary"]

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 4,
    "savefig.dpi": 150,
}
_BITS, _SIGNED, _WEIGHTINGS = "viridis", "RdBu_r", "inferno"
_WRONG = ListedColormap([(0.0, 0.0, 0.0, 0.0), (1.0, 0.1, 0.1, 1.0)])


@dataclass(frozen=True)
class _Panel:
    """An image to draw, with its words, colours and range of values."""

    title: str
    label: str
    image: Image
    colours: str
    low: float
    high: float
    #: The number of each row, where these are not 0, 1, 2 …
    numbers: NDArray[np.int64] | None = None


def draw_run(
    model: nn.Module, config: TrainConfig, run_dir: Path, folder: Path | None = None
) -> list[Path]:
    """Draws the pictures of a run into a folder, by default its ``pictures``; no display is needed.

    ``answers.png`` shows targets and outputs for every test set; ``heads_….png``, for every test
    set of an NTM, the weightings over time beside what is written and read;
    ``learning_curve.png`` the costs in metrics.csv beside those published, and ``summary.png`` the
    same above one sequence with the run's answer and the heads' weightings.

    Returns:
        The files written.
    """
    folder = run_dir / "pictures" if folder is None else folder
    make_folder(folder)
    figures, examples, heads = {}, [], []
    with matplotlib.rc_context(_STYLE):
        for title, task in test_sets(config).items():
            batch = _pick(title, task, config)
            examples.append(record_example(title, model, batch, config))
            if isinstance(model, NTM):
                heads.append(record_heads(model, batch))
                # A title of a task of one's own may hold what no file name can.
                name = re.sub(r"[^\w.-]+", "_", f"heads_{title}")
                figures[name] = draw_heads(examples[-1], heads[-1], config)
        figures["answers"] = draw_answers(examples)
        metrics = run_dir / "metrics.csv"
        if metrics.exists():
            rows = read_metrics(metrics)
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
    some = task.sample(32, fresh_generator(config.seed, f"picture {title}"))
    longest = some.select(some.lengths.argmax().view(1))
    return longest.to(config.device, compute_dtype(config))


def _sheet(
    columns: Sequence[Sequence[_Panel]], title: str, *, cell: float, smallest: float, gap: float
) -> tuple[Figure, list[list[Axes]]]:
    """Lays images out in columns, all with cells ``cell`` inches wide.

    Cells are square unless that would make an image lower than ``smallest`` inches; above each
    title are ``gap`` inches.
    """
    head, foot, left, right = 0.4, 0.45, 0.65, 0.75
    widths = [
        left + max(3.0, *(p.image.shape[1] * cell for p in column)) + right for column in columns
    ]

    def height(panel: _Panel) -> float:
        return max(panel.image.shape[0] * cell, smallest)

    count = max(len(column) for column in columns)
    above = [0.34 if any(i < len(c) and c[i].title for c in columns) else 0.1 for i in range(count)]
    rows = [max(height(c[i]) for c in columns if i < len(c)) + above[i] for i in range(count)]
    size = (sum(widths), head + sum(rows) + foot)
    figure = Figure(figsize=size)
    figure.text(left / size[0], 1 - 0.28 / size[1], title, fontsize=12, weight="bold")

    axes: list[list[Axes]] = []
    for number, column in enumerate(columns):
        axes.append([])
        for row, panel in enumerate(column):
            x, top = sum(widths[:number]) + left, size[1] - head - sum(rows[:row]) - above[row]
            wide, high = panel.image.shape[1] * cell, height(panel)
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
    rows, steps = panel.image.shape
    drawn = axes.imshow(
        panel.image,
        cmap=panel.colours,
        vmin=panel.low,
        vmax=panel.high,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, steps - 0.5, rows - 0.5, -0.5),
    )
    axes.set_title(panel.title)
    axes.set_ylabel(panel.label)
    axes.tick_params(length=2.5)
    # Numbers beside a low image would overlap if there were six of them.
    height = axes.get_window_extent().height / axes.figure.dpi
    for axis, most in ((axes.xaxis, 6), (axes.yaxis, max(1, min(6, int(height / 0.2))))):
        axis.set_major_locator(MaxNLocator(nbins=most, integer=True, min_n_ticks=1))
    if panel.numbers is not None:
        number = dict(enumerate(panel.numbers.tolist()))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda row, _: str(number.get(round(row), "")))
        )
    return drawn


def draw_answers(examples: Sequence[Example]) -> Figure:
    """Target above output for every example (figures 4 and 8 of the paper).

    Wrong bits are red; where even the best predictor is unsure, its answer stands below instead.
    """
    longest = max(int(example.answering.sum()) for example in examples)
    panels, wrong = [], {}
    for example in examples:
        shown = example.answering
        title = f"{example.title}: {example.verdict}"
        panels.append(_Panel(title, "target", example.targets[:, shown], _BITS, 0, 1))
        if example.optimal is None:
            wrong[len(panels)] = example.wrong[:, shown]
        panels.append(_Panel("", "output", example.outputs[:, shown], _BITS, 0, 1))
        if example.optimal is not None:
            panels.append(_Panel("", "optimum", example.optimal[:, shown], _BITS, 0, 1))
    figure, [axes] = _sheet(
        [panels], "targets and outputs", cell=min(11 / longest, 0.2), smallest=0.55, gap=0.46
    )
    for number, one in enumerate(axes):
        one.set_yticks([])
        if number + 1 < len(axes) and not panels[number + 1].title:
            one.set_xticklabels([])
        if number in wrong:
            one.imshow(
                wrong[number], cmap=_WRONG, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
            )
    axes[-1].set_xlabel("answer step")
    return figure


def draw_heads(example: Example, heads: Heads, config: TrainConfig) -> Figure:
    """Writing on the left, reading on the right (figure 6 of the paper).

    The memory is cut to the locations that any head uses.
    """
    shown = walked_locations(heads)

    def panels(
        vectors: list[Image], weightings: list[Image], what: str, whose: str
    ) -> list[_Panel]:
        column = []
        bound = max(float(np.abs(vector).max()) for vector in vectors) or 1.0
        for head, (vector, weighting) in enumerate(zip(vectors, weightings, strict=True)):
            name = f"{whose} head" + (f" {head + 1}" if len(vectors) > 1 else "")
            cut = weighting[shown]
            column += [
                _Panel(f"{what}, {name}", "element", vector, _SIGNED, -bound, bound),
                _Panel(f"weightings, {name}", "location", cut, _WEIGHTINGS, 0, 1, shown),
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
    axes.set_xlim(left=0)
    axes.set_xlabel("thousand sequences")
    axes.set_ylabel("bits per sequence")
    axes.set_title(f"{config.task.name.replace('_', ' ')}, {AS_TRAINED}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


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
    panels = [
        _Panel("inputs", "channel", example.inputs, _BITS, min(example.inputs.min(), 0), 1),
        _Panel("targets", "bit", example.targets, _BITS, 0, 1),
        _Panel(f"outputs, {title}", "bit", example.outputs, _BITS, 0, 1),
    ]
    if example.optimal is not None:
        panels.append(_Panel("optimum", "bit", example.optimal, _BITS, 0, 1))
    if heads is not None:
        shown = walked_locations(heads)
        for whose, weightings in (
            ("write", heads.write_weightings),
            ("read", heads.read_weightings),
        ):
            highest = np.max(weightings, axis=0)[shown]
            name = f"weightings, {whose} head" + ("s" if len(weightings) > 1 else "")
            panels.append(_Panel(name, "location", highest, _WEIGHTINGS, 0, 1, shown))
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
