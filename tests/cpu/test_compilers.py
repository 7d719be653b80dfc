"""The kernels compile without a warning for other compilers and processors than the usual ones."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WARNINGS = ("-Wall", "-Wextra", "-Werror")
AVX512 = ("-mavx2", "-mfma", "-mf16c", *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")))


def compile_kernels(compiler, folder, isa, *flags):
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    command = [compiler, "-std=c++20", "-O1", *WARNINGS, *flags, f"-DNTM_ISA={isa}", "-Icsrc"]
    output = folder / "kernels.o"
    subprocess.run(
        [*command, "-c", "csrc/cpu/kernels.cpp", "-o", output], cwd=ROOT, check=True, timeout=600
    )
    assert output.stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx512"])
def test_clang(tmp_path, isa):
    if isa == "avx512" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the processor is another one")
    compile_kernels("clang++", tmp_path, isa, *(AVX512 if isa == "avx512" else ()))


@pytest.mark.slow
def test_aarch64(tmp_path):
    compile_kernels("aarch64-linux-gnu-g++", tmp_path, "baseline")
