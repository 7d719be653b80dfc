"""Whether a backend computes right on a device, which a self-check finds out before it is used.

``trial`` runs one op on one code path of a backend and compares it with the backend ``torch``,
``paths`` finds a small call for each code path, ``verdicts`` keeps the outcome on disk, and
``policy`` says when a check is made and what follows from it. ``report`` is the command
``python -m ntm_kernels selfcheck``.
"""

from ntm_kernels.backends.trust.policy import (
    SWITCH,
    check,
    distrusted,
    failure_known,
    failure_of,
    failure_when_traced,
    pending,
    settle,
    told,
)
from ntm_kernels.backends.trust.verdicts import CACHE, Verdict

__all__ = [
    "CACHE",
    "SWITCH",
    "Verdict",
    "check",
    "distrusted",
    "failure_known",
    "failure_of",
    "failure_when_traced",
    "pending",
    "settle",
    "told",
]
