"""The backend ``reference``: plain PyTorch on any device, with hand-derived backwards.

Stage by stage the same formulas as the compiled backends; ``ntm_kernels.reference`` is the
specification that all of them are tested against.
"""

from ntm_kernels.backend.reference.backend import ReferenceBackend

__all__ = ["ReferenceBackend"]
