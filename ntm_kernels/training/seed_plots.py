"""The picture of many seeds: how each of them learnt, and what each came to in every test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ntm_kernels.training.files import writing
from ntm_kernels.training.metrics import read_metrics
from ntm_kernels.training.seeds import Outcome

__all__ = ["draw_seeds"]

_STYLE: dict[Any, Any] = {"font.size": 9, "axes.titlesize": 9.5, "savefig.dpi": 150}
# A cost of exactly 0 has no place on a logarithmic axis.
_LEAST = 1e-4


def draw_seeds(outcomes: Sequence[Outcome], folder: Path) -> Path:
    """Draws ``seeds.png`` into the folder of the runs.

    On the left the validation cost of every seed over the sequences trained on, above the best
    possible; in the middle the cost and on the right the share of wrong sequences in each test, a
    dot for each seed. Seeds that have no results are left out.
    """
    done = [outcome for outcome in outcomes if outcome.evaluation is not None]
    path = folder / "seeds.png"
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(13, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        curves, bits, wrong = figure.subplots(1, 3)
        _draw_curves(curves, done, folder)
        _draw_tests(bits, done, "bits per sequence", "bits")
        _draw_tests(wrong, done, "share of sequences wrong", "wrong")
        with writing(path):
            figure.savefig(path)
    return path


def _draw_curves(axes: Axes, done: Sequence[Outcome], folder: Path) -> None:
    for number, outcome in enumerate(done):
        assert outcome.evaluation is not None
        optimum = next(iter(outcome.evaluation["scores"].values()))["optimal_bits"]
        rows = read_metrics(folder / f"seed-{outcome.seed}" / "metrics.csv")
        validated = [row for row in rows if "validation_bits" in row]
        axes.plot(
            [row["sequences"] / 1000 for row in validated],
            [max(row["validation_bits"] - optimum, _LEAST) for row in validated],
            color=f"C{number % 10}",
            linewidth=1,
            marker=".",
            markersize=3,
            label=f"seed {outcome.seed}",
        )
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("thousand sequences")
    axes.set_title("validation, bits per sequence above the optimum", loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if 0 < len(done) <= 10:
        axes.legend(frameon=False, fontsize=7, ncols=2)


def _draw_tests(axes: Axes, done: Sequence[Outcome], title: str, what: str) -> None:
    """A column of dots, one for each seed, for every test."""
    titles = list(done[0].evaluation["scores"]) if done and done[0].evaluation else []
    for number, outcome in enumerate(done):
        assert outcome.evaluation is not None
        scores = [outcome.evaluation["scores"][name] for name in titles]
        values = [
            max(score["bits"] - score["optimal_bits"], _LEAST)
            if what == "bits"
            else score["wrong"] / score["sequences"]
            for score in scores
        ]
        # Side by side, so that equal values do not hide each other.
        aside = 0.5 * ((number + 0.5) / len(done) - 0.5)
        places = [place + aside for place in range(len(titles))]
        axes.plot(places, values, "o", markersize=4, color=f"C{number % 10}", alpha=0.8)
    if what == "bits":
        axes.set_yscale("log")
    else:
        axes.set_ylim(-0.03, 1.03)
    axes.set_xticks(range(len(titles)), titles, rotation=30, horizontalalignment="right")
    axes.set_title(title if what == "wrong" else f"{title} above the optimum", loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
