"""How far a result may be from the truth.

The error against float64 is at most twice that of ``ntm_kernels.reference`` under plain autograd in
the same dtype, or, where that is smaller, 4 ulp of the dtype times the largest magnitude of the
tensor, times √(T·N) for sums that long. Of a single call this is so for weights like those of the
initialisation; ``tests/ops/test_weight_scale.py`` has larger ones.

``ntm_kernels.backends.trust.tolerance`` computes it, and says what holds for float64. The check
of a user's GPU has the same bound.
"""

import math

import torch

from ntm_kernels.backends.trust.tolerance import allowed_error, differences


def assert_accurate(name, actual, truth, plain_error, *, terms=1, factor=2):
    """``actual`` may be ``factor`` times ``plain_error`` from ``truth``, or 4 ulp · √terms.

    Infinities are right exactly where the truth does not fit the dtype; NaN is never right.
    """
    assert actual.shape == truth.shape, f"{name}: shape {actual.shape}, expected {truth.shape}"
    if actual.numel() == 0:
        return
    allowed = allowed_error(actual.dtype, truth, plain_error, terms=terms, factor=factor)
    floor = allowed_error(actual.dtype, truth, 0.0, terms=terms, factor=factor)
    error = differences(actual, truth)
    if bool((error <= allowed).all()):
        return
    worst = torch.where(error.isnan(), math.inf, error).flatten().argmax().item()
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), truth.shape))
    raise AssertionError(
        f"{name} {list(truth.shape)} {actual.dtype}: {int((~(error <= allowed)).sum())} of "
        f"{truth.numel()} elements are off; the worst, at {index}, is {actual[index].item():.9g}, "
        f"expected {truth[index].item():.9g}: error {error[index].item():.3g}, allowed "
        f"{allowed:.3g} (plain autograd errs by {plain_error:.3g}, times {factor}; floor "
        f"{floor:.3g}: 4 ulp x largest magnitude x sqrt({terms}))"
    )
