"""The machine code of a kernel, as ``nvdisasm`` lists it: instructions, operands, source lines."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

Place = tuple[str, int]  # a source file and a line of it

_LINE = re.compile(r'//## File "([^"]+)", line (\d+)(?: inlined at "([^"]+)", line (\d+))?')
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]+)\*/\s+(?:@(!?U?P\w+)\s+)?([\w.]+)\s*(.*?)\s*;")
_SECTION = re.compile(r"\.section\s+\.text\.(\S+?),")
_LABEL = re.compile(r"^([.$\w]+):")
_OPERAND = re.compile(r",\s*(?![^\[(]*[\])])")
_REGISTER = re.compile(r"(U?[RPB])(\d+|Z|T)")


class Operand(NamedTuple):
    """One operand: its ``kind`` is R, UR, P, UP or B (a register), ``number``, ``constant`` (the
    constant bank), ``memory``, ``label`` or ``special`` (all else). The last register of each kind
    reads as zero, or as true where it is a predicate."""

    text: str
    kind: str
    number: int = 0
    negative: bool = False  # -x, or !x of a predicate
    inverted: bool = False  # ~x
    absolute: bool = False  # |x|

    @property
    def is_predicate(self) -> bool:
        return self.kind in ("P", "UP")


class Instruction(NamedTuple):
    address: int
    guard: Operand | None
    name: str  # LOP3 of LOP3.LUT
    modifiers: frozenset[str]
    operands: tuple[Operand, ...]
    places: tuple[Place, ...]  # from the innermost inlined function to the kernel
    text: str


class Kernel(NamedTuple):
    name: str  # mangled
    code: list[Instruction]
    labels: dict[str, int]  # to addresses


RZ = {"R": 255, "UR": 255, "P": 7, "UP": 7, "B": 16}


@lru_cache(maxsize=4096)
def operand(text: str) -> Operand:
    """An operand from its text, such as ``-R12.reuse``, ``!P0``, ``c[0x0][0x28]`` or ``0.5``."""
    text = text.strip().replace(".reuse", "").partition(" `")[0]  # RET names its function too
    bare, negative, inverted = text, text[:1] in ("-", "!"), text[:1] == "~"
    bare = bare.lstrip("-!~")
    absolute = bare.startswith("|")
    bare = bare.strip("|")
    if found := re.fullmatch(_REGISTER.pattern + r"(?:\.\w+)?", bare):
        number = RZ[found[1]] if found[2] in "ZT" else int(found[2])
        return Operand(bare, found[1], number, negative, inverted, absolute)
    if bare.startswith("c["):
        return Operand(bare, "constant", 0, negative, inverted, absolute)
    if text.startswith(("[", "desc[")):
        return Operand(text, "memory")
    if text.startswith("`"):
        return Operand(text[2:-1], "label")
    if re.fullmatch(r"-?(0x[0-9a-f]+|[\d.]+(e[-+]?\d+)?)|[-+]?(INF|QNAN)", text):
        return Operand(text, "number")
    return Operand(text, "special")


@cache
def tool(name: str) -> str:
    """The path of a tool of the CUDA toolkit, there or in the package of the same name."""
    if found := shutil.which(name):
        return found
    package = f"nvidia-cuda-{name}"
    with suppress(PackageNotFoundError):
        for file in files(package) or ():
            if file.name == name:
                return str(file.locate())
    raise RuntimeError(f"there is no {name}, which reads machine code: install {package}")


def disassemble(cubin: Path, wanted: re.Pattern[str]) -> dict[str, Kernel]:
    """The kernels of a file of machine code whose mangled names match ``wanted``."""
    command = [tool("nvdisasm"), "-c", "-gi", str(cubin)]
    listing = subprocess.run(command, capture_output=True, text=True)
    if listing.returncode:
        raise RuntimeError(f"nvdisasm cannot read {cubin}: {listing.stderr.strip()}")
    return parse(listing.stdout, wanted)


def parse(listing: str, wanted: re.Pattern[str]) -> dict[str, Kernel]:
    """The kernels of a listing whose mangled names match ``wanted``."""
    sections = ((name, lines) for name, lines in _sections(listing) if wanted.search(name))
    return {name: _kernel(name, lines) for name, lines in sections}


def _sections(listing: str) -> Iterator[tuple[str, list[str]]]:
    name = ""
    lines: list[str] = []
    for line in listing.splitlines():
        if found := _SECTION.search(line):
            if name:
                yield name, lines
            name, lines = found[1], []
        lines.append(line)
    if name:
        yield name, lines


def _kernel(name: str, lines: list[str]) -> Kernel:
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    unplaced: list[str] = []  # labels before the next instruction
    places: list[Place] = []
    is_new = True
    for line in lines:
        if found := _LINE.search(line):
            if is_new:
                places, is_new = [], False
            places.append((found[1], int(found[2])))
        elif found := _INSTRUCTION.match(line):
            is_new, address = True, int(found[1], 16)
            labels |= dict.fromkeys(unplaced, address)
            unplaced = []
            head, *modifiers = found[3].split(".")
            operands = tuple(map(operand, _OPERAND.split(found[4]))) if found[4] else ()
            guard = operand(found[2]) if found[2] else None
            text = line.split("*/")[1].strip()
            code.append(
                Instruction(
                    address, guard, head, frozenset(modifiers), operands, tuple(places), text
                )
            )
        elif found := _LABEL.match(line):
            unplaced.append(found[1])
            if found[1].startswith("$"):  # a function begins, which may have no lines
                places = []
    return Kernel(name, code, labels)
