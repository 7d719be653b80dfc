"""Launches of the CUDA kernels on the emulator: what one call may leave behind for another."""

import ctypes
import subprocess

import pytest
import torch

from ntm_kernels.backends import get
from ntm_kernels.backends.cuda.run import Runner, named
from ntm_kernels.backends.cuda.structs import Plan, kernel_sizes
from ntm_kernels.ops import OPS, AddressInputs, NoOptions, ReadInputs, Sizes
from tests.cuda_emulator import build as emulator
from tests.support import emulated
from tests.support.cases import Case, Dtypes, arguments

WHY_NOT = get(emulated.NAME).unavailable()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

SMALL = Case("read", memory_size=300)
LARGE = Case("read", memory_size=3000, word_size=15)


@pytest.fixture(scope="module")
def backend():
    """As the registered one, but a launch does not wait for another."""
    backend = emulated.EmulatedBackend(None, emulated.library(), Runner("cpu"), "unlocked")
    assert backend.unavailable() is None
    return backend


def inputs_of(case, record=ReadInputs):
    return record(**arguments(case, Dtypes.all(torch.float32)))


def read(backend, case):
    inputs = inputs_of(case)
    sizes = OPS["read"].sizes(inputs, NoOptions())
    outputs, _ = backend.kernels["read"].forward(inputs, sizes, False)
    return outputs.read_vectors, torch.einsum("bhn,bnm->bhm", inputs.weightings, inputs.memory)


def shared_bytes(backend, case):
    sizes = kernel_sizes(OPS["read"].sizes(inputs_of(case), NoOptions()))
    return backend.runner.plan("read", "forward", False, sizes, 0).shared_bytes


def test_a_smaller_call_of_another_thread_before_the_launch(backend):
    """It must not lower the limit of shared memory that the larger call has just asked for."""
    assert shared_bytes(backend, LARGE) > 48 << 10 > shared_bytes(backend, SMALL)
    found = []
    other = ctypes.CFUNCTYPE(None)(lambda: found.append(read(backend, SMALL)))
    ctypes.CDLL(str(emulated.library())).cuda_emulator_before_launch(other)
    found.append(read(backend, LARGE))
    assert len(found) == 2, "the smaller call failed"
    for vectors, expected in found:
        torch.testing.assert_close(vectors, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"shared_bytes": 10 << 20}, "exceeds a limit"), ({"threads": 2048}, "exceeds a limit")],
    ids=["attribute", "launch"],
)
@pytest.mark.parametrize("tiled", [False, True])
def test_a_failed_launch_is_reported_once(backend, change, message, tiled):
    case = TILED if tiled else Case("address")
    inputs = inputs_of(case, AddressInputs)
    sizes = kernel_sizes(OPS["address"].sizes(inputs, NoOptions()))
    right = backend.runner.plan("address", "forward", False, sizes, 0)
    assert right.tiled == tiled
    wrong = Plan.from_buffer_copy(right)
    for name, value in change.items():
        setattr(wrong, name, value)
    tensors = named(inputs) | {"out_weightings": torch.empty_like(inputs.previous_weightings)}
    tensors["workspace"] = torch.empty(right.workspace_bytes + 16, dtype=torch.uint8)

    def launch(plan):
        backend.runner.library.launch("address", "forward", sizes, tensors, plan, 0)

    with pytest.raises(RuntimeError, match=message):
        launch(wrong)
    assert ctypes.CDLL(str(emulated.library())).cudaPeekAtLastError() == 0
    launch(right)


TILED = Case("address", 1, 2000, 64)


def test_an_error_of_somebody_else_is_left_to_him(backend):
    library = ctypes.CDLL(str(emulated.library()))
    invalid_device = library.cudaSetDevice(7)
    assert invalid_device != 0
    vectors, expected = read(backend, SMALL)
    torch.testing.assert_close(vectors, expected)
    assert library.cudaGetLastError() == invalid_device


def test_a_device_that_is_not_there_is_reported_once(backend):
    with pytest.raises(RuntimeError, match="CUDA error of device 7: invalid device"):
        backend.runner.library.device(7)
    assert ctypes.CDLL(str(emulated.library())).cudaPeekAtLastError() == 0


PIECES = """
#include "block.cuh"
extern "C" bool fits(int count, NtmPlan* plan) {
  ntm::CountedPieces pieces(*plan);
  for (int i = 0; i < count; ++i) pieces.take<float>(4);
  return pieces.fit();
}
"""


def test_a_plan_with_more_buffers_than_offsets_is_noticed(tmp_path):
    """And nothing is written past the offsets."""
    source, library = tmp_path / "pieces.cpp", tmp_path / "pieces.so"
    source.write_text(PIECES)
    includes = [f"-I{emulator.HERE / 'include'}", f"-isystem{emulator.toolkit_include()}"]
    includes.append(f"-I{emulator.ROOT / 'csrc/cuda'}")
    command = ["g++", *emulator.COMMON, *includes, "-shared", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    fits = ctypes.CDLL(str(library)).fits
    fits.restype = ctypes.c_bool
    plan, most = Plan(why_not=b"as before"), len(Plan().offsets)
    assert fits(most, ctypes.byref(plan))
    assert list(plan.offsets) == list(range(most))
    assert not fits(most + 1, ctypes.byref(plan))
    assert plan.why_not == b"as before"


@pytest.mark.parametrize("tiled", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("op", ["address", "step"])
def test_a_refused_plan_is_not_launched(backend, op, direction, tiled):
    sizes = kernel_sizes(Sizes(0, 8, 4, 1, 0 if op == "address" else 1, num_taps=3))
    plan = Plan(tiled=tiled, tile_rows=8, threads=256, why_not=b"it does not fit")
    with pytest.raises(RuntimeError, match=f"CUDA error in {op} {direction}: "):
        backend.runner.library.launch(op, direction, sizes, {}, plan, 0)
