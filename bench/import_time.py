"""Measures what ``import ntm_kernels`` adds to ``import torch``.

    python -m bench.import_time [--repeats 10]

Each import is made in a process of its own, from byte code that is compiled already. The median of
the processor time is compared with the limit, since it depends least on other processes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
LIMIT = 0.15  # seconds
IMPORT = """
import time
import torch
start = time.perf_counter(), time.process_time()
import ntm_kernels
print(time.perf_counter() - start[0], time.process_time() - start[1])
"""


def seconds(cache: str) -> list[float]:
    """The time that passed, and the processor's, of one import."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        cwd=ROOT,
        env=kept | {"PYTHONPYCACHEPREFIX": cache},
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(word) for word in done.stdout.split()]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=10, help="imports to measure (10)")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    with tempfile.TemporaryDirectory() as cache:
        seconds(cache)  # compiles the byte code
        passed, processor = zip(*(seconds(cache) for _ in range(options.repeats)), strict=True)
    print(
        f"import ntm_kernels after torch, median of {options.repeats}: {median(processor):.3f} s "
        f"of processor time (limit {LIMIT} s), {median(passed):.3f} s passed"
    )
    return int(median(processor) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
