"""The Triton backend on CPU tensors, in Triton's interpreter, with every access checked.

Only where ``TRITON_INTERPRET=1`` was set before Python started: kernels are interpreted or compiled
as it is when they are decorated. Races, tf32 and rounding to bfloat16 are not modelled: a store
truncates.
"""

import os
import threading
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import pytest

from ntm_kernels.backends import register
from ntm_kernels.backends.triton import Launcher, TritonBackend
from ntm_kernels.backends.triton.launch_table import TABLE
from ntm_kernels.backends.triton.launcher import tensors_in

# Nothing fits one program, a tile is a few rows, and a program has several tiles.
TILED = TABLE._replace(on_chip=(), tile_elements=16, programs_per_sequence=2, combine_block=(1, 8))

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


class InterpretedLauncher(Launcher):
    """Launches one kernel at a time, as the interpreter's state is global."""

    lock = threading.Lock()

    def run(self, kernel, grid, *arguments, **options):
        with self.lock, patched_once(), accesses_checked(tensors_in(arguments)):
            super().run(kernel, grid, *arguments, **options)


class InterpretedBackend(TritonBackend):
    """Serves calls that name it."""

    def __init__(self, name, table=TABLE):
        super().__init__(name, "cpu", InterpretedLauncher(table))

    def unavailable(self):
        if find_spec("triton") is None:
            return "the package triton is not installed"
        if not INTERPRETING:
            return "TRITON_INTERPRET=1 is not set"
        from tests.triton import probe

        return probe.failure()

    def describe(self):
        import triton

        return f"Triton {triton.__version__} in its interpreter"


class OutOfBounds(Exception):
    """A kernel accessed memory outside of all tensors that it was given."""


@contextmanager
def accesses_checked(tensors):
    """Raise ``OutOfBounds`` where an unmasked load or store lies outside ``tensors``."""
    from triton.runtime import interpreter

    extents = sorted(extent(part) for part in tensors)
    starts = np.array([start for start, _ in extents], dtype=np.uint64)
    stops = np.maximum.accumulate(np.array([stop for _, stop in extents], dtype=np.uint64))

    def check(what, pointers, mask):
        inside = np.broadcast_to(mask.data.astype(bool), pointers.data.shape)
        addresses = pointers.data[inside].astype(np.uint64)
        if not addresses.size:
            return
        size = np.uint64(max(pointers.get_element_ty().primitive_bitwidth // 8, 1))
        owner = np.searchsorted(starts, addresses, side="right") - 1
        wrong = (owner < 0) | (addresses + size > stops[owner])
        if wrong.any():
            raise OutOfBounds(f"{what} of {int(wrong.sum())} elements outside of every tensor")

    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def checked_load(self, pointers, mask, *rest, **options):
        check("load", pointers, mask)
        return load(self, pointers, mask, *rest, **options)

    def checked_store(self, pointers, value, mask, *rest, **options):
        check("store", pointers, mask)
        return store(self, pointers, value, mask, *rest, **options)

    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
    try:
        yield
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store


def extent(tensor):
    """The first address of a tensor's elements, and the first behind them."""
    if tensor.numel() == 0:
        return tensor.data_ptr(), tensor.data_ptr()
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


@contextmanager
def patched_once():
    """The interpreter replaces the language's functions anew for each call of a helper, in half of
    its time. Once for each module of helpers in a launch is enough."""
    from triton.runtime import interpreter

    function, call = interpreter.InterpretedFunction, interpreter.InterpretedFunction.__call__
    modules = set()

    def call_once(self, *arguments, **options):
        if id(self.fn.__globals__) not in modules:
            modules.add(id(self.fn.__globals__))
            return call(self, *arguments, **options)
        return self.rewrite()(*arguments, **options)

    function.__call__ = call_once
    try:
        yield
    finally:
        function.__call__ = call


WHY_NOT = InterpretedBackend("interpreted").unavailable()
needs_interpreter = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

register(InterpretedBackend("triton_interpreted"), automatic=False)
register(InterpretedBackend("triton_tiled_interpreted", TILED), automatic=False)
