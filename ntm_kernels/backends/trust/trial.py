"""One op on one code path of a backend, forward and backward, against the backend ``torch``."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntm_kernels.backends.base import Backend, Kernel
from ntm_kernels.backends.torch import TorchBackend
from ntm_kernels.backends.torch.products import ROUNDED
from ntm_kernels.backends.torch.sequence import Sequence
from ntm_kernels.backends.trust.tolerance import (
    allowed_error,
    largest_error,
    neighbour,
    scale_and_factor,
)
from ntm_kernels.ops import OPS, Op, Sizes
from ntm_kernels.ops.declare import choose, empty, fields, leading

NEIGHBOURS = 4
_torch = TorchBackend()
_torch_in_bfloat16 = Sequence(ROUNDED)


class Trial(NamedTuple):
    """What a path gave.

    ``share`` is the largest error of a result, divided by what is allowed; ``why_not`` says what is
    wrong with the path, or is empty. ``seconds`` has what the kernels took, compilation included.
    """

    path: str
    seconds: float
    share: float
    why_not: str = ""


def _values(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Values, in float64, such as a model has that is not trained yet."""
    noise = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    if name.endswith("weightings"):
        return noise.softmax(-1)
    if name == "shift":
        return noise.softmax(-1)
    if name in ("gate", "erase"):
        return noise.sigmoid()
    if name == "strength":
        return noise.exp().log1p()
    if name == "sharpening":
        return 1 + noise.exp().log1p()
    if name in ("recurrent_weight", "upper_weight", "interface_weight"):
        return noise / max(shape[-1], 1) ** 0.5
    return noise


def run_trial(
    backend: Backend, op_name: str, path: str, sizes: Sizes, device: torch.device, dtype: Any
) -> Trial:
    """Run one path. An error of the backend makes the trial fail, except a lack of memory, which
    says nothing about the kernels and is raised."""
    op = OPS[op_name]
    inputs = _inputs(op, sizes, dtype, device)
    grads = _grads(op, sizes, dtype, device, inputs)
    start = time.perf_counter()
    try:
        found = _run(backend.kernels[op_name], op, inputs, grads, sizes)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # where an error of a kernel shows
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        took = time.perf_counter() - start
        return Trial(path, took, math.inf, f"{path}: {type(error).__name__}: {error}")
    took = time.perf_counter() - start
    share, why_not = _compare(op, sizes, inputs, grads, found)
    return Trial(path, took, share, f"{path}: {why_not}" if why_not else "")


