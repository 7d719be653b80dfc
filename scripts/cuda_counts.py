"""Counts of the CUDA kernels at work, from the instrumented emulator: exact, and no times."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntm_kernels.backends import Problem
from ntm_kernels.backends.cuda import CudaBackend
from ntm_kernels.backends.cuda.run import Runner
from ntm_kernels.backends.cuda.structs import Plan, kernel_sizes
from ntm_kernels.ops import SequenceInputs, Sizes, StepInputs
from ntm_kernels.ops.declare import Outputs, fields


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


class Emulated:
    """The kernels in the instrumented emulator."""

    def __init__(self, library: Path) -> None:
        self.backend = CudaBackend(library, Runner("cpu"), "cuda_emulated")
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

    def why_not(self, op: str, sizes: Sizes) -> str | None:
        """Why no kernel serves a call; None if one does."""
        return self.backend.unsupported(Problem(op, "cpu", torch.float32, sizes))

    def plan(self, op: str, sizes: Sizes, direction: str, shared_bytes: int) -> Plan:
        """How a call would run where a block has so much shared memory."""
        library, told = self.backend.runner.library, kernel_sizes(sizes)
        return library.plan(op, direction, False, told, shared_bytes)

    def step(self, sizes: Sizes, backward: bool) -> list[Counts]:
        """Forward of ``step``, and its backward with every gradient given."""
        inputs, random = random_call("step", sizes)
        kernel, batch = self.backend.kernels["step"], sizes.batch
        launches, (outputs, saved) = self.measure(lambda: kernel.forward(inputs, sizes, True))
        forward = self.summarise(launches, [inputs.memory, outputs.memory], batch)
        if not backward:
            return [forward]
        grads = random.like(outputs)
        launches, found = self.measure(
            lambda: kernel.backward(grads, inputs, outputs, saved, sizes, frozenset())
        )
        return [
            forward,
            self.summarise(launches, [inputs.memory, grads.memory, found.memory], batch),
        ]

    def sequence(self, sizes: Sizes) -> list[Counts]:
        """Forward and backward of one step: the difference between a sequence and half of it."""
        half = sizes._replace(time=sizes.time // 2)
        whole, part = self._sequence(sizes), self._sequence(half)
        steps = sizes.time - half.time
        # The gradients of the weights are left to matrix products after the launch.
        return [_per_step(*pair, steps) for pair in zip(whole, part, strict=True)]

    def _sequence(self, sizes: Sizes) -> tuple[Counts, Counts]:
        inputs, random = random_call("sequence", sizes)
        kernel, batch = self.backend.kernels["sequence"], sizes.batch
        launches, (outputs, saved) = self.measure(lambda: kernel.forward(inputs, sizes, True))
        forward = self.summarise(launches, [inputs.initial_memory, outputs.final_memory], batch)
        grads = random.like(outputs)
        launches, found = self.measure(
            lambda: kernel.backward(grads, inputs, outputs, saved, sizes, frozenset())
        )
        memories = [grads.final_memory, found.initial_memory]
        return forward, self.summarise(launches, memories, batch)


class Random:
    """Tensors of random numbers, the same in each run."""

    def __init__(self, sizes: Sizes, scale: float = 1) -> None:
        self.sizes, self.scale = sizes, scale
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, letters: str) -> Tensor:
        shape = self.sizes.shape(letters)
        return torch.randn(shape, generator=self.generator) * self.scale

    def like(self, outputs: Outputs) -> Outputs:
        """A gradient for each output that is there."""
        shapes = zip(fields(type(outputs)).values(), outputs, strict=True)
        return outputs._make(None if part is None else self(field.dims) for field, part in shapes)


def random_call(op: str, sizes: Sizes) -> tuple[Any, Random]:
    """Inputs of a call of ``step`` or ``sequence``, and the source of more such numbers."""
    if op == "step":
        random = Random(sizes)
        return step_inputs(random), random
    random = Random(sizes, 0.1)
    return sequence_inputs(random), random


def step_inputs(random: Random) -> StepInputs:
    return StepInputs(
        memory=random("B N M"),
        interface=random("B P"),
        previous_weightings=random("B H N").softmax(-1),
    )


def sequence_inputs(random: Random) -> SequenceInputs:
    is_lstm = random.sizes.is_lstm
    return SequenceInputs(
        x=random("T B G"),
        recurrent_weight=random("G K"),
        interface_weight=random("P C"),
        interface_bias=random("P"),
        initial_memory=random("B N M"),
        initial_weightings=random("B H N").softmax(-1),
        initial_read_vectors=random("B R M"),
        initial_hidden=random("L B C") if is_lstm else None,
        initial_cell=random("L B C") if is_lstm else None,
        lengths=None,
        input_weight=None,
        input_bias=None,
        upper_weight=random("U G J") if random.sizes.is_deep else None,
        upper_bias=random("U G") if random.sizes.is_deep else None,
    )


def _per_step(whole: Counts, part: Counts, steps: int) -> Counts:
    per_step = ("barriers", "load_bytes", "store_bytes", "wavefronts")
    return whole._replace(
        **{name: (getattr(whole, name) - getattr(part, name)) / steps for name in per_step}
    )
