"""``sequence``: one persistent program per sequence, the memory in registers over all steps.

What a step hands from stage to stage beyond memory and weightings (interface vector, hidden state,
read vectors) goes through global memory of the program's own, a few hundred numbers that stay in
the first cache, with a barrier between the writing and the reading. The controller's weights come
from the second-level cache on each step.

The backward runs through time in segments that begin at a stored memory: it repeats the writes of a
segment, keeping each memory, then walks back through it. It stores the gradients of the gates and
of the interface vectors; those of the weights are matrix products over all steps, outside.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ntm_kernels.backends.triton.kernels import stages
from ntm_kernels.backends.triton.kernels.step import groups, step, step_backward

# One compilation serves sequences and batches of any length.
VARYING = ("T", "B", "every")


@triton.jit
def matvec(
    total,
    p_matrix,
    p_vector,
    i_row,
    row_inside,
    stride,
    K: tl.constexpr,
    BK: tl.constexpr,
):
    """``total`` plus the product of some rows of a matrix, K columns wide, with a vector."""
    for k in range(0, K, BK):
        i_k = k + tl.arange(0, BK)
        vector = stages.load(p_vector + i_k, i_k < K, total.dtype)
        inside = row_inside[:, None] & (i_k < K)[None, :]
        block = stages.load(p_matrix + i_row[:, None] * stride + i_k[None, :], inside, total.dtype)
        total += tl.sum(block * vector[None, :], 1)
    return total


@triton.jit
def vecmat(
    total,
    p_matrix,
    p_vector,
    i_column,
    column_inside,
    stride,
    K: tl.constexpr,
    BK: tl.constexpr,
):
    """``total`` plus the product of a vector with some columns of a matrix, K rows high."""
    for k in range(0, K, BK):
        i_k = k + tl.arange(0, BK)
        vector = stages.load(p_vector + i_k, i_k < K, total.dtype)
        inside = (i_k < K)[:, None] & column_inside[None, :]
        block = stages.load(
            p_matrix + i_k[:, None] * stride + i_column[None, :], inside, total.dtype
        )
        total += tl.sum(vector[:, None] * block, 0)
    return total


@triton.jit
def controller(
    p_projected,
    p_recurrent_weight,
    p_read_vectors,
    p_state,
    p_cell,
    p_hidden,
    p_gates,
    p_cells,
    LSTM: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    ACC: tl.constexpr,
):
    """One step of the controller; K read elements. Stores hidden, and cell and gates of an LSTM."""
    for c in range(0, C, BC):
        i_c = c + tl.arange(0, BC)
        inside = i_c < C
        if LSTM:
            # All four gates of some hidden units at once: rows q C + c for gate q.
            i_q = tl.arange(0, 4 * BC) // BC
            i_gate = i_q * C + c + tl.arange(0, 4 * BC) % BC
            gate_inside = i_gate < i_q * C + C
            gates = stages.load(p_projected + i_gate, gate_inside, ACC)
            stride = K + C
            gates = matvec(
                gates, p_recurrent_weight, p_read_vectors, i_gate, gate_inside, stride, K, BK
            )
            gates = matvec(
                gates, p_recurrent_weight + K, p_state, i_gate, gate_inside, stride, C, BK
            )
            gates = tl.where(i_q == 2, stages.tanh(gates), stages.sigmoid(gates))
            quarters = tl.reshape(gates, [4, BC])
            input_gate, forget_gate = stages.row(quarters, 0), stages.row(quarters, 1)
            candidate, output_gate = stages.row(quarters, 2), stages.row(quarters, 3)
            cell = stages.load(p_cell + i_c, inside, ACC)
            cell = forget_gate * cell + input_gate * candidate
            tl.store(p_cell + i_c, cell, mask=inside)
            tl.store(p_hidden + i_c, output_gate * stages.tanh(cell), mask=inside)
            if p_gates is not None:
                tl.store(p_gates + i_gate, gates, mask=gate_inside)
                tl.store(p_cells + i_c, cell, mask=inside)
        else:
            projected = stages.load(p_projected + i_c, inside, ACC)
            projected = matvec(projected, p_recurrent_weight, p_read_vectors, i_c, inside, K, K, BK)
            tl.store(p_hidden + i_c, stages.tanh(projected), mask=inside)


@triton.jit
def interface(
    p_hidden,
    p_state,
    p_weight,
    p_bias,
    p_interface,
    LSTM: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    ACC: tl.constexpr,
):
    """The interface vector from the hidden state, which becomes the controller's state."""
    for p in range(0, P, BP):
        i_p = p + tl.arange(0, BP)
        bias = stages.load(p_bias + i_p, i_p < P, ACC)
        value = matvec(bias, p_weight, p_hidden, i_p, i_p < P, C, C, BK)
        tl.store(p_interface + i_p, value, mask=i_p < P)
    if LSTM:
        for c in range(0, C, BC):
            i_c = c + tl.arange(0, BC)
            tl.store(p_state + i_c, stages.load(p_hidden + i_c, i_c < C, ACC), mask=i_c < C)


