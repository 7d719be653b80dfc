"""A small NTM and its input, for tests of the module."""

import torch

from ntm_kernels import NTM

SIZES = {"hidden_size": 7, "memory_size": 11, "word_size": 5, "num_read_heads": 2}


def make(dtype=torch.float64, output_size=2, **kwargs):
    torch.manual_seed(0)
    return NTM(3, output_size, **{**SIZES, **kwargs}, dtype=dtype)


def inputs(time=6, batch=4, dtype=torch.float64):
    return torch.randn(time, batch, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))
