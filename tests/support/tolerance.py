"""How far a result may be from the truth.

The error against float64 is at most twice that of ``ntm_kernels.reference`` under plain autograd in
the same dtype, or, where that is smaller, 4 ulp of the dtype times the largest magnitude of the tensor,
times √(T·N) for sums that long.
"""

import math

import torch


def assert_accurate(name, actual, plain, truth, *, terms=1):
    """``actual`` may be twice as far from ``truth`` (float64) as ``plain``, or 4 ulp · √terms.

    Infinities are right exactly where the truth does not fit the dtype; NaN is never right.
    """
    assert actual.dtype == plain.dtype, f"{name}: dtype {actual.dtype}, expected {plain.dtype}"
    assert actual.shape == truth.shape, f"{name}: shape {actual.shape}, expected {truth.shape}"
    dtype = actual.dtype
    if actual.numel() == 0:
        return
    truth = truth.to(torch.float64).cpu()
    found, wanted = (t.detach().to(torch.float64).cpu() for t in (actual, plain))
    limits = torch.finfo(dtype)
    # A rounding step below the maximum a result may have gone either way.
    overflows = truth.abs() > limits.max * (1 - 4 * limits.eps)
    found, wanted, truth = (
        torch.where(overflows & (t.abs() >= limits.max * (1 - 8 * limits.eps)), 0, t)
        for t in (found, wanted, truth)
    )
    scale = truth.abs().max().item()
    # Below the smallest normal number an ulp is no longer relative.
    floor = max(4 * limits.eps * scale, 4 * limits.tiny * limits.eps) * math.sqrt(terms)
    plain_error = _largest(wanted - truth)
    allowed = max(2 * plain_error, floor) if math.isfinite(plain_error) else floor
    error = (found - truth).abs()
    if bool((error <= allowed).all()):
        return
    worst = torch.where(error.isnan(), math.inf, error).flatten().argmax().item()
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), truth.shape))
    raise AssertionError(
        f"{name} {list(truth.shape)} {dtype}: {int((~(error <= allowed)).sum())} of "
        f"{truth.numel()} elements are off; the worst, at {index}, is {found[index].item():.9g}, "
        f"expected {truth[index].item():.9g}: error {error[index].item():.3g}, allowed "
        f"{allowed:.3g} (plain autograd errs by {plain_error:.3g}; floor {floor:.3g}: "
        f"4 ulp x largest magnitude {scale:.3g} x sqrt({terms}))"
    )


def _largest(error):
    worst = error.abs().max()
    return math.nan if worst.isnan() else worst.item()
