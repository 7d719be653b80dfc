"""The functions and types that a source file defines: of Python from its syntax tree, of C++ and
CUDA by counting braces."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CPP_SUFFIXES = (".h", ".cpp", ".cuh", ".cu")


class Definition(NamedTuple):
    """A function, or a class or struct.

    ``lines`` go from the line of its name to its end, decorators and ``template <...>`` left out.
    ``parameters`` are those that a caller gives: a record, a tuple or ``*args`` counts as one.
    """

    name: str
    file: Path
    line: int
    lines: int
    parameters: int
    is_type: bool = False

    @property
    def place(self) -> str:
        return f"{self.name}, {self.file}:{self.line}"


def definitions(file: Path) -> list[Definition]:
    """All that ``file`` defines, nested functions of Python and methods too, in order."""
    text = file.read_text()
    found = in_cpp(text, file) if file.suffix in CPP_SUFFIXES else in_python(text, file)
    return sorted(found, key=lambda definition: definition.line)


def in_python(text: str, file: Path) -> Iterator[Definition]:
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        is_type = isinstance(node, ast.ClassDef)
        parameters = 0 if isinstance(node, ast.ClassDef) else _count_parameters(node.args)
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        yield Definition(node.name, file, node.lineno, lines, parameters, is_type)


def _count_parameters(given: ast.arguments) -> int:
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    if named and named[0].arg in ("self", "cls"):
        named = named[1:]
    return len(named) + (given.vararg is not None) + (given.kwarg is not None)


# What has to be blanked before braces are counted. A raw string is not used in csrc.
_NOT_CODE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+'|^[ ]*\#(?:\\\n|[^\n])*""",
    re.DOTALL | re.MULTILINE,
)
_ATTRIBUTE = re.compile(r"\b(?:__launch_bounds__|__attribute__|alignas)\s*(?=\()")
_TYPE = re.compile(r"^(?:typedef\s+)?(struct|class|union|enum(?:\s+class)?)\s+(\w+)")
_NAME = re.compile(r"(operator\s*\S+|~?\w+)\s*$")
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def blank(text: str) -> str:
    """``text`` with comments, strings and preprocessor lines made spaces; lines stay in place."""
    return _NOT_CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def in_cpp(text: str, file: Path) -> Iterator[Definition]:
    code = blank(text)
    header, at = 0, 0  # where what is being declared begins, and what is looked at
    while at < len(code):
        here = code[at]
        if here in "([":
            at = _closing(code, at) + 1
            continue
        if here == "{":
            start = _skip_prefixes(code, header, at)
            head = _ATTRIBUTE.sub("", code[start:at])
            opens_scope = re.match(r"(inline\s+)?namespace\b|extern\s*$", head)
            if not opens_scope and _is_value(head):
                at = _closing(code, at) + 1
                continue
            end = _closing(code, at)
            found = None if opens_scope else _definition(code, start, at, end, file)
            if found:
                yield found
            at = at if opens_scope or (found and found.is_type) else end
            header = at + 1
        elif here in ";}" or (here == ":" and _is_access(code, header, at)):
            header = at + 1
        at += 1


def _is_access(code: str, header: int, at: int) -> bool:
    return code[header:at].strip() in ("public", "private", "protected")


def _is_value(head: str) -> bool:
    """Whether a brace after ``head`` opens the value of a variable or of a member."""
    outside = _outside_parentheses(head)
    if re.search(r"(?<![=!<>])=(?!=)", outside) and "operator" not in outside:
        return True
    if _TYPE.match(head):
        return False
    in_initialisers = re.search(r"\)\s*:(?!:)", head) is not None
    return "(" not in head or (in_initialisers and head.rstrip()[-1:].isidentifier())


def _outside_parentheses(text: str) -> str:
    kept, depth = [], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth == 0:
            kept.append(character)
    return "".join(kept)


def _skip_prefixes(code: str, start: int, end: int) -> int:
    """Where a declaration begins after spaces and ``template <...>``."""
    while True:
        start += len(code[start:end]) - len(code[start:end].lstrip())
        if not re.match(r"template\s*<", code[start:end]):
            return start
        depth, start = 1, code.index("<", start) + 1
        while depth:
            depth += (code[start] == "<") - (code[start] == ">")
            start += 1


def _closing(code: str, opening: int) -> int:
    """The index of the bracket that closes the one at ``opening``."""
    opened, closed, depth = code[opening], _PAIRS[code[opening]], 0
    for at in range(opening, len(code)):
        depth += (code[at] == opened) - (code[at] == closed)
        if depth == 0:
            return at
    raise ValueError(f"no {closed} for the {opened} in {code[opening : opening + 40]!r}")


def _definition(code: str, start: int, body: int, end: int, file: Path) -> Definition | None:
    line = code.count("\n", 0, start) + 1
    lines = code.count("\n", start, end) + 1
    head = _blank_attributes(code[start:body])
    declared = _TYPE.match(" ".join(head.split()))
    if declared:
        kind, name = declared.groups()
        return Definition(name, file, line, lines, 0, True) if kind[0] != "e" else None
    opening = head.find("(")
    operator = re.search(r"operator\s*\(\s*\)", head)
    if operator:
        opening = head.find("(", operator.end())
    named = _NAME.search(head[:opening])
    if not named:
        return None
    parameters = head[opening + 1 : _closing(head, opening)]
    return Definition(named[1], file, line, lines, count_in_cpp(parameters))


def _blank_attributes(head: str) -> str:
    for attribute in reversed(list(_ATTRIBUTE.finditer(head))):
        end = _closing(head, head.index("(", attribute.start())) + 1
        head = head[: attribute.start()] + " " * (end - attribute.start()) + head[end:]
    return head


def count_in_cpp(parameters: str) -> int:
    """How many parameters stand between two parentheses: commas outside of other brackets."""
    if parameters.strip() in ("", "void"):
        return 0
    depth = commas = 0
    for character in parameters.replace("->", "  "):
        depth += (character in "(<[{") - (character in ")>]}")
        commas += character == "," and depth == 0
    return commas + 1
