"""Hooks, weight transforms and replacements of a cell's parts, on the fused path and beside it.

The oracle is the same model with ``fused=False``, which calls each part once a step.
"""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torch.nn.utils.rnn import pack_sequence

from ntm_kernels import NTM, functional
from ntm_kernels.nn import LSTMController

TIME = 3


class Feedforward(nn.Module):
    """A controller of a user's own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 + 5, 7, dtype=torch.float64)

    def forward(self, input, state):
        return self.linear(input).tanh(), state


CONTROLLERS = {
    "lstm": lambda: ("lstm", 1),
    "feedforward": lambda: ("feedforward", 1),
    "lstm x 2": lambda: ("lstm", 2),
    "feedforward x 2": lambda: ("feedforward", 2),
    "own lstm": lambda: (nn.LSTMCell(3 + 5, 7, dtype=torch.float64), 1),
    "own feedforward": lambda: (Feedforward(), 1),
}
FUSED = ("lstm", "feedforward", "lstm x 2", "feedforward x 2")


def make(controller="lstm", **kwargs):
    torch.manual_seed(0)
    controller, num_layers = CONTROLLERS[controller]()
    kwargs = {"memory_size": 11, "word_size": 5, "dtype": torch.float64, **kwargs}
    return NTM(3, 2, 7, controller=controller, num_layers=num_layers, **kwargs)


def inputs(time=TIME, batch=2, dtype=torch.float64):
    return torch.randn(time, batch, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))


def weights(model):
    """A weight of each layer of the controller and one of the interface, as module and name."""
    controller = model.cell.controller
    of_controller = {
        "LSTMController": lambda: [(layer, "recurrent_weight") for layer in controller.layers],
        "FeedforwardController": lambda: [
            (layer, "weight" if isinstance(layer, nn.Linear) else "recurrent_weight")
            for layer in controller.layers
        ],
        "CellController": lambda: [(controller.cell, "weight_hh")],
        "Feedforward": lambda: [(controller.linear, "weight")],
    }[type(controller).__name__]()
    return [*of_controller, (model.cell.interface, "weight")]


def parts(model):
    """What the fused path would skip."""
    found = [model.cell.controller, model.cell.interface]
    return [*found, *getattr(model.cell.controller, "layers", [])]


def train(model, updates=2):
    """Outputs and gradients of a few updates."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    results = []
    for _ in range(updates):
        optimiser.zero_grad()
        output, state = model(inputs())
        (output.square().mean() + state.memory.square().mean()).backward()
        results += [output.detach(), *(p.grad.clone() for p in model.parameters())]
        optimiser.step()
    return results


