"""An op is declared once, as records of its tensors. All else follows from the records.

A record is a ``NamedTuple`` whose fields say what they hold::

    @record
    class ReadInputs(NamedTuple):
        memory: Annotated[Tensor, Field("B N M", "memory")]
        weightings: Annotated[Tensor, Field("B H N", "weightings")]

An op has a record of inputs, one of outputs and one of options (plain numbers); each backend adds
a record of the tensors that its backward needs. From these follow the schemas of the op and of its
backward (``schema``, ``backward_schema``), the checks of arguments (``check_record``), the fake
kernels (``empty``), the way of records through torch's flat lists of arguments (``unpack``,
``choose``) and the C++ structs (``scripts/generate_records.py``). Records travel whole: nothing
outside this file knows at which position a tensor stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar, get_type_hints

import torch
from torch import Tensor

from ntm_kernels.checks import Arguments
from ntm_kernels.ops.sizes import NO_MORE, Sizes
from ntm_kernels.reference import arithmetic_dtype

Inputs = TypeVar("Inputs", bound=NamedTuple)
Outputs = TypeVar("Outputs", bound=NamedTuple)
Options = TypeVar("Options", bound=NamedTuple)
Record = TypeVar("Record", bound=NamedTuple)


@dataclass(frozen=True)
class Field:
    """What a field of a record holds.

    Attributes:
        dims: the letters of its shape, as in ``Sizes``.
        kind: fields of one kind have one dtype. ``"arithmetic"`` is float32, or float64 where the
            memory is float64; ``"steps"``, the kind of ``lengths`` alone, is int64 inside the op;
            ``"resets"`` is bool.
        when: the property of ``Sizes`` that says whether the tensor is there; ``""``: always.
        kept: an output that the backward reads.
        differentiable: whether it takes part in differentiation.
        argument: what a caller knows it as, where that is not the name of the field.
    """

    dims: str
    kind: str = "arithmetic"
    when: str = ""
    kept: bool = False
    differentiable: bool = True
    argument: str = dataclasses.field(default="", repr=False)

    def present(self, sizes: Sizes) -> bool:
        return not self.when or bool(getattr(sizes, self.when))


_fields: dict[type[NamedTuple], dict[str, Field]] = {}
_argument_names: dict[type[NamedTuple], tuple[str, ...]] = {}


def record(declared: type[Record]) -> type[Record]:
    """Decorates a record: its annotations are read once."""
    hints = get_type_hints(declared, include_extras=True)
    found: dict[str, Field] = {name: hint.__metadata__[0] for name, hint in hints.items()}
    _fields[declared] = found
    _argument_names[declared] = tuple(one.argument or name for name, one in found.items())
    return declared


def fields(declared: type[NamedTuple]) -> dict[str, Field]:
    """The fields of a record by name, in order."""
    return _fields[declared]


def names(declared: type[NamedTuple]) -> tuple[str, ...]:
    """The names of a record's fields, in order."""
    return declared._fields


def argument_names(declared: type[NamedTuple]) -> tuple[str, ...]:
    """What a caller knows the fields of a record as, in order."""
    return _argument_names[declared]


class NoOptions(NamedTuple):
    """The options of an op that has none."""


@record
class NothingSaved(NamedTuple):
    """What a backend saves whose backward needs the inputs and kept outputs alone."""


def check_record(given: Arguments, inputs: NamedTuple, options: Any = None) -> None:
    """Check every tensor of a record against its field, and their dtypes against each other."""
    kinds: dict[str, list[str]] = {}
    for (name, field), value in zip(fields(type(inputs)).items(), inputs, strict=True):
        if value is None and field.when:
            continue
        if field.kind == "steps":
            given.lengths(value, given.device)
        elif field.kind == "resets":
            given.resets(value, given.device)
        else:
            name = field.argument or name
            given.tensor(name, value, field.dims)
            kinds.setdefault(field.kind, []).append(name)
    given.dtypes(**{kind: tuple(members) for kind, members in kinds.items()})


@dataclass(frozen=True)
class Op(Generic[Inputs, Outputs, Options]):
    """One op of the package.

    Attributes:
        name: the name under ``torch.ops.ntm``.
        inputs, outputs, options: its records.
        sizes: the sizes of a call from its inputs and options.
        equations: the outputs as ``ntm_kernels.reference`` computes them.
        check: checks the arguments of a call. Beyond ``check_record`` an op fixes the sizes that
            follow from its options, and says which tensors go together.
    """

    name: str
    inputs: type[Inputs]
    outputs: type[Outputs]
    options: type[Options]
    sizes: Callable[[Inputs, Options], Sizes]
    equations: Callable[[Inputs, Sizes], Outputs]
    check: Callable[[Arguments, Inputs, Options], None] = check_record

    def schema(self, run: str = "bool? save_for_backward, str? backend") -> str:
        """``(inputs, options, save_for_backward, backend) -> (outputs, saved)``."""
        given = _arguments(*_tensors(self.inputs), *self._numbers(), run)
        results = _arguments(*(f"Tensor {name}" for name in fields(self.outputs)), "Tensor[] saved")
        return f"({given}) -> ({results})"

    def backward_schema(self, more: str = ", str backend") -> str:
        """``(grads, inputs, kept outputs, saved, options, wanted, backend) -> (grads)``."""
        given = _arguments(
            *(f"Tensor? grad_{name}" for name in self.differentiated_outputs),
            *_tensors(self.inputs),
            *(f"Tensor out_{name}" for name in self.kept_outputs),
            "Tensor[] saved",
            *self._numbers(),
            "bool[] wanted",
        )
        results = _arguments(*(f"Tensor d_{name}" for name in self.differentiated_inputs))
        return f"({given}{more}) -> ({results})"

    def _numbers(self) -> Iterator[str]:
        kinds = {int: "SymInt", int | None: "SymInt?", bool: "bool"}
        for name, kind in get_type_hints(self.options).items():
            yield f"{kinds[kind]} {name}"

    @property
    def differentiated_inputs(self) -> list[str]:
        return [name for name, field in fields(self.inputs).items() if field.differentiable]

    @property
    def differentiated_outputs(self) -> list[str]:
        return [name for name, field in fields(self.outputs).items() if field.differentiable]

    @property
    def kept_outputs(self) -> list[str]:
        return [name for name, field in fields(self.outputs).items() if field.kept]


