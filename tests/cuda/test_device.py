"""That the CUDA kernels are chosen on a card, and how many are launched. Needs a CUDA device."""

import pytest
import torch

from ntm_kernels import backends
from ntm_kernels.ops import Sizes
from tests.support.cases import SMALL, TILED, Case, Dtypes, arguments, call, cotangents, run

FLOAT32 = Dtypes.all(torch.float32)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or backends.get("cuda").unavailable() is not None,
    reason="needs a CUDA device and the CUDA kernels",
)


def test_is_the_automatic_choice():
    memory = torch.eye(3, device="cuda")[None]
    problem = backends.Problem("read", "cuda", torch.float32, Sizes.of(memory, 1))
    assert backends.choose(problem).backend == "cuda"


@pytest.mark.parametrize(
    "case",
    [
        *SMALL,
        *TILED,
        Case("step", batch=16, memory_size=512, word_size=64),
        Case("sequence", batch=16, memory_size=128, word_size=20, hidden_size=100, time=40),
    ],
    ids=str,
)
def test_one_launch_a_direction(case):
    """Our kernels seen by the profiler: one of a forward and one of its backward."""
    tensors = arguments(case, FLOAT32, "cuda")
    grads = cotangents(call(case, tensors, "cuda"))
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run(case, tensors, "cuda", grads)
        torch.cuda.synchronize()
    ours = [event.name for event in profile.events() if "ntm::" in event.name]
    assert len(ours) == 2, ours
