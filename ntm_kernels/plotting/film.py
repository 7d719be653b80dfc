"""What an NTM writes and reads in one sequence, as a picture for each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from ntm_kernels.plotting.blocks import Image
from ntm_kernels.plotting.sheet import BITS, SIGNED, STYLE, WEIGHTINGS, Panel, show

__all__ = ["DPI", "Film", "Frame", "draw_frames"]

#: ``[height, width, 4]``, the pixels of a picture: red, green, blue, opacity.
Frame = NDArray[np.uint8]
#: Pixels an inch.
DPI = 88
# Background of the steps that are still to come, and colour of the markers beside the memory.
_TO_COME, _MARKER = "0.93", "C1"


@dataclass(frozen=True)
class Film:
    """What to show of one sequence with T steps.

    Attributes:
        title: what the sequence is of.
        captions: the words beside the title after each step.
        inputs: ``[I, T]``.
        outputs: ``[O, T]``, from 0 to 1.
        wrong: ``[O, T]``, the outputs to draw red.
        added: add vectors ``[M, T]`` of each write head.
        read: read vectors ``[M, T]`` of each read head.
        write_weightings: ``[rows, T]`` of each write head.
        read_weightings: ``[rows, T]`` of each read head.
        memories: ``[T, rows, M]``, the memory after each step.
        locations: ``[rows]``, the numbers of the locations that the rows show.
        begin: the step where the answer begins; 0: no step is marked.
    """

    title: str
    captions: Sequence[str]
    inputs: Image
    outputs: Image
    wrong: NDArray[np.bool_] | None
    added: Sequence[Image]
    read: Sequence[Image]
    write_weightings: Sequence[Image]
    read_weightings: Sequence[Image]
    memories: NDArray[np.float64]
    locations: NDArray[np.int64]
    begin: int = 0


def draw_frames(film: Film) -> list[Frame]:
    """A picture after each step: the images so far, and the memory as it is then."""
    with matplotlib.rc_context(STYLE):
        sheet = _Sheet(film)
        return [sheet.after(step) for step in range(len(film.captions))]


class _Sheet:
    """Writing on the left, the memory in the middle, reading on the right.

    What stays as it is, words and scales, is drawn once: that takes much longer than the rest.
    """

    def __init__(self, film: Film) -> None:
        self._film = film
        heads = max(len(film.added), len(film.read))
        heights = [0.7, 1.2 * max(1, heads / 4), 2.6]
        self._figure = Figure(figsize=(10, sum(heights) + 1.5), dpi=DPI, layout="constrained")
        canvas = FigureCanvasAgg(self._figure)
        places = self._figure.subplots(3, 3, width_ratios=[3, 1.5, 3], height_ratios=heights)
        self._title = self._figure.suptitle(
            film.title, x=0.01, ha="left", fontsize=12, weight="bold"
        )
        self._changes: list[Callable[[int], object]] = [self._show_caption]
        self._draw_side(places[:, 0], _writing(film))
        self._draw_side(places[:, 2], _reading(film))
        self._draw_memory(places[2, 1])
        _explain(places[:2, 1])
        # What is drawn anew in each frame, and the lines that would be under it.
        drawn = [axes for axes in self._figure.axes if axes.axison]
        self._moving: list[Artist] = [self._title]
        for axes in drawn:
            self._moving += [*axes.images, *axes.lines, *axes.spines.values()]
        for artist in self._moving:
            artist.set_animated(True)
        canvas.draw()
        self._canvas, self._background = canvas, canvas.copy_from_bbox(self._figure.bbox)

    def after(self, step: int) -> Frame:
        """The picture of all that there is after a step."""
        self._canvas.restore_region(self._background)
        for change in self._changes:
            change(step)
        for artist in self._moving:
            self._figure.draw_artist(artist)
        return np.array(self._canvas.buffer_rgba())

    def _show_caption(self, step: int) -> None:
        self._title.set_text(f"{self._film.title}, {self._film.captions[step]}")

    def _draw_side(self, places: Sequence[Axes], panels: Sequence[Panel]) -> None:
        for axes, panel in zip(places, panels, strict=True):
            show(axes, panel)
            axes.set_facecolor(_TO_COME)
            self._changes += [_appearing(image) for image in axes.images]
            if self._film.begin:
                at = self._film.begin - 0.5
                axes.axvline(at, color="0.5", linewidth=0.9, linestyle=(0, (3, 3)))
            if axes is not places[-1]:
                axes.set_xticklabels([])
        dashed = " (dashed: the answer begins)" if self._film.begin else ""
        places[-1].set_xlabel(f"step{dashed}")

    def _draw_memory(self, axes: Axes) -> None:
        """The memory, and a marker beside the row where each head has most of its weight."""
        film = self._film
        bound = float(np.abs(film.memories).max()) or 1.0
        image = show(axes, Panel("memory", "", film.memories[0], SIGNED, -bound, bound))
        axes.set_yticks([])
        axes.set_xlabel("element")
        self._changes.append(lambda step: image.set_data(film.memories[step]))
        right = film.memories.shape[2] - 0.5
        self._changes += [_focus(axes, one, -0.5, ">") for one in film.write_weightings]
        self._changes += [_focus(axes, one, right, "<") for one in film.read_weightings]


def _writing(film: Film) -> list[Panel]:
    low, high = float(min(film.inputs.min(), 0)), float(max(film.inputs.max(), 1))
    return [
        Panel("inputs", "channel", film.inputs, BITS, low, high),
        _vectors("add vectors, write", film.added),
        _weightings("write", film.write_weightings, film),
    ]


def _reading(film: Film) -> list[Panel]:
    wrong = film.wrong is not None and film.wrong.any()
    title = "outputs" + (" (red: wrong)" if wrong else "")
    return [
        Panel(title, "bit", film.outputs, BITS, 0, 1, wrong=film.wrong),
        _vectors("read vectors, read", film.read),
        _weightings("read", film.read_weightings, film),
    ]


def _vectors(what: str, vectors: Sequence[Image]) -> Panel:
    """The vectors of all heads, one head below the other."""
    image = np.concatenate(vectors)
    bound = float(np.abs(image).max()) or 1.0
    return Panel(f"{what} {_heads(len(vectors))}", "element", image, SIGNED, -bound, bound)


def _weightings(whose: str, weightings: Sequence[Image], film: Film) -> Panel:
    """The highest weight that any head of one kind puts on each location."""
    title = f"weightings, {whose} {_heads(len(weightings))}"
    highest = np.max(weightings, axis=0)
    return Panel(title, "location", highest, WEIGHTINGS, 0, 1, numbers=film.locations)


def _heads(count: int) -> str:
    return "head" if count == 1 else f"heads 1–{count}"


def _explain(places: Sequence[Axes]) -> None:
    """Says in the empty places above the memory what its markers are."""
    for axes in places:
        axes.set_axis_off()
    words = "marker on the left: where it writes,\non the right: where it reads"
    places[-1].text(0.5, 0, words, ha="center", va="bottom", color=_MARKER, fontsize=8)


def _focus(axes: Axes, weighting: Image, side: float, marker: str) -> Callable[[int], object]:
    """A marker beside an image that points at the row with most weight."""
    rows = weighting.argmax(axis=0)
    # The place of a marker is that of its middle, and its tip is to touch the image.
    outwards = ScaledTranslation(
        (-1 if marker == ">" else 1) * 3.5 / 72, 0, axes.figure.dpi_scale_trans
    )
    [line] = axes.plot(
        [side],
        [0],
        marker=marker,
        color=_MARKER,
        markersize=6,
        clip_on=False,
        transform=axes.transData + outwards,
    )
    return lambda step: line.set_ydata([rows[step]])


def _appearing(image: AxesImage) -> Callable[[int], object]:
    """Shows the columns of an image up to a step."""
    whole = np.asarray(image.get_array(), dtype=float)
    steps = np.arange(whole.shape[1])
    return lambda step: image.set_data(np.where(steps <= step, whole, np.nan))
