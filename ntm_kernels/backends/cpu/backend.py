"""The backend ``cpu``: compiled C++ for CPUs, the instruction set chosen at run time.

``csrc/cpu`` has the stages under the names of ``ntm_kernels.backends.torch``. A call is one C++
op; sequences of the batch go to the threads of ``torch.get_num_threads()``, and results have the
same bits for any number of them.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ntm_kernels.backends.base import (
    Backend,
    BackendError,
    Problem,
    SequenceArguments,
    SequenceOutputs,
    Sizes,
)

LIBRARY = Path(__file__).parents[2] / "_cpu.so"


def load(library: Path) -> str | None:
    """Load the kernels; why that failed, or ``None``."""
    if not library.exists():
        return (
            "the CPU kernels are not built; `python setup.py build_ext --inplace` builds them "
            "where there is a C++ compiler"
        )
    try:
        torch.ops.load_library(library)
        torch.ops.ntm_cpu.isa()
    except (OSError, RuntimeError) as error:
        return f"{library.name} does not load: {error}"
    return None


class CpuBackend(Backend):
    """Compiled C++ kernels for CPUs."""

    name = "cpu"
    projects_input = True
    differentiates = frozenset({"step", "sequence"})

    def __init__(self, library: Path = LIBRARY) -> None:
        self._why_not = load(library)
        self._warned = False

    def unavailable(self) -> str | None:
        return self._why_not

    def missed(self, device: str, why_not: str) -> None:
        """Warns once, on a CPU; raises ``BackendError`` where NTM_KERNELS_ISA is not served."""
        if device != "cpu":
            return
        if os.environ.get("NTM_KERNELS_ISA"):
            raise BackendError(why_not)
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"ntm_kernels computes on the slower backend 'reference': {why_not}",
                RuntimeWarning,
                stacklevel=2,
            )

    def unsupported(self, problem: Problem) -> str | None:
        if problem.device != "cpu":
            return f"it runs on the cpu, the arguments are on {problem.device}"
        return None

    def describe(self) -> str:
        return f"C++ on the CPU, {torch.ops.ntm_cpu.isa()}"

    def saved_shapes(self, op: str, sizes: Sizes, controller: str = "") -> list[tuple[int, ...]]:
        if op != "sequence":
            return []
        steps = (sizes.time, sizes.batch)
        cells = sizes.hidden_size if controller == "lstm" else 0
        stride = (sizes.memory_size + 15) // 16 // 2 * 32 + 16
        return [
            (sizes.num_checkpoints, sizes.batch, sizes.word_size, stride),
            (*steps, sizes.num_heads, sizes.memory_size),
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
        weightings = torch.ops.ntm_cpu.address(
            memory, key, strength, gate, shift, sharpening, previous_weightings
        )
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
        return tuple(
            torch.ops.ntm_cpu.address_backward(
                grad_weightings, memory, key, strength, gate, shift, sharpening, previous_weightings
            )
        )

    def read(self, memory: Tensor, weightings: Tensor) -> Tensor:
        return torch.ops.ntm_cpu.read(memory, weightings)

    def read_backward(
        self, grad_read_vectors: Tensor, memory: Tensor, weightings: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(torch.ops.ntm_cpu.read_backward(grad_read_vectors, memory, weightings))

    def write(self, memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor) -> Tensor:
        return torch.ops.ntm_cpu.write(memory, weightings, erase, add)

    def write_backward(
        self, grad_memory: Tensor, memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(torch.ops.ntm_cpu.write_backward(grad_memory, memory, weightings, erase, add))

    def step(
        self,
        memory: Tensor,
        interface: Tensor,
        previous_weightings: Tensor,
        sizes: Sizes,
        save_for_backward: bool,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        read_vectors, written, weightings = torch.ops.ntm_cpu.step(
            memory,
            interface,
            previous_weightings,
            sizes.num_read_heads,
            sizes.num_write_heads,
            sizes.shift_range,
        )
        return read_vectors, written, weightings, []

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
        return tuple(
            torch.ops.ntm_cpu.step_backward(
                grad_read_vectors,
                grad_memory,
                grad_weightings,
                memory,
                interface,
                previous_weightings,
                sizes.num_read_heads,
                sizes.num_write_heads,
                sizes.shift_range,
            )
        )

    def sequence(
        self,
        arguments: SequenceArguments,
        sizes: Sizes,
        controller: str,
        save_for_backward: bool,
        return_trace: bool,
    ) -> tuple[SequenceOutputs, list[Tensor]]:
        results = torch.ops.ntm_cpu.sequence(
            *arguments,
            sizes.num_read_heads,
            sizes.num_write_heads,
            sizes.shift_range,
            sizes.segment,
            save_for_backward,
            return_trace,
        )
        return SequenceOutputs(*results[:9]), results[9:]

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
        results = torch.ops.ntm_cpu.sequence_backward(
            grads,
            *arguments,
            hidden,
            read_vectors,
            saved,
            sizes.num_read_heads,
            sizes.num_write_heads,
            sizes.shift_range,
            sizes.segment,
        )
        return tuple(results if arguments.input_weight is not None else results[:9])
