"""How each part of the state of an NTM begins."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ntm_kernels import allocation
from ntm_kernels.nn.parts import for_batch, outlasting
from ntm_kernels.reference import arithmetic_dtype


@dataclass(frozen=True, eq=False)
class InitialState:
    """How each part of the state begins.

    Attributes:
        memory: a constant, a finite tensor ``[N, M]``, or ``"learned"``.
        weightings: ``"one_hot"`` on location 0, ``"uniform"``, ``"zero"``, or ``"learned"``
            (softmax of learned logits).
        read_vectors: a constant or ``"learned"``.
        controller: a constant or ``"learned"``; a user's own controller starts as its
            ``initial_state`` says.

    Constant memory, or a tensor of equal rows, with uniform or zero weightings is refused: such an
    NTM never tells two rows apart, since every row then sees the same reads and writes for ever.

    Two InitialStates are equal if all parts are equal. Tensors are compared by dtype, shape and
    values, not by device.

    >>> InitialState(memory="learned", weightings="uniform").memory
    'learned'
    """

    memory: float | Tensor | Literal["learned"] = 1e-6
    weightings: Literal["one_hot", "uniform", "zero", "learned"] = "one_hot"
    read_vectors: float | Literal["learned"] = "learned"
    controller: float | Literal["learned"] = "learned"

    def __post_init__(self) -> None:
        if self.weightings not in ("one_hot", "uniform", "zero", "learned"):
            raise ValueError(
                "InitialState: weightings must be 'one_hot', 'uniform', 'zero' or 'learned', "
                f"got {self.weightings!r}"
            )
        for name in ("memory", "read_vectors", "controller"):
            # A frozen dataclass has no other way to keep a number in one form.
            object.__setattr__(self, name, _part(name, getattr(self, name)))
        if self.weightings in ("uniform", "zero") and _rows_alike(self.memory):
            rows = "memory of equal rows" if isinstance(self.memory, Tensor) else "constant memory"
            raise ValueError(
                f"InitialState: {rows} with {self.weightings} weightings never tells two "
                "rows apart; use weightings='one_hot' or 'learned', or another memory"
            )

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(
            _same(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)
        )

    def __hash__(self) -> int:
        values = (getattr(self, field.name) for field in fields(self))
        return hash(
            tuple(
                (value.dtype, value.shape) if isinstance(value, Tensor) else value
                for value in values
            )
        )


def _part(name: str, value: Any) -> Any:
    """A part of the state but the weightings: a number as a ``float``, ``"learned"``, or for the
    memory a tensor."""
    if isinstance(value, str) and value == "learned":
        return value
    if name == "memory" and _is_real(value):
        values = _values(value)
        if values is not None and not values.isfinite().all():
            raise ValueError("InitialState: memory must be finite, got a tensor with NaN or inf")
        return value
    number = _as_float(value)
    if math.isfinite(number):
        return number
    allowed = "a finite number, a dense real tensor" if name == "memory" else "a finite number"
    raise ValueError(f"InitialState: {name} must be {allowed} or 'learned', got {value!r}")


def _as_float(value: Any) -> float:
    """A real number as a ``float``, NaN for what is none or is too large."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _rows_alike(memory: Any) -> bool:
    """Whether all rows of an initial memory are known to be equal, and there may be several."""
    if not isinstance(memory, Tensor):
        return isinstance(memory, float)
    rows = _values(memory)
    if rows is None or rows.dim() != 2 or rows.shape[0] < 2:
        return False
    return bool((rows == rows[0]).all())


