"""The CUDA emulator on kernels with planted bugs: each is caught, and its right twin is not."""

import ctypes
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cuda_emulator import build as emulator
from tests.cuda_emulator.translate import TranslationError, translate

ROOT = Path(__file__).parents[2]
BLOCKS, THREADS = 5, 64

pytestmark = pytest.mark.skipif(
    emulator.unavailable() is not None, reason=str(emulator.unavailable())
)

# What each bug is caught by, and what the message says. "plain" catches hold in every variant.
CAUGHT = {
    "missing_barrier": ("instrumented", "nobody has written"),
    "missing_second_barrier": ("instrumented", "race on shared memory"),
    "missing_syncwarp": ("instrumented", "nobody has written"),
    "missing_second_syncwarp": ("instrumented", "race on shared memory"),
    "shuffle_for_syncwarp": ("instrumented", "race on shared memory"),
    "divergent_barrier": ("plain", "meet in different barriers"),
    "barrier_against_shuffle": ("plain", "meet in different barriers"),
    "barrier_in_half_a_warp": ("plain", "no thread can go on"),
    "early_exit": ("plain", "reads lane 13, which takes no part"),
    "lane_outside_mask": ("plain", "reads lane 20, which takes no part"),
    "outside_global": ("address", "heap-buffer-overflow"),
    "outside_static": ("address", "use-after-poison"),
    "outside_dynamic": ("address", "use-after-poison"),
    "misaligned_vector": ("address", "misaligned address"),
    "block_race": ("instrumented", "race on global memory"),
    "block_race_by_reading": ("instrumented", "race on global memory"),
    "unset_shared": ("instrumented", "nobody has written"),
    "small_bounds": ("plain", "more threads than its __launch_bounds__ of 32"),
    "last_block": ("instrumented", "race on global memory"),
    "missing_grid_barrier": ("instrumented", "race on global memory"),
    "missing_second_grid_barrier": ("instrumented", "race on global memory"),
    "absent_from_grid_barrier": ("plain", "no thread can go on"),
    "grid_barrier_alone": ("plain", "the launch is not cooperative"),
    "too_many_together": ("plain", "too many blocks in a cooperative launch"),
    "too_much_shared": ("plain", "exceeds a limit"),
}
SCHEDULES = [0, 1, 2, 3, 7]


