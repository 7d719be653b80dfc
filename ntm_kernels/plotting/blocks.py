"""What an image can show of a long sequence and a large memory.

A picture has fewer columns and rows than a long sequence has steps and a large memory has
locations. One column then stands for a block of steps, one row for a block of locations, and shows
the largest value of its block, so that neither a wrong bit nor a narrow focus can vanish.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_COLUMNS", "MOST_ROWS", "Image", "block_size", "largest", "walked_locations"]

#: Columns of an image at most; a sequence with more steps has several of them in a column.
MOST_COLUMNS = 800
#: Rows of an image of weightings at most.
MOST_ROWS = 300

#: ``[rows, columns]``: one column for each step, or for each block of steps.
Image = NDArray[np.float64]


def block_size(count: int, most: int) -> int:
    """How many of ``count`` steps or locations share a block, so that there are ``most`` at most.

    >>> block_size(20001, most=800), block_size(41, most=800)
    (26, 1)
    """
    return -(-count // most)


def largest(image: NDArray[Any], steps: int, locations: int = 1) -> Image:
    """The largest value of each block of so many steps and locations of an image.

    >>> largest(np.eye(4), steps=2)
    array([[1., 0.],
           [1., 0.],
           [0., 1.],
           [0., 1.]])
    """
    for axis, every in enumerate((locations, steps)):
        if every > 1:
            image = np.maximum.reduceat(image, range(0, image.shape[axis], every), axis=axis)
    return image


def walked_locations(
    highest: NDArray[np.float64], focus: NDArray[np.int64], threshold: float = 0.02
) -> NDArray[np.int64]:
    """The locations to show, from top to bottom, so that the first write head walks down.

    These are the shortest stretch of the circular memory that has every location on which a head
    ever put a weight of ``threshold``, in falling order if that is how the head mostly moves. When
    all of the memory is used, the stretch begins where the head does.

    Args:
        highest: ``[N]``, the highest weight that any head ever put on each location.
        focus: ``[T]``, where the first write head was at each step.

    >>> walked_locations(np.array([1.0, 1, 0, 0, 0, 1]), np.array([1, 0, 5]))
    array([1, 0, 5])
    """
    size = len(highest)
    used = np.flatnonzero(highest >= threshold)
    moves = (np.diff(focus) + size // 2) % size - size // 2
    falling = moves.sum() < 0
    if len(used) in (0, size):
        stretch = focus[0] + np.arange(size) + (1 if falling else 0)
    else:
        # The stretch starts after the longest gap between neighbours around the circle.
        gaps = np.diff(used, prepend=used[-1] - size)
        stretch = used[gaps.argmax()] + np.arange(size - gaps.max() + 1)
    shown: NDArray[np.int64] = stretch[::-1] % size if falling else stretch % size
    return shown
