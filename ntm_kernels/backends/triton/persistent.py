"""``sequence`` in one launch, for memories that one program holds over all steps.

Takes and gives what ``steps`` does in many launches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ntm_kernels.backends.base import SequenceArguments, SequenceOutputs, Sizes
from ntm_kernels.backends.triton.launch import OnChip, most_registers
from ntm_kernels.backends.triton.tensors import contiguous_if, copy, new_like
from ntm_kernels.reference import arithmetic_dtype

if TYPE_CHECKING:
    from ntm_kernels.backends.triton.backend import TritonBackend


def sequence(
    backend: TritonBackend,
    row: OnChip,
    arguments: SequenceArguments,
    sizes: Sizes,
    save: bool,
    keep: bool,
) -> tuple[SequenceOutputs, list[Tensor]]:
    """Outputs without the trace; checkpoints, weightings, interface vectors, gates and cells."""
    memory, weightings = arguments.memory, arguments.weightings
    is_lstm = arguments.cell is not None
    reads, hidden, cell = map(copy, arguments[6:9])
    assert reads is not None
    shape = (sizes.time, sizes.batch, sizes.hidden_size)
    all_hidden = (memory if hidden is None else hidden).new_empty(shape)
    all_reads = reads.new_empty(sizes.time, *reads.shape)
    final_memory, final_weightings = new_like(memory, weightings)

    shapes = backend.saved_shapes("sequence", sizes, "lstm" if is_lstm else "")
    if not keep:
        shapes[2] = (sizes.batch, sizes.layout.size)
    wanted = save, keep, True, save, save
    saved = [
        memory.new_empty(shape if here else 0, dtype=arithmetic_dtype(memory.dtype))
        for shape, here in zip(shapes, wanted, strict=True)
    ]
    checkpoints, all_weightings, interface, gates, cells = saved
    backend.run(
        backend.kernels.sequence_kernel,
        (sizes.batch,),
        *contiguous_if(*arguments[:4], arguments.lengths, memory, weightings),
        reads,
        hidden,
        cell,
        all_hidden,
        all_reads,
        final_memory,
        final_weightings,
        checkpoints if save else None,
        all_weightings if keep else None,
        interface,
        gates if save and is_lstm else None,
        cells if save and is_lstm else None,
        sizes.time,
        sizes.batch,
        sizes.segment,
        KEEP=keep,
        BP=4 * backend.table.controller_rows,
        **_blocks(backend, row, memory, sizes, is_lstm),
    )
    outputs = SequenceOutputs(
        hidden=all_hidden,
        read_vectors=all_reads,
        memory=final_memory,
        weightings=final_weightings,
        final_read_vectors=reads,
        final_hidden=memory.new_empty(0) if hidden is None else hidden,
        final_cell=memory.new_empty(0) if cell is None else cell,
        trace_weightings=memory.new_empty(0),
        trace_interface=memory.new_empty(0),
    )
    return outputs, saved


def sequence_backward(
    backend: TritonBackend,
    row: OnChip,
    grads: list[Tensor | None],
    arguments: SequenceArguments,
    hidden: Tensor,
    saved: list[Tensor],
    sizes: Sizes,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Gradients of the gates, of the interface vectors and of the state at the start."""
    checkpoints, all_weightings, interface, gates, cells = saved
    is_lstm = arguments.cell is not None
    # What the kernel carries from step to step begins as the gradient of the final state.
    carried = [
        None if like is None else like.new_zeros(like.shape) if grad is None else copy(grad)
        for grad, like in zip(grads[4:7], arguments[6:9], strict=True)
    ]
    d_memory, d_weightings = new_like(arguments.memory, arguments.weightings)
    d_gates = checkpoints.new_empty(arguments.input.shape)
    (d_interface,) = new_like(interface)
    segment = checkpoints.new_empty(sizes.segment, *checkpoints.shape[1:])
    backend.run(
        backend.kernels.sequence_backward_kernel,
        (sizes.batch,),
        *contiguous_if(
            *grads[:4],
            arguments.recurrent_weight,
            arguments.interface_weight,
            arguments.lengths,
            arguments.weightings,
            arguments.cell,
            hidden,
        ),
        checkpoints,
        all_weightings,
        interface,
        gates if is_lstm else None,
        cells if is_lstm else None,
        segment,
        d_memory,
        d_weightings,
        *carried,
        d_gates,
        d_interface,
        sizes.time,
        sizes.batch,
        sizes.segment,
        **_blocks(backend, row, arguments.memory, sizes, is_lstm),
    )
    d_state = (d_memory, d_weightings, *(part for part in carried if part is not None))
    return d_gates, d_interface, d_state


def _blocks(
    backend: TritonBackend, row: OnChip, memory: Tensor, sizes: Sizes, is_lstm: bool
) -> dict[str, Any]:
    return {
        **backend.step_blocks(row, memory, sizes),
        "LSTM": is_lstm,
        "C": sizes.hidden_size,
        "BC": backend.table.controller_rows,
        "BK": backend.table.controller_columns,
        "warps": row.sequence_warps,
        "registers": most_registers(row.sequence_warps),
    }
