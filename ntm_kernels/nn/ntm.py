"""``NTM``: a whole Neural Turing Machine over sequences, used like ``torch.nn.LSTM``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ntm_kernels import allocation
from ntm_kernels.checks import positive_int
from ntm_kernels.nn.cell import CellOptions, NTMCell
from ntm_kernels.nn.checks import (
    check_backend,
    check_batch_size,
    check_checkpoint_every,
    check_dtype,
    check_lengths,
    check_resets,
)
from ntm_kernels.nn.parts import dtype_and_device, require_linear_weights, reset_modules
from ntm_kernels.nn.state import NTMState, batch_of_one, batch_removed
from ntm_kernels.ops.sequence_call import beyond
from ntm_kernels.reference import Trace

if TYPE_CHECKING:
    from typing_extensions import Unpack


class NTM(nn.Module):
    """A Neural Turing Machine over sequences, with a linear output layer.

    Args:
        input_size: size of the input at one step.
        output_size: size of the output at one step; ``None`` gives the features ``[h, r]``.
        hidden_size, memory_size, word_size, num_read_heads, num_write_heads: as in ``NTMCell``.
        shift_range, controller, num_layers, initial_state, checkpoint_every, backend, fused: as in
            ``NTMCell``, which also says when hooks on its parts fire; those on ``model.cell`` fire
            once per call.
        output_from: what the output layer sees, ``"features"`` ``[h, r]`` or ``"read_vectors"``
            alone. With the latter the answer has to go through the memory.
        batch_first: input and output are ``[B, T, …]`` instead of ``[T, B, …]``.
        device, dtype: of the parameters.

    ``input_size``, ``output_size``, ``hidden_size`` and ``num_layers`` are attributes, as of
    ``nn.LSTM``.

    ``model(x, state=None, lengths=None, return_trace=False, resets=None)`` returns
    ``(output, state)``, with ``return_trace`` ``(output, state, trace)``:

    - x ``[T, B, input_size]``, ``[B, T, input_size]`` with ``batch_first``, unbatched
      ``[T, input_size]``, or a ``PackedSequence`` (the output is then one too).
    - state: an ``NTMState`` to go on from, of any number of memory locations where no learned or
      given part of the initial state fixes that number (``memory_size``). ``state.detach()`` cuts
      the graph between calls. The learned initial state then has no gradient:
      ``DistributedDataParallel`` needs ``find_unused_parameters=True``.
    - lengths: steps of each sequence, ``[B]`` integers, a tensor, an array or a list (under
      ``torch.compile`` a tensor: lists are compiled anew for their values). Outputs beyond are 0,
      the final state is the one at the length, and padding has no influence.
    - resets: bool, a value for each step of each sequence as in x, ``[T, B]``, ``[B, T]`` or
      ``[T]``. Where true, that sequence has the state that the call started with again before the
      step: short sequences packed into one row, or episodes that end inside a rollout. If you carry
      a state from call to call, a reset returns to the carried state, not to a new one.
    - output ``[T, B, output_size]``, linear, without activation.
    - trace: what the heads did, always time-major (``Trace``), not differentiable.

    ``torch.jit.trace`` gives a module for any batch and any time, for the traced time alone where
    the cell calls its parts at every step (``NTMCell``).

    Raises:
        TypeError, ValueError, BackendError, RuntimeError: as ``NTMCell``.
        TypeError: in a call, lengths that are not integers, or resets that are not bool.
        ValueError: when it is made, an unknown ``output_from``, or one without an output layer. In
            a call, lengths with an unbatched x or a ``PackedSequence``, or resets with a
            ``PackedSequence``.

    >>> import torch
    >>> model = NTM(input_size=8, output_size=8, hidden_size=32, batch_first=True)
    >>> output, state = model(torch.randn(4, 10, 8), lengths=[10, 7, 3, 1])
    >>> output.shape
    torch.Size([4, 10, 8])
    >>> output, state = model(torch.randn(4, 10, 8), state.detach())
    """

    def __init__(
        self,
        input_size: int,
        output_size: int | None,
        hidden_size: int,
        memory_size: int = 128,
        word_size: int = 20,
        num_read_heads: int = 1,
        num_write_heads: int = 1,
        shift_range: int = 1,
        controller: str | nn.Module = "lstm",
        num_layers: int = 1,
        *,
        output_from: Literal["features", "read_vectors"] = "features",
        batch_first: bool = False,
        **options: Unpack[CellOptions],
    ) -> None:
        super().__init__()
        if output_from not in ("features", "read_vectors"):
            raise ValueError(
                f"NTM: output_from must be 'features' or 'read_vectors', got {output_from!r}"
            )
        if output_size is not None:
            output_size = positive_int("NTM", "output_size", output_size)
        device, dtype = options.get("device"), options.get("dtype")
        check_dtype("NTM", dtype)
        if output_size is None and output_from != "features":
            raise ValueError("NTM: without output_size there is no output layer for output_from")
        self.batch_first = batch_first
        self.output_from = output_from
        self.cell = NTMCell(
            input_size,
            hidden_size,
            memory_size,
            word_size,
            num_read_heads,
            num_write_heads,
            shift_range,
            controller,
            num_layers,
            **options,
        )
        self.input_size = self.cell.input_size
        self.output_size = output_size
        self.hidden_size = self.cell.hidden_size
        self.num_layers = self.cell.num_layers
        self.output: nn.Linear | None = None
        if output_size is not None:
            seen = self.cell.feature_size if output_from == "features" else self.cell.read_size
            shape = (output_size, seen)
            what = f"the output layer's weights [output_size, {output_from}]"
            with allocation.room_for("NTM", what, shape, dtype, "make output_size smaller"):
                self.output = nn.Linear(seen, output_size, device=device, dtype=dtype)
            self._reset_output()

    @property
    def fused(self) -> bool:
        """Whether a sequence may run as one fused op; ``cell.fused``, which it sets too."""
        return self.cell.fused

    @fused.setter
    def fused(self, fused: bool) -> None:
        self.cell.fused = fused

    @property
    def backend(self) -> str | None:
        """Name of the backend that calls use, ``None`` to choose by call; ``cell.backend``, which
        it sets too."""
        return self.cell.backend

    @backend.setter
    def backend(self, backend: str | None) -> None:
        self.cell.backend = check_backend("NTM.backend", backend)

    @property
    def checkpoint_every(self) -> int | None:
        """Steps between the memories stored for the backward, ``None`` for about √T;
        ``cell.checkpoint_every``, which it sets too."""
        return self.cell.checkpoint_every

    @checkpoint_every.setter
    def checkpoint_every(self, checkpoint_every: int | None) -> None:
        checked = check_checkpoint_every("NTM.checkpoint_every", checkpoint_every)
        self.cell.checkpoint_every = checked

    def reset_parameters(self) -> None:
        """Draw every parameter anew: after the same ``torch.manual_seed``, those of construction.

        A controller of your own is drawn by its own ``reset_parameters``, if it has one. Raises
        ``TypeError``, before anything is drawn, where ``output`` or ``cell.interface`` was replaced
        by a module without a weight that can be drawn, such as a quantized layer.
        """
        if self.output is not None:
            require_linear_weights("NTM", "output", self.output)
        self.cell.reset_parameters()
        if self.output is not None:
            reset_modules(self.output.modules())
            self._reset_output()

    def _reset_output(self) -> None:
        if self.output is not None:
            weight, bias = require_linear_weights("NTM", "output", self.output)
            nn.init.xavier_uniform_(weight)
            if bias is not None:
                nn.init.zeros_(bias)

    @property
    def memory_size(self) -> int:
        """Memory locations N of a state that starts anew: ``cell.memory_size``, which it sets too.

        >>> import torch
        >>> model = NTM(input_size=8, output_size=8, hidden_size=32, memory_size=16)
        >>> model.memory_size = 4096
        >>> _, state = model(torch.randn(3, 1, 8))
        >>> state.memory.shape
        torch.Size([1, 4096, 20])
        """
        return self.cell.memory_size

    @memory_size.setter
    def memory_size(self, memory_size: int) -> None:
        allowed = self.cell.allowed_memory_size("NTM.memory_size", memory_size)
        self.cell.memory_size = allowed

    def initial_state(self, batch_size: int, memory_size: int | None = None) -> NTMState:
        """The state before the first step of ``batch_size`` sequences, as a copy that may be
        written to (``NTMCell.initial_state``).

        ``memory_size``: its memory locations, ``None``: those of the model.
        """
        batch_size = check_batch_size("NTM.initial_state", batch_size)
        if memory_size is not None:
            self.cell.allowed_memory_size("NTM.initial_state", memory_size)
        return self.cell.initial_state(batch_size, memory_size)

    def forward(
        self,
        x: Tensor | PackedSequence,
        state: NTMState | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        return_trace: bool = False,
        resets: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, NTMState] | tuple[Tensor | PackedSequence, NTMState, Trace]:
        if isinstance(x, PackedSequence):
            if resets is not None:
                raise ValueError(
                    "NTM: resets go with a padded x; unpack it with "
                    "torch.nn.utils.rnn.pad_packed_sequence and give its lengths too"
                )
            return self._forward_packed(x, state, lengths, return_trace)
        if not isinstance(x, Tensor):
            raise TypeError(f"NTM: x must be a tensor or PackedSequence, got {type(x).__name__}")
        self.cell.check_input("NTM", "x", x, ("BT" if self.batch_first else "TB", "T"))
        if x.dim() == 2:
            return self._forward_unbatched(x, state, lengths, return_trace, resets)
        if resets is not None:
            dims = "B T" if self.batch_first else "T B"
            check_resets("NTM", resets, tuple(x.shape[:2]), x.device, dims)
        if self.batch_first:
            x, resets = x.transpose(0, 1), None if resets is None else resets.transpose(0, 1)
        output, state, trace = self._run(x, state, lengths, return_trace, resets)
        output = output.transpose(0, 1) if self.batch_first else output
        return (output, state) if trace is None else (output, state, trace)

    def _run(
        self,
        x: Tensor,
        state: NTMState | None,
        lengths: Tensor | Sequence[int] | None,
        return_trace: bool,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, NTMState, Trace | None]:
        """Everything for x ``[T, B, I]``."""
        time, batch, _ = x.shape
        if state is not None:
            state = self.cell.check_state("NTM", state, batch)
        if lengths is not None:
            lengths = check_lengths("NTM", lengths, batch, time, x.device)
        hidden, reads, state, trace = self.cell(
            x, state, sequence=True, lengths=lengths, resets=resets, return_trace=return_trace
        )
        if self.output is None:
            return self.cell.features(hidden, reads), state, trace
        if self.output_from == "features":
            seen = self.cell.features(hidden, reads)
        else:
            seen = reads.flatten(-2).to(dtype_and_device(self.output)[0])
        output = self.output(seen)
        if lengths is not None:
            output = output.masked_fill(beyond(lengths, time, output.dim()), 0)
        return output, state, trace

    def _forward_unbatched(
        self,
        x: Tensor,
        state: NTMState | None,
        lengths: Tensor | Sequence[int] | None,
        return_trace: bool,
        resets: Tensor | None,
    ) -> tuple[Tensor, NTMState] | tuple[Tensor, NTMState, Trace]:
        if lengths is not None:
            raise ValueError("NTM: lengths are for a batch; cut an unbatched x instead")
        if state is not None:
            state = batch_of_one(self.cell.check_state("NTM", state, None))
        if resets is not None:
            check_resets("NTM", resets, (x.shape[0],), x.device, "T")
            resets = resets.unsqueeze(1)
        output, state, trace = self._run(x.unsqueeze(1), state, None, return_trace, resets)
        state = batch_removed("NTM", state)
        if trace is None:
            return output.squeeze(1), state
        return output.squeeze(1), state, Trace(*(part.squeeze(1) for part in trace))

    def _forward_packed(
        self,
        packed: PackedSequence,
        state: NTMState | None,
        lengths: Tensor | Sequence[int] | None,
        return_trace: bool,
    ) -> tuple[PackedSequence, NTMState] | tuple[PackedSequence, NTMState, Trace]:
        if lengths is not None:
            raise ValueError("NTM: a PackedSequence has its own lengths")
        self.cell.check_input("NTM", "x.data", packed.data, (("steps of all sequences",),))
        x, own_lengths = pad_packed_sequence(packed)
        output, state, trace = self._run(x, state, own_lengths, return_trace)
        if packed.sorted_indices is not None:
            output = output.index_select(1, packed.sorted_indices)
            own_lengths = own_lengths.index_select(0, packed.sorted_indices.cpu())
        data = pack_padded_sequence(output, own_lengths).data
        repacked = PackedSequence(
            data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
        return (repacked, state) if trace is None else (repacked, state, trace)

    def extra_repr(self) -> str:
        return f"output_from={self.output_from!r}, batch_first={self.batch_first}"
