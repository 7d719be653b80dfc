"""``NTMCell``: controller, heads and memory for one time step, or unrolled over many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict, cast

import torch
from torch import Tensor, nn

from ntm_kernels import allocation
from ntm_kernels.backends import Problem, serves_if_requested
from ntm_kernels.checks import autocast_enabled, positive_int
from ntm_kernels.interface import InterfaceLayout
from ntm_kernels.nn import traceable
from ntm_kernels.nn.checks import (
    StateSizes,
    check_backend,
    check_batch_size,
    check_checkpoint_every,
    check_dtype,
    check_input,
    check_lengths,
    check_resets,
    check_state,
)
from ntm_kernels.nn.controllers import (
    PROTOCOL,
    LSTMController,
    layers_apart,
    layers_stacked,
    make_controller,
    project,
)
from ntm_kernels.nn.fused import BUILT_IN, FusedWeights, fused_weights
from ntm_kernels.nn.initial_state import InitialState, StartingPoint
from ntm_kernels.nn.lengths import (
    batch_comes_first,
    blank,
    hold,
    put_back,
    require_unambiguous,
    select,
)
from ntm_kernels.nn.parts import (
    dtype_and_device,
    first_state,
    map_tensors,
    require_linear_weights,
    reset_modules,
)
from ntm_kernels.nn.state import NTMState, batch_of_one, batch_removed
from ntm_kernels.ops.sequence_call import beyond
from ntm_kernels.ops.sizes import Sizes
from ntm_kernels.reference import LayerWeights, SequenceState, Trace, activate, arithmetic_dtype
from ntm_kernels.torch_private import modules_of


class CellOptions(TypedDict, total=False):
    """The keyword arguments of ``NTMCell``."""

    initial_state: InitialState | None
    checkpoint_every: int | None
    backend: str | None
    fused: bool
    device: torch.device | str | None
    dtype: torch.dtype | None


class Unrolled(NamedTuple):
    """Controller outputs ``[T, B, C]``, read vectors ``[T, B, R, M]``, final state and trace.

    ``hidden`` of a built-in controller has the dtype of the state, float32 at least; that of a
    controller of your own has the dtype that it returns.
    """

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
        memory_size: memory locations N; no weight has this size, see the attribute.
        word_size: elements M of one location.
        num_read_heads, num_write_heads: R and W.
        shift_range: largest shift of a head's focus in one step, in rows.
        controller: ``"lstm"``, ``"feedforward"``, an ``nn.LSTMCell``, ``nn.GRUCell`` or
            ``nn.RNNCell`` of input size ``input_size + R·M``, or any module
            ``controller(input [B, input_size + R·M], state) -> (output [B, C], state)``, with an
            optional method ``initial_state(batch_size)``. With lengths or resets, every tensor of
            its state must have the batch first; where ``initial_state`` does not show that, an
            attribute ``state_batch_first = True`` says so.
        num_layers: layers of a built-in controller.
        initial_state: how each part of the state begins.
        checkpoint_every: steps between the memories stored for the backward; ``None``: about √T.
        backend: name of the backend, or ``None`` to choose by call. It must be registered when the
            cell is made, and available only when it is called: a model may be made elsewhere.
        fused: whether a sequence may run as one fused op (below). The attribute ``fused`` can be
            set later too.
        device, dtype: of the parameters. The state is float32 at least, whatever the dtype.

    ``cell(x, state=None) -> (features, state)`` with x ``[B, input_size]`` or ``[input_size]``,
    features ``[h, r]`` ``[B, C + R·M]``, and an ``NTMState``; ``state=None`` starts anew.
    ``cell(x, state=None, sequence=True, lengths=None, resets=None, return_trace=False)`` takes a
    whole sequence ``[T, B, input_size]`` and returns what ``unroll`` returns.

    With a built-in controller a sequence is one fused op. It takes the weights of the controller's
    layers and of ``interface`` without calling these modules. In every other case the cell calls
    the controller and the interface once a step, with one fused op for the memory:

    - with a controller of your own, or ``fused=False``;
    - with several layers or with resets, on a backend that was asked for by name and does not
      support them in a whole sequence;
    - while the controller, one of its layers or the interface has a hook, or torch has a hook for
      all modules. Forward and backward hooks then fire once a step;
    - while one of them is another module than the cell made: a subclass, an adapter, a quantized
      layer, a unit of FSDP2.

    Weight transforms leave a sequence fused and are applied once per call: pruning, the
    ``weight_norm`` and ``spectral_norm`` of ``torch.nn.utils``, and parametrizations. A cell that
    calls its parts applies them once a step; under ``torch.nn.utils.parametrize.cached()``
    parametrizations are computed once there too.

    Raises:
        TypeError: when it is made, an argument of another type, a dtype that no op computes in, or
            a controller that cannot be called with an input and a state. In a call, an x that is
            not a dense tensor, or an x or a state of another dtype than the module's.
        ValueError: when it is made, a size that is too small, an unknown name of a controller, or a
            controller or an initial memory of other sizes. In a call, shapes that do not fit,
            lengths outside of 0 … T, or tensors on another device than the parameters.
        BackendError: ``backend`` is not registered. In a call, it is not available or does not
            support the call.
        RuntimeError: there is no room for a tensor.

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
        fused: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = positive_int("NTMCell", "input_size", input_size)
        self.hidden_size = positive_int("NTMCell", "hidden_size", hidden_size)
        self._memory_size = positive_int("NTMCell", "memory_size", memory_size)
        self.word_size = positive_int("NTMCell", "word_size", word_size)
        self.num_read_heads = positive_int("NTMCell", "num_read_heads", num_read_heads)
        self.num_write_heads = positive_int("NTMCell", "num_write_heads", num_write_heads)
        self.shift_range = positive_int("NTMCell", "shift_range", shift_range, minimum=0)
        self.num_layers = positive_int("NTMCell", "num_layers", num_layers)
        self._checkpoint_every = check_checkpoint_every("NTMCell", checkpoint_every)
        self._backend = check_backend("NTMCell", backend)
        check_dtype("NTMCell", dtype)
        if initial_state is not None and not isinstance(initial_state, InitialState):
            raise TypeError(
                "NTMCell: initial_state must be an InitialState or None, "
                f"got {type(initial_state).__name__}"
            )
        self.fused = fused
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        start = InitialState() if initial_state is None else initial_state
        sizes = self.input_size, self.read_size, self.hidden_size, self.num_layers
        self.controller = make_controller(controller, *sizes, start.controller, **factory)
        self._batch_first: tuple[nn.Module | None, bool] = (None, False)
        with allocation.room_for(
            "NTMCell",
            "the interface's weights [P, hidden_size]",
            (self.layout.size, self.hidden_size),
            dtype,
            "make hidden_size, word_size, shift_range or the number of heads smaller",
        ):
            self.interface = nn.Linear(self.hidden_size, self.layout.size, **factory)
        self.start = StartingPoint(
            start,
            self._memory_size,
            self.word_size,
            self.num_read_heads,
            self.layout.num_heads,
            **factory,
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
        """Draw every parameter anew: after the same ``torch.manual_seed``, those of construction.

        A controller of your own is drawn by its own ``reset_parameters``, if it has one. Raises
        ``TypeError``, before anything is drawn, where ``interface`` was replaced by a module
        without a weight that can be drawn, such as a quantized layer.
        """
        require_linear_weights("NTMCell", "interface", self.interface)
        reset_modules(module for module in self.modules() if module is not self)
        self._reset_interface()

    def _reset_interface(self) -> None:
        weight, bias = require_linear_weights("NTMCell", "interface", self.interface)
        nn.init.xavier_uniform_(weight, gain=1.4)
        if bias is not None:
            nn.init.normal_(bias, std=0.01)

    @property
    def memory_size(self) -> int:
        """Memory locations N of a state that starts anew.

        No weight has this size: set it, and the trained cell goes on with a larger or a smaller
        memory. Raises ``ValueError`` where a learned or given part of the initial state has it.
        """
        return self._memory_size

    @memory_size.setter
    def memory_size(self, memory_size: int) -> None:
        self._memory_size = self.allowed_memory_size("NTMCell.memory_size", memory_size)

    @property
    def backend(self) -> str | None:
        """Name of the backend that calls use, ``None`` to choose by call; it can be set."""
        return self._backend

    @backend.setter
    def backend(self, backend: str | None) -> None:
        self._backend = check_backend("NTMCell.backend", backend)

    @property
    def checkpoint_every(self) -> int | None:
        """Steps between the memories stored for the backward, ``None`` for about √T; it can be
        set."""
        return self._checkpoint_every

    @checkpoint_every.setter
    def checkpoint_every(self, checkpoint_every: int | None) -> None:
        self._checkpoint_every = check_checkpoint_every(
            "NTMCell.checkpoint_every", checkpoint_every
        )

    def allowed_memory_size(self, owner: str, memory_size: int) -> int:
        """``memory_size`` as an ``int``; raises where the initial state has another one."""
        memory_size = positive_int(owner, "memory_size", memory_size)
        fixed = self.start.fixed_by
        if fixed is not None and memory_size != self.memory_size:
            raise ValueError(
                f"{owner}: memory_size must be {self.memory_size}, since {fixed}, got "
                f"{memory_size}; a model whose InitialState has constant memory and one-hot "
                "weightings takes any"
            )
        return memory_size

    def initial_state(self, batch_size: int, memory_size: int | None = None) -> NTMState:
        """The state before the first step of ``batch_size`` sequences, as a copy.

        The copy shares no memory with the parameters, and no two of its sequences share any: it may
        be written to. Gradients go through it to the learned parts of the initial state.

        ``memory_size``: its memory locations, ``None``: those of the cell.
        """
        owner = "NTMCell.initial_state"
        batch_size = check_batch_size(owner, batch_size)
        size = self.memory_size
        if memory_size is not None:
            size = self.allowed_memory_size(owner, memory_size)
        state = self._starting_state(batch_size, size)
        what, mend = "state.memory [B, N, M]", "make the batch, memory_size or word_size smaller"
        with allocation.room_for(owner, what, state.memory.shape, state.memory.dtype, mend):
            return state.clone()

    def _starting_state(self, batch_size: int, memory_size: int) -> NTMState:
        """The state that calls without one start from. Its parts may be views of the parameters,
        one for all sequences: they are read and never written to."""
        memory, weightings, reads = self.start(batch_size, memory_size, *self._dtype_and_device())
        return NTMState(memory, weightings, reads, first_state(self.controller, batch_size))

    def _dtype_and_device(self) -> tuple[torch.dtype, torch.device]:
        """Dtype and device of the parameters."""
        # Read directly: nn.Module.__getattr__ would take most of the time.
        parts = cast(dict[str, nn.Module], modules_of(self))
        return dtype_and_device(parts["interface"], parts["controller"], parts["start"])

    def _controller_and_interface(self) -> tuple[nn.Module, nn.Module]:
        parts = cast(dict[str, nn.Module], modules_of(self))
        return parts["controller"], parts["interface"]

    def forward(
        self,
        x: Tensor,
        state: NTMState | None = None,
        *,
        sequence: bool = False,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        return_trace: bool = False,
    ) -> tuple[Tensor, NTMState] | Unrolled:
        if sequence:
            self.check_input("NTMCell", "x", x, ("TB",))
            return self._unroll(x, state, lengths, resets, return_trace)
        if lengths is not None or resets is not None or return_trace:
            raise ValueError(
                "NTMCell: lengths, resets and return_trace are for whole sequences; give "
                f"sequence=True and x as [T, B, {self.input_size}]"
            )
        self.check_input("NTMCell", "x", x, ("B", ""))
        batched = x.dim() == 2
        if not batched:
            x = x.unsqueeze(0)
            if state is not None:
                state = batch_of_one(self.check_state("NTMCell", state, None))
        hidden, reads, state, _ = self._unroll(x.unsqueeze(0), state)
        features = self.features(hidden, reads).squeeze(0)
        if batched:
            return features, state
        return features.squeeze(0), batch_removed("NTMCell", state)

    def features(self, hidden: Tensor, read_vectors: Tensor) -> Tensor:
        """``[h, r] [..., C + R·M]`` in the dtype of the parameters."""
        dtype, _ = self._dtype_and_device()
        return torch.cat((hidden.to(dtype), read_vectors.flatten(-2).to(dtype)), -1)

    def unroll(
        self,
        x: Tensor,
        state: NTMState | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        return_trace: bool = False,
        resets: Tensor | None = None,
    ) -> Unrolled:
        """Calls the cell with ``sequence=True``: all steps of x ``[T, B, input_size]``.

        ``lengths [B]`` are integers, in a tensor or a list; ``resets [T, B]`` is bool, on the
        device of x.
        """
        return self(
            x, state, sequence=True, lengths=lengths, resets=resets, return_trace=return_trace
        )

    def _unroll(
        self,
        x: Tensor,
        state: NTMState | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        return_trace: bool = False,
    ) -> Unrolled:
        time, batch, _ = x.shape
        if state is None:
            state = self._starting_state(batch, self._memory_size)
        else:
            state = self.check_state("NTMCell", state, batch)
        if lengths is not None:
            lengths = check_lengths("NTMCell", lengths, batch, time, x.device)
        if resets is not None:
            check_resets("NTMCell", resets, (time, batch), x.device)
        weights = fused_weights(*self._controller_and_interface()) if self.fused else None
        if weights is None or not self._is_served(len(weights.layers), state, resets):
            return self._unroll_steps(x, state, lengths, resets, return_trace)
        return self._unroll_fused(weights, x, state, lengths, resets, return_trace)

    def _is_served(self, num_layers: int, state: NTMState, resets: Tensor | None) -> bool:
        """Whether one fused op may run so many layers, and resets where they are given.

        A backend that was asked for by name may be unable to. By itself the choice falls on one
        that can.
        """
        if num_layers == 1 and resets is None:
            return True
        memory = state.memory
        sizes = Sizes.of(
            memory,
            self.num_read_heads,
            num_write_heads=self.num_write_heads,
            num_taps=2 * self.shift_range + 1,
            hidden_size=self.hidden_size,
            num_layers=num_layers,
            is_lstm=isinstance(self.controller, LSTMController),
            has_resets=resets is not None,
        )
        device = memory.device
        problem = Problem("sequence", device.type, memory.dtype, sizes, device.index or 0)
        return serves_if_requested(problem, self._backend)

    def _unroll_fused(
        self,
        weights: FusedWeights,
        x: Tensor,
        state: NTMState,
        lengths: Tensor | None,
        resets: Tensor | None,
        return_trace: bool,
    ) -> Unrolled:
        first, *upper = weights.layers
        if autocast_enabled(x.device.type):
            x = project(blank(x, lengths), first.input_weight, first.bias)
            first = LayerWeights(first.recurrent_weight)
        result = traceable.sequence(
            x,
            [first, *upper],
            weights.interface_weight,
            weights.interface_bias,
            SequenceState(
                state.memory,
                state.weightings,
                state.read_vectors,
                *layers_stacked(state.controller),
            ),
            num_read_heads=self.num_read_heads,
            num_write_heads=self.num_write_heads,
            shift_range=self.shift_range,
            lengths=lengths,
            resets=resets,
            checkpoint_every=self._checkpoint_every,
            return_trace=return_trace,
            backend=self._backend,
        )
        memory, weightings, reads, hidden, cell = result.state
        final = NTMState(memory, weightings, reads, layers_apart(hidden, cell))
        return Unrolled(result.hidden, result.read_vectors, final, result.trace)

    def _unroll_steps(
        self,
        x: Tensor,
        state: NTMState,
        lengths: Tensor | None,
        resets: Tensor | None,
        return_trace: bool,
    ) -> Unrolled:
        if torch.compiler.is_exporting() and isinstance(x.shape[0], torch.SymInt):
            raise ValueError(
                "NTMCell: this model calls its controller at every step (a controller of your own, "
                "a hook on a part, fused=False), so torch.export takes one number of steps alone, "
                "got a dynamic one; leave the steps of x out of dynamic_shapes"
            )
        hiddens, reads, traced = [], [], []
        held = lengths is not None or resets is not None
        certain = not held or self._batch_comes_first(x.device)
        start = state
        for time, now in enumerate(blank(x, lengths).unbind(0)):
            active = None if lengths is None else lengths > time
            if resets is not None:
                reset = resets[time] if active is None else resets[time] & active
                state = put_back(self.controller, reset, start, state, certain)
            hidden, interface, new = self._step(now, state)
            read_vectors = new.read_vectors
            if active is not None:
                if not certain:
                    require_unambiguous(self.controller, new.controller, x.shape[1])
                hidden = select(active, hidden, torch.zeros_like(hidden))
                read_vectors = select(active, read_vectors, torch.zeros_like(read_vectors))
                new = hold(active, new, state)
            state = new
            hiddens.append(hidden)
            reads.append(read_vectors)
            if return_trace:
                traced.append((state.weightings.detach(), interface.detach()))
        trace = self._trace(traced, state, lengths) if return_trace else None
        if hiddens:
            return Unrolled(torch.stack(hiddens), torch.stack(reads), state, trace)
        hidden = x.new_empty(0, x.shape[1], self.hidden_size, dtype=self._hidden_dtype())
        read_vectors = state.read_vectors.new_empty(0, *state.read_vectors.shape)
        return Unrolled(hidden, read_vectors, map_tensors(torch.clone, state), trace)

    def _hidden_dtype(self) -> torch.dtype:
        """Dtype of the controller's output, as far as it is known before the first call.

        A built-in controller computes in the arithmetic dtype. One of the user's own is taken to
        return the dtype of its parameters.
        """
        dtype, _ = dtype_and_device(self.controller, self.interface)
        return arithmetic_dtype(dtype) if isinstance(self.controller, BUILT_IN) else dtype

    def check_input(self, owner: str, name: str, x: Any, forms: Sequence[Sequence[str]]) -> None:
        """``x`` must have one of the forms, and then ``input_size``; ``owner`` is the module that
        was called with it."""
        check_input(owner, name, x, forms, self.input_size, *self._dtype_and_device())

    def check_state(self, owner: str, state: NTMState, batch: int | None) -> NTMState:
        """The state, whose parts must be of the cell's sizes, after the batch if there is one.

        It may have another number of locations than the cell, where no learned or given part of
        the initial state has that number.
        """
        sizes = StateSizes(
            self._memory_size,
            self.word_size,
            self.num_read_heads,
            self.num_read_heads + self.num_write_heads,
            getattr(modules_of(self)["controller"], "state_sizes", None),
            *self._dtype_and_device(),
        )
        return check_state(owner, state, sizes, batch, lambda: self.start.fixed_by)

    def _batch_comes_first(self, device: torch.device) -> bool:
        """``batch_comes_first`` of the controller, found out once."""
        known, certain = self._batch_first
        if known is not self.controller:
            certain = batch_comes_first(self.controller, device)
            if not torch.compiler.is_compiling():  # A change would compile the next call anew.
                self._batch_first = (self.controller, certain)
        return certain

    def _step(self, x: Tensor, state: NTMState) -> tuple[Tensor, Tensor, NTMState]:
        """Controller output, raw interface vector and state after one step."""
        reads = state.read_vectors.flatten(1).to(x.dtype)
        result = self.controller(torch.cat((x, reads), -1), state.controller)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor)):
            raise TypeError(
                f"NTMCell: a controller is called as {PROTOCOL}; {type(self.controller).__name__} "
                f"must return (output, state), the output a tensor, got {type(result).__name__}"
            )
        hidden, controller_state = result
        if hidden.shape != (x.shape[0], self.hidden_size):
            raise ValueError(
                f"NTMCell: the controller's output must be [B={x.shape[0]}, "
                f"hidden_size={self.hidden_size}], got {list(hidden.shape)}"
            )
        dtype, _ = dtype_and_device(self.interface)
        interface = self.interface(hidden.to(dtype))
        read_vectors, memory, weightings = traceable.step(
            state.memory,
            interface,
            state.weightings,
            num_read_heads=self.num_read_heads,
            num_write_heads=self.num_write_heads,
            shift_range=self.shift_range,
            backend=self._backend,
        )
        return hidden, interface, NTMState(memory, weightings, read_vectors, controller_state)

    def _trace(
        self, traced: list[tuple[Tensor, Tensor]], state: NTMState, lengths: Tensor | None
    ) -> Trace:
        zeros = state.memory.new_zeros(state.memory.shape[0], self.layout.size)
        # Without a step, one is made up and cut off again: an empty list cannot be stacked.
        steps = traced or [(state.weightings.detach(), zeros)]
        weightings = torch.stack([weightings for weightings, _ in steps])
        interfaces = torch.stack([interface.to(zeros.dtype) for _, interface in steps])
        heads = activate(interfaces, self.layout)
        trace = Trace(*(part[: len(traced)] for part in (weightings, *heads)))
        if lengths is None:
            return trace
        return Trace(
            *(part.masked_fill(beyond(lengths, len(traced), part.dim()), 0) for part in trace)
        )

    def extra_repr(self) -> str:
        text = (
            f"{self.input_size}, {self.hidden_size}, memory_size={self.memory_size}, "
            f"word_size={self.word_size}, num_read_heads={self.num_read_heads}, "
            f"num_write_heads={self.num_write_heads}, shift_range={self.shift_range}"
        )
        text += "" if self.backend is None else f", backend={self.backend!r}"
        return text if self.fused else text + ", fused=False"
