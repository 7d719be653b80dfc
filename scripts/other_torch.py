"""Builds, installs and tests the package with another torch, in an environment of its own.

    python -m scripts.other_torch [--torch torch==2.14.1] [--python PYTHON] [PYTEST ARGUMENT ...]

In a copy of the sources under build/, so that what is built here stays as it is; CUDA kernels that
are compiled already, which know nothing of torch, come along. What is tested is what pip installed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = (
    *("bench", "csrc", "ntm_kernels", "scripts", "tests"),
    *("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"),
)
TESTING = ("numpy", "pytest", "hypothesis", "pytest-xdist")
# Every op, both ways, and what most depends on the torch: autograd, fake tensors and the compiler.
SELECTED = (
    "test_torch_private or "
    "cpu-cpu and (test_sizes or test_dtypes or test_opcheck or test_compiled_whole)"
)
CHECK = """
import torch
from ntm_kernels.backends.cuda.backend import LIBRARY, PARAMS, CudaLibrary
print("torch", torch.__version__, "for CUDA", torch.version.cuda)
if LIBRARY.exists():
    print(LIBRARY, "loads; compiled for", *CudaLibrary(LIBRARY, PARAMS).architectures)
"""


def copy_sources(folder: Path) -> None:
    """Sources and compiled CUDA kernels, with their times, so that none is compiled again."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy2(source, folder / name)
    for kernels in ROOT.glob("build/temp.*/csrc/cuda"):
        shutil.copytree(kernels, folder / kernels.relative_to(ROOT))


def main() -> int:
    """The exit status of the tests."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch", default="torch==2.14.1", help="what pip is to install")
    parser.add_argument("--python", default=sys.executable, help="that makes the environment")
    options, arguments = parser.parse_known_args()

    place = ROOT / "build/other_torch" / re.sub(r"[^\w.]+", "-", options.torch)
    environment, sources = place / "venv", place / "sources"
    subprocess.run([options.python, "-m", "venv", environment], check=True)
    python = str(environment / "bin/python")
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, options.torch, *TESTING], check=True)
    copy_sources(sources)
    required = {"NTM_KERNELS_REQUIRE_CPU": "1"}
    if shutil.which("nvcc"):
        required["NTM_KERNELS_REQUIRE_CUDA"] = "1"
    subprocess.run([*pip, "--no-deps", "."], cwd=sources, env=os.environ | required, check=True)
    shutil.rmtree(sources / "ntm_kernels")  # or it would be imported in place of what is installed
    subprocess.run([python, "-c", CHECK], cwd=sources, check=True)
    tests = [
        python,
        "-m",
        "pytest",
        "-q",
        "tests/ops",
        "tests/test_torch_private.py",
        "-k",
        SELECTED,
        *arguments,
    ]
    live = {"NTM_KERNELS_REQUIRE_BACKENDS": "cpu", "NTM_KERNELS_EMULATOR": "off"}
    return subprocess.run(tests, cwd=sources, env=os.environ | live).returncode


if __name__ == "__main__":
    sys.exit(main())
