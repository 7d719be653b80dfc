"""Builds the optional kernels; all else about the package stands in pyproject.toml.

For the CPU `ntm_kernels/_cpu.so`, loaded with `torch.ops.load_library`: C++ only, no Python
headers. For GPUs `ntm_kernels/_cuda.so`, loaded with ctypes: plain CUDA, the same whatever torch is
installed. What cannot be built, or could not be used with the installed torch, is left out of the
package, and one line says why.

Environment:
    NTM_KERNELS_REQUIRE_CPU=1     fail instead of leaving the CPU kernels out
    NTM_KERNELS_REQUIRE_CUDA=1    fail instead of leaving the CUDA kernels out, and build them
                                  without torch, or for a torch without CUDA, too
    CXX, CXXFLAGS, LDFLAGS        the compiler (default: c++, g++ or clang++, which needs libomp)
                                  and further options
    NTM_KERNELS_SANITIZE          sanitizers to build in, such as address,undefined
    NVCC, CUDA_HOME               the CUDA compiler (default: nvcc, or that of /usr/local/cuda)
    TORCH_CUDA_ARCH_LIST          GPU architectures, as for torch: 9.0, "8.0;9.0+PTX", built for any
                                  torch or none (default: all, for a torch with CUDA)
    MAX_JOBS                      compilations at a time (default: one per core)
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# csrc/*.cpp is compiled once; csrc/cpu/*.cpp once per instruction set, with NTM_ISA as its name.
ISAS: dict[str, list[str]] = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISAS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISAS["avx512"] = [
        *ISAS["avx2"],
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
    ]

COMPILE_FLAGS = [
    *("-std=c++20", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra"),
    # Neither changes a result; both stand in the way of vectorising.
    *("-fno-math-errno", "-fno-trapping-math"),
]
# The last one keeps multiply and add fused, as in what is shipped.
SANITIZE_FLAGS = ["-g1", "-O1", "-fexpensive-optimizations"]
# Never -ffast-math here: at link time it would flush denormals in the whole process.
LINK_FLAGS = ["-shared", "-fopenmp", "-ltorch", "-ltorch_cpu", "-lc10"]

OLDEST_TORCH = (2, 11)
SOURCES = sorted(Path("csrc").glob("*.cpp"))
ISA_SOURCES = sorted(Path("csrc/cpu").glob("*.cpp"))

# csrc/cuda/*.cu is compiled once for all architectures, with PTX of the newest for those to come.
CUDA_ARCHITECTURES = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-lineinfo", "-Xcompiler=-fPIC,-Wall,-Wextra", "-Xptxas=-v"]
# The runtime is linked in and kept to itself, so that it meets no other copy in the process.
NVCC_LINK_FLAGS = ["-shared", "-cudart=static", "-Xlinker=--exclude-libs,ALL"]
# The longest first, so that none is left to compile alone.
CUDA_SOURCES = sorted(Path("csrc/cuda").glob("*.cu"), key=lambda source: -source.stat().st_size)
# What ptxas says of each kernel's resources is for the record beside the object.
PTXAS_INFO = re.compile(r"^(ptxas info|    \d+ bytes stack frame).*\n", re.MULTILINE)


class Unavailable(Exception):
    """Why kernels cannot be built here."""


def is_required(variable: str) -> bool:
    return os.environ.get(variable) == "1"


def installed_packages() -> list[str]:
    """The folders of installed packages, which build isolation takes off the path."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    folders += site.getsitepackages()
    if sys.prefix == sys.base_prefix:  # a virtual environment does not see those of the user
        folders.append(site.getusersitepackages())
    return folders


def require_torch() -> ModuleType:
    """Import and return the torch that the kernels will run with."""
    try:
        import torch
    except (ImportError, OSError):
        sys.path += installed_packages()
        try:
            import torch
        except (ImportError, OSError) as error:
            raise Unavailable(
                f"no torch to build against ({error}); install torch first, and give "
                "--no-isolation to `python -m build`, which hides it"
            ) from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise Unavailable(f"torch {torch.__version__} is older than {oldest}")
    return torch


