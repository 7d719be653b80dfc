"""Backends that record their own derivatives: the same past ``torch.ops.ntm`` as through it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from ntm_kernels.backends import get
from tests.support.cases import Case, Dtypes, arguments, call, cotangents, each_small, leaves, run
from tests.support.table import BF16, F16, F32, F64, LIVE, fitting

each_such_backend = pytest.mark.parametrize(
    "entry",
    [
        pytest.param(one, id=f"{one.backend}-{one.device}")
        for one in LIVE
        if get(one.backend).kernels["step"].differentiates
    ],
)
DOUBLE = Dtypes.all(F64)
SIXTEEN = [
    Dtypes.float32_but(dtype, *kinds)
    for dtype in (BF16, F16)
    for kinds in (("memory",), ("parameters", "input"), ("input", "state", "weightings"))
]
each_dtypes = pytest.mark.parametrize("dtypes", [Dtypes.all(F32), DOUBLE, *SIXTEEN], ids=str)
STEP = Case("step", num_read_heads=2, num_write_heads=2)
SEQUENCE = Case("sequence", input_size=3)
each_recorded = pytest.mark.parametrize("case", [STEP, SEQUENCE], ids=str)


class Watch(TorchDispatchMode):
    """Lets everything through and notes the ops of ``torch.ops.ntm``."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "ntm":
            self.seen.append(func._opname)
        return func(*args, **(kwargs or {}))


def problem(entry, case, dtypes=DOUBLE):
    fitting(entry, case, dtypes)
    return arguments(case, dtypes, entry.device)


@each_small
@each_dtypes
@each_such_backend
def test_same_bits_through_the_op(entry, dtypes, case):
    tensors = problem(entry, case, dtypes)
    extras = [{}]
    if case.op == "sequence":
        extras += [{"lengths": torch.tensor([1, 3])}, {"checkpoint_every": 3}]
    for extra in extras:
        straight = run(case, tensors, entry.backend, **extra)
        with Watch() as watch:
            through = run(case, tensors, entry.backend, **extra)
        assert watch.seen == [case.op, f"{case.op}_backward"]
        for found, wanted in zip(straight, through, strict=True):
            assert found.keys() == wanted.keys()
            for name in wanted:
                assert found[name].dtype == wanted[name].dtype
                assert torch.equal(found[name], wanted[name]), name


@each_recorded
@each_such_backend
def test_the_op_is_left_out(entry, case):
    outputs = call(case, leaves(problem(entry, case)), entry.backend)
    name = outputs["memory" if case.op == "step" else "final_memory"].grad_fn.name()
    assert f"Derivative<ntm::ops::{case.op.title()}>" in name


@each_recorded
@each_such_backend
def test_every_output_alone(entry, case):
    """Gradients that are not there are none, not zeros that someone has to make."""
    tensors = problem(entry, case)
    outputs, _ = run(case, tensors, entry.backend)
    for name, grad in cotangents(outputs).items():
        _, straight = run(case, tensors, entry.backend, {name: grad})
        with Watch():
            _, through = run(case, tensors, entry.backend, {name: grad})
        for argument in tensors:
            assert torch.equal(straight[argument], through[argument]), (name, argument)


@each_such_backend
def test_input_without_gradient(entry):
    """That of the input costs a matrix product, and is left out where nobody asks for it."""
    tensors = problem(entry, SEQUENCE)
    _, wanted = run(SEQUENCE, tensors, entry.backend)
    asked = leaves({name: t for name, t in tensors.items() if name != "x"})
    outputs = call(SEQUENCE, tensors | asked, entry.backend)
    grads = cotangents(outputs)
    found = torch.autograd.grad(list(outputs.values()), list(asked.values()), list(grads.values()))
    for name, grad in zip(asked, found, strict=True):
        assert torch.equal(grad, wanted[name]), name


@each_recorded
@each_such_backend
def test_a_graph_twice(entry, case):
    asked = leaves(problem(entry, case))
    outputs = call(case, asked, entry.backend)
    loss = sum(part.square().sum() for part in outputs.values())
    first = torch.autograd.grad(loss, list(asked.values()), retain_graph=True)
    second = torch.autograd.grad(loss, list(asked.values()))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, list(asked.values()))


@each_recorded
@each_such_backend
def test_what_was_saved_may_not_change(entry, case):
    asked = leaves(problem(entry, case))
    name = "initial_memory" if case.op == "sequence" else "memory"
    memory = asked[name] * 1
    outputs = call(case, asked | {name: memory}, entry.backend)
    memory.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(part.sum() for part in outputs.values()).backward()


@each_recorded
@each_such_backend
def test_checkpointing(entry, case):
    """Saved tensors pass through the hooks that checkpointing sets."""
    tensors = problem(entry, case)
    _, wanted = run(case, tensors, entry.backend)
    asked = leaves(tensors)

    def outputs(*values):
        return tuple(call(case, dict(zip(asked, values, strict=True)), entry.backend).values())

    results = checkpoint(outputs, *asked.values(), use_reentrant=False)
    names = call(case, tensors, entry.backend)
    grads = cotangents(dict(zip(names, results, strict=True)))
    found = torch.autograd.grad(results, list(asked.values()), list(grads.values()))
    for name, grad in zip(asked, found, strict=True):
        assert torch.equal(grad, wanted[name]), name


@each_such_backend
def test_backward_under_autocast(entry):
    """Its matrix product for the input stays in the dtype of the arithmetic."""
    tensors = problem(entry, SEQUENCE, Dtypes.all(F32))
    _, wanted = run(SEQUENCE, tensors, entry.backend)
    asked = leaves(tensors)
    outputs = call(SEQUENCE, asked, entry.backend)
    grads = cotangents(outputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(
            list(outputs.values()), list(asked.values()), list(grads.values())
        )
    for name, grad in zip(asked, found, strict=True):
        assert torch.equal(grad, wanted[name]), name


@each_recorded
@each_such_backend
def test_inference_mode(entry, case):
    tensors = problem(entry, case)
    wanted, _ = run(case, tensors, entry.backend)
    with torch.inference_mode():
        found = call(case, tensors, entry.backend)
    for name, part in found.items():
        assert part.is_inference(), name
        assert torch.equal(part, wanted[name]), name
