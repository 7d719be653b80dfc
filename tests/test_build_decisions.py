"""Which kernels setup.py builds, with and without torch and compilers, as pip runs it.

Nothing is compiled: the compilers are scripts that write down each call, torch is an empty package.
"""

import shutil
import subprocess
import venv
from pathlib import Path

import pytest
import setuptools

SETUP = Path(__file__).parents[1] / "setup.py"
SOURCES = ("ops.cpp", "cpu/kernels.cpp", "cuda/read.cu", "cuda/write.cu")
TORCH = {"torch for CPUs": ("2.13.0+cpu", None), "torch for CUDA": ("2.14.1+cu130", "13.0")}
# Notes its name, and writes the file after -o and the list of dependencies beside it.
COMPILER = """#!/bin/sh
echo "${0##*/}" >> "$CALLS"
while [ "$1" != -o ]; do shift; done
: > "$2"
echo "$2:" > "${2%.*}.d"
"""
# Build isolation: setuptools is there, and what is installed is taken off the path.
ISOLATION = """
import site, sys
sys.path[:] = [path for path in sys.path if path not in site.getsitepackages()]
"""

NO_TORCH = (
    "no torch to build against (No module named 'torch'); install torch first, and give "
    "--no-isolation to `python -m build`, which hides it"
)
NO_CUDA = (
    "torch 2.13.0+cpu is one without CUDA; NTM_KERNELS_REQUIRE_CUDA=1 builds them all the same"
)


def install_torch(packages, version, cuda):
    (packages / "torch/utils").mkdir(parents=True)
    (packages / "torch/__init__.py").write_text(
        f"__version__ = {version!r}\nclass version:\n    cuda = {cuda!r}\n"
    )
    (packages / "torch/utils/cpp_extension.py").write_text(
        "def include_paths(device):\n    return []\nlibrary_paths = include_paths\n"
    )


class Place:
    """Sources in ``folder``, and an environment to build them in that has only what is named."""

    def __init__(self, folder, *contents):
        self.folder = folder
        self.tools, self.isolated = folder / "tools", folder / "isolated"
        for path in ("csrc/cpu", "csrc/cuda", "ntm_kernels", "tools", "isolated"):
            (folder / path).mkdir(parents=True)
        for name in SOURCES:
            (folder / "csrc" / name).touch()
        shutil.copy(SETUP, folder)
        for name in ("setuptools", "_distutils_hack"):
            (self.isolated / name).symlink_to(Path(setuptools.__file__).parents[1] / name)
        (self.isolated / "sitecustomize.py").write_text(ISOLATION)
        venv.create(folder / "environment", symlinks=True)
        [packages] = folder.glob("environment/lib/python*/site-packages")
        for name in contents:
            if name in TORCH:
                install_torch(packages, *TORCH[name])
            else:
                (self.tools / name).write_text(COMPILER)
                (self.tools / name).chmod(0o755)

    def build(self, **options):
        """How the process ended, its lines about kernels, and the compilers that it called."""
        calls = self.folder / "calls"
        calls.write_text("")
        environment = {
            "PATH": str(self.tools),
            "PYTHONPATH": str(self.isolated),
            "NVCC": str(self.tools / "nvcc"),  # none of a toolkit outside of the path
            "CALLS": str(calls),
        }
        done = subprocess.run(
            ["environment/bin/python", "setup.py", "--quiet", "build_ext", "--inplace"],
            cwd=self.folder,
            env=environment | options,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert "Traceback" not in done.stdout
        said = [line for line in done.stdout.splitlines() if line.startswith("ntm_kernels: ")]
        return done, [line.removeprefix("ntm_kernels: ") for line in said], calls.read_text()


@pytest.mark.parametrize(
    ("contents", "cpu", "cuda"),
    [
        (("c++", "nvcc"), f"left out: {NO_TORCH}", f"left out: {NO_TORCH}"),
        (("torch for CPUs", "nvcc"), "left out: no C++ compiler", f"left out: {NO_CUDA}"),
        (("torch for CPUs", "c++", "nvcc"), "built: ", f"left out: {NO_CUDA}"),
        (("torch for CUDA", "c++"), "built: ", "left out: no CUDA compiler"),
    ],
    ids=["no torch", "no C++ compiler", "torch for CPUs", "no nvcc"],
)
def test_what_cannot_be_used_is_not_built(tmp_path, contents, cpu, cuda):
    place = Place(tmp_path, *contents)
    done, said, calls = place.build()
    assert done.returncode == 0, done.stdout
    about_cpu, about_cuda = said
    assert about_cpu.startswith(f"CPU kernels {cpu}")
    assert about_cuda.startswith(f"CUDA kernels {cuda}")
    assert ("c++" in calls) == cpu.startswith("built")
    assert "nvcc" not in calls


def test_compilation_is_announced_where_something_is_compiled(tmp_path):
    place = Place(tmp_path, "torch for CUDA", "c++", "nvcc")
    _, said, calls = place.build()
    assert [line.partition(" ")[0] for line in said] == ["CPU", "compiling", "CUDA"]
    assert calls.split().count("nvcc") == 3  # two sources and the library
    _, said, calls = place.build()
    assert [line.partition(" ")[0] for line in said] == ["CPU", "CUDA"]
    assert calls.split().count("nvcc") == 1


@pytest.mark.parametrize(
    "wish", [{"NTM_KERNELS_REQUIRE_CUDA": "1"}, {"TORCH_CUDA_ARCH_LIST": "9.0"}]
)
def test_cuda_kernels_for_no_torch_where_asked_for(tmp_path, wish):
    place = Place(tmp_path, "nvcc")
    done, said, _ = place.build(**wish)
    assert done.returncode == 0
    assert said[-1].startswith("CUDA kernels built: ")


def test_torch_is_found_where_the_environment_takes_packages_of_the_system(tmp_path):
    """Of a distribution, say, or with ``--system-site-packages``."""
    place = Place(tmp_path, "c++")
    install_torch(tmp_path / "system", *TORCH["torch for CPUs"])
    with (place.isolated / "sitecustomize.py").open("a") as customize:
        customize.write(f"site.getsitepackages = lambda: [{str(tmp_path / 'system')!r}]\n")
    _, said, _ = place.build()
    assert said[0].startswith("CPU kernels built: ")
