"""What a backend is: forward and backward of each op, and what it can serve."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ntm_kernels.interface import InterfaceLayout

OPS = ("address", "read", "write", "step", "sequence")


class Sizes(NamedTuple):
    """Every size of a call; those that an op does not know are 0."""

    batch: int
    memory_size: int
    word_size: int
    num_read_heads: int
    num_write_heads: int = 0
    num_taps: int = 0
    time: int = 0
    hidden_size: int = 0
    checkpoint_every: int = 0

    @classmethod
    def of(cls, memory: Tensor, num_read_heads: int, **others: int) -> Sizes:
        """Sizes of a call on ``memory [B, N, M]``."""
        batch, memory_size, word_size = memory.shape
        return cls(batch, memory_size, word_size, num_read_heads, **others)

    @property
    def num_heads(self) -> int:
        return self.num_read_heads + self.num_write_heads

    @property
    def shift_range(self) -> int:
        return self.num_taps // 2

    @property
    def layout(self) -> InterfaceLayout:
        return InterfaceLayout(
            self.word_size, self.num_read_heads, self.num_write_heads, self.shift_range
        )

    @property
    def segment(self) -> int:
        """Steps from one checkpoint to the next: ``checkpoint_every``, at most all there are."""
        return min(self.checkpoint_every, max(self.time, 1))

    @property
    def num_checkpoints(self) -> int:
        """Memories kept over ``time`` steps: the first of every ``checkpoint_every``."""
        return (self.time + self.checkpoint_every - 1) // self.checkpoint_every


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot serve the call."""


class Problem(NamedTuple):
    """What a backend is asked to serve.

    ``device`` is the type of the tensors' device, ``device_index`` which one of that type.
    ``memory_dtype`` is that of the memory, ``parameter_dtype`` that of the head parameters,
    interface or controller weights (for ``read``, of the weightings).
    """

    op: str
    device: str
    memory_dtype: torch.dtype
    parameter_dtype: torch.dtype
    controller: str
    sizes: Sizes
    device_index: int = 0


class SequenceArguments(NamedTuple):
    """Tensor arguments of ``sequence``.

    With an ``input_weight`` the input is still to be projected; only a backend that says it
    ``projects_input`` is given one.
    """

    input: Tensor  # [T, B, G] projected, or [T, B, I]
    recurrent_weight: Tensor  # [G, R*M + C] for an LSTM, [C, R*M] for a feed-forward controller
    interface_weight: Tensor  # [P, C]
    interface_bias: Tensor  # [P]
    memory: Tensor  # [B, N, M]
    weightings: Tensor  # [B, H, N]
    read_vectors: Tensor  # [B, R, M]
    hidden: Tensor | None  # [B, C]
    cell: Tensor | None  # [B, C]
    lengths: Tensor | None  # [B] int64
    input_weight: Tensor | None = None  # [G, I]
    input_bias: Tensor | None = None  # [G]


class SequenceOutputs(NamedTuple):
    """Tensor results of ``sequence``; what is unused is empty, ``[0]``."""

    hidden: Tensor  # [T, B, C]
    read_vectors: Tensor  # [T, B, R, M]
    memory: Tensor  # [B, N, M]
    weightings: Tensor  # [B, H, N]
    final_read_vectors: Tensor  # [B, R, M]
    final_hidden: Tensor  # [B, C], LSTM only
    final_cell: Tensor  # [B, C], LSTM only
    trace_weightings: Tensor  # [T, B, H, N], traced only
    trace_interface: Tensor  # [T, B, P] activated, traced only


