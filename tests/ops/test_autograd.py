"""Derivatives by every way torch has of asking for them: right, or refused, never wrong."""

import re

import pytest
import torch
from torch.autograd import forward_ad

from tests.support.cases import Case, Dtypes, arguments, call, each_small, leaves, shown
from tests.support.table import F64, each_backend, fitting

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
@each_backend
def test_second_derivative_raises(entry, case):
    tensors = leaves(problem(entry, case))
    outputs = call(case, tensors, entry.backend)
    loss = sum(part.square().sum() for part in outputs.values())
    first = torch.autograd.grad(loss, list(tensors.values()), create_graph=True)
    penalty = sum(part.square().sum() for part in first)
    with pytest.raises(RuntimeError, match="second derivative"):
        penalty.backward()


@each_small
@each_backend
def test_forward_mode_raises(entry, case):
    tensors = problem(entry, case)
    for name in tensors:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(tensors[name], torch.ones_like(tensors[name]))
            with pytest.raises(
                NotImplementedError, match=f"forward-mode AD.*{re.escape(shown(case.op, name))}"
            ):
                call(case, tensors | {name: dual}, entry.backend)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@each_small
@each_backend
def test_func_jvp_raises(entry, case):
    tensors = problem(entry, case)
    values = tuple(tensors.values())
    with pytest.raises(NotImplementedError, match="forward-mode AD"):
        torch.func.jvp(function(case, tensors, entry.backend), values, values)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@each_tiny
@each_backend
def test_compiled_forward_mode_raises(entry, case):
    """torch.compile traces past the check of the arguments."""
    tensors = problem(entry, case)
    torch._dynamo.reset()

    @torch.compile(backend="aot_eager")
    def tangents(*values):
        return torch.func.jvp(function(case, tensors, entry.backend), values, values)[1]

    with pytest.raises(NotImplementedError, match="forward-mode AD"):
        tangents(*tensors.values())
    torch._dynamo.reset()


@each_backend
def test_forward_mode_of_the_op_itself_raises(entry):
    tensors = problem(entry, TINY[1])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(tensors["memory"], torch.ones_like(tensors["memory"]))
        with pytest.raises(NotImplementedError, match="forward-mode AD of read"):
            torch.ops.ntm.read(dual, tensors["weightings"], True, entry.backend)


@pytest.mark.parametrize("transform", ["grad", "jacrev", "vmap", "hessian"])
@each_small
@each_backend
def test_transforms_are_refused(entry, case, transform):
    tensors = problem(entry, case)

    def total(given):
        return sum(part.sum() for part in call(case, given, entry.backend).values())

    if transform == "vmap":
        tensors = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
    with pytest.raises(NotImplementedError, match=rf"{case.op}: torch.func\.\w+ and.*reference"):
        getattr(torch.func, transform)(total)(tensors)


@pytest.mark.parametrize("way", ["is_grads_batched", "vectorize", "vmap of a gradient"])
@each_tiny
@each_backend
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
    with pytest.raises(NotImplementedError, match=f"^{case.op}: batched gradients.*one by one"):
        derivative()
