"""The products that the backend ``cpu`` computes in bfloat16 under autocast, where the processor
has AMX."""

import pytest
import torch

from ntm_kernels import NTM
from ntm_kernels.backends.cpu import backend
from tests.support.autocast import assert_as_accurate_as_the_equations, same_bits
from tests.support.cases import (
    Case,
    Dtypes,
    arguments,
    call,
    cotangents,
    explained,
    run,
)

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
CASES = [
    Case("sequence", time=7, num_read_heads=2),
    Case("sequence", time=7, num_write_heads=2, controller="feedforward"),
    Case("sequence", time=5, num_layers=3, hidden_size=17),
    # More columns than a product has sums at once, more inner elements than a tile, a full group.
    Case("sequence", time=3, batch=9, hidden_size=40, memory_size=33, word_size=20),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
IN_BFLOAT16 = "matrix products in bfloat16"


def multiplies_in_bfloat16():
    if backend.CpuBackend().unavailable() is not None:
        return False
    return torch.ops.ntm.cpu_multiplies_in_bfloat16()


with_amx = pytest.mark.skipif(
    not multiplies_in_bfloat16(), reason="the processor has no AMX, or the kernels leave it out"
)


def under_autocast(case, tensors, grads, **extra):
    with torch.autocast("cpu", BF16):
        return run(case, tensors, "cpu", grads, **extra)


@with_amx
@each_case
def test_as_accurate_as_the_equations_under_autocast(case):
    tensors = arguments(case, Dtypes.all(F32))
    grads = cotangents(call(case, tensors, "cpu"))
    found = under_autocast(case, tensors, grads)
    assert not same_bits(found, run(case, tensors, "cpu", grads))
    assert_as_accurate_as_the_equations(case, found, tensors, grads)


@with_amx
def test_products_of_rounded_operands_are_added_up_in_float32():
    """One step of a feed-forward controller: its output is a product alone."""
    case = Case("sequence", time=1, batch=9, hidden_size=70, word_size=45, controller="feedforward")
    tensors = arguments(case, Dtypes.all(F32))
    with torch.autocast("cpu", BF16):
        hidden = call(case, tensors, "cpu")["hidden"]
    weight, reads = (
        tensors[name].bfloat16().double() for name in ("recurrent_weight", "initial_read_vectors")
    )
    wanted = torch.tanh(tensors["x"].double() + reads.flatten(1) @ weight.T)
    torch.testing.assert_close(hidden.double(), wanted, rtol=0, atol=2e-6)


@with_amx
def test_a_sequence_has_the_same_bits_alone_or_beside_others():
    case = CASES[-1]
    tensors = arguments(case, Dtypes.all(F32))
    with torch.autocast("cpu", BF16):
        together = call(case, tensors, "cpu")
        alone = call(case, {name: first(name, part) for name, part in tensors.items()}, "cpu")
    assert torch.equal(alone["hidden"], together["hidden"][:, :1])
    assert torch.equal(alone["read_vectors"], together["read_vectors"][:, :1])


def first(name, part):
    """The argument for the first sequence alone."""
    if name in ("x", "initial_hidden", "initial_cell"):
        return part[:, :1]
    return part[:1] if name.startswith("initial_") else part


@with_amx
def test_a_reset_and_a_length_in_bfloat16():
    case = CASES[0]
    tensors = arguments(case, Dtypes.all(F32))
    grads = cotangents(call(case, tensors, "cpu"))
    resets = torch.zeros(7, 2, dtype=torch.bool)
    resets[3] = True
    extra = {"lengths": torch.tensor([3, 7]), "resets": resets}
    found = under_autocast(case, tensors, grads, **extra)
    wanted = run(case, tensors, "cpu", grads, **extra)
    for kind in (0, 1):
        for name, part in wanted[kind].items():
            torch.testing.assert_close(found[kind][name], part, rtol=0.1, atol=0.05)


@with_amx
def test_the_choice_tells_it():
    case, float32 = CASES[0], arguments(CASES[0], Dtypes.all(F32))
    assert IN_BFLOAT16 not in explained(case, float32, "cpu")
    with torch.autocast("cpu", torch.float16):
        assert IN_BFLOAT16 not in explained(case, float32, "cpu")
    with torch.autocast("cpu", BF16):
        assert IN_BFLOAT16 in explained(case, float32, "cpu")
        assert IN_BFLOAT16 not in explained(case, arguments(case, Dtypes.all(F64)), "cpu")
        with_input = case.with_(input_size=3)
        given = arguments(with_input, Dtypes.all(F32))
        assert IN_BFLOAT16 not in explained(with_input, given, "cpu")


@with_amx
def test_a_model_trains_in_bfloat16():
    torch.manual_seed(0)
    model, x = NTM(4, 3, 20, memory_size=16, word_size=6), torch.rand(6, 3, 4)
    plain = model(x)[0]
    with torch.autocast("cpu", BF16):
        output = model(x)[0]
    torch.testing.assert_close(output.float(), plain, rtol=0.05, atol=0.02)
    output.float().sum().backward()
    assert all(p.grad.dtype == F32 and p.grad.isfinite().all() for p in model.parameters())