def _tensors(declared: type[NamedTuple]) -> Iterator[str]:
    for name, field in fields(declared).items():
        yield f"Tensor{'?' if field.when else ''} {name}"


def _arguments(*parts: str) -> str:
    return ", ".join(parts)


def choose(declared: type[Record], chosen: Iterable[str], values: Iterable[Any]) -> Record:
    """A record with ``values`` under the names ``chosen``, in order, and ``None`` elsewhere."""
    given = dict(zip(chosen, values, strict=True))
    return declared._make(given.get(name) for name in names(declared))


def some(declared: type[Record], **tensors: Any) -> Record:
    """A record of some of its tensors; the others are ``None``."""
    return choose(declared, tensors, tensors.values())


def head(declared: type[Record], values: Sequence[Any]) -> tuple[Record, Any]:
    """The record that ``values`` begin with, and the one value after it."""
    *of_record, last = values
    return declared._make(of_record), last


def getter(attributes: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """A function that returns these attributes of an object as a tuple."""
    if len(attributes) > 1:
        return attrgetter(*attributes)
    return lambda thing: tuple(getattr(thing, name) for name in attributes)


def unpack(values: Iterable[Any], *shapes: type[NamedTuple] | int) -> Iterator[Any]:
    """Cut a flat list into records, or into lists of a given length; the rest comes last."""
    rest = iter(values)
    for shape in shapes:
        if isinstance(shape, int):
            yield list(islice(rest, shape))
        else:
            yield shape._make(islice(rest, len(names(shape))))
    yield list(rest)


def _shapes(
    declared: type[NamedTuple], sizes: Sizes, letters: Mapping[str, int]
) -> list[tuple[str, tuple[int, ...] | None]]:
    """The kind and shape of every field of a record; no shape where it is not there."""
    return [
        (field.kind, sizes.shape(field.dims, letters) if field.present(sizes) else None)
        for field in fields(declared).values()
    ]


@lru_cache(maxsize=1024)
def _known_shapes(
    declared: type[NamedTuple], sizes: Sizes, letters: tuple[tuple[str, int], ...]
) -> list[tuple[str, tuple[int, ...] | None]]:
    return _shapes(declared, sizes, dict(letters))


def empty(
    declared: type[Record],
    sizes: Sizes,
    like: Tensor,
    dtypes: Mapping[str, torch.dtype],
    letters: Mapping[str, int] = NO_MORE,
) -> Record:
    """New tensors for every field that is there, on the device of ``like``; else ``None``.

    ``dtypes`` has the dtype of each kind, ``letters`` sizes beyond those of ``Sizes``.
    """
    try:
        shapes = _known_shapes(declared, sizes, tuple(letters.items()))
    except TypeError:  # the sizes of torch.compile have no hash
        shapes = _shapes(declared, sizes, letters)
    arithmetic = dtypes["arithmetic"]
    return declared._make(
        None if shape is None else like.new_empty(shape, dtype=dtypes.get(kind, arithmetic))
        for kind, shape in shapes
    )


def those_present(declared: Record, sizes: Sizes) -> Record:
    """``None`` for the fields that are not there, which ops take and return as empty tensors."""
    parts = zip(fields(type(declared)).values(), declared, strict=True)
    return declared._make(part if field.present(sizes) else None for field, part in parts)


def options_of(op: Op[Any, Any, Options], sizes: Sizes) -> Options:
    """The options of a call, from its sizes."""
    return op.options._make(getattr(sizes, name) for name in names(op.options))


def leading(inputs: NamedTuple) -> Tensor:
    """The input that decides on device and arithmetic: the memory; the first of an op without."""
    parts = zip(fields(type(inputs)).values(), inputs, strict=True)
    memory = [tensor for field, tensor in parts if field.kind == "memory"]
    first: Tensor = next(iter(memory or inputs))
    return first


def dtypes_of(inputs: NamedTuple) -> dict[str, torch.dtype]:
    """The dtype of each kind of tensor, by a record of inputs."""
    kinds: dict[str, torch.dtype] = {}
    for field, tensor in zip(fields(type(inputs)).values(), inputs, strict=True):
        if tensor is not None:
            kinds.setdefault(field.kind, tensor.dtype)
    first = leading(inputs).dtype
    return {"arithmetic": arithmetic_dtype(first), "state": first, **kinds}
