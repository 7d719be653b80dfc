"""NTMCell: shapes, controllers, initial state, and equality of its two paths."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from ntm_kernels import BackendError, InitialState, NTMCell, NTMState, functional

SIZES = {"memory_size": 11, "word_size": 5, "num_read_heads": 2, "num_write_heads": 3}


def make(controller="lstm", **kwargs):
    torch.manual_seed(0)
    return NTMCell(3, 7, **{**SIZES, **kwargs}, controller=controller, dtype=torch.float64)


def inputs(time=6, batch=4):
    return torch.randn(
        time, batch, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_shapes(controller, num_layers):
    cell = make(controller, num_layers=num_layers)
    features, state = cell(inputs()[0])
    assert features.shape == (4, 7 + 2 * 5)
    assert state.memory.shape == (4, 11, 5)
    assert state.weightings.shape == (4, 5, 11)
    assert state.read_vectors.shape == (4, 2, 5)
    torch.testing.assert_close(state.weightings.sum(-1), torch.ones(4, 5, dtype=torch.float64))
    again, _ = cell(inputs()[1], state)
    assert again.shape == features.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("time", [0, 2])
@pytest.mark.parametrize(
    ("controller", "num_layers", "fused"),
    [
        (kind, *way)
        for kind in ("lstm", "feedforward")
        for way in ((1, True), (1, False), (2, True), (2, False))
    ],
)
def test_hidden_has_the_dtype_of_the_state(controller, num_layers, fused, time, dtype):
    cell = NTMCell(3, 7, **SIZES, controller=controller, num_layers=num_layers, fused=fused)
    result = cell.to(dtype).unroll(inputs(time).to(dtype))
    assert result.hidden.dtype == result.state.memory.dtype
    assert result.hidden.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)


@pytest.mark.parametrize("time", [0, 2])
def test_hidden_of_a_controller_of_ones_own_has_the_dtype_that_it_returns(time):
    cell = NTMCell(3, 7, **SIZES, controller=nn.GRUCell(13, 7)).to(torch.bfloat16)
    assert cell.unroll(inputs(time).to(torch.bfloat16)).hidden.dtype == torch.bfloat16


def test_features_are_hidden_then_reads():
    cell = make()
    features, state = cell(inputs()[0])
    torch.testing.assert_close(features[:, :7], state.controller[0], rtol=0, atol=0)
    torch.testing.assert_close(features[:, 7:], state.read_vectors.flatten(1), rtol=0, atol=0)


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_unbatched_is_a_batch_of_one(controller):
    cell = make(controller)
    x = inputs()
    features, state = cell(x[0, 0])
    features, state = cell(x[1, 0], state)
    expected, batched = cell(x[0, :1])
    expected, batched = cell(x[1, :1], batched)
    torch.testing.assert_close(features, expected[0])
    assert state.memory.shape == (11, 5)
    torch.testing.assert_close(state.memory, batched.memory[0])


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
@pytest.mark.parametrize("lengths", [None, [6, 0, 3, 1]])
def test_layers_by_sequence_equal_the_same_layers_by_steps(controller, lengths, num_layers):
    fused, stepped = (make(controller, num_layers=num_layers) for _ in range(2))
    stepped.fused = False
    stepped.load_state_dict(fused.state_dict())
    lengths = None if lengths is None else torch.tensor(lengths)
    results = [
        cell.unroll(inputs(), lengths=lengths, return_trace=True) for cell in (fused, stepped)
    ]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    for cell, result in zip((fused, stepped), results, strict=True):
        (result.hidden.square().sum() + result.state.memory.square().sum()).backward()
        assert all(parameter.grad is not None for parameter in cell.parameters())
    for one, other in zip(fused.parameters(), stepped.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_lstm_controller_is_torch_lstm():
    """With read vectors cut off, the layers are those of nn.LSTM in its gate order."""
    cell = make(num_layers=2, initial_state=InitialState(controller=0.0, read_vectors=0.0))
    lstm = nn.LSTM(3, 7, num_layers=2, dtype=torch.float64)
    with torch.no_grad():
        for index, layer in enumerate(cell.controller.layers):
            getattr(lstm, f"weight_ih_l{index}").copy_(layer.input_weight)
            getattr(lstm, f"weight_hh_l{index}").copy_(layer.recurrent_weight[:, -7:])
            getattr(lstm, f"bias_ih_l{index}").copy_(layer.bias)
            getattr(lstm, f"bias_hh_l{index}").zero_()
        cell.controller.layers[0].recurrent_weight[:, :-7] = 0
    torch.testing.assert_close(cell.unroll(inputs()).hidden, lstm(inputs())[0])


class Recorder(nn.Module):
    """A controller without a hook, with a dict as its state."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 + 10, 7, dtype=torch.float64)

    def forward(self, input, state):
        total = input.sum(-1) if state is None else state["total"] + input.sum(-1)
        return torch.tanh(self.linear(input) + total.unsqueeze(-1)), {"total": total}


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.LSTMCell(13, 7, dtype=torch.float64),
        lambda: nn.GRUCell(13, 7, dtype=torch.float64),
        lambda: nn.RNNCell(13, 7, dtype=torch.float64),
        Recorder,
    ],
    ids=["LSTMCell", "GRUCell", "RNNCell", "own"],
)
def test_own_controllers(build):
    torch.manual_seed(0)
    cell = make(build())
    lengths = torch.tensor([6, 2, 0, 5])
    together = cell.unroll(inputs(), lengths=lengths)
    for index, length in enumerate(lengths.tolist()):
        alone = cell.unroll(inputs()[:length, index : index + 1])
        torch.testing.assert_close(together.hidden[:length, index], alone.hidden[:, 0])
        assert not together.hidden[length:, index].any()
        held = alone.state
        if held.controller is None:
            held = held._replace(controller={"total": torch.zeros(1, dtype=torch.float64)})
        own = tree_map(lambda part, index=index: part[index : index + 1], together.state)
        torch.testing.assert_close(own, held)
    together.read_vectors.square().sum().backward()
    assert all(parameter.grad is not None for parameter in cell.controller.parameters())


