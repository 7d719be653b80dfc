"""Weights of nn.LSTM and nn.LSTMCell in a controller, and back."""

import copy

import pytest
import torch
from torch import nn

from ntm_kernels import NTM, InitialState, NTMCell
from ntm_kernels.interop import load_lstm, lstm_cell_of, lstm_of

SIZES = {"input_size": 5, "hidden_size": 7, "memory_size": 9, "word_size": 3, "num_read_heads": 2}
WIDE = 5 + 2 * 3


def make(num_layers=1, **options):
    options = {"dtype": torch.float64, **options}
    return NTM(output_size=None, num_layers=num_layers, **SIZES, **options)


def run_controller(model, x):
    """The outputs of a model's controller alone, for inputs ``[T, B, I + R·M]``."""
    controller = model.cell.controller
    state = controller.initial_state(x.shape[1])
    outputs = []
    for now in x:
        output, state = controller(now, state)
        outputs.append(output)
    return torch.stack(outputs)


def first_state(model, batch):
    state = model.initial_state(batch).controller
    pairs = (state,) if isinstance(state[0], torch.Tensor) else state
    return tuple(torch.stack(parts).contiguous() for parts in zip(*pairs, strict=True))


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_a_controller_computes_what_the_lstm_does(num_layers, bias):
    lstm = nn.LSTM(WIDE, 7, num_layers, bias=bias, dtype=torch.float64)
    model = make(num_layers)
    load_lstm(model, lstm)
    x = torch.randn(11, 4, WIDE, dtype=torch.float64)
    expected, _ = lstm(x, first_state(model, 4))
    torch.testing.assert_close(run_controller(model, x), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(lstm_of(model)(x, first_state(model, 4))[0], expected)


@pytest.mark.parametrize("bias", [True, False])
def test_an_lstm_cell(bias):
    cell = nn.LSTMCell(WIDE, 7, bias=bias, dtype=torch.float64)
    model = NTMCell(**SIZES, dtype=torch.float64)
    load_lstm(model, cell)
    x, state = torch.randn(4, WIDE, dtype=torch.float64), model.initial_state(4).controller
    expected = cell(x, state)
    for found in (model.controller(x, state)[1], lstm_cell_of(model)(x, state)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_an_lstm_trained_without_memory(num_layers):
    """The whole model, in one fused op, computes what the LSTM did."""
    lstm = nn.LSTM(5, 7, num_layers, dtype=torch.float64)
    model = make(num_layers, initial_state=InitialState(controller=0.0))
    load_lstm(model, lstm)
    x = torch.randn(11, 4, 5, dtype=torch.float64)
    features, _ = model(x)
    torch.testing.assert_close(features[..., :7], lstm(x)[0], rtol=0, atol=1e-13)
    assert not lstm_of(model).weight_ih_l0[:, 5:].any()
    features.sum().backward()
    assert all(layer.recurrent_weight.grad.any() for layer in model.cell.controller.layers)


def test_the_copies_are_copies():
    model = make()
    before = copy.deepcopy(model.state_dict())
    lstm = lstm_of(model)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    load_lstm(model, lstm)
    lstm.weight_ih_l0.data.fill_(1)
    assert not model.cell.controller.layers[0].input_weight.any()


@pytest.mark.parametrize(
    ("lstm", "message"),
    [
        (nn.LSTM(WIDE, 7, bidirectional=True), "must have bidirectional=False, .* got True"),
        (nn.LSTM(WIDE, 7, proj_size=3), "must have proj_size=0, .* got 3"),
        (nn.LSTM(WIDE, 7, 2, dropout=0.5), r"must have dropout=0.0, .* got 0.5; set lstm.dropout"),
        (nn.LSTM(4, 7), r"input size 11 \(x and the read vectors\) or 5 .*, got 4, 7 and 1"),
        (nn.LSTM(WIDE, 8), "hidden size 7 and num_layers 1, got 11, 8 and 1"),
        (nn.LSTM(WIDE, 7, 2), "hidden size 7 and num_layers 1, got 11, 7 and 2"),
        (nn.LSTMCell(WIDE, 7), "must have the model's dtype torch.float64, got torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(lstm, message):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        load_lstm(model, lstm)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_kinds_are_refused():
    with pytest.raises(TypeError, match=r"lstm must be an nn\.LSTM or nn\.LSTMCell, got GRU"):
        load_lstm(make(), nn.GRU(WIDE, 7))
    with pytest.raises(TypeError, match="model must be an NTM or NTMCell, got LSTM"):
        lstm_of(nn.LSTM(2, 2))
    for controller in ("feedforward", nn.LSTMCell(WIDE, 7)):
        with pytest.raises(TypeError, match=r'must have controller="lstm", got '):
            lstm_of(NTMCell(**SIZES, controller=controller))
    with pytest.raises(ValueError, match="must have one layer, got 2; lstm_of returns"):
        lstm_cell_of(make(2))
    model = make()
    nn.utils.parametrizations.weight_norm(model.cell.controller.layers[0], "input_weight")
    with pytest.raises(TypeError, match="remove parametrizations, pruning and adapters first"):
        load_lstm(model, nn.LSTM(WIDE, 7))
