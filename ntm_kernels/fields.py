"""Reads the annotations of a dataclass: the values that a field takes, and its help.

Checks of configurations and options of the command line both come from here, so that they accept
the same values and describe them in the same words.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["Field", "check_values", "describe"]

_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Field:
    """What one field of a dataclass takes.

    Attributes:
        name: the field's name.
        types: which of ``bool``, ``int``, ``float`` and ``str`` it takes.
        words: single values that it takes besides.
        optional: whether it takes None.
        required: whether it has no default value.
        help: the text in its annotation, or "".
    """

    name: str
    types: tuple[type, ...]
    words: tuple[Any, ...]
    optional: bool
    required: bool
    help: str

    @property
    def expected(self) -> str:
        """The values it takes, to follow "must be".

        >>> @dataclass
        ... class Example:
        ...     size: int | Literal["learned"] = 3
        >>> describe(Example)["size"].expected
        "a whole number or 'learned'"
        """
        if not self.types:
            return f"one of {', '.join(map(str, self.words))}"
        kinds = [_NAMES[kind] for kind in self.types]
        return " or ".join(kinds + [repr(word) for word in self.words])

    def accepts(self, value: object) -> bool:
        """Whether the field takes this value. A whole number is a number; True is none."""
        if any(type(value) is type(word) and value == word for word in self.words):
            return True
        if value is None:
            return self.optional
        if isinstance(value, bool):
            return bool in self.types
        kinds = (*self.types, int) if float in self.types else self.types
        return isinstance(value, kinds)

    def parse(self, text: str) -> Any:
        """The value that a word of the command line stands for.

        Raises:
            ValueError: it stands for none that the field takes.
        """
        for word in self.words:
            if text == str(word):
                return word
        for kind in (int, float, str):
            if kind in self.types:
                try:
                    return kind(text)
                except ValueError:
                    continue
        raise ValueError(f"must be {self.expected}, got {text!r}")


@cache
def describe(cls: type) -> Mapping[str, Field]:
    """The fields of a dataclass by name, those left out whose values are not numbers or text.

    None is described where an annotation cannot be evaluated.
    """
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError:
        # An annotation of a name that type checkers alone import says nothing here.
        hints = {field.name: field.type for field in fields(cls)}
    described = {}
    for field in fields(cls):
        hint, text = hints[field.name], ""
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            text = next((extra for extra in extras if isinstance(extra, str)), "")
        kinds, words = _alternatives(hint)
        if not all(kind in (bool, int, float, str, type(None)) for kind in kinds):
            continue
        described[field.name] = Field(
            name=field.name,
            types=tuple(kind for kind in kinds if kind is not type(None)),
            words=words,
            optional=type(None) in kinds,
            required=field.default is MISSING and field.default_factory is MISSING,
            help=text,
        )
    return described


def _alternatives(hint: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The types and the single values that a type hint allows."""
    origin = get_origin(hint)
    if origin is Literal:
        return (), get_args(hint)
    if origin in (Union, types.UnionType):
        parts = [_alternatives(member) for member in get_args(hint)]
        kinds = tuple(kind for some, _ in parts for kind in some)
        return kinds, tuple(word for _, some in parts for word in some)
    return (hint,), ()


def check_values(cls: type, values: Mapping[str, Any]) -> None:
    """Raises ValueError where a value is none that the field of that name takes."""
    for name, field in describe(cls).items():
        if name in values and not field.accepts(values[name]):
            raise ValueError(f"{name} must be {field.expected}, got {values[name]!r}")
