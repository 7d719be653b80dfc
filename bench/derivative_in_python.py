"""Measures what a derivative costs that is registered from Python and not in C++.

    python -m bench.derivative_in_python [--repeats 2000]

The kernels of the op ``read`` are called in two ways: with their derivative in C++, as eager calls
of the backend ``cpu`` do, and as an op of this file, whose derivative is registered from Python.
Only the second way is open to a library of torch's stable ABI. The least of all times is taken, as
other processes only add to it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ntm_kernels

LIBRARY = torch.library.Library("ntm_bench", "DEF")


def python_op() -> Callable[[Tensor, Tensor], Tensor]:
    """``read`` of the backend ``cpu`` as an op with a derivative in Python, and nothing else."""
    forward = torch.ops.ntm.cpu_read.default
    backward = torch.ops.ntm.cpu_read_backward.default

    def read(memory: Tensor, weightings: Tensor) -> Tensor:
        result: Tensor = forward(memory, weightings, False)[0]
        return result

    def save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def differentiate(ctx: Any, grad: Tensor) -> Any:
        return backward(grad, *ctx.saved_tensors, [], [True, True])

    LIBRARY.define("read(Tensor memory, Tensor weightings) -> Tensor")
    LIBRARY.impl("read", read, "CompositeExplicitAutograd")
    torch.library.register_autograd(
        "ntm_bench::read", differentiate, setup_context=save, lib=LIBRARY
    )
    op: Callable[[Tensor, Tensor], Tensor] = torch.ops.ntm_bench.read.default
    return op


def least(call: Callable[[], Tensor], repeats: int) -> tuple[float, float]:
    """Microseconds of a forward, and of a forward and its backward."""
    forward, both = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        middle = time.perf_counter()
        result.backward(torch.ones_like(result))
        both.append(time.perf_counter() - start)
        forward.append(middle - start)
    return 1e6 * min(forward), 1e6 * min(both)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=2000, help="calls to measure (2000)")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    statuses = {status.name: status for status in ntm_kernels.available_backends()}
    if not statuses["cpu"].available:
        parser.exit(1, f"the backend cpu is needed: {statuses['cpu'].reason}\n")
    torch.set_num_threads(1)
    memory = torch.rand(1, 16, 8, requires_grad=True)
    weightings = torch.rand(1, 1, 16, requires_grad=True)
    in_cpp, in_python = torch.ops.ntm.cpu_read.default, python_op()
    measured = [
        least(lambda: in_cpp(memory, weightings, True)[0], options.repeats),
        least(lambda: in_python(memory, weightings), options.repeats),
    ]
    for name, (forward, both) in zip(("C++", "Python"), measured, strict=True):
        print(f"derivative in {name:6}: forward {forward:5.1f} µs, with backward {both:5.1f} µs")
    more = [python - cpp for cpp, python in zip(*measured, strict=True)]
    print(f"more in Python      : forward {more[0]:5.1f} µs, with backward {more[1]:5.1f} µs")


if __name__ == "__main__":
    main()
