"""Which backend serves a call: ``choice`` decides, ``base`` says what a backend is.

Each backend has a folder: ``cuda``, ``triton``, ``cpu`` and ``torch``.
"""

from ntm_kernels.backends.base import Backend, BackendError, Kernel, Problem
from ntm_kernels.backends.choice import (
    ENVIRONMENT_VARIABLE,
    BackendChoice,
    BackendStatus,
    available_backends,
    choose,
    explain,
    get,
    register,
    release_workspaces,
    requested,
    require_registered,
    serves_if_requested,
    use_backend,
)
from ntm_kernels.backends.cpu import CpuBackend
from ntm_kernels.backends.cuda import CudaBackend
from ntm_kernels.backends.torch import TorchBackend
from ntm_kernels.backends.triton import TritonBackend

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "Backend",
    "BackendChoice",
    "BackendError",
    "BackendStatus",
    "Kernel",
    "Problem",
    "available_backends",
    "choose",
    "explain",
    "get",
    "register",
    "release_workspaces",
    "requested",
    "require_registered",
    "serves_if_requested",
    "use_backend",
]

register(TorchBackend())
register(TritonBackend())
register(CudaBackend())
register(CpuBackend())
