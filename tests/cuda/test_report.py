"""What the report of the CUDA kernels computes from ptxas's words and the emulator's counts."""

import json

import pytest

from scripts import cuda_report
from scripts.cuda_counts import Counts
from scripts.cuda_resources import Resources, read_logs, resident_blocks, shorten

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3ntm4stepIfEEvPT_' for 'sm_75'
ptxas info    : Function properties for _ZN3ntm4stepIfEEvPT_
    32 bytes stack frame, 48 bytes spill stores, 100 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 32 bytes cumulative stack size
ptxas info    : Compile time = 4281.342 ms
ptxas info    : Compiling entry function '_ZN3ntm4stepIfEEvPT_' for 'sm_90'
ptxas info    : Function properties for _ZN3ntm4stepIfEEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 256 bytes smem
"""


@pytest.fixture
def resources(tmp_path):
    (tmp_path / "step.log").write_text(LOG)
    return read_logs(tmp_path)


def test_reads_what_ptxas_says(resources):
    assert resources == {
        "step<float>": {75: Resources(64, 32, 148, 0), 90: Resources(40, 0, 0, 256)}
    }


def test_short_names():
    assert shorten("void ntm::step<float>(Params, ntm::Plan)") == "step<float>"
    assert shorten("ntm::(anonymous namespace)::f<ntm::Pair<float> >") == "f<Pair<float> >"


@pytest.mark.parametrize(
    ("architecture", "registers", "threads", "shared", "blocks"),
    [
        (90, 32, 1024, 0, 2),  # all 64 warps
        (90, 33, 1024, 0, 1),  # 40 registers a thread once rounded up
        (90, 128, 512, 0, 1),
        (90, 64, 512, 0, 2),
        (90, 32, 512, 100 << 10, 2),  # by shared memory, 1 KB of it reserved for each block
        (90, 32, 512, 113 << 10, 2),
        (90, 32, 512, 114 << 10, 1),
        (86, 32, 1024, 0, 1),  # 48 warps
        (75, 32, 32, 0, 16),
        (80, 255, 512, 0, 0),  # 128 KB of registers more than there are
    ],
)
def test_occupancy(architecture, registers, threads, shared, blocks):
    assert resident_blocks(architecture, registers, threads, shared)[0] == blocks


COUNTS = Counts("ntm::step<float>", 1, 512, 1000, 1, 5, 100, 100, 1.0, 50, 1.0, 1.0)


def test_budget(resources, tmp_path, monkeypatch):
    path = tmp_path / "budget.json"
    monkeypatch.setattr(cuda_report, "BUDGET", path)

    def overruns(resource_bounds, count_bounds):
        budget = {"resources": resource_bounds, "counts": count_bounds}
        path.write_text(json.dumps(budget))
        return cuda_report.overruns(resources, {"step, forward": COUNTS}, "")

    assert not overruns({"90": {"spill_bytes": 0, "registers": 40}}, {})
    assert not overruns({}, {"step, forward": {"launches": 1, "memory_traffic": 1.05}})
    assert overruns({"75": {"spill_bytes": 0}}, {}) == [
        "step<float> on sm_75: spill_bytes 148, the budget is 0"
    ]
    assert overruns({"80": {}}, {}) == ["step<float>: not compiled for sm_80"]
    assert overruns({}, {"step, forward": {"barriers": 4}}) == [
        "step, forward: barriers 5, the budget is 4"
    ]
    assert overruns({}, {"step, backward": {}}) == ["step, backward: not measured"]


def test_plans_leave_room_for_static_shared_memory():
    def overruns(kernel, shared_bytes):
        return cuda_report.static_overruns({kernel: {90: Resources(40, 0, 0, shared_bytes)}})

    assert not overruns("tiled_kernel<float, true>", 3 * 1024)
    assert overruns("tiled_kernel<float, true>", 3 * 1024 + 1) == [
        "tiled_kernel<float, true> on sm_90: 3073 bytes of static shared memory, "
        "its plan leaves 3072"
    ]
    assert not overruns("step_forward_kernel<float>", 0)
    assert overruns("step_forward_kernel<float>", 16)


def test_budget_names_calls_that_are_counted():
    for case in json.loads(cuda_report.BUDGET.read_text())["counts"]:
        call, direction = case.rsplit(", ", 1)
        assert call in cuda_report.CASES
        assert direction in ("forward", "backward")


def test_report_has_the_calls_of_the_budget():
    report = cuda_report.REPORT.read_text()
    for case in json.loads(cuda_report.BUDGET.read_text())["counts"]:
        assert f"| {case} |" in report


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("int a; // why\n", 0),
        ("int a;  // another reason\n", 0),
        ("int b; // why\n", 1),
    ],
)
def test_report_of_other_sources_is_outdated(source, found, tmp_path, monkeypatch):
    """`make cuda-report ARGS=--check`, which needs nvcc, fails on it; the test suite does not."""
    monkeypatch.setattr(cuda_report, "ROOT", tmp_path)
    monkeypatch.setattr(cuda_report, "REPORT", tmp_path / "REPORT.md")
    kernel = tmp_path / "kernel.cu"
    kernel.write_text("int a;\n")
    report = f"Sources: {cuda_report.fingerprint()}."
    kernel.write_text(source)
    assert len(cuda_report.outdated(report)) == found