class Backend(ABC):
    """Forward and backward of every op.

    A forward takes the op's tensors as the user gave them (any strides, any dtypes that
    ``unsupported`` let pass), and returns new contiguous tensors, never views of its arguments.
    With ``save_for_backward`` it also returns what its own backward needs, of the shapes that
    ``saved_shapes`` announces and in the arithmetic dtype. A backward takes the gradients of the
    outputs (``None`` where there is none), the forward's arguments, the outputs it asks for and the
    saved tensors, and returns one gradient per differentiable argument, in that argument's dtype.

    Attributes:
        name: by which it is asked for.
        projects_input: ``sequence`` takes the input before its projection too.
        differentiates: forwards that may be called with autograd recording, and then record their
            own derivative; ``torch.ops.ntm`` records that of the others.
    """

    name: str
    projects_input = False
    differentiates: frozenset[str] = frozenset()

    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine at all; ``None`` if it can."""
        return None

    def missed(self, device: str, why_not: str) -> None:  # noqa: B027 (most have nothing to say)
        """The automatic choice for a call on ``device`` passed over this backend, since it is not
        available: to warn, or to raise where it was asked for."""

    def unsupported(self, problem: Problem) -> str | None:
        """Why this backend does not serve ``problem``; ``None`` if it does."""
        return None

    def describe(self) -> str:
        """What it is and where it runs, in a few words."""
        return ""

    def how(self, problem: Problem) -> str:
        """Which of its ways it serves ``problem``, where it has several."""
        return ""

    def saved_shapes(self, op: str, sizes: Sizes, controller: str = "") -> list[tuple[int, ...]]:
        """Shapes of the saved tensors of ``op``."""
        return []

    @abstractmethod
    def address(
        self,
        memory: Tensor,
        key: Tensor,
        strength: Tensor,
        gate: Tensor,
        shift: Tensor,
        sharpening: Tensor,
        previous_weightings: Tensor,
        save_for_backward: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """Weights and saved tensors."""

    @abstractmethod
    def address_backward(
        self,
        grad_weightings: Tensor,
        memory: Tensor,
        key: Tensor,
        strength: Tensor,
        gate: Tensor,
        shift: Tensor,
        sharpening: Tensor,
        previous_weightings: Tensor,
        weightings: Tensor,
        saved: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Gradients of the seven arguments of ``address``."""

    @abstractmethod
    def read(self, memory: Tensor, weightings: Tensor) -> Tensor:
        """Read vectors."""

    @abstractmethod
    def read_backward(
        self, grad_read_vectors: Tensor, memory: Tensor, weightings: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients of memory and weightings."""

    @abstractmethod
    def write(self, memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor) -> Tensor:
        """The memory after the write."""

    @abstractmethod
    def write_backward(
        self, grad_memory: Tensor, memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients of memory, weightings, erase and add."""

    @abstractmethod
    def step(
        self,
        memory: Tensor,
        interface: Tensor,
        previous_weightings: Tensor,
        sizes: Sizes,
        save_for_backward: bool,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Read vectors, memory, weightings and saved tensors."""

    @abstractmethod
    def step_backward(
        self,
        grad_read_vectors: Tensor | None,
        grad_memory: Tensor | None,
        grad_weightings: Tensor | None,
        memory: Tensor,
        interface: Tensor,
        previous_weightings: Tensor,
        weightings: Tensor,
        saved: list[Tensor],
        sizes: Sizes,
    ) -> tuple[Tensor, ...]:
        """Gradients of memory, interface and previous weightings."""

    @abstractmethod
    def sequence(
        self,
        arguments: SequenceArguments,
        sizes: Sizes,
        controller: str,
        save_for_backward: bool,
        return_trace: bool,
    ) -> tuple[SequenceOutputs, list[Tensor]]:
        """All outputs and saved tensors."""

    @abstractmethod
    def sequence_backward(
        self,
        grads: list[Tensor | None],
        arguments: SequenceArguments,
        hidden: Tensor,
        read_vectors: Tensor,
        saved: list[Tensor],
        sizes: Sizes,
        controller: str,
    ) -> tuple[Tensor, ...]:
        """Gradients of the first nine arguments, from those of the first seven outputs.

        Where the feed-forward controller has no ``hidden`` and ``cell``, their gradients are empty.
        The first is that of the projected input; a backend that projected it adds those of
        ``input_weight`` and ``input_bias``.
        """
