"""Which stage of the glossary an instruction belongs to, by the functions it was inlined from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from scripts.machine_code.listing import Kernel, Place
from scripts.structure_functions import CPP_SUFFIXES, Definition, definitions
from scripts.structure_stages import stages_of

# Functions of the toolkit, which have no lines here, such as the slow path of a division.
OF_THE_TOOLKIT = "functions of the toolkit"
# The kernel itself and the constructors of what its stages take: loops, sizes, addresses.
BETWEEN = "between the stages"


@cache
def _definitions(file: str) -> list[Definition]:
    """What a source of this project defines; nothing if the file is another's. The machine code
    may have been compiled in another checkout: a file counts that lies at the same place in this.
    """
    parts = Path(file).parts
    places = (Path.cwd().joinpath(*parts[i:]) for i in range(1, len(parts) - 1))
    found = next((place for place in places if place.is_file()), None)
    return definitions(found) if found and found.suffix in (*CPP_SUFFIXES, ".py") else []


@cache
def names_at(file: str, line: int) -> tuple[str, ...]:
    """The functions and types of this project around a line, the outermost first."""
    around = [d for d in _definitions(file) if d.line <= line < d.line + d.lines]
    return tuple(d.name for d in sorted(around, key=lambda d: d.line))


@cache
def stage_at(places: tuple[Place, ...]) -> str:
    """The outermost function that computes stages, by its name; where there is none, the outermost
    function that the kernel calls, which is a phase of a step. ``places`` are those of an
    instruction."""
    names = [names_at(*place) for place in reversed(places)]
    for name in (name for around in names for name in around):
        if stages_of(name):
            return name
    if not any(names):
        return OF_THE_TOOLKIT
    functions = [around[-1] for around in names if around and around[-1].islower()]
    return next((f for f in functions if not f.endswith("_kernel")), BETWEEN)


def by_stage(kernel: Kernel, issued: Mapping[int, int]) -> Counter[str]:
    """Counts of instructions, by their address, added up by stage."""
    found: Counter[str] = Counter()
    for instruction in kernel.code:
        if many := issued.get(instruction.address):
            found[stage_at(instruction.places)] += many
    if found[OF_THE_TOOLKIT] > sum(found.values()) / 2:
        raise RuntimeError(
            f"{kernel.name}: most instructions come from no source in {Path.cwd()}; run this in "
            "the root of the checkout, and compile the kernels with -lineinfo"
        )
    return found
