"""An op and its gradients by ``ntm_kernels.reference``, under plain autograd.

Serves every derivative that a kernel's hand-derived backward does not have: forward mode, the
transforms of ``torch.func``, batched gradients, and derivatives of second and higher order. It is
slower than a kernel, and autograd keeps every intermediate result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ntm_kernels.backends.torch.lift import lift, lower
from ntm_kernels.checks import outside_autocast
from ntm_kernels.ops.declare import Inputs, Op, Outputs, choose, leading
from ntm_kernels.ops.sizes import Sizes


def forward(op: Op[Inputs, Outputs, Any], inputs: Inputs, sizes: Sizes) -> Outputs:
    """The outputs, differentiable in every way that PyTorch knows."""
    outputs: Outputs = outside_autocast(leading(inputs).device.type, _forward, op, inputs, sizes)
    return outputs


def _forward(op: Op[Inputs, Outputs, Any], inputs: Inputs, sizes: Sizes) -> Outputs:
    # Widened here and not by each equation, so that a 16-bit gradient is rounded once.
    return lower(op.equations(lift(inputs), sizes), inputs)


def backward(
    op: Op[Inputs, Outputs, Any],
    grads: Outputs,
    inputs: Inputs,
    sizes: Sizes,
    wanted: Iterable[str],
) -> Inputs:
    """The gradient of each input that is ``wanted``, from those of the outputs.

    Where gradients are recorded, these are too: they can be differentiated in the inputs and in
    ``grads``.
    """
    return outside_autocast(
        leading(inputs).device.type, _backward, op, grads, inputs, sizes, list(wanted)
    )


def _backward(op: Any, grads: Any, inputs: Any, sizes: Sizes, wanted: list[str]) -> Any:
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        # One input may have been computed from another. As views they are independent, so that each
        # gets its own part of the gradient alone.
        given = {
            name: value.view_as(value) if name in wanted else value
            for name, value in inputs._asdict().items()
        }
    variables = [given[name] for name in wanted]
    if not all(variable.requires_grad for variable in variables):
        return choose(op.inputs, wanted, _vjp(op, grads, given, sizes, wanted))
    with torch.enable_grad():
        outputs = _forward(op, op.inputs(**given), sizes)
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, grads, strict=True)
        if grad is not None and output.requires_grad
    ]
    if not pairs:
        return choose(op.inputs, wanted, map(torch.zeros_like, variables))
    found = torch.autograd.grad(
        [output for output, _ in pairs],
        variables,
        [grad for _, grad in pairs],
        create_graph=recorded,
        materialize_grads=True,
    )
    return choose(op.inputs, wanted, found)


def _vjp(op: Any, grads: Any, given: dict[str, Any], sizes: Sizes, wanted: list[str]) -> Any:
    """The gradients inside a transform of ``torch.func`` that does not follow the inputs, such as a
    ``jvp`` of the gradient alone: there plain autograd would find that nothing depends on them."""

    def outputs_with_grads(*variables: Any) -> list[Any]:
        inputs = op.inputs(**given | dict(zip(wanted, variables, strict=True)))
        outputs = zip(_forward(op, inputs, sizes), grads, strict=True)
        return [output for output, grad in outputs if grad is not None]

    pull = torch.func.vjp(outputs_with_grads, *(given[name] for name in wanted))[1]
    return pull([grad for grad in grads if grad is not None])
