"""What only a GPU shows: streams, graphs, several devices. On each backend for GPUs alone."""

import pytest
import torch

from tests.support.cases import SMALL, TILED, Dtypes, arguments, call, cotangents, run
from tests.support.table import TABLE

FLOAT32 = Dtypes.all(torch.float32)
each_case = pytest.mark.parametrize("case", [*SMALL, *TILED], ids=str)
# Those that are not there are skipped here, one by one and with the reason.
each_backend = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(
            entry.backend,
            id=f"{entry.backend}-cuda",
            marks=pytest.mark.skipif(entry.why_not() is not None, reason=str(entry.why_not())),
        )
        for entry in TABLE
        if entry.device == "cuda" and entry.backend != "torch"
    ],
)


def assert_same(actual, expected):
    for part, wanted in zip(actual, expected, strict=True):
        assert part.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(part[name].cpu(), value.cpu()), name


@each_backend
@each_case
def test_runs_on_the_current_stream(backend, case):
    """Behind a sleep and a copy on a side stream: on any other stream it would see NaN."""
    tensors = arguments(case, FLOAT32, "cuda")
    grads = cotangents(call(case, tensors, backend))
    expected = run(case, tensors, backend, grads)
    late = {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        for name, tensor in tensors.items():
            late[name].copy_(tensor)
        actual = run(case, late, backend, grads)
    side.synchronize()
    assert_same(actual, expected)


@each_backend
@each_case
def test_is_captured_in_a_graph(backend, case):
    """Forward and backward replayed with other values in the same places."""
    first, second = (arguments(case, FLOAT32, "cuda", seed=seed) for seed in (0, 1))
    grads = cotangents(call(case, first, backend))
    expected = run(case, second, backend, grads)
    static = {name: tensor.clone() for name, tensor in first.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(case, static, backend, grads)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(case, static, backend, grads)
    for name, tensor in second.items():
        static[name].copy_(tensor)
    graph.replay()
    torch.cuda.synchronize()
    assert_same(results, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@each_backend
@each_case
def test_second_device(backend, case):
    """Tensors on one device, while another is the current one."""
    expected = run(case, arguments(case, FLOAT32, "cuda:0"), backend)
    with torch.cuda.device(0):
        actual = run(case, arguments(case, FLOAT32, "cuda:1"), backend)
        assert torch.cuda.current_device() == 0
    for part in actual:
        assert all(tensor.device.index == 1 for tensor in part.values())
    assert_same(actual, expected)


@pytest.mark.parametrize(
    "case", [*(case.with_(batch=64, memory_size=300) for case in SMALL), *TILED], ids=str
)
@each_backend
def test_same_bits_every_run(backend, case):
    tensors = arguments(case, FLOAT32, "cuda")
    expected = run(case, tensors, backend)
    for _ in range(5):
        assert_same(run(case, tensors, backend), expected)
