"""What the threads of a block have: registers, predicates, memory; and where operands are in them.

Each array has an element a thread. A uniform register, which a warp has once, is kept for each of
its threads.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.machine_code.listing import Instruction, Operand

Array = NDArray[Any]
Read = Callable[[], Array]

WARP = 32
REGISTERS, PREDICATES = 257, 8  # the last register reads as zero, as a word or half of a double one
# High words of addresses that mean shared memory. No process has memory there.
SHARED_WINDOW = 0x7FFF0000
# Where the toolkit puts the sizes of a launch, the stack, and the parameters of a kernel.
CONSTANTS_BEFORE_100 = {"threads": 0x0, "blocks": 0xC, "shared_window": 0x18, "stack": 0x28}
CONSTANTS = {"threads": 0x360, "blocks": 0x370, "stack": 0x37C}
STACK_BYTES = 4096  # of a thread; it grows downwards
PARAMETERS = {75: 0x160, 80: 0x160, 86: 0x160, 89: 0x160, 90: 0x210, 100: 0x380, 120: 0x380}


class Launch:
    """One block of a launch: its threads, its parameters, and the memory that it may use."""

    def __init__(
        self,
        architecture: int,
        threads: int,
        blocks: int,
        shared_bytes: int,
        parameters: bytes,
        regions: list[tuple[int, int]],
    ) -> None:
        self.architecture, self.threads, self.blocks = architecture, threads, blocks
        self.shared_bytes = shared_bytes
        self.regions = sorted(regions)  # (address, bytes) of global memory
        self.constants = bytearray(0x2000)
        begin = PARAMETERS[architecture]
        self.constants[begin : begin + len(parameters)] = parameters
        at = CONSTANTS if architecture >= 100 else CONSTANTS_BEFORE_100
        for name, sizes in {"threads": (threads, 1, 1), "blocks": (blocks, 1, 1)}.items():
            self.constants[at[name] : at[name] + 12] = np.array(sizes, np.uint32).tobytes()
        stack = np.array([STACK_BYTES], np.uint32).tobytes()
        self.constants[at["stack"] : at["stack"] + 4] = stack
        if architecture < 100:
            window = np.array([0, SHARED_WINDOW], np.uint32).tobytes()
            self.constants[at["shared_window"] : at["shared_window"] + 8] = window


class Lanes:
    """The state of a block, and readers of the operands of an instruction.

    ``depends`` collects the registers that have been looked up, as (kind, number), since it was
    last emptied.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch, self.threads = launch, launch.threads
        shape = (REGISTERS, self.threads)
        self.words = {"R": np.zeros(shape, np.uint32), "UR": np.zeros(shape, np.uint32)}
        self.flags = {kind: np.zeros((PREDICATES, self.threads), bool) for kind in ("P", "UP")}
        for flags in self.flags.values():
            flags[-1] = True
        self.shared = np.zeros((launch.shared_bytes + 0x3000) // 4, np.uint32)
        self.stacks = np.zeros((self.threads, STACK_BYTES // 4), np.uint32)
        self.depends: set[tuple[str, int]] = set()
        # Where the regions of global memory begin and end.
        self.starts = np.array([start for start, _ in launch.regions], np.uint64)
        self.ends = np.array([start + many for start, many in launch.regions], np.uint64)

    def sources(self, i: Instruction) -> tuple[Operand, ...]:
        """The operands without the destinations."""
        return i.operands[len(self.destinations(i)) :]

    def destinations(self, i: Instruction) -> tuple[Operand, ...]:
        if i.name in ("ST", "STG", "STS", "STL", "STSM"):
            return ()
        if i.name in ("VOTE", "VOTEU"):
            return i.operands[:-1]
        if i.name == "FCHK":
            return i.operands[:1]
        if i.name.endswith(("SETP", "PLOP3")):
            return i.operands[:2]
        if i.name == "R2P":
            mask = int(i.operands[2].text, 16)
            return tuple(Operand(f"P{n}", "P", n) for n in range(7) if mask >> n & 1)
        many, has_register = 0, False
        for given in i.operands:
            if not given.is_predicate:
                if has_register or given.kind not in ("R", "UR"):
                    break
                has_register = True
            many += 1
        return i.operands[:many]

    # Readers of operands.

    def word(self, o: Operand, part: int = 0) -> Read:
        """A word, or the part of that number of several, with its sign and as an integer."""
        row = self._row(o, part)
        if isinstance(row, np.ndarray):
            if o.negative:
                return lambda: np.negative(row)
            return (lambda: ~row) if o.inverted else (lambda: row)
        return row

    def _row(self, o: Operand, part: int) -> Any:
        if o.kind in self.words:
            number = o.number + part if o.number < 255 else 255
            self.depends.add((o.kind, number))
            return self.words[o.kind][number]
        if o.kind == "number":
            value = _bits(o.text)
            value = value >> 32 * part if value >= 0 or part == 0 else -1
            return np.full(self.threads, value & 0xFFFFFFFF, np.uint32)
        if o.kind == "constant":
            return self._constant(o, part)
        raise NotImplementedError(f"the operand {o.text} as a word")

    def _constant(self, o: Operand, part: int) -> Any:
        place = re.fullmatch(r"c\[0x0\]\[(?:(U?R)(\d+|Z)\+?)?(-?0x[0-9a-f]+)?\]", o.text)
        if place is None:
            raise NotImplementedError(f"the constant {o.text}")
        table = np.frombuffer(bytes(self.launch.constants), np.uint32)
        offset = int(place[3] or "0", 16) + 4 * part
        if place[1] is None or place[2] == "Z":
            return np.full(self.threads, table[offset // 4], np.uint32)
        index = self.word(Operand("", place[1], int(place[2])))
        # Threads that are not here may have any index.
        return lambda: table.take((index() + offset) // 4, mode="clip")

    def wide(self, o: Operand) -> Read:
        """A double word, as uint64."""
        bare = o._replace(negative=False, inverted=False)
        lower, upper = self.word(bare), self.word(bare, 1)
        bits = np.uint64(32)

        def read() -> Array:
            value = lower().astype(np.uint64) | upper().astype(np.uint64) << bits
            return np.negative(value) if o.negative else ~value if o.inverted else value

        return read

    def carrying(self, o: Operand) -> Read:
        """A word as uint64; -x as ~x + 1, which carries where x is 0."""
        word = self.word(o._replace(negative=False))
        if o.negative:
            return lambda: (~word()).astype(np.uint64) + np.uint64(1)
        return lambda: word().astype(np.uint64)

    def float(self, o: Operand) -> Read:
        if o.kind == "number":
            value = np.full(self.threads, _float(o.text), np.float32)
            return lambda: value
        word = self.word(o._replace(negative=False))

        def read() -> Array:
            value = word().view(np.float32)
            if o.absolute:
                value = np.abs(value)
            return np.negative(value) if o.negative else value

        return read

    def double(self, o: Operand) -> Read:
        """A float32 as float64."""
        value = self.float(o)
        return lambda: value().astype(np.float64)

    def predicate(self, o: Operand) -> Read:
        row = self.flags[o.kind][o.number]
        self.depends.add((o.kind, o.number))
        return (lambda: ~row) if o.negative else (lambda: row)

    def special(self, name: str) -> Array:
        values: dict[str, Any] = {
            "SRZ": 0,
            "SR_TID.X": np.arange(self.threads),
            "SR_LANEID": np.arange(self.threads) % WARP,
            "SR_CgaCtaId": 0,
            "SR_SWINHI": SHARED_WINDOW,
            **dict.fromkeys(("SR_TID.Y", "SR_TID.Z", "SR_CTAID.X", "SR_CTAID.Y", "SR_CTAID.Z"), 0),
        }
        if name not in values:
            raise NotImplementedError(f"the special register {name}")
        return np.broadcast_to(values[name], self.threads).astype(np.uint32)

    # Memory.

    def width(self, i: Instruction) -> tuple[int, int]:
        """Bytes of one word of an access, and how many words it has."""
        sizes = {"U8": (1, 1), "U16": (2, 1), "64": (4, 2), "128": (4, 4)}
        if {"S8", "S16"} & i.modifiers:
            raise NotImplementedError(i.text)
        return next((sizes[m] for m in i.modifiers if m in sizes), (4, 1))

    def address(self, i: Instruction) -> Read:
        """The address of an access, as uint64."""
        text = next(o.text for o in i.operands if o.kind == "memory")
        inside = text[text.rindex("[") + 1 : -1].replace(".reuse", "")
        is_wide = i.name in ("LD", "LDG", "ST", "STG")
        terms: list[Read] = []
        offset = 0
        for part in re.findall(r"-?[^+-]+", inside.replace("+-", "-")):
            if re.fullmatch(r"-?0x[0-9a-f]+", part):
                offset += int(part, 16)
                continue
            found = re.fullmatch(r"(U?R)(\d+|Z)(?:\.(64|U32|X4|X8|X16))?", part)
            if found is None:
                raise NotImplementedError(f"the address {text}")
            register = Operand("", found[1], 255 if found[2] == "Z" else int(found[2]))
            narrow = not is_wide or found[3] == "U32"
            term = self.carrying(register) if narrow else self.wide(register)
            terms.append(_times(term, {"X4": 4, "X8": 8, "X16": 16}.get(found[3], 1)))
        start = np.full(self.threads, offset % 2**64, np.uint64)
        return lambda: sum((term() for term in terms), start)

    def load(
        self, i: Instruction, address: Array, mask: Array, size: int, many: int
    ) -> list[Array]:
        found = [np.zeros(self.threads, np.uint32) for _ in range(many)]
        for source, at, here in self._places(i, address, mask, size, many):
            for part in range(many):
                found[part][here] = source[at + part]
        return found

    def store(
        self, i: Instruction, address: Array, mask: Array, size: int, words: list[Array]
    ) -> None:
        for target, at, here in self._places(i, address, mask, size, len(words)):
            for part, word in enumerate(words):
                target[at + part] = word[here].astype(target.dtype)

    def _places(
        self, i: Instruction, address: Array, mask: Array, size: int, many: int
    ) -> list[tuple[Array, Array, Array]]:
        """Arrays to access, the indices, and the threads that do."""
        kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[size]
        if (address[mask] % np.uint64(size * many)).any():
            raise RuntimeError(f"a misaligned address: {i.text}")
        inside = address & np.uint64(0xFFFFFFFF)
        if i.name in ("LDL", "STL"):
            inside = inside[mask]
            if (inside + np.uint64(size * many) > STACK_BYTES).any():
                raise RuntimeError(f"beyond the stack of the thread: {i.text}")
            own = np.flatnonzero(mask).astype(np.uint64) * np.uint64(STACK_BYTES)
            return [(self.stacks.reshape(-1).view(kind), (own + inside) // np.uint64(size), mask)]
        if i.name in ("LDS", "STS", "LDSM", "STSM"):
            is_shared = mask
        else:
            is_shared = mask & ((address >> np.uint64(32)) == SHARED_WINDOW)
        places = []
        if is_shared.any():
            at = inside[is_shared]
            if int(at.max()) + size * many > self.shared.nbytes:
                raise RuntimeError(f"beyond the shared memory of the block: {i.text}")
            places.append((self.shared.view(kind), at // np.uint64(size), is_shared))
        is_global = mask & ~is_shared
        if is_global.any():
            at = address[is_global]
            self._check(i, at, size * many)
            places.append((_PROCESS[size], (at - _ORIGIN) // np.uint64(size), is_global))
        return places

    def _check(self, i: Instruction, addresses: Array, size: int) -> None:
        region = np.searchsorted(self.starts, addresses, "right") - 1
        if (region < 0).any() or (addresses + np.uint64(size) > self.ends[region]).any():
            raise RuntimeError(f"outside of all tensors of the call: {i.text}")


def _times(term: Read, factor: int) -> Read:
    many = np.uint64(factor)
    return lambda: term() * many


# The memory of this process as arrays: tensors lie at the addresses that the kernel is given.
_ORIGIN = np.uint64(4096)


def _process(kind: Any, size: int) -> Array:
    whole = (kind * (2**47 // size - 4096)).from_address(int(_ORIGIN))
    return np.ctypeslib.as_array(whole)


_PROCESS = {
    1: _process(ctypes.c_uint8, 1),
    2: _process(ctypes.c_uint16, 2),
    4: _process(ctypes.c_uint32, 4),
}


def _float(text: str) -> float:
    text = text.strip()
    if "x" in text:
        return float(np.uint32(int(text, 16)).view(np.float32))
    return float(text.replace("QNAN", "nan").replace("INF", "inf"))


def _bits(text: str) -> int:
    return int(text, 16) if "x" in text else int(np.float32(_float(text)).view(np.uint32))
