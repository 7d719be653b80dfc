"""Writes csrc/records.h and csrc/cuda/records.h, the C++ side of the ops that ``ntm_kernels.ops``
declares.

``python -m scripts.generate_records`` writes them, ``--check`` fails where one is not what would be
written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_type_hints

from ntm_kernels.backends.cpu.records import SAVED, digest
from ntm_kernels.ops import OPS, Op
from ntm_kernels.ops.declare import Field, fields
from ntm_kernels.ops.sizes import LETTERS, Sizes
from scripts import cuda_records

ROOT = Path(__file__).parents[1]
HEADER = ROOT / "csrc/records.h"


def _of_sizes(name: str) -> str:
    """A size in C++: what Python computes as a property is a function there."""
    return f"s.{name}()" if isinstance(getattr(Sizes, name), property) else f"s.{name}"


# The letters of the shapes in terms of `Sizes` of csrc/sizes.h.
IN_CPP = {**{letter: _of_sizes(name) for letter, name in LETTERS.items()}, "Z": "s.row_stride()"}

TOP = """\
// The ops and the records of their tensors. Generated from ntm_kernels/ops by
// `python -m scripts.generate_records`; change those, not this.
//
// A record holds values of any type V under the names of the tensors: tensors, pointers to their
// data, or whether they are wanted. Every record has
//   from(f)      the record of f() for each of its fields, in order,
//   make(s, f)   the record of f(field) for each of its fields, in order,
//   map(f)       the record of f(value) for each of its values,
//   each(f)      which calls f(value) for each of its values, in order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sizes.h"

// clang-format off
namespace ntm::ops {

// Tensors of one kind have one dtype.
enum class Kind { KINDS };

struct Shape {
  int64_t sizes[4];
  size_t rank;
};

// A tensor of a record in a call of some sizes. The sizes know whether it is there.
struct Field {
  Shape shape;
  bool present;
  Kind kind;
};
"""


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _field(field: Field) -> str:
    letters = field.dims.split()
    shape = ", ".join(IN_CPP[letter] for letter in letters)
    there = _of_sizes(field.when) if field.when else "true"
    return f"Field{{{{{{{shape}}}, {len(letters)}}}, {there}, Kind::{field.kind}}}"


def _record(name: str, declared: type[NamedTuple]) -> Iterator[str]:
    members = fields(declared)
    yield "template <typename V>"
    yield f"struct {name} {{"
    for member, field in members.items():
        note = f", or none unless {field.when}" if field.when else ""
        yield f"  V {member};  // [{', '.join(field.dims.split())}]{note}"
    yield f"  static constexpr size_t count = {len(members)};"
    for flag in ("differentiable", "kept"):
        values = ", ".join(_boolean(getattr(field, flag)) for field in members.values())
        yield f"  static constexpr bool {flag}[] = {{{values}}};"
    kinds = ", ".join(f"Kind::{field.kind}" for field in members.values())
    yield f"  static constexpr Kind kinds[] = {{{kinds}}};"
    yield f"  template <typename F> static {name} from(F&& f) {{"
    yield "    (void)f;"
    yield f"    return {{{', '.join('f()' for _ in members)}}};"
    yield "  }"
    yield f"  template <typename F> static {name} make(const Sizes& s, F&& f) {{"
    yield "    (void)s, (void)f;"
    yield "    return {"
    for field in members.values():
        yield f"        f({_field(field)}),"
    yield "    };"
    yield "  }"
    yield f"  template <typename W, typename F> {name}<W> map(F&& f) const {{"
    yield "    (void)f;"
    yield f"    return {{{', '.join(f'f({member})' for member in members)}}};"
    yield "  }"
    yield "  template <typename F> void each(F&& f) {"
    yield "    (void)f;"
    for member in members:
        yield f"    f({member});"
    yield "  }"
    yield "};"
    yield ""


def _options(name: str, declared: type[NamedTuple]) -> Iterator[str]:
    kinds = {bool: "bool", int: "int64_t", int | None: "int64_t"}
    members = {member: kinds[kind] for member, kind in get_type_hints(declared).items()}
    yield f"struct {name} {{"
    for member, kind in members.items():
        yield f"  {kind} {member};"
    yield f"  static constexpr size_t count = {len(members)};"
    yield "  template <typename F> void each(F&& f) {"
    yield "    (void)f;"
    for member in members:
        yield f"    f({member});"
    yield "  }"
    yield "};"
    yield ""


def _op(op: Op) -> Iterator[str]:  # type: ignore[type-arg]
    name = op.name.capitalize()
    yield from _record(f"{name}Inputs", op.inputs)
    yield from _record(f"{name}Outputs", op.outputs)
    if op.name in SAVED:
        yield from _record(f"{name}Saved", SAVED[op.name])
    yield from _options(f"{name}Options", op.options)
    yield f"struct {name} {{"
    yield f'  static constexpr const char* name = "{op.name}";'
    schema = op.schema(run="bool save_for_backward")
    yield f'  static constexpr const char* schema =\n      "cpu_{op.name}{schema}";'
    backward = op.backward_schema(more="")
    yield "  static constexpr const char* backward_schema ="
    yield f'      "cpu_{op.name}_backward{backward}";'
    for role in ("Inputs", "Outputs"):
        yield f"  template <typename V> using {role} = {name}{role}<V>;"
    yield f"  using Options = {name}Options;"
    yield "};"
    yield ""


def _lists() -> Iterator[str]:
    """The ops as arguments of a template: all of them, and those without a controller."""
    lists = {"Every": list(OPS), "WithoutController": [name for name in OPS if name not in SAVED]}
    for name, members in lists.items():
        yield "template <template <typename...> class F>"
        yield f"using {name} = F<{', '.join(member.capitalize() for member in members)}>;"
    yield ""


def render() -> str:
    """The text of the header."""
    records = [record for op in OPS.values() for record in (op.inputs, op.outputs)]
    kinds = dict.fromkeys(field.kind for record in records for field in fields(record).values())
    lines = [TOP.replace("KINDS", ", ".join(kinds))]
    for op in OPS.values():
        lines += _op(op)
    lines += _lists()
    lines.append("// A hash of all of the above, which the package compares with its own.")
    lines.append(f'constexpr const char* kDigest = "{digest()}";')
    lines.append("")
    lines.append("}  // namespace ntm::ops")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where it differs")
    check = parser.parse_args().check
    stale = []
    for header, text in ((HEADER, render()), (cuda_records.HEADER, cuda_records.render())):
        if not check:
            header.write_text(text)
        elif header.read_text() != text:
            stale.append(str(header.relative_to(ROOT)))
    if stale:
        print(f"not what scripts.generate_records writes: {', '.join(stale)}", file=sys.stderr)
    return len(stale)


if __name__ == "__main__":
    sys.exit(main())
