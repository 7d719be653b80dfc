"""The list of layers and the state of ``sequence``: what is refused, and in which words."""

import re

import pytest
import torch

from ntm_kernels import LayerWeights, functional
from tests.support.cases import DEEP, arguments, of_sequence

LSTM, FEEDFORWARD = DEEP


def call(case, **changes):
    given = of_sequence(arguments(case)) | changes
    return functional.sequence(**given, **case.options)


def layers_with(case, index, **changes):
    layers = of_sequence(arguments(case))["layers"]
    layers[index] = layers[index]._replace(**changes)
    return layers


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (None, TypeError, "layers must be a list of ntm_kernels.LayerWeights"),
        (LayerWeights(), TypeError, "layers must be a list of ntm_kernels.LayerWeights"),
        ([], ValueError, "layers must have the weights of at least one layer, got none"),
        ([LayerWeights(), (1, 2)], TypeError, "layers[1] must be an ntm_kernels.LayerWeights"),
    ],
)
def test_what_is_no_list_of_layers(layers, error, message):
    with pytest.raises(error, match=re.escape(f"sequence: {message}")):
        call(LSTM, layers=layers)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("input_weight", None, TypeError, "layers[1].input_weight must be a tensor, got NoneType"),
        ("bias", None, TypeError, "layers[1].bias must be a tensor, got NoneType"),
        ("recurrent_weight", None, TypeError, "layers[1].recurrent_weight must be a tensor"),
        ("bias", torch.zeros(24), TypeError, "must share one dtype"),
        ("bias", torch.zeros(5).double(), ValueError, "layers[1].bias must be [G=24]"),
        (
            "input_weight",
            torch.zeros(24, 7).double(),
            ValueError,
            "layers[1].input_weight must be [G=24, C=6]",
        ),
    ],
)
def test_weights_of_an_upper_layer(name, value, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call(LSTM, layers=layers_with(LSTM, 1, **{name: value}))


def test_the_first_layer_has_a_recurrent_weight():
    with pytest.raises(TypeError, match=r"layers\[0\].recurrent_weight must be a tensor"):
        call(LSTM, layers=layers_with(LSTM, 0, recurrent_weight=None))


def test_an_upper_feedforward_layer_sees_the_layer_below_alone():
    weight = torch.zeros(6, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"layers\[1\].recurrent_weight must be None"):
        call(FEEDFORWARD, layers=layers_with(FEEDFORWARD, 1, recurrent_weight=weight))


def test_a_state_that_does_not_fit_the_layers():
    state = of_sequence(arguments(LSTM))["initial_state"]
    with pytest.raises(ValueError, match=r"initial_state.cell is None"):
        call(LSTM, initial_state=state._replace(cell=None))
    with pytest.raises(ValueError, match=r"feed-forward controller, initial_state.hidden being"):
        call(LSTM, initial_state=state._replace(hidden=None, cell=None))
    with pytest.raises(ValueError, match=r"initial_state.hidden must be \[L=3, .*\(L as in layers"):
        call(LSTM, initial_state=state._replace(hidden=state.hidden[:2]))
    with pytest.raises(TypeError, match=r"initial_state must be an ntm_kernels.SequenceState"):
        call(LSTM, initial_state=tuple(state))


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_return_trace_is_a_flag(value):
    given = of_sequence(arguments(LSTM))
    with pytest.raises(TypeError, match="sequence: return_trace must be True or False"):
        functional.sequence(**given, **LSTM.options, return_trace=value)
