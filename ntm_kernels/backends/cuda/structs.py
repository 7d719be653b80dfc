"""The C structs that the launchers take, as ctypes structs.

The struct of an op follows from its records by one rule. It has ``sizes``, then the inputs under
their names, the outputs as ``out_…``, the saved tensors as ``saved_…``, the gradients of outputs as
``grad_…``, the gradients of inputs as ``d_…``, and a ``workspace``. A tensor whose dtype varies is
an ``NtmArray``, any other a bare pointer. ``csrc/cuda/records.h`` is written from these structs by
``scripts/generate_records.py``; the library carries the ``layout`` that it was compiled with, and
is refused if that is not the one of this package.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from ctypes import c_char, c_int32, c_int64, c_void_p
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ntm_kernels.ops import Op, Sizes
from ntm_kernels.ops.declare import Field, fields

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# What always comes in one dtype: int64 for steps, bool for resets, else the arithmetic dtype.
_BARE_KINDS = frozenset({"arithmetic", "controller_weights", "resets", "steps"})
# Of one sequence: the offsets of its pieces are 32-bit numbers, in units of 16 bytes.
_MOST_WORKSPACE = 16 * (2**31 - 1)


class Member(NamedTuple):
    """One member of a struct, and what the header says of it."""

    name: str
    kind: type[Any]
    meaning: str = ""


class Struct(ctypes.Structure):
    """A struct that C sees under ``c_name``."""

    c_name: ClassVar[str]
    members: ClassVar[tuple[Member, ...]]


def _fields(members: Iterable[Member]) -> list[tuple[str, Any]]:
    return [(member.name, member.kind) for member in members]


class Array(Struct):
    """A tensor whose dtype varies."""

    c_name = "NtmArray"
    members = (Member("data", c_void_p), Member("dtype", c_int64, "an NtmDtype"))
    _fields_ = _fields(members)


class DeviceStruct(Struct):
    """What a device is and allows."""

    c_name = "NtmDevice"
    members = (
        Member("major", c_int32, "of its compute capability"),
        Member("minor", c_int32, "of its compute capability"),
        Member("shared_limit", c_int32, "bytes of shared memory in a block"),
    )
    _fields_ = _fields(members)


class KernelSizes(NamedTuple):
    """The sizes that the kernels are told."""

    batch: int
    memory_size: int
    word_size: int
    num_read_heads: int
    num_write_heads: int
    num_taps: int
    time: int
    hidden_size: int
    num_layers: int
    checkpoint_every: int
    is_lstm: int


# Cached, since every launch asks for it.
@lru_cache(maxsize=1024)
def kernel_sizes(sizes: Sizes) -> KernelSizes:
    """What the kernels are told of the sizes of a call."""
    given = sizes._replace(checkpoint_every=sizes.segment)
    return KernelSizes._make(int(getattr(given, name)) for name in KernelSizes._fields)


class SizesStruct(Struct):
    """Sizes of a call; those that its op does not have are 0."""

    c_name = "NtmSizes"
    members = tuple(Member(name, c_int32) for name in KernelSizes._fields)
    _fields_ = _fields(members)


class Plan(Struct):
    """How a call is run. ``why_not`` says why it cannot be, or is empty."""

    c_name = "NtmPlan"
    members = (
        Member("tiled", c_int32, "0: one block holds a sequence's memory; 1: it is cut into tiles"),
        Member("tile_rows", c_int32, "rows of the memory in shared memory at a time"),
        Member("threads", c_int32, "of a block"),
        Member(
            "weightings_away", c_int32, "1: weightings lie in the workspace, not in shared memory"
        ),
        Member("weights_held", c_int32, "how registers hold weights: controller.cuh, kHold..."),
        Member("near_units", c_int32, "fours of rows of the recurrent weight in shared memory"),
        Member("near_upper_units", c_int32, "and of the weight of each layer above the first"),
        Member(
            "near_interface_units", c_int32, "and of the interface weight; all 0 with kHoldRows"
        ),
        Member("memories", c_int32, "before steps in a row, in shared memory together"),
        Member(
            "weight_bytes",
            c_int64 * 3,
            "of the controller: in registers, shared memory, L2 at each step",
        ),
        Member("shared_bytes", c_int64, "of a block"),
        Member("workspace_bytes", c_int64, "of global memory, for the whole batch"),
        Member(
            "offsets",
            c_int32 * 40,
            "of pieces of shared memory and workspace, in units of 16 bytes",
        ),
        Member("why_not", c_char * 160, "why the call cannot be run, or empty"),
    )
    _fields_ = _fields(members)

    def refusal(self, batch: int) -> str | None:
        """Why a call of ``batch`` sequences cannot run; ``None`` if it can."""
        if self.why_not:
            return str(self.why_not.decode())
        each = self.workspace_bytes // max(batch, 1)
        if each > _MOST_WORKSPACE:
            return f"a workspace of {each} bytes for one sequence is beyond {_MOST_WORKSPACE}"
        return None


def params(
    op: Op[Any, Any, Any], saved: type[NamedTuple], gradients: type[NamedTuple]
) -> type[Struct]:
    """The parameter struct of an op by the rule above.

    ``saved`` is the record of what the forward leaves for the backward, ``gradients`` that of the
    gradients that the backward's launch gives: the op's inputs, unless it says otherwise.
    """
    members = (
        Member("sizes", SizesStruct),
        *_members(op.inputs),
        *_members(op.outputs, "out_"),
        *_members(saved, "saved_", ", or none"),
        *_members(op.outputs, "grad_", ", or none", only_differentiable=True),
        *_members(gradients, "d_", only_differentiable=True),
        Member("workspace", c_void_p),
    )
    name = f"{op.name.capitalize()}Params"
    body = {"c_name": f"Ntm{name}", "members": members, "_fields_": _fields(members)}
    return type(name, (Struct,), body)


def _members(
    record: type[NamedTuple],
    prefix: str = "",
    note: str = "",
    only_differentiable: bool = False,
) -> Iterator[Member]:
    for name, field in fields(record).items():
        # Kernels take x projected.
        if field.when == "projects_input" or (only_differentiable and not field.differentiable):
            continue
        kind = c_void_p if field.kind in _BARE_KINDS else Array
        yield Member(f"{prefix}{name}", kind, _shape(field, note))


def _shape(field: Field, note: str) -> str:
    there = f" if {field.when}" if field.when else ""
    return f"[{', '.join(field.dims.split())}]{there}{note}"


def value_of(tensor: Tensor, kind: type[Any]) -> Any:
    """What a member of that kind holds for a tensor."""
    return Array(tensor.data_ptr(), DTYPES[tensor.dtype]) if kind is Array else tensor.data_ptr()


_C_TYPES: dict[type[Any], str] = {
    c_char: "char",
    c_int32: "int32_t",
    c_int64: "int64_t",
    c_void_p: "void*",
}


def c_declaration(member: Member) -> str:
    """How C declares a member, without its semicolon."""
    kind: Any = member.kind
    length = ""
    if issubclass(kind, ctypes.Array):
        kind, length = kind._type_, f"[{kind._length_}]"
    c_type = kind.c_name if issubclass(kind, Struct) else _C_TYPES[kind]
    return f"{c_type} {member.name}{length}"


def all_structs(of_ops: Mapping[str, type[Struct]]) -> list[type[Struct]]:
    """Every struct that crosses to C, each after those it contains."""
    return [DeviceStruct, Array, SizesStruct, Plan, *of_ops.values()]


def layout(of_ops: Mapping[str, type[Struct]]) -> str:
    """A digest of all that Python and C must agree on: the numbers of dtypes, and the structs, in
    the order of the numbers of ops."""
    lines = [f"{dtype} {number}" for dtype, number in DTYPES.items()]
    for struct in all_structs(of_ops):
        lines += [struct.c_name, *map(c_declaration, struct.members)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
