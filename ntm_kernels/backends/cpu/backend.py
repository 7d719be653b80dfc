"""The backend ``cpu``: compiled C++ for CPUs, the instruction set chosen at run time.

``csrc/cpu`` has the stages under the names of ``ntm_kernels.backends.torch``. A call is one C++
op; sequences of the batch go to the threads of ``torch.get_num_threads()``, and results have the
same bits for any number of them.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import torch

from ntm_kernels.backends.base import Backend, BackendError, Problem
from ntm_kernels.backends.building import how_to_build
from ntm_kernels.backends.cpu.kernel import CpuKernel
from ntm_kernels.backends.cpu.records import digest
from ntm_kernels.ops import OPS

COMPILER = "a C++ compiler"
LIBRARY = Path(__file__).parents[2] / "_cpu.so"


def compiled_for(library: Path) -> str | None:
    """The version of torch that a library was compiled for; ``None`` for what is no such library.
    The file is only read."""
    found = re.search(rb"ntm_kernels: compiled for torch ([^\0]*)\0", library.read_bytes())
    return found[1].decode() if found else None


def load(library: Path) -> str | None:
    """Load the kernels; why that failed, or ``None``.

    A library that was compiled for another torch is not loaded: it could crash the process.
    """
    if not library.exists():
        return f"the CPU kernels are not built; {how_to_build(library, COMPILER)}"
    try:
        version = compiled_for(library)
        if version is None:
            raise OSError("it was built from other sources than this package")
        # What follows a "+", such as cpu, names a build of the same sources.
        wanted = version.partition("+")[0]
        if wanted != str(torch.__version__).partition("+")[0]:
            raise OSError(
                f"it was compiled for torch {version}, this is torch {torch.__version__} (to "
                f"change torch: `pip install torch=={wanted}`)"
            )
        torch.ops.load_library(library)
        torch.ops.ntm.cpu_isa()
        if torch.ops.ntm.cpu_records() != digest():
            raise OSError("it was built from other sources than this package")
    except (OSError, AttributeError) as error:
        return f"{library.name} does not load: {error}; {how_to_build(library, COMPILER)}"
    except RuntimeError as error:
        return f"{library.name} does not load: {error}"
    return None


class CpuBackend(Backend):
    """Compiled C++ kernels for CPUs."""

    name = "cpu"

    def __init__(self, library: Path = LIBRARY) -> None:
        self._why_not = load(library)
        there = OPS.values() if self._why_not is None else ()
        self.kernels = {op.name: CpuKernel(op) for op in there}
        self._warned = False

    def unavailable(self) -> str | None:
        return self._why_not

    def missed(self, device: str, why_not: str) -> None:
        """Warns once, on a CPU; raises ``BackendError`` where NTM_KERNELS_ISA is not served."""
        if device != "cpu":
            return
        if os.environ.get("NTM_KERNELS_ISA"):
            raise BackendError(why_not)
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"ntm_kernels computes on the slower backend 'torch': {why_not}",
                RuntimeWarning,
                stacklevel=2,
            )

    def unsupported(self, problem: Problem) -> str | None:
        if problem.device != "cpu":
            return f"it runs on the cpu, the arguments are on {problem.device}"
        return None

    def how(self, problem: Problem) -> str:
        sizes = problem.sizes
        rounds = sizes.bfloat16_products and not sizes.projects_input
        if rounds and problem.dtype != torch.float64 and torch.ops.ntm.cpu_multiplies_in_bfloat16():
            return "matrix products in bfloat16"
        return ""

    def describe(self) -> str:
        return f"C++ on the CPU, {torch.ops.ntm.cpu_isa()}"

    def release_workspaces(self) -> int:
        return int(torch.ops.ntm.cpu_release_workspaces())
