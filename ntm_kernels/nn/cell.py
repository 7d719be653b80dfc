"""``NTMCell``: controller, heads and memory for one time step, or unrolled over many."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ntm_kernels import functional
from ntm_kernels.checks import FLOATS, Arguments, lengths_within, positive_int
from ntm_kernels.interface import InterfaceLayout
from ntm_kernels.nn.controllers import CellController, FeedforwardController, LSTMController
from ntm_kernels.nn.state import (
    InitialState,
    NTMState,
    StartingPoint,
    batch_of_one,
    map_tensors,
    require_state,
)
from ntm_kernels.ops.sequence_call import beyond
from ntm_kernels.reference import Trace, activate


class Unrolled(NamedTuple):
    """Controller outputs ``[T, B, C]``, read vectors ``[T, B, R, M]``, final state and trace."""

    hidden: Tensor
    read_vectors: Tensor
    state: NTMState
    trace: Trace | None


class NTMCell(nn.Module):
    """A Neural Turing Machine's cell, used like ``torch.nn.LSTMCell``.

    The controller sees the input and the last read vectors, its output drives the heads through
    the interface vector (``ntm_kernels.functional.step``): all heads address the memory, the read
    heads read it, then the write heads write it. Graves et al. 2014, arXiv 1410.5401.

    Args:
        input_size: size of the input x.
        hidden_size: width C of the controller's output.
        memory_size: memory locations N.
        word_size: elements M of one location.
        num_read_heads, num_write_heads: R and W.
        shift_range: largest shift of a head's focus in one step, in rows.
        controller: ``"lstm"``, ``"feedforward"``, an ``nn.LSTMCell``, ``nn.GRUCell`` or
            ``nn.RNNCell`` of input size ``input_size + R·M``, or any module
            ``controller(input [B, input_size + R·M], state) -> (output [B, C], state)``, with an
            optional method ``initial_state(batch_size)``.
        num_layers: layers of a built-in controller. One layer runs as a single fused op per
            sequence; several, or a controller of your own, as one fused op per step.
        initial_state: how each part of the state begins.
        checkpoint_every: steps between the memories stored for the backward; ``None``: about √T.
        backend: name of the backend, or ``None`` to choose by call.
        device, dtype: of the parameters. The state is float32 at least, whatever the dtype.

    ``cell(x, state=None) -> (features, state)`` with x ``[B, input_size]`` or ``[input_size]``,
    features ``[h, r]`` ``[B, C + R·M]``, and an ``NTMState``; ``state=None`` starts anew.

    >>> import torch
    >>> cell = NTMCell(input_size=8, hidden_size=32)
    >>> features, state = cell(torch.randn(4, 8))
    >>> features, state = cell(torch.randn(4, 8), state)
    >>> features.shape, state.memory.shape
    (torch.Size([4, 52]), torch.Size([4, 128, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        memory_size: int = 128,
        word_size: int = 20,
        num_read_heads: int = 1,
        num_write_heads: int = 1,
        shift_range: int = 1,
        controller: str | nn.Module = "lstm",
        num_layers: int = 1,
        *,
        initial_state: InitialState | None = None,
        checkpoint_every: int | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "input_size": input_size,
            "hidden_size": hidden_size,
            "memory_size": memory_size,
            "word_size": word_size,
            "num_read_heads": num_read_heads,
            "num_write_heads": num_write_heads,
            "num_layers": num_layers,
        }
        for name, value in sizes.items():
            positive_int("NTMCell", name, value)
        positive_int("NTMCell", "shift_range", shift_range, minimum=0)
        if checkpoint_every is not None:
            positive_int("NTMCell", "checkpoint_every", checkpoint_every)
        if initial_state is not None and not isinstance(initial_state, InitialState):
            raise TypeError(
                "NTMCell: initial_state must be an InitialState or None, "
                f"got {type(initial_state).__name__}"
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.memory_size = memory_size
        self.word_size = word_size
        self.num_read_heads = num_read_heads
        self.num_write_heads = num_write_heads
        self.shift_range = shift_range
        self.checkpoint_every = checkpoint_every
        self.backend = backend
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        start = InitialState() if initial_state is None else initial_state
        self.controller = self._make_controller(controller, num_layers, start, factory)
        self.fused = (
            isinstance(self.controller, (LSTMController, FeedforwardController)) and num_layers == 1
        )
        self.interface = nn.Linear(hidden_size, self.layout.size, **factory)
        self.start = StartingPoint(
            start, memory_size, word_size, num_read_heads, self.layout.num_heads, **factory
        )
        self._reset_interface()

    @property
    def layout(self) -> InterfaceLayout:
        """How the interface vector is cut into the heads' parameters."""
        return InterfaceLayout(
            self.word_size, self.num_read_heads, self.num_write_heads, self.shift_range
        )

    @property
    def read_size(self) -> int:
        """Elements of all read vectors together, R·M."""
        return self.num_read_heads * self.word_size

    @property
    def feature_size(self) -> int:
        """Elements of the features ``[h, r]``, C + R·M."""
        return self.hidden_size + self.read_size

    def reset_parameters(self) -> None:
        """Draw every parameter anew, as at construction."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()
        self._reset_interface()

    def _reset_interface(self) -> None:
        nn.init.xavier_uniform_(self.interface.weight, gain=1.4)
        nn.init.normal_(self.interface.bias, std=0.01)

    def initial_state(self, batch_size: int) -> NTMState:
        """The state before the first step of ``batch_size`` sequences."""
        memory, weightings, reads = self.start(batch_size, self.interface.weight)
        hook = getattr(self.controller, "initial_state", None)
        return NTMState(memory, weightings, reads, None if hook is None else hook(batch_size))

    def forward(self, x: Tensor, state: NTMState | None = None) -> tuple[Tensor, NTMState]:
        if not isinstance(x, Tensor):
            raise TypeError(f"NTMCell: x must be a tensor, got {type(x).__name__}")
        if x.dim() not in (1, 2):
            raise ValueError(
                f"NTMCell: x must be [B, {self.input_size}] or [{self.input_size}], "
                f"got {list(x.shape)}"
            )
        batched = x.dim() == 2
        if not batched:
            x = x.unsqueeze(0)
            state = None if state is None else batch_of_one("NTMCell", state)
        hidden, reads, state, _ = self.unroll(x.unsqueeze(0), state)
        features = self.features(hidden, reads).squeeze(0)
        if batched:
            return features, state
        return features.squeeze(0), map_tensors(lambda part: part.squeeze(0), state)

    def features(self, hidden: Tensor, read_vectors: Tensor) -> Tensor:
        """``[h, r] [..., C + R·M]`` in the dtype of the parameters."""
        dtype = self.interface.weight.dtype
        return torch.cat((hidden.to(dtype), read_vectors.flatten(-2).to(dtype)), -1)

    def unroll(
        self,
        x: Tensor,
        state: NTMState | None = None,
        lengths: Tensor | None = None,
        return_trace: bool = False,
    ) -> Unrolled:
        """All steps of x ``[T, B, input_size]``; ``lengths [B]`` int64 on the device of x."""
        self._check_input(x)
        batch = x.shape[1]
        state = self.initial_state(batch) if state is None else state
        self._check_state(state, batch)
        if lengths is not None:
            given = Arguments(type(self).__name__)
            given.fix("B", batch, "x")
            given.lengths(lengths, x.device)
            lengths_within(type(self).__name__, lengths, x.shape[0])
        if self.fused:
            return self._unroll_fused(x, state, lengths, return_trace)
        return self._unroll_steps(x, state, lengths, return_trace)

    def _unroll_fused(
        self, x: Tensor, state: NTMState, lengths: Tensor | None, return_trace: bool
    ) -> Unrolled:
        (layer,) = self.controller.layers  # type: ignore[misc]
        hidden, cell = state.controller if state.controller else (None, None)
        projection: dict[str, Tensor] = {}
        if torch.is_autocast_enabled(x.device.type):
            x = layer.project(_blank(x, lengths))
        else:
            projection = {"input_weight": layer.input_weight, "input_bias": layer.bias}
        result = functional.sequence(
            x,
            layer.recurrent_weight,
            self.interface.weight,
            self.interface.bias,
            state.memory,
            state.weightings,
            state.read_vectors,
            hidden,
            cell,
            num_read_heads=self.num_read_heads,
            num_write_heads=self.num_write_heads,
            shift_range=self.shift_range,
            lengths=lengths,
            **projection,
            checkpoint_every=self.checkpoint_every,
            return_trace=return_trace,
            backend=self.backend,
        )
        memory, weightings, reads, hidden, cell = result.state
        controller = () if hidden is None else (hidden, cell)
        final = NTMState(memory, weightings, reads, controller)
        return Unrolled(result.hidden, result.read_vectors, final, result.trace)

    def _unroll_steps(
        self, x: Tensor, state: NTMState, lengths: Tensor | None, return_trace: bool
    ) -> Unrolled:
        hiddens, reads, traced = [], [], []
        for time, now in enumerate(_blank(x, lengths).unbind(0)):
            active = None if lengths is None else lengths > time
            hidden, interface, new = self._step(now, state)
            read_vectors = new.read_vectors
            if active is not None:
                hidden = _select(active, hidden, torch.zeros_like(hidden))
                read_vectors = _select(active, read_vectors, torch.zeros_like(read_vectors))
                new = _hold(active, new, state)
            state = new
            hiddens.append(hidden)
            reads.append(read_vectors)
            if return_trace:
                traced.append((state.weightings.detach(), interface.detach()))
        batch = x.shape[1]
        if not hiddens:
            hiddens = [x.new_zeros(batch, self.hidden_size)]
            reads = [torch.zeros_like(state.read_vectors)]
        time = x.shape[0]
        trace = self._trace(traced, state, lengths) if return_trace else None
        return Unrolled(torch.stack(hiddens)[:time], torch.stack(reads)[:time], state, trace)

    def _step(self, x: Tensor, state: NTMState) -> tuple[Tensor, Tensor, NTMState]:
        """Controller output, raw interface vector and state after one step."""
        reads = state.read_vectors.flatten(1).to(x.dtype)
        result = self.controller(torch.cat((x, reads), -1), state.controller)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor)):
            raise TypeError(
                "NTMCell: the controller must return (output, state), the output a tensor, "
                f"got {type(result).__name__}"
            )
        hidden, controller_state = result
        if hidden.shape != (x.shape[0], self.hidden_size):
            raise ValueError(
                f"NTMCell: the controller's output must be [B={x.shape[0]}, "
                f"hidden_size={self.hidden_size}], got {list(hidden.shape)}"
            )
        interface = self.interface(hidden.to(self.interface.weight.dtype))
        read_vectors, memory, weightings = functional.step(
            state.memory,
            interface,
            state.weightings,
            num_read_heads=self.num_read_heads,
            num_write_heads=self.num_write_heads,
            shift_range=self.shift_range,
            backend=self.backend,
        )
        return hidden, interface, NTMState(memory, weightings, read_vectors, controller_state)

    def _trace(
        self, traced: list[tuple[Tensor, Tensor]], state: NTMState, lengths: Tensor | None
    ) -> Trace:
        weightings = [step[0] for step in traced] or [state.weightings.detach()]
        batch = state.weightings.shape[0]
        blank = state.memory.new_zeros(batch, self.layout.size)
        interfaces = [step[1].to(blank.dtype) for step in traced] or [blank]
        heads = activate(torch.stack(interfaces), self.layout)
        trace = Trace(*(part[: len(traced)] for part in (torch.stack(weightings), *heads)))
        if lengths is None:
            return trace
        return Trace(
            *(part.masked_fill(beyond(lengths, len(traced), part.dim()), 0) for part in trace)
        )

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"{type(self).__name__}: x must be a tensor, got {type(x).__name__}")
        if x.dim() != 3 or x.shape[-1] != self.input_size:
            raise ValueError(
                f"{type(self).__name__}: x must be [T, B, input_size={self.input_size}], "
                f"got {list(x.shape)}"
            )
        dtype, device = self.interface.weight.dtype, self.interface.weight.device
        if x.dtype != dtype and not (
            x.dtype in FLOATS and torch.is_autocast_enabled(x.device.type)
        ):
            raise TypeError(
                f"{type(self).__name__}: x is {x.dtype} and the parameters are {dtype}; "
                "convert one, or use torch.autocast between floating-point dtypes"
            )
        if x.device != device:
            raise ValueError(
                f"{type(self).__name__}: x is on {x.device} and the parameters on {device}"
            )

    def _check_state(self, state: NTMState, batch: int) -> None:
        require_state(type(self).__name__, state)
        wanted = {
            "memory": (batch, self.memory_size, self.word_size),
            "weightings": (batch, self.layout.num_heads, self.memory_size),
            "read_vectors": (batch, self.num_read_heads, self.word_size),
        }
        for name, part in zip(wanted, state[:3], strict=True):
            if not isinstance(part, Tensor) or part.shape != wanted[name]:
                raise ValueError(
                    f"{type(self).__name__}: state.{name} must be {list(wanted[name])}, "
                    f"got {shapes_of(part)}"
                )
        sizes = getattr(self.controller, "state_sizes", None)
        if sizes is not None and not _fits(state.controller, sizes, batch):
            raise ValueError(
                f"{type(self).__name__}: state.controller must be {_with_batch(sizes, batch)}, "
                f"got {shapes_of(state.controller)}"
            )

    def _make_controller(
        self,
        controller: str | nn.Module,
        num_layers: int,
        start: InitialState,
        factory: dict[str, Any],
    ) -> nn.Module:
        sizes = self.input_size, self.read_size, self.hidden_size, num_layers
        if controller == "lstm":
            return LSTMController(*sizes, start.controller, **factory)
        if controller == "feedforward":
            return FeedforwardController(*sizes, **factory)
        if not isinstance(controller, nn.Module):
            raise ValueError(
                "NTMCell: controller must be 'lstm', 'feedforward' or an nn.Module, "
                f"got {controller!r}"
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
            return controller
        wanted = (self.input_size + self.read_size, self.hidden_size)
        if (controller.input_size, controller.hidden_size) != wanted:
            raise ValueError(
                f"NTMCell: the controller's cell must have input_size=input_size + R·M={wanted[0]} "
                f"and hidden_size={wanted[1]}, got {controller.input_size} and "
                f"{controller.hidden_size}"
            )
        return CellController(controller, start.controller, **factory)

    def extra_repr(self) -> str:
        text = (
            f"{self.input_size}, {self.hidden_size}, memory_size={self.memory_size}, "
            f"word_size={self.word_size}, num_read_heads={self.num_read_heads}, "
            f"num_write_heads={self.num_write_heads}, shift_range={self.shift_range}"
        )
        return text + ("" if self.backend is None else f", backend={self.backend!r}")


def _blank(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Zeros in the padding of x: 0 · NaN in a weight gradient would be NaN."""
    return x if lengths is None else x.masked_fill(beyond(lengths, x.shape[0], x.dim()), 0)


def shapes_of(nest: Any) -> Any:
    """The nest with the shapes of its tensors, and of what is no tensor the type."""
    if isinstance(nest, (tuple, list)):
        return tuple(shapes_of(part) for part in nest)
    return list(nest.shape) if isinstance(nest, Tensor) else type(nest).__name__


def _fits(nest: Any, sizes: Any, batch: int) -> bool:
    """Whether the nest has a tensor ``[batch, size]`` for every one of ``sizes``."""
    if isinstance(sizes, int):
        return isinstance(nest, Tensor) and nest.shape == (batch, sizes)
    return (
        isinstance(nest, (tuple, list))
        and len(nest) == len(sizes)
        and all(_fits(part, size, batch) for part, size in zip(nest, sizes, strict=True))
    )


def _with_batch(sizes: Any, batch: int) -> Any:
    if isinstance(sizes, int):
        return [batch, sizes]
    return tuple(_with_batch(size, batch) for size in sizes)


def _select(active: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Per sequence ``new`` where it is active, else ``old``, in the dtype of ``old``."""
    if new.dim() == 0 or len(new) != len(active):
        raise ValueError(
            f"NTMCell: with lengths, a controller's state must have the batch {len(active)} first, "
            f"got {list(new.shape)}"
        )
    return torch.where(active.view(-1, *[1] * (new.dim() - 1)), new.to(old.dtype), old)


def _hold(active: Tensor, new: NTMState, old: NTMState) -> NTMState:
    """The new state, with the old one kept for the sequences that are over."""
    if old.controller is None:
        # The first step of a controller without initial_state: nothing to hold but zeros.
        zeros = map_tensors(torch.zeros_like, new.controller)
        old = old._replace(controller=zeros)
    return map_tensors(lambda after, before: _select(active, after, before), new, old)
