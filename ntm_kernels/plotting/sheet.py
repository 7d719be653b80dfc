"""Images with their words, colours and scales, laid out in columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FormatStrFormatter, LinearLocator, MaxNLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from ntm_kernels.plotting.blocks import Image

__all__ = [
    "BITS",
    "SIGNED",
    "STYLE",
    "WEIGHTINGS",
    "WIDE",
    "Panel",
    "legend_below",
    "sheet",
    "show",
]

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 4,
    "savefig.dpi": 150,
}
#: Colours of values from 0 to 1, of values of both signs, and of weightings.
BITS, SIGNED, WEIGHTINGS = "viridis", "RdBu_r", "inferno"
#: Inches of the widest image.
WIDE = 11.0
# Where the numbers of a colour scale are, from the lowest to the highest.
_INWARDS: tuple[Literal["bottom", "center", "top"], ...] = ("bottom", "center", "top")
_WRONG_COLOURS = ListedColormap([(0.0, 0.0, 0.0, 0.0), (1.0, 0.1, 0.1, 1.0)])


@dataclass(frozen=True)
class Panel:
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


def sheet(
    columns: Sequence[Sequence[Panel | None]],
    title: str,
    *,
    cell: float,
    smallest: float,
    gap: float,
    tallest: float = math.inf,
) -> tuple[Figure, list[list[Axes]]]:
    """Lays images out in columns, all with cells ``cell`` inches wide.

    Cells are square unless that would make an image lower than ``smallest`` or higher than
    ``tallest`` inches; above each image with a title are ``gap`` inches. Where several steps share
    a cell, the whole image is ``WIDE`` inches wide. None leaves the place of an image empty.
    """
    panels = [panel for column in columns for panel in column if panel is not None]
    # The numbers of a large memory need room.
    numbers = [panel.numbers.max() for panel in panels if panel.numbers is not None]
    left = 0.65 + 0.08 * max(0, len(str(max(numbers, default=0))) - 3)
    head, foot, right = 0.4, 0.45, 0.75

    def width(panel: Panel) -> float:
        return WIDE if panel.block[1] > 1 else panel.image.shape[1] * cell

    widths = [left + max([3.0, *(width(p) for p in c if p)]) + right for c in columns]

    def height(panel: Panel) -> float:
        return min(max(panel.image.shape[0] * cell, smallest), tallest)

    beside_each_other = [[p for p in row if p] for row in zip_longest(*columns)]
    above = [gap if any(p.title for p in row) else 0.1 for row in beside_each_other]
    rows = [
        max(map(height, row), default=0.0) + space
        for row, space in zip(beside_each_other, above, strict=True)
    ]
    size = (sum(widths), head + sum(rows) + foot)
    figure = Figure(figsize=size)
    figure.text(left / size[0], 1 - 0.28 / size[1], title, fontsize=12, weight="bold")

    axes: list[list[Axes]] = []
    for number, column in enumerate(columns):
        axes.append([])
        for row, panel in enumerate(column):
            if panel is None:
                continue
            x, top = sum(widths[:number]) + left, size[1] - head - sum(rows[:row]) - above[row]
            wide, high = width(panel), height(panel)
            place = (x / size[0], (top - high) / size[1], wide / size[0], high / size[1])
            beside = ((x + wide + 0.08) / size[0], place[1], 0.1 / size[0], place[3])
            axes[-1].append(_image_axes(figure, panel, place, beside))
    return figure, axes


def _image_axes(
    figure: Figure,
    panel: Panel,
    place: tuple[float, float, float, float],
    beside: tuple[float, float, float, float],
) -> Axes:
    axes = figure.add_axes(place)
    drawn = show(axes, panel)
    bar = figure.colorbar(drawn, cax=figure.add_axes(beside))
    bar.ax.tick_params(length=2, labelsize=7)
    bar.ax.yaxis.set_major_locator(LinearLocator(3))
    bar.ax.yaxis.set_major_formatter(FormatStrFormatter("%.2g"))
    # Beside its ends, the lowest number would touch the highest one of the image below.
    for label, alignment in zip(bar.ax.get_yticklabels(), _INWARDS, strict=True):
        label.set_verticalalignment(alignment)
    bar.outline.set_visible(False)
    return axes


def legend_below(axes: Axes, columns: int, **options: Any) -> None:
    """A legend under the axes and the words there, where it can cover no curve."""
    below = ScaledTranslation(0, -0.45, axes.figure.dpi_scale_trans)
    axes.legend(
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=axes.transAxes + below,
        borderaxespad=0,
        ncols=columns,
        **options,
    )


def show(axes: Axes, panel: Panel) -> AxesImage:
    """Draws a panel into axes that count its steps and locations."""
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
            cmap=_WRONG_COLOURS,
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
    shown: list[int] = []
    for row in np.flatnonzero(numbers % distance == 0).tolist():
        # The numbers go around the circle of locations, where the last one need not be round.
        if not shown or row - shown[-1] >= 0.6 * distance:
            shown.append(row)
    return np.array(shown)
