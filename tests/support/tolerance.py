"""How far a result may be from the truth.

The error against float64 is at most twice that of ``ntm_kernels.reference`` under plain autograd in
the same dtype, or, where that is smaller, 4 ulp of the dtype times the largest magnitude of the
tensor, times √(T·N) for sums that long. Of a single call this is so for weights like those of the
initialisation; ``tests/ops/test_weight_scale.py`` has larger ones.

For float64 itself there is no better truth than plain autograd in float64, and its error is taken
to be its error in float32 times 2^-29; the truth may be off by that once more.
"""

import math

import torch

FLOAT64_STEP = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


def largest_error(found, truth):
    """Largest absolute error, NaN if there is one; infinities right by overflow do not count."""
    if truth.numel() == 0:
        return 0.0
    error = _differences(found, truth)
    return math.nan if error.isnan().any() else error.max().item()


def allowed_error(dtype, truth, plain_error, *, terms=1, factor=2):
    """``factor`` times the error of plain autograd, or the floor where that is larger."""
    limits = torch.finfo(dtype)
    representable = truth.abs() <= limits.max
    scale = truth[representable].abs().max().item() if representable.any() else 0.0
    # Below the smallest normal number an ulp is no longer relative.
    floor = 4 * limits.eps * max(scale, limits.tiny) * math.sqrt(terms)
    return max(factor * plain_error, floor) if math.isfinite(plain_error) else floor


def assert_accurate(name, actual, truth, plain_error, *, terms=1, factor=2):
    """``actual`` may be ``factor`` times ``plain_error`` from ``truth``, or 4 ulp · √terms.

    Infinities are right exactly where the truth does not fit the dtype; NaN is never right.
    """
    assert actual.shape == truth.shape, f"{name}: shape {actual.shape}, expected {truth.shape}"
    if actual.numel() == 0:
        return
    allowed = allowed_error(actual.dtype, truth, plain_error, terms=terms, factor=factor)
    floor = allowed_error(actual.dtype, truth, 0.0, terms=terms, factor=factor)
    error = _differences(actual, truth)
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


def _differences(found, truth):
    limits = torch.finfo(found.dtype)
    found = found.detach().to("cpu", torch.float64)
    # Within some ulp of the largest number, a result may be that or infinite.
    overflow = (truth.abs() > limits.max * (1 - 8 * limits.eps)) & (
        found.abs() >= limits.max * (1 - 8 * limits.eps)
    )
    return torch.where(overflow & (found.sign() == truth.sign()), 0, (found - truth).abs())
