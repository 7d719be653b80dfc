"""The compiled library of CUDA kernels, through ctypes: its plans and its launchers."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from ctypes import c_char_p, c_int, c_void_p
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ntm_kernels.backends.cuda.structs import (
    DeviceStruct,
    KernelSizes,
    Plan,
    SizesStruct,
    Struct,
    layout,
    value_of,
)

LIBRARY = Path(__file__).parents[2] / "_cuda.so"


class Device(NamedTuple):
    """What a device is and allows."""

    capability: tuple[int, int]
    shared_limit: int  # bytes of shared memory in a block


class CudaLibrary:
    """The functions of a compiled library, with their types.

    ``params`` has the parameter struct of each op. ``architectures`` are those the library was
    compiled for, written as in TORCH_CUDA_ARCH_LIST.
    """

    def __init__(self, path: Path, params: Mapping[str, type[Struct]]) -> None:
        self._library = ctypes.CDLL(str(path))
        if self._function("layout", c_char_p)().decode() != layout(params):
            raise OSError(
                f"{path.name} was built from other sources than this package; build it anew with "
                "`python setup.py build_ext --inplace`"
            )
        self.architectures = tuple(self._function("architectures", c_char_p)().decode().split())
        self._error = self._function("error", c_char_p, c_int)
        self._device = self._function("device", c_int, c_int, ctypes.POINTER(DeviceStruct))
        sizes, plan = ctypes.POINTER(SizesStruct), ctypes.POINTER(Plan)
        self._plan = self._function("plan", None, c_int, c_int, c_int, sizes, c_int, plan)
        self._params = params
        self._kinds = {
            op: {member.name: member.kind for member in struct.members}
            for op, struct in params.items()
        }
        self._numbers = {op: number for number, op in enumerate(params)}
        self._launchers = {
            (op, direction): self._function(
                f"{op}_{direction}", c_int, ctypes.POINTER(struct), plan, c_void_p
            )
            for op, struct in params.items()
            for direction in ("forward", "backward")
        }

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._library, f"ntm_cuda_{name}")
        function.restype, function.argtypes = result, arguments
        return function

    # Every call asks, several times, and a device does not change.
    @lru_cache(maxsize=64)  # noqa: B019 (a library lives as long as the process)
    def device(self, index: int) -> Device:
        """The device of that number; asking makes no context on it."""
        found = DeviceStruct()
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
        self, op: str, direction: str, is_double: bool, sizes: KernelSizes, shared_limit: int
    ) -> Plan:
        """How the call would run on a device with that much shared memory in a block."""
        plan = Plan()
        backward = direction == "backward"
        self._plan(self._numbers[op], backward, is_double, SizesStruct(*sizes), shared_limit, plan)
        return plan

    def params(self, op: str, sizes: KernelSizes, tensors: Mapping[str, Tensor]) -> Struct:
        """The parameters of the kernels of ``op`` for contiguous tensors."""
        params, kinds = self._params[op](SizesStruct(*sizes)), self._kinds[op]
        for name, tensor in tensors.items():
            setattr(params, name, value_of(tensor, kinds[name]))
        return params

    def launch(
        self,
        op: str,
        direction: str,
        sizes: KernelSizes,
        tensors: Mapping[str, Tensor],
        plan: Plan,
        stream: int,
    ) -> None:
        """Queue the kernels on the current device; the tensors are contiguous."""
        params = self.params(op, sizes, tensors)
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
