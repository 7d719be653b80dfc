"""What each instruction computes, for all threads of a block at once: ``TABLE``, by its name.

A function of the table takes the ``Lanes`` of a block and an instruction, looks up where its
operands are, and returns a function of the active lanes that gives the results: words of the
destination, and predicates. Arrays have an element a thread; words are uint32. The order in which
operands are looked up here is the record of which registers an instruction depends on.

Arithmetic is in ``arithmetic.py``. Here are the instructions that move values: between registers,
between the threads of a warp, from and to memory. Only what the kernels of this project execute is
here; anything else is an error when it is reached.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce

import numpy as np

from scripts.machine_code import arithmetic
from scripts.machine_code.arithmetic import Array, Body, Results, high, low, one
from scripts.machine_code.lanes import WARP, Lanes
from scripts.machine_code.listing import Instruction, Operand


def move(lanes: Lanes, i: Instruction) -> Body:
    source = lanes.sources(i)[0]
    if "64" in i.modifiers:
        wide = lanes.wide(source)
        return lambda _: ([low(wide()), high(wide())], [])
    word = lanes.word(source)
    return lambda _: one(word())


def load_constant(lanes: Lanes, i: Instruction) -> Body:
    words = {"64": 2, "128": 4}
    many = next((words[m] for m in i.modifiers if m in words), 1)
    sources = [lanes.word(lanes.sources(i)[0], part) for part in range(many)]
    return lambda _: ([s() for s in sources], [])


def special(lanes: Lanes, i: Instruction) -> Body:
    value = lanes.special(lanes.sources(i)[0].text)
    many = 2 if i.name == "CS2R" and "32" not in i.modifiers else 1
    return lambda _: ([value] * many, [])


def shuffle(lanes: Lanes, i: Instruction) -> Body:
    value, lane, limits = (lanes.word(o) for o in lanes.sources(i))
    own = np.arange(lanes.threads) % WARP
    first_of_warp = np.arange(lanes.threads) - own

    def run(mask: Array) -> Results:
        by, most = lane().astype(np.int64), (limits() & 31).astype(np.int64)
        segment = (limits() >> 8 & 31).astype(np.int64)
        lowest = own & segment
        highest = lowest | (most & ~segment)
        if "BFLY" in i.modifiers:
            source, there = own ^ by, (own ^ by) <= highest
        elif "IDX" in i.modifiers:
            source = lowest | (by & ~segment)
            there = source <= highest
        elif "DOWN" in i.modifiers:
            source, there = own + by, own + by <= highest
        else:
            source, there = own - by, own - by >= highest
        source = first_of_warp + np.where(there, source, own)
        if not mask[source[mask]].all():
            raise RuntimeError(f"a lane takes a value of one that is not there: {i.text}")
        return [value()[source]], [there]

    return run


def vote(lanes: Lanes, i: Instruction) -> Body:
    asked = lanes.predicate(i.operands[-1])
    bits = np.uint32(1) << np.arange(WARP, dtype=np.uint32)

    def run(mask: Array) -> Results:
        agreed = (mask & asked()).reshape(-1, WARP)
        ballot = (agreed * bits).sum(1, dtype=np.uint32).repeat(WARP)
        every = (agreed | ~mask.reshape(-1, WARP)).all(1).repeat(WARP)
        return [ballot], [every if "ALL" in i.modifiers else ballot != 0]

    return run


def to_uniform(lanes: Lanes, i: Instruction) -> Body:
    """R2UR: the value of the first active lane of a warp."""
    word = lanes.word(lanes.sources(i)[0])

    def run(mask: Array) -> Results:
        first = mask.reshape(-1, WARP).argmax(1)[:, None]
        return one(np.take_along_axis(word().reshape(-1, WARP), first, 1)[:, 0].repeat(WARP))

    return run


def from_predicates(lanes: Lanes, i: Instruction) -> Body:
    """P2R: all predicates as bits of a word; those outside of the mask from another word."""
    _, other, mask = lanes.sources(i)
    predicates = [lanes.predicate(Operand(f"P{n}", "P", n)) for n in range(7)]
    rest, wanted = lanes.word(other), lanes.word(mask)

    def run(_: Array) -> Results:
        bits = reduce(operator.or_, (p().astype(np.uint32) << n for n, p in enumerate(predicates)))
        return one((bits & wanted()) | (rest() & ~wanted()))

    return run


def to_predicates(lanes: Lanes, i: Instruction) -> Body:
    """R2P: predicates from the bits of a word."""
    word, mask = lanes.word(i.operands[1]), int(i.operands[2].text, 16)
    chosen = [number for number in range(7) if mask >> number & 1]
    return lambda _: ([], [(word() >> n & 1).astype(bool) for n in chosen])


def load(lanes: Lanes, i: Instruction) -> Body:
    address = lanes.address(i)
    size, many = lanes.width(i)
    return lambda mask: (lanes.load(i, address(), mask, size, many), [])


def store(lanes: Lanes, i: Instruction) -> Body:
    address = lanes.address(i)
    size, many = lanes.width(i)
    words = [lanes.word(i.operands[1], part) for part in range(many)]

    def run(mask: Array) -> Results:
        lanes.store(i, address(), mask, size, [w() for w in words])
        return [], []

    return run


def matrix_rows(lanes: Lanes, i: Instruction) -> Callable[[], Array]:
    """The address of each lane's word in a matrix of 8 rows of 4 words: lanes 0 to 7 name the
    rows."""
    if i.modifiers != {"16", "M88"}:
        raise NotImplementedError(f"several matrices, or a transposed one: {i.text}")
    address = lanes.address(i)
    thread = np.arange(lanes.threads)
    row = thread - thread % WARP + thread % WARP // 4
    return lambda: address()[row] + (4 * (thread % 4)).astype(np.uint64)


def load_matrix(lanes: Lanes, i: Instruction) -> Body:
    address = matrix_rows(lanes, i)
    return lambda mask: (lanes.load(i, address(), mask, 4, 1), [])


def store_matrix(lanes: Lanes, i: Instruction) -> Body:
    address, word = matrix_rows(lanes, i), lanes.word(i.operands[1])

    def run(mask: Array) -> Results:
        lanes.store(i, address(), mask, 4, [word()])
        return [], []

    return run


def nothing(lanes: Lanes, i: Instruction) -> Body:
    return lambda _: ([], [])


TABLE: dict[str, Callable[[Lanes, Instruction], Body]] = {
    "FADD": arithmetic.floating(np.add),
    "FMUL": arithmetic.floating(np.multiply),
    "FFMA": arithmetic.floating(lambda a, b, c: a * b + c),
    "MUFU": arithmetic.mufu,
    "FMNMX": arithmetic.minimum,
    "FMNMX3": arithmetic.minimum,
    "FSETP": arithmetic.float_setp,
    "FSET": arithmetic.float_set,
    "FCHK": arithmetic.check_division,
    "ISETP": arithmetic.integer_setp,
    "PLOP3": arithmetic.predicate_logic,
    "LOP3": arithmetic.logic,
    "IADD": arithmetic.add,
    "IADD3": arithmetic.add,
    "VIADD": arithmetic.add,
    "IMAD": arithmetic.multiply,
    "LEA": arithmetic.shift_add,
    "SHF": arithmetic.shift,
    "SGXT": arithmetic.extend,
    "IMNMX": arithmetic.integer_minimum,
    "VIMNMX": arithmetic.integer_minimum,
    "VIADDMNMX": arithmetic.integer_minimum,
    "FLO": arithmetic.leading_one,
    "SEL": arithmetic.select,
    "FSEL": arithmetic.select,
    "IABS": arithmetic.absolute,
    "PRMT": arithmetic.permute,
    "I2F": arithmetic.to_float,
    "I2FP": arithmetic.to_float,
    "F2I": arithmetic.to_integer,
    "HFMA2": arithmetic.half_constants,
    "HADD2": arithmetic.half_to_float,
    **dict.fromkeys(("F2F", "F2FP"), arithmetic.halves),
    "MOV": move,
    "LDC": load_constant,
    "S2R": special,
    "CS2R": special,
    "SHFL": shuffle,
    "VOTE": vote,
    "R2UR": to_uniform,
    "P2R": from_predicates,
    "R2P": to_predicates,
    **dict.fromkeys(("LD", "LDG", "LDS", "LDL"), load),
    **dict.fromkeys(("ST", "STG", "STS", "STL"), store),
    "LDSM": load_matrix,
    "STSM": store_matrix,
    **dict.fromkeys(("NOP", "YIELD", "BMOV"), nothing),
}
# The uniform datapath has the same operations, on a register of the whole warp.
UNIFORM = {
    **{f"U{name}": TABLE[name] for name in ("ISETP", "PLOP3", "LOP3", "IADD3", "IMAD", "LEA")},
    **{f"U{name}": TABLE[name] for name in ("SHF", "IMNMX", "VIMNMX", "FLO", "SEL", "PRMT", "MOV")},
    "UI2F": TABLE["I2F"],
    "ULDC": load_constant,
    "LDCU": load_constant,
    "S2UR": special,
    "VOTEU": vote,
}
