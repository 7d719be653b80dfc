"""The images of one side of a sheet: channels, and what each head did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ntm_kernels.plotting.blocks import Image
from ntm_kernels.plotting.sheet import BITS, SIGNED, WEIGHTINGS, Panel

__all__ = ["channels_panel", "heads_panels"]

_VECTORS = {"write": "add", "read": "read"}


def channels_panel(title: str, label: str, image: Image | None, steps: int = 1) -> Panel | None:
    """Inputs or outputs ``[channels, columns]``, a column standing for so many steps."""
    if image is None:
        return None
    low, high = (float(image.min()), float(image.max())) if image.size else (0.0, 1.0)
    return Panel(title, label, image, BITS, min(low, 0), max(high, 1), block=(1, steps))


def heads_panels(
    whose: str,
    vectors: Sequence[Image],
    weightings: Sequence[Image],
    locations: Any,
    block: tuple[int, int] = (1, 1),
) -> list[Panel | None]:
    """Two places for each head: its vectors, then its weightings.

    Args:
        whose: ``"write"`` or ``"read"``.
        vectors: ``[M, columns]`` for each head, on one scale; if there are none, the places for
            them are None.
        weightings: ``[rows, columns]`` for each head.
        locations: the numbers of the locations that the rows show.
        block: how many locations share a row, and how many steps a column.
    """
    column: list[Panel | None] = []
    bound = max((float(np.abs(v).max(initial=0)) for v in vectors), default=0.0) or 1.0
    for head, weighting in enumerate(weightings):
        name = f"{whose} head" + (f" {head + 1}" if len(weightings) > 1 else "")
        title, across = f"{_VECTORS[whose]} vectors, {name}", (1, block[1])
        column += [
            Panel(title, "element", vectors[head], SIGNED, -bound, bound, block=across)
            if vectors
            else None,
            Panel(
                f"weightings, {name}",
                "location",
                weighting,
                WEIGHTINGS,
                0,
                1,
                numbers=locations,
                block=block,
            ),
        ]
    return column
