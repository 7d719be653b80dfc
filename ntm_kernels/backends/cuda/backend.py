"""The backend over the library: whether it is there, what it serves and how."""

from __future__ import annotations

from operator import index
from pathlib import Path
from typing import Any

import torch

from ntm_kernels.backends import step_loop
from ntm_kernels.backends.base import Backend, Problem
from ntm_kernels.backends.building import how_to_build
from ntm_kernels.backends.controller_cost import STEP_LOOP
from ntm_kernels.backends.cuda import ways
from ntm_kernels.backends.cuda.address import Address
from ntm_kernels.backends.cuda.library import LIBRARY, CudaLibrary
from ntm_kernels.backends.cuda.read import Read
from ntm_kernels.backends.cuda.run import CudaKernel, Runner
from ntm_kernels.backends.cuda.sequence import Sequence
from ntm_kernels.backends.cuda.step import Step
from ntm_kernels.backends.cuda.structs import Plan, kernel_sizes
from ntm_kernels.backends.cuda.write import Write
from ntm_kernels.backends.trust.identity import digest_of
from ntm_kernels.ops import Sizes
from ntm_kernels.torch_private import assume_constant_result

KERNELS: dict[str, type[CudaKernel[Any, Any, Any]]] = {
    kernel.op.name: kernel for kernel in (Address, Read, Write, Step, Sequence)
}
PARAMS = {op: kernel.params() for op, kernel in KERNELS.items()}


FEW_TAPS = 5  # kFewTaps in csrc/cuda/block.cuh: with more, a shift goes another way
# What each value of NtmPlan::weights_held means (kHold... in csrc/cuda/controller.cuh).
WEIGHTS_HELD = ("", ", weights in registers", ", weights on the chip")

# The runner of each backend that was made, by the number of the backend.
_runners: list[Runner] = []


class CudaBackend(Backend):
    """Compiled CUDA kernels from ``library``; ``runner`` launches them."""

    needs_check = True

    def __init__(
        self, library: Path = LIBRARY, runner: Runner | None = None, name: str = "cuda"
    ) -> None:
        self.name = name
        self.runner = Runner() if runner is None else runner
        self._number = len(_runners)
        _runners.append(self.runner)
        self.kernels = {op: kernel(self.runner) for op, kernel in KERNELS.items()}
        self._path, self._loaded = library, False
        self._why_not: str | None = None

    def unavailable(self) -> str | None:
        if self.runner.device_type == "cuda" and torch.version.hip is not None:
            return "this torch is for ROCm, whose devices the backend triton serves"
        if self.runner.device_type == "cuda" and not torch.cuda.is_available():
            return "there is no CUDA device"
        if not self._loaded and self._why_not is None:
            self._why_not = self._load()
            self._loaded = self._why_not is None
        return self._why_not

    def _load(self) -> str | None:
        """Open the library; or why not, or why it runs on no device of this machine."""
        how = how_to_build(self._path, "nvcc")
        if not self._path.exists():
            return f"the CUDA kernels are not built; {how}"
        try:
            library = CudaLibrary(self._path, PARAMS)
        except (OSError, AttributeError) as error:
            return f"{self._path.name} does not load: {error}; {how}"
        refusals = [library.unserved(device) for device in self._devices()]
        if None not in refusals:
            return "; ".join(dict.fromkeys(map(str, refusals)))
        self.runner.library = library
        return None

    def _devices(self) -> range:
        return range(torch.cuda.device_count() if self.runner.device_type == "cuda" else 1)

    def describe(self) -> str:
        states = [
            self.runner.library.unserved(device)
            or f"{self.runner.shared_limit(device)} bytes of shared memory in a block"
            for device in self._devices()
        ]
        if len(set(states)) > 1:
            states = [f"device {device}: {state}" for device, state in enumerate(states)]
        return f"CUDA kernels, {'; '.join(dict.fromkeys(states))}"

    def unsupported(self, problem: Problem) -> str | None:
        if problem.device != self.runner.device_type:
            return f"it runs on {self.runner.device_type}, the arguments are on {problem.device}"
        # Whether a plan exists does not depend on these, and torch.compile may leave them open.
        sizes = problem.sizes._replace(batch=1, time=1, checkpoint_every=1, input_size=0)
        known = (index(size) for size in sizes if size is not None)
        is_double = problem.dtype == torch.float64
        return _unplanned(self._number, problem.op, is_double, problem.device_index, *known)

    def fingerprint(self) -> str:
        return digest_of((self._path,))

    def path(self, problem: Problem) -> str:
        if self._is_loop(problem):
            return f"a loop of steps, {step_loop.told(problem)}, {self.path(_of_step(problem))}"
        forward, backward = (
            _way(problem.op, plan, problem.sizes.memory_size) for plan in self._plans(problem)
        )
        parts = [forward if forward == backward else f"{forward}; backward {backward}"]
        if problem.op == "sequence":
            parts.append("LSTM" if problem.sizes.is_lstm else "feed-forward")
            if problem.sizes.num_layers > 1:
                parts.append("several layers")
        if problem.sizes.num_taps > FEW_TAPS:
            parts.append("many taps")
        one_of_each = problem.sizes.num_read_heads == problem.sizes.num_write_heads == 1
        if problem.op in ("step", "sequence") and one_of_each:
            parts.append("one head of each kind")
        return ", ".join(parts)

    def _plans(self, problem: Problem) -> tuple[Plan, Plan]:
        """How the forward and the backward would run."""
        sizes, is_double = kernel_sizes(problem.sizes), problem.dtype == torch.float64
        forward, backward = (
            self.runner.plan(problem.op, direction, is_double, sizes, problem.device_index)
            for direction in ("forward", "backward")
        )
        return forward, backward

    def _is_loop(self, problem: Problem) -> bool:
        """Whether a sequence runs as a loop of steps."""
        return problem.op == "sequence" and ways.way(self.runner, problem) == STEP_LOOP

    def how(self, problem: Problem) -> str:
        if self._is_loop(problem):
            return (
                f"a loop of steps, the controller by {step_loop.told(problem)} of the whole batch; "
                f"each step: {self.how(_of_step(problem))}"
            )
        sizes = kernel_sizes(problem.sizes)
        forward, backward = self._plans(problem)
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


def _of_step(problem: Problem) -> Problem:
    """A step of a sequence that runs as a loop of steps."""
    return problem._replace(op="step", sizes=problem.sizes.of_step())


def _way(op: str, plan: Plan, memory_size: int) -> str:
    """Where a plan keeps the memory, and what else decides which code runs."""
    if plan.tiled:
        return "tiles"
    way = "shared memory" if plan.tile_rows >= memory_size else "L2"
    if plan.weightings_away:
        way += ", weightings in L2"
    if op == "sequence":
        way += WEIGHTS_HELD[plan.weights_held]
    return way


# A constant to torch.compile, which cannot trace a call into the library. The compiler of torch
# 2.11 takes numbers and words here, but no runner.
@assume_constant_result
def _unplanned(number: int, op: str, is_double: bool, device: int, *sizes: int) -> str | None:
    return ways.why_not(_runners[number], op, is_double, device, Sizes._make(sizes))
