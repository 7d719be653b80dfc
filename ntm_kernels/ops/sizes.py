"""Every size of a call, by name and by letter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from ntm_kernels.interface import InterfaceLayout

NO_MORE: Mapping[str, int] = MappingProxyType({})


class Sizes(NamedTuple):
    """The sizes of a call, and which of its optional tensors there are.

    A size that an op does not know is 0. ``letters`` has the sizes under the letters of the
    shapes, which are the same in every docstring and comment of the package.
    """

    batch: int
    memory_size: int
    word_size: int
    num_read_heads: int
    num_write_heads: int = 0
    num_taps: int = 0
    time: int = 0
    hidden_size: int = 0
    checkpoint_every: int | None = None  # as it was asked for; see segment
    input_size: int = 0
    num_layers: int = 1  # of the controller
    is_lstm: bool = False
    has_lengths: bool = False
    has_resets: bool = False
    projects_input: bool = False
    return_trace: bool = False
    bfloat16_products: bool = False  # see SequenceOptions

    @classmethod
    def of(cls, memory: Tensor, num_read_heads: int, **others: Any) -> Sizes:
        """Sizes of a call on ``memory [B, N, M]``."""
        batch, memory_size, word_size = memory.shape
        return cls(batch, memory_size, word_size, num_read_heads, **others)

    def of_step(self) -> Sizes:
        """The sizes of ``step`` for one time step of a sequence of these sizes."""
        return Sizes(
            self.batch,
            self.memory_size,
            self.word_size,
            self.num_read_heads,
            self.num_write_heads,
            self.num_taps,
        )

    def of_write(self) -> Sizes:
        """The sizes of ``write`` for the write heads of a step."""
        return Sizes(self.batch, self.memory_size, self.word_size, 0, self.num_write_heads)

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
    def gate_size(self) -> int:
        return 4 * self.hidden_size if self.is_lstm else self.hidden_size

    @property
    def recurrent_size(self) -> int:
        """What the recurrent weight is applied to: read vectors, and an LSTM's hidden state."""
        read_size = self.num_read_heads * self.word_size
        return read_size + self.hidden_size if self.is_lstm else read_size

    @property
    def num_upper_layers(self) -> int:
        """Layers of the controller above the first."""
        return self.num_layers - 1

    @property
    def is_deep(self) -> bool:
        return self.num_layers > 1

    @property
    def upper_size(self) -> int:
        """What an upper layer sees: the layer below, and an LSTM's own hidden state."""
        return 2 * self.hidden_size if self.is_lstm else self.hidden_size

    @property
    def segment(self) -> int:
        """Steps from one checkpoint to the next: ``checkpoint_every``, at most all there are; about
        √T where nothing was asked for."""
        every = self.checkpoint_every
        if every is None:
            return max(1, int(math.sqrt(self.time)))
        return min(every, max(self.time, 1))

    def decided(self) -> Sizes:
        """The sizes with ``checkpoint_every`` chosen, where the op has steps and it is open."""
        if self.checkpoint_every is not None or not self.time:
            return self
        return self._replace(checkpoint_every=self.segment)

    @property
    def num_checkpoints(self) -> int:
        """Memories kept over ``time`` steps: the first of every ``checkpoint_every``."""
        every = self.segment if self.checkpoint_every is None else self.checkpoint_every
        return (self.time + every - 1) // every

    @property
    def interface_size(self) -> int:
        return self.layout.size

    def shape(self, letters: str, more: Mapping[str, int] = NO_MORE) -> tuple[int, ...]:
        """The shape written as ``letters``, for example ``"B N M"``; ``more`` has further ones."""
        return tuple(
            more[letter] if letter in more else getattr(self, LETTERS[letter])
            for letter in letters.split()
        )


LETTERS = {
    "B": "batch",
    "N": "memory_size",
    "M": "word_size",
    "R": "num_read_heads",
    "W": "num_write_heads",
    "H": "num_heads",
    "S": "num_taps",
    "T": "time",
    "C": "hidden_size",
    "G": "gate_size",
    "K": "recurrent_size",
    "L": "num_layers",
    "U": "num_upper_layers",
    "J": "upper_size",
    "P": "interface_size",
    "I": "input_size",
    "Q": "num_checkpoints",
}