def test_a_saved_state_loads_as_it_is(tmp_path):
    state = make().initial_state(2).detach()
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert type(loaded) is NTMState
    assert torch.equal(loaded.memory, state.memory)


def test_what_the_state_starts_from_is_shown():
    shown = repr(make(initial_state=InitialState(memory=0.5, controller=0.25)))
    assert "memory=0.5, weightings=one_hot, read_vectors=learned" in shown
    assert "initial=0.25" in shown


def test_lstm_cell_and_lstm_controller_agree():
    initial = InitialState(controller=0.0)
    own = make(nn.LSTMCell(13, 7, dtype=torch.float64), initial_state=initial)
    built_in = make(initial_state=initial)
    layer, module = built_in.controller.layers[0], own.controller.cell
    with torch.no_grad():
        module.weight_ih.copy_(torch.cat([layer.input_weight, layer.recurrent_weight[:, :10]], 1))
        module.weight_hh.copy_(layer.recurrent_weight[:, 10:])
        module.bias_ih.copy_(layer.bias)
        module.bias_hh.zero_()
        own.start.load_state_dict(built_in.start.state_dict())
        own.interface.load_state_dict(built_in.interface.state_dict())
    torch.testing.assert_close(own.unroll(inputs())[:2], built_in.unroll(inputs())[:2])


def test_default_start():
    state = NTMCell(3, 7, **SIZES).initial_state(2)
    assert (state.memory == 1e-6).all()
    assert (state.weightings[..., 0] == 1).all()
    assert not state.weightings[..., 1:].any()
    assert state.read_vectors.requires_grad
    assert all(part.requires_grad for part in state.controller)


@pytest.mark.parametrize(
    "initial",
    [
        InitialState(memory="learned", weightings="learned"),
        InitialState(memory=torch.randn(11, 5), weightings="uniform", read_vectors=0.5),
        InitialState(memory="learned", weightings="zero", controller=0.0),
    ],
)
def test_start_by_part(initial):
    torch.manual_seed(0)
    cell = NTMCell(3, 7, **SIZES, initial_state=initial)
    state = cell.initial_state(2)
    sums = state.weightings.sum(-1)
    torch.testing.assert_close(sums, torch.full_like(sums, float(initial.weightings != "zero")))
    if isinstance(initial.memory, torch.Tensor):
        torch.testing.assert_close(state.memory[1], initial.memory)
        assert "start.given_memory" in cell.state_dict()
    assert state.memory.requires_grad == (
        isinstance(initial.memory, str) and initial.memory == "learned"
    )
    features, _ = cell(torch.randn(2, 3), state)
    _, after = cell(torch.randn(2, 3))
    (features.sum() + after.memory.sum()).backward()
    assert all(parameter.grad is not None for parameter in cell.parameters())


