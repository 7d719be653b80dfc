"""The two ways of ``sequence`` on the GPU backends: what each computes, and which one is taken."""

import re
from functools import partial

import pytest
import torch

from ntm_kernels import functional
from ntm_kernels.backends import BackendError, get
from ntm_kernels.backends.controller_cost import GRAPH_LAUNCH, LAUNCH, Block, cost, weights
from ntm_kernels.ops import Sizes
from tests.support.cases import (
    DEEP,
    Case,
    Dtypes,
    arguments,
    assert_agrees,
    of_sequence,
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


@pytest.fixture
def step_loop(monkeypatch):
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


def why(entry, case, **extra):
    given = of_sequence(arguments(case, device=entry.device)) | extra
    return functional.explain("sequence", **given, **case.options, backend=entry.backend).reason


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


def times(given, launch=LAUNCH, holds_memory=True):
    """Of a block that holds no weights."""
    return cost(given, Block(7.2, 8 * weights(given), holds_memory), 4, launch)


def test_the_model_prefers_one_launch_for_small_weights_and_the_loop_for_large_ones():
    for batch in (1, 16, 64):
        small, large = times(sizes(batch)), times(sizes(batch, hidden_size=1024))
        assert small.one_launch < small.step_loop
        assert large.one_launch > large.step_loop


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
