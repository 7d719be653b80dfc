"""The least time that the forward and backward of ``sequence`` can take on a CPU.

It is the sum of three parts, none of which overlaps with another on a processor that is busy with
the first: matrix products at the highest rate of multiply-adds, passes over the memory from the
cache that holds it, and exponentials and logarithms at the rate of the kernels' own function.
"""

from __future__ import annotations

from typing import NamedTuple

from bench.machine import Ceilings
from bench.workload import FLOAT_BYTES, Workload

CACHES = (("L1", 32 * 1024), ("L2", 1024 * 1024))
"""Bytes up to which a memory is taken to lie in a cache."""


class Floor(NamedTuple):
    """Seconds of each part."""

    products: float
    passes: float
    exponentials: float

    @property
    def total(self) -> float:
        return sum(self)

    def __str__(self) -> str:
        parts = zip(self._fields, self, strict=True)
        return ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in parts)


def floor(workload: Workload, ceilings: Ceilings) -> Floor | None:
    """``None`` where the rate of exponentials is not known."""
    if ceilings.exponentials is None or workload.num_layers > 1:
        return None
    w, layout = workload, workload.layout
    steps, cells = w.time * w.batch, w.memory_size * w.word_size
    gates, reads = 4 * w.hidden_size, w.num_read_heads * w.word_size
    recurrent = gates * (reads + w.hidden_size) + layout.size * w.hidden_size
    # Forward, gradient of what was multiplied, gradient of the weights. The input has no gradient.
    products = 2 * steps * (3 * recurrent + 2 * gates * w.input_size)
    # Forward: the similarity reads; read and write read and store. Backward: the replay reads and
    # stores; two passes read the memory, and read and store its gradient.
    passes = steps * cells * FLOAT_BYTES * (3 + 2 + 2 * 3)
    # content one, sharpening two, for each row of each head; the LSTM; the interface vector.
    elementary = steps * (
        3 * layout.num_heads * w.memory_size
        + 5 * w.hidden_size
        + layout.num_heads * (3 + layout.num_taps)
        + w.num_write_heads * w.word_size
    )
    nearest = next((name for name, room in CACHES if cells * FLOAT_BYTES <= room), "DRAM")
    return Floor(
        products / ceilings.flops,
        passes / ceilings.bandwidth[nearest],
        elementary / ceilings.exponentials,
    )