@pytest.mark.parametrize("weightings", ["uniform", "zero"])
def test_symmetry_trap_is_refused(weightings):
    with pytest.raises(ValueError, match="never tells two rows apart"):
        InitialState(memory=0.1, weightings=weightings)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weightings", "spread"),
        ("memory", "random"),
        ("memory", float("nan")),
        ("read_vectors", None),
        ("controller", "zero"),
        ("controller", float("inf")),
    ],
)
def test_initial_state_is_checked(field, value):
    with pytest.raises(ValueError, match=f"InitialState: {field} must be"):
        InitialState(**{field: value})


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"memory_size": 0}, ValueError, "memory_size must be at least 1, got 0"),
        ({"word_size": 2.5}, TypeError, "word_size must be an int, got float"),
        ({"shift_range": -1}, ValueError, "shift_range must be at least 0"),
        ({"controller": "gru"}, ValueError, "controller must be 'lstm'"),
        ({"controller": nn.LSTMCell(4, 7)}, ValueError, "input_size=input_size"),
        ({"controller": nn.LSTM(13, 7)}, ValueError, "nn.LSTM runs over sequences"),
        ({"controller": Recorder(), "num_layers": 2}, ValueError, "built-in controllers"),
        (
            {"initial_state": {"memory": 0.0}},
            TypeError,
            "must be an InitialState or None, got dict",
        ),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
        (
            {"dtype": torch.complex64},
            TypeError,
            "NTMCell: dtype must be torch.float32, .*complex64",
        ),
        ({"dtype": torch.int64}, TypeError, "NTMCell: dtype must be torch.float32, .*int64"),
        ({"dtype": "float32"}, TypeError, "NTMCell: dtype must be torch.float32, .*'float32'"),
        ({"backend": "foo"}, BackendError, "NTMCell: there is no backend named 'foo'; .*torch"),
        ({"backend": 3}, TypeError, "NTMCell: backend must be the name of a backend or None"),
        (
            {"initial_state": InitialState(memory=torch.zeros(2, 2))},
            ValueError,
            r"memory must be \[N, M\]",
        ),
    ],
)
def test_construction_is_checked(kwargs, error, match):
    with pytest.raises(error, match=match):
        NTMCell(3, 7, **{**SIZES, **kwargs})


def refused(error, message):
    return pytest.raises(error, match=re.escape(message))


def test_calls_are_checked():
    cell = make()
    x = inputs()
    with refused(ValueError, "NTMCell: x must be [B, input_size=3] or [input_size=3], got [1, 6, "):
        cell(x[None])
    with refused(ValueError, "NTMCell: x must be [B, input_size=3], got [4, 2]"):
        cell(x[0, :, :2])
    with refused(ValueError, "NTMCell: x must be [input_size=3], got [2]"):
        cell(x[0, 0, :2])
    with refused(ValueError, "NTMCell: x must be [T, B, input_size=3], got [6, 4, 2]"):
        cell.unroll(x[..., :2])
    with refused(ValueError, "NTMCell: state.memory must be [11, 5], got [4, 11, 5]"):
        cell(x[0, 0], cell.initial_state(4))
    with pytest.raises(TypeError, match=r"x is torch.float32 and the parameters are torch.float64"):
        cell(x[0].float())
    with pytest.raises(TypeError, match="x must be a tensor"):
        cell([1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match="must be an NTMState"):
        cell(x[0], x[0])
    with pytest.raises(ValueError, match=r"state.memory must be \[4, 11, 5\], got \[2, 11, 5\]"):
        cell(x[0], cell.initial_state(2))
    with pytest.raises(TypeError, match=r"must return \(output, state\).*got Tensor"):
        make(Alone())(x[0])
    with pytest.raises(TypeError, match="x must be a tensor, got list"):
        cell.unroll([x])
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.int64, torch.complex64):
            with pytest.raises(TypeError, match=f"x is {dtype} and the parameters are"):
                cell(x[0].to(dtype))


class Alone(nn.Module):
    """Gives no state beside its output."""

    def forward(self, input, state):
        return input[:, :7]


def test_x_on_another_device():
    with pytest.raises(ValueError, match="x is on meta and the parameters on cpu"):
        make()(inputs()[0].to("meta"))


H = torch.zeros(4, 7, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kwargs", "controller", "message"),
    [
        ({}, (), "must be ([4, 7], [4, 7]), got ()"),
        ({}, None, "got NoneType"),
        ({}, H, "got [4, 7]"),
        ({}, (H,), "got ([4, 7],)"),
        ({}, (H, H[:3]), "got ([4, 7], [3, 7])"),
        ({}, ((H, H), (H, H)), "got (([4, 7], [4, 7]), ([4, 7], [4, 7]))"),
        ({"num_layers": 2}, (H, H), "must be (([4, 7], [4, 7]), ([4, 7], [4, 7])), got ([4, 7]"),
        ({"controller": "feedforward"}, (H, H), "must be (), got ([4, 7], [4, 7])"),
        ({"controller": nn.GRUCell(13, 7, dtype=torch.float64)}, (H, H), "must be ([4, 7],), got"),
    ],
)
def test_controller_state_is_checked(kwargs, controller, message):
    cell = make(**kwargs)
    state = cell.initial_state(4)._replace(controller=controller)
    with pytest.raises(ValueError, match=re.escape(message)):
        cell(inputs()[0], state)


