"""Read and write, each with its hand-derived backward."""

from __future__ import annotations

import torch
from torch import Tensor


def read(memory: Tensor, weightings: Tensor) -> Tensor:
    return torch.bmm(weightings, memory)


def read_backward(d_read: Tensor, memory: Tensor, weightings: Tensor) -> tuple[Tensor, Tensor]:
    return torch.bmm(weightings.mT, d_read), torch.bmm(d_read, memory.mT)


def write(memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    if weightings.shape[1] == 1:
        erased = torch.bmm(weightings.mT, erase)
        # Erased before added to: where w e = 1 nothing of the old word may be left.
        erased_memory = torch.addcmul(memory, memory, erased, value=-1)
        return torch.baddbmm(erased_memory, weightings.mT, add)
    retained = retention(weightings, erase).prod(1)
    return torch.baddbmm(memory * retained, weightings.mT, add)


def retention(weightings: Tensor, erase: Tensor) -> Tensor:
    """What each head leaves of each element, ``1 − w e``: ``[B, H, N, M]``."""
    return 1 - weightings.unsqueeze(-1) * erase.unsqueeze(2)


def write_backward(
    d_memory: Tensor, memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of memory, weightings, erase and add.

    The product over heads is differentiated by prefix and suffix products, never by a division:
    ``1 − w e`` may be exactly 0.
    """
    d_add = torch.bmm(weightings, d_memory)
    d_weightings = torch.bmm(add, d_memory.mT)
    if weightings.shape[1] == 1:
        pull = d_memory * memory
        d_weightings.baddbmm_(erase, pull.mT, alpha=-1)
        d_erase = torch.bmm(weightings, pull).neg_()
        erased = torch.bmm(weightings.mT, erase)
        return torch.addcmul(d_memory, d_memory, erased, value=-1), d_weightings, d_erase, d_add
    before, pull = others(retention(weightings, erase), d_memory * memory)
    d_erase = (weightings.unsqueeze(-1) * pull).sum(2).neg_()
    d_weightings -= (erase.unsqueeze(2) * pull).sum(-1)
    return d_memory * before, d_weightings, d_erase, d_add


def others(kept: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``kept [B, H, N, M]`` the product over all heads, and for each head the product over the
    other heads times ``pull [B, N, M]``."""
    heads = kept.unbind(1)
    prefix = [torch.ones_like(pull)]
    for head in heads:
        prefix.append(prefix[-1] * head)
    products = []
    suffix = pull
    for index in reversed(range(len(heads))):
        products.append(prefix[index] * suffix)
        suffix = suffix * heads[index]
    return prefix[-1], torch.stack(products[::-1], 1)
