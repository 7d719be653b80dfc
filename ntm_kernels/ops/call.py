"""From the arguments of a call to its results: check, choose a backend, run.

``prepare`` does all that comes before a kernel runs. A call goes on from there with ``run``;
``ntm_kernels.functional.explain`` stops there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

import ntm_kernels.ops.library  # noqa: F401  (registers torch.ops.ntm)
from ntm_kernels import allocation, checks
from ntm_kernels.backends import Problem, choose
from ntm_kernels.backends import get as get_backend
from ntm_kernels.backends.base import problem_of
from ntm_kernels.ops import by_equations
from ntm_kernels.ops.declare import (
    Inputs,
    Op,
    Options,
    Outputs,
    argument_names,
    options_of,
    those_present,
    unpack,
)
from ntm_kernels.ops.sizes import Sizes


class Prepared(NamedTuple):
    """A call whose arguments are checked.

    ``plain``: its tensors are plain ones and nothing traces it.
    """

    problem: Problem
    plain: bool


# A call like one before is not checked anew: checking takes as long as the smallest kernels
# (`python -m bench claims --only 5`).
known_calls: dict[Any, Problem] = {}
MOST_KNOWN = 1000


def prepare(op: Op[Inputs, Any, Options], inputs: Inputs, options: Options) -> Prepared:
    """Check the arguments; what a backend is to serve follows from them."""
    signature = checks.signature(*inputs, *options)
    problem = None if signature is None else known_calls.get((op.name, signature))
    if problem is None:
        problem = _problem(op, inputs, options)
        if signature is not None:
            if len(known_calls) >= MOST_KNOWN:
                known_calls.clear()
            known_calls[op.name, signature] = problem
    transform = checks.transform_of_call(argument_names(op.inputs), inputs)
    if transform:
        problem = problem._replace(transform=transform)
    return Prepared(problem, signature is not None)


def _problem(op: Op[Inputs, Any, Options], inputs: Inputs, options: Options) -> Problem:
    given = checks.Arguments(op.name)
    op.check(given, inputs, options)
    return problem_of(op, inputs, op.sizes(inputs, options._make(map(checks.as_int, options))))


def run(
    op: Op[Inputs, Outputs, Any],
    inputs: Inputs,
    prepared: Prepared,
    backend: str | None,
) -> Outputs:
    """Run a prepared call on the backend of that name, or the one that is chosen."""
    problem, plain = prepared
    sizes = problem.sizes
    if torch.compiler.is_exporting():
        return _run_exported(op, inputs, problem, backend)
    chosen = choose(problem, backend).backend
    kernel = get_backend(chosen).kernels[op.name]
    try:
        if problem.transform:
            return by_equations.forward(op, inputs, sizes)
        if plain and kernel.differentiates and checks.eager_alone():
            # Such a kernel saves for its own derivative whenever gradients are on. With the flag
            # False a graph traced by torch.jit holds the same call, gradients on or not.
            outputs, _ = kernel.forward(inputs, sizes, False)
            return outputs
        # Chosen here, where torch.compile can trace the choice for any number of steps.
        options = options_of(op, sizes.decided())
        save_for_backward = checks.needs_grad(inputs)
        results = getattr(torch.ops.ntm, op.name)(*inputs, *options, save_for_backward, chosen)
    except RuntimeError as error:
        _explain_room(error, op.name, sizes)
        raise
    return _named(op, results, sizes)


def _run_exported(
    op: Op[Any, Outputs, Any], inputs: NamedTuple, problem: Problem, backend: str | None
) -> Outputs:
    """The call as a program of ``torch.export`` holds it: what depends on the machine is left open.

    Neither ``use_backend`` nor the environment variable is asked: both are of this process.
    """
    if backend is not None:
        choose(problem, backend)  # raises where it cannot serve the call
    options = options_of(op, problem.sizes)
    results = getattr(torch.ops.ntm, op.name)(*inputs, *options, None, backend)
    return _named(op, results, problem.sizes)


def _named(op: Op[Any, Outputs, Any], results: Any, sizes: Sizes) -> Outputs:
    flat, _ = unpack(results, op.outputs)
    return those_present(flat, sizes)


def _explain_room(error: RuntimeError, op: str, sizes: Sizes) -> None:
    """Where memory is short, say which sizes ask for it."""
    asked = f"batch B={sizes.batch}, N={sizes.memory_size}, M={sizes.word_size}"
    mend = "make the batch or the memory smaller"
    if sizes.time:
        asked = f"T={sizes.time}, {asked}, C={sizes.hidden_size}"
        mend = (
            "make the sequence, the batch or the memory smaller, or compute under torch.no_grad() "
            "where no gradient is needed"
        )
    allocation.explain(error, op, f"what it computes for {asked}", mend)


def call(
    op: Op[Inputs, Outputs, Options], inputs: Inputs, options: Options, backend: str | None
) -> Outputs:
    """Check, choose and run."""
    return run(op, inputs, prepare(op, inputs, options), backend)
