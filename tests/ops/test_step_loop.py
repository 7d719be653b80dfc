"""The two ways of ``sequence`` on the GPU backends: what each computes, and which one is taken."""

import re
from functools import partial

import pytest
import torch

from ntm_kernels.backends import BackendError, Problem, get, step_loop
from ntm_kernels.backends.controller_cost import GRAPH_LAUNCH, LAUNCH, Block, cost, weights
from ntm_kernels.backends.torch.products import IN_BFLOAT16
from ntm_kernels.ops import Sizes
from tests.support.autocast import assert_as_accurate_as_the_equations, same_bits
from tests.support.cases import (
    DEEP,
    Case,
    Dtypes,
    arguments,
    assert_agrees,
    call,
    cotangents,
    differentiate,
    explained,
    leaves,
    run,
)
from tests.support.table import BF16, F32, F64, LIVE, fitting

# The backends that have both ways.
BOTH = [one for one in LIVE if one.backend.startswith(("cuda", "triton"))]
CASES = [
    Case("sequence", time=7, num_read_heads=2),
    Case("sequence", time=7, num_write_heads=2, controller="feedforward", input_size=3),
    *(case.with_(time=7) for case in DEEP),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_with_both = pytest.mark.parametrize(
    "entry", BOTH, ids=[f"{entry.backend}-{entry.device}" for entry in BOTH]
)
each_dtypes = pytest.mark.parametrize(
    "dtypes", [Dtypes.all(F32), Dtypes.all(F64), Dtypes.float32_but(BF16, "memory")], ids=str
)


@pytest.fixture(name="step_loop")
def in_a_loop(monkeypatch):
    """The loop, whatever the model says."""
    monkeypatch.setenv("NTM_KERNELS_SEQUENCE", "step_loop")


@pytest.mark.usefixtures("step_loop")
@each_dtypes
@each_case
@each_with_both
def test_the_loop_agrees(entry, case, dtypes):
    fitting(entry, case, dtypes)
    tensors = arguments(case, dtypes, entry.device)
    assert_agrees(case, entry, tensors, return_trace=True, checkpoint_every=3)


@pytest.mark.usefixtures("step_loop")
@each_case
@each_with_both
def test_lengths_and_resets_in_the_loop(entry, case):
    fitting(entry, case, Dtypes.all(F64))
    tensors = arguments(case, Dtypes.all(F64), entry.device)
    lengths = torch.tensor([3, 7], device=entry.device)
    resets = torch.zeros(7, 2, dtype=torch.bool, device=entry.device)
    resets[2, 0] = resets[4] = True
    assert_agrees(case, entry, tensors, lengths=lengths, resets=resets)


@pytest.mark.usefixtures("step_loop")
@each_with_both
def test_the_loop_takes_the_kernels_of_the_backend(entry, monkeypatch):
    """And leaves no trace of the caller's in what the backward reads."""
    case = CASES[0]
    fitting(entry, case, Dtypes.all(F32))
    step, calls = get(entry.backend).kernels["sequence"].step, []
    for name in ("forward", "backward"):
        monkeypatch.setattr(step, name, partial(_noting, calls, name, getattr(step, name)))
    tensors = arguments(case, Dtypes.all(F32), entry.device)
    wanted = run(case, tensors, entry.backend)[1]
    assert calls == ["forward"] * case.time + ["backward"] * case.time
    found = run(case, tensors, entry.backend, return_trace=True)[1]
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def _noting(calls, name, kernel, *given):
    calls.append(name)
    return kernel(*given)


def under_autocast(dtype, case, entry, tensors, grads):
    with torch.autocast(entry.device, dtype):
        return run(case, tensors, entry.backend, grads)


@pytest.mark.usefixtures("step_loop")
@each_case
@each_with_both
def test_products_in_bfloat16_under_autocast(entry, case):
    """As accurate as the policy demands, compared with the equations under the same autocast."""
    fitting(entry, case, Dtypes.all(F32))
    tensors = arguments(case, Dtypes.all(F32), entry.device)
    grads = cotangents(call(case, tensors, entry.backend))
    found = under_autocast(BF16, case, entry, tensors, grads)
    assert not same_bits(found, run(case, tensors, entry.backend, grads))
    tensors, grads = to_cpu(tensors), to_cpu(grads)
    assert_as_accurate_as_the_equations(case, found, tensors, grads)


def to_cpu(tensors):
    return {name: tensor.cpu() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("way", "dtype"), [("one_launch", BF16), ("step_loop", torch.float16)], ids=str
)
@each_with_both
def test_all_else_stays_in_float32_under_autocast(entry, way, dtype, monkeypatch):
    if way == "one_launch" and "tiled" in entry.backend:
        pytest.skip("it has only the loop")
    monkeypatch.setenv("NTM_KERNELS_SEQUENCE", way)
    case = CASES[0]
    fitting(entry, case, Dtypes.all(F32))
    tensors = arguments(case, Dtypes.all(F32), entry.device)
    grads = cotangents(call(case, tensors, entry.backend))
    found = under_autocast(dtype, case, entry, tensors, grads)
    assert same_bits(found, run(case, tensors, entry.backend, grads))


@pytest.mark.usefixtures("step_loop")
@each_with_both
def test_autocast_counts_where_the_function_is_called(entry):
    """Not where its backward runs, nor, compiled, where autocast is left before the op runs."""
    case = CASES[0].with_(time=2)
    fitting(entry, case, Dtypes.all(F32))
    tensors = arguments(case, Dtypes.all(F32), entry.device)
    grads = cotangents(call(case, tensors, entry.backend))
    wanted = under_autocast(BF16, case, entry, tensors, grads)

    def forward(**given):
        with torch.autocast(entry.device, BF16):
            return call(case, given, entry.backend)

    torch.compiler.reset()
    for function in (forward, torch.compile(forward, backend="aot_eager", fullgraph=True)):
        given = leaves(tensors)
        outputs = function(**given)
        assert same_bits([outputs, differentiate(outputs, grads, given)], wanted)


def test_products_of_rounded_operands_are_added_up_in_float32():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(3, 40, 40, generator=generator) for _ in range(2))
    bias = torch.randn(40, generator=generator)
    rounded = [operand.bfloat16().double() for operand in (left, right)]
    wanted = rounded[0] @ rounded[1]
    close = partial(torch.testing.assert_close, rtol=0, atol=2e-5)
    close(IN_BFLOAT16.bmm(left, right), wanted.float())
    weight = IN_BFLOAT16.weight(right[0])
    assert weight.dtype == BF16
    close(IN_BFLOAT16.mm(left[0], weight), wanted[0].float())
    close(IN_BFLOAT16.addmm(bias, left[0], weight), (wanted[0] + bias).float())


