"""Whether Triton's interpreter runs at all with the installed NumPy.

That of Triton 3.6 fails with NumPy 2.4 at the first loop whose end is an argument.
"""

from functools import cache

import numpy as np
import torch
import triton
import triton.language as tl


@triton.jit
def count_kernel(p_total, n):
    total = 0
    for _ in range(n):
        total += 1
    tl.store(p_total, total)


@cache
def failure():
    """Why not; ``None`` if it does."""
    total = torch.zeros(1, dtype=torch.int32)
    try:
        count_kernel[(1,)](total, 3)
    except Exception as error:
        return (
            f"the interpreter of Triton {triton.__version__} does not work with "
            f"NumPy {np.__version__}: {error}"
        )
    return None
