"""The built-in controllers, one step forward and backward.

A controller is a policy of the sequence: ``step`` computes one step, and ``backward`` returns an
object that undoes the steps one by one, made of all steps at once where that takes fewer
dispatches.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ntm_kernels.ops import SequenceInputs, SequenceOutputs


class Controlled(NamedTuple):
    """After one step: hidden ``[B, C]``, an LSTM's cell ``[B, C]`` and activated gates."""

    hidden: Tensor
    cell: Tensor | None = None
    gates: Tensor | None = None


class ControllerGrads(NamedTuple):
    """Gradients of a step's projected input ``[B, G]`` and of what it started from."""

    d_projected: Tensor
    d_read_vectors: Tensor  # [B, R·M]
    d_hidden: Tensor | None = None  # [B, C]
    d_cell: Tensor | None = None  # [B, C]


class ControllerBackward(Protocol):
    """Undoes the steps of a controller, from the last to the first."""

    def step(self, time: int, d_hidden: Tensor, d_cell: Tensor | None) -> ControllerGrads:
        """The gradients of a step's inputs; ``d_hidden`` includes what came by the interface."""


class Controller(Protocol):
    """The network between input and heads."""

    def step(
        self, projected: Tensor, read_vectors: Tensor, hidden: Tensor | None, cell: Tensor | None
    ) -> Controlled:
        """One step from ``projected [B, G]`` and ``read_vectors [B, R·M]``."""

    def backward(
        self, outputs: SequenceOutputs, gates: Tensor | None, cells: Tensor | None
    ) -> ControllerBackward:
        """The backward of all steps; gates ``[T, B, 4C]`` and cells ``[T, B, C]`` of an LSTM."""


def controller_of(inputs: SequenceInputs) -> Controller:
    return Feedforward(inputs) if inputs.initial_hidden is None else Lstm(inputs)


def shifted_in(initial: Tensor, following: Tensor) -> Tensor:
    """What each step started from: ``initial``, then ``following`` without its last step."""
    return torch.cat((initial.unsqueeze(0), following))[:-1]


def weight_gradients(
    d_projected: Tensor, d_interface: Tensor, inputs: SequenceInputs, outputs: SequenceOutputs
) -> dict[str, Tensor]:
    """Gradients of the weights, which are products over all steps, by the names of the inputs.

    From those of all steps' projected inputs ``[T, B, G]`` and interface vectors ``[T, B, P]``,
    whose dtype they have.
    """
    dtype = d_interface.dtype
    seen = shifted_in(inputs.initial_read_vectors, outputs.read_vectors).flatten(2)
    if inputs.initial_hidden is not None:
        seen = torch.cat((seen, shifted_in(inputs.initial_hidden, outputs.hidden)), -1)
    hidden = outputs.hidden.flatten(0, 1).to(dtype)
    return {
        "recurrent_weight": torch.mm(d_projected.flatten(0, 1).mT, seen.flatten(0, 1).to(dtype)),
        "interface_weight": torch.mm(d_interface.flatten(0, 1).mT, hidden),
        "interface_bias": d_interface.sum((0, 1)),
    }


class Feedforward:
    """``h = tanh(x̂ + W r)``."""

    def __init__(self, inputs: SequenceInputs) -> None:
        self.weight = inputs.recurrent_weight
        self.weight_transposed = self.weight.mT

    def step(
        self, projected: Tensor, read_vectors: Tensor, hidden: Tensor | None, cell: Tensor | None
    ) -> Controlled:
        return Controlled(torch.addmm(projected, read_vectors, self.weight_transposed).tanh_())

    def backward(
        self, outputs: SequenceOutputs, gates: Tensor | None, cells: Tensor | None
    ) -> FeedforwardBackward:
        return FeedforwardBackward(self.weight, outputs)


class FeedforwardBackward:
    """The backward of ``Feedforward``."""

    def __init__(self, weight: Tensor, outputs: SequenceOutputs) -> None:
        self.weight = weight
        self.slopes = (1 - outputs.hidden.square()).unbind(0)

    def step(self, time: int, d_hidden: Tensor, d_cell: Tensor | None) -> ControllerGrads:
        d_projected = d_hidden.mul_(self.slopes[time])
        return ControllerGrads(d_projected, torch.mm(d_projected, self.weight))


class Lstm:
    """Gates ``i, f, g, o = x̂ + W [r, h]``, ``c = f c + i g``, ``h = o tanh(c)``."""

    def __init__(self, inputs: SequenceInputs) -> None:
        assert inputs.initial_cell is not None
        self.weight = inputs.recurrent_weight
        self.weight_transposed = self.weight.mT
        self.initial_cell = inputs.initial_cell

    def step(
        self, projected: Tensor, read_vectors: Tensor, hidden: Tensor | None, cell: Tensor | None
    ) -> Controlled:
        assert hidden is not None
        assert cell is not None
        seen = torch.cat((read_vectors, hidden), -1)
        gates = torch.addmm(projected, seen, self.weight_transposed)
        size = cell.shape[-1]
        activated = torch.sigmoid(gates)
        candidate = activated.narrow(-1, 2 * size, size)
        torch.tanh(gates.narrow(-1, 2 * size, size), out=candidate)
        input_gate, forget_gate, candidate, output_gate = activated.chunk(4, -1)
        cell = torch.addcmul(forget_gate * cell, input_gate, candidate)
        return Controlled(output_gate * torch.tanh(cell), cell, activated)

    def backward(
        self, outputs: SequenceOutputs, gates: Tensor | None, cells: Tensor | None
    ) -> LstmBackward:
        assert gates is not None
        assert cells is not None
        return LstmBackward(self, gates, cells)


class LstmBackward:
    """For all steps at once, the factors that turn dc and dh into the gradients of the gates.

    ``gate_slopes [T, B, 4C]`` are factors of dc for i, f, g and of dh for o, ``cell_slopes`` are
    dh/dc ``[T, B, C]``.
    """

    def __init__(self, lstm: Lstm, gates: Tensor, cells: Tensor) -> None:
        self.weight = lstm.weight
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4, -1)
        squashed = torch.tanh(cells)
        previous_cells = shifted_in(lstm.initial_cell, cells)
        slopes = (
            candidate * input_gate * (1 - input_gate),
            previous_cells * forget_gate * (1 - forget_gate),
            input_gate * (1 - candidate.square()),
            squashed * output_gate * (1 - output_gate),
        )
        self.gate_slopes = torch.cat(slopes, -1).unbind(0)
        self.cell_slopes = (output_gate * (1 - squashed.square())).unbind(0)
        self.forget_gates = forget_gate.unbind(0)

    def step(self, time: int, d_hidden: Tensor, d_cell: Tensor | None) -> ControllerGrads:
        assert d_cell is not None
        size = d_hidden.shape[-1]
        d_cell = torch.addcmul(d_cell, d_hidden, self.cell_slopes[time])
        d_gates = torch.cat((d_cell, d_cell, d_cell, d_hidden), -1).mul_(self.gate_slopes[time])
        d_seen = torch.mm(d_gates, self.weight)
        d_read_vectors, d_before = d_seen.split((d_seen.shape[-1] - size, size), -1)
        return ControllerGrads(d_gates, d_read_vectors, d_before, d_cell * self.forget_gates[time])
