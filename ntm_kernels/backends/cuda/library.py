"""The compiled library of CUDA kernels, through ctypes: its structs, its plans, its launchers."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from ctypes import c_char, c_char_p, c_int, c_int32, c_int64, c_void_p
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntm_kernels.backends.base import OPS

LIBRARY = Path(__file__).parents[2] / "_cuda.so"

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_MOST_WORKSPACE = 16 * (2**31 - 1)  # its pieces are found by offsets in units of 16 bytes


class Device(NamedTuple):
    """What a device is and allows."""

    capability: tuple[int, int]
    shared_limit: int  # bytes of shared memory in a block


class _Device(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in ("major", "minor", "shared_limit")]


class _Array(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("dtype", c_int64)]


class _Sizes(ctypes.Structure):
    _fields_ = [
        (name, c_int32)
        for name in (
            *("batch", "memory_size", "word_size", "num_read_heads", "num_write_heads", "num_taps"),
            *("time", "hidden_size", "checkpoint_every", "is_lstm"),
        )
    ]


class Plan(ctypes.Structure):
    """How a call is run: ``NtmPlan``."""

    _fields_ = [
        ("tiled", c_int32),
        ("tile_rows", c_int32),
        ("threads", c_int32),
        ("weightings_away", c_int32),
        ("weights_held", c_int32),
        ("near_units", c_int32),
        ("near_interface_units", c_int32),
        ("memories", c_int32),
        ("weight_bytes", c_int64 * 3),
        ("shared_bytes", c_int64),
        ("workspace_bytes", c_int64),
        ("offsets", c_int32 * 40),
        ("why_not", c_char * 160),
    ]

    @property
    def refusal(self) -> str | None:
        """Why the call cannot run; ``None`` if it can."""
        if self.why_not:
            return str(self.why_not.decode())
        if self.workspace_bytes > _MOST_WORKSPACE:
            return f"a workspace of {self.workspace_bytes} bytes is beyond {_MOST_WORKSPACE}"
        return None


def _params(name: str, arrays: str, pointers: str) -> type[ctypes.Structure]:
    """A parameter struct of ``params.h``: sizes, arrays, then bare pointers, in that order."""
    fields: list[tuple[str, Any]] = [("sizes", _Sizes)]
    fields += [(field, _Array) for field in arrays.split()]
    fields += [(field, c_void_p) for field in pointers.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_PARAMS = {
    "address": _params(
        "AddressParams",
        "memory key strength gate shift sharpening previous_weightings weightings d_weightings d_memory "
        "d_key d_strength d_gate d_shift d_sharpening d_previous",
        "saved_weightings workspace",
    ),
    "read": _params(
        "ReadParams",
        "memory weightings read_vectors d_read_vectors d_memory d_weightings",
        "workspace",
    ),
    "write": _params(
        "WriteParams",
        "memory weightings erase add written d_written d_memory d_weightings d_erase d_add",
        "workspace",
    ),
    "step": _params(
        "StepParams",
        "memory interface previous_weightings read_vectors written weightings d_read_vectors d_written "
        "d_weightings d_memory d_interface d_previous",
        "saved_weightings workspace",
    ),
    "sequence": _params(
        "SequenceParams",
        "projected_input initial_memory initial_weightings initial_read_vectors initial_hidden initial_cell "
        "hidden read_vectors memory weightings final_read_vectors final_hidden final_cell trace_weightings "
        "d_hidden d_read_vectors d_memory d_weightings d_final_reads d_final_hidden d_final_cell "
        "d_projected d_initial_memory d_initial_weightings d_initial_reads d_initial_hidden "
        "d_initial_cell",
        "lengths recurrent_weight interface_weight interface_bias trace_interface checkpoints "
        "all_weightings interfaces gates cells d_interfaces workspace",
    ),
}


class CudaLibrary:
    """The functions of a compiled library, with their types.

    ``architectures`` are those it was compiled for, written as in TORCH_CUDA_ARCH_LIST.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self.architectures = tuple(self._function("architectures", c_char_p)().decode().split())
        self._error = self._function("error", c_char_p, c_int)
        self._device = self._function("device", c_int, c_int, ctypes.POINTER(_Device))
        self._plan = self._function(
            "plan", None, c_int, c_int, c_int, ctypes.POINTER(_Sizes), c_int, ctypes.POINTER(Plan)
        )
        struct_bytes = self._function("struct_bytes", c_int64, c_int)
        self._launchers = {}
        for number, op in enumerate(OPS):
            params = _PARAMS[op]
            if struct_bytes(number) != ctypes.sizeof(params):
                raise OSError(f"{path.name} was built from other sources than this package")
            for direction in ("forward", "backward"):
                types = ctypes.POINTER(params), ctypes.POINTER(Plan), c_void_p
                launcher = self._function(f"{op}_{direction}", c_int, *types)
                self._launchers[op, direction] = launcher

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._library, f"ntm_cuda_{name}")
        function.restype, function.argtypes = result, arguments
        return function

    def device(self, index: int) -> Device:
        """The device of that number; asking makes no context on it."""
        found = _Device()
        code = self._device(index, found)
        if code != 0:
            raise RuntimeError(f"CUDA error of device {index}: {self._error(code).decode()}")
        return Device((found.major, found.minor), found.shared_limit)

    def unserved(self, index: int) -> str | None:
        """Why nothing here runs on that device; ``None`` if it does."""
        try:
            capability = self.device(index).capability
        except RuntimeError as error:
            return str(error)
        if any(runs_on(architecture, capability) for architecture in self.architectures):
            return None
        return (
            f"the card has compute capability {capability[0]}.{capability[1]}, the kernels are "
            f"compiled for {', '.join(self.architectures)}"
        )

    @lru_cache(maxsize=1024)  # noqa: B019 (a library lives as long as the process)
    def plan(
        self, op: str, direction: str, is_double: bool, sizes: tuple[int, ...], shared_limit: int
    ) -> Plan:
        """How the call would run on a device with that much shared memory in a block."""
        plan = Plan()
        backward = direction == "backward"
        self._plan(OPS.index(op), backward, is_double, _Sizes(*sizes), shared_limit, plan)
        return plan

    def launch(
        self,
        op: str,
        direction: str,
        sizes: tuple[int, ...],
        tensors: Mapping[str, Tensor],
        plan: Plan,
        stream: int,
    ) -> None:
        """Queue the kernels on the current device; the tensors are contiguous."""
        params = _PARAMS[op](_Sizes(*sizes))
        for field, kind, *_ in params._fields_[1:]:
            if field not in tensors:
                continue
            tensor = tensors[field]
            if kind is _Array:
                value: Any = _Array(tensor.data_ptr(), _DTYPES[tensor.dtype])
            else:
                value = tensor.data_ptr()
            setattr(params, field, value)
        code = self._launchers[op, direction](params, plan, stream)
        if code != 0:
            raise RuntimeError(f"CUDA error in {op} {direction}: {self._error(code).decode()}")


@cache
def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code compiled for ``architecture`` runs on a card of that compute capability.

    Machine code does on its generation, from its own minor version on; PTX (``+PTX``) on all later
    cards too. What is compiled for a family (``f``) stays in its generation even as PTX, and for
    one architecture alone (``a``) on that one.
    """
    match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", architecture)
    assert match is not None, architecture
    built, only = (int(match[1]), int(match[2])), match[3]
    if capability < built or (only == "a" and capability != built):
        return False
    return capability[0] == built[0] or (bool(match[4]) and not only)
