"""Every kernel, in one place to import when Triton is there."""

from __future__ import annotations

import torch
import triton.language as tl

from ntm_kernels.backends.triton.kernels.address import address_backward_kernel, address_kernel
from ntm_kernels.backends.triton.kernels.read import read_backward_kernel, read_kernel
from ntm_kernels.backends.triton.kernels.sequence import sequence_backward_kernel, sequence_kernel
from ntm_kernels.backends.triton.kernels.step import step_backward_kernel, step_kernel
from ntm_kernels.backends.triton.kernels.tiled import (
    combine_kernel,
    finish_backward_kernel,
    finish_kernel,
    scores_backward_kernel,
    scores_kernel,
    sharpen_backward_kernel,
    shift_backward_kernel,
    shift_kernel,
)
from ntm_kernels.backends.triton.kernels.write import write_backward_kernel, write_kernel

__all__ = [
    "ACC",
    "address_backward_kernel",
    "address_kernel",
    "combine_kernel",
    "finish_backward_kernel",
    "finish_kernel",
    "read_backward_kernel",
    "read_kernel",
    "scores_backward_kernel",
    "scores_kernel",
    "sequence_backward_kernel",
    "sequence_kernel",
    "sharpen_backward_kernel",
    "shift_backward_kernel",
    "shift_kernel",
    "step_backward_kernel",
    "step_kernel",
    "write_backward_kernel",
    "write_kernel",
]

ACC = {torch.float32: tl.float32, torch.float64: tl.float64}
