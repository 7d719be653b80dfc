"""Which function of a backend computes which stage of the equations, found by its name.

A name says that it computes a stage in one of three ways:

- it is the name of the stage: ``similarity``, ``sharpen_backward``, ``LstmBackward``;
- it starts with the names of all the stages that it fuses, in the order of the equations:
  ``content_interpolate_shift``, ``interpolate_shift_backward``; ``_and_`` stands between groups
  of which one is forward and one backward, or one only in part;
- it is one of these followed by which part: ``activate_taps``, ``shift_backward_taps``.

A function of the second or third kind counts where none has the stage's own name. A kernel, and
the work on one tile of many, call stages and are none.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.structure_functions import CPP_SUFFIXES, Definition, definitions

# What a head does, which every backend has; and what else a time step is made of.
OF_A_HEAD = ("similarity", "content", "interpolate", "shift", "sharpen", "read", "write")
OF_A_STEP = ("activate", "lstm", "feedforward")
STAGES = OF_A_HEAD + OF_A_STEP
FOLDERS = {
    "torch": "ntm_kernels/backends/torch",
    "cpu": "csrc/cpu",
    "triton": "ntm_kernels/backends/triton/kernels",
    "cuda": "csrc/cuda",
}
BEGIN = "<!-- Written by `python -m scripts.structure --stages`: begin -->"
END = "<!-- end -->"


class Stage(NamedTuple):
    name: str
    backward: bool

    def __str__(self) -> str:
        return f"{self.name}_backward" if self.backward else self.name


def both_ways(names: Iterable[str]) -> list[Stage]:
    return [Stage(name, backward) for name in names for backward in (False, True)]


def stages_of(name: str) -> dict[Stage, bool]:
    """The stages that a function of this name computes, and whether each is only a part of it."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    found: dict[Stage, bool] = {}
    if snake.endswith(("_kernel", "_of_tile")):
        return found
    for group in snake.split("_and_"):
        words = group.split("_")
        fused = list(itertools.takewhile(STAGES.__contains__, words))
        rest = words[len(fused) :]
        for stage in fused:
            found[Stage(stage, "backward" in rest)] = rest not in ([], ["backward"])
    return found


def sources(root: Path, folder: str) -> list[Path]:
    """The sources under a folder of ``root``, relative to it; headers first, which have the stages
    that the functions of the ops call."""
    suffixes = (*CPP_SUFFIXES, ".py")
    files = (root / folder).rglob("*")
    found = (path.relative_to(root) for path in files if path.suffix in suffixes)
    return sorted(found, key=lambda path: (path.suffix in (".cpp", ".cu"), path))


def find(root: Path, folder: str) -> dict[Stage, list[Definition]]:
    """For each stage that is found under ``folder``, what computes it."""
    found: dict[Stage, list[tuple[int, Definition]]] = {}
    for file in sources(root, folder):
        for definition in definitions(root / file):
            stages = stages_of(definition.name)
            for stage, part in stages.items():
                own = len(stages) == 1 and not part
                rank = (0 if own else 1) if not definition.is_type else (2 if own else 3)
                found.setdefault(stage, []).append((rank, definition._replace(file=file)))
    return {stage: _best(ranked) for stage, ranked in found.items()}


def _best(ranked: Sequence[tuple[int, Definition]]) -> list[Definition]:
    """A function with the stage's own name; else all that fuse it or do a part of it."""
    best = min(rank for rank, _ in ranked)
    if best in (0, 2):
        return [next(definition for rank, definition in ranked if rank == best)]
    unique = {(definition.name, definition.file): definition for _, definition in ranked}
    return list(unique.values())


def count(found: Mapping[Stage, object]) -> int:
    """How many of the fourteen that every backend has are found."""
    return sum(stage in found for stage in both_ways(OF_A_HEAD))


def table(root: Path) -> str:
    """Stage × backend as a table of Markdown, with links that work from a page in ``docs``."""
    found = {backend: find(root, folder) for backend, folder in FOLDERS.items()}
    rows = [f"| stage | {' | '.join(found)} |", "| --- " * (1 + len(found)) + "|"]
    for stage in both_ways(STAGES):
        cells = (", ".join(map(_link, found[backend].get(stage, []))) or "—" for backend in found)
        rows.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _link(definition: Definition) -> str:
    return f"[{definition.name}](../{definition.file}#L{definition.line})"


def without_lines(text: str) -> str:
    return re.sub(r"#L\d+", "", text)


def between_markers(page: str) -> str:
    return page[page.index(BEGIN) + len(BEGIN) : page.index(END)].strip()


def write(page: Path, root: Path) -> None:
    """Put the table between the markers of ``page``."""
    text = page.read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    page.write_text(f"{text[:begin]}\n\n{table(root)}\n\n{text[end:]}")
