"""``sequence`` in one launch, for memories that one program holds over all steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ntm_kernels.backends.torch.sequence import Saved, StepGrads
from ntm_kernels.backends.triton.launch_table import OnChip
from ntm_kernels.backends.triton.launcher import Launcher
from ntm_kernels.backends.triton.records import contiguous
from ntm_kernels.ops import SequenceInputs, SequenceOutputs, Sizes
from ntm_kernels.ops.declare import dtypes_of, empty, fields, names, some
from ntm_kernels.reference import arithmetic_dtype


def empty_kept(inputs: SequenceInputs, sizes: Sizes, save_for_backward: bool) -> Saved:
    """New tensors for what a forward keeps: all, what a trace is made of, or nothing."""
    kept: Iterable[str] = ()
    if save_for_backward:
        kept = names(Saved)
    elif sizes.return_trace:
        kept = ("weightings", "interface")
    there = {
        name: _arithmetic(inputs, sizes.shape(field.dims))
        for name, field in fields(Saved).items()
        if name in kept and field.present(sizes)
    }
    return some(Saved, **there)


def forward(
    launcher: Launcher, row: OnChip, inputs: SequenceInputs, sizes: Sizes, save_for_backward: bool
) -> tuple[SequenceOutputs, Saved]:
    """Outputs without the trace, and what is kept."""
    untraced = sizes._replace(return_trace=False)
    outputs = empty(SequenceOutputs, untraced, inputs.initial_memory, dtypes_of(inputs))
    # The kernel keeps the state of the step before in these outputs, at first the initial state.
    outputs.final_read_vectors.copy_(inputs.initial_read_vectors)
    if inputs.initial_hidden is not None and outputs.final_hidden is not None:
        outputs.final_hidden.copy_(inputs.initial_hidden)
    if inputs.initial_cell is not None and outputs.final_cell is not None:
        outputs.final_cell.copy_(inputs.initial_cell)
    kept = empty_kept(inputs, sizes, save_for_backward)
    keep = kept.interface is not None
    # The heads read the interface vector from a tensor, and a layer the hidden state below it. The
    # kernel needs these tensors even if nobody keeps them.
    if not keep:
        kept = kept._replace(interface=_arithmetic(inputs, sizes.shape("B P")))
    if sizes.is_deep and kept.lower_hidden is None:
        kept = kept._replace(lower_hidden=_arithmetic(inputs, sizes.shape("U B C")))
    launcher.run(
        launcher.kernels.sequence_kernel,
        (sizes.batch,),
        contiguous(inputs),
        outputs,
        kept,
        sizes.time,
        sizes.batch,
        sizes.segment,
        KEEP=keep,
        **_constants(launcher, row, inputs, sizes),
    )
    return outputs, kept


def _arithmetic(inputs: SequenceInputs, shape: tuple[int, ...]) -> Tensor:
    """A new tensor in the dtype of the arithmetic."""
    memory = inputs.initial_memory
    return memory.new_empty(shape, dtype=arithmetic_dtype(memory.dtype))


def backward(
    launcher: Launcher,
    row: OnChip,
    grads: SequenceOutputs,
    inputs: SequenceInputs,
    outputs: SequenceOutputs,
    saved: Saved,
    sizes: Sizes,
) -> tuple[SequenceInputs, StepGrads]:
    """Gradients of the initial state, and those of every step."""
    checkpoints = saved.checkpoints
    # x is left out: the kernel does not need it, and it has no values here.
    read = some(
        SequenceInputs,
        recurrent_weight=inputs.recurrent_weight,
        interface_weight=inputs.interface_weight,
        upper_weight=inputs.upper_weight,
        initial_memory=inputs.initial_memory if sizes.has_resets else None,
        initial_weightings=inputs.initial_weightings,
        initial_cell=inputs.initial_cell,
        lengths=inputs.lengths,
        resets=inputs.resets,
    )
    # The kernel keeps the gradient of the state after a step in the last three. They begin as that
    # of the final state.
    d_inputs = some(
        SequenceInputs,
        initial_memory=inputs.initial_memory.new_empty(sizes.shape("B N M")),
        initial_weightings=inputs.initial_weightings.new_empty(sizes.shape("B H N")),
        initial_read_vectors=_copy(grads.final_read_vectors, inputs.initial_read_vectors),
        initial_hidden=_copy(grads.final_hidden, inputs.initial_hidden),
        initial_cell=_copy(grads.final_cell, inputs.initial_cell),
    )
    d_start = some(SequenceInputs)
    if sizes.has_resets:
        d_start = SequenceInputs._make(map(_zeros, d_inputs))
    d_steps = StepGrads(
        gates=checkpoints.new_empty(sizes.shape("T L B G")),
        interface=checkpoints.new_empty(sizes.shape("T B P")),
    )
    launcher.run(
        launcher.kernels.sequence_backward_kernel,
        (sizes.batch,),
        contiguous(grads),
        contiguous(read),
        contiguous(some(SequenceOutputs, hidden=outputs.hidden)),
        saved,
        d_inputs,
        d_start,
        d_steps,
        checkpoints.new_empty(sizes.segment, *sizes.shape("B N M")),
        sizes.time,
        sizes.batch,
        sizes.segment,
        **_constants(launcher, row, inputs, sizes),
    )
    for part, from_resets in zip(d_inputs, d_start, strict=True):
        if part is not None and from_resets is not None:
            part.add_(from_resets)
    return d_inputs, d_steps


def _copy(grad: Tensor | None, like: Tensor | None) -> Tensor | None:
    """A contiguous copy of a gradient; zeros where there is none."""
    if like is None:
        return None
    if grad is None:
        return like.new_zeros(like.shape)
    return like.new_empty(like.shape).copy_(grad)


def _zeros(like: Tensor | None) -> Tensor | None:
    return None if like is None else torch.zeros_like(like)


def _constants(
    launcher: Launcher, row: OnChip, inputs: SequenceInputs, sizes: Sizes
) -> dict[str, Any]:
    dtype = inputs.initial_memory.dtype
    found = launcher.in_registers(row.sequence_warps, "R W H N M S P C G K J L", sizes, dtype)
    rows = launcher.table.controller_rows
    block = found["block"]._replace(C=rows, K=launcher.table.controller_columns, P=4 * rows)
    return {**found, "shape": found["shape"]._replace(LSTM=sizes.is_lstm), "block": block}
