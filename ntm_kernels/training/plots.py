"""Pictures of a run: its answers, what its heads did, and how it learnt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from ntm_kernels import NTM
from ntm_kernels.plotting.blocks import MOST_COLUMNS, MOST_ROWS, block_size, largest
from ntm_kernels.plotting.sheet import (
    BITS,
    STYLE,
    WEIGHTINGS,
    WIDE,
    Panel,
    legend_below,
    sheet,
    show,
)
from ntm_kernels.plotting.trace import draw_heads_sheet
from ntm_kernels.tasks import Trial
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.evaluation import (
    AS_TRAINED,
    sequence_to_show,
    test_sets,
    validation_optimum,
)
from ntm_kernels.training.files import make_folder, writing
from ntm_kernels.training.landmarks import landmarks
from ntm_kernels.training.metrics import read_metrics
from ntm_kernels.training.models import memory_of_at_least, threads_of
from ntm_kernels.training.replay import Example, Heads, record_example, record_heads

__all__ = [
    "draw_answers",
    "draw_heads",
    "draw_learning_curve",
    "draw_long_heads",
    "draw_run",
    "draw_summary",
]

# Answer steps of a long sequence that are drawn one by one.
_LAST_STEPS = 60
# Inches of the learning curve in the summary, with its legend.
_CURVE = 3.7


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
    with matplotlib.rc_context(STYLE):
        for title, trial in (test_sets(config) if tests is None else tests).items():
            batch = sequence_to_show(title, trial.task, config)
            with threads_of(config), memory_of_at_least(model, trial.memory_size):
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


def _error_name(example: Example) -> str:
    return "error" if example.optimal is None else "distance from the optimum"


def _error_panel(example: Example, shown: NDArray[np.bool_], title: str) -> Panel:
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
    return Panel(
        title,
        "bit",
        np.where(error < 0, np.nan, error),
        BITS,
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
    panels: list[Panel] = []
    for example in examples:
        shown = example.answering
        title = f"{example.title}: {example.verdict}"
        if shown.sum() > MOST_COLUMNS:
            panels.append(_error_panel(example, shown, f"{title}; {_error_name(example)}"))
            continue
        panels.append(Panel(title, "target", example.targets[:, shown], BITS, 0, 1))
        wrong = example.wrong[:, shown] if example.optimal is None else None
        panels.append(Panel("", "output", example.outputs[:, shown], BITS, 0, 1, wrong=wrong))
        if example.optimal is not None:
            panels.append(Panel("", "optimum", example.optimal[:, shown], BITS, 0, 1))
    longest = max((p.image.shape[1] for p in panels if p.block[1] == 1), default=1)
    figure, [axes] = sheet(
        [panels], "targets and outputs", cell=min(WIDE / longest, 0.2), smallest=0.55, gap=0.46
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
    return draw_heads_sheet(
        inputs=example.inputs,
        outputs=example.outputs,
        added=heads.added,
        read=heads.read,
        write_weightings=heads.write_weightings,
        read_weightings=heads.read_weightings,
        locations=heads.locations,
        block=(block_size(len(heads.locations), MOST_ROWS), 1),
        begin=int(np.argmax(example.answering)),
        title=f"{config.task.name.replace('_', ' ')}, {example.title}: {example.verdict}",
    )


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
        Panel(f"{name}, {what}", "bit", right[:, last], BITS, 0, 1, first=first),
        Panel("outputs", "bit", example.outputs[:, last], BITS, 0, 1, first=first, wrong=wrong),
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
        show(axes, panel)
        if number not in (1, len(panels) - 1):
            axes.set_xticklabels([])
    images[-1].set_xlabel("step")
    return figure


def _weighting_panels(example: Example, heads: Heads) -> list[Panel]:
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
        panels.append(Panel(name, "location", highest, WEIGHTINGS, 0, 1, **place))
    return panels


def draw_learning_curve(rows: Sequence[dict[str, float]], config: TrainConfig) -> Figure:
    """Bits per sequence against sequences seen (figures 3, 7, 10, 13 and 18 of the paper)."""
    figure = Figure(figsize=(8, 4.7), layout="constrained")
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
        label = f"learnt: {config.learnt_bits:g} bits"
        axes.axhline(config.learnt_bits, color="C3", linewidth=0.8, linestyle="--", label=label)
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
    legend_below(axes, columns=2)


def _mark_changes(axes: Axes, rows: Sequence[dict[str, float]]) -> None:
    """A line where a stage of a curriculum begins and where the memory grows, with its name.

    Where both are at once, the names are on either side of the line.
    """
    for before, row in pairwise(rows):
        at = row["sequences"] / 1000
        for column, name, style, side in (
            ("stage", "stage {:.0f}", ":", "left"),
            ("memory_size", "N = {:.0f}", "--", "right"),
        ):
            if column not in row or row[column] == before.get(column, row[column]):
                continue
            text = name.format(row[column])
            axes.axvline(at, color="0.4", linewidth=0.8, linestyle=style, gid=text)
            axes.text(
                at,
                0.99,
                text,
                transform=axes.get_xaxis_transform(),
                rotation=90,
                horizontalalignment=side,
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
        Panel("inputs", "channel", inputs, BITS, low, 1, block=(1, every)),
    ]
    if example.is_long:
        everything = np.ones_like(example.answering)
        panels.append(_error_panel(example, everything, f"{_error_name(example)}, {title}"))
    else:
        panels.append(Panel("targets", "bit", example.targets, BITS, 0, 1))
        panels.append(Panel(f"outputs, {title}", "bit", example.outputs, BITS, 0, 1))
        if example.optimal is not None:
            panels.append(Panel("optimum", "bit", example.optimal, BITS, 0, 1))
    if heads is not None:
        panels += _weighting_panels(example, heads)
    high = [0.9 if panel.label == "location" else 0.55 for panel in panels]
    figure = Figure(figsize=(8, _CURVE + sum(high) + 0.42 * len(panels)), layout="constrained")
    curve, *images = figure.subplots(1 + len(panels), height_ratios=[_CURVE, *high])
    _plot_costs(curve, rows, config)
    for axes, panel in zip(images, panels, strict=True):
        show(axes, panel)
        if axes is not images[-1]:
            axes.set_xticklabels([])
    images[-1].set_xlabel("step")
    return figure
