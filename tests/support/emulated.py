"""The CUDA backend on the CPU: its kernels compiled for the emulator, registered as cuda_emulated.

NTM_KERNELS_EMULATOR chooses the variant (`plain`, `address`, `instrumented`), or `off`.
"""

import os
import threading
from pathlib import Path

from ntm_kernels.backends import register
from ntm_kernels.backends.cuda import CudaBackend
from ntm_kernels.backends.cuda.run import Runner
from tests.cuda_emulator import build as emulator

NAME = "cuda_emulated"
VARIANT = os.environ.get("NTM_KERNELS_EMULATOR", "plain")


# The emulator is one processor with one set of registers, whatever threads launch on it.
_ONE_LAUNCH = threading.Lock()


class EmulatedRunner(Runner):
    """Launches one at a time."""

    def __init__(self):
        super().__init__("cpu")

    def run(self, *args):
        with _ONE_LAUNCH:
            super().run(*args)


class EmulatedBackend(CudaBackend):
    """Says why there is no emulator before it looks for a library."""

    def __init__(self, why_not, library, runner=None, name=NAME):
        super().__init__(library, EmulatedRunner() if runner is None else runner, name)
        self.why_not = why_not

    def unavailable(self):
        return self.why_not or super().unavailable()

    def describe(self):
        return f"{super().describe()}, emulated ({VARIANT})"


def library():
    """The path of the kernels' library, compiled where sources have changed."""
    return emulator.kernels(VARIANT)


def register_backend():
    why_not = "NTM_KERNELS_EMULATOR=off" if VARIANT == "off" else emulator.unavailable()
    register(EmulatedBackend(why_not, Path() if why_not else library()), automatic=False)
