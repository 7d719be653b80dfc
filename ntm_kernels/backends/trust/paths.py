"""A small call for each code path that a backend may take on a device."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ntm_kernels.backends.base import Backend, Problem
from ntm_kernels.ops.sizes import Sizes

# Not one is a power of two, and none a multiple of another: a kernel that mixes two of them up
# shows it. The largest memory has 17 MB in float64.
MEMORY_SIZES = (13, 37, 113, 389, 1201, 3607, 10_007, 50_021)
WORD_SIZES = (5, 21)
BATCH, TIME = 2, 3


def paths(backend: Backend, op: str, device: torch.device, dtype: torch.dtype) -> dict[str, Sizes]:
    """The smallest call that was found for each path, by the name of the path."""
    found: dict[str, Sizes] = {}
    for sizes in candidates(op):
        problem = Problem(op, device.type, dtype, sizes, device.index or 0)
        if backend.refuses(problem) is None:
            found.setdefault(backend.path(problem), sizes)
    return found


def candidates(op: str) -> Iterator[Sizes]:
    """The sizes of calls of ``op``, from small to large memories.

    What has no part in where a memory lies, such as the kind of controller, varies with the
    smallest memory alone.
    """
    for memory_size in MEMORY_SIZES:
        for word_size in WORD_SIZES:
            yield from _variants(op, Sizes(BATCH, memory_size, word_size, *_HEADS[op]))


# Heads that read, and heads that write.
_HEADS = {"address": (3, 0), "read": (3, 0), "write": (0, 3), "step": (2, 2), "sequence": (2, 2)}


def _variants(op: str, memory: Sizes) -> Iterator[Sizes]:
    is_smallest = memory.memory_size == MEMORY_SIZES[0]
    all_taps = (3, 7) if is_smallest else (3,)
    if op in ("read", "write"):
        yield memory
    elif op in ("address", "step"):
        yield from (memory._replace(num_taps=num_taps) for num_taps in all_taps)
        if op == "step" and is_smallest:
            yield memory._replace(num_taps=3, num_read_heads=1, num_write_heads=1)
    else:
        yield from (_sequence(memory, num_taps, 19, is_lstm=True) for num_taps in all_taps)
        if is_smallest:
            for is_lstm in (True, False):
                yield _sequence(memory, 3, 19, is_lstm)._replace(num_layers=2)
            yield _sequence(memory, 3, 19, is_lstm=False)
            yield _sequence(memory, 3, 257, is_lstm=True)
            # One head of each kind, and rows of the weights that can be loaded in fours.
            in_fours = memory._replace(word_size=8, num_read_heads=1, num_write_heads=1)
            yield _sequence(in_fours, 3, 100, is_lstm=True)
            # So many weights that a loop of steps serves it, which may have products in bfloat16.
            large = _sequence(memory, 3, 1031, is_lstm=True)
            yield large
            yield large._replace(num_layers=2, bfloat16_products=True)


def _sequence(memory: Sizes, num_taps: int, hidden_size: int, is_lstm: bool) -> Sizes:
    """With a segment of two steps and one of one, and a sequence that is shorter than the other."""
    sizes = memory._replace(
        num_taps=num_taps,
        time=TIME,
        checkpoint_every=2,
        hidden_size=hidden_size,
        is_lstm=is_lstm,
        has_lengths=True,
    )
    return sizes._replace(input_size=sizes.gate_size)
