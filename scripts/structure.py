"""Measures the structure of the sources: what makes a further op or controller expensive.

    python -m scripts.structure             the table: before the redesign, to reach, now
    python -m scripts.structure --check     fails where a measure is worse than its bound
    python -m scripts.structure --list      where each tensor is taken by its position
    python -m scripts.structure --stages    writes the table of stages in docs/glossary.md

What counts as a tuple of tensors taken apart by position, in ``ntm_kernels`` and ``csrc``: the last
word of a variable's or an attribute's name is one of ``OF_TENSORS`` (``args``, ``kept_outputs``,
``ctx.saved_tensors``), and it is subscripted with a constant integer, sliced, or unpacked with a
starred target. A subscript with several indices belongs to a tensor and does not count, nor does
the declaration of an array in C++. Left out are ``ntm_kernels/ops/declare.py``, which is the one
file that knows positions, so that no other has to, and the tasks and their training, which see no
op.

A record that is starred whole in a call (``op(*inputs, flag)``) is counted in a row of its own:
torch's ops take their tensors one by one. A function may hand on its own ``*args``.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from scripts import structure_stages as stages
from scripts.structure_functions import Definition, blank, definitions

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs/glossary.md"
KNOWS_POSITIONS = Path("ntm_kernels/ops/declare.py")
SEES_NO_OP = (Path("ntm_kernels/tasks"), Path("ntm_kernels/training"))
OF_TENSORS = frozenset(
    {
        *("args", "arguments", "grads", "gradients", "inputs", "kept", "outputs", "parts"),
        *("results", "saved", "tensors", "values"),
    }
)


class Place(NamedTuple):
    file: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


class Measure(NamedTuple):
    """One row of the table.

    ``now`` must be at most ``bound``, at least where ``at_least``; ``detail`` says of what. Without
    a bound the measure is only shown: lines grow with what the package can do.
    """

    name: str
    before: str
    to_reach: str
    now: int
    bound: int | None
    detail: str = ""
    at_least: bool = False

    @property
    def is_worse(self) -> bool:
        if self.bound is None:
            return False
        return self.now < self.bound if self.at_least else self.now > self.bound


class Language(NamedTuple):
    name: str
    of: Callable[[Path], bool]
    lines_before: str
    lines: int
    parameters_before: str
    parameters: int


def _is_in(file: Path, folders: Iterable[Path]) -> bool:
    return any(map(file.is_relative_to, folders))


def _is_triton(file: Path) -> bool:
    return file.is_relative_to("ntm_kernels/backends/triton/kernels")


def _is_cuda(file: Path) -> bool:
    return file.is_relative_to("csrc/cuda")


# The bounds of `--check`, here the numbers after what was before: the values when they were last
# lowered. Lower them when the sources allow it; raise one only where a feature needs it, and say so
# in the commit.
LANGUAGES = (
    Language("Python", lambda f: f.suffix == ".py" and not _is_triton(f), "138", 80, "18", 15),
    Language("Triton", _is_triton, "148", 62, "41", 13),
    Language("C++", lambda f: f.suffix != ".py" and not _is_cuda(f), "146", 50, "20", 10),
    Language("CUDA", _is_cuda, "208", 75, "10", 10),
)
POSITIONS, STARRED, SCHEMAS = 0, 13, 1
SAVED = {"torch": 1, "cpu": 1, "triton": 1, "cuda": 2}


def python_positions(text: str, file: Path) -> Iterator[Place]:
    """Where a tuple of tensors is taken apart by position."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Subscript) and _holds_tensors(node.value):
            if isinstance(node.slice, ast.Slice) or _is_integer(node.slice):
                yield Place(file, node.lineno, ast.unparse(node))
        elif isinstance(node, ast.Assign):
            yield from _starred_targets(node.targets, node.value, file)
        elif isinstance(node, ast.For | ast.comprehension):
            yield from _starred_targets([node.target], node.iter, file)


def _starred_targets(targets: Iterable[ast.expr], value: ast.expr, file: Path) -> Iterator[Place]:
    for target in targets:
        stars = [part for part in ast.walk(target) if isinstance(part, ast.Starred)]
        if stars and any(map(_holds_tensors, [value, *(star.value for star in stars)])):
            yield Place(file, target.lineno, f"{ast.unparse(target)} = {ast.unparse(value)}")


def starred_in_calls(text: str, file: Path) -> Iterator[Place]:
    """Where a record is starred in a call, but for a function's own ``*args``."""
    tree = ast.parse(text)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    handed_on = {
        id(star)
        for function in ast.walk(tree)
        if isinstance(function, functions) and function.args.vararg
        for star in ast.walk(function)
        if isinstance(star, ast.Starred)
        and isinstance(star.value, ast.Name)
        and star.value.id == function.args.vararg.arg
    }
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    for call in calls:
        for argument in call.args:
            if not isinstance(argument, ast.Starred) or id(argument) in handed_on:
                continue
            if _holds_tensors(argument.value):
                yield Place(file, argument.lineno, f"{ast.unparse(argument)} in a call")


