"""Controllers: the network between the input and the heads.

A controller is any module with ``controller(input [B, I + R·M], state) -> (output [B, C], state)``;
the input is ``[x_t, r_{t−1}]`` and the state any nest of tensors with the batch first. If it has a
method ``initial_state(batch_size)``, that gives the first state; otherwise the first is ``None``.
If it has an attribute ``state_sizes``, the same nest with the size of each part, states are checked
against it.

With ``lengths`` the state of a sequence that is over is held, so every tensor in it must have the
batch first. ``initial_state`` shows that at two batch sizes; a controller without it says so by an
attribute ``state_batch_first = True``, which it needs where another dimension is as long as the
batch. A count of steps is a tensor ``[B]`` then: a number that changes, or a tensor ``[]``, is of
all sequences and cannot be held for one of them; it is refused.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ntm_kernels import allocation
from ntm_kernels.nn.parts import dtype_and_device, for_batch, outlasting, weight_of
from ntm_kernels.reference import LayerWeights, arithmetic_dtype
from ntm_kernels.torch_private import forward_pre_hooks

PROTOCOL = (
    "controller(input [B, input_size + R·M], state) -> (output [B, hidden_size], state), "
    "state=None at first unless it has a method initial_state(batch_size)"
)


def require_protocol(controller: nn.Module) -> None:
    """Raise ``TypeError`` where the controller cannot be called with an input and a state.

    Hooks may change what ``forward`` gets, and not every callable tells its signature: those are
    left to the first call.
    """
    if forward_pre_hooks(controller):
        return
    plain = type(controller).__call__ is nn.Module.__call__
    try:
        signature = inspect.signature(controller.forward if plain else controller)
    except (TypeError, ValueError):
        return
    try:
        signature.bind("input", "state")
    except TypeError as error:
        raise TypeError(
            f"NTMCell: a controller is called as {PROTOCOL}; {type(controller).__name__} takes "
            f"{signature}: {error}. Wrap it in a module that takes and returns a state"
        ) from error


MEND = "make hidden_size, input_size, word_size or num_read_heads smaller"


def project(x: Tensor, weight: Any, bias: Any) -> Tensor:
    """``weight @ x + bias`` in the dtype of the parameters, for x ``[..., I]``."""
    return linear(x.to(bias.dtype), weight, bias)


class RecurrentLayer(nn.Module):
    """Weights of one layer: ``x̂ = input_weight @ x + bias`` and ``recurrent_weight`` on the rest.

    ``gates`` is 4 for an LSTM and 1 for a feed-forward layer. The two weights are apart because
    only the recurrent one takes part in the recurrence.
    """

    def __init__(
        self, input_size: int, recurrent_size: int, hidden_size: int, gates: int, **factory: Any
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        rows = gates * hidden_size
        height = "4·hidden_size" if gates == 4 else "hidden_size"

        def parameter(name: str, *shape: int) -> nn.Parameter:
            return allocation.parameter(f"the controller's {name}", shape, MEND, **factory)

        self.input_weight = parameter(f"input_weight [{height}, input]", rows, input_size)
        self.recurrent_weight = parameter(
            f"recurrent_weight [{height}, read vectors and state]", rows, recurrent_size
        )
        self.bias = parameter(f"bias [{height}]", rows)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """U(−1/√C, 1/√C) for everything but an LSTM's forget-gate bias, which is 0."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        if self.bias.shape[0] == 4 * self.hidden_size:
            nn.init.zeros_(self.bias.detach()[self.hidden_size : 2 * self.hidden_size])

    def project(self, x: Tensor) -> Tensor:
        """``x̂`` of ``x [..., I]``."""
        return project(x, self.input_weight, self.bias)

    def forward(self, x: Tensor, recurrent: Tensor) -> Tensor:
        weight = self.recurrent_weight
        return self.project(x) + linear(recurrent.to(weight.dtype), weight)

    def extra_repr(self) -> str:
        rows, recurrent_size = self.recurrent_weight.shape
        return f"input_size={self.input_size}, recurrent_size={recurrent_size}, rows={rows}"


