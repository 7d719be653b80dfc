"""Gradients of ``ntm_kernels.reference`` where naive autograd gives NaN or something wrong."""

import pytest
import torch

from ntm_kernels import InterfaceLayout, reference
from tests.support import equations
from tests.support.cases import call, cotangents, differentiate, run
from tests.support.traps import TRAPS

DTYPES = (torch.float64, torch.float32)
# Arguments in which the value itself jumps, or bends too sharply for a finite difference.
NOT_SMOOTH = {
    "zero key": "key",
    "zero row": "memory",
    "zero memory": "memory",
    "norms below epsilon": "memory",
    "norms around epsilon": "memory key",
    "constant tiny memory": "memory",
    "weightings around epsilon": "gate previous_weightings",
    "no weighting": "gate previous_weightings",
    "no weighting, sharpening 1": "gate previous_weightings",
    "nearly no weighting": "gate previous_weightings",
    "no weighting but for rounding": "gate previous_weightings",
    "one-hot, sharpening 1.5": "gate previous_weightings shift",
    "sequence from the default start": "initial_memory",
}


@pytest.mark.parametrize("trap", TRAPS)
def test_gradients_are_finite(trap):
    case, tensors = TRAPS[trap]()
    for dtype in DTYPES:
        results = run(case, {name: tensor.to(dtype) for name, tensor in tensors.items()})
        for group in results:
            for name, value in group.items():
                assert value.isfinite().all(), f"{name} in {dtype}"


# A power of 0 between 1 and 2 has an infinite second derivative. Slopes as large as 1e20 have one
# that overflows in float32.
INFINITE = {"one-hot, sharpening 1.5": DTYPES, "weightings around epsilon": (torch.float32,)}


@pytest.mark.parametrize("trap", TRAPS)
def test_second_derivatives_are_finite(trap):
    """Those of the loss along random directions."""
    case, tensors = TRAPS[trap]()
    for dtype in set(DTYPES) - set(INFINITE.get(trap, ())):
        given = {name: tensor.to(dtype).requires_grad_() for name, tensor in tensors.items()}
        outputs = call(case, given)
        first = differentiate(outputs, cotangents(outputs), given, create_graph=True)
        first = {name: grad for name, grad in first.items() if grad is not None}
        second = differentiate(first, cotangents(first), given)
        assert any(value is not None for value in second.values())
        for name, value in second.items():
            assert value is None or value.isfinite().all(), f"{name} in {dtype}"


@pytest.mark.parametrize(
    "trap", [t for t in TRAPS if "1e4" not in t and "1e10" not in t and "saturated" not in t]
)
def test_gradients_are_one_sided_differences(trap):
    """Arguments sit on the edge of their domain, so step only into it, second order."""
    case, tensors = TRAPS[trap]()
    outputs, found = run(case, tensors)
    grads = cotangents(outputs)

    def loss(name, flat_index, step):
        moved = tensors[name].flatten().clone()
        moved[flat_index] += step
        results = call(case, tensors | {name: moved.view_as(tensors[name])})
        return sum((results[part] * grads[part]).sum() for part in results)

    step = 2.0**-20
    for name in tensors:
        if name in NOT_SMOOTH.get(trap, "").split():
            continue
        sign = -1 if name == "gate" and (tensors[name] >= 1).any() else 1
        for index, slope in enumerate(found[name].flatten().tolist()):
            near, far = (loss(name, index, sign * times * step) for times in (1, 2))
            wanted = (4 * near - far - 3 * loss(name, index, 0)) / (2 * sign * step)
            assert abs(slope - wanted) <= 1e-6 * max(1, abs(wanted)), (name, index, slope, wanted)


def slopes_of_sharpen(shifted, gamma):
    """∂w_i/∂w̃_j and ∂w_i/∂γ written out, with 0⁰ = 1 and 0 log 0 = 0."""
    powers = shifted**gamma
    weightings = powers / powers.sum()
    inner = gamma * shifted ** (gamma - 1) / powers.sum()
    by_shifted = inner * (torch.eye(len(shifted)) - weightings[:, None])
    logs = torch.where(shifted > 0, shifted, 1).log()
    return by_shifted, weightings * (logs - (weightings * logs).sum())


