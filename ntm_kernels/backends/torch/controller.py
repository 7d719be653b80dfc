"""The built-in controllers, one step forward and backward.

A controller is a policy of the sequence: the sequence calls ``step`` for one step of all layers,
and ``backward`` for an object that undoes the steps one by one, made of all steps at once where
that takes fewer dispatches. What differs between an LSTM and a feed-forward controller, and
between one layer and several, is known in this file alone.

Per step, hidden states, cells and gates are tuples with a tensor for each layer, the first to the
top. A feed-forward controller has no cells and no gates, and hands no hidden state on.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ntm_kernels.backends.torch.products import UNCHANGED, Products
from ntm_kernels.ops import SequenceInputs, SequenceOutputs

Layers = tuple[Tensor, ...]


class Controlled(NamedTuple):
    """After one step: hidden ``[B, C]``, an LSTM's cell ``[B, C]`` and activated gates ``[B, G]``
    of each layer."""

    hidden: Layers
    cell: Layers = ()
    gates: Layers = ()


class ControllerGrads(NamedTuple):
    """Gradients of the gates of each layer ``[B, G]`` and of what the step started from.

    The gates of the first layer are the projected input.
    """

    d_gates: Layers
    d_read_vectors: Tensor  # [B, R·M]
    d_hidden: Layers = ()  # [B, C] each
    d_cell: Layers = ()  # [B, C] each


class ControllerPast(NamedTuple):
    """What the controller saved of all steps; ``None`` where there is none of it."""

    gates: Tensor | None  # [T, L, B, G], of an LSTM
    cells: Tensor | None  # [T, L, B, C], of an LSTM
    lower_hidden: Tensor | None  # [T, U, B, C], of the layers below the top


class ControllerBackward(Protocol):
    """Undoes the steps of a controller, from the last to the first."""

    def step(self, time: int, d_top: Tensor, d_hidden: Layers, d_cell: Layers) -> ControllerGrads:
        """The gradients of a step's inputs.

        ``d_top`` is the gradient of the top layer's hidden state by way of the interface and the
        output. ``d_hidden`` and ``d_cell`` are those that the next step left.
        """


class Controller(Protocol):
    """The network between input and heads."""

    def step(
        self, projected: Tensor, read_vectors: Tensor, hidden: Layers, cell: Layers
    ) -> Controlled:
        """One step from ``projected [B, G]`` and ``read_vectors [B, R·M]``."""

    def backward(self, outputs: SequenceOutputs, saved: ControllerPast) -> ControllerBackward:
        """The backward of all steps."""


def controller_of(inputs: SequenceInputs, products: Products) -> Controller:
    return (Feedforward if inputs.initial_hidden is None else Lstm)(inputs, products)


def shifted_in(
    initial: Tensor, following: Tensor, resets: Tensor | None, batch_dim: int = 1
) -> Tensor:
    """What each step started from: ``initial``, then ``following`` without its last step.

    ``initial`` again where ``resets [T, B]`` is true; the batch is ``batch_dim`` of ``following``.
    """
    shifted = torch.cat((initial.unsqueeze(0), following))[:-1]
    if resets is None:
        return shifted
    sizes = [1] * following.dim()
    sizes[0], sizes[batch_dim] = resets.shape
    return torch.where(resets.view(sizes), initial, shifted)


def hidden_of_layers(outputs: SequenceOutputs, lower_hidden: Tensor | None) -> Tensor:
    """Hidden states of all layers ``[T, L, B, C]``."""
    top = outputs.hidden.unsqueeze(1)
    return top if lower_hidden is None else torch.cat((lower_hidden, top), 1)


def weight_gradients(
    d_gates: Tensor,
    d_interface: Tensor,
    inputs: SequenceInputs,
    outputs: SequenceOutputs,
    lower_hidden: Tensor | None = None,
    products: Products = UNCHANGED,
) -> dict[str, Tensor]:
    """Gradients of the weights, which are products over all steps, by the names of the inputs.

    From those of all steps' gates ``[T, L, B, G]`` and interface vectors ``[T, B, P]``, whose dtype
    they have. ``lower_hidden [T, U, B, C]``: hidden states of the layers below the top.
    """
    dtype = d_interface.dtype
    hidden = hidden_of_layers(outputs, lower_hidden)
    initial_hidden = inputs.initial_hidden
    before = None
    if initial_hidden is not None:
        before = shifted_in(initial_hidden, hidden, inputs.resets, 2)
    seen = shifted_in(inputs.initial_read_vectors, outputs.read_vectors, inputs.resets).flatten(2)
    if before is not None:
        seen = torch.cat((seen, before.select(1, 0)), -1)
    d_first = d_gates.select(1, 0).flatten(0, 1)
    found = {
        "recurrent_weight": products.mm(d_first.mT, seen.flatten(0, 1).to(dtype)),
        "interface_weight": products.mm(
            d_interface.flatten(0, 1).mT, outputs.hidden.flatten(0, 1).to(dtype)
        ),
        "interface_bias": d_interface.sum((0, 1)),
    }
    if lower_hidden is not None:
        above = lower_hidden if before is None else torch.cat((lower_hidden, before[:, 1:]), -1)
        d_upper = d_gates[:, 1:].transpose(0, 1).flatten(1, 2)  # [U, T·B, G]
        above = above.transpose(0, 1).flatten(1, 2).to(dtype)
        found["upper_weight"] = products.bmm(d_upper.mT, above)
        found["upper_bias"] = d_upper.sum(1)
    return found


def _upper_layers(inputs: SequenceInputs, products: Products) -> list[tuple[Tensor, Tensor]]:
    """Weight ``[G, J]`` and bias ``[G]`` of each layer above the first."""
    if inputs.upper_weight is None or inputs.upper_bias is None:
        return []
    weights = products.weight(inputs.upper_weight)
    return list(zip(weights.unbind(0), inputs.upper_bias.unbind(0), strict=True))


class Feedforward:
    """``h = tanh(x̂ + W r)``; above it ``h = tanh(W h_below + b)``."""

    def __init__(self, inputs: SequenceInputs, products: Products) -> None:
        self.products = products
        self.weight = products.weight(inputs.recurrent_weight)
        self.weight_transposed = self.weight.mT
        self.upper = _upper_layers(inputs, products)

    def step(
        self, projected: Tensor, read_vectors: Tensor, hidden: Layers, cell: Layers
    ) -> Controlled:
        addmm = self.products.addmm
        layers = [addmm(projected, read_vectors, self.weight_transposed).tanh_()]
        for weight, bias in self.upper:
            layers.append(addmm(bias, layers[-1], weight.mT).tanh_())
        return Controlled(tuple(layers))

    def backward(self, outputs: SequenceOutputs, saved: ControllerPast) -> FeedforwardBackward:
        return FeedforwardBackward(self, hidden_of_layers(outputs, saved.lower_hidden))


class FeedforwardBackward:
    """The backward of ``Feedforward``."""

    def __init__(self, controller: Feedforward, hidden: Tensor) -> None:
        self.products, self.weight = controller.products, controller.weight
        self.upper_weights = [weight for weight, _ in controller.upper]
        self.slopes = [of_step.unbind(0) for of_step in (1 - hidden.square()).unbind(0)]

    def step(self, time: int, d_top: Tensor, d_hidden: Layers, d_cell: Layers) -> ControllerGrads:
        first, *upper = self.slopes[time]
        d_gates: list[Tensor] = []
        d_layer = d_top
        for slope, weight in zip(reversed(upper), reversed(self.upper_weights), strict=True):
            d_gates.append(d_layer * slope)
            d_layer = self.products.mm(d_gates[-1], weight)
        d_gates.append(d_layer * first)
        return ControllerGrads(tuple(d_gates[::-1]), self.products.mm(d_gates[-1], self.weight))


class Lstm:
    """Gates ``i, f, g, o = x̂ + W [r, h]``, ``c = f c + i g``, ``h = o tanh(c)``; above the first
    layer ``i, f, g, o = b + W [h_below, h]``."""

    def __init__(self, inputs: SequenceInputs, products: Products) -> None:
        assert inputs.initial_cell is not None
        self.products = products
        self.weight = products.weight(inputs.recurrent_weight)
        self.weight_transposed = self.weight.mT
        self.upper = _upper_layers(inputs, products)
        self.initial_cell, self.resets = inputs.initial_cell, inputs.resets

    def step(
        self, projected: Tensor, read_vectors: Tensor, hidden: Layers, cell: Layers
    ) -> Controlled:
        seen = torch.cat((read_vectors, hidden[0]), -1)
        gates = self.products.addmm(projected, seen, self.weight_transposed)
        layers = [self._layer(gates, cell[0])]
        for (weight, bias), own, before in zip(self.upper, hidden[1:], cell[1:], strict=True):
            below, _, _ = layers[-1]
            gates = self.products.addmm(bias, torch.cat((below, own), -1), weight.mT)
            layers.append(self._layer(gates, before))
        return Controlled(*zip(*layers, strict=True))

    def _layer(self, gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden state, cell and activated gates of one layer."""
        size = cell.shape[-1]
        activated = torch.sigmoid(gates)
        candidate = activated.narrow(-1, 2 * size, size)
        torch.tanh(gates.narrow(-1, 2 * size, size), out=candidate)
        input_gate, forget_gate, candidate, output_gate = activated.chunk(4, -1)
        cell = torch.addcmul(forget_gate * cell, input_gate, candidate)
        return output_gate * torch.tanh(cell), cell, activated

    def backward(self, outputs: SequenceOutputs, saved: ControllerPast) -> LstmBackward:
        assert saved.gates is not None
        assert saved.cells is not None
        return LstmBackward(self, saved.gates, saved.cells)


