"""The backend ``torch`` has every derivative that plain PyTorch has of the equations."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from ntm_kernels import functional, reference
from ntm_kernels.ops import by_equations
from tests.ops.test_autograd import TINY, function, problem
from tests.support.cases import (
    Case,
    call,
    cotangents,
    each_small,
    leaves,
    of_sequence,
    to_dtype,
)
from tests.support.table import each_backend, each_with_every_derivative

pytestmark = [
    # TorchScript, by which torch decomposes some derivatives of forward mode, is deprecated.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
    # These tests also run with the oldest torch, for which the CPU kernels are not built.
    pytest.mark.filterwarnings("ignore:ntm_kernels computes on the slower backend:RuntimeWarning"),
]


# Element by element these take minutes.
LARGEST = [case for case in TINY if case.num_layers > 1 or case.controller == "feedforward"]


def check(entry, case, fast_mode):
    """Also forward mode, forward over reverse, and gradients in batches."""
    tensors = problem(entry, case)
    extra = {}
    if case.op == "sequence":
        extra["lengths"] = torch.tensor([1, case.time], device=entry.device)
        extra["resets"] = torch.tensor([[False, False], [False, True]], device=entry.device)
    of = function(case, tensors, entry.backend, **extra)
    values = tuple(leaves(tensors).values())
    assert gradcheck(
        of,
        values,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        fast_mode=fast_mode,
    )
    assert gradgradcheck(
        of, values, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=fast_mode
    )


@pytest.mark.parametrize("case", TINY[1:4], ids=str)
@each_with_every_derivative
def test_gradcheck_along_one_direction(entry, case):
    check(entry, case, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in TINY if case not in LARGEST], ids=str)
@each_with_every_derivative
def test_gradcheck_element_by_element(entry, case):
    check(entry, case.with_(time=2), fast_mode=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGEST, ids=str)
@each_with_every_derivative
def test_gradcheck_of_sequences_along_one_direction(entry, case):
    check(entry, case.with_(time=2), fast_mode=True)


def summed(of):
    return lambda *values: sum(part.sin().sum() for part in of(*values))


def every(values):
    return tuple(range(len(values)))


def two(values, dim=0):
    return [torch.stack((value, value / 2), dim) for value in values]


TRANSFORMS = {
    "grad": lambda of, values: torch.func.grad(summed(of), every(values))(*values),
    "jvp": lambda of, values: torch.func.jvp(of, values, values),
    "jacrev": lambda of, values: torch.func.jacrev(of, every(values))(*values),
    "jacfwd": lambda of, values: torch.func.jacfwd(of, every(values))(*values),
    "hessian": lambda of, values: torch.func.hessian(summed(of), every(values))(*values),
    "vmap": lambda of, values: torch.func.vmap(of)(*two(values)),
    "vmap of the last": lambda of, values: torch.func.vmap(of, -1, -1)(*two(values, -1)),
    "vmap of grad": lambda of, values: torch.func.vmap(torch.func.grad(summed(of), every(values)))(
        *two(values)
    ),
    "grad of vmap": lambda of, values: torch.func.grad(summed(torch.func.vmap(of)), every(values))(
        *two(values)
    ),
    "jvp of grad": lambda of, values: torch.func.jvp(
        torch.func.grad(summed(of), every(values)), values, values
    ),
}


def of_both(transform, entry, case):
    """What a transform makes of the backend's op, and of the equations."""
    tensors = problem(entry, case)
    values = tuple(tensors.values())
    ops = (function(case, tensors, backend) for backend in (entry.backend, None))
    return [TRANSFORMS[transform](of, values) for of in ops]


@pytest.mark.parametrize("transform", TRANSFORMS)
@each_with_every_derivative
def test_transforms(entry, transform):
    for case in (TINY[0], TINY[3], TINY[6].with_(time=2, input_size=2)):
        found, wanted = of_both(transform, entry, case)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
@each_with_every_derivative
def test_transforms_inside_compiled_code(entry, transform):
    tensors = problem(entry, TINY[1])
    values, of = tuple(tensors.values()), function(TINY[1], tensors, entry.backend)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *given: TRANSFORMS[transform](of, given), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(*values), TRANSFORMS[transform](of, values))
    torch._dynamo.reset()


