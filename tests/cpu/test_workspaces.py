"""The memory that the CPU kernels keep between calls."""

import os
from pathlib import Path

import pytest
import torch

import ntm_kernels
from ntm_kernels.backends import get
from tests.support.cases import Case, Dtypes, arguments, run

MIB = 2**20
LARGE = Case("sequence", 16, 512, 64, time=25, hidden_size=8)  # five checkpoints of 2 MiB

pytestmark = pytest.mark.skipif(
    get("cpu").unavailable() is not None, reason="the CPU kernels are not built"
)


def resident():
    """Bytes of memory that the process has."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        pytest.skip("the system does not say how much memory a process has")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_released_memory_goes_back_to_the_system():
    tensors = arguments(LARGE, Dtypes.all(torch.float32))
    first = run(LARGE, tensors, "cpu")[1]["initial_memory"].clone()
    before = resident()
    freed = ntm_kernels.release_workspaces()
    assert freed > 8 * MIB
    assert before - resident() > freed / 2
    assert ntm_kernels.release_workspaces() == 0
    assert torch.equal(run(LARGE, tensors, "cpu")[1]["initial_memory"], first)


def test_what_is_in_use_stays():
    """Results live in such blocks too."""
    result = run(LARGE, arguments(LARGE, Dtypes.all(torch.float32)), "cpu")
    copies = [{name: part.clone() for name, part in group.items()} for group in result]
    ntm_kernels.release_workspaces()
    run(LARGE, arguments(LARGE, Dtypes.all(torch.float32), seed=1), "cpu")
    for group, copied in zip(result, copies, strict=True):
        for name, part in group.items():
            assert torch.equal(part, copied[name]), name
