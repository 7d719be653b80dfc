"""The structs that Python and C share: one header, one layout, and a guard where they differ."""

import ctypes

import pytest

from ntm_kernels.backends import get
from ntm_kernels.backends.cuda import PARAMS
from ntm_kernels.backends.cuda.library import CudaLibrary
from ntm_kernels.backends.cuda.structs import Member, Plan, Struct, layout
from scripts import cuda_records
from tests.support import emulated

WHY_NOT = get(emulated.NAME).unavailable()


def test_the_header_is_what_the_records_give():
    written = cuda_records.HEADER.read_text()
    assert written == cuda_records.render(), "run `python -m scripts.generate_records`"


def with_members(struct, members):
    """The struct with other members."""
    fields = [(member.name, member.kind) for member in members]
    return type(
        "Other", (Struct,), {"c_name": struct.c_name, "members": members, "_fields_": fields}
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda members: members[::-1],
        lambda members: members[:-1],
        lambda members: (members[0]._replace(name="other"), *members[1:]),
        lambda members: (members[0]._replace(kind=ctypes.c_int64), *members[1:]),
        lambda members: (*members, Member("more", ctypes.c_int32)),
    ],
    ids=["order", "fewer", "name", "kind", "more"],
)
def test_any_change_of_a_struct_changes_the_layout(change, monkeypatch):
    of_read = with_members(PARAMS["read"], change(PARAMS["read"].members))
    assert layout({**PARAMS, "read": of_read}) != layout(PARAMS)
    before = layout(PARAMS)
    monkeypatch.setattr(Plan, "members", change(Plan.members))
    assert layout(PARAMS) != before


def test_a_change_of_the_order_of_ops_changes_the_layout():
    assert layout(dict(reversed(PARAMS.items()))) != layout(PARAMS)


@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_a_library_of_another_layout_is_refused():
    CudaLibrary(emulated.library(), PARAMS)
    of_read = with_members(PARAMS["read"], PARAMS["read"].members[::-1])
    with pytest.raises(OSError, match=r"was built from other sources.*build_ext --inplace"):
        CudaLibrary(emulated.library(), {**PARAMS, "read": of_read})
