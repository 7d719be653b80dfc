"""From the arguments of a call to its results: check, choose a backend, run.

``prepare`` does all that comes before a kernel runs. A call goes on from there with ``run``;
``ntm_kernels.functional.explain`` stops there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

import ntm_kernels.ops.library  # noqa: F401  (registers torch.ops.ntm)
from ntm_kernels import checks
from ntm_kernels.backends import Problem, choose
from ntm_kernels.backends import get as get_backend
from ntm_kernels.ops.declare import (
    Inputs,
    Op,
    Options,
    Outputs,
    fields,
    options_of,
    those_present,
    unpack,
)


class Prepared(NamedTuple):
    """A call whose arguments are checked.

    ``plain``: its tensors are plain ones and nothing traces it.
    """

    problem: Problem
    plain: bool


# Checking costs a tenth of the smallest calls: one like a call before is not checked anew.
_problems: dict[Any, Problem] = {}
MOST_PROBLEMS = 1000


def prepare(op: Op[Inputs, Any, Options], inputs: Inputs, options: Options) -> Prepared:
    """Check the arguments; what a backend is to serve follows from them."""
    signature = checks.signature(*inputs, *options)
    if signature is None:
        return Prepared(_problem(op, inputs, options), False)
    problem = _problems.get((op.name, signature))
    if problem is None:
        problem = _problem(op, inputs, options)
        if len(_problems) >= MOST_PROBLEMS:
            _problems.clear()
        _problems[op.name, signature] = problem
    return Prepared(problem, True)


def _problem(op: Op[Inputs, Any, Options], inputs: Inputs, options: Options) -> Problem:
    given = checks.Arguments(op.name)
    op.check(given, inputs, options)
    memory = next(
        tensor
        for field, tensor in zip(fields(op.inputs).values(), inputs, strict=True)
        if field.kind == "memory"
    )
    device = memory.device
    return Problem(op.name, device.type, memory.dtype, op.sizes(inputs, options), device.index or 0)


def run(
    op: Op[Inputs, Outputs, Any],
    inputs: Inputs,
    prepared: Prepared,
    backend: str | None,
) -> Outputs:
    """Run a prepared call on the backend of that name, or the one that is chosen."""
    problem, plain = prepared
    chosen = choose(problem, backend).backend
    save_for_backward = checks.needs_grad(op.name, inputs)
    kernel = get_backend(chosen).kernels[op.name]
    sizes = problem.sizes
    if plain and kernel.differentiates and checks.eager_alone():
        outputs, _ = kernel.forward(inputs, sizes, save_for_backward)
        return outputs
    options = options_of(op, sizes)
    results = getattr(torch.ops.ntm, op.name)(*inputs, *options, save_for_backward, chosen)
    flat, _ = unpack(results, op.outputs)
    return those_present(flat, sizes)


def call(
    op: Op[Inputs, Outputs, Options], inputs: Inputs, options: Options, backend: str | None
) -> Outputs:
    """Check, choose and run."""
    return run(op, inputs, prepare(op, inputs, options), backend)
