"""setup.py, run on throwaway sources in a copy of the project's build files."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from ntm_kernels import weights

ROOT = Path(__file__).parents[1]
LIBRARY = Path("ntm_kernels/_cpu.so")

pytestmark = pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")),
    reason="needs a C++ compiler",
)


@pytest.fixture
def project(tmp_path):
    for name in ["setup.py", "pyproject.toml", "LICENSE", "MANIFEST.in", "README.md"]:
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "ntm_kernels").mkdir()
    for name in ["__init__.py", "py.typed"]:
        shutil.copy(ROOT / "ntm_kernels" / name, tmp_path / "ntm_kernels")
    shutil.copytree(ROOT / "ntm_kernels/weights", tmp_path / "ntm_kernels/weights")
    (tmp_path / "csrc/cpu").mkdir(parents=True)
    (tmp_path / "csrc/answer.h").write_text("#define ANSWER 42\n")
    (tmp_path / "csrc/ops.cpp").write_text(
        '#include "answer.h"\n'
        '#define EXPORT extern "C" __attribute__((visibility("default")))\n'
        "EXPORT int answer() { return ANSWER; }\n"
        "EXPORT const char* torch_version() { return NTM_TORCH_VERSION; }\n"
    )
    (tmp_path / "csrc/width.h").write_text(
        "#if defined(__AVX512F__)\n#define WIDTH 512\n"
        "#elif defined(__AVX2__)\n#define WIDTH 256\n"
        "#else\n#define WIDTH 0\n#endif\n"
        "inline __attribute__((noinline)) int shared_width() { return WIDTH; }\n"
    )
    (tmp_path / "csrc/cpu/kernel.cpp").write_text(
        '#include "width.h"\n'
        "#define JOIN_(a, b) a##b\n"
        "#define JOIN(a, b) JOIN_(a, b)\n"
        '#define EXPORT extern "C" __attribute__((visibility("default")))\n'
        "EXPORT int JOIN(width_, NTM_ISA)() { return WIDTH; }\n"
        "EXPORT int JOIN(shared_width_, NTM_ISA)() { return shared_width(); }\n"
    )
    return tmp_path


def run(project, *command, check=True, **environment):
    unset = {"CXX", "CXXFLAGS", "LDFLAGS", "NVCC", "TORCH_CUDA_ARCH_LIST"}
    unset |= {"NTM_KERNELS_REQUIRE_CPU", "NTM_KERNELS_REQUIRE_CUDA"}
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=project,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert not check or done.returncode == 0, done.stdout
    return done


def build(project, **options):
    return run(project, "setup.py", "--quiet", "build_ext", "--inplace", **options)


def left_out(output):
    lines = [line for line in output.splitlines() if "left out" in line]
    assert len(lines) == 1, output
    return lines[0]


def test_builds_once_per_instruction_set(project):
    build(project)
    library = ctypes.CDLL(str(project / LIBRARY))
    library.torch_version.restype = ctypes.c_char_p
    assert library.answer() == 42
    assert library.torch_version().decode() == torch.__version__
    assert library.width_baseline() == 0
    if platform.machine() in ("x86_64", "AMD64"):
        assert library.width_avx2() == 256
        assert library.width_avx512() == 512
        # An inline function that all of them share must run on every processor.
        assert library.shared_width_avx512() == 0


def test_rebuilds_only_what_changed(project):
    def objects():
        found = project.glob("build/temp*/**/*.o")
        return {str(path.relative_to(project)): path.stat().st_mtime_ns for path in found}

    def changed(before):
        return {Path(path).name for path, time in objects().items() if time != before[path]}

    build(project)
    first = objects()
    build(project)
    assert objects() == first
    (project / "csrc/answer.h").write_text("#define ANSWER 43\n")
    build(project)
    assert changed(first) == {"ops.o"}
    assert ctypes.CDLL(str(project / LIBRARY)).answer() == 43
    second = objects()
    build(project, CXXFLAGS="-g")
    assert changed(second) == {"ops.o", "kernel.o"}


@pytest.mark.parametrize("obstacle", ["no compiler", "no torch", "old torch", "bad source"])
def test_is_left_out_with_the_reason_or_required(project, obstacle):
    build(project)
    environment = {}
    if obstacle == "no compiler":
        environment, reason = {"CXX": "/nonexistent"}, "no C++ compiler (CXX=/nonexistent)"
    elif obstacle == "bad source":
        (project / "csrc/ops.cpp").write_text("not C++")
        reason = "failed"
    else:
        old = obstacle == "old torch"
        content = "__version__ = '2.9.1'" if old else "raise ImportError('hidden')"
        (project / "fake").mkdir()
        (project / "fake/torch.py").write_text(content)
        environment = {"PYTHONPATH": str(project / "fake")}
        reason = "torch 2.9.1 is older than 2.11" if old else "install torch first"

    required = build(project, check=False, NTM_KERNELS_REQUIRE_CPU="1", **environment)
    assert required.returncode != 0
    assert reason in required.stdout

    assert (project / LIBRARY).exists()
    assert reason in left_out(build(project, **environment).stdout)
    assert not (project / LIBRARY).exists(), "an old library must not stay behind"


def test_nothing_to_build(project):
    shutil.rmtree(project / "csrc")
    assert "no sources in csrc" in left_out(build(project).stdout)


@pytest.mark.parametrize("compiler", [{}, {"CXX": "/nonexistent"}], ids=["compiler", "none"])
def test_wheel(project, compiler):
    wheel = ["-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", "dist", "."]
    run(project, *wheel, **compiler)
    [path] = project.glob("dist/*.whl")
    assert "-py3-none-" in path.name
    names = zipfile.ZipFile(path).namelist()
    assert "ntm_kernels/py.typed" in names
    for model in weights.available():
        assert {f"ntm_kernels/weights/{model}.pt", f"ntm_kernels/weights/{model}.json"} < set(names)
    assert (str(LIBRARY) in names) == (not compiler)
    assert not [name for name in names if name.startswith(("csrc", "tests"))]
