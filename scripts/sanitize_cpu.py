"""Builds the CPU kernels with address and undefined-behaviour sanitizers and runs the op suite.

    python -m scripts.sanitize_cpu [PYTEST ARGUMENT ...]

In a copy of the sources, so that the library in use stays as it is. Needs g++ and its sanitizers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = (
    "bench",
    "csrc",
    "ntm_kernels",
    "tests",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
# torch.compile starts compilers, which do not run under a sanitizer of this process.
SELECTED = "(cpu-cpu or test_bfloat16) and not compile and not opcheck"
TESTS = ("tests/ops", "tests/cpu/test_bfloat16.py")


def runtime(name: str) -> str:
    """The path of a sanitizer's shared library."""
    asked = ["g++", f"-print-file-name={name}"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """The exit status of the tests."""
    if not shutil.which("g++"):
        print("sanitize_cpu: left out, there is no g++", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            source, target = ROOT / name, Path(folder, name)
            if source.is_dir():
                shutil.copytree(
                    source, target, ignore=shutil.ignore_patterns("*.so", "__pycache__")
                )
            else:
                shutil.copy(source, target)
        build = {
            "NTM_KERNELS_SANITIZE": "address,undefined",
            "NTM_KERNELS_REQUIRE_CPU": "1",
            "NTM_KERNELS_REQUIRE_CUDA": "",
            "NVCC": "none",
            "CXX": "g++",
        }
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(command, cwd=folder, env=os.environ | build, check=True)
        run = {
            "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
            # Python itself keeps memory to its end.
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
            "NTM_KERNELS_REQUIRE_BACKENDS": "cpu",
        }
        # -s: what a sanitizer has to say would be lost with pytest's capture.
        tests = [sys.executable, "-m", "pytest", "-q", "-s", *TESTS, "-k", SELECTED]
        return subprocess.run([*tests, *sys.argv[1:]], cwd=folder, env=os.environ | run).returncode


if __name__ == "__main__":
    sys.exit(main())
