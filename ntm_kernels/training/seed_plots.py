"""The picture of many seeds: how each of them learnt, and what each came to in every test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntm_kernels.plotting.sheet import STYLE, legend_below
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.evaluation import validation_optimum
from ntm_kernels.training.metrics import read_metrics
from ntm_kernels.training.plots import save_figure
from ntm_kernels.training.seeds import Outcome, as_trained, excess_bits, finished, is_unsure

__all__ = ["LEAST_BITS", "draw_seeds"]

#: A cost of exactly 0 has no place on a logarithmic axis.
LEAST_BITS = 1e-4


def draw_seeds(outcomes: Sequence[Outcome], folder: Path, config: TrainConfig) -> Path:
    """Draws ``seeds.png`` into the folder of the runs.

    On the left the validation cost of every seed over the sequences trained on, above the best
    possible; then the cost in each test, a dot for each seed, and the share of wrong sequences,
    where the best predictor is sure of the answers. Seeds that have no results are left out.
    ``config`` is that of the runs, with any seed.
    """
    done = finished(outcomes)
    path = folder / "seeds.png"
    unsure = any(is_unsure(as_trained(evaluation)) for evaluation in done.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9 if unsure else 13, 4.6), layout="constrained")
        curves, bits, *wrong = figure.subplots(1, 2 if unsure else 3)
        _draw_curves(curves, done, folder, config)
        _draw_tests(bits, done, "bits per sequence above the optimum", _visible_excess)
        bits.set_yscale("log")
        for axes in wrong:
            _draw_tests(axes, done, "share of sequences wrong", _share_wrong)
            axes.set_ylim(-0.03, 1.03)
        for axes in (curves, bits, *wrong):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        save_figure(figure, path)
    return path


def _visible_excess(score: Mapping[str, Any]) -> float:
    return max(excess_bits(score), LEAST_BITS)


def _share_wrong(score: Mapping[str, Any]) -> float:
    share: float = score["wrong"] / score["sequences"]
    return share


def _draw_curves(
    axes: Axes, done: Mapping[int, Mapping[str, Any]], folder: Path, config: TrainConfig
) -> None:
    for number, seed in enumerate(done):
        # Each seed has validation sequences of its own, not those of the tests.
        optimum = validation_optimum(replace(config, seed=seed))
        rows = read_metrics(folder / f"seed-{seed}" / "metrics.csv")
        validated = [row for row in rows if "validation_bits" in row]
        axes.plot(
            [row["sequences"] / 1000 for row in validated],
            [max(row["validation_bits"] - optimum, LEAST_BITS) for row in validated],
            color=f"C{number % 10}",
            linewidth=1,
            marker=".",
            markersize=3,
            label=f"seed {seed}",
        )
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("thousand sequences")
    axes.set_title("validation, bits per sequence above the optimum")
    if 0 < len(done) <= 10:
        legend_below(axes, columns=5, fontsize=7)


def _draw_tests(
    axes: Axes,
    done: Mapping[int, Mapping[str, Any]],
    title: str,
    value_of: Callable[[Mapping[str, Any]], float],
) -> None:
    """A column of dots, one for each seed, for every test."""
    titles: list[str] = []
    for number, evaluation in enumerate(done.values()):
        titles = list(evaluation["scores"])
        # Side by side, so that equal values do not hide each other.
        aside = 0.5 * ((number + 0.5) / len(done) - 0.5)
        places = [place + aside for place in range(len(titles))]
        values = [value_of(score) for score in evaluation["scores"].values()]
        axes.plot(places, values, "o", markersize=4, color=f"C{number % 10}", alpha=0.8)
    axes.set_xticks(range(len(titles)), titles, rotation=30, horizontalalignment="right")
    axes.set_title(title)