def require_compiler() -> list[str]:
    """Return the command of the C++ compiler."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise Unavailable(f"no C++ compiler (CXX={named[0]})" if named else "no C++ compiler")


def require_nvcc() -> str:
    """Return the path of the CUDA compiler."""
    if named := os.environ.get("NVCC"):
        if found := shutil.which(named):
            return found
        raise Unavailable(f"no CUDA compiler (NVCC={named})")
    home = os.environ.get("CUDA_HOME")
    for command in [*([f"{home}/bin/nvcc"] if home else []), "nvcc", "/usr/local/cuda/bin/nvcc"]:
        if found := shutil.which(command):
            return found
    raise Unavailable("no CUDA compiler (nvcc)")


def require_cuda_in_torch() -> None:
    """Raise unless the installed torch is one for NVIDIA's GPUs."""
    torch = require_torch()
    if torch.version.cuda is None:
        raise Unavailable(
            f"torch {torch.__version__} is one without CUDA; NTM_KERNELS_REQUIRE_CUDA=1 builds "
            "them all the same"
        )


def gencode(architectures: Iterable[str]) -> list[str]:
    """The options of nvcc for architectures written as in TORCH_CUDA_ARCH_LIST."""
    options = []
    for architecture in architectures:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", architecture)
        if match is None:
            raise Unavailable(
                f"TORCH_CUDA_ARCH_LIST names {architecture!r}; expected such as 9.0 or 9.0+PTX"
            )
        number = match[1] + match[2] + match[3]
        codes = f"[sm_{number},compute_{number}]" if match[4] else f"sm_{number}"
        options.append(f"-gencode=arch=compute_{number},code={codes}")
    return options


