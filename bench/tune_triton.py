"""Times other launch parameters of the Triton kernels beside those of their table.

    python -m bench.tune_triton [--device cuda] [--seconds 2]

Each candidate differs from the table, ntm_kernels/backends/triton/launch_table.py, in one entry.
What is faster on a card goes into the table by hand, with its reason.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from bench import results
from bench.cli import QUICK_LIMITS
from bench.contenders import BackendContender
from bench.runner import Runner
from bench.workload import Workload
from ntm_kernels.backends import register
from ntm_kernels.backends.triton import Launcher, TritonBackend
from ntm_kernels.backends.triton.launch_table import TABLE, Table

WARPS = (1, 2, 4, 8, 16)
# Entries of the table by what they act on, and the values to try.
ON_CHIP = {"warps": WARPS}
SEQUENCE = {
    "sequence_warps": WARPS[2:],
    "controller_rows": (8, 16, 32),
    "controller_columns": (32, 64, 128),
}
TILED = {
    "tile_elements": (1024, 2048, 4096),
    "tile_warps": (2, 4, 8),
    "programs": (256, 512, 1024, 2048),
    "programs_per_sequence": (64, 128, 256, 512),
}
PAPER = Workload()
CASES: list[tuple[str, Workload, Mapping[str, tuple[int, ...]]]] = [
    ("step", PAPER, ON_CHIP),
    ("sequence", PAPER, SEQUENCE),
    ("step", replace(PAPER, memory_size=32, word_size=16), ON_CHIP),
    ("step", replace(PAPER, memory_size=1024, word_size=64), TILED),
    ("step", replace(PAPER, batch=1, memory_size=65536, word_size=64), TILED),
]


def changed(entry: str, value: int) -> Table:
    """The table with another value of one entry, in every row that has it."""
    change: dict[str, Any] = {entry: value}
    if entry in TABLE._fields:
        return TABLE._replace(**change)
    return TABLE._replace(on_chip=tuple(row._replace(**change) for row in TABLE.on_chip))


def candidates(device: str) -> Iterator[TritonBackend]:
    """The table's own backend, then one for each value to try."""
    yield TritonBackend("table", device)
    for entries in (ON_CHIP, SEQUENCE, TILED):
        for entry, values in entries.items():
            for value in values:
                yield TritonBackend(f"{entry}={value}", device, Launcher(changed(entry, value)))


def main() -> int:
    """The exit status: 1 if a candidate failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=QUICK_LIMITS.seconds, help="per case")
    options = parser.parse_args()
    contenders = []
    for backend in candidates(options.device):
        register(backend, automatic=False)
        contenders.append(BackendContender(backend.name, "the Triton kernels"))
    limits = replace(QUICK_LIMITS, seconds=options.seconds)
    runner = Runner(options.device, results.new_folder() / results.ROWS, limits)
    for subject, workload, entries in CASES:
        these = [c for c in contenders if c.name.partition("=")[0] in ("table", *entries)]
        for measured in ("forward", "backward") if subject == "sequence" else ("both",):
            runner.side_by_side(subject, measured, these, replace(workload, device=options.device))
    return int(bool(runner.failures))


if __name__ == "__main__":
    sys.exit(main())
