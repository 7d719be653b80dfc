"""The self-check of the CUDA kernels on the emulator: it takes every path, and finds bugs."""

from functools import partial

import pytest
import torch

from ntm_kernels.backends import Kernel, Problem, get
from ntm_kernels.backends.cuda.backend import FEW_TAPS, WEIGHTS_HELD
from ntm_kernels.backends.torch import TorchBackend, products
from ntm_kernels.backends.trust.paths import candidates, paths
from ntm_kernels.backends.trust.trial import run_trial
from ntm_kernels.ops import OPS
from tests.cuda.test_emulator import CAUGHT, kernels
from tests.cuda.test_plans import HOLD_ROWS, HOLD_UNITS, CrampedRunner
from tests.cuda_emulator.build import ROOT
from tests.support import emulated

WHY_NOT = get(emulated.NAME).unavailable()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
IN_BFLOAT16 = "matrix products in bfloat16"
LIMITS = {"7.5": 64 << 10, "8.0": 163 << 10, "8.6": 99 << 10, "9.0": 227 << 10}


def backend_with(limit):
    """As on a device whose blocks have that much shared memory."""
    runner = CrampedRunner()
    runner.limit = limit
    backend = emulated.EmulatedBackend(None, emulated.library(), runner, "cramped")
    assert backend.unavailable() is None
    return backend


def test_many_taps_are_as_many_as_in_the_kernels():
    header = (ROOT / "csrc/cuda/block.cuh").read_text()
    assert f"constexpr int kFewTaps = {FEW_TAPS};" in header


def test_weights_are_held_as_in_the_kernels():
    header = (ROOT / "csrc/cuda/controller.cuh").read_text()
    assert "constexpr int kHoldNothing = 0, kHoldUnits = 1, kHoldRows = 2;" in header
    assert WEIGHTS_HELD == ("", ", weights in registers", ", weights on the chip")
    assert (HOLD_UNITS, HOLD_ROWS) == (1, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("limit", LIMITS.values(), ids=list(LIMITS))
def test_every_path_is_tried(limit, dtype):
    backend = backend_with(limit)
    for op in OPS:
        found = paths(backend, op, CPU, dtype)
        ways = {"shared memory"}
        if op in ("address", "step"):
            ways |= {"tiles", "backward tiles", "many taps"}
        if op in ("step", "sequence"):
            ways |= {"one head of each kind"}
        if op == "sequence":
            ways |= {"L2", "backward L2", "weightings in L2", "LSTM", "feed-forward", "many taps"}
            ways |= {"LSTM, several layers", "feed-forward, several layers"}
        if op == "sequence" and dtype != torch.float64:
            ways |= {"weights in registers", IN_BFLOAT16}
        if op == "sequence" and dtype != torch.float64 and limit >= LIMITS["8.0"]:
            ways |= {"weights on the chip"}
        assert {way for way in ways if not any(way in path for path in found)} == set(), op
        assert len(found) <= 16


def check(op, dtype, limit=16_000):
    """With so little shared memory every path is taken by a call that is small."""
    backend = backend_with(limit)
    for path, sizes in paths(backend, op, CPU, dtype).items():
        if op == "sequence" and sizes.memory_size > 10_000:
            continue  # a loop of steps in tiles, which the test below runs with a small memory
        trial = run_trial(backend, op, path, sizes, CPU, dtype)
        assert not trial.why_not
        assert trial.share < 0.7, "a check that passes narrowly fails on another device"


@pytest.mark.parametrize("op", ["address", "read", "write"])
def test_right_kernels_pass(op):
    check(op, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_loop_of_steps_in_tiles_passes(dtype, monkeypatch):
    """A memory so large that the loop is chosen by itself takes minutes in the emulator."""
    monkeypatch.setenv("NTM_KERNELS_SEQUENCE", "step_loop")
    backend = backend_with(12_000 if dtype == torch.float64 else 6_000)
    sizes = next(sizes for sizes in candidates("sequence") if sizes.memory_size == 113)
    path = backend.path(Problem("sequence", CPU.type, dtype, sizes))
    assert path == "a loop of steps, matrix products, tiles"
    trial = run_trial(backend, "sequence", path, sizes, CPU, dtype)
    assert not trial.why_not
    assert trial.share < 0.7


@pytest.fixture(name="trial_in_bfloat16")
def small_trial_in_bfloat16(monkeypatch):
    """Of the loop of steps with products in bfloat16, which small weights take only if asked to."""
    monkeypatch.setenv("NTM_KERNELS_SEQUENCE", "step_loop")
    backend = backend_with(LIMITS["9.0"])

    def trial(dtype):
        given = next(sizes for sizes in candidates("sequence") if sizes.bfloat16_products)
        small = given._replace(hidden_size=51)
        small = small._replace(input_size=small.gate_size)
        path = backend.path(Problem("sequence", CPU.type, dtype, small))
        assert IN_BFLOAT16 in path
        return run_trial(backend, "sequence", path, small, CPU, dtype)

    return trial


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float64], ids=str)
def test_products_in_bfloat16_pass(dtype, trial_in_bfloat16):
    trial = trial_in_bfloat16(dtype)
    assert not trial.why_not
    assert trial.share < 0.7


