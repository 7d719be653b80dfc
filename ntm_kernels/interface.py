"""The interface vector: how the controller's raw output is cut into the heads' parameters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class HeadParameters(NamedTuple):
    """Parameters of all heads, read heads before write heads; raw or activated.

    With any leading dimensions ``...`` (usually ``B`` or ``T, B``):
    key ``[..., H, M]``, strength, gate and sharpening ``[..., H]``, shift ``[..., H, S]``,
    erase and add ``[..., W, M]``.
    """

    key: Tensor
    strength: Tensor
    gate: Tensor
    shift: Tensor
    sharpening: Tensor
    erase: Tensor
    add: Tensor


class InterfaceLayout(NamedTuple):
    """Positions of the parameters in an interface vector, grouped by kind.

    Key ``[H·M]``, strength ``[H]``, gate ``[H]``, shift ``[H·S]``, sharpening ``[H]``,
    erase ``[W·M]``, add ``[W·M]``; inside each group the read heads come first.

    >>> layout = InterfaceLayout(word_size=20, num_read_heads=1, num_write_heads=1, shift_range=1)
    >>> layout.size, layout.num_heads, layout.num_taps
    (92, 2, 3)
    """

    word_size: int
    num_read_heads: int
    num_write_heads: int
    shift_range: int

    @property
    def num_heads(self) -> int:
        return self.num_read_heads + self.num_write_heads

    @property
    def num_taps(self) -> int:
        return 2 * self.shift_range + 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Elements of each group, in order."""
        heads, words = self.num_heads, self.num_write_heads * self.word_size
        return (heads * self.word_size, heads, heads, heads * self.num_taps, heads, words, words)

    @property
    def size(self) -> int:
        """Length of the interface vector."""
        return sum(self.widths)

    def split(self, interface: Tensor) -> HeadParameters:
        """Views of the groups of ``interface [..., size]``, nothing activated."""
        lead = interface.shape[:-1]
        key, strength, gate, shift, sharpening, erase, add = interface.split(self.widths, -1)
        return HeadParameters(
            key.view(*lead, self.num_heads, self.word_size),
            strength,
            gate,
            shift.view(*lead, self.num_heads, self.num_taps),
            sharpening,
            erase.view(*lead, self.num_write_heads, self.word_size),
            add.view(*lead, self.num_write_heads, self.word_size),
        )

    def join(self, heads: HeadParameters) -> Tensor:
        """The groups in one tensor ``[..., size]``: the inverse of ``split``."""
        lead = heads.strength.dim() - 1
        return torch.cat([part.flatten(lead) for part in heads], -1)
