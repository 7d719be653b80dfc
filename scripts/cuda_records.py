"""The structs of the CUDA launchers as a header; ``scripts.generate_records`` writes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ntm_kernels.backends.cuda import PARAMS
from ntm_kernels.backends.cuda.structs import DTYPES, Struct, all_structs, c_declaration, layout

HEADER = Path(__file__).parents[1] / "csrc/cuda/records.h"


def render() -> str:
    """The text of the header: every struct that the launchers take, and the digest of them that a
    library carries."""
    dtypes = (str(dtype).removeprefix("torch.") for dtype in DTYPES)
    parts = [
        "// Written by `python -m scripts.generate_records` from ntm_kernels/ops and\n"
        "// ntm_kernels/backends/cuda. Change the records there, not this.\n"
        "#pragma once\n"
        "#include <stdint.h>",
        "// Of all that stands here; a library that was compiled with another one is refused.\n"
        f'#define NTM_LAYOUT "{layout(PARAMS)}"',
        _enum("NtmDtype", dtypes),
        _enum("NtmOp", PARAMS),
        *map(_struct, all_structs(PARAMS)),
    ]
    return "\n\n".join(parts) + "\n"


def _enum(name: str, values: Iterable[str]) -> str:
    listed = ", ".join(f"NTM_{value.upper()} = {number}" for number, value in enumerate(values))
    return f"enum {name} {{ {listed} }};"


def _struct(struct: type[Struct]) -> str:
    declared = [f"{c_declaration(member)};" for member in struct.members]
    # Comments stand in one column.
    width = max(map(len, declared))
    lines = [
        f"  {line:<{width}}  // {member.meaning}" if member.meaning else f"  {line}"
        for line, member in zip(declared, struct.members, strict=True)
    ]
    return "\n".join([f"typedef struct {struct.c_name} {{", *lines, f"}} {struct.c_name};"])
