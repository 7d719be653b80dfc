"""The backends under test. To test another one, list it here."""

from typing import NamedTuple

import pytest
import torch

import tests.triton.interpreted  # noqa: F401  (registers itself)
from ntm_kernels.backends import BackendError, get

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


class Entry(NamedTuple):
    """A backend on a device: which dtypes it computes, and the largest problem worth its time.

    ``largest`` bounds B · H · N · M · T. ``any_threads`` promises the same bits for any number of
    threads.
    """

    backend: str
    device: str
    dtypes: tuple[torch.dtype, ...] = (F16, BF16, F32, F64)
    largest: int = 10**9
    any_threads: bool = False

    def why_not(self):
        """Why it is not tested here; ``None`` if it is."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return "no CUDA device"
        try:
            return get(self.backend).unavailable()
        except BackendError:
            return "not registered"


TABLE = (
    Entry("torch", "cpu"),
    Entry("cpu", "cpu", any_threads=True),
    Entry("torch", "cuda"),
    Entry("cuda", "cuda"),
    Entry("triton", "cuda"),
    Entry("cuda_emulated", "cpu", largest=20_000),
    Entry("triton_interpreted", "cpu", largest=20_000),
    Entry("triton_tiled_interpreted", "cpu", largest=500),
)

LIVE = tuple(entry for entry in TABLE if entry.why_not() is None)


def _each(entries):
    ids = [f"{entry.backend}-{entry.device}" for entry in entries]
    return pytest.mark.parametrize("entry", entries, ids=ids)


each_backend = _each(LIVE)
# The backends with every derivative, and those with the first alone, by an ordinary backward.
each_with_every_derivative = _each([e for e in LIVE if get(e.backend).every_derivative])
each_with_the_first_derivative = _each([e for e in LIVE if not get(e.backend).every_derivative])


def fitting(entry, case, dtypes):
    """Skip what the table says is not for this backend."""
    if case.work > entry.largest:
        pytest.skip(f"too large for {entry.backend} here")
    if not dtypes.of(case.op) <= set(entry.dtypes):
        pytest.skip(f"{entry.backend} does not compute {dtypes}")


def report():
    """Lines for the header of a test run."""
    lines = []
    for entry in TABLE:
        why_not = entry.why_not()
        state = get(entry.backend).describe() if why_not is None else f"NOT TESTED: {why_not}"
        lines.append(f"backend {entry.backend} on {entry.device}: {state}")
    return lines


def missing(names):
    """Of the backends that must be there, each that is not tested, with the reasons."""
    found = {}
    for name in names:
        entries = [entry for entry in TABLE if entry.backend == name]
        reasons = [f"{entry.why_not()} ({entry.device})" for entry in entries]
        if not any(entry.why_not() is None for entry in entries):
            found[name] = "; ".join(reasons) or "not in the table of tested backends"
    return found
