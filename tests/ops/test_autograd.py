"""The first derivative is right. Backends that have no other one refuse the others, and say which
backend has them."""

import re

import pytest
import torch
from torch.autograd import forward_ad

from ntm_kernels import BackendError, functional
from tests.support.cases import Case, Dtypes, arguments, call, each_small, leaves, shown
from tests.support.table import (
    F64,
    each_backend,
    each_with_the_first_derivative,
    fitting,
)

TINY = [
    Case("address", 2, 3, 2, 2),
    Case("read", 2, 3, 2, 2),
    Case("write", 2, 3, 2, 2),
    Case("step", 2, 3, 2, 1, 2),
    Case("sequence", 2, 3, 2, 1, 1, time=3, hidden_size=2),
    Case("sequence", 2, 3, 2, 2, 2, time=3, hidden_size=2, controller="feedforward"),
    Case("sequence", 2, 3, 2, 1, 1, time=3, hidden_size=2, num_layers=2),
]
each_tiny = pytest.mark.parametrize("case", TINY, ids=str)
SWITCH = "use backend='torch'"


def function(case, tensors, backend, **extra):
    """The op as a function of a tuple of tensors to a tuple of tensors."""

    def of(*values):
        results = call(case, dict(zip(tensors, values, strict=True)), backend, **extra)
        return tuple(results.values())

    return of


def problem(entry, case):
    fitting(entry, case, Dtypes.all(F64))
    return arguments(case, device=entry.device)


@each_tiny
@each_backend
def test_gradcheck(entry, case):
    tensors = problem(entry, case)
    extras = [{}]
    if case.op == "sequence":
        extras.append({"lengths": torch.tensor([1, 3], device=entry.device)})
    for extra in extras:
        values = tuple(leaves(tensors).values())
        assert torch.autograd.gradcheck(function(case, tensors, entry.backend, **extra), values)


@each_small
@each_with_the_first_derivative
def test_second_derivative_raises(entry, case):
    tensors = leaves(problem(entry, case))
    outputs = call(case, tensors, entry.backend)
    loss = sum(part.square().sum() for part in outputs.values())
    first = torch.autograd.grad(loss, list(tensors.values()), create_graph=True)
    penalty = sum(part.square().sum() for part in first)
    with pytest.raises(RuntimeError, match=f"second derivative of {case.op}.*{SWITCH}"):
        penalty.backward()


@each_small
@each_with_the_first_derivative
def test_forward_mode_raises(entry, case):
    tensors = problem(entry, case)
    for name in tensors:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(tensors[name], torch.ones_like(tensors[name]))
            known = re.escape(shown(case.op, name))
            with pytest.raises(BackendError, match=rf"forward-mode AD \({known}.*{SWITCH}"):
                call(case, tensors | {name: dual}, entry.backend)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@each_small
@each_with_the_first_derivative
def test_func_jvp_raises(entry, case):
    tensors = problem(entry, case)
    values = tuple(tensors.values())
    with pytest.raises(BackendError, match=f"forward-mode AD.*{SWITCH}"):
        torch.func.jvp(function(case, tensors, entry.backend), values, values)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@each_tiny
@each_with_the_first_derivative
def test_compiled_jvp_raises(entry, case):
    tensors = problem(entry, case)
    torch._dynamo.reset()

    @torch.compile(backend="aot_eager")
    def tangents(*values):
        return torch.func.jvp(function(case, tensors, entry.backend), values, values)[1]

    with pytest.raises(BackendError, match=SWITCH):
        tangents(*tensors.values())
    torch._dynamo.reset()


@each_backend
def test_forward_mode_of_the_op_itself_raises(entry):
    """Also where torch.compile traced past the check of the arguments."""
    tensors = problem(entry, TINY[1])
    torch._dynamo.reset()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(tensors["memory"], torch.ones_like(tensors["memory"]))
        for read in (
            lambda *given: torch.ops.ntm.read(*given, True, entry.backend),
            torch.compile(
                lambda *given: functional.read(*given, backend=entry.backend), backend="aot_eager"
            ),
        ):
            with pytest.raises(NotImplementedError, match=f"forward-mode AD of read.*{SWITCH}"):
                read(dual, tensors["weightings"])
    torch._dynamo.reset()


@pytest.mark.parametrize("transform", ["grad", "jacrev", "vmap", "hessian"])
@each_small
@each_with_the_first_derivative
def test_transforms_are_refused(entry, case, transform):
    tensors = problem(entry, case)

    def total(given):
        return sum(part.sum() for part in call(case, given, entry.backend).values())

    if transform == "vmap":
        tensors = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
    with pytest.raises(BackendError, match=rf"cannot serve {case.op}: .*torch\.func\..*{SWITCH}"):
        getattr(torch.func, transform)(total)(tensors)


@pytest.mark.parametrize("way", ["is_grads_batched", "vectorize", "vmap of a gradient"])
@each_tiny
@each_with_the_first_derivative
def test_batched_gradients_are_refused(entry, case, way):
    tensors = leaves(problem(entry, case))
    values = tuple(tensors.values())
    outputs = list(call(case, tensors, entry.backend).values())
    grads = [part.detach().expand(3, *part.shape) for part in outputs]

    of = function(case, tensors, entry.backend)
    derivative = {
        "is_grads_batched": lambda: torch.autograd.grad(
            outputs, values, grads, is_grads_batched=True
        ),
        "vectorize": lambda: torch.autograd.functional.jacobian(of, values, vectorize=True),
        "vmap of a gradient": lambda: torch.func.vmap(
            lambda *some: torch.autograd.grad(outputs, values, some)
        )(*grads),
    }[way]
    with pytest.raises(NotImplementedError, match=f"^{case.op}: batched.*{SWITCH}.*one by one"):
        derivative()


@pytest.mark.parametrize("way", ["dual_level", "torch.func.jvp"])
@each_tiny
@each_with_the_first_derivative
def test_forward_mode_of_a_gradient_is_refused(entry, case, way):
    """The ordinary forward ran before the tangent was made, and its backward must not lose it."""
    tensors = leaves(problem(entry, case))
    output, *_ = call(case, tensors, entry.backend).values()

    def backward(grad):
        return torch.autograd.grad(output, tensors.values(), grad, allow_unused=True)

    def tangents(grad):
        if way == "torch.func.jvp":
            return torch.func.jvp(backward, (grad,), (grad,))
        with forward_ad.dual_level():
            return backward(forward_ad.make_dual(grad, grad))

    with pytest.raises(NotImplementedError, match=f"^{case.op}: .* of a gradient.*{SWITCH}"):
        tangents(torch.ones_like(output))
