import copy

import numpy as np
import pytest
import torch
from torch import nn

from ntm_kernels.backends import get
from ntm_kernels.optim import GravesRMSprop, hold_then_linear

CPU = get("cpu").unavailable() is None
WAYS = [{"fused": False}, {"fused": False, "foreach": False}]
WAYS += [{"fused": True}] if CPU else []
each_way = pytest.mark.parametrize("way", WAYS, ids=str)


def transcription(theta, grads, lr, decay, momentum, eps, centered):
    """The four equations, element by element in NumPy, in the dtype of theta."""
    n, m, delta = (np.zeros_like(theta) for _ in range(3))
    for g in grads:
        n = decay * n + (1 - decay) * g * g
        m = decay * m + (1 - decay) * g
        spread = np.maximum(n - m * m, 0) if centered else n
        delta = momentum * delta - lr * g / np.sqrt(spread + eps)
        theta = theta + delta
    return theta


def run(theta, grads, **options):
    parameter = nn.Parameter(torch.tensor(theta))
    optimiser = GravesRMSprop([parameter], **options)
    for grad in grads:
        parameter.grad = torch.tensor(grad)
        optimiser.step()
    return parameter.detach().numpy()


@each_way
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_the_equations(way, centered, momentum):
    random = np.random.default_rng(0)
    theta, grads = random.normal(size=(3, 4)), random.normal(size=(20, 3, 4))
    options = {"lr": 1e-2, "decay": 0.8, "momentum": momentum, "eps": 1e-3, "centered": centered}
    expected = transcription(theta, grads, **options)
    np.testing.assert_allclose(run(theta, grads, **way, **options), expected, rtol=1e-12)


def test_defaults_are_those_of_graves():
    defaults = GravesRMSprop([nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (defaults["lr"], defaults["decay"], defaults["momentum"]) == (1e-4, 0.95, 0.9)
    assert (defaults["eps"], defaults["centered"]) == (1e-4, True)


@each_way
def test_steady_float32_gradients_stay_finite(way):
    """n - m² is rounding noise of either sign here; its root must not be NaN."""
    grads = np.full((400, 64), 1000.0, np.float32) * np.linspace(0.5, 1, 64, dtype=np.float32)
    parameter = nn.Parameter(torch.zeros(64))
    optimiser = GravesRMSprop([parameter], **way, eps=1e-4)
    negative = False
    for grad in grads:
        parameter.grad = torch.from_numpy(grad)
        optimiser.step()
        state = optimiser.state[parameter]
        negative |= bool((state["square_avg"] - state["grad_avg"] ** 2 < 0).any())
    assert negative or way["fused"], "these gradients do not exercise the guard"
    assert bool(parameter.isfinite().all())


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def train(model, optimiser, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimiser.zero_grad()
        model(torch.randn(4, 5, generator=generator)).square().mean().backward()
        optimiser.step()


def test_foreach_and_single_tensor_give_the_same_bits():
    models = [make_model(), make_model()]
    for model, foreach in zip(models, (True, False), strict=True):
        optimiser = GravesRMSprop(model.parameters(), lr=1e-2, foreach=foreach, fused=False)
        train(model, optimiser, 25)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_state_dict_goes_on_bit_for_bit():
    model = make_model()
    optimiser = GravesRMSprop(model.parameters(), lr=1e-2)
    train(model, optimiser, 5)
    twin = copy.deepcopy(model)
    resumed = GravesRMSprop(twin.parameters(), lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    train(model, optimiser, 5, seed=2)
    train(twin, resumed, 5, seed=2)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("pickled", [False, True], ids=["state_dict", "pickle"])
def test_a_state_of_before_an_option_existed(pickled):
    """It goes on as the optimiser that it is loaded into, or with the defaults."""
    optimiser = GravesRMSprop(make_model().parameters(), lr=1e-2, foreach=False)
    old = copy.deepcopy(optimiser.state_dict())
    for name in ("foreach", "fused"):
        del old["param_groups"][0][name]
    if pickled:
        for options in (optimiser.defaults, optimiser.param_groups[0]):
            del options["foreach"], options["fused"]
        optimiser = copy.deepcopy(optimiser)
    else:
        optimiser.load_state_dict(old)
    (group,) = optimiser.param_groups
    assert (group["foreach"], group["fused"]) == (pickled, None)
    assert group.keys() == GravesRMSprop(make_model().parameters()).param_groups[0].keys()
    for parameter in group["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()


def test_groups_have_their_own_options():
    slow, fast = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [slow], "lr": 0.0}, {"params": [fast], "momentum": 0.0}]
    optimiser = GravesRMSprop(groups, lr=0.1)
    slow.grad, fast.grad = torch.ones(2), torch.ones(2)
    optimiser.step()
    assert torch.equal(slow, torch.ones(2))
    assert bool((fast < 1).all())
    assert "delta" not in optimiser.state[fast]


@pytest.mark.skipif(not CPU, reason="the CPU kernels are not there")
def test_fused_where_it_can_be_and_only_there():
    together, strided = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3, 2).mT)
    together.grad, strided.grad = torch.ones(2, 3), torch.ones(2, 3)
    optimiser = GravesRMSprop([together, strided], lr=0.1)
    optimiser.step()
    torch.testing.assert_close(together, strided)
    optimiser.param_groups[0]["fused"] = True
    with pytest.raises(RuntimeError, match=r"fused=True, but .* not contiguous"):
        optimiser.step()


@each_way
def test_a_step_is_seen_by_autograd(way):
    """A backward through a graph that needs the weights of before the step raises."""
    parameter = nn.Parameter(torch.ones(3))
    optimiser = GravesRMSprop([parameter], **way)
    loss = (parameter * parameter).sum()
    loss.backward(retain_graph=True)
    optimiser.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_averages_in_another_order_of_strides():
    """As they are after loading what a channels_last parameter left."""
    random = np.random.default_rng(0)
    theta, grad = (torch.tensor(part) for part in random.normal(size=(2, 2, 3, 4, 5)))
    found = []
    for fused in (False, None):
        parameter = nn.Parameter(theta.clone())
        optimiser = GravesRMSprop([parameter], lr=0.1, fused=fused)
        for _ in range(3):
            parameter.grad = grad.clone()
            optimiser.step()
            for name, average in optimiser.state[parameter].items():
                strided = average.to(memory_format=torch.channels_last)
                optimiser.state[parameter][name] = strided
        found.append(parameter)
    torch.testing.assert_close(*found)
    optimiser.param_groups[0]["fused"] = True
    with pytest.raises(RuntimeError, match="average of it is not contiguous"):
        optimiser.step()


@each_way
def test_options_turned_on_later(way):
    """Their averages start at 0."""
    parameter = nn.Parameter(torch.ones(2))
    optimiser = GravesRMSprop([parameter], lr=0.1, momentum=0.0, centered=False, eps=1.0, **way)
    for options in ({}, {"momentum": 0.5, "centered": True}):
        optimiser.param_groups[0].update(options)
        parameter.grad = torch.ones(2)
        optimiser.step()
    first = 0.1 / (0.05 + 1) ** 0.5
    second = 0.1 / (0.0975 - 0.05**2 + 1) ** 0.5
    torch.testing.assert_close(parameter, torch.full((2,), 1 - first - second))


@pytest.mark.skipif(not CPU, reason="the CPU kernels are not there")
def test_subclasses_of_tensors_are_not_fused():
    class Special(torch.Tensor):
        pass

    parameter = nn.Parameter(torch.ones(2).as_subclass(Special))
    parameter.grad = torch.ones(2).as_subclass(Special)
    optimiser = GravesRMSprop([parameter], fused=True)
    with pytest.raises(RuntimeError, match=r"a parameter is a .*Special"):
        optimiser.step()
    optimiser.param_groups[0]["fused"] = None
    optimiser.step()
    assert (parameter < 1).all()


def test_mixed_dtypes_and_missing_gradients():
    single, double = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2).double())
    unused = nn.Parameter(torch.ones(2))
    optimiser = GravesRMSprop([single, double, unused], lr=0.1)
    single.grad, double.grad = torch.ones(2), torch.ones(2).double()
    optimiser.step()
    assert torch.allclose(single.double(), double)
    assert torch.equal(unused, torch.ones(2))
    assert not optimiser.state[unused]