def layer_weights(layer: nn.Module) -> LayerWeights:
    """The weights of a layer of a built-in controller, as the fused op takes them."""
    if isinstance(layer, HiddenLayer):
        return LayerWeights(input_weight=weight_of(layer, "weight"), bias=weight_of(layer, "bias"))
    return LayerWeights(
        weight_of(layer, "recurrent_weight"),
        weight_of(layer, "input_weight"),
        weight_of(layer, "bias"),
    )


class LearnedVectors(nn.Module):
    """Initial vectors of a controller's state: learned, N(0, 0.05²), or one constant."""

    def __init__(self, count: int, size: int, initial: float | str, **factory: Any) -> None:
        super().__init__()
        self.count, self.size, self.initial = count, size, initial
        self.register_parameter("value", None)
        if initial == "learned":
            what = "the controller's learned state [parts, hidden_size]"
            self.value = allocation.parameter(what, (count, size), MEND, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.value is not None:
            nn.init.normal_(self.value, std=0.05)

    def extra_repr(self) -> str:
        return f"{self.count}, {self.size}, initial={self.initial}"

    def forward(self, batch: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """``count`` tensors ``[batch, size]`` in the arithmetic dtype of ``dtype``."""
        dtype = arithmetic_dtype(dtype)
        value: Tensor | None = self.value
        if value is None:
            size = (self.count, self.size)
            value = torch.full(size, float(self.initial), dtype=dtype, device=device)
        rows = value.to(dtype).unbind(0)
        return outlasting(self, tuple(for_batch(row, batch) for row in rows))


class LSTMController(nn.Module):
    """``num_layers`` LSTM layers with one bias each, gate order ``i, f, g, o``.

    The first layer sees ``[x, r]``; each further one the output of the layer below. The state is
    ``(h, c)``, for several layers a tuple of such pairs.
    """

    state_batch_first = True

    def __init__(
        self,
        input_size: int,
        read_size: int,
        hidden_size: int,
        num_layers: int = 1,
        initial: float | str = "learned",
        **factory: Any,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.layers = nn.ModuleList(
            RecurrentLayer(
                hidden_size if layer else input_size,
                hidden_size + (0 if layer else read_size),
                hidden_size,
                gates=4,
                **factory,
            )
            for layer in range(num_layers)
        )
        self.start = LearnedVectors(2 * num_layers, hidden_size, initial, **factory)
        pair = (hidden_size, hidden_size)
        self.state_sizes = (pair,) * num_layers if num_layers > 1 else pair

    def initial_state(self, batch_size: int) -> tuple[Any, ...]:
        parts = iter(self.start(batch_size, *dtype_and_device(self.layers[0])))
        pairs = tuple(zip(parts, parts, strict=True))  # each takes the next: hidden and cell
        return pairs if len(pairs) > 1 else pairs[0]

    def forward(self, input: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        single = len(self.layers) == 1
        states = (state,) if single else state
        below, reads = input.tensor_split((self.input_size,), -1)
        new: list[tuple[Tensor, Tensor]] = []
        for layer, (hidden, cell) in zip(self.layers, states, strict=True):
            recurrent = torch.cat((reads.to(hidden.dtype), hidden), -1) if not new else hidden
            gates = layer(below, recurrent).to(cell.dtype)
            input_gate, forget_gate, candidate, output_gate = gates.chunk(4, -1)
            cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
            below = output_gate.sigmoid() * cell.tanh()
            new.append((below, cell))
        return below, new[0] if single else tuple(new)

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_layers={len(self.layers)}"


def layers_stacked(state: tuple[Any, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Hidden and cell ``[L, B, C]`` from the state of a built-in controller."""
    if not state:
        return None, None
    if isinstance(state[0], Tensor):
        hidden, cell = state
        return hidden.unsqueeze(0), cell.unsqueeze(0)
    hiddens, cells = zip(*state, strict=True)
    return torch.stack(hiddens), torch.stack(cells)


def layers_apart(hidden: Tensor | None, cell: Tensor | None) -> tuple[Any, ...]:
    """The inverse of ``layers_stacked``."""
    if hidden is None or cell is None:
        return ()
    if hidden.shape[0] == 1:
        return hidden.squeeze(0), cell.squeeze(0)
    return tuple(zip(hidden.unbind(0), cell.unbind(0), strict=True))


def _tanh(x: Tensor) -> Tensor:
    """The layer's output: tanh in the arithmetic dtype, as in the fused op."""
    return torch.tanh(x.to(arithmetic_dtype(x.dtype)))


class FeedforwardController(nn.Module):
    """``num_layers`` layers ``h = tanh(W [x, r] + b)``; its state is ``()``."""

    state_batch_first = True

    def __init__(
        self,
        input_size: int,
        read_size: int,
        hidden_size: int,
        num_layers: int = 1,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        first = RecurrentLayer(input_size, read_size, hidden_size, gates=1, **factory)
        self.layers = nn.ModuleList([first])
        for _ in range(num_layers - 1):
            self.layers.append(HiddenLayer(hidden_size, **factory))
        self.state_sizes = ()

    def initial_state(self, batch_size: int) -> tuple[()]:
        return ()

    def forward(self, input: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        first, *others = self.layers
        x, reads = input.tensor_split((self.input_size,), -1)
        output = _tanh(first(x, reads))
        for layer in others:
            output = _tanh(layer(output.to(dtype_and_device(layer)[0])))
        return output, state

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_layers={len(self.layers)}"


class HiddenLayer(nn.Linear):
    """A further feed-forward layer, U(−1/√C, 1/√C)."""

    def __init__(self, hidden_size: int, **factory: Any) -> None:
        shape = (hidden_size, hidden_size)
        what = "the controller's weights [hidden_size, hidden_size]"
        with allocation.room_for("NTMCell", what, shape, factory.get("dtype"), MEND):
            super().__init__(*shape, **factory)

    def reset_parameters(self) -> None:
        bound = self.in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)


class CellController(nn.Module):
    """Adaptor of ``nn.LSTMCell``, ``nn.GRUCell`` and ``nn.RNNCell``.

    The state is ``(h, c)`` for an LSTM cell and ``(h,)`` for the others.
    """

    state_batch_first = True

    def __init__(
        self, cell: nn.RNNCellBase, initial: float | str = "learned", **factory: Any
    ) -> None:
        super().__init__()
        self.cell = cell
        self.hidden_size = cell.hidden_size
        parts = 2 if isinstance(cell, nn.LSTMCell) else 1
        self.start = LearnedVectors(parts, cell.hidden_size, initial, **factory)
        self.state_sizes = (cell.hidden_size,) * parts

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        return self.start(batch_size, *dtype_and_device(self.cell))

    def forward(
        self, input: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        dtype, _ = dtype_and_device(self.cell)
        before = tuple(part.to(dtype) for part in state)
        after = self.cell(input, before if len(before) == 2 else before[0])
        after = after if isinstance(after, tuple) else (after,)
        kept = tuple(new.to(old.dtype) for new, old in zip(after, state, strict=True))
        return after[0], kept


def make_controller(
    controller: str | nn.Module,
    input_size: int,
    read_size: int,
    hidden_size: int,
    num_layers: int,
    initial: float | str,
    **factory: Any,
) -> nn.Module:
    """The controller of a cell: a built-in one by its name, or the user's own, checked.

    ``initial`` says how the state of an LSTM, or of a cell of torch, begins.
    """
    sizes = input_size, read_size, hidden_size, num_layers
    if controller == "lstm":
        return LSTMController(*sizes, initial, **factory)
    if controller == "feedforward":
        return FeedforwardController(*sizes, **factory)
    if not isinstance(controller, nn.Module):
        raise ValueError(
            f"NTMCell: controller must be 'lstm', 'feedforward' or an nn.Module, got {controller!r}"
        )
    if num_layers != 1:
        raise ValueError("NTMCell: num_layers is for the built-in controllers")
    if isinstance(controller, nn.RNNBase):
        name = type(controller).__name__
        raise ValueError(
            f"NTMCell: nn.{name} runs over sequences, a controller over one step; "
            f"give an nn.{name}Cell"
        )
    if not isinstance(controller, nn.RNNCellBase):
        require_protocol(controller)
        return controller
    wanted = (input_size + read_size, hidden_size)
    if (controller.input_size, controller.hidden_size) != wanted:
        raise ValueError(
            f"NTMCell: the controller's cell must have input_size=input_size + R·M={wanted[0]} "
            f"and hidden_size={wanted[1]}, got {controller.input_size} and "
            f"{controller.hidden_size}"
        )
    return CellController(controller, initial, **factory)