def _inputs(op: Op[Any, Any, Any], sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Any:
    generator = torch.Generator("cpu").manual_seed(0)

    def one(name: str) -> Tensor | None:
        field = fields(op.inputs)[name]
        if not field.present(sizes):
            return None
        shape = sizes.shape(field.dims)
        if field.kind == "steps":  # the last sequence is shorter than the others
            lengths = [sizes.time] * (sizes.batch - 1) + [sizes.time - 1]
            return torch.tensor(lengths, device=device)
        return _values(name, shape, generator).to(dtype).to(device)

    return op.inputs._make(map(one, fields(op.inputs)))


def _grads(
    op: Op[Any, Any, Any], sizes: Sizes, dtype: torch.dtype, device: torch.device, inputs: Any
) -> Any:
    generator = torch.Generator("cpu").manual_seed(1)
    like = torch.empty(0, dtype=dtype, device=device)
    outputs = empty(op.outputs, sizes, like, dict.fromkeys(_kinds(op), dtype))
    return op.outputs._make(
        None
        if part is None or not field.differentiable
        else _values("", tuple(part.shape), generator).to(dtype).to(device)
        for field, part in zip(fields(op.outputs).values(), outputs, strict=True)
    )


def _kinds(op: Op[Any, Any, Any]) -> set[str]:
    return {field.kind for field in fields(op.outputs).values()} | {"arithmetic"}


def _run(
    kernel: Kernel[Any, Any, Any], op: Op[Any, Any, Any], inputs: Any, grads: Any, sizes: Sizes
) -> dict[str, Tensor]:
    """The differentiable outputs and all gradients, by what a message calls them."""
    outputs, saved = kernel.forward(inputs, sizes, True)
    by_name = outputs._asdict()
    kept = choose(op.outputs, op.kept_outputs, (by_name[name] for name in op.kept_outputs))
    wanted = frozenset(
        name for name in op.differentiated_inputs if getattr(inputs, name) is not None
    )
    found = kernel.backward(grads, inputs, kept, saved, sizes, wanted)._asdict()
    results = {name: by_name[name] for name in op.differentiated_outputs}
    results |= {f"the gradient of {name}": found[name] for name in sorted(wanted)}
    return {name: part for name, part in results.items() if part is not None}


def _plain(
    op: Op[Any, Any, Any], inputs: Any, grads: Any, sizes: Sizes, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What the backend ``torch`` computes of the same values in ``dtype``.

    Where the op has products in bfloat16, as it never has in float64, it rounds their operands as
    well, except for the truth, which is computed in float64.
    """
    kernel = _torch.kernels[op.name]
    rounds = sizes.bfloat16_products and leading(inputs).dtype != torch.float64
    if rounds and dtype != torch.float64:
        kernel = _torch_in_bfloat16
    return _run(kernel, op, _in_dtype(inputs, dtype), _in_dtype(grads, dtype), sizes)


def _in_dtype(record: Any, dtype: torch.dtype) -> Any:
    return type(record)._make(
        part.to(dtype) if part is not None and part.is_floating_point() else part for part in record
    )


def _compare(
    op: Op[Any, Any, Any], sizes: Sizes, inputs: Any, grads: Any, found: dict[str, Tensor]
) -> tuple[float, str]:
    """The largest error divided by what is allowed, and what is wrong, or nothing."""
    truth = _plain(op, inputs, grads, sizes, torch.float64)
    for name, part in truth.items():
        if name not in found:
            return math.inf, f"{name} is missing"
        if found[name].shape != part.shape:
            shapes = f"{list(found[name].shape)}, expected {list(part.shape)}"
            return math.inf, f"{name} has the shape {shapes}"
    dtype = leading(inputs).dtype
    scale, factor = scale_and_factor(dtype == torch.float64)
    terms = sizes.memory_size * max(sizes.time, 1)
    errors = {name: largest_error(found[name], part) for name, part in truth.items()}
    plain = dict.fromkeys(truth, 0.0)
    worst, why_not = math.inf, ""
    for seed in range(NEIGHBOURS + 1):
        near = inputs if seed == 0 else _near(inputs, seed)
        for name, error in _plain_errors(op, near, grads, sizes, dtype).items():
            plain[name] = max(plain[name], error)
        worst, why_not = 0.0, ""
        for name, error in errors.items():
            allowed = allowed_error(
                found[name].dtype, truth[name], scale * plain[name], terms=terms, factor=factor
            )
            share = math.inf if math.isnan(error) else error / allowed
            if share > worst:
                worst = share
                why_not = f"{name} is off by {error:.3g}, allowed are {allowed:.3g}"
        if worst <= 1:
            return worst, ""
    return worst, why_not


def _near(inputs: Any, seed: int) -> Any:
    return type(inputs)._make(
        neighbour(part, seed) if part is not None and part.is_floating_point() else part
        for part in inputs
    )


def _plain_errors(
    op: Op[Any, Any, Any], inputs: Any, grads: Any, sizes: Sizes, dtype: torch.dtype
) -> dict[str, float]:
    """The errors of the backend ``torch`` in ``dtype``, for float64 in float32."""
    dtype = torch.float32 if dtype == torch.float64 else dtype
    given, cotangents = _in_dtype(inputs, dtype), _in_dtype(grads, dtype)
    truth = _plain(op, given, cotangents, sizes, torch.float64)
    rounded = _plain(op, given, cotangents, sizes, dtype)
    return {name: largest_error(rounded[name], part) for name, part in truth.items()}
