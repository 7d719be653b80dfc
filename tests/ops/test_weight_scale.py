"""The accuracy of whole sequences whose weights are three times those of the initialisation.

Rounding errors of one such trajectory are a matter of luck. They scatter tenfold either way, most
of all at M = 1, where the gradients of a cosine are sums that cancel. So two things are bounded for
each result: the geometric mean over some trajectories of error / allowed error, by 1, and that of
every single trajectory, by a number that tells bad luck from a wrong result. Where a trajectory
explodes (a gradient above 1e6 times the loss), every number has to be finite, nothing more.
"""

import math
from functools import lru_cache

import pytest
import torch

from ntm_kernels.backends.torch import address as addressing
from ntm_kernels.backends.trust.tolerance import allowed_error, largest_error
from tests.support.cases import F64, Case, Dtypes, arguments, call, cotangents, run, to_dtype
from tests.support.table import Entry, each_backend, fitting

SCALE = 3
TRAJECTORIES = 8
BAD_LUCK = 20
EXPLODED = 1e6
CASES = [
    Case("sequence", 2, 8, 4, 2, 2, time=7, hidden_size=10, input_size=3),
    Case("sequence", 2, 8, 1, time=7, hidden_size=10, input_size=3),
    Case("sequence", 2, 8, 1, time=7, hidden_size=10, input_size=3, controller="feedforward"),
]


def at_scale(case, seed):
    """Arguments in float32 as at the start of a training, but for the scale of the weights."""
    tensors = arguments(case, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def uniform(name, bound):
        noise = torch.rand(tensors[name].shape, generator=generator, dtype=F64)
        tensors[name] = SCALE * bound * (2 * noise - 1)

    for name in ("recurrent_weight", "input_weight", "input_bias"):
        uniform(name, case.hidden_size**-0.5)
    uniform("interface_weight", 1.4 * math.sqrt(6 / (case.layout.size + case.hidden_size)))
    tensors["interface_bias"] *= SCALE * 0.01
    tensors["initial_memory"][:] = 1e-6
    tensors["initial_weightings"][:] = torch.eye(case.memory_size)[0]
    tensors["initial_read_vectors"] *= 0.01
    for name in {"initial_hidden", "initial_cell"} & tensors.keys():
        tensors[name] *= 0.05
    return to_dtype(tensors, torch.float32)


@lru_cache
def measured(case, seed):
    """Arguments, the truth, the errors of plain autograd, and whether the trajectory explodes."""
    tensors = at_scale(case, seed)
    grads = cotangents(call(case, tensors))
    truth = run(case, to_dtype(tensors, F64), None, to_dtype(grads, F64))
    plain = run(case, tensors, None, grads)
    errors = [
        {name: largest_error(found[name], part) for name, part in wanted.items()}
        for found, wanted in zip(plain, truth, strict=True)
    ]
    loss = sum((truth[0][name] * grad).sum() for name, grad in grads.items()).abs()
    exploded = max(grad.abs().max() for grad in truth[1].values()) > EXPLODED * loss
    return tensors, grads, truth, errors, exploded


def ratios(entry, case):
    """Of each output and gradient, error / allowed error on every trajectory."""
    found = {}
    for seed in range(TRAJECTORIES):
        tensors, grads, truth, errors, exploded = measured(case, seed)
        moved = {name: tensor.to(entry.device) for name, tensor in tensors.items()}
        actual = run(
            case, moved, entry.backend, {k: grad.to(entry.device) for k, grad in grads.items()}
        )
        for kind, what in enumerate(("", "gradient of ")):
            for name, wanted in truth[kind].items():
                part = actual[kind][name]
                assert part.isfinite().all(), f"{what}{name} of trajectory {seed}"
                if exploded:
                    continue
                allowed = allowed_error(
                    part.dtype, wanted, errors[kind][name], terms=case.terms, factor=2
                )
                error = largest_error(part, wanted)
                found.setdefault(what + name, []).append(max(error / allowed, 1e-3))
    return found


def assert_as_good(entry, case):
    for name, values in ratios(entry, case).items():
        mean = math.prod(values) ** (1 / len(values))
        listed = ", ".join(f"{value:.2g}" for value in values)
        assert mean <= 1, f"{name}: error / allowed is {mean:.3g} in the mean of {listed}"
        assert max(values) <= BAD_LUCK, f"{name}: error / allowed is {listed}"


@pytest.mark.parametrize("case", CASES, ids=str)
@each_backend
def test_weights_three_times_the_initial_ones(entry, case):
    fitting(entry, case, Dtypes.all(torch.float32))
    assert_as_good(entry, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_worse_backend_is_noticed(monkeypatch, case):
    """One that rounds the content weighting to 16 bits."""
    exact = addressing.content
    monkeypatch.setattr(addressing, "content", lambda *given: exact(*given).half().float())
    with pytest.raises(AssertionError, match="error / allowed"):
        assert_as_good(Entry("torch", "cpu"), case)
