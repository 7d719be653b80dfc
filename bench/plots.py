"""Pictures of results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogFormatter, NullLocator, StrMethodFormatter

from bench import results
from bench.machine import Ceilings
from bench.plan import AXES, resized
from bench.results import Row
from bench.workload import Workload, sequence_cost
from ntm_kernels.training.seed_plots import LEAST_BITS

LABELS = {
    "batch": "batch B",
    "time": "steps T",
    "memory-size": "memory locations N",
    "word-size": "word size M",
    "heads": "read heads = write heads",
    "hidden-size": "controller width C",
}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 150,
}
COLOURS = "tab10"


def draw(rows: Sequence[Row], ceilings: Ceilings | None, folder: Path) -> list[Path]:
    """All pictures that the rows have enough for; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(row.contender for row in rows))
    written = []
    with matplotlib.rc_context(STYLE):
        for subject, measured in dict.fromkeys((row.subject, row.measured) for row in rows):
            some = [row for row in rows if (row.subject, row.measured) == (subject, measured)]
            figure = scaling(some, names)
            if figure is not None:
                written.append(_save(figure, folder / f"scaling-{subject}-{measured}.png"))
        whole = [row for row in rows if row.subject == "sequence"]
        if whole and ceilings is not None:
            written.append(_save(roofline(whole, ceilings, names), folder / "roofline.png"))
    return written


def sweeps(rows: Sequence[Row]) -> dict[str, tuple[Workload, list[int]]]:
    """Axes along which the rows have more than one size: the rest of the sizes, and these."""
    found = {}
    for axis, fields in AXES.items():
        groups: dict[Workload, set[int]] = {rows[0].workload: set()}
        for row in rows:
            sizes = {getattr(row.workload, field) for field in fields}
            if len(sizes) == 1:
                rest = resized(row.workload, axis, 0)
                groups.setdefault(rest, set()).update(sizes)
        rest, most = max(groups.items(), key=lambda item: len(item[1]))
        if len(most) > 1:
            found[axis] = (rest, sorted(most))
    return found


def scaling(rows: Sequence[Row], names: Sequence[str]) -> Figure | None:
    """One panel an axis: median against size for every contender, a band from p20 to p80."""
    axes = sweeps(rows)
    if not axes:
        return None
    figure = Figure(figsize=(3.4 * len(axes) + 1.4, 3.4), layout="constrained")
    panels = figure.subplots(1, len(axes), squeeze=False, sharey=True)[0]
    for panel, (axis, (rest, sizes)) in zip(panels, axes.items(), strict=True):
        _scaling_panel(panel, rows, names, axis, rest, sizes)
    first = rows[0]
    panels[0].set_ylabel(f"{first.subject} {first.measured}, {first.unit}")
    handles = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    legend = [handles[name] for name in names if name in handles]
    figure.legend(handles=legend, loc="outside right center")
    figure.suptitle(_caption(first), x=0.01, ha="left", fontsize=8)
    return figure


def _scaling_panel(
    panel: Axes,
    rows: Sequence[Row],
    names: Sequence[str],
    axis: str,
    rest: Workload,
    sizes: Sequence[int],
) -> None:
    fields = AXES[axis]
    exponents = []
    for name in names:
        at: dict[int, Row] = {}
        for row in rows:
            if row.contender == name:
                size = getattr(row.workload, fields[0])
                if row.workload == resized(rest, axis, size):
                    at[size] = row
        if not at:
            continue
        here = sorted(at)
        colour = _colour(names, name)
        medians = [at[size].median for size in here]
        panel.plot(here, medians, marker="o", markersize=3.5, color=colour, label=name)
        low, high = [at[size].p20 for size in here], [at[size].p80 for size in here]
        panel.fill_between(here, low, high, color=colour, alpha=0.2, linewidth=0)
        if axis == "time" and len(here) > 2 and min(medians) > 0:
            power = results.exponent([float(size) for size in here], medians)
            exponents.append(f"{name}: T^{power:.2f}")
    panel.set(xscale="log", yscale="log", title=LABELS[axis])
    panel.xaxis.set_major_locator(FixedLocator(list(sizes)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.6)))
    panel.grid(alpha=0.25)
    if exponents:
        place = {"x": 0.98, "y": 0.02, "ha": "right", "va": "bottom", "fontsize": 7}
        panel.text(s="\n".join(exponents), transform=panel.transAxes, **place)  # type: ignore[arg-type]