def second(case, tensors, backend):
    """Gradients of a penalty on the gradients of a loss, and those gradients."""
    given = leaves(tensors)
    outputs = call(case, given, backend)
    loss = sum(part.sin().sum() for part in outputs.values())
    first = torch.autograd.grad(loss, list(given.values()), create_graph=True)
    penalty = sum(part.square().sum() for part in first)
    return first, torch.autograd.grad(penalty, list(given.values()))


@each_small
@each_with_every_derivative
def test_second_derivative(entry, case):
    tensors = problem(entry, case)
    torch.testing.assert_close(second(case, tensors, entry.backend), second(case, tensors, None))


@each_backend
def test_second_derivative_of_compiled_code_raises(entry):
    tensors = leaves(problem(entry, TINY[1]))
    torch._dynamo.reset()
    compiled = torch.compile(function(TINY[1], tensors, entry.backend), backend="aot_eager")
    (output,) = compiled(*tensors.values())
    (first,) = torch.autograd.grad(output.sin().sum(), tensors["memory"], create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        first.sum().backward()
    torch._dynamo.reset()


@each_with_every_derivative
def test_an_ordinary_backward_is_that_of_the_kernel(entry, monkeypatch):
    """The equations run where gradients are recorded, and nowhere else."""
    calls = []
    backward = by_equations.backward
    monkeypatch.setattr(by_equations, "backward", lambda *a: calls.append(a) or backward(*a))
    tensors = leaves(problem(entry, TINY[3]))

    def outputs():
        return sum(part.sum() for part in call(TINY[3], tensors, entry.backend).values())

    outputs().backward()
    assert not calls
    torch.autograd.grad(outputs(), list(tensors.values()), create_graph=True)
    assert len(calls) == 1


@each_with_every_derivative
def test_an_input_computed_from_another(entry):
    """Each gets its own part of the gradient alone."""
    memory = torch.rand(1, 3, 2, dtype=torch.float64, device=entry.device, requires_grad=True)

    def penalty(read):
        weightings = memory.softmax(1).mT[:, :1]
        (first,) = torch.autograd.grad(read(memory, weightings).sum(), memory, create_graph=True)
        return torch.autograd.grad(first.square().sum(), memory)

    wanted = penalty(reference.read)
    torch.testing.assert_close(
        penalty(lambda *given: functional.read(*given, backend=entry.backend)), wanted
    )


@pytest.mark.parametrize("transform", ["jvp", "vmap", "grad"])
@each_with_every_derivative
def test_transforms_of_a_gradient_alone(entry, transform):
    """The ordinary forward ran before, outside the transform."""
    case = TINY[3]
    tensors = leaves(problem(entry, case))
    grads = cotangents(call(case, tensors))

    def derivative(backend):
        outputs = call(case, tensors, backend)

        def gradient(*given):
            return torch.autograd.grad(
                tuple(outputs.values()), list(tensors.values()), given, create_graph=True
            )

        return TRANSFORMS[transform](gradient, tuple(grads.values()))

    found, wanted = derivative(entry.backend), derivative(None)
    torch.testing.assert_close(found, wanted)


@each_with_every_derivative
def test_outputs_and_inputs_that_have_no_part(entry):
    """The first step's hidden state does not depend on the interface's weights."""
    case = TINY[4].with_(time=1)
    tensors = problem(entry, case)
    weight = tensors["interface_weight"].requires_grad_()
    hidden = call(case, tensors, entry.backend)["hidden"]
    (grad,) = torch.autograd.grad(hidden.sum(), weight, create_graph=True)
    assert torch.equal(grad, torch.zeros_like(weight))


@each_with_every_derivative
def test_neither_hooks_nor_autocast_change_a_derivative(entry):
    case = Case("step")
    tensors = to_dtype(problem(entry, case), torch.float32)
    of, values = function(case, tensors, entry.backend), tuple(tensors.values())
    wanted = second(case, tensors, entry.backend), TRANSFORMS["jvp of grad"](of, values)
    with torch.autograd.graph.save_on_cpu():
        found = second(case, tensors, entry.backend)
        torch.testing.assert_close((found, wanted[1]), wanted)

    def autocast(*given):
        with torch.autocast(entry.device, dtype=torch.bfloat16):
            return of(*given)

    torch.testing.assert_close(TRANSFORMS["jvp of grad"](autocast, values), wanted[1])


@pytest.mark.parametrize("op", ["address", "read", "write", "step"])
@each_with_every_derivative
def test_16_bits(entry, op):
    """Arithmetic is in float32, and a gradient is rounded once, to the dtype of its input."""
    case = Case(op)
    tensors = to_dtype(problem(entry, case), torch.bfloat16)

    def gradients(tensors, backend):
        of = function(case, tensors, backend)

        def loss(*values):
            # The weights are exact in bfloat16, so that no gradient of an output is rounded.
            parts = [part.to(torch.float64).flatten() for part in of(*values)]
            return sum(
                (part * (torch.arange(len(part), device=part.device) % 7 - 3)).sum()
                for part in parts
            )

        return torch.func.grad(loss, every(tensors))(*tensors.values())

    found = gradients(tensors, entry.backend)
    wanted = gradients(to_dtype(tensors, torch.float64), None)
    half_ulp = torch.finfo(torch.bfloat16).eps / 2
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        noise = 1e-5 * other.abs().max().item()
        torch.testing.assert_close(one.double(), other, rtol=1.01 * half_ulp, atol=noise)


def trace(case, tensors, backend, lengths):
    result = functional.sequence(
        **of_sequence(tensors), **case.options, lengths=lengths, return_trace=True, backend=backend
    )
    return tuple(result.trace)


@each_with_every_derivative
def test_lengths_resets_and_the_trace_in_batches(entry):
    """Lengths are checked inside a vmap as they are outside."""
    case = Case("sequence")
    tensors = problem(entry, case)
    lengths = torch.tensor([[1, 4], [3, 0], [4, 4]], device=entry.device)
    resets = torch.rand(3, case.time, case.batch, device=entry.device) < 0.3

    def of(lengths, resets):
        outputs = call(case, tensors, entry.backend, lengths=lengths, resets=resets)
        return *outputs.values(), *trace(case, tensors, entry.backend, lengths)

    found = torch.func.vmap(of)(lengths, resets)
    alone = [of(*one) for one in zip(lengths, resets, strict=True)]
    torch.testing.assert_close(found, tuple(map(torch.stack, zip(*alone, strict=True))))
    x = torch.ones(resets.shape[1:], device=entry.device)

    def tangents(lengths):
        return torch.func.jvp(lambda x: of(lengths, x > 0), (x,), (x,))

    if entry.device == "cpu":
        with pytest.raises(ValueError, match=r"lengths must lie in 0 … 4, got 5"):
            torch.func.vmap(tangents)(lengths + 1)


def test_the_choice_and_why():
    """Under a transform the automatic choice falls on the backend that has it."""
    chosen = []

    def read(memory, weightings):
        chosen.append(functional.explain("read", memory, weightings))
        return functional.read(memory, weightings).sum()

    given = torch.rand(4, 2, 3, 2), torch.rand(4, 2, 1, 3)
    torch.func.vmap(read)(*given)
    torch.func.grad(read)(*(value[0] for value in given))
    torch.func.jvp(read, *[tuple(value[0] for value in given)] * 2)
    read(*(value[0] for value in given))
    *transformed, ordinary = chosen
    transforms = "torch.func.vmap", "torch.func.grad", "forward-mode AD (memory carries a tangent)"
    for choice, transform in zip(transformed, transforms, strict=True):
        assert choice.backend == "torch"
        assert f"by ntm_kernels.reference, under {transform}" in choice.reason
        if ordinary.backend == "cpu":
            assert f"it does not support {transform}" in choice.rejected["cpu"]
            assert "use backend='torch'" in choice.rejected["cpu"]
    assert "reference" not in ordinary.reason
