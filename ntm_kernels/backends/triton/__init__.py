"""The backend ``triton``: kernels for NVIDIA and AMD cards that need no compiler installed.

``kernels`` has what runs on the card, this folder what launches it, one file per op. A memory that
one program can hold takes one launch; ``memory_in_tiles`` has the launches for larger ones.
Importing this package does not import Triton.
"""

from ntm_kernels.backends.triton.backend import TritonBackend
from ntm_kernels.backends.triton.launcher import Launcher

__all__ = ["Launcher", "TritonBackend"]