def without_the_first_term(product, left, right):
    return product(left[..., 1:].float(), right[..., 1:, :].float())


def in_four_bits(product, left, right):
    """Of each operand's significand, half of those of bfloat16."""
    fewer = [torch.ldexp((16 * part).round(), two) for part, two in map(torch.frexp, (left, right))]
    return product(*(operand.float() for operand in fewer)) / 256


@pytest.mark.parametrize("name", ["mm", "bmm"])
@pytest.mark.parametrize("bug", [without_the_first_term, in_four_bits])
def test_planted_bugs_in_the_products_in_bfloat16(bug, name, monkeypatch, trial_in_bfloat16):
    right, wanted = products._in_float32, getattr(torch, name)

    def planted(product, *operands):
        return (partial(bug, product) if product is wanted else partial(right, product))(*operands)

    monkeypatch.setattr(products, "_in_float32", planted)
    assert "is off by" in trial_in_bfloat16(torch.float32).why_not


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_right_kernels_pass_in_every_dtype(op, dtype):
    check(op, dtype)


class WithBug(Kernel):
    """The kernel of torch, and what a planted kernel makes wrong is added to its result."""

    def __init__(self, bug):
        self.bug = bug
        self.right = TorchBackend().kernels["read"]

    def forward(self, *args):
        outputs, saved = self.right.forward(*args)
        right, found = (kernels("plain").run(self.bug, wrong) for wrong in (0, 1))
        error = (torch.tensor(found) - torch.tensor(right)).abs().max()
        return outputs._replace(read_vectors=outputs.read_vectors + error), saved

    def backward(self, *args):
        return self.right.backward(*args)


# What no comparison of numbers can find: the results are right, in the emulator and, with luck, on
# a GPU. The sanitizers find these.
BEYOND = {
    "shuffle_for_syncwarp": "the lanes meet in the shuffle, which orders no memory",
    "last_block": "without the fence a block may see old values, and seldom does",
    "outside_global": "what is read beyond an array may be anything, also what is right",
    "outside_static": "what is written beyond an array may be of no use to anyone",
    "outside_dynamic": "the same",
}
# A CPU ends the process, where a GPU reports an error that fails the check.
ENDS_THE_PROCESS = {"misaligned_vector"}


@pytest.mark.parametrize("bug", sorted(CAUGHT.keys() - ENDS_THE_PROCESS))
def test_planted_bugs(bug):
    if CAUGHT[bug][0] == "address":
        assert bug in BEYOND
        return
    backend = TorchBackend()
    backend.kernels = {"read": WithBug(bug)}
    [(path, sizes)] = paths(backend, "read", CPU, torch.float32).items()
    trial = run_trial(backend, "read", path, sizes, CPU, torch.float32)
    assert bool(trial.why_not) == (bug not in BEYOND)