class Kernels:
    """The planted kernels, compiled in one variant."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.cudaGetErrorString.restype = ctypes.c_char_p

    def run(self, name, bug=0, blocks=BLOCKS, x=None):
        """Return the rows that the kernel wrote; raise what it failed with."""
        size = blocks * THREADS
        array = ctypes.c_float * size
        x_address, y_address = ctypes.c_void_p(), ctypes.c_void_p()
        for address in (x_address, y_address):
            self.library.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(4 * size))
        array.from_address(x_address.value)[:] = range(size) if x is None else x
        error = self.library[f"run_{name}"](x_address, y_address, blocks, bug)
        result = array.from_address(y_address.value)[:]
        for address in (x_address, y_address):
            self.library.cudaFree(address)
        if error:
            raise RuntimeError(self.library.cudaGetErrorString(error).decode())
        return result


@functools.cache
def path_of(variant):
    sources = ROOT / "tests/cuda_emulator/planted_bugs"
    return emulator.build(variant, sources, ROOT / f"build/cuda_emulator/planted_{variant}.so")


@functools.cache
def kernels(variant):
    return Kernels(path_of(variant))


def run_under_sanitizers(name, bug):
    code = (
        "import sys; from tests.cuda.test_emulator import Kernels;"
        "Kernels(sys.argv[1]).run(sys.argv[2], int(sys.argv[3]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(path_of("address")), name, str(bug)],
        cwd=ROOT,
        env={**os.environ, **emulator.sanitizer_environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("name", CAUGHT)
def test_catches_the_bug(name):
    variant, message = CAUGHT[name]
    if variant == "address":
        done = run_under_sanitizers(name, 1)
        assert done.returncode != 0
        assert message in done.stdout
        assert "kernels.cu:" in done.stdout
        return
    with pytest.raises(RuntimeError, match=message) as caught:
        kernels(variant).run(name, 1)
    if variant == "instrumented":
        assert "kernels.cu:" in str(caught.value)


@pytest.mark.parametrize("name", [name for name, (how, _) in CAUGHT.items() if how != "address"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_catches_it_in_every_order_of_threads(name, schedule, monkeypatch):
    monkeypatch.setenv("CUDA_EMULATOR_SCHEDULE", str(schedule))
    with pytest.raises(RuntimeError):
        kernels("instrumented").run(name, 1)


@pytest.mark.parametrize("name", CAUGHT)
@pytest.mark.parametrize("variant", ["plain", "instrumented"])
def test_passes_the_right_kernel_in_every_order(name, variant, monkeypatch):
    expected = kernels("plain").run(name)
    assert all(value == value for value in expected), "some element was not written"
    for schedule in SCHEDULES:
        monkeypatch.setenv("CUDA_EMULATOR_SCHEDULE", str(schedule))
        assert kernels(variant).run(name) == expected


@pytest.mark.parametrize("name", [name for name, (how, _) in CAUGHT.items() if how == "address"])
def test_passes_the_right_kernel_under_the_sanitizers(name):
    done = run_under_sanitizers(name, 0)
    assert done.returncode == 0, done.stdout


def test_orders_of_blocks_differ(monkeypatch):
    """What a race between blocks leaves depends on the schedule, so that tests can see it."""
    results = set()
    for schedule in SCHEDULES:
        monkeypatch.setenv("CUDA_EMULATOR_SCHEDULE", str(schedule))
        results.add(tuple(kernels("plain").run("block_race", 1)[:1]))
    assert len(results) > 1


def test_goes_on_after_a_failure():
    with pytest.raises(RuntimeError, match="takes no part"):
        kernels("plain").run("early_exit", 1)
    rows = kernels("plain").run("early_exit")
    assert rows[:32] == [sum(range(32))] * 32


def test_the_last_error_stays_until_it_is_asked_for():
    """As on a GPU: what succeeds in between does not clear it."""
    library = kernels("plain").library
    invalid_device = library.cudaSetDevice(7)
    assert invalid_device != 0
    assert library.cudaDeviceSynchronize() == 0
    assert [library.cudaPeekAtLastError(), library.cudaGetLastError()] == [invalid_device] * 2
    assert library.cudaGetLastError() == 0


@pytest.mark.parametrize(("architecture", "fits"), [("75", True), ("90", True), ("1", False)])
def test_architecture(architecture, fits):
    code = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); value = ctypes.c_int();"
        "library.cudaDeviceGetAttribute(ctypes.byref(value), 97, 0); print(value.value)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path_of("plain"))],
        env={**os.environ, "CUDA_EMULATOR_ARCHITECTURE": architecture},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert (done.returncode == 0) == fits
    expected = {"75": "65536", "90": "232448", "1": "CUDA_EMULATOR_ARCHITECTURE=1 is not known"}
    assert expected[architecture] in done.stdout


def test_processors(monkeypatch):
    """A cooperative launch has no more blocks than they hold together."""
    kernels("plain").run("missing_grid_barrier", blocks=32)
    monkeypatch.setenv("CUDA_EMULATOR_PROCESSORS", "1")
    kernels("plain").run("missing_grid_barrier", blocks=32)
    with pytest.raises(RuntimeError, match="too many blocks"):
        kernels("plain").run("missing_grid_barrier", blocks=33)


def counts_of(name):
    library = kernels("instrumented").library
    library.cuda_emulator_counts.restype = ctypes.c_char_p
    library.cuda_emulator_count(1)
    kernels("instrumented").run(name)
    counts = json.loads(library.cuda_emulator_counts())
    library.cuda_emulator_count(0)
    return counts


def test_counts_sectors_wavefronts_and_barriers():
    [launch] = counts_of("missing_second_barrier")
    assert launch["grid"] == [BLOCKS, 1, 1]
    assert launch["block"] == [THREADS, 1, 1]
    assert launch["barriers"] == 4
    assert launch["shared_bytes"] == 4 * THREADS
    row = 4 * THREADS
    warps = BLOCKS * THREADS // 32
    assert launch["global_stores"] == {
        "requests": warps,
        "bytes": BLOCKS * row,
        "sectors": BLOCKS * row // 32,
        "ideal": BLOCKS * row // 32,
    }
    assert launch["shared_stores"] == launch["shared_loads"]
    assert launch["shared_stores"]["wavefronts"] == launch["shared_stores"]["ideal"] == 2 * warps


@pytest.mark.parametrize(
    ("stride", "vector", "wavefronts", "ideal"),
    [(1, 1, 1, 1), (2, 1, 2, 1), (32, 1, 32, 1), (33, 1, 1, 1), (0, 1, 1, 1), (4, 4, 4, 4)],
)
def test_counts_bank_conflicts(stride, vector, wavefronts, ideal):
    library = kernels("instrumented").library
    library.cuda_emulator_counts.restype = ctypes.c_char_p
    library.cuda_emulator_count(1)
    assert library.run_bank_conflicts(stride, vector) == 0
    [launch] = json.loads(library.cuda_emulator_counts())
    library.cuda_emulator_count(0)
    assert launch["shared_loads"]["requests"] == 1
    assert launch["shared_loads"]["wavefronts"] == wavefronts
    assert launch["shared_loads"]["ideal"] == ideal


def test_speed():
    """About a million CUDA threads a second and more; the bound allows for a busy machine."""
    blocks = 4000
    data = [0.0] * (blocks * THREADS)
    start = time.perf_counter()
    kernels("plain").run("missing_second_barrier", blocks=blocks, x=data)
    assert blocks * THREADS / (time.perf_counter() - start) > 2e5


def test_translation_keeps_lines_and_literals():
    source = (
        '// a <<<b>>> in a comment\nconst char* text = "<<<1, 2>>> __shared__ int x;";\n'
        "template <class T>\n__global__ void __launch_bounds__(\n    128)\nkernel(T* x) {\n"
        "  __shared__ __align__(16)\n  T rows[2][4];\n}\n"
        "void run() { kernel<float><<<dim3(1, 2), 3>>>(nullptr); }\n"
    )
    translated = translate(source, "x.cu").split("\n")[1:]
    assert len(translated) == source.count("\n") + 1
    assert translated[:2] == source.split("\n")[:2]
    assert "check_launch_bounds(128)" in "\n".join(translated)
    assert 'Launcher("kernel<float>", kernel<float>, dim3(1, 2), 3)(nullptr)' in translated[-2]


@pytest.mark.parametrize(
    "source",
    [
        "__shared__ float a, b;",
        "extern __shared__ float a[4];",
        "__shared__ struct { int x; } s;",
        "kernel<<<1, 2",
    ],
)
def test_translation_refuses_what_it_does_not_know(source):
    with pytest.raises(TranslationError, match=r"x\.cu"):
        translate(source, "x.cu")
