"""The backend ``cuda``: compiled CUDA kernels, one launch per op and direction.

``csrc/cuda`` has the stages under the names of ``ntm_kernels.backends.torch``. The library
knows nothing of torch: it takes structs of pointers and sizes (``csrc/cuda/params.h``) through
ctypes, so one build serves every torch, and the same sources compiled for an emulator serve tests
on a CPU. ``library`` speaks to it, ``backend`` gives it tensors.
"""

from ntm_kernels.backends.cuda.backend import CudaBackend

__all__ = ["CudaBackend"]