def run(command: list[str]) -> str:
    """Run a compiler, show what it has to say, and return that."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if remarks := PTXAS_INFO.sub("", done.stdout):
        print(remarks, end="", file=sys.stderr)
    if done.returncode:
        raise Unavailable(f"`{shlex.join(command)}` failed")
    return done.stdout


def is_current(target: Path, record: str) -> bool:
    """Tell whether an object came from this very command and its sources are older than it."""
    recorded, dependencies = target.with_suffix(".cmd"), target.with_suffix(".d")
    if not (target.exists() and recorded.exists() and dependencies.exists()):
        return False
    made = target.stat().st_mtime
    inputs = dependencies.read_text().replace("\\\n", " ").partition(":")[2].split()
    return recorded.read_text() == record and all(
        os.path.exists(path) and os.path.getmtime(path) < made for path in inputs
    )


def compile_object(command: list[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".log").write_text(run(command))
    target.with_suffix(".cmd").write_text(shlex.join(command))


def compile_all(commands: Iterable[tuple[list[str], Path]], announcement: str = "") -> None:
    """Compile the objects that are not current, several at a time, after printing `announcement`.

    The compilers are processes of their own.
    """
    complete = [([*command, "-MMD", "-o", str(target)], target) for command, target in commands]
    stale = [item for item in complete if not is_current(item[1], shlex.join(item[0]))]
    if stale and announcement:
        print(announcement, file=sys.stderr, flush=True)
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(lambda item: compile_object(*item), stale):
            pass


class BuildKernels(build_ext):
    """Compiles and links the libraries, or says why not."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        kernels, build = self.builders()[ext.name]
        try:
            built = build(library)
        except Unavailable as reason:
            library.unlink(missing_ok=True)
            if not ext.optional:
                raise CompileError(f"{kernels}: {reason}") from None
            print(f"ntm_kernels: {kernels} left out: {reason}", file=sys.stderr)
        else:
            print(f"ntm_kernels: {kernels} built: {built}", file=sys.stderr)

    def builders(self) -> dict[str, tuple[str, Callable[[Path], str]]]:
        return {
            "ntm_kernels._cpu": ("CPU kernels", self.build_cpu),
            "ntm_kernels._cuda": ("CUDA kernels", self.build_cuda),
        }

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        for library in map(self.get_ext_filename, self.ext_map):
            if not Path(self.build_lib, library).exists():
                Path(library).unlink(missing_ok=True)

    def build_cuda(self, library: Path) -> str:
        """Build the library for GPUs and say in a few words what it was built for."""
        nvcc = require_nvcc()
        architectures = re.findall(r"[^;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
        if not architectures and not is_required("NTM_KERNELS_REQUIRE_CUDA"):
            require_cuda_in_torch()
        architectures = architectures or CUDA_ARCHITECTURES
        known = f'-DNTM_CUDA_ARCHITECTURES="{" ".join(architectures)}"'
        compiler = [nvcc, *NVCC_FLAGS, *gencode(architectures), known, "-Icsrc"]
        temp = Path(self.build_temp)
        objects = [temp / source.with_suffix(".o") for source in CUDA_SOURCES]
        compile_all(
            (
                ([*compiler, "-c", str(source)], target)
                for source, target in zip(CUDA_SOURCES, objects, strict=True)
            ),
            f"ntm_kernels: compiling CUDA kernels for {', '.join(architectures)}, which takes "
            "minutes the first time; TORCH_CUDA_ARCH_LIST names fewer",
        )
        run([nvcc, *NVCC_LINK_FLAGS, *map(str, objects), "-o", str(library)])
        return f"{', '.join(architectures)}; {nvcc}"

    def build_cpu(self, library: Path) -> str:
        """Build the library for the CPU and say in a few words what it was built from."""
        if not SOURCES:
            raise Unavailable("no sources in csrc")
        compiler, torch_version = require_compiler(), str(require_torch().__version__)
        from torch.utils.cpp_extension import include_paths, library_paths

        sanitizers = os.environ.get("NTM_KERNELS_SANITIZE")
        sanitize = [f"-fsanitize={sanitizers}", *SANITIZE_FLAGS] if sanitizers else []
        common = [
            *compiler,
            *COMPILE_FLAGS,
            *sanitize,
            f'-DNTM_TORCH_VERSION="{torch_version}"',  # compiles anew for another torch
            "-Icsrc",
            *(f"-isystem{path}" for path in include_paths("cpu")),
        ]
        extra = shlex.split(os.environ.get("CXXFLAGS", ""))
        temp = Path(self.build_temp)
        # The linker keeps the first copy of an inline function, so the least demanding comes first.
        commands = [
            ([*common, *extra, "-c", str(source)], temp / source.with_suffix(".o"))
            for source in SOURCES
        ]
        for isa, flags in ISAS.items():
            for source in ISA_SOURCES:
                command = [*common, *flags, f"-DNTM_ISA={isa}", *extra, "-c", str(source)]
                commands.append((command, temp / isa / source.with_suffix(".o")))
        compile_all(commands)

        objects = [str(target) for _, target in commands]
        paths = [f"-L{path}" for path in library_paths("cpu")]
        linking = [*compiler, *sanitize, *objects, *paths, *LINK_FLAGS]
        run([*linking, *shlex.split(os.environ.get("LDFLAGS", "")), "-o", str(library)])
        return f"{', '.join(ISAS)}; {shlex.join(compiler)}; torch {torch_version}"


class Wheel(bdist_wheel):
    """A wheel for every Python: the libraries are built against torch, and know no Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def extension(name: str, sources: list[Path], requirement: str) -> Extension:
    optional = not is_required(requirement)
    return Extension(f"ntm_kernels.{name}", list(map(str, sources)), optional=optional)


setup(
    ext_modules=[
        extension("_cpu", SOURCES + ISA_SOURCES, "NTM_KERNELS_REQUIRE_CPU"),
        *([extension("_cuda", CUDA_SOURCES, "NTM_KERNELS_REQUIRE_CUDA")] if CUDA_SOURCES else []),
    ],
    cmdclass={"bdist_wheel": Wheel, "build_ext": BuildKernels},
)
