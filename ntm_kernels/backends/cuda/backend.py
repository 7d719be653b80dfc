"""The ``Backend`` interface over the library: allocate, plan, launch."""

from __future__ import annotations

from contextlib import nullcontext
from operator import index
from pathlib import Path

import torch
from torch import Tensor

from ntm_kernels.backends.base import (
    Backend,
    Problem,
    SequenceArguments,
    SequenceOutputs,
    Sizes,
)
from ntm_kernels.backends.cuda.library import LIBRARY, CudaLibrary, Plan
from ntm_kernels.reference import arithmetic_dtype

_INT32_MAX = 2**31 - 1


class CudaBackend(Backend):
    """Compiled CUDA kernels from ``library``, for tensors on ``device_type``."""

    def __init__(
        self, library: Path = LIBRARY, device_type: str = "cuda", name: str = "cuda"
    ) -> None:
        self.name = name
        self._path, self._device_type = library, device_type
        self._library: CudaLibrary | None = None
        self._why_not: str | None = None

    def unavailable(self) -> str | None:
        if self._device_type == "cuda" and torch.version.hip is not None:
            return "this torch is for ROCm, whose devices the backend triton serves"
        if self._device_type == "cuda" and not torch.cuda.is_available():
            return "there is no CUDA device"
        if self._library is None and self._why_not is None:
            self._why_not = self._load()
        return self._why_not

    def _load(self) -> str | None:
        """Open the library; or why not, or why it runs on no device of this machine."""
        if not self._path.exists():
            return (
                "the CUDA kernels are not built; `python setup.py build_ext --inplace` builds "
                "them where there is nvcc"
            )
        try:
            library = CudaLibrary(self._path)
        except (OSError, AttributeError) as error:
            return f"{self._path.name} does not load: {error}"
        refusals = [library.unserved(device) for device in self._devices()]
        if None not in refusals:
            return "; ".join(dict.fromkeys(map(str, refusals)))
        self._library = library
        return None

    def _devices(self) -> range:
        return range(torch.cuda.device_count() if self._device_type == "cuda" else 1)

    def describe(self) -> str:
        assert self._library is not None
        states = [
            self._library.unserved(device)
            or f"{self._shared_limit(device)} bytes of shared memory in a block"
            for device in self._devices()
        ]
        if len(set(states)) > 1:
            states = [f"device {device}: {state}" for device, state in enumerate(states)]
        return f"CUDA kernels, {'; '.join(dict.fromkeys(states))}"

    def unsupported(self, problem: Problem) -> str | None:
        if problem.device != self._device_type:
            return f"it runs on {self._device_type}, the arguments are on {problem.device}"
        # These are of no consequence, and torch.compile may leave them open.
        sizes = problem.sizes._replace(batch=1, time=1, checkpoint_every=1)
        return _unplanned(
            self,
            problem.op,
            problem.memory_dtype,
            problem.controller,
            problem.device_index,
            *map(index, sizes),
        )

    def how(self, problem: Problem) -> str:
        sizes = problem.sizes
        forward, backward = (
            self._plan(
                problem.op,
                problem.memory_dtype,
                problem.controller,
                problem.device_index,
                sizes,
                direction,
            )
            for direction in ("forward", "backward")
        )
        if forward.tiled:
            return "the memory in tiles over the whole card"
        resident = forward.tile_rows >= sizes.memory_size
        text = "one block a sequence, the memory "
        text += "in shared memory" if resident else f"from L2, {forward.tile_rows} rows at a time"
        if problem.op == "sequence":
            text += (
                f"; of the controller's weights {forward.weight_bytes[2]} bytes from L2 at each "
                f"step, {backward.weight_bytes[2]} in its backward"
            )
        return text

    def saved_shapes(self, op: str, sizes: Sizes, controller: str = "") -> list[tuple[int, ...]]:
        if op in ("read", "write"):
            return []
        weighting = (sizes.num_heads, sizes.memory_size)
        if op != "sequence":
            return [(sizes.batch, *weighting)]
        steps = (sizes.time, sizes.batch)
        cells = sizes.hidden_size if controller == "lstm" else 0
        return [
            (sizes.num_checkpoints, sizes.batch, sizes.word_size, sizes.memory_size),
            (*steps, *weighting),
            (*steps, sizes.layout.size),
            (*steps, 4 * cells),
            (*steps, cells),
        ]

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
        sizes = _sizes(memory, key.shape[1], num_taps=shift.shape[2])
        weightings = _empty_like(previous_weightings)
        saved = self._saved("address", memory, sizes) if save_for_backward else []
        self._run(
            "address",
            "forward",
            sizes,
            memory=memory,
            key=key,
            strength=strength,
            gate=gate,
            shift=shift,
            sharpening=sharpening,
            previous_weightings=previous_weightings,
            weightings=weightings,
            saved_weightings=saved[0] if saved else None,
        )
        return weightings, saved

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
        sizes = _sizes(memory, key.shape[1], num_taps=shift.shape[2])
        given = {
            "memory": memory,
            "key": key,
            "strength": strength,
            "gate": gate,
            "shift": shift,
            "sharpening": sharpening,
            "previous_weightings": previous_weightings,
        }
        grads = [_empty_like(tensor) for tensor in given.values()]
        names = ("memory", "key", "strength", "gate", "shift", "sharpening", "previous")
        results = {f"d_{name}": grad for name, grad in zip(names, grads, strict=True)}
        self._run(
            "address",
            "backward",
            sizes,
            d_weightings=grad_weightings,
            saved_weightings=saved[0],
            is_lstm=False,
            **given,
            **results,
        )
        return tuple(grads)

    def read(self, memory: Tensor, weightings: Tensor) -> Tensor:
        read_vectors = memory.new_empty(memory.shape[0], weightings.shape[1], memory.shape[2])
        sizes = _sizes(memory, weightings.shape[1])
        self._run(
            "read",
            "forward",
            sizes,
            memory=memory,
            weightings=weightings,
            read_vectors=read_vectors,
        )
        return read_vectors

    def read_backward(
        self, grad_read_vectors: Tensor, memory: Tensor, weightings: Tensor
    ) -> tuple[Tensor, ...]:
        d_memory, d_weightings = _empty_like(memory), _empty_like(weightings)
        self._run(
            "read",
            "backward",
            _sizes(memory, weightings.shape[1]),
            memory=memory,
            weightings=weightings,
            d_read_vectors=grad_read_vectors,
            d_memory=d_memory,
            d_weightings=d_weightings,
        )
        return d_memory, d_weightings

    def write(self, memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor) -> Tensor:
        written = _empty_like(memory)
        self._run(
            "write",
            "forward",
            _sizes(memory, 0, weightings.shape[1]),
            memory=memory,
            weightings=weightings,
            erase=erase,
            add=add,
            written=written,
        )
        return written

    def write_backward(
        self, grad_memory: Tensor, memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor
    ) -> tuple[Tensor, ...]:
        grads = tuple(_empty_like(tensor) for tensor in (memory, weightings, erase, add))
        d_memory, d_weightings, d_erase, d_add = grads
        self._run(
            "write",
            "backward",
            _sizes(memory, 0, weightings.shape[1]),
            memory=memory,
            weightings=weightings,
            erase=erase,
            add=add,
            d_written=grad_memory,
            d_memory=d_memory,
            d_weightings=d_weightings,
            d_erase=d_erase,
            d_add=d_add,
        )
        return grads

    def step(
        self,
        memory: Tensor,
        interface: Tensor,
        previous_weightings: Tensor,
        sizes: Sizes,
        save_for_backward: bool,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        read_vectors = memory.new_empty(sizes.batch, sizes.num_read_heads, sizes.word_size)
        written, weightings = _empty_like(memory), _empty_like(previous_weightings)
        saved = self._saved("step", memory, sizes) if save_for_backward else []
        self._run(
            "step",
            "forward",
            sizes,
            memory=memory,
            interface=interface,
            previous_weightings=previous_weightings,
            read_vectors=read_vectors,
            written=written,
            weightings=weightings,
            saved_weightings=saved[0] if saved else None,
        )
        return read_vectors, written, weightings, saved

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
        grads = tuple(_empty_like(tensor) for tensor in (memory, interface, previous_weightings))
        d_memory, d_interface, d_previous = grads
        self._run(
            "step",
            "backward",
            sizes,
            memory=memory,
            interface=interface,
            previous_weightings=previous_weightings,
            d_read_vectors=grad_read_vectors,
            d_written=grad_memory,
            d_weightings=grad_weightings,
            saved_weightings=saved[0],
            d_memory=d_memory,
            d_interface=d_interface,
            d_previous=d_previous,
        )
        return grads

    def sequence(
        self,
        arguments: SequenceArguments,
        sizes: Sizes,
        controller: str,
        save_for_backward: bool,
        return_trace: bool,
    ) -> tuple[SequenceOutputs, list[Tensor]]:
        memory, weightings, reads = arguments.memory, arguments.weightings, arguments.read_vectors
        hidden, cell = arguments.hidden, arguments.cell
        steps = (sizes.time, sizes.batch)
        is_lstm = controller == "lstm"
        dtype = arithmetic_dtype(memory.dtype)
        like_hidden = memory if hidden is None else hidden
        trace_steps = steps if return_trace else (0,)
        outputs = SequenceOutputs(
            hidden=like_hidden.new_empty(*steps, sizes.hidden_size),
            read_vectors=reads.new_empty(sizes.time, *reads.shape),
            memory=_empty_like(memory),
            weightings=_empty_like(weightings),
            final_read_vectors=_empty_like(reads),
            final_hidden=memory.new_empty(0) if hidden is None else _empty_like(hidden),
            final_cell=memory.new_empty(0) if cell is None else _empty_like(cell),
            trace_weightings=weightings.new_empty(
                (*trace_steps, *weightings.shape[1:]) if return_trace else (0,)
            ),
            trace_interface=memory.new_empty(
                (*trace_steps, sizes.layout.size) if return_trace else (0,), dtype=dtype
            ),
        )
        saved = self._saved("sequence", memory, sizes, controller) if save_for_backward else []
        kept = dict(
            zip(
                ("checkpoints", "all_weightings", "interfaces", "gates", "cells"),
                saved,
                strict=False,
            )
        )
        self._run(
            "sequence",
            "forward",
            sizes,
            is_lstm=is_lstm,
            projected_input=arguments.input,
            initial_memory=memory,
            initial_weightings=weightings,
            initial_read_vectors=reads,
            initial_hidden=hidden,
            initial_cell=cell,
            hidden=outputs.hidden,
            read_vectors=outputs.read_vectors,
            memory=outputs.memory,
            weightings=outputs.weightings,
            final_read_vectors=outputs.final_read_vectors,
            final_hidden=outputs.final_hidden if is_lstm else None,
            final_cell=outputs.final_cell if is_lstm else None,
            trace_weightings=outputs.trace_weightings if return_trace else None,
            trace_interface=outputs.trace_interface if return_trace else None,
            lengths=arguments.lengths,
            recurrent_weight=arguments.recurrent_weight.to(dtype),
            interface_weight=arguments.interface_weight.to(dtype),
            interface_bias=arguments.interface_bias.to(dtype),
            **kept,
        )
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
        checkpoints, all_weightings, interfaces, gates, cells = saved
        dtype, is_lstm = checkpoints.dtype, controller == "lstm"
        d_projected = checkpoints.new_empty(arguments.input.shape)
        d_interfaces = torch.empty_like(interfaces)
        starts = arguments.memory, arguments.weightings, arguments.read_vectors
        d_memory, d_weightings, d_reads = (_empty_like(tensor) for tensor in starts)
        controller_state = arguments.hidden, arguments.cell
        d_hidden, d_cell = (
            checkpoints.new_empty(0) if part is None else _empty_like(part)
            for part in controller_state
        )
        names = (
            *("hidden", "read_vectors", "memory", "weightings"),
            *("final_read_vectors", "final_hidden", "final_cell"),
        )
        given = {f"d_{name}": grad for name, grad in zip(names, grads, strict=True)}
        self._run(
            "sequence",
            "backward",
            sizes,
            is_lstm=is_lstm,
            initial_weightings=arguments.weightings,
            initial_cell=arguments.cell,
            hidden=hidden,
            checkpoints=checkpoints,
            all_weightings=all_weightings,
            interfaces=interfaces,
            gates=gates if is_lstm else None,
            cells=cells if is_lstm else None,
            recurrent_weight=arguments.recurrent_weight.to(dtype).T,
            interface_weight=arguments.interface_weight.to(dtype).T,
            lengths=arguments.lengths,
            d_projected=d_projected,
            d_interfaces=d_interfaces,
            d_initial_memory=d_memory,
            d_initial_weightings=d_weightings,
            d_initial_reads=d_reads,
            d_initial_hidden=d_hidden if is_lstm else None,
            d_initial_cell=d_cell if is_lstm else None,
            **given,
        )
        recurrent = _shifted_in(arguments.read_vectors, read_vectors).flatten(2)
        if arguments.hidden is not None:
            recurrent = torch.cat((recurrent, _shifted_in(arguments.hidden, hidden)), -1)
        flat_recurrent, flat_hidden = recurrent.flatten(0, 1).to(dtype), hidden.flatten(0, 1)
        flat_gates, flat_interface = d_projected.flatten(0, 1).T, d_interfaces.flatten(0, 1).T
        weight_dtype = arguments.recurrent_weight.dtype
        return (
            d_projected.to(arguments.input.dtype),
            (flat_gates @ flat_recurrent).to(weight_dtype),
            (flat_interface @ flat_hidden.to(dtype)).to(weight_dtype),
            d_interfaces.sum((0, 1)).to(weight_dtype),
            d_memory,
            d_weightings,
            d_reads,
            d_hidden,
            d_cell,
        )

    def _saved(self, op: str, memory: Tensor, sizes: Sizes, controller: str = "") -> list[Tensor]:
        dtype = arithmetic_dtype(memory.dtype)
        return [
            memory.new_empty(shape, dtype=dtype)
            for shape in self.saved_shapes(op, sizes, controller)
        ]

    def _shared_limit(self, device: int) -> int:
        assert self._library is not None
        return self._library.device(device).shared_limit

    def _why_unplanned(
        self, op: str, dtype: torch.dtype, controller: str, device: int, sizes: Sizes
    ) -> str | None:
        assert self._library is not None
        if why_not := self._library.unserved(device):
            return why_not
        if max(sizes) > _INT32_MAX:
            return f"a size is beyond {_INT32_MAX}"
        rows = {
            "weightings": sizes.num_heads * sizes.memory_size,
            "head parameters": sizes.layout.size,
            "gates' inputs": 4 * (sizes.num_read_heads * sizes.word_size + sizes.hidden_size),
        }
        for what, elements in rows.items():
            if elements > _INT32_MAX:
                return f"the {what} of a sequence have more than {_INT32_MAX} elements"
        for direction in ("forward", "backward"):
            if why_not := self._plan(op, dtype, controller, device, sizes, direction).refusal:
                return f"{direction}: {why_not}"
        return None

    def _plan(
        self,
        op: str,
        dtype: torch.dtype,
        controller: str,
        device: int,
        sizes: Sizes,
        direction: str,
    ) -> Plan:
        assert self._library is not None
        numbers = _numbers(sizes, controller == "lstm")
        is_double = dtype == torch.float64
        return self._library.plan(op, direction, is_double, numbers, self._shared_limit(device))

    def _run(
        self,
        op: str,
        direction: str,
        sizes: Sizes,
        *,
        is_lstm: bool = False,
        **tensors: Tensor | None,
    ) -> None:
        """Launch with contiguous tensors, on the device they are on and its current stream."""
        assert self._library is not None
        present = {
            name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None
        }
        device = next(iter(present.values())).device
        is_double = any(tensor.dtype == torch.float64 for tensor in present.values())
        numbers = _numbers(sizes, is_lstm)
        if max(numbers) > _INT32_MAX:
            raise RuntimeError(f"{op} {direction}: a size is beyond {_INT32_MAX}: {sizes}")
        limit = self._shared_limit(device.index or 0)
        plan = self._library.plan(op, direction, is_double, numbers, limit)
        if why_not := plan.refusal:
            raise RuntimeError(f"{op} {direction}: {why_not}")
        guard = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with guard:
            if plan.workspace_bytes:
                present["workspace"] = torch.empty(
                    plan.workspace_bytes, dtype=torch.uint8, device=device
                )
            stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else 0
            self._library.launch(op, direction, numbers, present, plan, stream)


# A constant to torch.compile, which cannot trace a call into the library.
@torch.compiler.assume_constant_result
def _unplanned(
    backend: CudaBackend, op: str, dtype: torch.dtype, controller: str, device: int, *sizes: int
) -> str | None:
    return backend._why_unplanned(op, dtype, controller, device, Sizes(*sizes))


def _sizes(
    memory: Tensor, num_read_heads: int, num_write_heads: int = 0, num_taps: int = 0
) -> Sizes:
    batch, memory_size, word_size = memory.shape
    return Sizes(batch, memory_size, word_size, num_read_heads, num_write_heads, num_taps)


def _numbers(sizes: Sizes, is_lstm: bool) -> tuple[int, ...]:
    """In the order of ``NtmSizes``."""
    return *sizes._replace(checkpoint_every=sizes.segment), int(is_lstm)


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _shifted_in(first: Tensor, following: Tensor) -> Tensor:
    """What each step started from: ``first``, then ``following`` without its last step."""
    return torch.cat((first.unsqueeze(0), following[:-1]))
