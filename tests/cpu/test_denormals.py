"""Denormal numbers count as zero inside the kernels, and nowhere else."""

import platform

import pytest
import torch

from ntm_kernels import NTM, functional
from ntm_kernels.backends.cpu import backend

pytestmark = [
    pytest.mark.skipif(
        backend.CpuBackend().unavailable() is not None, reason="the CPU kernels are not built"
    ),
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "AMD64", "aarch64", "arm64"),
        reason="kernels switch denormal numbers off on x86-64 and AArch64 alone",
    ),
]
DENORMAL = 1e-40


def flushes():
    """Whether this thread, or one of those that torch shares a large tensor out to, takes denormal
    numbers for zero."""
    halves = torch.full((1 << 20,), 2 * DENORMAL) * 0.5
    return bool((halves == 0).any())


def read_denormals():
    """A call that is large enough for several threads, which `csrc/tensors.h` decides."""
    memory = torch.full((256, 128, 20), DENORMAL)
    weightings = torch.full((256, 2, 128), 1 / 128)
    return functional.read(memory, weightings, backend="cpu")


@pytest.fixture(params=[1, 3], ids=["one-thread", "three-threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def test_kernels_take_them_for_zero(threads):
    assert not flushes()
    assert (read_denormals() == 0).all()


def test_the_mode_of_the_threads_is_put_back(threads):
    read_denormals()
    assert not flushes()


def test_a_mode_that_the_caller_has_set_stays():
    try:
        assert torch.set_flush_denormal(True)
        read_denormals()
        assert (torch.full((4,), 2 * DENORMAL) * 0.5 == 0).all()
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("time", [1, 6])
def test_a_model_whose_memory_is_denormal_trains(time):
    """Its memory counts as zero, so it computes the same as with a memory of zeros.

    One step shows a difference: later ones read what was written, which is not denormal.
    """
    torch.manual_seed(0)
    model = NTM(4, 3, hidden_size=8, memory_size=16, word_size=5, backend="cpu")
    x = torch.randn(time, 2, 4)
    found = []
    for value in (DENORMAL, 0.0):
        state = model.initial_state(2)
        state = state._replace(memory=torch.full_like(state.memory, value))
        output, _ = model(x, state)
        grads = torch.autograd.grad(output.square().sum(), tuple(model.parameters()))
        found.append((output, *grads))
    for denormal, zero in zip(*found, strict=True):
        assert torch.equal(denormal, zero)
