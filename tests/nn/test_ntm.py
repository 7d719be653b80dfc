"""NTM: what nn.LSTM does, and what it adds."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from ntm_kernels import (
    NTM,
    InitialState,
    functional,
    use_backend,
)
from ntm_kernels.checks import INTEGERS
from tests.support.cases import Whole
from tests.support.models import SIZES, inputs, make

CONTROLLERS = [("lstm", 1), ("feedforward", 1), ("lstm", 2), ("feedforward", 2)]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("output_from", ["features", "read_vectors"])
def test_output_is_linear_in_what_it_sees(output_from):
    model = make(output_from=output_from)
    output, _ = model(inputs())
    hidden, reads, _, _ = model.cell.unroll(inputs())
    seen = reads.flatten(2)
    if output_from == "features":
        seen = torch.cat([hidden, seen], -1)
    torch.testing.assert_close(output, seen @ model.output.weight.T + model.output.bias)


def test_without_output_size_gives_features():
    model = make(output_size=None)
    output, _ = model(inputs())
    assert output.shape == (6, 4, 7 + 2 * 5)
    assert "output.weight" not in model.state_dict()


@pytest.mark.parametrize(("controller", "num_layers"), CONTROLLERS)
def test_batch_first_and_unbatched(controller, num_layers):
    model = make(controller=controller, num_layers=num_layers)
    expected, state = model(inputs())
    model.batch_first = True
    output, _ = model(inputs().transpose(0, 1))
    torch.testing.assert_close(output, expected.transpose(0, 1))
    alone, alone_state = model(inputs()[:, 1])
    torch.testing.assert_close(alone, expected[:, 1])
    assert alone_state.memory.shape == (11, 5)
    again, _ = model(inputs()[:, 1], alone_state)
    model.batch_first = False
    torch.testing.assert_close(again, model(inputs(), state)[0][:, 1])


@pytest.mark.parametrize(("controller", "num_layers"), CONTROLLERS)
def test_lengths_give_what_each_sequence_gives_alone(controller, num_layers):
    model = make(controller=controller, num_layers=num_layers)
    lengths = [6, 1, 4, 0]
    x = inputs()
    for index, length in enumerate(lengths):
        x[length:, index] = float("nan")
    output, state, trace = model(x, lengths=lengths, return_trace=True)
    together = gradients(model, output.square().sum() + state.memory.sin().sum())
    separate = None
    for index, length in enumerate(lengths):
        alone, alone_state, alone_trace = model(x[:length, index], return_trace=True)
        torch.testing.assert_close(output[:length, index], alone)
        assert not output[length:, index].any()
        torch.testing.assert_close(state.memory[index], alone_state.memory)
        torch.testing.assert_close(state.weightings[index], alone_state.weightings)
        for part, alone_part in zip(trace, alone_trace, strict=True):
            torch.testing.assert_close(part[:length, index], alone_part)
            assert not part[length:, index].any()
        loss = alone.square().sum() + alone_state.memory.sin().sum()
        model.zero_grad()
        if loss.requires_grad:
            loss.backward()
        grads = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()
        ]
        separate = (
            grads if separate is None else [a + b for a, b in zip(separate, grads, strict=True)]
        )
    for one, other in zip(together, separate, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_sequence(enforce_sorted):
    model = make()
    lengths = [6, 5, 2, 1] if enforce_sorted else [2, 6, 1, 5]
    packed = pack_padded_sequence(inputs(), torch.tensor(lengths), enforce_sorted=enforce_sorted)
    output, state = model(packed)
    assert isinstance(output, PackedSequence)
    expected, expected_state = model(inputs(), lengths=torch.tensor(lengths))
    wanted = pack_padded_sequence(expected, torch.tensor(lengths), enforce_sorted=enforce_sorted)
    torch.testing.assert_close(output.data, wanted.data)
    torch.testing.assert_close(state.memory, expected_state.memory)
    lstm_output, _ = nn.LSTM(3, 2, dtype=torch.float64)(packed)
    for mine, theirs in zip(output[1:], lstm_output[1:], strict=True):
        assert (mine is None and theirs is None) or torch.equal(mine, theirs)


def test_state_carries_over():
    model = make()
    whole, final = model(inputs())
    first, state = model(inputs()[:2])
    second, last = model(inputs()[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(last.memory, final.memory)


def test_truncated_backpropagation():
    model = make()
    state = None
    for chunk in inputs().split(2):
        output, state = model(chunk, state)
        output.sum().backward()
        state = state.detach()
    assert not state.memory.requires_grad


def test_no_steps_give_the_initial_state():
    for layers in (1, 2):
        model = make(num_layers=layers)
        output, state, trace = model(inputs()[:0], return_trace=True)
        assert output.shape == (0, 4, 2)
        assert trace.weightings.shape == (0, 4, 3, 11)
        assert trace.erase.shape == (0, 4, 1, 5)
        torch.testing.assert_close(state.memory, model.initial_state(4).memory)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_trace_tells_what_the_heads_did(num_layers):
    model = make(num_layers=num_layers)
    _, state, trace = model(inputs(), return_trace=True)
    torch.testing.assert_close(trace.weightings[-1], state.weightings)
    assert trace.key.shape == (6, 4, 3, 5)
    assert not trace.weightings.requires_grad
    memory = model.initial_state(4).memory
    for weightings, erase, add in zip(
        trace.weightings[:, :, 2], trace.erase, trace.add, strict=True
    ):
        memory = memory * (1 - weightings[..., None] * erase) + weightings[..., None] * add
    torch.testing.assert_close(memory, state.memory)


def test_state_dict_does_not_depend_on_the_backend():
    plain, chosen = make(), make(backend="torch")
    assert plain.state_dict().keys() == chosen.state_dict().keys()
    chosen.load_state_dict(plain.state_dict())
    with use_backend("torch"):
        expected, _ = plain(inputs())
    torch.testing.assert_close(chosen(inputs())[0], expected, rtol=0, atol=0)


def test_copies_and_pickles():
    model = make()
    expected, _ = model(inputs())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(inputs())[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_half_precision(dtype, num_layers):
    model = make(torch.float32, num_layers=num_layers).to(dtype)
    expected, _ = copy.deepcopy(model).double()(inputs(dtype=dtype).double())
    output, state = model(inputs(dtype=dtype))
    assert output.dtype == dtype
    assert state.memory.dtype == state.weightings.dtype == torch.float32
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    output.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("controller", "num_layers"), CONTROLLERS)
def test_autocast(controller, num_layers):
    model = make(torch.float32, controller=controller, num_layers=num_layers)
    x = inputs(dtype=torch.float32)
    expected, _ = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        output, state = model(x, lengths=[6, 3, 2, 1])
    assert state.memory.dtype == torch.float32
    assert state.read_vectors.dtype == torch.float32
    torch.testing.assert_close(output[0].float(), expected[0], rtol=0.1, atol=0.05)
    output.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("controller", "num_layers", "backend"),
    [("lstm", 1, None), ("lstm", 2, "torch"), ("feedforward", 2, None)],
)
def test_compiles_to_one_graph(controller, num_layers, backend):
    torch.compiler.reset()
    model = make(controller=controller, num_layers=num_layers, backend=backend)
    x = inputs(time=3)
    expected = gradients(model, model(x)[0].square().sum())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output, _ = compiled(x)
    torch.testing.assert_close(output, model(x)[0])
    for one, other in zip(gradients(model, output.square().sum()), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize(
    ("controller", "num_layers", "with_grad", "backend"),
    [
        ("lstm", 1, True, None),
        ("feedforward", 1, False, "torch"),
        ("lstm", 2, True, "torch"),
        ("lstm", 3, False, None),
        ("feedforward", 2, False, None),
    ],
)
def test_traced_by_torch_jit(controller, num_layers, with_grad, backend):
    """Traced and checked, it gives outputs and gradients for other values, another batch and
    another time."""
    model = make(controller=controller, num_layers=num_layers, backend=backend)
    with torch.set_grad_enabled(with_grad):
        traced = torch.jit.trace(model, inputs(time=2))
    x = inputs(time=3, batch=3) + 1
    torch.testing.assert_close(traced(x)[0], model(x)[0], rtol=0, atol=0)
    found, expected = (gradients(one, one(x)[0].square().sum()) for one in (traced, model))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("num_layers", [1, 2])
def test_traced_with_state_and_lengths(num_layers):
    model = make(num_layers=num_layers)
    x, lengths = inputs(time=3), torch.tensor([3, 0, 2, 1])
    traced = torch.jit.trace(model, (x, model.initial_state(4).detach(), lengths))
    state = model(x)[1].detach()
    found, expected = (one(x, state, 3 - lengths) for one in (traced, model))
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1][:3], tuple(expected[1][:3]))


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("lengths", [None, [], torch.zeros(0, dtype=torch.int64)])
def test_empty_batch(num_layers, lengths):
    output, state = make(num_layers=num_layers)(inputs(batch=0), lengths=lengths)
    assert output.shape == (6, 0, 2)
    assert state.memory.shape == (0, 11, 5)


@pytest.mark.parametrize(
    "initial",
    [
        InitialState(),
        InitialState(memory="learned", weightings="learned"),
        InitialState(memory=torch.ones(11, 5), read_vectors=0.0, controller=0.0),
    ],
)
@pytest.mark.parametrize(
    ("controller", "num_layers"),
    [*CONTROLLERS, (nn.LSTMCell(13, 7), 1), (nn.GRUCell(13, 7), 1)],
)
def test_reset_draws_every_parameter_anew(controller, num_layers, initial):
    """Those that start at 0 are 0 again; the rest are neither what they were nor what they are."""
    model = make(controller=controller, num_layers=num_layers, initial_state=initial)
    for module in (model, model.cell):
        before = {name: part.detach().clone() for name, part in module.named_parameters()}
        with torch.no_grad():
            for part in module.parameters():
                part.fill_(torch.nan)
        module.reset_parameters()
        for name, part in module.named_parameters():
            assert part.isfinite().all(), name
            assert torch.equal(part == before[name], before[name] == 0), name


def replace_linear_layers(model, **kwargs):
    for owner, name in ((model.cell, "interface"), (model, "output")):
        layer = getattr(owner, name)
        setattr(owner, name, nn.Linear(layer.in_features, layer.out_features, **kwargs))


def test_reset_of_linear_layers_without_bias():
    model = make(torch.float32)
    replace_linear_layers(model, bias=False)
    weights = [model.cell.interface.weight, model.output.weight]
    before = [weight.detach().clone() for weight in weights]
    model.reset_parameters()
    assert all((one != other).all() for one, other in zip(weights, before, strict=True))


@pytest.mark.parametrize("name", ["interface", "output"])
@pytest.mark.parametrize("kind", [nn.Identity, nn.Sequential])
def test_reset_of_a_layer_without_a_weight_says_so_and_draws_nothing(name, kind):
    model = make(torch.float32)
    owner = model if name == "output" else model.cell
    setattr(owner, name, kind())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    message = (
        rf"^{type(owner).__name__}\.reset_parameters: {name} must be a linear layer .* "
        rf"got torch\.nn\.modules\.\w+\.{kind.__name__}, .* give {name} an nn\.Linear first"
    )
    with pytest.raises(TypeError, match=message):
        owner.reset_parameters()
    for one, other in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_learned_start_trains():
    model = make(initial_state=InitialState(memory="learned", weightings="learned"))
    output, _ = model(inputs())
    output.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.cell.start.memory.grad.abs().sum() > 0


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_lengths_of_any_integer_dtype(dtype, num_layers):
    model = make(num_layers=num_layers)
    expected, state = model(inputs(), lengths=[6, 1, 4, 0])
    lengths = torch.tensor([6, 1, 4, 0], dtype=dtype)
    output, own = model(inputs(), lengths=lengths)
    torch.testing.assert_close((output, own), (expected, state), rtol=0, atol=0)
    hidden = model.cell.unroll(inputs(), lengths=lengths).hidden
    assert not hidden[4:, 2].any()
    with pytest.raises(ValueError, match="NTM: lengths must lie in 0 … 6, got 9"):
        model(inputs(), lengths=torch.tensor([6, 1, 9, 0], dtype=dtype))


def test_any_integer_is_a_size_or_a_length():
    sizes = {"hidden_size": 7, "memory_size": 11, "word_size": 5, "num_read_heads": 2}
    counts = {"num_write_heads": 1, "shift_range": 1, "num_layers": 1, "checkpoint_every": 2}
    integers = {name: Whole(value) for name, value in (sizes | counts).items()}
    model = NTM(Whole(3), Whole(2), **integers, dtype=torch.float64)
    model.load_state_dict(make(checkpoint_every=2).state_dict())
    output, _ = model(inputs(), lengths=[Whole(6), Whole(1), 4, 0])
    expected, _ = make()(inputs(), lengths=[6, 1, 4, 0])
    torch.testing.assert_close(output, expected)
    assert {type(getattr(model.cell, name)) for name in sizes} == {int}
    assert repr(model) == repr(make(checkpoint_every=2))


def test_numpy_integers():
    numpy = pytest.importorskip("numpy")
    model = NTM(3, 2, **{name: numpy.int64(size) for name, size in SIZES.items()})
    x = inputs(dtype=torch.float32)
    expected, _ = model(x, lengths=[6, 1, 4, 0])
    for lengths in ([numpy.int32(6), 1, 4, 0], numpy.array([6, 1, 4, 0], dtype=numpy.uint16)):
        assert torch.equal(model(x, lengths=lengths)[0], expected)
    with pytest.raises(TypeError, match="memory_size must be an int, got bool"):
        make(memory_size=numpy.bool_(True))
    with pytest.raises(TypeError, match="lengths must be a tensor or a list of integers"):
        model(x, lengths=numpy.ones(4, dtype=bool))


@pytest.mark.parametrize("part", ["model", "cell"])
def test_backend_and_checkpoint_every_can_be_set(part):
    model = make()
    owner = model if part == "model" else model.cell
    owner.backend, owner.checkpoint_every = "torch", np.int64(4)
    made = make(backend="torch", checkpoint_every=4)
    assert (model.backend, model.checkpoint_every) == ("torch", 4)
    assert (model.cell.backend, model.cell.checkpoint_every) == ("torch", 4)
    assert repr(model) == repr(made)
    torch.testing.assert_close(model(inputs())[0], made(inputs())[0], rtol=0, atol=0)
    owner.backend = owner.checkpoint_every = None
    assert (model.backend, model.cell.checkpoint_every) == (None, None)


@pytest.mark.parametrize("part", ["model", "cell"])
def test_a_backend_that_is_set_serves_the_next_call(part, monkeypatch):
    model = make()
    owner = model if part == "model" else model.cell
    options = []

    def sequence(*args, **given):
        options.append((given["backend"], given["checkpoint_every"]))
        return functional.sequence(*args, **given)

    monkeypatch.setattr("ntm_kernels.nn.traceable.sequence", sequence)
    model(inputs())
    owner.backend, owner.checkpoint_every = "torch", 4
    model(inputs())
    assert options == [(None, None), ("torch", 4)]


@pytest.mark.parametrize("output_size", [2, None])
def test_sizes_are_attributes(output_size):
    model = make(output_size=output_size, num_layers=2)
    sizes = {"input_size": 3, "output_size": output_size, "hidden_size": 7, "num_layers": 2}
    for owner in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert {name: getattr(owner, name) for name in sizes} == sizes
    assert (model.cell.num_layers, make(controller=nn.GRUCell(13, 7).double()).num_layers) == (2, 1)


def test_a_subclass_may_call_something_of_its_own_as_a_size_is_called():
    class Model(NTM):
        def __init__(self, hidden_size):
            super().__init__(3, 2, hidden_size, memory_size=8, word_size=4)
            self.hidden_size = hidden_size

    output, _ = Model(5)(torch.zeros(4, 1, 3))
    assert output.shape == (4, 1, 2)


@pytest.mark.parametrize("output_size", [2, None])
@pytest.mark.parametrize(("controller", "num_layers"), CONTROLLERS)
def test_reset_parameters_draws_what_construction_draws(controller, num_layers, output_size):
    model = make(
        output_size=output_size,
        controller=controller,
        num_layers=num_layers,
        initial_state=InitialState("learned", "learned", "learned", "learned"),
    )
    after = torch.rand(3)
    made = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    torch.manual_seed(0)
    model.reset_parameters()
    torch.testing.assert_close(model.state_dict(), made, rtol=0, atol=0)
    torch.testing.assert_close(torch.rand(3), after, rtol=0, atol=0)
