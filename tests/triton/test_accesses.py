"""The checker of accesses catches what it is there for."""

import pytest
import torch

from tests.triton.interpreted import InterpretedLauncher, extent, needs_interpreter

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")


@triton.jit
def copy_kernel(p_from, p_to, loaded, stored, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(p_from + i, mask=i < loaded, other=0.0)
    tl.store(p_to + i, value, mask=i < stored)


def copy(given, result, loaded, stored):
    launcher = InterpretedLauncher()
    launcher.run(copy_kernel, (1,), given, result, loaded, stored, BLOCK=8, warps=1)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_accesses_inside_pass(dtype):
    given, result = torch.arange(5, dtype=dtype), torch.zeros(5, dtype=dtype)
    copy(given, result, 5, 5)
    assert torch.equal(given, result)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_load_one_beyond(dtype):
    buffer = torch.zeros(16, dtype=dtype)
    with pytest.raises(Exception, match=r"OutOfBounds.*load of 1 elements"):
        copy(buffer[:5], buffer[8:13], 6, 5)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_store_two_beyond(dtype):
    buffer = torch.zeros(16, dtype=dtype)
    with pytest.raises(Exception, match=r"OutOfBounds.*store of 2 elements"):
        copy(buffer[:5], buffer[8:13], 5, 7)


@needs_interpreter
def test_access_before_the_first():
    buffer = torch.zeros(16)
    with pytest.raises(Exception, match="OutOfBounds"):
        copy(buffer[4:8], buffer[8:12].flip(0)[:0], 4, 4)


def test_extent_of_a_view():
    buffer = torch.zeros(4, 6)
    start, stop = extent(buffer[1:3, 2:5])
    assert start == buffer.data_ptr() + 8 * 4
    assert stop == start + 9 * 4