@pytest.mark.parametrize("wrong", [(), "state", [1, 2], torch.zeros(4)])
@pytest.mark.parametrize("batched", [True, False])
def test_no_state(batched, wrong):
    x = inputs()[0] if batched else inputs()[0, 0]
    with pytest.raises(TypeError, match=f"state must be an NTMState .* got {type(wrong).__name__}"):
        make()(x, wrong)


def test_plain_tuple_is_no_state():
    cell = make()
    with pytest.raises(TypeError, match="must be an NTMState or None, got tuple"):
        cell(inputs()[0], tuple(cell.initial_state(4)))


class Memoryless(nn.Module):
    """A controller whose state is ``None``."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(13, 7, dtype=torch.float64)

    def forward(self, input, state):
        return torch.tanh(self.linear(input)), None


def test_controller_without_state():
    cell = make(Memoryless())
    together = cell.unroll(inputs(), lengths=[6, 2, 0, 5])
    assert together.state.detach().controller is None
    alone = cell.unroll(inputs()[:2, 1:2])
    torch.testing.assert_close(together.state.memory[1], alone.state.memory[0])
    features, state = cell(inputs()[0, 0])
    features, state = cell(inputs()[1, 0], state)
    assert state.controller is None
    torch.testing.assert_close(features[:7], cell.unroll(inputs()[:2, :1]).hidden[1, 0])


@pytest.mark.parametrize("given", [False, True])
def test_copies_and_pickles(given):
    # Memory that was computed: torch refuses to copy such a tensor itself.
    memory = torch.randn(11, 5, requires_grad=True) * 2 if given else 1e-6
    cell = make(initial_state=InitialState(memory=memory))
    expected, _ = cell(inputs()[0])
    for twin in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        torch.testing.assert_close(twin(inputs()[0])[0], expected, rtol=0, atol=0)


def test_meta_then_real():
    with torch.device("meta"):
        cell = NTMCell(3, 7, **SIZES)
    assert all(parameter.is_meta for parameter in cell.parameters())
    cell.to_empty(device="cpu")
    torch.manual_seed(3)
    cell.reset_parameters()
    torch.manual_seed(3)
    twin = NTMCell(3, 7, **SIZES)
    twin_again = copy.deepcopy(twin)
    torch.manual_seed(3)
    twin_again.reset_parameters()
    for (name, one), other in zip(cell.named_parameters(), twin_again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)
    features, _ = cell(torch.randn(2, 3))
    assert features.isfinite().all()


@pytest.mark.parametrize("reset", [False, True])
def test_initial_values_of_the_weights(reset):
    torch.manual_seed(0)
    cell = NTMCell(9, 100)
    if reset:
        cell.reset_parameters()
    layer = cell.controller.layers[0]
    assert layer.input_weight.abs().max() <= 0.1
    assert layer.recurrent_weight.abs().max() > 0.09
    assert not layer.bias[100:200].any()
    assert layer.bias[:100].any()
    bound = 1.4 * (6 / (100 + cell.layout.size)) ** 0.5
    assert 0.95 * bound < cell.interface.weight.abs().max() <= bound
    assert 0.005 < cell.interface.bias.std() < 0.015
    assert 0.03 < cell.controller.start.value.std() < 0.07


def test_initial_values_of_the_learned_start():
    torch.manual_seed(0)
    start = NTMCell(9, 100, initial_state=InitialState("learned", "learned")).start
    bound = (128 + 20) ** -0.5
    assert 0.95 * bound < start.memory.abs().max() <= bound
    assert abs(start.memory.mean()) < 0.1 * bound
    assert 0.8 < start.weighting_logits.std() < 1.2
    assert 0.005 < start.read_vectors.std() < 0.015


def test_extra_repr_names_the_sizes():
    text = repr(NTMCell(3, 7, **SIZES, backend="torch"))
    for piece in ("memory_size=11", "word_size=5", "num_read_heads=2", "backend='torch'"):
        assert piece in text


def test_backend_argument_reaches_the_ops(monkeypatch):
    chosen = []
    original = functional.sequence
    monkeypatch.setattr(
        functional,
        "sequence",
        lambda *args, **kwargs: (chosen.append(kwargs["backend"]), original(*args, **kwargs))[1],
    )
    NTMCell(3, 7, **SIZES, backend="torch")(torch.randn(2, 3))
    assert chosen == ["torch"]


def test_state_survives_detach():
    cell = make()
    _, state = cell(inputs()[0])
    detached = state.detach()
    assert isinstance(detached, NTMState)
    assert not any(
        part.requires_grad for part in (detached.memory, detached.weightings, *detached.controller)
    )


def test_one_op_per_step_with_own_controller(monkeypatch):
    calls = []
    original = functional.step
    monkeypatch.setattr(
        functional, "step", lambda *args, **kwargs: (calls.append(1), original(*args, **kwargs))[1]
    )
    make(nn.LSTMCell(13, 7, dtype=torch.float64)).unroll(inputs(time=5))
    assert len(calls) == 5
