"""The CUDA part of setup.py, run on a throwaway kernel in a copy of the project's build files."""

import ctypes
import os
import shutil
import subprocess

import pytest

from tests.test_build import build, project  # noqa: F401

LIBRARY = "ntm_kernels/_cuda.so"
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")

pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc")


@pytest.fixture
def cuda_project(project):  # noqa: F811
    for source in project.glob("csrc/*.cpp"):
        source.unlink()
    shutil.rmtree(project / "csrc/cpu")
    (project / "csrc/cuda").mkdir()
    (project / "csrc/cuda/factor.cuh").write_text("constexpr float kFactor = 2.0f;\n")
    (project / "csrc/cuda/scale.cu").write_text(
        '#include "factor.cuh"\n'
        "__global__ void scale(float* x) { x[threadIdx.x] *= kFactor; }\n"
        'extern "C" int run_scale(float* x) {\n'
        "  scale<<<1, 32>>>(x);\n"
        "  return cudaGetLastError();\n"
        "}\n"
    )
    (project / "csrc/cuda/answer.cu").write_text(
        'extern "C" int answer() { return 42; }\n'
        'extern "C" const char* architectures() { return NTM_CUDA_ARCHITECTURES; }\n'
    )
    return project


def build_cuda(project, **options):  # noqa: F811
    return build(project, **{"TORCH_CUDA_ARCH_LIST": "9.0", **options})


def about_cuda(output):
    [line] = [line for line in output.splitlines() if line.startswith("ntm_kernels: CUDA kernels")]
    return line


def test_builds_whatever_torch_and_loads_without_a_driver(cuda_project):
    (cuda_project / "fake").mkdir()
    (cuda_project / "fake/torch.py").write_text("raise ImportError('hidden')")
    done = build_cuda(cuda_project, PYTHONPATH=str(cuda_project / "fake"))
    assert about_cuda(done.stdout) == f"ntm_kernels: CUDA kernels built: 9.0; {NVCC}"
    path = cuda_project / LIBRARY
    library = ctypes.CDLL(str(path))
    assert library.answer() == 42
    if not os.path.exists("/dev/nvidia0"):
        assert library.run_scale(None) != 0
    headers = subprocess.check_output(["objdump", "-p", str(path)], text=True)
    needed = [line.split()[1] for line in headers.splitlines() if "NEEDED" in line]
    assert not [name for name in needed if name.startswith(("libcuda", "libtorch", "libc10"))]
    exported = subprocess.check_output(["nm", "-D", "--defined-only", str(path)], text=True)
    assert {line.split()[-1] for line in exported.splitlines()} == {
        "answer",
        "architectures",
        "run_scale",
    }


def test_is_left_out_for_a_torch_without_cuda_unless_asked_for(cuda_project):
    (cuda_project / "fake").mkdir()
    (cuda_project / "fake/torch.py").write_text(
        "__version__ = '2.13.0+cpu'\nclass version:\n    cuda = None\n"
    )
    options = {"PYTHONPATH": str(cuda_project / "fake"), "TORCH_CUDA_ARCH_LIST": ""}
    done = build_cuda(cuda_project, **options)
    assert about_cuda(done.stdout) == (
        "ntm_kernels: CUDA kernels left out: torch 2.13.0+cpu is one without CUDA; "
        "NTM_KERNELS_REQUIRE_CUDA=1 builds them all the same"
    )
    done = build_cuda(cuda_project, **options, NTM_KERNELS_REQUIRE_CUDA="1")
    assert about_cuda(done.stdout).startswith("ntm_kernels: CUDA kernels built: 7.5, ")


def test_rebuilds_only_what_changed(cuda_project):
    def objects():
        return {path.name: path.stat().st_mtime_ns for path in cuda_project.glob("build/**/*.o")}

    build_cuda(cuda_project)
    first = objects()
    build_cuda(cuda_project)
    assert objects() == first
    (cuda_project / "csrc/cuda/factor.cuh").write_text("constexpr float kFactor = 3.0f;\n")
    build_cuda(cuda_project)
    assert {name for name, time in objects().items() if time != first[name]} == {"scale.o"}
    build_cuda(cuda_project, TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX")
    [log] = cuda_project.glob("build/**/scale.log")
    assert "sm_80" in log.read_text()
    assert "sm_90" in log.read_text()
    library = ctypes.CDLL(str(cuda_project / LIBRARY))
    library.architectures.restype = ctypes.c_char_p
    assert library.architectures() == b"8.0 9.0+PTX"


@pytest.mark.parametrize("obstacle", ["no compiler", "architecture", "bad source"])
def test_is_left_out_with_the_reason_or_required(cuda_project, obstacle):
    environment, reason = {
        "no compiler": ({"NVCC": "/nonexistent"}, "no CUDA compiler (NVCC=/nonexistent)"),
        "architecture": ({"TORCH_CUDA_ARCH_LIST": "Hopper"}, "names 'Hopper'; expected such as"),
        "bad source": ({}, "failed"),
    }[obstacle]
    build_cuda(cuda_project)
    if obstacle == "bad source":
        (cuda_project / "csrc/cuda/answer.cu").write_text("not CUDA")
    required = build_cuda(cuda_project, check=False, **environment, NTM_KERNELS_REQUIRE_CUDA="1")
    assert required.returncode != 0
    assert reason in required.stdout
    assert (cuda_project / LIBRARY).exists()
    done = build_cuda(cuda_project, **environment)
    assert about_cuda(done.stdout).startswith("ntm_kernels: CUDA kernels left out: ")
    assert reason in about_cuda(done.stdout)
    assert not (cuda_project / LIBRARY).exists(), "an old library must not stay behind"