@triton.jit
def controller_backward(
    p_d_hidden,
    p_d_state,
    p_d_interface,
    p_interface_weight,
    p_hidden,
    p_gates,
    p_cells,
    p_cell,
    i_b,
    i_tb,
    B,
    p_d_cell,
    p_d_gates,
    LSTM: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Gradient of the hidden state, and from it those of the gates and the cell."""
    for c in range(0, C, BC):
        i_c = c + tl.arange(0, BC)
        inside = i_c < C
        d_hidden = tl.zeros([BC], ACC)
        if p_d_hidden is not None:
            d_hidden += stages.load(p_d_hidden + i_c, inside, ACC)
        if LSTM:
            d_hidden += stages.load(p_d_state + i_c, inside, ACC)
        d_hidden = vecmat(d_hidden, p_interface_weight, p_d_interface, i_c, inside, C, P, BK)
        if LSTM:
            input_gate = stages.load(p_gates + i_c, inside, ACC)
            forget_gate = stages.load(p_gates + C + i_c, inside, ACC)
            candidate = stages.load(p_gates + 2 * C + i_c, inside, ACC)
            output_gate = stages.load(p_gates + 3 * C + i_c, inside, ACC)
            cell = stages.load(p_cells + i_tb * C + i_c, inside, ACC)
            # At t = 0 the initial one, and after it that of the step before.
            p_previous = p_cell + i_b * C
            if i_tb >= B:
                p_previous = p_cells + (i_tb - B) * C
            previous = stages.load(p_previous + i_c, inside, ACC)
            squashed = stages.tanh(cell)
            d_cell = stages.load(p_d_cell + i_c, inside, ACC)
            d_cell += d_hidden * output_gate * (1.0 - squashed * squashed)
            d_input = d_cell * candidate * input_gate * (1.0 - input_gate)
            d_forget = d_cell * previous * forget_gate * (1.0 - forget_gate)
            d_candidate = d_cell * input_gate * (1.0 - candidate * candidate)
            d_output = d_hidden * squashed * output_gate * (1.0 - output_gate)
            tl.store(p_d_gates + i_c, d_input, mask=inside)
            tl.store(p_d_gates + C + i_c, d_forget, mask=inside)
            tl.store(p_d_gates + 2 * C + i_c, d_candidate, mask=inside)
            tl.store(p_d_gates + 3 * C + i_c, d_output, mask=inside)
            tl.store(p_d_cell + i_c, d_cell * forget_gate, mask=inside)
        else:
            hidden = stages.load(p_hidden + i_c, inside, ACC)
            tl.store(p_d_gates + i_c, d_hidden * (1.0 - hidden * hidden), mask=inside)


@triton.jit
def recurrent_backward(
    p_d_gates,
    p_recurrent_weight,
    p_d_read_vectors,
    p_d_state,
    LSTM: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Gradients of what the gates saw of the step before: read vectors and hidden state."""
    stride: tl.constexpr = K + C if LSTM else K
    G: tl.constexpr = 4 * C if LSTM else C
    for k in range(0, stride, BC):
        i_k = k + tl.arange(0, BC)
        d_recurrent = vecmat(
            tl.zeros([BC], ACC),
            p_recurrent_weight,
            p_d_gates,
            i_k,
            i_k < stride,
            stride,
            G,
            BK,
        )
        tl.store(p_d_read_vectors + i_k, d_recurrent, mask=i_k < K)
        if LSTM:
            tl.store(p_d_state + i_k - K, d_recurrent, mask=(i_k >= K) & (i_k < stride))


@triton.jit
def fill_zero(p, size, ACC: tl.constexpr, BLOCK: tl.constexpr):
    for i in range(0, size, BLOCK):
        index = i + tl.arange(0, BLOCK)
        tl.store(p + index, tl.zeros([BLOCK], ACC), mask=index < size)


@triton.jit(do_not_specialize=VARYING)
def sequence_kernel(
    inputs,  # SequenceInputs, x projected
    outputs,  # SequenceOutputs; of the final state, all but memory and weightings begin as initial
    kept,  # Saved, each None where it is not kept; an interface vector [B, P] where none is kept
    T,
    B,
    every,
    KEEP: tl.constexpr,
    LSTM: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BS: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    BK: tl.constexpr,
    ACC: tl.constexpr,
):
    H: tl.constexpr = R + W
    K: tl.constexpr = R * M
    G: tl.constexpr = 4 * C if LSTM else C
    i_b = tl.program_id(0).to(tl.int64)
    i_h, i_n, i_m = tl.arange(0, BH), tl.arange(0, BN), tl.arange(0, BM)
    memory = stages.load_rows(inputs.initial_memory + i_b * N * M, i_n, i_m, N, M, ACC)
    weightings = stages.load_rows(inputs.initial_weightings + i_b * H * N, i_h, i_n, H, N, ACC)
    length = T
    if inputs.lengths is not None:
        length = tl.load(inputs.lengths + i_b).to(tl.int32)
    p_read_vectors = outputs.final_read_vectors + i_b * K
    p_state, p_cell = outputs.final_hidden, outputs.final_cell
    if LSTM:
        p_state += i_b * C
        p_cell += i_b * C

    # Beyond the length the outputs are 0, and nothing that is kept stays unset.
    for t in range(length, T):
        i_tb = t * B + i_b
        fill_zero(outputs.hidden + i_tb * C, C, ACC, BK)
        fill_zero(outputs.read_vectors + i_tb * K, K, ACC, BK)
        if kept.weightings is not None:
            fill_zero(kept.weightings + i_tb * H * N, H * N, ACC, BK)
        if KEEP:
            fill_zero(kept.interface + i_tb * P, P, ACC, BK)
        if kept.gates is not None:
            fill_zero(kept.gates + i_tb * G, G, ACC, BK)
            fill_zero(kept.cells + i_tb * C, C, ACC, BK)
    if kept.checkpoints is not None:
        for i in range((length + every - 1) // every, (T + every - 1) // every):
            fill_zero(kept.checkpoints + (i * B + i_b) * N * M, N * M, ACC, BK)

    for t in range(length):
        i_tb = t * B + i_b
        if kept.checkpoints is not None:  # noqa: SIM102 (known when compiling; the other is not)
            if t % every == 0:
                p = kept.checkpoints + (t // every * B + i_b) * N * M
                stages.store_rows(p, memory, i_n, i_m, N, M)
        p_now = kept.interface + (i_tb if KEEP else i_b) * P
        p_hidden_now = outputs.hidden + i_tb * C
        controller(
            inputs.x + i_tb * G,
            inputs.recurrent_weight,
            p_read_vectors,
            p_state,
            p_cell,
            p_hidden_now,
            None if kept.gates is None else kept.gates + i_tb * G,
            None if kept.cells is None else kept.cells + i_tb * C,
            LSTM,
            C,
            K,
            BC,
            BK,
            ACC,
        )
        tl.debug_barrier()
        interface(
            p_hidden_now,
            p_state,
            inputs.interface_weight,
            inputs.interface_bias,
            p_now,
            LSTM,
            C,
            P,
            BP,
            BC,
            BK,
            ACC,
        )
        tl.debug_barrier()
        memory, weightings = step(
            memory,
            weightings,
            p_now,
            outputs.read_vectors + i_tb * K,
            p_read_vectors,
            R,
            W,
            N,
            M,
            S,
            BH,
            BS,
        )
        if kept.weightings is not None:
            stages.store_rows(kept.weightings + i_tb * H * N, weightings, i_h, i_n, H, N)
        tl.debug_barrier()

    stages.store_rows(outputs.final_memory + i_b * N * M, memory, i_n, i_m, N, M)
    stages.store_rows(outputs.final_weightings + i_b * H * N, weightings, i_h, i_n, H, N)


@triton.jit(do_not_specialize=VARYING)
def sequence_backward_kernel(
    grads,  # SequenceOutputs, each of which may lack
    inputs,  # SequenceInputs
    outputs,  # SequenceOutputs, the hidden states alone
    saved,  # Saved
    d_inputs,  # SequenceInputs: of x, that of the gates; of the weights none. Those of the initial
    # read vectors, hidden and cell begin as those of the final ones
    p_d_interface,  # [T, B, P]
    p_segment,  # [every, B, N, M], memories of one segment
    T,
    B,
    every,
    LSTM: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BS: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    ACC: tl.constexpr,
):
    H: tl.constexpr = R + W
    K: tl.constexpr = R * M
    G: tl.constexpr = 4 * C if LSTM else C
    i_b = tl.program_id(0).to(tl.int64)
    i_h, i_n, i_m = tl.arange(0, BH), tl.arange(0, BN), tl.arange(0, BM)
    d_memory, d_weightings = tl.zeros([BN, BM], ACC), tl.zeros([BH, BN], ACC)
    if grads.final_memory is not None:
        d_memory = stages.load_rows(grads.final_memory + i_b * N * M, i_n, i_m, N, M, ACC)
    if grads.final_weightings is not None:
        d_weightings = stages.load_rows(grads.final_weightings + i_b * H * N, i_h, i_n, H, N, ACC)
    length = T
    if inputs.lengths is not None:
        length = tl.load(inputs.lengths + i_b).to(tl.int32)
    p_d_read_vectors = d_inputs.initial_read_vectors + i_b * K
    p_d_state, p_d_cell = d_inputs.initial_hidden, d_inputs.initial_cell
    if LSTM:
        p_d_state += i_b * C
        p_d_cell += i_b * C

    for t in range(length, T):
        fill_zero(d_inputs.x + (t * B + i_b) * G, G, ACC, BK)
        fill_zero(p_d_interface + (t * B + i_b) * P, P, ACC, BK)

    segments = (length + every - 1) // every
    for reverse in range(segments):
        start = (segments - 1 - reverse) * every
        stop = tl.minimum(start + every, length)
        p = saved.checkpoints + (start // every * B + i_b) * N * M
        memory = stages.load_rows(p, i_n, i_m, N, M, ACC)
        for t in range(start, stop):
            p = p_segment + ((t - start) * B + i_b) * N * M
            stages.store_rows(p, memory, i_n, i_m, N, M)
            i_tb = t * B + i_b
            weightings = stages.load_rows(saved.weightings + i_tb * H * N, i_h, i_n, H, N, ACC)
            heads = groups(saved.interface + i_tb * P, R, W, M, S)
            memory = stages.write(memory, weightings, heads.erase, heads.add, R, W, M, True)
        tl.debug_barrier()

        for back in range(stop - start):
            t = stop - 1 - back
            i_tb = t * B + i_b
            p = p_segment + ((t - start) * B + i_b) * N * M
            memory = stages.load_rows(p, i_n, i_m, N, M, ACC)
            weightings = stages.load_rows(saved.weightings + i_tb * H * N, i_h, i_n, H, N, ACC)
            # At t = 0 the initial weightings, and after it those of the step before.
            p = inputs.initial_weightings + i_b * H * N
            if t > 0:
                p = saved.weightings + (i_tb - B) * H * N
            previous = stages.load_rows(p, i_h, i_n, H, N, ACC)
            d_memory, d_weightings = step_backward(
                d_memory,
                d_weightings,
                memory,
                weightings,
                previous,
                saved.interface + i_tb * P,
                p_d_read_vectors,
                None if grads.read_vectors is None else grads.read_vectors + i_tb * K,
                p_d_interface + i_tb * P,
                R,
                W,
                N,
                M,
                S,
                BH,
                BS,
            )
            tl.debug_barrier()
            controller_backward(
                None if grads.hidden is None else grads.hidden + i_tb * C,
                p_d_state,
                p_d_interface + i_tb * P,
                inputs.interface_weight,
                outputs.hidden + i_tb * C,
                None if saved.gates is None else saved.gates + i_tb * G,
                saved.cells,
                inputs.initial_cell,
                i_b,
                i_tb,
                B,
                p_d_cell,
                d_inputs.x + i_tb * G,
                LSTM,
                C,
                P,
                BC,
                BK,
                ACC,
            )
            tl.debug_barrier()
            recurrent_backward(
                d_inputs.x + i_tb * G,
                inputs.recurrent_weight,
                p_d_read_vectors,
                p_d_state,
                LSTM,
                C,
                K,
                BC,
                BK,
                ACC,
            )
            tl.debug_barrier()

    stages.store_rows(d_inputs.initial_memory + i_b * N * M, d_memory, i_n, i_m, N, M)
    stages.store_rows(d_inputs.initial_weightings + i_b * H * N, d_weightings, i_h, i_n, H, N)