def test_closure_is_called_with_gradients():
    parameter = nn.Parameter(torch.ones(2))
    optimiser = GravesRMSprop([parameter])

    def closure():
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimiser.step(closure).item() == 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
        ({"lr": float("nan")}, "lr must be at least 0, got nan"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
        ({"eps": 0.0}, "eps must be greater than 0, got 0.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GravesRMSprop([nn.Parameter(torch.zeros(1))], **options)


def test_unsupported_parameters_are_refused():
    with pytest.raises(TypeError, match=r"float32 or float64 parameters, got torch\.bfloat16"):
        GravesRMSprop([nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))])
    embedding = nn.Embedding(3, 2, sparse=True)
    optimiser = GravesRMSprop(embedding.parameters())
    embedding(torch.tensor([0])).sum().backward()
    with pytest.raises(TypeError, match="sparse"):
        optimiser.step()
    embedding.weight.grad = torch.ones(3, 2)
    optimiser.step()
    embedding.weight.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(TypeError, match="sparse"):
        optimiser.step()


def rates(total, **options):
    optimiser = GravesRMSprop([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = hold_then_linear(optimiser, total, **options)
    seen = []
    for _ in range(total + 2):
        seen.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return np.array(seen)


def test_schedule_holds_three_quarters_then_falls_to_two_percent():
    seen = rates(400)
    assert (seen[:301] == 2.0).all()
    falling = 2.0 * np.interp(np.arange(300, 401), [300, 400], [1.0, 0.02])
    np.testing.assert_allclose(seen[300:401], falling, rtol=1e-12)
    np.testing.assert_allclose(seen[401], 0.04, rtol=1e-12)


def test_schedule_can_stay_constant():
    assert (rates(10, hold=1.0) == 2.0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps must be at least 1, got 0"),
        ({"total_steps": 5, "hold": 1.5}, r"hold must be in \[0, 1\], got 1.5"),
        ({"total_steps": 5, "final": -1.0}, r"final must be in \[0, 1\], got -1.0"),
    ],
)
def test_bad_schedules_are_refused(options, message):
    optimiser = GravesRMSprop([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match=message):
        hold_then_linear(optimiser, **options)
