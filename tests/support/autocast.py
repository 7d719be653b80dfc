"""Comparing an op under autocast in bfloat16 with the equations under the same autocast."""

import torch

from ntm_kernels.backends.trust.tolerance import largest_error
from tests.support.cases import run, to_dtype
from tests.support.tolerance import assert_accurate


def same_bits(found, wanted):
    return all(
        torch.equal(one[name], other[name])
        for one, other in zip(found, wanted, strict=True)
        for name in other
    )


def assert_as_accurate_as_the_equations(case, found, tensors, grads):
    """``found`` are an op's outputs and gradients; ``tensors`` and ``grads`` are on the CPU."""
    with torch.autocast("cpu", torch.bfloat16):
        plain = run(case, tensors, None, grads)
    double = torch.float64
    truth = run(case, to_dtype(tensors, double), None, to_dtype(grads, double))
    for kind, wanted in enumerate(truth):
        for name, right in wanted.items():
            error = largest_error(plain[kind][name], right)
            assert found[kind][name].dtype == torch.float32
            assert_accurate(f"{case}: {name}", found[kind][name], right, error, terms=case.terms)