def assert_same(results, expected):
    for one, other in zip(results, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.fixture
def sequences(monkeypatch):
    """The calls of the fused op so far."""
    calls = []
    original = functional.sequence

    def counted(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(functional, "sequence", counted)
    return calls


# Weight transforms


def spectral(transform):
    """Iterated until it has converged, so that the number of calls does not matter. That is quick
    for a weight with one direction larger than all others."""

    def apply(module, name):
        with torch.no_grad():
            getattr(module, name)[0] += 10
        transform(module, name, n_power_iterations=10)

    return apply


def prune_twice(module, name):
    prune.l1_unstructured(module, name, 0.3)
    prune.random_unstructured(module, name, 0.3)


TRANSFORMS = {
    "pruned": lambda module, name: prune.l1_unstructured(module, name, 0.5),
    "pruned twice": prune_twice,
    "weight_norm, hook": weight_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm, hook": spectral(spectral_norm),
    "spectral_norm": spectral(parametrizations.spectral_norm),
}


def transformed(transform, controller, **kwargs):
    model = make(controller, **kwargs)
    for module, name in weights(model):
        TRANSFORMS[transform](module, name)
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_weight_transforms(transform, controller, sequences):
    results = train(transformed(transform, controller))
    assert len(sequences) == (2 if controller in FUSED else 0)
    assert_same(results, train(transformed(transform, controller, fused=False)))


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_pruned_state_dict_gives_the_pruned_outputs(controller):
    def pruned(seed):
        model = make(controller)
        torch.manual_seed(seed)
        for module, name in weights(model):
            prune.random_unstructured(module, name, 0.5)
        return model

    model, twin = pruned(1), pruned(2)
    train(model)
    twin.load_state_dict(model.state_dict())
    expected = model(inputs())[0]
    torch.testing.assert_close(twin(inputs())[0], expected, rtol=0, atol=0)
    with torch.no_grad():
        twin.cell.interface.weight_orig.zero_()
    assert not torch.allclose(twin(inputs())[0], expected)


class Doubled(nn.Module):
    """A parametrization that counts how often it is computed."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, weight):
        self.calls += 1
        return 2 * weight


@pytest.mark.parametrize("controller", FUSED)
def test_a_parametrization_is_computed_once_per_forward(controller):
    model = make(controller)
    layered = [*model.cell.controller.layers, model.cell.interface]
    names = [(layer, name) for layer in layered for name, _ in layer.named_parameters()]
    doubled = [Doubled() for _ in names]
    for (module, name), one in zip(names, doubled, strict=True):
        parametrize.register_parametrization(module, name, one)
    before = [one.calls for one in doubled]
    model(inputs(), lengths=[3, 2])
    assert all(one.calls == first + 1 for one, first in zip(doubled, before, strict=True))


# Hooks


HOOKS = {
    "forward": lambda module, hook: module.register_forward_hook(hook),
    "forward, kwargs": lambda module, hook: module.register_forward_hook(hook, with_kwargs=True),
    "pre": lambda module, hook: module.register_forward_pre_hook(hook),
    "pre, kwargs": lambda module, hook: module.register_forward_pre_hook(hook, with_kwargs=True),
    "backward": lambda module, hook: module.register_full_backward_hook(hook),
    "backward, not full": lambda module, hook: module.register_backward_hook(hook),
    "backward pre": lambda module, hook: module.register_full_backward_pre_hook(hook),
}
WITH_EVERY_CONTROLLER = ("forward", "pre", "backward", "backward pre")


@pytest.mark.filterwarnings("ignore:.*non-full backward hook:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "controller"),
    [
        (kind, controller)
        for kind in HOOKS
        for controller in CONTROLLERS
        if kind in WITH_EVERY_CONTROLLER or controller == "lstm"
    ],
)
def test_a_hook_on_a_part_fires_once_a_step(kind, controller, sequences):
    model = make(controller)
    expected = train(copy.deepcopy(model), updates=1)
    for part in parts(model):
        sequences.clear()
        fired = []
        handle = HOOKS[kind](part, lambda *_, fired=fired: fired.append(None))
        results = train(copy.deepcopy(model), updates=1)
        handle.remove()
        assert (len(fired), len(sequences)) == (TIME, 0)
        assert_same(results, expected)
    model(inputs())
    assert len(sequences) == (1 if controller in FUSED else 0)


def half(module, args, output):
    return 0.5 * output


@pytest.mark.parametrize("controller", FUSED)
def test_what_a_hook_returns_is_used(controller):
    model, twin = make(controller), make(controller)
    twin.cell.interface.register_forward_hook(half)
    with torch.no_grad():
        model.cell.interface.weight *= 0.5
        model.cell.interface.bias *= 0.5
    torch.testing.assert_close(twin(inputs())[0], model(inputs())[0])


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize(
    "register",
    [
        torch_module.register_module_forward_hook,
        torch_module.register_module_forward_pre_hook,
        torch_module.register_module_full_backward_hook,
        torch_module.register_module_full_backward_pre_hook,
    ],
)
def test_hooks_on_all_modules_fire_once_a_step(register, sequences):
    model = make()
    fired = []
    handle = register(lambda module, *_: fired.append(module))
    try:
        train(model, updates=1)
    finally:
        handle.remove()
    assert not sequences
    assert fired.count(model.cell.interface) == fired.count(model.cell.controller) == TIME
    assert fired.count(model.cell) == 1


CALLS = {
    "plain": lambda model: model(inputs()),
    "lengths": lambda model: model(inputs(), lengths=[3, 1]),
    "trace": lambda model: model(inputs(), return_trace=True),
    "unbatched": lambda model: model(inputs()[:, 0]),
    "packed": lambda model: model(pack_sequence([inputs()[:, 0], inputs()[:2, 1]])),
    "unroll": lambda model: model.cell.unroll(inputs()),
    "one step": lambda model: model.cell(inputs()[0]),
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("call", CALLS)
def test_hooks_on_the_cell_fire_once_per_forward(call, sequences):
    model = make()
    fired = []
    for kind in ("forward", "pre", "backward", "backward pre"):
        HOOKS[kind](model.cell, lambda *_, kind=kind: fired.append(kind))
    output = CALLS[call](model)[0]
    (output.data if call == "packed" else output).sum().backward()
    assert sorted(fired) == ["backward", "backward pre", "forward", "pre"]
    assert len(sequences) == 1


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_controller_made_outside_is_fused_as_one_made_inside(num_layers, sequences):
    controller = LSTMController(3, 5, 7, num_layers, dtype=torch.float64)
    NTM(3, 2, 7, 11, 5, controller=controller, dtype=torch.float64)(inputs())
    assert len(sequences) == 1


def test_fused_can_be_switched(sequences):
    model = make()
    expected = model(inputs())[0]
    assert model.fused
    model.fused = False
    torch.testing.assert_close(model(inputs())[0], expected)
    assert len(sequences) == 1
    assert not model.cell.fused
    assert "fused=False" in repr(model)


def test_one_step_takes_no_lengths():
    with pytest.raises(ValueError, match="give sequence=True and x as"):
        make().cell(inputs()[0], lengths=torch.ones(2, dtype=torch.int64))


# Replaced parts


class Adapted(nn.Module):
    """A linear layer with a low-rank correction."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False, dtype=torch.float64)
        self.up = nn.Linear(2, base.out_features, bias=False, dtype=torch.float64)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Packed(torch.Tensor):
    """A weight in a format of its own, with one operator."""

    @staticmethod
    def __new__(cls, plain):
        return torch.Tensor._make_wrapper_subclass(cls, plain.shape, dtype=plain.dtype)

    def __init__(self, plain):
        self.plain = plain

    def __tensor_flatten__(self):
        return ["plain"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Packed(inner["plain"])

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            return function(args[0], 2 * args[1].plain, args[2])
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return Packed(args[0].plain)
        raise NotImplementedError(function)


def adapt(cell):
    cell.interface = Adapted(cell.interface)


def double(cell):
    cell.interface.__class__ = Doubling


def double_instance(cell):
    original = cell.interface.forward
    cell.interface.forward = lambda x: 2 * original(x)


def pack(cell):
    cell.interface.weight = nn.Parameter(Packed(cell.interface.weight.detach()), False)


def unbias(cell):
    cell.interface = nn.Linear(7, cell.layout.size, bias=False, dtype=torch.float64)


@pytest.mark.parametrize("replace", [adapt, double, double_instance, pack, unbias])
def test_a_replaced_part_is_called(replace, sequences):
    models = make(), make(fused=False)
    plain, _ = models[0](inputs())
    sequences.clear()
    outputs = []
    for model in models:
        torch.manual_seed(2)
        replace(model.cell)
        output, _ = model(inputs(), lengths=[3, 0])
        model.cell(inputs()[0], model.initial_state(2))
        output.sum().backward()
        outputs.append(output)
    torch.testing.assert_close(*outputs)
    assert not torch.allclose(outputs[0][:, 0], plain[:, 0])
    assert not sequences


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "output_from"),
    [(torch.qint8, 0.05, "read_vectors"), (torch.float16, 2e-3, "features")],
)
def test_quantized_linear_layers(dtype, tolerance, output_from, controller):
    engine = torch.backends.quantized.engine
    if engine == "none":
        pytest.skip("torch has no engine for quantized layers here")
    if dtype == torch.float16 and engine not in ("fbgemm", "x86"):
        pytest.skip(f"torch's engine {engine} has no linear layer in float16")
    model = make(controller, output_from=output_from).float()
    kinds = {nn.Linear, nn.LSTMCell}
    small = torch.ao.quantization.quantize_dynamic(model, kinds, dtype=dtype)
    assert type(small.cell.interface) is not nn.Linear
    x = inputs(dtype=torch.float32)
    with torch.no_grad():
        for kwargs in ({}, {"lengths": [3, 1]}, {"state": small.initial_state(2)}):
            output, expected = small(x, **kwargs)[0], model(x, **kwargs)[0]
            assert (output - expected).abs().max() < tolerance * expected.abs().max()
            assert not torch.equal(output, expected)
    before = {name: part.clone() for name, part in small.named_parameters()}
    with pytest.raises(TypeError, match=r"^NTM\.reset_parameters: output must be .*quantized"):
        small.reset_parameters()
    with pytest.raises(TypeError, match=r"^NTMCell\.reset_parameters: interface .*quantized"):
        small.cell.reset_parameters()
    assert all(torch.equal(part, before[name]) for name, part in small.named_parameters())


# FSDP2: in one process, whose parameters it shards, gathers and frees as in many.


@pytest.fixture(scope="module")
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


SHARDED = {
    "root": lambda model: [model],
    "cell": lambda model: [model.cell],
    "interface": lambda model: [model.cell.interface],
    "controller": lambda model: [model.cell.controller],
    "parts, cell and root": lambda model: [
        model.cell.interface,
        model.cell.controller,
        model.cell,
        model,
    ],
    "starts and root": lambda model: [
        model.cell.start,
        *(part for name, part in model.cell.controller.named_children() if name == "start"),
        model,
    ],
}


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor:UserWarning")
@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("which", SHARDED)
def test_fully_shard(which, controller, one_process):
    from torch.distributed.fsdp import fully_shard

    model, whole = make(controller), make(controller)
    for part in SHARDED[which](model):
        fully_shard(part)
    results = train(model)
    results = [part.full_tensor() if hasattr(part, "full_tensor") else part for part in results]
    assert_same(results, train(whole))
    for kwargs in ({"x": inputs(), "lengths": [0, 2]}, {"x": inputs(time=0)}):
        for part, expected in zip(model(**kwargs), whole(**kwargs), strict=True):
            torch.testing.assert_close(part, expected)