@pytest.mark.parametrize("gamma", [1.0, 1.25, 2.0, 7.0])
@pytest.mark.parametrize(
    "shifted", [(0.0, 1.0, 0.0), (0.5, 0.0, 0.5), (0.2, 0.3, 0.5), (1.0,), (1e-300, 1.0)]
)
def test_sharpen(shifted, gamma):
    shifted, gamma = torch.tensor(shifted, dtype=torch.float64), torch.tensor(gamma).double()
    by_shifted, by_gamma = torch.func.jacrev(
        lambda w, g: reference.sharpen(w[None, None], g[None, None])[0, 0], (0, 1)
    )(shifted, gamma)
    wanted = slopes_of_sharpen(shifted, gamma)
    torch.testing.assert_close(by_shifted, wanted[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by_gamma, wanted[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gamma", [2.0, 3.0, 7.0])
def test_second_derivatives_of_sharpen_at_zero(gamma):
    """Against one-sided differences of the slopes that are written out."""
    start = torch.tensor([0.0, 0.4, 0.6]).double(), torch.tensor(gamma).double()

    def sharpen(shifted, gamma):
        return reference.sharpen(shifted[None, None], gamma[None, None])[0, 0]

    found = torch.func.jacrev(torch.func.jacrev(sharpen, (0, 1)), (0, 1))(*start)
    step, before = 1e-7, slopes_of_sharpen(*start)
    for index in range(3):
        moved = start[0] + step * torch.eye(3)[index]
        for kind, after in enumerate(slopes_of_sharpen(moved, start[1])):
            wanted = (after - before[kind]) / step
            torch.testing.assert_close(found[kind][0][..., index], wanted, rtol=1e-4, atol=1e-4)
    for kind, after in enumerate(slopes_of_sharpen(start[0], start[1] + step)):
        wanted = (after - before[kind]) / step
        torch.testing.assert_close(found[kind][1], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("highest", [0.0, 1e-300, 0.99e-20])
@pytest.mark.parametrize("gamma", [1.0, 2.0, 1e4])
def test_sharpen_of_nothing_is_uniform_without_gradient(gamma, highest):
    shifted = torch.zeros(1, 1, 4, dtype=torch.float64)
    shifted[..., 1] = highest
    shifted.requires_grad_()
    gamma = torch.full((1, 1), gamma, dtype=torch.float64, requires_grad=True)
    weightings = reference.sharpen(shifted, gamma)
    assert torch.equal(weightings, torch.full_like(weightings, 0.25))
    weightings.backward(torch.rand_like(weightings))
    assert not shifted.grad.any()
    assert not gamma.grad.any()


@pytest.mark.parametrize("gamma", [-1.5, 0.0, 0.5, 1.0, 2.0, torch.inf, torch.nan])
@pytest.mark.parametrize(
    "shifted",
    [(0.5, -0.25, 1.0), (-0.5, -0.5, -0.5), (0.0, -1e-30, 0.0), (0.0, 3.0, 1.0), (2.0, 3.0, 4.0)],
)
def test_sharpen_outside_the_domains(shifted, gamma):
    """What the equations say, also of an integer power of a negative number."""
    inputs = torch.tensor([[shifted]]).double().requires_grad_(), torch.tensor([[gamma]]).double()
    weightings = reference.sharpen(*inputs)
    wanted = torch.from_numpy(equations.sharpen(inputs[0][0, 0].detach().numpy(), gamma))
    torch.testing.assert_close(weightings[0, 0].detach(), wanted, equal_nan=True)
    weightings.backward(torch.tensor([[[1.0, -2.0, 3.0]]]).double())
    slopes, at_zero = inputs[0].grad, inputs[0] == 0
    assert torch.equal(slopes.isnan().any(), wanted.isnan().any())
    if not wanted.isnan().any() and at_zero.any():
        assert slopes[at_zero].isinf().all() if 0 < gamma < 1 else slopes[at_zero].isfinite().all()


def test_epsilon_bounds_the_highest_weight():
    shifted = torch.tensor([[[0.5e-20, 1.01e-20]]], dtype=torch.float64)
    weightings = reference.sharpen(shifted, torch.ones(1, 1, dtype=torch.float64))
    torch.testing.assert_close(weightings, shifted / 1.51e-20)


@pytest.mark.parametrize("gamma", [8, 12, 1e4])
def test_sharpening_a_uniform_weighting_keeps_its_sum(gamma):
    uniform = torch.full((1, 1, 128), 1 / 128)
    weightings = reference.sharpen(uniform, torch.tensor([[float(gamma)]]))
    assert weightings.sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("which", ["key", "memory"])
def test_no_similarity_no_gradient(which):
    """A zero vector resembles nothing, and has no slope; its neighbours keep theirs."""
    memory = torch.randn(1, 3, 4, dtype=torch.float64)
    key = torch.randn(1, 2, 4, dtype=torch.float64)
    {"key": key, "memory": memory}[which][0, 1] = 0
    memory.requires_grad_()
    key.requires_grad_()
    similarity = reference.similarity(memory, key)
    similarity.sum().backward()
    row = similarity[0, 1] if which == "key" else similarity[0, :, 1]
    assert not row.any()
    assert not {"key": key, "memory": memory}[which].grad[0, 1].any()
    assert key.grad[0, 0].any()
    assert memory.grad[0, 0].any()


def test_epsilon_bounds_the_product_of_the_norms():
    key = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    memory = torch.tensor([[[0.99e-8, 0.0], [1.01e-8, 0.0], [1e-8, 0.0]]], dtype=torch.float64)
    assert reference.similarity(memory, key).tolist() == [[[0.0, 1.0, 1.0]]]


@pytest.mark.parametrize("raw", [1e4, 100.0, -100.0, -1e4])
def test_activation_far_out(raw):
    """Softplus is the identity or 0, with that slope; sigmoid is 1 or 0, with slope 0."""
    layout = InterfaceLayout(word_size=1, num_read_heads=1, num_write_heads=1, shift_range=1)
    interface = torch.full((layout.size,), raw, requires_grad=True)
    heads = reference.activate(interface, layout)
    above = raw > 0
    assert heads.strength.tolist() == [pytest.approx(raw if above else 0)] * 2
    assert heads.sharpening.tolist() == [1 + raw if above else 1] * 2
    assert heads.gate.tolist() == [pytest.approx(float(above))] * 2
    assert heads.erase.item() == pytest.approx(float(above))
    torch.testing.assert_close(heads.shift, torch.full((2, 3), 1 / 3))
    wanted = {"key": 1, "strength": above, "gate": 0, "sharpening": above, "erase": 0, "add": 1}
    for name, slope in wanted.items():
        (grad,) = torch.autograd.grad(getattr(heads, name).sum(), interface, retain_graph=True)
        assert grad.sum().item() == pytest.approx(slope * getattr(heads, name).numel(), abs=1e-6)
