"""Marks for ``torch.compile``, set without importing the compiler.

``torch.compiler`` has public functions for this, but each of them imports ``torch._dynamo`` when it
is called, which takes longer than all the rest of ``import ntm_kernels``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def assume_constant_result(function: _Function) -> _Function:
    """Mark ``function`` so that ``torch.compile`` calls it while tracing and keeps the result.

    It sets the same mark as ``torch.compiler.assume_constant_result``.
    """
    function.__dict__["_dynamo_marked_constant"] = True
    return function
