"""``ntm_kernels.reference`` against an independent NumPy transcription of the equations."""

import numpy as np
import pytest
import torch

from ntm_kernels import InterfaceLayout, reference
from tests.support import equations
from tests.support.cases import Case, arguments, call, invoke, of_sequence

SIZES = [
    {"batch": 2, "memory_size": 7, "word_size": 5, "num_read_heads": 2},
    {"batch": 1, "memory_size": 1, "word_size": 1, "num_read_heads": 1},
    {"batch": 3, "memory_size": 4, "word_size": 3, "num_read_heads": 3, "shift_range": 3},
    {"batch": 2, "memory_size": 5, "word_size": 2, "num_read_heads": 1, "shift_range": 0},
]
each_size = pytest.mark.parametrize("sizes", SIZES, ids=lambda s: "-".join(map(str, s.values())))


def close(actual, wanted):
    np.testing.assert_allclose(np.asarray(actual), wanted, rtol=1e-12, atol=1e-13)


def heads_of(tensors, *names):
    """Batch index, head index and NumPy slices of the named ``[B, H, ...]`` arguments."""
    batch, heads = tensors[names[0]].shape[:2]
    for b in range(batch):
        for h in range(heads):
            yield b, h, *(tensors[name][b, h].numpy() for name in names)


@each_size
def test_content(sizes):
    tensors = arguments(Case("address", **sizes))
    actual = reference.content(tensors["memory"], tensors["key"], tensors["strength"])
    for b, h, key, strength in heads_of(tensors, "key", "strength"):
        close(actual[b, h], equations.content(tensors["memory"][b].numpy(), key, strength))


@each_size
def test_interpolate(sizes):
    tensors = arguments(Case("address", **sizes))
    focus = torch.rand(tensors["previous_weightings"].shape, dtype=torch.float64).softmax(-1)
    actual = reference.interpolate(focus, tensors["previous_weightings"], tensors["gate"])
    for b, h, previous, gate in heads_of(tensors, "previous_weightings", "gate"):
        close(actual[b, h], equations.interpolate(focus[b, h].numpy(), previous, gate))


@each_size
def test_shift(sizes):
    tensors = arguments(Case("address", **sizes))
    actual = reference.shift(tensors["previous_weightings"], tensors["shift"])
    for b, h, weighting, taps in heads_of(tensors, "previous_weightings", "shift"):
        close(actual[b, h], equations.shift(weighting, taps))


@each_size
def test_sharpen(sizes):
    tensors = arguments(Case("address", **sizes))
    actual = reference.sharpen(tensors["previous_weightings"], tensors["sharpening"])
    for b, h, weighting, sharpening in heads_of(tensors, "previous_weightings", "sharpening"):
        close(actual[b, h], equations.sharpen(weighting, sharpening))


@each_size
def test_address(sizes):
    tensors = arguments(Case("address", **sizes))
    actual = reference.address(*tensors.values())
    names = list(tensors)[1:]
    for b, h, *parameters in heads_of(tensors, *names):
        close(actual[b, h], equations.address(tensors["memory"][b].numpy(), *parameters))


@each_size
def test_read(sizes):
    tensors = arguments(Case("read", **sizes))
    actual = reference.read(**tensors)
    for b, h, weighting in heads_of(tensors, "weightings"):
        close(actual[b, h], equations.read(tensors["memory"][b].numpy(), weighting))


@each_size
def test_write(sizes):
    tensors = arguments(Case("write", **sizes))
    actual = reference.write(**tensors)
    for b in range(sizes["batch"]):
        close(actual[b], equations.write(*(tensor[b].numpy() for tensor in tensors.values())))


def test_activate():
    layout = InterfaceLayout(word_size=3, num_read_heads=2, num_write_heads=1, shift_range=2)
    raw = 4 * torch.randn(layout.size, dtype=torch.float64)
    raw[9:12] = torch.tensor([1e4, -1e4, 0.0], dtype=torch.float64)
    actual = reference.activate(raw, layout)
    wanted = equations.heads(raw.numpy(), 3, 2, 1, 2)
    for name, part in actual._asdict().items():
        close(part, getattr(wanted, name))


@pytest.mark.parametrize("num_write_heads", [1, 2])
@each_size
def test_step(sizes, num_write_heads):
    case = Case("step", **sizes, num_write_heads=num_write_heads)
    tensors = arguments(case)
    actual = reference.step(**tensors, **case.options)
    for b in range(case.batch):
        wanted = equations.step(
            *(tensor[b].numpy() for tensor in tensors.values()), *case.options.values()
        )
        for part, one in zip(actual, wanted[:3], strict=True):
            close(part[b], one)