def roofline(rows: Sequence[Row], ceilings: Ceilings, names: Sequence[str]) -> Figure:
    """Achieved against possible FLOP/s, over the operations a byte of the algorithm's traffic.

    Work is counted once for all contenders (``sequence_cost``), so a point is as high as its
    contender is fast, whatever it computes besides.
    """
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    panel = figure.subplots()
    costs = [sequence_cost(row.workload, row.measured) for row in rows if row.contender != "lstm"]
    low = min(cost.intensity for cost in costs) / 4
    ridge = ceilings.flops / min(ceilings.bandwidth.values())
    high = 4 * max([*(cost.intensity for cost in costs), ridge])
    for place, bandwidth in ceilings.bandwidth.items():
        bend = ceilings.flops / bandwidth
        panel.plot([low, bend], [low * bandwidth / 1e9, ceilings.flops / 1e9], "k-", linewidth=0.8)
        panel.annotate(
            f"{place} {bandwidth / 1e9:.0f} GB/s",
            (low, low * bandwidth / 1e9),
            fontsize=7,
            xytext=(8, 0),
            textcoords="offset points",
        )
    bend = ceilings.flops / max(ceilings.bandwidth.values())
    panel.plot([bend, high], [ceilings.flops / 1e9] * 2, "k-", linewidth=0.8)
    panel.annotate(
        f"{ceilings.flops / 1e9:.0f} GFLOP/s",
        (high, ceilings.flops / 1e9),
        fontsize=7,
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
    )
    markers = {"forward": "o", "backward": "s", "both": "D"}
    batches = sorted({row.workload.batch for row in rows})
    for row in rows:
        if row.contender == "lstm":
            continue
        cost = sequence_cost(row.workload, row.measured)
        seconds = row.median / 1e3
        panel.plot(
            cost.intensity,
            cost.flops / seconds / 1e9,
            markers[row.measured],
            markersize=4 + 2 * batches.index(row.workload.batch),
            color=_colour(names, row.contender),
            alpha=0.75,
            linestyle="none",
        )
    panel.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP per byte of the algorithm's own traffic",
        ylabel="achieved GFLOP/s",
        title="Whole sequences against the limits of this machine",
    )
    panel.grid(alpha=0.25, which="both")
    present = dict.fromkeys(row.contender for row in rows if row.contender != "lstm")
    for name in present:
        panel.plot([], [], "o", color=_colour(names, name), label=name)
    for measured in dict.fromkeys(row.measured for row in rows):
        panel.plot([], [], markers[measured], color="grey", label=measured)
    figure.legend(loc="outside right center")
    sizes = ", ".join(map(str, batches))
    figure.suptitle(
        f"{_caption(rows[0])}\nlimits: {ceilings.method}; marks, small to large: B = {sizes}",
        x=0.01,
        ha="left",
        fontsize=8,
    )
    return figure


def draw_rates(
    bits: Mapping[str, Mapping[str, Sequence[float | None]]], learnt: float, path: Path
) -> None:
    """The final cost of every learner at every learning rate, a dot for each seed.

    Args:
        bits: by learner and rate, the final bits per sequence of each seed, above the best
            possible. Runs without a finite cost, or None where one failed, are left out.
        learnt: bits below which a seed has learnt the task.
        path: the picture.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        panel = figure.subplots()
        for number, (learner, by_rate) in enumerate(bits.items()):
            seeds = [
                (float(rate), max(cost, LEAST_BITS))
                for rate, costs in by_rate.items()
                for cost in costs
                if cost is not None and math.isfinite(cost)
            ]
            # The learners stand side by side at each rate.
            rates = [rate * 1.06**number for rate, _ in seeds]
            costs = [cost for _, cost in seeds]
            panel.plot(rates, costs, "o", markersize=4, alpha=0.8, label=learner)
        panel.axhline(learnt, color="grey", linewidth=0.8, linestyle="--", label="learnt below")
        panel.set(xscale="log", yscale="log", xlabel="learning rate")
        panel.set_ylabel("bits per sequence above the optimum")
        panel.grid(alpha=0.25)
        figure.legend(loc="outside lower center", ncols=2)
        _save(figure, path)


def _colour(names: Sequence[str], name: str) -> Any:
    return matplotlib.colormaps[COLOURS](list(names).index(name) % 10)


def _caption(row: Row) -> str:
    where = row.environment
    threads = f"{row.workload.threads} thread{'s' if row.workload.threads > 1 else ''}"
    return f"{where.device}, {threads}\ntorch {where.torch}, {where.date[:10]}, {where.revision}"


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path
