"""What a call of ``sequence`` does around the op: padding, 16-bit states, no steps, the trace."""

from __future__ import annotations

import torch
from torch import Tensor

from ntm_kernels import checks
from ntm_kernels.interface import InterfaceLayout
from ntm_kernels.ops.call import prepare, run
from ntm_kernels.ops.sequence import (
    SEQUENCE,
    SequenceInputs,
    SequenceOptions,
    SequenceOutputs,
    initial_state,
)
from ntm_kernels.ops.sizes import Sizes
from ntm_kernels.reference import SequenceResult, SequenceState, Trace, arithmetic_dtype


def call_sequence(
    inputs: SequenceInputs, options: SequenceOptions, backend: str | None
) -> SequenceResult:
    """Check, choose and run; see ``ntm_kernels.functional.sequence``."""
    options = under_autocast(options, inputs.x)
    prepared = prepare(SEQUENCE, inputs, options)
    sizes = prepared.problem.sizes
    lengths, start = inputs.lengths, initial_state(inputs)
    if lengths is not None:
        lengths = checks.lengths_within("sequence", lengths, sizes.time)
    if sizes.time == 0:
        return _no_steps(sizes, start)
    x, resets = inputs.x, inputs.resets
    if lengths is not None and resets is not None:
        resets = resets & ~beyond(lengths, sizes.time, 2)
    if lengths is not None and sizes.projects_input:
        # Zeros, since 0 · NaN in a weight gradient is NaN whatever the padding's own gradient.
        x = x.masked_fill(beyond(lengths, sizes.time, x.dim()), 0)
    # 16-bit states are widened here and results narrowed below, outside the op: its backward reads
    # its own outputs, and rounded ones would give rounded weight gradients.
    widened = inputs._replace(
        x=x,
        lengths=lengths,
        resets=resets,
        initial_memory=_widen(inputs.initial_memory),
        initial_weightings=_widen(inputs.initial_weightings),
        initial_read_vectors=_widen(inputs.initial_read_vectors),
        initial_hidden=_widen_if(inputs.initial_hidden),
        initial_cell=_widen_if(inputs.initial_cell),
    )
    outputs = run(SEQUENCE, widened, prepared, backend)
    return _result(outputs, start, sizes, lengths)


def under_autocast(options: SequenceOptions, x: Tensor) -> SequenceOptions:
    """The options of a call with ``x``, which also depend on the autocast around it.

    Autocast counts where the function is called. A compiled call and the backward run later.
    """
    is_tensor = isinstance(x, Tensor)  # checked later
    bfloat16 = is_tensor and checks.autocast_dtype(x.device.type) == torch.bfloat16
    return options._replace(bfloat16_products=bfloat16)


def _widen(tensor: Tensor) -> Tensor:
    return _as(tensor, tensor, arithmetic_dtype(tensor.dtype))


def _widen_if(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _widen(tensor)


def _as(tensor: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    wanted = like.dtype if dtype is None else dtype
    return tensor if tensor.dtype == wanted else tensor.to(wanted)


def _as_if(tensor: Tensor | None, like: Tensor | None) -> Tensor | None:
    return None if tensor is None or like is None else _as(tensor, like)


def _result(
    outputs: SequenceOutputs, start: SequenceState, sizes: Sizes, lengths: Tensor | None
) -> SequenceResult:
    """The outputs in the dtypes of the state that the caller gave."""
    final = SequenceState(
        memory=_as(outputs.final_memory, start.memory),
        weightings=_as(outputs.final_weightings, start.weightings),
        read_vectors=_as(outputs.final_read_vectors, start.read_vectors),
        hidden=_as_if(outputs.final_hidden, start.hidden),
        cell=_as_if(outputs.final_cell, start.cell),
    )
    trace = None
    if outputs.trace_weightings is not None and outputs.trace_interface is not None:
        weightings = _as(outputs.trace_weightings, start.weightings)
        trace = _trace(weightings, outputs.trace_interface, sizes.layout, lengths)
    return SequenceResult(
        hidden=_as(outputs.hidden, start.memory if start.hidden is None else start.hidden),
        read_vectors=_as(outputs.read_vectors, start.memory),
        state=final,
        trace=trace,
    )


def _no_steps(sizes: Sizes, start: SequenceState) -> SequenceResult:
    """No step: the initial state, and outputs of length 0."""
    like = start.memory if start.hidden is None else start.hidden
    none = (0, sizes.batch)
    trace = None
    if sizes.return_trace:
        dtype = arithmetic_dtype(start.memory.dtype)
        empty = sizes.layout.split(start.memory.new_empty(*none, sizes.layout.size, dtype=dtype))
        trace = Trace(start.weightings.new_empty(*none, *start.weightings.shape[1:]), *empty)
    return SequenceResult(
        like.new_empty(*none, sizes.hidden_size),
        start.read_vectors.new_empty(*none, *start.read_vectors.shape[1:]),
        SequenceState(
            memory=start.memory.clone(),
            weightings=start.weightings.clone(),
            read_vectors=start.read_vectors.clone(),
            hidden=None if start.hidden is None else start.hidden.clone(),
            cell=None if start.cell is None else start.cell.clone(),
        ),
        trace,
    )


def _trace(
    weightings: Tensor, interface: Tensor, layout: InterfaceLayout, lengths: Tensor | None
) -> Trace:
    if lengths is not None:
        weightings, interface = (
            part.masked_fill(beyond(lengths, part.shape[0], part.dim()), 0)
            for part in (weightings, interface)
        )
    return Trace(weightings, *layout.split(interface))


def beyond(lengths: Tensor, time: int, dims: int) -> Tensor:
    """Which steps lie beyond their sequence, ``[T, B, 1, …]`` with ``dims`` dimensions."""
    outside = torch.arange(time, device=lengths.device).unsqueeze(-1) >= lengths
    return outside.view(*outside.shape, *[1] * (dims - 2))
