"""The ``Backend`` interface over the kernels: allocate, pick launch parameters, launch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
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
from ntm_kernels.backends.triton import persistent, steps
from ntm_kernels.backends.triton.launch import TABLE, OnChip, Table, most_registers, padded
from ntm_kernels.backends.triton.tensors import contiguous, contiguous_if, new_like
from ntm_kernels.backends.triton.tiling import Tiled, split
from ntm_kernels.interface import HeadParameters, InterfaceLayout
from ntm_kernels.reference import activate, arithmetic_dtype

# One stage: a pipelined loop would load what the step before has yet to store. Fusing multiply and
# add loses nothing, and the default for it differs between versions.
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}


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

    @cached_property
    def kernels(self) -> ModuleType:
        """All kernels; imported on the first call, since not every machine has Triton."""
        from ntm_kernels.backends.triton import kernels

        return kernels

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

        platform = "ROCm" if self.on_amd() else "CUDA"
        return f"Triton {triton.__version__} kernels on {platform} devices"

    def how(self, problem: Problem) -> str:
        return self.table.path(problem)

    def saved_shapes(self, op: str, sizes: Sizes, controller: str = "") -> list[tuple[int, ...]]:
        if op != "sequence":
            return []
        steps = (sizes.time, sizes.batch)
        hidden_size = sizes.hidden_size if controller == "lstm" else 0
        return [
            (sizes.num_checkpoints, sizes.batch, sizes.memory_size, sizes.word_size),
            (*steps, sizes.num_heads, sizes.memory_size),
            (*steps, sizes.layout.size),
            (*steps, 4 * hidden_size),
            (*steps, hidden_size),
        ]

    def on_amd(self) -> bool:
        return torch.version.hip is not None

    def run(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        *arguments: Any,
        warps: int,
        registers: int | None = None,
        **sizes: Any,
    ) -> None:
        """Launch ``kernel`` on the device of its tensors, on the current stream."""
        if 0 in grid:
            return
        device = next(part.device for part in arguments if isinstance(part, Tensor))
        guard: AbstractContextManager[Any] = nullcontext()
        if device.type == "cuda":
            guard = torch.cuda.device(device)
        with guard:
            options = OPTIONS if self.on_amd() else {**OPTIONS, "maxnreg": registers}
            self.launch(kernel, grid, *arguments, **sizes, num_warps=warps, **options)

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        kernel[grid](*arguments, **options)

    def on_chip(
        self, memory: Tensor, num_heads: int, num_taps: int = 1, sequence: bool = False
    ) -> OnChip | None:
        """The table's row for a memory that one program can hold; ``None`` if none can."""
        _, memory_size, word_size = memory.shape
        return self.table.fitting(
            memory_size, word_size, num_heads, num_taps, memory.dtype, sequence
        )

    def blocks(
        self, row: OnChip, memory: Tensor, num_heads: int, num_taps: int = 0, **sizes: Any
    ) -> dict[str, Any]:
        """Launch parameters and compile-time sizes of a program that holds the whole memory."""
        _, memory_size, word_size = memory.shape
        if num_taps:
            sizes |= {"S": num_taps, "BS": padded(num_taps)}
        return {
            "N": memory_size,
            "M": word_size,
            "BH": padded(num_heads),
            "BN": padded(memory_size),
            "BM": padded(word_size),
            "ACC": self.kernels.ACC[arithmetic_dtype(memory.dtype)],
            "warps": row.warps,
            "registers": most_registers(row.warps),
            **sizes,
        }

    def tiled(self, memory: Tensor, **sizes: Any) -> Tiled:
        return Tiled(self.run, self.kernels, self.table, memory.contiguous(), **sizes)

    def address(
        self,
        memory: Tensor,
        key: Tensor,
        strength: Tensor,
        gate: Tensor,
        shift: Tensor,
        sharpening: Tensor,
        previous_weightings: Tensor,
        save_for_backward: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        arguments = contiguous(memory, key, strength, gate, shift, sharpening, previous_weightings)
        (weightings,) = new_like(previous_weightings)
        batch, num_heads, num_taps = shift.shape
        row = self.on_chip(memory, num_heads, num_taps)
        if row is not None:
            blocks = self.blocks(row, memory, num_heads, num_taps, H=num_heads)
            self.run(self.kernels.address_kernel, (batch,), *arguments, weightings, **blocks)
            return weightings, []
        tiled = self.tiled(memory, num_heads=num_heads, num_taps=num_taps)
        _, *parameters, previous = arguments
        given = _addressing(*parameters)
        chain = tiled.address(given, previous)
        tiled.finish(weightings, chain, given)
        return weightings, []

    def address_backward(
        self,
        grad_weightings: Tensor,
        memory: Tensor,
        key: Tensor,
        strength: Tensor,
        gate: Tensor,
        shift: Tensor,
        sharpening: Tensor,
        previous_weightings: Tensor,
        weightings: Tensor,
        saved: list[Tensor],
    ) -> tuple[Tensor, ...]:
        given = memory, key, strength, gate, shift, sharpening, previous_weightings
        arguments, results = contiguous(grad_weightings, *given), new_like(*given)
        batch, num_heads, num_taps = shift.shape
        row = self.on_chip(memory, num_heads, num_taps)
        if row is not None:
            blocks = self.blocks(row, memory, num_heads, num_taps, H=num_heads)
            self.run(self.kernels.address_backward_kernel, (batch,), *arguments, *results, **blocks)
            return results
        tiled = self.tiled(memory, num_heads=num_heads, num_taps=num_taps)
        d_weightings, _, *parameters, previous = arguments
        widths = (*(part.shape[1:].numel() for part in given[1:6]), 0, 0)
        given_heads = _addressing(*parameters)
        chain = tiled.address(given_heads, previous)
        parts = tiled.gradient_parts(sum(widths))
        d_all_weightings = tiled.weighting()
        means = tiled.finish_backward(
            [None, None, d_weightings],
            None,
            d_all_weightings,
            chain=chain,
            sharpening=given_heads.sharpening,
        )
        tiled.address_backward(
            d_all_weightings,
            means,
            chain,
            given_heads,
            previous,
            split(parts, widths),
            None,
            results[0],
            results[6],
        )
        total = tiled.combine(parts, parts.new_empty(batch, sum(widths)))
        d_heads = split(total, widths)
        return (results[0], *_shaped(d_heads[:5], given[1:6]), results[6])

    def read(self, memory: Tensor, weightings: Tensor) -> Tensor:
        batch, num_heads, _ = weightings.shape
        arguments = contiguous(memory, weightings)
        reads = memory.new_empty(batch, num_heads, memory.shape[2])
        row = self.on_chip(memory, num_heads)
        if row is not None:
            blocks = self.blocks(row, memory, num_heads, R=num_heads)
            self.run(self.kernels.read_kernel, (batch,), *arguments, reads, **blocks)
        else:
            tiled = self.tiled(memory, num_heads=num_heads, num_read_heads=num_heads)
            tiled.finish(arguments[1], reads=reads)
        return reads

    def read_backward(
        self, grad_read_vectors: Tensor, memory: Tensor, weightings: Tensor
    ) -> tuple[Tensor, ...]:
        batch, num_heads, _ = weightings.shape
        arguments = contiguous(grad_read_vectors, memory, weightings)
        results = new_like(memory, weightings)
        row = self.on_chip(memory, num_heads)
        if row is not None:
            blocks = self.blocks(row, memory, num_heads, R=num_heads)
            self.run(self.kernels.read_backward_kernel, (batch,), *arguments, *results, **blocks)
        else:
            tiled = self.tiled(memory, num_heads=num_heads, num_read_heads=num_heads)
            d_reads, _, weightings = arguments
            tiled.finish_backward([d_reads, None, None], *results, weightings=weightings)
        return results

    def write(self, memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor) -> Tensor:
        batch, num_heads, _ = weightings.shape
        arguments = contiguous(memory, weightings, erase, add)
        (written,) = new_like(memory)
        row = self.on_chip(memory, num_heads)
        if row is not None:
            blocks = self.blocks(row, memory, num_heads, W=num_heads)
            self.run(self.kernels.write_kernel, (batch,), *arguments, written, **blocks)
        else:
            tiled = self.tiled(memory, num_heads=num_heads, num_write_heads=num_heads)
            _, weightings, erase, add = arguments
            tiled.finish(weightings, erase=erase, add=add, written=written)
        return written

    def write_backward(
        self, grad_memory: Tensor, memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor
    ) -> tuple[Tensor, ...]:
        batch, num_heads, _ = weightings.shape
        arguments = contiguous(grad_memory, memory, weightings, erase, add)
        results = new_like(memory, weightings, erase, add)
        row = self.on_chip(memory, num_heads)
        if row is not None:
            blocks = self.blocks(row, memory, num_heads, W=num_heads)
            self.run(self.kernels.write_backward_kernel, (batch,), *arguments, *results, **blocks)
            return results
        tiled = self.tiled(memory, num_heads=num_heads, num_write_heads=num_heads)
        d_written, _, *others = arguments
        width = erase.shape[1:].numel()
        parts = tiled.gradient_parts(2 * width)
        tiled.finish_backward(
            [None, d_written, None],
            *results[:2],
            weightings=others[0],
            erase=others[1],
            add=others[2],
            d_erase=parts[..., :width],
            d_add=parts[..., width:],
        )
        total = tiled.combine(parts, parts.new_empty(batch, 2 * width))
        return (*results[:2], *_shaped(total.split(width, -1), (erase, add)))

    def step(
        self,
        memory: Tensor,
        interface: Tensor,
        previous_weightings: Tensor,
        sizes: Sizes,
        save_for_backward: bool,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        arguments = contiguous(memory, interface, previous_weightings)
        reads = memory.new_empty(sizes.batch, sizes.num_read_heads, sizes.word_size)
        written, weightings = new_like(memory, previous_weightings)
        results = reads, written, weightings
        row = self.on_chip(memory, sizes.num_heads, sizes.num_taps)
        if row is not None:
            blocks = self.step_blocks(row, memory, sizes)
            self.run(self.kernels.step_kernel, (sizes.batch,), *arguments, *results, **blocks)
            return *results, []
        tiled = self.tiled_step(memory, sizes)
        _, raw, previous = arguments
        heads = split(raw, sizes.layout.widths)
        chain = tiled.address(heads, previous)
        tiled.finish(weightings, chain, heads, heads.erase, heads.add, reads, written)
        return *results, []

    def step_backward(
        self,
        grad_read_vectors: Tensor | None,
        grad_memory: Tensor | None,
        grad_weightings: Tensor | None,
        memory: Tensor,
        interface: Tensor,
        previous_weightings: Tensor,
        weightings: Tensor,
        saved: list[Tensor],
        sizes: Sizes,
    ) -> tuple[Tensor, ...]:
        given = memory, interface, previous_weightings
        grads = contiguous_if(grad_read_vectors, grad_memory, grad_weightings)
        arguments, results = contiguous(*given, weightings), new_like(*given)
        row = self.on_chip(memory, sizes.num_heads, sizes.num_taps)
        if row is not None:
            blocks = self.step_blocks(row, memory, sizes)
            kernel = self.kernels.step_backward_kernel
            self.run(kernel, (sizes.batch,), *grads, *arguments, *results, **blocks)
            return results
        tiled = self.tiled_step(memory, sizes)
        _, raw, previous, _ = arguments
        d_memory, d_interface, d_previous = results
        layout = sizes.layout
        heads = split(raw, layout.widths)
        chain = tiled.address(heads, previous)
        parts = tiled.gradient_parts(layout.size)
        d_heads = split(parts, layout.widths)
        d_finish, d_weightings = tiled.whole_memory(), tiled.weighting()
        means = tiled.finish_backward(
            grads,
            d_finish,
            d_weightings,
            chain=chain,
            sharpening=heads.sharpening,
            erase=heads.erase,
            add=heads.add,
            d_erase=d_heads.erase,
            d_add=d_heads.add,
        )
        tiled.address_backward(
            d_weightings, means, chain, heads, previous, d_heads, d_finish, d_memory, d_previous
        )
        tiled.combine(parts, d_interface)
        return results

    def tiled_step(self, memory: Tensor, sizes: Sizes) -> Tiled:
        return self.tiled(
            memory,
            num_heads=sizes.num_heads,
            num_taps=sizes.num_taps,
            num_read_heads=sizes.num_read_heads,
            num_write_heads=sizes.num_write_heads,
            stride=sizes.layout.size,
        )

    def step_blocks(self, row: OnChip, memory: Tensor, sizes: Sizes) -> dict[str, Any]:
        return self.blocks(
            row,
            memory,
            sizes.num_heads,
            sizes.num_taps,
            R=sizes.num_read_heads,
            W=sizes.num_write_heads,
            P=sizes.layout.size,
        )

    def sequence(
        self,
        arguments: SequenceArguments,
        sizes: Sizes,
        controller: str,
        save_for_backward: bool,
        return_trace: bool,
    ) -> tuple[SequenceOutputs, list[Tensor]]:
        keep = save_for_backward or return_trace
        row = self.on_chip(arguments.memory, sizes.num_heads, sizes.num_taps, sequence=True)
        if row is None:
            outputs, saved = steps.sequence(self, arguments, sizes, save_for_backward, keep)
        else:
            outputs, saved = persistent.sequence(
                self, row, arguments, sizes, save_for_backward, keep
            )
        if return_trace:
            outputs = outputs._replace(
                # A copy if the backward is to read the original: the trace is the caller's.
                trace_weightings=saved[1].to(arguments.weightings.dtype, copy=save_for_backward),
                trace_interface=_activated(saved[2], sizes.layout),
            )
        return outputs, saved if save_for_backward else []

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
        row = self.on_chip(arguments.memory, sizes.num_heads, sizes.num_taps, sequence=True)
        if row is None:
            d_gates, d_interface, d_state = steps.sequence_backward(
                self, grads, arguments, hidden, saved, sizes
            )
        else:
            d_gates, d_interface, d_state = persistent.sequence_backward(
                self, row, grads, arguments, hidden, saved, sizes
            )
        none = saved[0].new_empty(0)
        d_controller = d_state[3:] if controller == "lstm" else (none, none.clone())
        return (
            d_gates.to(arguments.input.dtype),
            *_weight_gradients(d_gates, d_interface, arguments, hidden, read_vectors),
            *d_state[:3],
            *d_controller,
        )


def _addressing(
    key: Tensor, strength: Tensor, gate: Tensor, shift: Tensor, sharpening: Tensor
) -> HeadParameters:
    """Parameters of heads that write nothing."""
    none = key.new_empty(0)
    return HeadParameters(key, strength, gate, shift, sharpening, none, none)


def _shaped(results: Iterable[Tensor], like: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Contiguous results in the shapes and dtypes of ``like``."""
    return tuple(
        result.reshape(target.shape).to(target.dtype).contiguous()
        for result, target in zip(results, like, strict=True)
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
    seen = steps.before(arguments.read_vectors, read_vectors).flatten(2)
    if arguments.hidden is not None:
        seen = torch.cat((seen, steps.before(arguments.hidden, hidden)), -1)
    d_interface = d_interface.flatten(0, 1)
    results = (
        torch.mm(d_gates.flatten(0, 1).mT, seen.flatten(0, 1).to(d_gates.dtype)),
        torch.mm(d_interface.mT, hidden.flatten(0, 1).to(d_interface.dtype)),
        d_interface.sum(0),
    )
    recurrent, weight, bias = (
        result.to(like.dtype) for result, like in zip(results, arguments[1:4], strict=True)
    )
    return recurrent, weight, bias
