"""Runs the op suite on the emulated CUDA kernels under each sanitizer.

    python -m tests.cuda_emulator.sanitize [--all] [PYTEST ARGUMENT ...]

A smaller set by default: every size in float32, in two orders of threads and blocks; `--all` takes
all tests of the ops, in four.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.cuda_emulator import build as emulator

ROOT = Path(__file__).parents[2]
SMALL = "not test_compile and not float64 and (test_plans or test_sizes or test_lengths)"


def run(variant, schedule, selection, arguments):
    environment = {
        **os.environ,
        "NTM_KERNELS_EMULATOR": variant,
        "NTM_KERNELS_REQUIRE_BACKENDS": "cuda_emulated",
        "CUDA_EMULATOR_SCHEDULE": str(schedule),
        "OMP_NUM_THREADS": "1",
        **(emulator.sanitizer_environment() if variant == "address" else {}),
    }
    selection = f"(cuda_emulated or test_plans) and {selection}"
    tests = ["tests/ops", "tests/cuda/test_plans.py"]
    pytest = [sys.executable, "-m", "pytest", "-q", *tests, "-k", selection, *arguments]
    print(f"{variant}, schedule {schedule}: {selection}", flush=True)
    return subprocess.run(pytest, cwd=ROOT, env=environment).returncode


def main(arguments):
    if why_not := emulator.unavailable():
        print(f"no sanitizer runs: {why_not}")
        return 0
    everything = "--all" in arguments
    selection = "not test_compile" if everything else SMALL
    arguments = [argument for argument in arguments if argument != "--all"]
    # What the address sanitizer finds does not depend on the order.
    runs = [
        ("address", 0),
        *(("instrumented", s) for s in ((0, 1, 2, 7) if everything else (0, 7))),
    ]
    failed = [f"{v}, {s}" for v, s in runs if run(v, s, selection, arguments) != 0]
    return f"failed: {'; '.join(failed)}" if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
