"""Modules under every derivative, used as ``nn.LSTM`` is."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap

from ntm_kernels import NTM, BackendError, InitialState, NTMCell
from tests.support.cases import leaves
from tests.support.table import each_with_the_first_derivative

pytestmark = [
    # TorchScript, by which torch decomposes some derivatives of forward mode, is deprecated.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
    # These tests also run with the oldest torch, for which the CPU kernels are not built.
    pytest.mark.filterwarnings("ignore:ntm_kernels computes on the slower backend:RuntimeWarning"),
]

T, B, I = 3, 4, 2  # noqa: E741
SIZES = {"hidden_size": 5, "memory_size": 6, "word_size": 3}


class Own(nn.Linear):
    """A controller of the user's own, with a state."""

    def initial_state(self, batch_size):
        return self.bias.expand(batch_size, -1)

    def forward(self, x, state):
        output = torch.tanh(super().forward(x) + state)
        return output, output


# Models that run as one op, and models that call their parts.
MODELS = {
    "lstm": {},
    "feedforward": {"controller": "feedforward", "num_layers": 2},
    "deep, every part learned": {
        "num_layers": 2,
        "initial_state": InitialState("learned", "learned", "learned", "learned"),
    },
    "not fused": {"fused": False, "num_read_heads": 2},
    "own controller": {"controller": Own(I + 3, 5)},
}
each_model = pytest.mark.parametrize("kind", MODELS)


def model(kind="lstm", **options):
    torch.manual_seed(1)
    return NTM(I, 2, **SIZES, **copy.deepcopy(MODELS[kind]), **options).double()


def inputs():
    return torch.randn(T, B, I, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def parameters(module):
    return {name: value.detach() for name, value in module.named_parameters()}


def loss_of(module):
    """The loss as a function of parameters and input."""

    def loss(weights, x):
        output, state = functional_call(module, weights, (x,))
        return output.sin().sum() + state.memory.square().sum()

    return loss


def penalty(module, x):
    """Gradients of the parameters through the gradient of the input."""
    x = x.detach().requires_grad_()
    loss = loss_of(module)(dict(module.named_parameters()), x)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    return torch.autograd.grad(slope.square().sum(), list(module.parameters()), allow_unused=True)


@each_model
def test_gradient_penalty(kind):
    """Its directional derivative is a difference of penalties."""
    module, x = model(kind, backend="torch"), inputs()
    found = dict(zip(dict(module.named_parameters()), penalty(module, x), strict=True))
    start = parameters(module)
    direction = {name: torch.randn_like(value) for name, value in start.items()}

    def at(step):
        moved = {name: value + step * direction[name] for name, value in start.items()}
        return grad(loss_of(module), 1)(moved, x).square().sum()

    step = 1e-5
    wanted = (at(step) - at(-step)) / (2 * step)
    along = sum((g * direction[name]).sum() for name, g in found.items() if g is not None)
    torch.testing.assert_close(along, wanted, rtol=1e-6, atol=1e-6)


@each_model
def test_functional_call_is_the_ordinary_gradient(kind):
    module, x = model(kind, backend="torch"), inputs()
    found = grad(loss_of(module))(parameters(module), x)
    loss_of(module)(dict(module.named_parameters()), x).backward()
    wanted = {name: value.grad for name, value in module.named_parameters()}
    for name, gradient in found.items():
        given = torch.zeros_like(gradient) if wanted[name] is None else wanted[name]
        torch.testing.assert_close(gradient, given)


@each_model
def test_per_sample_gradients(kind):
    """By vmap of grad, against a backward for each sequence alone."""
    module, x = model(kind), inputs()
    weights, loss = parameters(module), loss_of(module)
    found = vmap(lambda one: grad(loss)(weights, one.unsqueeze(1)), in_dims=1)(x)
    for index in range(B):
        module.zero_grad()
        loss(dict(module.named_parameters()), x[:, index : index + 1]).backward()
        for name, value in module.named_parameters():
            wanted = torch.zeros_like(value) if value.grad is None else value.grad
            torch.testing.assert_close(found[name][index], wanted)


def test_inner_step_of_maml():
    """The gradient through a step of gradient descent is the same in both styles."""
    module, x, rate = model(backend="torch"), inputs(), 0.1
    loss, weights = loss_of(module), parameters(module)

    def after_a_step(weights):
        inner = grad(loss)(weights, x)
        return loss({name: value - rate * inner[name] for name, value in weights.items()}, 2 * x)

    found = grad(after_a_step)(weights)
    given = leaves(weights)
    inner = torch.autograd.grad(loss(given, x), list(given.values()), create_graph=True)
    moved = {
        name: value - rate * slope
        for (name, value), slope in zip(given.items(), inner, strict=True)
    }
    loss(moved, 2 * x).backward()
    for name, value in given.items():
        torch.testing.assert_close(found[name], value.grad)


def test_jacobians_of_the_state():
    """Reverse and forward mode, from the first memory to the last."""
    module, x = model(), inputs()
    state = module.initial_state(B)

    def last_memory(memory):
        return module(x, state._replace(memory=memory))[1].memory

    direction = torch.randn_like(state.memory)
    by_rows = jacrev(last_memory)(state.memory)
    _, tangent = jvp(last_memory, (state.memory,), (direction,))
    torch.testing.assert_close(tangent, (by_rows * direction).sum((-3, -2, -1)))


def test_an_ensemble():
    models, x = [model(), model()], inputs()
    nn.init.normal_(models[1].cell.interface.weight)
    weights, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    outputs = vmap(lambda *state: functional_call(base, state, (x,))[0])(weights, buffers)
    torch.testing.assert_close(outputs, torch.stack([one(x)[0] for one in models]))


@pytest.mark.parametrize("kind", ["lstm", "not fused"])
def test_lengths_resets_and_the_trace(kind):
    module, x = model(kind), inputs()
    lengths = torch.tensor([3, 1, 2, 0])
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[1] = True

    def run(x, lengths, resets):
        x, resets = x.unsqueeze(1), resets.unsqueeze(1)
        output, state, trace = module(x, None, lengths.unsqueeze(0), True, resets)
        return output[:, 0], state.memory[0], *(part[:, 0] for part in trace)

    output, state, trace = module(x, None, lengths, True, resets)
    found = vmap(run, (1, 0, 1), (1, 0, *(1 for _ in trace)))(x, lengths, resets)
    torch.testing.assert_close(found, (output, state.memory, *trace))


@pytest.mark.parametrize("fused", [True, False])
@each_with_the_first_derivative
def test_other_backends_name_the_switch(entry, fused):
    cell = NTMCell(I, **SIZES, backend=entry.backend, fused=fused, device=entry.device)
    x = torch.ones(B, I, device=entry.device, requires_grad=True)

    def loss(x):
        return cell(x)[0].sin().sum()

    refused = f"backend {entry.backend!r}, asked for by .* cannot serve .*use backend='torch'"
    for transformed in (grad(loss), jacrev(loss), lambda x: jvp(loss, (x,), (x,))):
        with pytest.raises(BackendError, match=refused):
            transformed(x.detach())
    with pytest.raises(BackendError, match=refused):
        vmap(loss)(x.detach().unsqueeze(1))
    (slope,) = torch.autograd.grad(loss(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"the second derivative of .*use backend='torch'"):
        slope.sum().backward()
