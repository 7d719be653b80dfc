"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

__all__ = ["Progress"]


class Progress:
    """Shows how far a run is, its cost in bits per sequence, and sequences per second.

    Args:
        sequences: where the run goes on.
        total: sequences of the whole run.
        report: takes a line for every validation.
    """

    def __init__(self, sequences: int, total: int, report: Callable[[str], None]) -> None:
        self._report = report
        self._seen = 0
        self._started = time.perf_counter()
        self._bar: Any = None
        if sys.stderr is not None and sys.stderr.isatty() and find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._bar = tqdm(initial=sequences, total=total, unit=" seq", dynamic_ncols=True)

    def advance(self, sequences: int) -> None:
        """Counts sequences trained on."""
        self._seen += sequences
        if self._bar is not None:
            self._bar.update(sequences)

    def show(self, row: Mapping[str, Any]) -> None:
        """Shows a row of metrics.csv; a row with a validation becomes a line."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"{row['train_bits']:.3g} bits per sequence")
        if row["validation_bits"] is None:
            return
        rate = self._seen / (time.perf_counter() - self._started)
        line = (
            f"{row['sequences']:>9,} sequences   train {row['train_bits']:8.3f}   "
            f"validation {row['validation_bits']:8.3f} bits per sequence, "
            f"{row['validation_wrong']:6.1%} wrong   {rate:6.0f} sequences/s"
        )
        if self._bar is None:
            self._report(line)
        else:
            self._bar.write(line)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