def _is_real(value: Any) -> bool:
    """Whether ``value`` is a dense tensor of real numbers."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_nested
        and not value.dtype.is_complex
    )


def _values(tensor: Tensor) -> Tensor | None:
    """The values of a tensor, on the CPU and in float64, in which every dtype can be compared.

    ``None`` for a tensor without values: one on the device meta, or a fake one.
    """
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
        return None
    return tensor.detach().cpu().double()


def _same(one: Any, other: Any) -> bool:
    """Whether two parts of an ``InitialState`` are equal."""
    if one is other:
        return True
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        # A tensor equals no number: == would compare it by element.
        return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other
    if one.dtype != other.dtype or one.shape != other.shape or one.is_meta or other.is_meta:
        return False
    return torch.equal(one.cpu(), other.cpu())


class StartingPoint(nn.Module):
    """Initial memory, weightings and read vectors of a batch; those learned are its parameters."""

    given_memory: Tensor | None

    def __init__(
        self,
        initial: InitialState,
        memory_size: int,
        word_size: int,
        num_read_heads: int,
        num_heads: int,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.word_size, self.num_heads = word_size, num_heads
        self.memory_shape = (memory_size, word_size)
        self.weightings_shape = (num_heads, memory_size)
        self.reads_shape = (num_read_heads, word_size)
        self.constant_memory = 0.0 if isinstance(initial.memory, (str, Tensor)) else initial.memory
        self.constant_reads = 0.0 if initial.read_vectors == "learned" else initial.read_vectors
        self.kind_of_weightings = initial.weightings
        # A buffer goes where the module goes and loses its values on the device meta.
        self.memory_at_construction: Tensor | None = None
        self.register_parameter("memory", None)
        self.register_buffer("given_memory", None)
        self.register_parameter("weighting_logits", None)
        self.register_parameter("read_vectors", None)
        if isinstance(initial.memory, Tensor):
            if initial.memory.shape != self.memory_shape:
                raise ValueError(
                    f"InitialState: memory must be [N, M] = {list(self.memory_shape)}, "
                    f"got {list(initial.memory.shape)}"
                )
            kept = initial.memory.detach().clone()
            self.memory_at_construction = kept if kept.is_meta else kept.cpu()
            self.given_memory = torch.empty(self.memory_shape, **factory)
        elif initial.memory == "learned":
            self.memory = self._learned("memory [N, M]", self.memory_shape, factory)
        if initial.weightings == "learned":
            self.weighting_logits = self._learned(
                "weightings [H, N]", self.weightings_shape, factory
            )
        if initial.read_vectors == "learned":
            self.read_vectors = self._learned("read vectors [R, M]", self.reads_shape, factory)
        self.reset_parameters()

    @property
    def fixed_by(self) -> str | None:
        """Why the number of locations is fixed; ``None`` if the model runs with any number."""
        if self.memory is not None:
            return "the initial memory is learned"
        if self.given_memory is not None:
            return "the initial memory is a given tensor"
        return None if self.weighting_logits is None else "the initial weightings are learned"

    def _learned(self, what: str, shape: tuple[int, ...], factory: dict[str, Any]) -> nn.Parameter:
        mend = "make memory_size or word_size smaller, or start from a constant"
        return allocation.parameter(f"the learned initial {what}", shape, mend, **factory)

    def reset_parameters(self) -> None:
        """Learned memory U(±1/√(N + M)), weighting logits N(0, 1), read vectors N(0, 0.01²); a
        given memory is what it was at construction."""
        if self.given_memory is not None and not self.given_memory.is_meta:
            self._restore_memory(self.given_memory)
        if self.memory is not None:
            bound = sum(self.memory_shape) ** -0.5
            nn.init.uniform_(self.memory, -bound, bound)
        if self.weighting_logits is not None:
            nn.init.normal_(self.weighting_logits)
        if self.read_vectors is not None:
            nn.init.normal_(self.read_vectors, std=0.01)

    def _restore_memory(self, memory: Tensor) -> None:
        kept = self.memory_at_construction
        if kept is None or kept.is_meta:
            raise RuntimeError(
                "InitialState: memory was given as a tensor on the device meta, which has no "
                "values to start from; give one on a real device, or load a state_dict"
            )
        memory.copy_(kept)

    def extra_repr(self) -> str:
        memory = "given" if self.given_memory is not None else self.constant_memory
        parts = {
            "memory": "learned" if self.memory is not None else memory,
            "weightings": self.kind_of_weightings,
            "read_vectors": "learned" if self.read_vectors is not None else self.constant_reads,
        }
        return ", ".join(f"{name}={value}" for name, value in parts.items())

    def forward(
        self, batch: int, memory_size: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Memory of ``memory_size`` locations, weightings and read vectors of ``batch`` sequences
        on ``device``, in the arithmetic dtype of ``dtype``."""
        dtype = arithmetic_dtype(dtype)

        def part(name: str, value: Tensor | float, shape: tuple[int, ...]) -> Tensor:
            if isinstance(value, Tensor):
                return for_batch(value.to(dtype), batch)
            return _full(name, (batch, *shape), value, dtype, device)

        memory = self.memory if self.given_memory is None else self.given_memory
        reads = self.read_vectors
        start = (
            part(
                "memory [B, N, M]",
                self.constant_memory if memory is None else memory,
                (memory_size, self.word_size),
            ),
            self._weightings(batch, memory_size, dtype, device),
            part(
                "read_vectors [B, R, M]",
                self.constant_reads if reads is None else reads,
                self.reads_shape,
            ),
        )
        return outlasting(self, start)

    def _weightings(
        self, batch: int, memory_size: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        kind = self.kind_of_weightings
        if kind == "learned":
            return for_batch(torch.softmax(self.weighting_logits.to(dtype), -1), batch)
        value = 1 / memory_size if kind == "uniform" else 0.0
        shape = (batch, self.num_heads, memory_size)
        weightings = _full("weightings [B, H, N]", shape, value, dtype, device)
        if kind == "one_hot":
            weightings.select(-1, 0).fill_(1)
        return weightings


def _full(
    name: str, shape: tuple[int, ...], value: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A constant part of the state of a batch."""
    try:
        return torch.full(shape, value, dtype=dtype, device=device)
    except (RuntimeError, TypeError) as error:
        what = allocation.tensor(f"state.{name}", shape, dtype)
        mend = "make the batch, memory_size, word_size or the number of heads smaller"
        allocation.explain(error, "initial_state", what, mend)
        raise
