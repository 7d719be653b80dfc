"""The backend ``triton``: kernels for NVIDIA and AMD cards that need no compiler installed.

One file per op over the stages that all share; ``launch`` says which kernels serve which sizes.
Importing this package does not import Triton.
"""

from ntm_kernels.backends.triton.backend import TritonBackend

__all__ = ["TritonBackend"]
