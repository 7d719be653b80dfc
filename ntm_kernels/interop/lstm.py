"""Weights of ``nn.LSTM`` and ``nn.LSTMCell``, into an LSTM controller and out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ntm_kernels.nn import NTM, LSTMController, NTMCell
from ntm_kernels.nn.controllers import RecurrentLayer

__all__ = ["copy_weights", "layers_of", "load_lstm", "lstm_cell_of", "lstm_of"]

_PARAMETERS = ["input_weight", "recurrent_weight", "bias"]


@torch.no_grad()
def load_lstm(model: NTM | NTMCell, lstm: nn.LSTM | nn.LSTMCell) -> None:
    """Gives the LSTM controller of a model the weights of an ``nn.LSTM`` or ``nn.LSTMCell``.

    With input size ``input_size + R·M`` of the model, the LSTM is the controller itself and sees
    ``[x, r]``. With input size ``input_size`` it is one that was trained without a memory: the
    weights on the read vectors become 0, and until they are trained, the controller computes what
    the LSTM does. The two biases of a layer are added up. The first state stays the model's own;
    that of ``nn.LSTM`` is 0, as with ``InitialState(controller=0.0)``.

    Args:
        model: an ``NTM`` or ``NTMCell`` with ``controller="lstm"``, changed in place.
        lstm: of the same hidden size, number of layers and dtype, in one direction and without
            projection and dropout.

    Raises:
        TypeError: another kind of model, controller or LSTM.
        ValueError: sizes or dtypes do not fit, or the LSTM has what the controller lacks. The
            model is unchanged.

    >>> from ntm_kernels import InitialState
    >>> lstm = nn.LSTM(8, 32)
    >>> model = NTM(8, None, 32, initial_state=InitialState(controller=0.0))
    >>> load_lstm(model, lstm)
    >>> x = torch.randn(10, 4, 8)
    >>> features, _ = model(x)
    >>> torch.allclose(features[..., :32], lstm(x)[0], atol=1e-6)
    True
    """
    layers = layers_of("load_lstm", model)
    if not isinstance(lstm, (nn.LSTM, nn.LSTMCell)):
        raise TypeError(
            f"load_lstm: lstm must be an nn.LSTM or nn.LSTMCell, got {type(lstm).__name__}"
        )
    _require_plain(lstm)
    weights = _weights(lstm)
    first = layers[0]
    narrow = weights["weight_ih_l0"]
    wide = first.input_size + _read_size(first)
    if narrow.shape[1] == first.input_size:
        zeros = narrow.new_zeros(len(narrow), _read_size(first))
        weights["weight_ih_l0"] = torch.cat([narrow, zeros], dim=1)
    ours = (wide, first.hidden_size, len(layers))
    theirs = (weights["weight_ih_l0"].shape[1], lstm.hidden_size, getattr(lstm, "num_layers", 1))
    if ours != theirs:
        raise ValueError(
            f"load_lstm: lstm must have input size {wide} (x and the read vectors) or "
            f"{first.input_size} (x alone), hidden size {ours[1]} and num_layers {ours[2]}, got "
            f"{narrow.shape[1]}, {theirs[1]} and {theirs[2]}; make the model with other sizes"
        )
    if narrow.dtype != first.bias.dtype:
        raise ValueError(
            f"load_lstm: lstm must have the model's dtype {first.bias.dtype}, got {narrow.dtype}; "
            "convert one of them with .to(dtype)"
        )
    copy_weights(layers, weights)


@torch.no_grad()
def lstm_of(model: NTM | NTMCell) -> nn.LSTM:
    """An ``nn.LSTM`` with the weights of a model's LSTM controller; its input is ``[x, r]``.

    Its input size is ``input_size + R·M`` of the model. The bias is ``bias_ih``, and ``bias_hh`` is
    0. The learned first state does not go along: take it from ``model.initial_state(batch)``.

    Args:
        model: an ``NTM`` or ``NTMCell`` with ``controller="lstm"``.

    Raises:
        TypeError: another kind of model or controller.

    >>> model = NTM(8, 8, 32, word_size=20, num_layers=2)
    >>> lstm_of(model)
    LSTM(28, 32, num_layers=2)
    """
    layers = layers_of("lstm_of", model)
    first = layers[0]
    place: dict[str, Any] = {"device": first.bias.device, "dtype": first.bias.dtype}
    input_size = first.input_size + _read_size(first)
    lstm = nn.LSTM(input_size, first.hidden_size, len(layers), **place)
    for number, layer in enumerate(layers):
        of_reads, of_hidden = layer.recurrent_weight.tensor_split((-layer.hidden_size,), dim=1)
        parts = {
            "weight_ih": torch.cat([layer.input_weight, of_reads], dim=1),
            "weight_hh": of_hidden,
            "bias_ih": layer.bias,
            "bias_hh": torch.zeros_like(layer.bias),
        }
        for name, value in parts.items():
            getattr(lstm, f"{name}_l{number}").copy_(value)
    return lstm


@torch.no_grad()
def lstm_cell_of(model: NTM | NTMCell) -> nn.LSTMCell:
    """As :func:`lstm_of`, as an ``nn.LSTMCell``; the controller must have one layer.

    Raises:
        TypeError: another kind of model or controller.
        ValueError: the controller has several layers.

    >>> lstm_cell_of(NTMCell(8, 32, word_size=20))
    LSTMCell(28, 32)
    """
    lstm = lstm_of(model)
    if lstm.num_layers > 1:
        raise ValueError(
            f"lstm_cell_of: the controller must have one layer, got {lstm.num_layers}; lstm_of "
            "returns an nn.LSTM of all layers"
        )
    bias = lstm.bias_ih_l0
    cell = nn.LSTMCell(lstm.input_size, lstm.hidden_size, device=bias.device, dtype=bias.dtype)
    for name, parameter in cell.named_parameters():
        parameter.copy_(getattr(lstm, f"{name}_l0"))
    return cell


def copy_weights(layers: Sequence[RecurrentLayer], weights: Mapping[str, Tensor]) -> None:
    """Copies weights with the names and shapes of ``nn.LSTM`` into the layers of a controller.

    ``weight_ih_l0`` has the columns of x first, then those of the read vectors.
    """
    for number, layer in enumerate(layers):
        of_x, of_reads = weights[f"weight_ih_l{number}"].tensor_split((layer.input_size,), dim=1)
        layer.input_weight.copy_(of_x)
        layer.recurrent_weight.copy_(torch.cat([of_reads, weights[f"weight_hh_l{number}"]], dim=1))
        layer.bias.copy_(weights[f"bias_ih_l{number}"] + weights[f"bias_hh_l{number}"])


def layers_of(owner: str, model: NTM | NTMCell) -> list[RecurrentLayer]:
    """The layers of a model's LSTM controller, whose weights can be read and set."""
    cell = model.cell if isinstance(model, NTM) else model
    if not isinstance(cell, NTMCell):
        raise TypeError(f"{owner}: model must be an NTM or NTMCell, got {type(model).__name__}")
    if type(cell.controller) is not LSTMController:
        raise TypeError(
            f'{owner}: the model must have controller="lstm", got {type(cell.controller).__name__}'
        )
    layers = []
    for number, layer in enumerate(cell.controller.layers):
        names = [name for name, _ in layer.named_parameters()]
        if type(layer) is not RecurrentLayer or names != _PARAMETERS:
            raise TypeError(
                f"{owner}: layer {number} of the controller must be as NTMCell makes it, got "
                f"{type(layer).__name__} with the parameters {', '.join(names)}; remove "
                "parametrizations, pruning and adapters first"
            )
        layers.append(layer)
    return layers