@pytest.mark.parametrize("lengths", [None, (0, 3, 5)])
@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
@pytest.mark.parametrize(("heads", "layers"), [((1, 1), 1), ((2, 3), 1), ((1, 1), 3)])
def test_sequence(controller, heads, layers, lengths):
    case = Case("sequence", 3, 4, 3, *heads, time=5, hidden_size=4, controller=controller)
    case = case.with_(num_layers=layers)
    tensors = arguments(case)
    given = None if lengths is None else torch.tensor(lengths)
    result = reference.sequence(
        **of_sequence(tensors), **case.options, lengths=given, return_trace=True
    )
    shared = {"recurrent_weight", "interface_weight", "interface_bias"}
    shared |= {"upper_weight", "upper_bias"}
    second = ("x", "initial_hidden", "initial_cell")
    for b in range(case.batch):
        length = case.time if lengths is None else lengths[b]
        single = dict(tensors)
        for name, tensor in tensors.items():
            if name not in shared:
                single[name] = tensor.select(int(name in second), b)
        single = {name.removeprefix("initial_"): part.numpy() for name, part in single.items()}
        single["reads"] = single.pop("read_vectors")
        hidden, reads, state, trace = equations.sequence(**single, **case.options, length=length)
        close(result.hidden[:, b], hidden)
        close(result.read_vectors[:, b], reads)
        for name, part in result.state._asdict().items():
            if part is not None:
                close(part.select(int(name in ("hidden", "cell")), b), state[name])
        for t, (weightings, parameters) in enumerate(trace):
            close(result.trace.weightings[t, b], weightings)
            for name, value in vars(parameters).items():
                close(getattr(result.trace, name)[t, b], value)
        assert all(not part[length:, b].any() for part in result.trace)


def test_sequence_of_no_steps_returns_its_state():
    case = Case("sequence", time=0)
    tensors = arguments(case)
    result = reference.sequence(**of_sequence(tensors), **case.options, return_trace=False)
    assert result.hidden.shape == (0, case.batch, case.hidden_size)
    assert result.read_vectors.shape == (0, case.batch, case.num_read_heads, case.word_size)
    for name, part in result.state._asdict().items():
        assert torch.equal(part, tensors[f"initial_{name}"])


@pytest.mark.parametrize(
    "missing", ["initial_hidden", "initial_cell", "input_weight", "input_bias"]
)
def test_what_goes_together_is_given_together(missing):
    case = Case("sequence", input_size=3)
    with pytest.raises(ValueError, match="sequence: give both"):
        call(case, arguments(case) | {missing: None})


def test_step_by_step_is_the_sequence():
    """``sequence`` over T steps, and T times ``sequence`` over one step, state carried over."""
    case = Case("sequence", num_read_heads=2, time=6)
    tensors = arguments(case)
    whole = reference.sequence(**of_sequence(tensors), **case.options)
    for time, projected in enumerate(tensors["x"]):
        one = reference.sequence(**of_sequence(tensors | {"x": projected[None]}), **case.options)
        tensors |= {f"initial_{name}": part for name, part in one.state._asdict().items()}
        close(one.hidden[0], whole.hidden[time])
    for name, part in whole.state._asdict().items():
        close(part, tensors[f"initial_{name}"])


def test_lstm_is_that_of_torch():
    """With recurrent weights of 0 for the read vectors, the controller is ``torch.nn.LSTM``."""
    case = Case("sequence", time=5, hidden_size=4)
    tensors = arguments(case)
    reads = case.num_read_heads * case.word_size
    tensors["recurrent_weight"][:, :reads] = 0
    lstm = torch.nn.LSTM(3, case.hidden_size, dtype=torch.float64)
    inputs = torch.randn(case.time, case.batch, 3, dtype=torch.float64)
    with torch.no_grad():
        lstm.weight_hh_l0.copy_(tensors["recurrent_weight"][:, reads:])
        bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
        tensors["x"] = inputs @ lstm.weight_ih_l0.mT + bias
        output, (hidden, cell) = lstm(inputs, (tensors["initial_hidden"], tensors["initial_cell"]))
    result = reference.sequence(**of_sequence(tensors), **case.options)
    close(result.hidden, output.numpy())
    close(result.state.hidden, hidden.numpy())
    close(result.state.cell, cell.numpy())


@pytest.mark.parametrize("op", ["address", "read", "write", "step", "sequence"])
def test_autograd_of_the_equations_is_their_slope(op):
    """Plain autograd against finite differences, in float64."""
    case = Case(op, 2, 3, 2, 2, 2, time=3, hidden_size=2)
    named = arguments(case)
    tensors = tuple(tensor.requires_grad_() for tensor in named.values())

    def function(*tensors):
        named_tensors = dict(zip(named, tensors, strict=True))
        result = invoke(reference, op, named_tensors, **case.options)
        return (result.hidden, result.read_vectors, *result.state) if op == "sequence" else result

    assert torch.autograd.gradcheck(function, tensors)
