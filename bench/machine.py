"""Facts about this machine: what it is, what it can do at most, and who else is using it."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import ntm_kernels

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Environment:
    """What a row of results has to say about where it comes from."""

    date: str
    revision: str
    device: str
    cores: int
    python: str
    torch: str
    ntm_kernels: str


def environment(device: str) -> Environment:
    return Environment(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        revision=revision(),
        device=device_name(device),
        cores=os.cpu_count() or 1,
        python=platform.python_version(),
        torch=torch.__version__,
        ntm_kernels=ntm_kernels.__version__,
    )


def revision() -> str:
    """The commit checked out, with a ``+`` where files differ from it; empty outside of git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short", "HEAD")
    if commit is None:
        return ""
    return commit + ("+" if git("status", "--porcelain", "--", "ntm_kernels", "csrc") else "")


def device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Others:
    """How many cores processes other than this one and its children used since it was made."""

    def __init__(self) -> None:
        self._busy, self._own, self._since = _busy_seconds(), _own_seconds(), time.perf_counter()

    def cores(self) -> float | None:
        """``None`` where it cannot be known."""
        busy = _busy_seconds()
        elapsed = time.perf_counter() - self._since
        if busy is None or self._busy is None or elapsed <= 0:
            return None
        return max(0.0, (busy - self._busy - (_own_seconds() - self._own)) / elapsed)


def _busy_seconds() -> float | None:
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    return sum(os.times()[:4])


@dataclass(frozen=True)
class Ceilings:
    """The most that ``threads`` cores, or a GPU, reach: FLOP/s, and bytes/s by where data lie.

    ``exponentials``: how many the kernels' own function computes a second, where it was measured.
    """

    flops: float
    bandwidth: dict[str, float]
    method: str
    exponentials: float | None = None


def ceilings(device: str, threads: int) -> Ceilings:
    """Measure the machine's limits, in a few seconds."""
    if torch.device(device).type == "cuda":
        return _cuda_ceilings(device)
    with tempfile.TemporaryDirectory() as folder:
        library = _compile(Path(folder))
        return _torch_ceilings(threads) if library is None else _native_ceilings(library, threads)


def _compile(folder: Path) -> ctypes.CDLL | None:
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or ""]
    if not shutil.which(compiler[0]):
        return None
    target = folder / "limits.so"
    flags = ["-std=c++20", "-O3", "-march=native", "-funroll-loops", "-fPIC", "-shared"]
    flags += [f"-I{ROOT / 'csrc'}", "-DNTM_ISA=limits"]
    source = str(Path(__file__).with_name("limits.cpp"))
    done = subprocess.run([*compiler, *flags, source, "-o", str(target)], capture_output=True)
    return ctypes.CDLL(str(target)) if done.returncode == 0 else None


def _native_ceilings(library: ctypes.CDLL, threads: int) -> Ceilings:
    for function in (library.multiply_add, library.stream, library.exponentials):
        function.restype = ctypes.c_double
    pool = ThreadPoolExecutor(threads)

    def best(work: Callable[[int], float]) -> float:
        """Highest rate of all threads together, of several attempts."""
        rates = []
        # Many and short: the best of them is one that nobody interrupted.
        for _ in range(40):
            start = time.perf_counter()
            done = sum(pool.map(work, range(threads)))
            rates.append(done / (time.perf_counter() - start))
        return max(rates)

    def multiply_add(_: int) -> float:
        values = (ctypes.c_float * 2)(0.5, 0.5)
        done: float = library.multiply_add(ctypes.c_long(1_000_000), values)
        return done

    def over(function: Any, nbytes: int) -> Callable[[int], float]:
        """``function`` over one buffer for each thread, half of which it reads."""
        buffers = [torch.zeros(2, nbytes // 4) for _ in range(threads)]
        turns = max(1, 2**26 // nbytes)

        def work(thread: int) -> float:
            count = nbytes // 4
            start = buffers[thread].data_ptr()
            done: float = function(
                ctypes.c_long(turns),
                ctypes.c_size_t(count),
                ctypes.c_void_p(start),
                ctypes.c_void_p(start + nbytes),
            )
            return done

        return work

    sizes = {"L1": 2**13, "L2": 2**17, "DRAM": 2**27}
    bandwidth = {name: best(over(library.stream, size)) for name, size in sizes.items()}
    exponentials = best(over(library.exponentials, 2**13))
    method = "multiply-adds in registers, a stream of 16 KiB, 256 KiB and 256 MiB"
    return Ceilings(best(multiply_add), bandwidth, method, exponentials)


def _torch_ceilings(threads: int) -> Ceilings:
    """Without a compiler: what torch's own operations reach."""
    torch.set_num_threads(threads)
    square = torch.rand(1024, 1024)
    big = torch.rand(2, 2**25)
    return Ceilings(
        _rate(lambda: torch.mm(square, square), 2 * 1024**3),
        {"DRAM": _rate(lambda: big[0].copy_(big[1]), 2 * 4 * 2**25)},
        "no C++ compiler: matrix product of torch, copy of 256 MiB",
    )


def _cuda_ceilings(device: str) -> Ceilings:
    square = torch.rand(8192, 8192, device=device)
    big = torch.rand(2, 2**28, device=device)

    def done(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            call()
            torch.cuda.synchronize(device)

        return run

    return Ceilings(
        _rate(done(lambda: torch.mm(square, square)), 2 * 8192**3),
        {"HBM": _rate(done(lambda: big[0].copy_(big[1])), 2 * 4 * 2**28)},
        "float32 matrix product of torch, copy of 2 GiB",
    )


def _rate(call: Callable[[], object], work: float) -> float:
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return work / min(seconds)
