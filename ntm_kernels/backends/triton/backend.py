"""The ``Backend`` interface over the kernels: allocate, pick launch parameters, launch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ntm_kernels.backends.base import (
    Backend,
    Problem,
    SequenceArguments,
    SequenceOutputs,
    Sizes,
)
from ntm_kernels.backends.triton.launch import TABLE, OnChip, Table, padded
from ntm_kernels.interface import InterfaceLayout
from ntm_kernels.reference import activate, arithmetic_dtype


@cache
def kernels() -> ModuleType:
    """All kernels; imported on the first call, since not every machine has Triton."""
    from ntm_kernels.backends.triton import kernels as module

    return module


def layout_of(sizes: Sizes) -> InterfaceLayout:
    return InterfaceLayout(
        sizes.word_size, sizes.num_read_heads, sizes.num_write_heads, sizes.shift_range
    )


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _like(*tensors: Tensor) -> tuple[Tensor, ...]:
    """New contiguous tensors."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone(memory_format=torch.contiguous_format)


class TritonBackend(Backend):
    """The Triton kernels on devices of ``device_type``, with the launch parameters of ``table``.

    ROCm's devices are called ``cuda`` too.
    """

    def __init__(
        self, name: str = "triton", device_type: str = "cuda", table: Table = TABLE
    ) -> None:
        self.name = name
        self.device_type = device_type
        self.table = table

    def unavailable(self) -> str | None:
        if find_spec("triton") is None:
            return "the package triton is not installed"
        if not torch.cuda.is_available():
            return "torch sees no GPU"
        return None

    def unsupported(self, problem: Problem) -> str | None:
        if problem.device != self.device_type:
            return f"runs on {self.device_type} devices, the tensors are on {problem.device}"
        return self.table.too_large(problem)

    def describe(self) -> str:
        import triton

        platform = "ROCm" if torch.version.hip else "CUDA"
        return f"Triton {triton.__version__} kernels on {platform} devices"

    def saved_shapes(self, op: str, sizes: Sizes, controller: str = "") -> list[tuple[int, ...]]:
        if op != "sequence":
            return []
        steps = (sizes.time, sizes.batch)
        hidden_size = sizes.hidden_size if controller == "lstm" else 0
        return [
            (sizes.num_checkpoints, sizes.batch, sizes.memory_size, sizes.word_size),
            (*steps, sizes.num_heads, sizes.memory_size),
            (*steps, layout_of(sizes).size),
            (*steps, 4 * hidden_size),
            (*steps, hidden_size),
        ]

    def run(
        self, kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int, **sizes: Any
    ) -> None:
        """Launch ``kernel`` on the device of its tensors, on the current stream."""
        if 0 in grid:
            return
        device = next(part.device for part in arguments if isinstance(part, Tensor))
        guard: AbstractContextManager[Any] = nullcontext()
        if device.type == "cuda":
            guard = torch.cuda.device(device)
        with guard:
            # One stage: a pipelined loop would load what the step before has yet to store.
            kernel[grid](*arguments, **sizes, num_warps=warps, num_stages=1, enable_fp_fusion=True)

    def on_chip(self, memory: Tensor, heads: int, taps: int = 1) -> OnChip | None:
        return self.table.fitting(*memory.shape[1:], heads, taps, memory.dtype)

    def blocks(self, memory: Tensor, heads: int, taps: int = 0, **sizes: int) -> dict[str, Any]:
        """Launch parameters and compile-time sizes of a program that holds the whole memory."""
        row = self.on_chip(memory, heads, max(taps, 1))
        assert row is not None, "unsupported() lets no such size pass"
        _, locations, words = memory.shape
        if taps:
            sizes |= {"S": taps, "BS": padded(taps)}
        return {
            "N": locations,
            "M": words,
            "BH": padded(heads),
            "BN": padded(locations),
            "BM": padded(words),
            "ACC": kernels().ACC[arithmetic_dtype(memory.dtype)],
            "warps": row.warps,
            **sizes,
        }

    def address(
        self,
        memory: Tensor,
        key: Tensor,
        strength: Tensor,
        gate: Tensor,
        shift: Tensor,
        sharpening: Tensor,
        previous_weights: Tensor,
        save_for_backward: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        arguments = _contiguous(
            memory, key, strength, gate, shift, sharpening, previous_weights
        )
        (weights,) = _like(previous_weights)
        batch, heads, taps = shift.shape
        blocks = self.blocks(memory, heads, taps, H=heads)
        self.run(kernels().address_kernel, (batch,), *arguments, weights, **blocks)
        return weights, []

    def address_backward(
        self,
        grad_weights: Tensor,
        memory: Tensor,
        key: Tensor,
        strength: Tensor,
        gate: Tensor,
        shift: Tensor,
        sharpening: Tensor,
        previous_weights: Tensor,
        weights: Tensor,
        saved: list[Tensor],
    ) -> tuple[Tensor, ...]:
        given = memory, key, strength, gate, shift, sharpening, previous_weights
        arguments, results = _contiguous(grad_weights, *given), _like(*given)
        batch, heads, taps = shift.shape
        blocks = self.blocks(memory, heads, taps, H=heads)
        self.run(kernels().address_backward_kernel, (batch,), *arguments, *results, **blocks)
        return results

    def read(self, memory: Tensor, weights: Tensor) -> Tensor:
        batch, heads, _ = weights.shape
        reads = memory.new_empty(batch, heads, memory.shape[2])
        blocks = self.blocks(memory, heads, R=heads)
        self.run(
            kernels().read_kernel, (batch,), *_contiguous(memory, weights), reads, **blocks
        )
        return reads

    def read_backward(
        self, grad_read_vectors: Tensor, memory: Tensor, weights: Tensor
    ) -> tuple[Tensor, ...]:
        batch, heads, _ = weights.shape
        arguments = _contiguous(grad_read_vectors, memory, weights)
        results = _like(memory, weights)
        blocks = self.blocks(memory, heads, R=heads)
        self.run(kernels().read_backward_kernel, (batch,), *arguments, *results, **blocks)
        return results

    def write(self, memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
        batch, heads, _ = weights.shape
        arguments = _contiguous(memory, weights, erase, add)
        (written,) = _like(memory)
        blocks = self.blocks(memory, heads, W=heads)
        self.run(kernels().write_kernel, (batch,), *arguments, written, **blocks)
        return written

    def write_backward(
        self, grad_memory: Tensor, memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor
    ) -> tuple[Tensor, ...]:
        batch, heads, _ = weights.shape
        arguments = _contiguous(grad_memory, memory, weights, erase, add)
        results = _like(memory, weights, erase, add)
        blocks = self.blocks(memory, heads, W=heads)
        self.run(kernels().write_backward_kernel, (batch,), *arguments, *results, **blocks)
        return results

    def step(
        self,
        memory: Tensor,
        interface: Tensor,
        previous_weights: Tensor,
        sizes: Sizes,
        save_for_backward: bool,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        arguments = _contiguous(memory, interface, previous_weights)
        reads = memory.new_empty(sizes.batch, sizes.num_read_heads, sizes.word_size)
        written, weights = _like(memory, previous_weights)
        blocks = self.step_blocks(memory, sizes)
        self.run(
            kernels().step_kernel, (sizes.batch,), *arguments, reads, written, weights, **blocks
        )
        return reads, written, weights, []

    def step_backward(
        self,
        grad_read_vectors: Tensor | None,
        grad_memory: Tensor | None,
        grad_weights: Tensor | None,
        memory: Tensor,
        interface: Tensor,
        previous_weights: Tensor,
        weights: Tensor,
        saved: list[Tensor],
        sizes: Sizes,
    ) -> tuple[Tensor, ...]:
        given = memory, interface, previous_weights
        arguments = _contiguous(grad_read_vectors, grad_memory, grad_weights, *given)
        results = _like(*given)
        blocks = self.step_blocks(memory, sizes)
        self.run(kernels().step_backward_kernel, (sizes.batch,), *arguments, *results, **blocks)
        return results

    def step_blocks(self, memory: Tensor, sizes: Sizes) -> dict[str, Any]:
        return self.blocks(
            memory,
            sizes.num_heads,
            sizes.taps,
            R=sizes.num_read_heads,
            W=sizes.num_write_heads,
            P=layout_of(sizes).size,
        )

    def sequence_blocks(self, memory: Tensor, sizes: Sizes, controller: str) -> dict[str, Any]:
        columns = self.table.controller_columns
        rows = min(padded(sizes.hidden_size), self.table.controller_rows)
        return {
            **self.step_blocks(memory, sizes),
            "LSTM": controller == "lstm",
            "C": sizes.hidden_size,
            "BC": rows,
            "BK": columns,
        }

    def sequence(
        self,
        arguments: SequenceArguments,
        sizes: Sizes,
        controller: str,
        save_for_backward: bool,
        return_trace: bool,
    ) -> tuple[SequenceOutputs, list[Tensor]]:
        memory, weights = arguments.memory, arguments.weights
        is_lstm = controller == "lstm"
        keep = save_for_backward or return_trace
        reads, hidden, cell = map(
            _copy, (arguments.read_vectors, arguments.hidden, arguments.cell)
        )
        assert reads is not None
        steps = (sizes.time, sizes.batch)
        all_hidden = (memory if hidden is None else hidden).new_empty(*steps, sizes.hidden_size)
        all_reads = reads.new_empty(sizes.time, *reads.shape)
        final_memory, final_weights = _like(memory, weights)

        dtype = arithmetic_dtype(memory.dtype)
        shapes = self.saved_shapes("sequence", sizes, controller)
        if not keep:
            shapes[2] = (sizes.batch, layout_of(sizes).size)
        checkpoints, all_weights, interface, gates, cells = (
            memory.new_empty(shape if wanted else 0, dtype=dtype)
            for shape, wanted in zip(
                shapes,
                (save_for_backward, keep, True, save_for_backward, save_for_backward),
                strict=True,
            )
        )
        gates_too = save_for_backward and is_lstm
        self.run(
            kernels().sequence_kernel,
            (sizes.batch,),
            *_contiguous(*arguments[:4], arguments.lengths, memory, weights),
            reads,
            hidden,
            cell,
            all_hidden,
            all_reads,
            final_memory,
            final_weights,
            checkpoints if save_for_backward else None,
            all_weights if keep else None,
            interface,
            gates if gates_too else None,
            cells if gates_too else None,
            sizes.time,
            sizes.batch,
            sizes.checkpoint_every,
            KEEP=keep,
            BP=4 * self.table.controller_rows,
            **self.sequence_blocks(memory, sizes, controller),
        )
        none = memory.new_empty(0)
        outputs = SequenceOutputs(
            hidden=all_hidden,
            read_vectors=all_reads,
            memory=final_memory,
            weights=final_weights,
            final_read_vectors=reads,
            final_hidden=none if hidden is None else hidden,
            final_cell=none if cell is None else cell,
            trace_weights=none,
            trace_interface=none,
        )
        if return_trace:
            outputs = outputs._replace(
                # A copy, if the backward is to read the original: the trace is the caller's.
                trace_weights=all_weights.to(weights.dtype, copy=save_for_backward),
                trace_interface=_activated(interface, layout_of(sizes)),
            )
        saved = [checkpoints, all_weights, interface, gates, cells] if save_for_backward else []
        return outputs, saved

    def sequence_backward(
        self,
        grads: list[Tensor | None],
        arguments: SequenceArguments,
        hidden: Tensor,
        read_vectors: Tensor,
        saved: list[Tensor],
        sizes: Sizes,
        controller: str,
    ) -> tuple[Tensor, ...]:
        checkpoints, all_weights, interface, gates, cells = saved
        is_lstm = controller == "lstm"
        d_all_hidden, d_all_reads, d_memory, d_weights = _contiguous(*grads[:4])
        # What the kernel carries from step to step begins as the gradient of the final state.
        d_state = [
            None if like is None else like.new_zeros(like.shape) if grad is None else _copy(grad)
            for grad, like in zip(grads[4:7], arguments[6:9], strict=True)
        ]
        results = _like(arguments.memory, arguments.weights)
        d_gates = checkpoints.new_empty(arguments.projected_input.shape)
        d_interface = interface.new_empty(interface.shape)
        segment = checkpoints.new_empty(
            min(sizes.checkpoint_every, sizes.time), *checkpoints.shape[1:]
        )
        self.run(
            kernels().sequence_backward_kernel,
            (sizes.batch,),
            d_all_hidden,
            d_all_reads,
            d_memory,
            d_weights,
            *_contiguous(
                arguments.recurrent_weight,
                arguments.interface_weight,
                arguments.lengths,
                arguments.weights,
                arguments.cell,
                hidden,
            ),
            checkpoints,
            all_weights,
            interface,
            gates if is_lstm else None,
            cells if is_lstm else None,
            segment,
            *results,
            *d_state,
            d_gates,
            d_interface,
            sizes.time,
            sizes.batch,
            sizes.checkpoint_every,
            **self.sequence_blocks(arguments.memory, sizes, controller),
        )
        d_reads, d_hidden, d_cell = d_state
        assert d_reads is not None
        none = checkpoints.new_empty(0)
        return (
            d_gates.to(arguments.projected_input.dtype),
            *_weight_gradients(d_gates, d_interface, arguments, hidden, read_vectors),
            *results,
            d_reads,
            none if d_hidden is None else d_hidden,
            none.clone() if d_cell is None else d_cell,
        )


def _activated(interface: Tensor, layout: InterfaceLayout) -> Tensor:
    heads = activate(interface, layout)
    return torch.cat([part.flatten(interface.dim() - 1) for part in heads], -1)


def _weight_gradients(
    d_gates: Tensor,
    d_interface: Tensor,
    arguments: SequenceArguments,
    hidden: Tensor,
    read_vectors: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the recurrent weight, the interface's weight and its bias: products over all steps."""
    seen = _before(arguments.read_vectors, read_vectors).flatten(2)
    if arguments.hidden is not None:
        seen = torch.cat((seen, _before(arguments.hidden, hidden)), -1)
    d_interface = d_interface.flatten(0, 1)
    results = (
        torch.mm(d_gates.flatten(0, 1).mT, seen.flatten(0, 1).to(d_gates.dtype)),
        torch.mm(d_interface.mT, hidden.flatten(0, 1).to(d_interface.dtype)),
        d_interface.sum(0),
    )
    recurrent, weight, bias = (
        result.to(like.dtype)
        for result, like in zip(results, arguments[1:4], strict=True)
    )
    return recurrent, weight, bias


def _before(first: Tensor, following: Tensor) -> Tensor:
    """What each step started from: ``first``, then ``following`` without its last step."""
    return torch.cat((first.unsqueeze(0), following[:-1]))
