"""Launches kernels: on which device, with which options and compile-time sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ntm_kernels.backends.triton.launch_table import TABLE, Table, most_registers, padded
from ntm_kernels.backends.triton.records import Block, Shape
from ntm_kernels.ops import Sizes
from ntm_kernels.reference import arithmetic_dtype

# One pipeline stage: with more, a loop would load the data of an iteration before the iteration
# before it has stored them. Fusing multiplications with additions is asked for, since it loses no
# accuracy and Triton's default differs between versions.
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}


class Launcher:
    """Launches kernels with the parameters of ``table``."""

    def __init__(self, table: Table = TABLE) -> None:
        self.table = table

    @cached_property
    def kernels(self) -> ModuleType:
        """All kernels; imported on the first call, since not every machine has Triton."""
        from ntm_kernels.backends.triton import kernels

        return kernels

    def on_amd(self) -> bool:
        return torch.version.hip is not None

    def run(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        *arguments: Any,
        warps: int,
        registers: int | None = None,
        **constants: Any,
    ) -> None:
        """Launch ``kernel`` on the device of its tensors, on the current stream.

        Arguments are tensors, records of tensors and numbers; constants are known when compiling.
        """
        if 0 in grid:
            return
        device = next(tensors_in(arguments)).device
        guard: AbstractContextManager[Any] = nullcontext()
        if device.type == "cuda":
            guard = torch.cuda.device(device)
        with guard:
            options = OPTIONS if self.on_amd() else {**OPTIONS, "maxnreg": registers}
            self.launch(kernel, grid, *arguments, **constants, num_warps=warps, **options)

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        kernel[grid](*arguments, **options)

    def accumulator(self, dtype: torch.dtype) -> Any:
        """Triton's name of the arithmetic dtype for a memory of ``dtype``."""
        return self.kernels.ACC[arithmetic_dtype(dtype)]

    def in_registers(
        self, warps: int, letters: str, sizes: Sizes, dtype: torch.dtype
    ) -> dict[str, Any]:
        """What a program of ``warps`` that holds a memory of ``dtype`` is compiled for: the sizes
        of ``letters``, the blocks that hold them, and the launch parameters."""
        block = Block(
            self.accumulator(dtype),
            H=padded(sizes.num_heads),
            N=padded(sizes.memory_size),
            M=padded(sizes.word_size),
            S=padded(sizes.num_taps) if "S" in letters else 0,
        )
        return {
            "shape": Shape.of(sizes, letters),
            "block": block,
            "warps": warps,
            "registers": most_registers(warps),
        }


def tensors_in(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among ``arguments``, those inside of records too."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, tuple):
            yield from tensors_in(argument)
