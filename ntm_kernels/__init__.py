"""Neural Turing Machines with fused kernels.

>>> import torch, ntm_kernels
>>> model = ntm_kernels.NTM(input_size=9, output_size=8, hidden_size=100)
>>> output, state = model(torch.randn(20, 4, 9))
>>> output.shape
torch.Size([20, 4, 8])
"""

from typing import TYPE_CHECKING, Any

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
from ntm_kernels.weights import pretrained

if TYPE_CHECKING:
    from ntm_kernels.plotting import plot_trace as plot_trace

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Not imported before it is asked for: plots need NumPy and matplotlib, which are extras.
    # For the same reason it is not in __all__.
    if name == "plot_trace":
        from ntm_kernels.plotting import plot_trace

        return plot_trace
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
    "pretrained",
    "reference",
    "release_workspaces",
    "use_backend",
]
