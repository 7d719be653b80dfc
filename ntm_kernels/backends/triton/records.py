"""Records that the kernels take: of tensors, and of the sizes that they are compiled for."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, TypeVar

from torch import Tensor

from ntm_kernels.ops import Field, Sizes, record

Record = TypeVar("Record", bound=NamedTuple)


def contiguous(record: Record) -> Record:
    """Every tensor of a record contiguous."""
    parts: map[Any] = map(_contiguous, record)
    return type(record)(*parts)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def only(record: Record, letters: str) -> Record:
    """A record of sizes with those of ``letters`` alone; the others are 0."""
    others = (name for name in record._fields if name not in letters and name != "dtype")
    return record._replace(**dict.fromkeys(others, 0))


class Heads(NamedTuple):
    """The parameters of all heads, or their gradients; ``None`` where a call has none.

    On the host these are tensors: raw parameters are views into interface vectors ``[B, P]``,
    activated ones tensors of their own, and gradients are views into parts ``[B, J, D]``, one part
    for each of the J programs of a sequence. Kernels have pointers under the same names.
    """

    key: Tensor | None = None
    strength: Tensor | None = None
    gate: Tensor | None = None
    shift: Tensor | None = None
    sharpening: Tensor | None = None
    erase: Tensor | None = None
    add: Tensor | None = None

    @property
    def width(self) -> int:
        """D of gradients, which lie side by side."""
        return sum(part.shape[2:].numel() for part in self if part is not None)


@record
class Chain(NamedTuple):
    """What addressing in tiles hands from launch to launch, and to its backward.

    J programs work on a sequence, each on a part of the locations.
    """

    scores: Annotated[Tensor, Field("B H N")]  # β K
    tops: Annotated[Tensor, Field("B H J")]  # largest score of a part
    sums: Annotated[Tensor, Field("B H J")]  # its sum of exponentials
    shifted: Annotated[Tensor, Field("B H N")]  # w̃
    peaks: Annotated[Tensor, Field("B H J")]  # largest w̃ of a part
    powers: Annotated[Tensor, Field("B H J")]  # its sum of powers


class Shape(NamedTuple):
    """The sizes that a kernel is compiled for, under the letters of ``docs/glossary.md``.

    A size that the kernel does not use is 0, so that one compilation serves all its values. Each
    size is a field, also one that follows from others: Triton finds a compiled kernel on disk by
    the fields, and would not notice that a property computes something else.
    """

    R: int = 0
    W: int = 0
    H: int = 0
    N: int = 0
    M: int = 0
    S: int = 0
    P: int = 0
    C: int = 0
    G: int = 0
    K: int = 0
    J: int = 0
    L: int = 0
    LSTM: bool = False
    D: int = 0  # elements of the gradients of all parameters, in one part of them

    @classmethod
    def of(cls, sizes: Sizes, letters: str) -> Shape:
        """The sizes named by ``letters``, such as ``"H N M"``."""
        named: dict[str, Any] = dict(zip(letters.split(), sizes.shape(letters), strict=True))
        return cls(**named)


class Block(NamedTuple):
    """How much of each size a program holds at once, a power of two or 0, and in which dtype.

    H, N, M and S are the sizes of ``Shape``, rounded up; N is less where the memory is in tiles.
    """

    dtype: Any  # Triton's, of all arithmetic
    H: int = 0
    N: int = 0
    M: int = 0
    S: int = 0
    C: int = 0  # hidden units, of an LSTM with all four gates
    K: int = 0  # columns, or rows, of a matrix
    P: int = 0  # elements of the interface vector
    J: int = 0  # parts that programs of one sequence leave
    D: int = 0  # elements of a part
