"""Rewrites what of CUDA's syntax is not C++, keeping every line on its line.

    kernel<<<grid, block, shared, stream>>>(...)  a launch
    __shared__ T name[n];                         static shared memory, one variable a declaration
    extern __shared__ T name[];                   dynamic shared memory
    __launch_bounds__(threads, blocks)            a check of the launch, at the start of the kernel

What it cannot rewrite is an error; nothing is passed on half understood.
"""

from __future__ import annotations

import re
from pathlib import Path


class TranslationError(Exception):
    """A construct that the emulator does not know."""


_HIDDEN = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'", re.DOTALL)
_ALIGNMENT = r"(?:(?:__align__|alignas)\s*\((?P<align>[^()]*(?:\([^()]*\)[^()]*)*)\)\s*)?"
_SHARED = re.compile(
    r"(?P<extern>extern\s+)?__shared__\s+" + _ALIGNMENT + r"(?P<type>[\w:<>,\s]+?)\s*"
    r"\b(?P<name>\w+)\s*(?P<dimensions>(?:\[[^\];]*\]\s*)*);"
)
_BOUNDS = re.compile(r"\b__launch_bounds__\s*\(")


def _blanked(source: str) -> str:
    """The source with comments and literals blanked out, at the same offsets."""
    return _HIDDEN.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), source)


def _closing(code: str, start: int) -> int:
    """Offset of the parenthesis that closes the one at ``start``."""
    depth = 0
    for offset in range(start, len(code)):
        depth += {"(": 1, ")": -1}.get(code[offset], 0)
        if depth == 0:
            return offset
    raise TranslationError("unbalanced parenthesis")


def _callee_start(code: str, end: int) -> int:
    """Where the name of the kernel begins whose launch brackets begin at ``end``."""
    depth, offset = 0, end
    while offset > 0:
        character = code[offset - 1]
        if character == ">":
            depth += 1
        elif character == "<":
            depth -= 1
        elif depth == 0 and not (character.isalnum() or character in "_:"):
            break
        offset -= 1
    return offset


def _replace_shared(match: re.Match[str]) -> str:
    kind, name = match["type"].strip(), match["name"]
    dimensions = re.sub(r"\s", "", match["dimensions"])
    if "," in re.sub(r"<[^<>]*>", "", kind):
        raise TranslationError(f"one variable per __shared__ declaration, please: {name}")
    lines = "\n" * match.group().count("\n")
    if match["extern"]:
        if dimensions != "[]":
            raise TranslationError(f"dynamic shared memory is declared `T {name}[]`")
        memory = "::cuda_emulator::dynamic_shared()"
        return f"{kind}* const {name} = static_cast<{kind}*>({memory});{lines}"
    alignment = match["align"] or f"alignof({kind})"
    memory = f"::cuda_emulator::static_shared(&{name}_id, sizeof({name}_t), {alignment})"
    return (
        f"typedef {kind} {name}_t{dimensions}; static const char {name}_id = 0; "
        f"{name}_t& {name} = *static_cast<{name}_t*>({memory});{lines}"
    )


def _replace_launches(source: str) -> str:
    code, pieces, done = _blanked(source), [], 0
    while (opening := code.find("<<<", done)) >= 0:
        closing, start = code.find(">>>", opening), _callee_start(code, opening)
        if closing < 0 or start < done:
            raise TranslationError("a launch that does not end")
        kernel, configuration = source[start:opening], source[opening + 3 : closing]
        name = re.sub(r"\s+", " ", kernel).strip()
        launcher = f'::cuda_emulator::Launcher("{name}", {kernel}, {configuration})'
        pieces += [source[done:start], launcher]
        done = closing + 3
    return "".join([*pieces, source[done:]])


def _replace_bounds(source: str) -> str:
    while match := _BOUNDS.search(code := _blanked(source)):
        end = _closing(code, match.end() - 1)
        bounds = " ".join(source[match.end() : end].split())
        parameters = code.index("(", end + 1)
        after = _closing(code, parameters) + 1
        if code[after:].lstrip().startswith("{"):
            body = code.index("{", after) + 1
            check = f" ::cuda_emulator::check_launch_bounds({bounds});"
            source = source[:body] + check + source[body:]
        lines = "\n" * source[match.start() : end].count("\n")
        source = source[: match.start()] + lines + source[end + 1 :]
    return source


def _replace_all_shared(source: str) -> str:
    code, pieces, done = _blanked(source), [], 0
    for match in _SHARED.finditer(code):
        pieces += [source[done : match.start()], _replace_shared(match)]
        done = match.end()
    return "".join([*pieces, source[done:]])


def translate(source: str, path: str) -> str:
    """CUDA source as C++ for the emulator; ``path`` is what messages call it."""
    try:
        translated = _replace_launches(_replace_all_shared(_replace_bounds(source)))
        # As a macro it would hit the same word in the headers of the C++ library.
        translated = re.sub(r"\b__noinline__\b", "__attribute__((noinline))", translated)
    except TranslationError as error:
        raise TranslationError(f"{path}: {error}") from None
    left = re.search(
        r"^(?!\s*#).*(__shared__|<<<|__launch_bounds__).*$", _blanked(translated), re.M
    )
    if left:
        raise TranslationError(f"{path}: cannot translate `{left.group().strip()}`")
    return f'#line 1 "{path}"\n{translated}'


def translate_tree(source: Path, target: Path) -> list[Path]:
    """Translate every CUDA file and header under ``source``; return the new ``.cu`` files.

    A file whose translation has not changed is left alone, for incremental builds.
    """
    made = []
    for path in sorted(source.rglob("*")):
        if path.suffix not in (".cu", ".cuh", ".h"):
            continue
        goal = target / path.relative_to(source)
        text = translate(path.read_text(), str(path))
        if not goal.exists() or goal.read_text() != text:
            goal.parent.mkdir(parents=True, exist_ok=True)
            goal.write_text(text)
        if path.suffix == ".cu":
            made.append(goal)
    return made
