"""Runs the op suite on the CPU kernels of each instruction set below the best of this machine.

    python -m scripts.test_isas [PYTEST ARGUMENT ...]

The test suite itself runs on the best.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ntm_kernels.backends.cpu.backend import LIBRARY

ROOT = Path(__file__).parents[1]
# What torch does with an op is the same on every instruction set.
SELECTED = "cpu-cpu and not compile and not opcheck"


def below_the_best() -> list[str]:
    """The names that ``NTM_KERNELS_ISA`` takes here, but for the one chosen without it."""
    code = "from ntm_kernels.backends import get; print(get('cpu').unavailable())"
    asked = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"NTM_KERNELS_ISA": "?"},
        check=True,
        capture_output=True,
        text=True,
    )
    _, has, names = asked.stdout.strip().partition("this machine has ")
    if not has:
        sys.exit(f"test_isas: {asked.stdout.strip()}")
    return names.split(", ")[1:]


def main() -> int:
    """The exit status of the first tests that fail, 0 if none do."""
    if not LIBRARY.exists():
        print("test_isas: left out, the CPU kernels are not built", file=sys.stderr)
        return 0
    for isa in below_the_best():
        print(f"The CPU kernels for {isa}:", flush=True)
        tests = [sys.executable, "-m", "pytest", "tests/ops", "-k", SELECTED, *sys.argv[1:]]
        run = {"NTM_KERNELS_ISA": isa, "NTM_KERNELS_REQUIRE_BACKENDS": "cpu"}
        status = subprocess.run(tests, cwd=ROOT, env=os.environ | run).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
