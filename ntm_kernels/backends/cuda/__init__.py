"""The backend ``cuda``: compiled CUDA kernels, one launch per op and direction.

``csrc/cuda`` has the stages under the names of ``ntm_kernels.backends.torch``. The compiled library
knows nothing of torch: it takes structs of pointers and sizes (``csrc/cuda/params.h``) through
ctypes, so one build serves every torch, and the same sources compiled for an emulator serve tests
on a CPU. ``structs`` makes the structs from the records, ``library`` calls the library, ``run``
gives it the tensors, and each op has a file.
"""

from ntm_kernels.backends.cuda.backend import PARAMS, CudaBackend

__all__ = ["PARAMS", "CudaBackend"]
