"""Arithmetic of one thread: numbers of its registers in, numbers or predicates out.

Rounding is that of float64 and then float32, and MUFU is rounded correctly: results differ from
those of a GPU by an ulp or so, which no branch of the kernels depends on. ``operations.py`` says
what the functions take and return.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.machine_code.lanes import Lanes
from scripts.machine_code.listing import Instruction, Operand

Array = NDArray[Any]
Results = tuple[list[Array], list[Array]]  # words of the destination, and predicates
Body = Callable[[Array], Results]  # of the mask of active lanes

_ORDERED = {
    "LT": operator.lt,
    "EQ": operator.eq,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
}
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def low(value: Array) -> Array:
    return (value & _LOW).astype(np.uint32)


def high(value: Array) -> Array:
    return (value >> _32).astype(np.uint32)


def one(word: Array) -> Results:
    return [word], []


def rounded(value: Array, modifiers: frozenset[str]) -> Array:
    """A float64 as float32, in the direction that the modifiers ask for."""
    nearest = value.astype(np.float32)
    if "RM" in modifiers:
        nearest = np.where(nearest > value, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    elif "RP" in modifiers:
        nearest = np.where(nearest < value, np.nextafter(nearest, np.float32(np.inf)), nearest)
    elif "RZ" in modifiers:
        beyond = np.abs(nearest) > np.abs(value)
        nearest = np.where(beyond, np.nextafter(nearest, np.float32(0)), nearest)
    if "SAT" in modifiers:
        nearest = np.nan_to_num(np.clip(nearest, 0, 1), nan=0.0)
    if "FTZ" in modifiers:
        nearest = np.where(np.abs(nearest) < np.finfo(np.float32).tiny, np.float32(0), nearest)
    return nearest.astype(np.float32).view(np.uint32)


def floating(function: Callable[..., Array]) -> Callable[[Lanes, Instruction], Body]:
    """An instruction that computes in float64 and rounds."""

    def translate(lanes: Lanes, i: Instruction) -> Body:
        sources = [lanes.double(o) for o in lanes.sources(i)]
        return lambda _: one(rounded(function(*(s() for s in sources)), i.modifiers))

    return translate


def mufu(lanes: Lanes, i: Instruction) -> Body:
    source = lanes.double(lanes.sources(i)[0])
    functions: dict[str, Callable[[Array], Array]] = {
        "EX2": np.exp2,
        "LG2": np.log2,
        "RCP": lambda x: 1 / x,
        "RSQ": lambda x: 1 / np.sqrt(x),
        "SQRT": np.sqrt,
        "TANH": np.tanh,
    }
    function = next(functions[m] for m in i.modifiers if m in functions)
    return lambda _: one(rounded(function(source()), i.modifiers))


def minimum(lanes: Lanes, i: Instruction) -> Body:
    """FMNMX: the smaller of the values, or the larger where the last predicate is false."""
    *values, choice = lanes.sources(i)
    sources, least = [lanes.float(o) for o in values], lanes.predicate(choice)

    def run(_: Array) -> Results:
        found = [s() for s in sources]
        smaller, larger = reduce(np.fmin, found), reduce(np.fmax, found)
        return one(np.where(least(), smaller, larger).view(np.uint32))

    return run


def integer_minimum(lanes: Lanes, i: Instruction) -> Body:
    """IMNMX, VIMNMX, and VIADDMNMX, which adds the first two values."""
    given = lanes.sources(i)
    values = [o for o in given if not o.is_predicate]
    least = lanes.predicate(next(o for o in given if o.is_predicate))
    if "S64" in i.modifiers:
        wide = [lanes.wide(o) for o in values]

        def run_wide(_: Array) -> Results:
            first, second = (s().view(np.int64) for s in wide)
            found = np.where(least(), np.minimum(first, second), np.maximum(first, second))
            return [low(found.view(np.uint64)), high(found.view(np.uint64))], []

        return run_wide
    kind = np.uint32 if "U32" in i.modifiers else np.int32
    sources = [lanes.word(o) for o in values]

    def run(_: Array) -> Results:
        *added, last = (s() for s in sources)
        first, second = sum(added[1:], added[0]).view(kind), last.view(kind)
        found = np.where(least(), np.minimum(first, second), np.maximum(first, second))
        return one(found.view(np.uint32))

    return run


def leading_one(lanes: Lanes, i: Instruction) -> Body:
    """FLO.U32: the place of the highest bit that is set, and all bits set where there is none. With
    SH it is counted from the left."""
    if "U32" not in i.modifiers:
        raise NotImplementedError(f"the instruction {i.text}")
    (value,) = (lanes.word(o) for o in lanes.sources(i))
    from_left = "SH" in i.modifiers

    def run(_: Array) -> Results:
        given = value()
        place = np.frexp(given.astype(np.float64))[1] - 1
        found = (31 - place if from_left else place).astype(np.uint32)
        return one(np.where(given == 0, np.uint32(0xFFFFFFFF), found))

    return run


def select(lanes: Lanes, i: Instruction) -> Body:
    *values, choice = lanes.sources(i)
    chosen = lanes.predicate(choice)
    if "64" in i.modifiers:
        wide = [lanes.wide(o) for o in values]

        def run_wide(_: Array) -> Results:
            found = np.where(chosen(), wide[0](), wide[1]())
            return [low(found), high(found)], []

        return run_wide
    read = lanes.float if i.name == "FSEL" else lanes.word
    first, second = (read(o) for o in values)
    return lambda _: one(np.where(chosen(), first(), second()).view(np.uint32))


def compared(lanes: Lanes, i: Instruction, found: Callable[[], Array], rest: Operand) -> Body:
    """A comparison joined with a predicate: the result, and that of the opposite comparison."""
    joins = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}
    join = next(joins[m] for m in i.modifiers if m in joins)
    other = lanes.predicate(rest)

    def run(_: Array) -> Results:
        here, with_it = found(), other()
        return [], [join(here, with_it), join(~here, with_it)]

    return run


def float_comparison(lanes: Lanes, i: Instruction) -> Callable[[], Array]:
    one_side, other_side = (lanes.float(o) for o in lanes.sources(i)[:2])
    names = {*_ORDERED, "NE", "NAN", "NUM"}
    name = next(m for m in i.modifiers if m in names or m.removesuffix("U") in names)

    def found() -> Array:
        a, b = one_side(), other_side()
        unordered: Array = np.isnan(a) | np.isnan(b)
        if name in ("NAN", "NUM"):
            return unordered if name == "NAN" else ~unordered
        bare = name.removesuffix("U")
        ordered = (a != b) & ~unordered if bare == "NE" else _ORDERED[bare](a, b)
        return ordered | unordered if name != bare else ordered

    return found


def float_setp(lanes: Lanes, i: Instruction) -> Body:
    return compared(lanes, i, float_comparison(lanes, i), lanes.sources(i)[2])


def float_set(lanes: Lanes, i: Instruction) -> Body:
    """FSET.BF: 1 where a comparison holds, else 0."""
    if "BF" not in i.modifiers:
        raise NotImplementedError(i.text)
    body = float_setp(lanes, i)
    return lambda mask: one(body(mask)[1][0].astype(np.float32).view(np.uint32))


def integer_setp(lanes: Lanes, i: Instruction) -> Body:
    """ISETP; ``.EX`` compares the high words, after another has compared the low ones."""
    first, second, rest, *low_result = lanes.sources(i)
    is_wide = bool({"S64", "U64"} & i.modifiers)
    read = lanes.wide if is_wide else lanes.word
    signed = np.int64 if is_wide else np.int32
    sources = [read(first), read(second)]
    name = next(m for m in i.modifiers if m in _ORDERED or m == "NE")
    is_unsigned = bool({"U32", "U64"} & i.modifiers)
    of_low = lanes.predicate(low_result[0]) if low_result else None

    def found() -> Array:
        a: Any
        a, b = (s() if is_unsigned else s().view(signed) for s in sources)
        if of_low is None:
            return a != b if name == "NE" else _ORDERED[name](a, b)
        if name == "NE":
            return (a != b) | of_low()
        beyond = a < b if name[0] == "L" else a > b if name[0] == "G" else np.zeros_like(a, bool)
        return beyond | ((a == b) & of_low())

    return compared(lanes, i, found, rest)


def add(lanes: Lanes, i: Instruction) -> Body:
    """IADD3 and its like, with carries out and, for ``.X``, in."""
    given = lanes.sources(i)
    if "64" in i.modifiers:
        wide = [lanes.wide(o) for o in given if not o.is_predicate]

        def run_wide(_: Array) -> Results:
            total = reduce(np.add, (s() for s in wide))
            return [low(total), high(total)], []

        return run_wide
    terms = [lanes.carrying(o) for o in given if not o.is_predicate]
    carries = [lanes.predicate(o) for o in given if o.is_predicate]

    def run(_: Array) -> Results:
        total = reduce(np.add, (t() for t in terms))
        for carry in carries if "X" in i.modifiers else ():
            total = total + carry()
        carried = total >> _32
        return [low(total)], [carried > 0, carried > 1]

    return run


def multiply(lanes: Lanes, i: Instruction) -> Body:
    """IMAD in all its forms."""
    first, second, third, *rest = lanes.sources(i)
    carry = lanes.predicate(rest[0]) if rest and "X" in i.modifiers else None
    if not {"WIDE", "HI"} & i.modifiers:
        a, b, c = (lanes.word(o) for o in (first, second, third))

        def run(_: Array) -> Results:
            total = a() * b() + c()
            return one(total + carry() if carry else total)

        return run
    signed = "U32" not in i.modifiers
    x, y, z = lanes.word(first), lanes.word(second), lanes.wide(third)

    def run_wide(_: Array) -> Results:
        kind = np.int32 if signed else np.uint32
        product: Array = x().view(kind).astype(np.int64 if signed else np.uint64) * y().view(kind)
        product = product.view(np.uint64)
        total = product + z()
        carried = total < product
        if carry:
            total = total + carry()
        words = [high(total)] if "HI" in i.modifiers else [low(total), high(total)]
        return words, [carried]

    return run_wide


def shift_add(lanes: Lanes, i: Instruction) -> Body:
    """LEA: a shifted to the left, plus b; ``.HI`` has the high word of the shifted c:a."""
    given = lanes.sources(i)
    numbers = [o for o in given if not o.is_predicate]
    carries = [lanes.predicate(o) for o in given if o.is_predicate]
    is_high, extends = "HI" in i.modifiers, "SX32" in i.modifiers
    a, b, shift = lanes.word(numbers[0]), lanes.carrying(numbers[1]), lanes.word(numbers[-1])
    upper = lanes.word(numbers[2]) if is_high and not extends else None

    def run(_: Array) -> Results:
        value: Array = a().astype(np.uint64)
        if extends:
            value = a().view(np.int32).astype(np.int64).view(np.uint64)
        elif upper is not None:
            value = value | upper().astype(np.uint64) << _32
        value = value << (shift() & 31)
        total = (high(value) if is_high else low(value)).astype(np.uint64) + b()
        for carry in carries if "X" in i.modifiers else ():
            total = total + carry()
        return [low(total)], [total > _LOW]

    return run


def shift(lanes: Lanes, i: Instruction) -> Body:
    """SHF: a word of the double word c:a, shifted."""
    first, amount, third = lanes.sources(i)
    a, by, c = lanes.word(first), lanes.word(amount), lanes.word(third)
    to_left, is_high = "L" in i.modifiers, "HI" in i.modifiers
    most = np.uint32(63 if {"U64", "S64"} & i.modifiers else 32)
    kind = np.int64 if {"S32", "S64"} & i.modifiers else np.uint64

    def run(_: Array) -> Results:
        many = np.minimum(by(), most).astype(np.uint64)
        if "W" in i.modifiers:
            many = (by() & 31).astype(np.uint64)
        value = a().astype(np.uint64) | c().astype(np.uint64) << _32
        right = (value.view(kind) >> many.view(kind)).view(np.uint64)
        shifted = value << many if to_left else right
        return one(high(shifted) if is_high else low(shifted))

    return run


def logic(lanes: Lanes, i: Instruction) -> Body:
    """LOP3: any function of three bits, by a table of eight."""
    given = lanes.sources(i)
    *sources, _ = (lanes.word(o) for o in given if not o.is_predicate)
    table = int([o for o in given if o.kind == "number"][-1].text, 16)
    joined = lanes.predicate(given[-1])

    def run(_: Array) -> Results:
        a, b, c = (s() for s in sources)
        found = np.zeros_like(a)
        for case in range(8):
            if table >> case & 1:
                x, y, z = a, b, c
                found |= (x if case & 4 else ~x) & (y if case & 2 else ~y) & (z if case & 1 else ~z)
        return [found], [(found != 0) | joined()]

    return run


def predicate_logic(lanes: Lanes, i: Instruction) -> Body:
    given = lanes.sources(i)
    sources = [lanes.predicate(o) for o in given if o.is_predicate]
    tables = [int(o.text, 16) for o in given if o.kind == "number"]

    def run(_: Array) -> Results:
        a, b, c = (s().astype(np.uint8) for s in sources)
        case = a * 4 + b * 2 + c
        return [], [(np.uint8(table) >> case & 1).astype(bool) for table in tables]

    return run


def permute(lanes: Lanes, i: Instruction) -> Body:
    """PRMT: four of the eight bytes of b:a, or their signs."""
    first, chosen, second = (lanes.word(o) for o in lanes.sources(i))

    def run(_: Array) -> Results:
        both = first().astype(np.uint64) | second().astype(np.uint64) << _32
        found = np.zeros_like(both)
        for byte in range(4):
            which = (chosen() >> (4 * byte)).astype(np.uint64)
            taken = both >> (8 * (which & 7)) & 0xFF
            sign = np.where(taken & 0x80, np.uint64(0xFF), np.uint64(0))
            found |= np.where(which & 8, sign, taken) << np.uint64(8 * byte)
        return one(low(found))

    return run


def to_float(lanes: Lanes, i: Instruction) -> Body:
    """I2F of 32 or 64 bits."""
    given = lanes.sources(i)[0]
    if "U64" in i.modifiers:
        wide = lanes.wide(given)
        return lambda _: one(rounded(wide().astype(np.longdouble), i.modifiers))
    source = lanes.word(given)
    kind = np.uint32 if "U32" in i.modifiers else np.int32
    return lambda _: one(rounded(source().view(kind).astype(np.float64), i.modifiers))


def to_integer(lanes: Lanes, i: Instruction) -> Body:
    """F2I, towards zero."""
    source = lanes.double(lanes.sources(i)[0])
    is_wide = "U64" in i.modifiers
    top = 2.0**64 - 2.0**11 if is_wide else 2.0**32 - 1

    def run(_: Array) -> Results:
        if "U32" in i.modifiers or is_wide:
            found = np.nan_to_num(np.clip(np.trunc(source()), 0, top)).astype(np.uint64)
        else:
            clipped = np.clip(np.trunc(source()), -(2.0**31), 2.0**31 - 1)
            found = np.nan_to_num(clipped).astype(np.int64).view(np.uint64)
        return [low(found), high(found)] if is_wide else [low(found)], []

    return run


def check_division(lanes: Lanes, i: Instruction) -> Body:
    """FCHK: whether a quotient needs the slow path, as its exponents are extreme. What the hardware
    does for a dividend of 0 is not published; here 0 takes the fast path."""
    first, second = (lanes.double(o) for o in lanes.sources(i))

    def run(_: Array) -> Results:
        a, b = np.abs(first()), np.abs(second())
        usual = (b >= 2.0**-126) & (b <= 2.0**126) & (a < np.inf)
        quotient = np.where(usual, a / np.where(usual, b, 1), 1)
        usual &= (a == 0) | ((a >= 2.0**-102) & (quotient >= 2.0**-126) & (quotient <= 2.0**127))
        return [], [~usual]

    return run


def half_constants(lanes: Lanes, i: Instruction) -> Body:
    """HFMA2 where it only makes a constant, of two halves."""
    halves = [float(o.text) for o in lanes.sources(i)[-2:]]
    if [o.number for o in lanes.sources(i)[:2]] != [255, 255]:
        raise NotImplementedError(f"arithmetic of halves: {i.text}")
    upper, lower = (int(np.float16(h).view(np.uint16)) for h in halves)
    word = np.full(lanes.threads, upper << 16 | lower, np.uint32)
    return lambda _: one(word)


def half_to_float(lanes: Lanes, i: Instruction) -> Body:
    """HADD2.F32 where it only widens one half."""
    zero, half = lanes.sources(i)
    if zero.number != 255 or "F32" not in i.modifiers:
        raise NotImplementedError(f"arithmetic of halves: {i.text}")
    word, by = lanes.word(half), 16 if half.text.endswith("H1_H1") else 0

    def run(_: Array) -> Results:
        value = (word() >> by).astype(np.uint16).view(np.float16).astype(np.float32)
        return one(value.view(np.uint32))

    return run


def halves(lanes: Lanes, i: Instruction) -> Body:
    """F2F and F2FP: one float or two, rounded to the nearest float16 or bfloat16, in one word."""
    sources = [lanes.word(o) for o in lanes.sources(i)]
    if i.modifiers - {"PACK_AB"} not in ({"F16", "F32"}, {"BF16", "F32"}):
        raise NotImplementedError(f"a conversion of other types: {i.text}")

    def half(word: Array) -> Array:
        value = word.view(np.float32)
        if "F16" in i.modifiers:
            found = value.astype(np.float16).view(np.uint16).astype(np.uint32)
        else:
            tie_to_even = np.uint32(0x7FFF) + (word >> np.uint32(16) & np.uint32(1))
            found = (word + tie_to_even) >> np.uint32(16)
        return np.where(np.isnan(value), np.uint32(0x7FFF), found)

    def run(_: Array) -> Results:
        *upper, lower = (half(source()) for source in sources)
        return one(lower | upper[0] << np.uint32(16) if upper else lower)

    return run


def absolute(lanes: Lanes, i: Instruction) -> Body:
    word = lanes.word(lanes.sources(i)[0])
    return lambda _: one(np.abs(word().view(np.int32)).view(np.uint32))


def extend(lanes: Lanes, i: Instruction) -> Body:
    """SGXT: the lower bits of a word, extended with zeros or by their sign."""
    word, bits = (lanes.word(o) for o in lanes.sources(i))
    kind = np.uint64 if "U32" in i.modifiers else np.int64

    def run(_: Array) -> Results:
        by = (np.uint64(64) - bits()).astype(np.uint64)
        raised: Array = word().astype(np.uint64) << by
        return one(low((raised.view(kind) >> by.view(kind)).view(np.uint64)))

    return run
