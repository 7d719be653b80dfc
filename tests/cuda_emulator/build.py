"""Compiles CUDA sources for the emulator, into a library that `ctypes` loads.

    python -m tests.cuda_emulator.build VARIANT SOURCES LIBRARY

`plain` runs fastest; `address` is compiled with the address and undefined-behaviour sanitizers
(the process that loads it needs `sanitizer_environment`); `instrumented` finds races and reads of
unset shared memory, and counts accesses. Nothing is compiled again that has not changed.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cuda_emulator.translate import translate_tree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMMON = [
    *("-std=c++20", "-g", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    *("-Wno-unused-function", "-fno-math-errno", "-ffp-contract=off"),
]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=vptr"]
# The compiler's thread sanitizer calls instrument.cpp at each access; its own runtime, which knows
# threads and locks but no blocks and warps, is left out. A vector access must stay one access.
INSTRUMENT = ["-O1", "-fsanitize=thread", "-fno-tree-sra", "-fno-ipa-sra"]
KERNEL_FLAGS = {
    "plain": ["-O2"],
    "address": ["-O1", "-fno-omit-frame-pointer", *SANITIZE],
    "instrumented": INSTRUMENT,
}
RUNTIME_FLAGS = {"plain": ["-O2"], "address": ["-O1", *SANITIZE], "instrumented": ["-O2"]}
RUNTIME = {
    "plain": ["emulator.cpp", "runtime.cpp"],
    "address": ["emulator.cpp", "runtime.cpp"],
    "instrumented": ["emulator.cpp", "runtime.cpp", "instrument.cpp"],
}


def toolkit_include() -> Path | None:
    """The CUDA toolkit's headers, or None where there is no toolkit."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    candidates = [Path(home) for home in homes if home]
    if nvcc:
        candidates.append(Path(nvcc).resolve().parents[1])
    for home in candidates:
        if (home / "include/cuda_runtime_api.h").exists():
            return home / "include"
    return None


def unavailable() -> str | None:
    """Why nothing can be emulated here; None if it can."""
    if os.uname().machine != "x86_64":
        return "the CUDA emulator runs on x86-64 only"
    if not shutil.which("g++"):
        return "the CUDA emulator needs g++"
    if toolkit_include() is None:
        return "the CUDA emulator needs the headers of a CUDA toolkit"
    return None


def _is_current(target: Path, record: str) -> bool:
    recorded, dependencies = target.with_suffix(".cmd"), target.with_suffix(".d")
    if not (target.exists() and recorded.exists() and dependencies.exists()):
        return False
    made = target.stat().st_mtime_ns
    inputs = dependencies.read_text().replace("\\\n", " ").partition(":")[2].split()
    return recorded.read_text() == record and all(
        os.path.exists(path) and os.stat(path).st_mtime_ns < made for path in inputs
    )


def _environment() -> dict[str, str]:
    """That of a compiler, which runs under no sanitizer of the process that asks for it."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def _compile(command: list[str], target: Path) -> None:
    command = [*command, "-MMD", "-o", str(target)]
    record = shlex.join(command)
    if _is_current(target, record):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(),
    )
    if done.returncode:
        raise RuntimeError(f"`{record}` failed:\n{done.stdout}")
    target.with_suffix(".cmd").write_text(record)


def build(variant: str, sources: Path, library: Path, defines: tuple[str, ...] = ()) -> Path:
    """Compile all `.cu` files under `sources` into `library`, and return its path."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with library.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel test processes ask for the same library
        return _build(variant, sources, library, defines)


def kernels(variant: str) -> Path:
    """The library of the project's kernels, as if they had been compiled for every card."""
    library = ROOT / f"build/cuda_emulator/kernels_{variant}.so"
    return build(variant, ROOT / "csrc/cuda", library, ('NTM_CUDA_ARCHITECTURES="7.5+PTX"',))


def _build(variant: str, sources: Path, library: Path, defines: tuple[str, ...]) -> Path:
    include = toolkit_include()
    if include is None:
        raise RuntimeError(unavailable())
    work = library.with_suffix("")
    translated = translate_tree(sources.resolve(), work / "sources")
    includes = [f"-I{HERE / 'include'}", f"-isystem{include}"]
    original = f"-ffile-prefix-map={work / 'sources'}={sources.resolve()}"
    defined = [f"-D{define}" for define in defines]
    compiler = ["g++", *COMMON, *includes, original, *defined]
    commands = []
    for source in translated:
        target = work / source.relative_to(work / "sources").with_suffix(".o")
        flags = KERNEL_FLAGS[variant]
        commands.append(([*compiler, *flags, "-x", "c++", "-c", str(source)], target))
    for name in RUNTIME[variant]:
        target = work / "runtime" / Path(name).with_suffix(".o")
        commands.append(([*compiler, *RUNTIME_FLAGS[variant], "-c", str(HERE / name)], target))
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        list(pool.map(lambda item: _compile(*item), commands))

    objects = [str(target) for _, target in commands]
    newest = max(os.stat(path).st_mtime_ns for path in objects)
    if not library.exists() or library.stat().st_mtime_ns < newest:
        linking = ["g++", "-shared", "-Wl,-Bsymbolic", *objects, "-ldl"]
        flags = SANITIZE if variant == "address" else []
        # Linked aside and moved into place, so that no process sees half a library.
        partial = library.with_suffix(f".{os.getpid()}.tmp")
        subprocess.run([*linking, *flags, "-o", str(partial)], check=True, env=_environment())
        partial.replace(library)
    return library


def sanitizer_environment() -> dict[str, str]:
    """What a process needs in its environment to load a library of the variant `address`."""
    paths = [
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    return {
        "LD_PRELOAD": ":".join(paths),
        # Python and torch free nothing at exit.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=66",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


if __name__ == "__main__":
    try:
        print(build(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]).resolve()))
    except RuntimeError as error:
        sys.exit(str(error))
