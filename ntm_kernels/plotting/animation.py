"""Pictures shown one after the other: as a GIF, and as a page with buttons and a slider."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ntm_kernels.plotting.film import DPI, Frame

__all__ = ["to_gif", "to_html"]

# Frames a second of a short animation; a long one takes no more than so many seconds.
_FRAMES_A_SECOND, _MOST_SECONDS = 5, 25
# How long a GIF stands still at its end.
_REST_SECONDS = 2
# MiB of frames that matplotlib puts into a page at most: it drops the others.
_MOST_MIB = 1024
#: Symbols for the buttons of the player, whose icons matplotlib takes from a font on the network.
_SYMBOLS = {
    "minus": "&minus;",
    "fast-backward": "|&lt;",
    "step-backward": "&lt;",
    "play fa-flip-horizontal": "&#9664;&#xfe0e;",
    "pause": "||",
    "play": "&#9654;&#xfe0e;",
    "step-forward": "&gt;",
    "fast-forward": "&gt;|",
    "plus": "+",
}


def to_gif(frames: Sequence[Frame]) -> bytes:
    """A GIF that shows frames, stands still for a while at their end, and then begins again."""
    rate = _rate(frames)
    rest = [frames[-1]] * (_REST_SECONDS * rate)
    with TemporaryDirectory() as folder:
        path = Path(folder, "animation.gif")
        _animation([*frames, *rest]).save(path, writer=PillowWriter(fps=rate), dpi=DPI)
        return path.read_bytes()


def to_html(frames: Sequence[Frame], title: str) -> str:
    """A page that shows frames, with buttons to play and to pause them and a slider.

    The page is whole: it loads nothing.
    """
    with matplotlib.rc_context({"savefig.dpi": DPI, "animation.embed_limit": _MOST_MIB}):
        player = _animation(frames).to_jshtml(_rate(frames), default_mode="once")
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n{_without_network(player)}\n</html>\n"
    )


def _rate(frames: Sequence[Frame]) -> int:
    """Frames a second."""
    return max(_FRAMES_A_SECOND, -(-len(frames) // _MOST_SECONDS))


def _animation(frames: Sequence[Frame]) -> FuncAnimation:
    height, width, _ = frames[0].shape
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    shown = figure.figimage(frames[0])

    def show(frame: Frame) -> list[Any]:
        shown.set_data(frame)
        return [shown]

    # Given what to draw first, nothing, matplotlib does not take the first frame for it.
    return FuncAnimation(figure, show, list(frames), init_func=lambda: [shown])


def _without_network(player: str) -> str:
    """Matplotlib's player without its icon font.

    >>> _without_network('<link href="https://a.font"><i class="fa fa-pause"></i>')
    '||'
    """
    player = re.sub(r"<link\b[^>]*>", "", player)
    return re.sub(r'<i class="fa fa-([\w -]+)"></i>', lambda icon: _SYMBOLS[icon[1]], player)