def _read_size(first: RecurrentLayer) -> int:
    """Elements of all read vectors together, R·M."""
    return first.recurrent_weight.shape[1] - first.hidden_size


def _require_plain(lstm: nn.LSTM | nn.LSTMCell) -> None:
    """Raises ValueError where an LSTM has what the controller lacks."""
    plain = {"bidirectional": False, "proj_size": 0, "dropout": 0.0}
    for name, value in plain.items():
        given = getattr(lstm, name, value)
        if given != value:
            raise ValueError(
                f"load_lstm: lstm must have {name}={value}, since an LSTM controller has nothing "
                f"like it, got {given}"
                + ("; set lstm.dropout = 0.0 to load it without" if name == "dropout" else "")
            )


def _weights(lstm: nn.LSTM | nn.LSTMCell) -> dict[str, Tensor]:
    """The weights under the names that they have in ``nn.LSTM``, with biases in any case."""
    weights = {}
    for number in range(getattr(lstm, "num_layers", 1)):
        suffix = f"_l{number}" if isinstance(lstm, nn.LSTM) else ""
        for name in ("weight_ih", "weight_hh"):
            weights[f"{name}_l{number}"] = getattr(lstm, name + suffix)
        zeros = weights[f"weight_hh_l{number}"].new_zeros(4 * lstm.hidden_size)
        for name in ("bias_ih", "bias_hh"):
            weights[f"{name}_l{number}"] = getattr(lstm, name + suffix) if lstm.bias else zeros
    return weights
