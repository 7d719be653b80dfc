"""Neural Turing Machines with fused kernels.

>>> import torch, ntm_kernels
>>> model = ntm_kernels.NTM(input_size=9, output_size=8, hidden_size=100)
>>> output, state = model(torch.randn(20, 4, 9))
>>> output.shape
torch.Size([20, 4, 8])
"""

from ntm_kernels import export, functional, reference
from ntm_kernels.backends import (
    BackendChoice,
    BackendError,
    BackendStatus,
    available_backends,
    release_workspaces,
    use_backend,
)
from ntm_kernels.interface import HeadParameters, InterfaceLayout
from ntm_kernels.nn import NTM, InitialState, NTMCell, NTMState
from ntm_kernels.reference import LayerWeights, SequenceResult, SequenceState, Trace

__version__ = "0.1.0"

__all__ = [
    "NTM",
    "BackendChoice",
    "BackendError",
    "BackendStatus",
    "HeadParameters",
    "InitialState",
    "InterfaceLayout",
    "LayerWeights",
    "NTMCell",
    "NTMState",
    "SequenceResult",
    "SequenceState",
    "Trace",
    "available_backends",
    "export",
    "functional",
    "reference",
    "release_workspaces",
    "use_backend",
]