def _holds_tensors(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name.rsplit("_", 1)[-1] in OF_TENSORS


def _is_integer(node: ast.expr) -> bool:
    inner = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(inner, ast.Constant) and isinstance(inner.value, int)


_CPP_POSITION = re.compile(rf"\b(?:\w+_)?(?:{'|'.join(sorted(OF_TENSORS))})\s*\[\s*-?\d+\s*\]")
_CPP_DECLARES = re.compile(r"(?<!\breturn)(?<=\w)>*[*&]*\s+[*&]*$")


def cpp_positions(text: str, file: Path) -> Iterator[Place]:
    """Where C++ takes an element of a list of tensors by a constant."""
    code = blank(text)
    for found in _CPP_POSITION.finditer(code):
        line = code.rfind("\n", 0, found.start()) + 1
        if not _CPP_DECLARES.search(code[line : found.start()]):
            yield Place(file, code.count("\n", 0, found.start()) + 1, found[0])


# `(Tensor a, …) -> (Tensor b, …)`, or put together by an f-string.
_SCHEMA = re.compile(r"-> \((?:Tensor|\{)")


def schemas(text: str, file: Path) -> Iterator[Place]:
    """Where the schema of an op is written by hand; a generated header is not."""
    if file.suffix == ".py":
        strings: Iterable[tuple[int, str]] = (
            (node.lineno, ast.unparse(node))
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.JoinedStr)
            or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        )
    elif "generate_records" in text:
        return
    else:
        strings = (
            (text.count("\n", 0, found.start()) + 1, found[0])
            for found in re.finditer(r'(?:"(?:\\.|[^"\\\n])*"\s*)+', text)
        )
    for line, string in strings:
        if _SCHEMA.search(re.sub(r'"\s+"', "", string)):
            yield Place(file, line, "schema")


def saved_shapes(backend: str, root: Path) -> int:
    """How many records a backend has of what its backwards need."""
    folder = f"ntm_kernels/backends/{backend}"
    return sum(
        definition.is_type and re.search(r"^Saved|Saved$", definition.name) is not None
        for file in stages.sources(root, folder)
        for definition in definitions(root / file)
    )


def production(root: Path) -> list[Path]:
    return stages.sources(root, "ntm_kernels") + stages.sources(root, "csrc")


def collect(
    root: Path,
    python: Callable[[str, Path], Iterator[Place]],
    cpp: Callable[[str, Path], Iterator[Place]] | None,
) -> list[Place]:
    """What a search in Python and one in C++ find, but in the sources that are left out."""
    found: list[Place] = []
    for file in production(root):
        search = python if file.suffix == ".py" else cpp
        if search and file != KNOWS_POSITIONS and not _is_in(file, SEES_NO_OP):
            found += search((root / file).read_text(), file)
    return found


def positions(root: Path) -> list[Place]:
    return collect(root, python_positions, cpp_positions)


def starred(root: Path) -> list[Place]:
    return collect(root, starred_in_calls, None)


def measures(root: Path) -> list[Measure]:
    """The rows of the table, from the sources under ``root``."""
    files = production(root)
    texts = {file: (root / file).read_text() for file in files}
    written = {place.file for file in files for place in schemas(texts[file], file)}
    found = [
        Measure(
            "tuples of tensors taken apart by position", "79", "0", len(positions(root)), POSITIONS
        ),
        Measure("records starred whole in a call", "in the 79", "few", len(starred(root)), STARRED),
        Measure("files where the schema of an op is written", "2", "1", len(written), SCHEMAS),
    ]
    for backend, bound in SAVED.items():
        name = f"records of saved tensors, {backend}"
        found.append(
            Measure(name, "5 in all", "1 an op that saves", saved_shapes(backend, root), bound)
        )
    names = {"torch": "14", "cpu": "14", "triton": "14", "cuda": "9"}
    for backend, before in names.items():
        number = stages.count(stages.find(root, stages.FOLDERS[backend]))
        name = f"stages found by name, or by the names of a fusion, {backend}"
        found.append(Measure(name, before, "14", number, 14, at_least=True))
    functions = [
        definition._replace(file=file)
        for file in files
        for definition in definitions(root / file)
        if not definition.is_type
    ]
    for language in LANGUAGES:
        found += _extremes(language, [one for one in functions if language.of(one.file)])
    lines = sum(text.count("\n") for text in texts.values())
    found.append(Measure("production lines", "19,200", "fewer", lines, None))
    return found


def _extremes(language: Language, functions: list[Definition]) -> Iterator[Measure]:
    longest = max(functions, key=lambda function: function.lines)
    most = max(functions, key=lambda function: function.parameters)
    yield Measure(
        f"longest function, {language.name}",
        language.lines_before,
        "≤ 80",
        longest.lines,
        language.lines,
        longest.place,
    )
    yield Measure(
        f"most parameters, {language.name}",
        language.parameters_before,
        "≤ 15",
        most.parameters,
        language.parameters,
        most.place,
    )


def render(found: Iterable[Measure]) -> str:
    lines = ["| measure | before | to reach | now | where |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {one.name} | {one.before} | {one.to_reach} | {one.now:,} | {one.detail} |"
        for one in found
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the structure of the sources.")
    parser.add_argument("--check", action="store_true", help="fail where a measure got worse")
    parser.add_argument("--list", action="store_true", help="say where positions are known")
    parser.add_argument("--stages", action="store_true", help="write docs/glossary.md's table")
    asked = parser.parse_args(arguments)
    if asked.stages:
        stages.write(GLOSSARY, ROOT)
        return 0
    if asked.list:
        print(*positions(ROOT), *starred(ROOT), sep="\n")
        return 0
    found = measures(ROOT)
    print(render(found))
    worse = [one for one in found if one.is_worse]
    if not asked.check:
        return 0
    for one in worse:
        print(
            f"structure: {one.name}: expected at {'least' if one.at_least else 'most'} "
            f"{one.bound}, got {one.now} {one.detail}. Mend it; the bounds stand in "
            "scripts/structure.py.",
            file=sys.stderr,
        )
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
