"""What only a device shows: streams, graphs, several devices, launches. Needs a CUDA device."""

import pytest
import torch

from ntm_kernels import backend as seam
from tests.support.cases import SMALL, Case, Dtypes, arguments, call, cotangents, run

FLOAT32 = Dtypes.all(torch.float32)
# Memories in tiles, worked on by blocks that wait for one another.
TILED = [Case("address", 2, 20_000, 64, 2), Case("step", 1, 20_000, 64, 1, 1)]
each_case = pytest.mark.parametrize("case", [*SMALL, *TILED], ids=str)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or seam.get("cuda").unavailable() is not None,
    reason="needs a CUDA device and the CUDA kernels",
)


def assert_same(actual, expected):
    for part, wanted in zip(actual, expected, strict=True):
        assert part.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(part[name].cpu(), value.cpu()), name


def test_is_the_automatic_choice():
    memory = torch.eye(3, device="cuda")[None]
    problem = seam.Problem(
        "read", "cuda", torch.float32, torch.float32, "", seam.Sizes.of(memory, 1)
    )
    assert seam.choose(problem).backend == "cuda"


@each_case
def test_runs_on_the_current_stream(case):
    """Behind a sleep and a copy on a side stream: on any other stream it would see NaN."""
    tensors = arguments(case, FLOAT32, "cuda")
    grads = cotangents(call(case, tensors, "cuda"))
    expected = run(case, tensors, "cuda", grads)
    late = {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        for name, tensor in tensors.items():
            late[name].copy_(tensor)
        actual = run(case, late, "cuda", grads)
    side.synchronize()
    assert_same(actual, expected)


@each_case
def test_is_captured_in_a_graph(case):
    """Forward and backward replayed with other values in the same places."""
    first, second = (arguments(case, FLOAT32, "cuda", seed=seed) for seed in (0, 1))
    grads = cotangents(call(case, first, "cuda"))
    expected = run(case, second, "cuda", grads)
    static = {name: tensor.clone() for name, tensor in first.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(case, static, "cuda", grads)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(case, static, "cuda", grads)
    for name, tensor in second.items():
        static[name].copy_(tensor)
    graph.replay()
    torch.cuda.synchronize()
    assert_same(results, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@each_case
def test_second_device(case):
    """Tensors on one device, while another is the current one."""
    expected = run(case, arguments(case, FLOAT32, "cuda:0"), "cuda")
    with torch.cuda.device(0):
        actual = run(case, arguments(case, FLOAT32, "cuda:1"), "cuda")
        assert torch.cuda.current_device() == 0
    for part in actual:
        assert all(tensor.device.index == 1 for tensor in part.values())
    assert_same(actual, expected)


@pytest.mark.parametrize(
    "case",
    [
        *SMALL,
        *TILED,
        Case("step", batch=16, locations=512, words=64),
        Case("sequence", batch=16, locations=128, words=20, hidden=100, time=40),
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


@pytest.mark.parametrize(
    "case", [*(case.with_(batch=64, locations=300) for case in SMALL), *TILED], ids=str
)
def test_same_bits_every_run(case):
    tensors = arguments(case, FLOAT32, "cuda")
    expected = run(case, tensors, "cuda")
    for _ in range(5):
        assert_same(run(case, tensors, "cuda"), expected)