class LstmBackward:
    """For all steps at once, the factors that turn dc and dh into the gradients of the gates.

    ``gate_slopes [T, L, B, 4C]`` are factors of dc for i, f, g and of dh for o, ``cell_slopes`` are
    dh/dc ``[T, L, B, C]``.
    """

    def __init__(self, lstm: Lstm, gates: Tensor, cells: Tensor) -> None:
        self.products = lstm.products
        self.weights = [lstm.weight, *(weight for weight, _ in lstm.upper)]
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4, -1)
        squashed = torch.tanh(cells)
        previous_cells = shifted_in(lstm.initial_cell, cells, lstm.resets, 2)
        slopes = (
            candidate * input_gate * (1 - input_gate),
            previous_cells * forget_gate * (1 - forget_gate),
            input_gate * (1 - candidate.square()),
            squashed * output_gate * (1 - output_gate),
        )
        self.gate_slopes = _by_step(torch.cat(slopes, -1))
        self.cell_slopes = _by_step(output_gate * (1 - squashed.square()))
        self.forget_gates = _by_step(forget_gate)

    def step(self, time: int, d_top: Tensor, d_hidden: Layers, d_cell: Layers) -> ControllerGrads:
        d_seen = d_top
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for layer in reversed(range(len(self.weights))):
            d_h = d_seen + d_hidden[layer]
            d_c = torch.addcmul(d_cell[layer], d_h, self.cell_slopes[time][layer])
            d_gates = torch.cat((d_c, d_c, d_c, d_h), -1).mul_(self.gate_slopes[time][layer])
            d_seen = self.products.mm(d_gates, self.weights[layer])
            size = d_h.shape[-1]
            d_seen, d_before = d_seen.split((d_seen.shape[-1] - size, size), -1)
            found.append((d_gates, d_before, d_c * self.forget_gates[time][layer]))
        d_gates_of, d_hidden, d_cell = zip(*reversed(found), strict=True)
        return ControllerGrads(d_gates_of, d_seen, d_hidden, d_cell)


def _by_step(parts: Tensor) -> list[Layers]:
    """The parts ``[T, L, …]`` as a tuple of layers for each step."""
    steps, layers = parts.shape[:2]
    flat = parts.flatten(0, 1).unbind(0)
    return [flat[step * layers : (step + 1) * layers] for step in range(steps)]
