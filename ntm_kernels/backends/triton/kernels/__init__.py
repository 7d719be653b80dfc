"""All that runs on the GPU. What launches it is in the folder above.

A file named after an op has its kernels, for memories that one program holds in registers; the
kernels for larger memories are in ``tiled.py``. The other files have what these call:
``addressing.py``, ``memory.py``, ``interface.py`` and ``controller.py`` the stages of a step, under
the names of ``ntm_kernels/reference.py``; ``math.py``, ``matrix.py`` and ``access.py`` the tools.

The same names mean the same in every file:

- ``p_x`` points at x, and ``i_x`` is an index, or a block of indices, along x; ``i_b`` is the
  program's sequence, and ``i_tb`` the row of its step in a tensor ``[T, B, ...]``.
- ``now`` is a ``Now``, the program's sequence and its present step in one record.
- ``d_x`` is the gradient of the loss by x.
- ``shape`` is a ``Shape``, the sizes under their letters, and ``block`` a ``Block``, the powers of
  two that hold them. Both are known when a kernel is compiled.
- ``memory`` is a block ``[N, M]``, ``weightings`` one of ``[H, N]``, ``taps`` one of ``[H, S]``.
  Numbers of all heads are a block ``[H]``. Beyond the sizes, up to the powers of two, memory,
  weightings and taps are 0.
- ``seen`` says that a gradient or read vector is summed over tiles, and that the sum over the tiles
  before is stored already.
"""

from __future__ import annotations

import torch
import triton.language as tl

from ntm_kernels.backends.triton.kernels.address import address_backward_kernel, address_kernel
from ntm_kernels.backends.triton.kernels.read import read_backward_kernel, read_kernel
from ntm_kernels.backends.triton.kernels.sequence import sequence_backward_kernel, sequence_kernel
from ntm_kernels.backends.triton.kernels.step import step_backward_kernel, step_kernel
from ntm_kernels.backends.triton.kernels.tiled import (
    combine_kernel,
    content_interpolate_shift_kernel,
    interpolate_shift_backward_kernel,
    read_write_backward_kernel,
    sharpen_backward_kernel,
    sharpen_read_write_kernel,
    similarity_content_backward_kernel,
    similarity_kernel,
)
from ntm_kernels.backends.triton.kernels.write import write_backward_kernel, write_kernel

__all__ = [
    "ACC",
    "address_backward_kernel",
    "address_kernel",
    "combine_kernel",
    "content_interpolate_shift_kernel",
    "interpolate_shift_backward_kernel",
    "read_backward_kernel",
    "read_kernel",
    "read_write_backward_kernel",
    "sequence_backward_kernel",
    "sequence_kernel",
    "sharpen_backward_kernel",
    "sharpen_read_write_kernel",
    "similarity_content_backward_kernel",
    "similarity_kernel",
    "step_backward_kernel",
    "step_kernel",
    "write_backward_kernel",
    "write_kernel",
]

ACC = {torch.float32: tl.float32, torch.float64: tl.float64}