@pytest.mark.parametrize(
    ("hip", "capability", "dtype", "rounds"),
    [
        (None, (9, 0), F32, True),
        (None, (8, 0), BF16, True),
        (None, (7, 5), F32, False),
        (None, (9, 0), F64, False),
        ("7.0", (9, 4), F32, False),
    ],
)
def test_devices_that_round(hip, capability, dtype, rounds, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    given = sizes()._replace(bfloat16_products=True)
    assert step_loop.rounds(Problem("sequence", "cuda", dtype, given)) == rounds
    assert not step_loop.rounds(Problem("sequence", "cuda", dtype, sizes()))


@each_with_both
def test_products_in_bfloat16_are_told(entry, monkeypatch):
    monkeypatch.setenv("NTM_KERNELS_SEQUENCE", "step_loop")
    assert "matrix products in bfloat16" not in why(entry, CASES[0])
    with torch.autocast(entry.device, BF16):
        assert "matrix products in bfloat16" in why(entry, CASES[0], dtypes=Dtypes.all(F32))
        assert "matrix products in bfloat16" not in why(entry, CASES[0])  # float64


DOUBLE = Dtypes.all(F64)


def why(entry, case, dtypes=DOUBLE, **extra):
    return explained(case, arguments(case, dtypes, entry.device), entry.backend, **extra)


@each_with_both
def test_what_was_asked_for_is_taken_and_said(entry, monkeypatch):
    case = CASES[0]
    monkeypatch.setenv("NTM_KERNELS_SEQUENCE", "step_loop")
    assert "a loop of steps" in why(entry, case)
    monkeypatch.setenv("NTM_KERNELS_SEQUENCE", "loop")
    expected = "NTM_KERNELS_SEQUENCE must be one of one_launch, step_loop, got 'loop'"
    with pytest.raises(BackendError, match=re.escape(expected)):
        why(entry, case)


@pytest.mark.parametrize("entry", [e for e in BOTH if e.backend.startswith("cuda")], ids=str)
def test_resets_take_the_loop_where_one_launch_has_none(entry, monkeypatch):
    case = CASES[0]
    resets = torch.zeros(7, 2, dtype=torch.bool, device=entry.device)
    assert "a loop of steps" not in why(entry, case)
    assert "a loop of steps" in why(entry, case, resets=resets)
    monkeypatch.setenv("NTM_KERNELS_SEQUENCE", "one_launch")
    with pytest.raises(BackendError, match="one_launch: one launch has no resets"):
        why(entry, case, resets=resets)


def sizes(batch=1, memory_size=128, word_size=20, hidden_size=100, num_layers=1):
    return Sizes(
        batch,
        memory_size,
        word_size,
        num_read_heads=1,
        num_write_heads=1,
        num_taps=3,
        time=41,
        hidden_size=hidden_size,
        num_layers=num_layers,
        is_lstm=True,
    )


def times(given, launch=LAUNCH, holds_memory=True, in_bfloat16=False):
    """Of a block that holds no weights."""
    block = Block(7.2, 8 * weights(given), holds_memory)
    return cost(given, block, 4, launch, in_bfloat16)


def test_the_model_prefers_one_launch_for_small_weights_and_the_loop_for_large_ones():
    for batch in (1, 16, 64):
        small, large = times(sizes(batch)), times(sizes(batch, hidden_size=1024))
        assert small.one_launch < small.step_loop
        assert large.one_launch > large.step_loop


def test_the_model_of_products_in_bfloat16():
    """They take less time, and some launches more."""
    for given, gains in ((sizes(1), False), (sizes(256, hidden_size=1024), True)):
        exact, rounded = times(given), times(given, in_bfloat16=True)
        assert rounded.one_launch == exact.one_launch
        assert (rounded.step_loop < exact.step_loop) == gains


def test_the_model_of_a_large_memory():
    """One block loads it alone; a step of the loop spreads it over the card."""
    large = sizes(memory_size=65_536, word_size=64)
    found = times(large, holds_memory=False)
    assert found.one_launch > found.step_loop
    # All blocks together load it no faster than the card does.
    full = times(large._replace(batch=132), holds_memory=False)
    assert full.one_launch >= 132 * 8 * 65_536 * 64 * 4 / 5.5e12


def test_the_model_counts_launches_layers_and_rounds():
    given = sizes(64, hidden_size=512)
    assert times(given, GRAPH_LAUNCH).one_launch == times(given).one_launch
    assert times(given, GRAPH_LAUNCH).step_loop < times(given).step_loop
    assert times(sizes(num_layers=2)).step_loop > times(sizes()).step_loop
    assert times(sizes(133)).one_launch == pytest.approx(2 * times(sizes(132)).one_launch)


@pytest.mark.parametrize("entry", [e for e in BOTH if "tiled" not in e.backend], ids=str)
def test_large_weights_take_the_loop(entry):
    """The choice is the model's, with the weights that the plan leaves outside of the chip."""
    case = Case("sequence", 2, time=2, hidden_size=1024)
    assert "a loop of steps" in why(entry, case)
    assert "a loop of steps" not in why(entry, case.with_(hidden_size=100))
