"""The backend ``cpu``: compiled C++, the instruction set chosen at run time."""

from ntm_kernels.backends.cpu.backend import CpuBackend

__all__ = ["CpuBackend"]
