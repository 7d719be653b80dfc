"""Counts of the CUDA kernels at work, from the instrumented emulator: exact, and no times."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntm_kernels.backends import Problem, SequenceArguments, Sizes
from ntm_kernels.backends.cuda import CudaBackend
from ntm_kernels.backends.cuda.library import Plan


class Counts(NamedTuple):
    """Of one call; ``per_step`` counts are of one time step in the middle of a sequence."""

    kernel: str
    blocks: int
    threads: int
    shared_bytes: int
    launches: int
    barriers: float
    load_bytes: float
    store_bytes: float
    sector_excess: float  # 32-byte sectors moved / those that the bytes need
    wavefronts: float  # of shared memory, per block
    wavefront_excess: float  # wavefronts / those without a bank conflict
    memory_traffic: float  # sectors of M and dM moved / those that must be
    multiply_adds: int = 0  # of the matrix products, per block


class Emulated:
    """The kernels in the instrumented emulator."""

    def __init__(self, library: Path) -> None:
        self.backend = CudaBackend(library, "cpu", "cuda_emulated")
        why_not = self.backend.unavailable()
        if why_not:
            raise RuntimeError(why_not)
        self.library = ctypes.CDLL(str(library))
        self.library.cuda_emulator_counts.restype = ctypes.c_char_p

    def measure(self, call: Callable[[], Any]) -> tuple[list[dict[str, Any]], Any]:
        """Counts of each launch of ``call``, and its result."""
        self.library.cuda_emulator_count(1)
        result = call()
        launches = json.loads(self.library.cuda_emulator_counts())
        return launches, result

    def sectors(self, tensor: Tensor) -> int:
        """Bytes of the 32-byte sectors loaded and stored in a tensor since counting began."""
        counts = (ctypes.c_uint64 * 4)()
        size = ctypes.c_size_t(tensor.numel() * tensor.element_size())
        self.library.cuda_emulator_traffic(ctypes.c_void_p(tensor.data_ptr()), size, counts)
        return 32 * int(counts[1] + counts[3])

    def summarise(
        self, launches: list[dict[str, Any]], memories: list[Tensor], batch: int
    ) -> Counts:
        def total(kind: str, count: str) -> int:
            return sum(launch[kind][count] for launch in launches)

        sectors = total("global_loads", "sectors") + total("global_stores", "sectors")
        needed = total("global_loads", "ideal") + total("global_stores", "ideal")
        wavefronts = total("shared_loads", "wavefronts") + total("shared_stores", "wavefronts")
        ideal = total("shared_loads", "ideal") + total("shared_stores", "ideal")
        moved = sum(self.sectors(memory) for memory in memories)
        floor = sum(memory.numel() * memory.element_size() for memory in memories)
        longest = max(launches, key=lambda launch: launch["barriers"])
        return Counts(
            kernel=longest["kernel"],
            blocks=longest["grid"][0],
            threads=longest["block"][0],
            shared_bytes=longest["shared_bytes"],
            launches=len(launches),
            barriers=sum(launch["barriers"] for launch in launches),
            load_bytes=total("global_loads", "bytes") / batch,
            store_bytes=total("global_stores", "bytes") / batch,
            sector_excess=sectors / max(needed, 1),
            wavefronts=wavefronts / batch,
            wavefront_excess=wavefronts / max(ideal, 1),
            memory_traffic=moved / floor if floor else 0.0,
        )

    def why_not(self, op: str, sizes: Sizes, controller: str = "") -> str | None:
        """Why no kernel serves a call; None if one does."""
        dtype = torch.float32
        return self.backend.unsupported(Problem(op, "cpu", dtype, dtype, controller, sizes))

    def plan(
        self, op: str, sizes: Sizes, controller: str, direction: str, shared_bytes: int
    ) -> Plan:
        """How a call would run where a block has so much shared memory."""
        numbers = (*sizes, int(controller == "lstm"))
        library = self.backend._library
        assert library is not None
        return library.plan(op, direction, False, numbers, shared_bytes)

    def step(self, sizes: Sizes, backward: bool) -> list[Counts]:
        """Forward of ``step``, and its backward with every gradient given."""
        generator = torch.Generator().manual_seed(0)
        batch, rows, heads = sizes.batch, sizes.memory_size, sizes.num_heads
        memory = torch.randn(batch, rows, sizes.word_size, generator=generator)
        interface = torch.randn(batch, sizes.layout.size, generator=generator)
        previous = torch.randn(batch, heads, rows, generator=generator).softmax(-1)
        launches, result = self.measure(
            lambda: self.backend.step(memory, interface, previous, sizes, True)
        )
        reads, written, weightings, saved = result
        forward = self.summarise(launches, [memory, written], batch)
        if not backward:
            return [forward]
        d_reads, d_written, d_weightings = (
            torch.randn(output.shape, generator=generator)
            for output in (reads, written, weightings)
        )
        given = d_reads, d_written, d_weightings, memory, interface, previous
        launches, result = self.measure(
            lambda: self.backend.step_backward(*given, weightings, saved, sizes)
        )
        return [forward, self.summarise(launches, [memory, d_written, result[0]], batch)]

    def sequence(self, sizes: Sizes, controller: str) -> list[Counts]:
        """Forward and backward of one step: the difference between a sequence and half of it."""
        half = sizes._replace(time=sizes.time // 2)
        whole, part = self._sequence(sizes, controller), self._sequence(half, controller)
        steps = sizes.time - half.time
        hidden, reads = sizes.hidden_size, sizes.num_read_heads * sizes.word_size
        gates, inputs = (4 * hidden, hidden + reads) if controller == "lstm" else (hidden, reads)
        products = gates * inputs + sizes.layout.size * hidden
        forward, backward = (_per_step(*pair, steps) for pair in zip(whole, part, strict=True))
        # The gradients of the weights are left to matrix products after the launch.
        return [counts._replace(multiply_adds=products) for counts in (forward, backward)]

    def _sequence(self, sizes: Sizes, controller: str) -> tuple[Counts, Counts]:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator) * 0.1

        batch, hidden, is_lstm = sizes.batch, sizes.hidden_size, controller == "lstm"
        gates = 4 * hidden if is_lstm else hidden
        reads = sizes.num_read_heads * sizes.word_size
        layout = sizes.layout
        arguments = SequenceArguments(
            input=random(sizes.time, batch, gates),
            recurrent_weight=random(gates, reads + (hidden if is_lstm else 0)),
            interface_weight=random(layout.size, hidden),
            interface_bias=random(layout.size),
            memory=random(batch, sizes.memory_size, sizes.word_size),
            weightings=random(batch, sizes.num_heads, sizes.memory_size).softmax(-1),
            read_vectors=random(batch, sizes.num_read_heads, sizes.word_size),
            hidden=random(batch, hidden) if is_lstm else None,
            cell=random(batch, hidden) if is_lstm else None,
            lengths=None,
        )
        launches, (outputs, saved) = self.measure(
            lambda: self.backend.sequence(arguments, sizes, controller, True, False)
        )
        memories = [arguments.memory, outputs.memory]
        forward = self.summarise(launches, memories, batch)
        grads: list[Tensor | None] = [random(*output.shape) for output in outputs[:7]]
        if not is_lstm:
            grads[5:] = [None, None]
        launches, result = self.measure(
            lambda: self.backend.sequence_backward(
                grads, arguments, outputs.hidden, outputs.read_vectors, saved, sizes, controller
            )
        )
        d_memory = grads[2]
        assert d_memory is not None
        return forward, self.summarise(launches, [d_memory, result[4]], batch)


def _per_step(whole: Counts, part: Counts, steps: int) -> Counts:
    per_step = ("barriers", "load_bytes", "store_bytes", "wavefronts")
    return whole._replace(
        **{name: (getattr(whole, name) - getattr(part, name)) / steps for name in per_step}
    )
