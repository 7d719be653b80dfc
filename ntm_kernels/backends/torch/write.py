"""``write``, with its hand-derived backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ntm_kernels.backends.base import Kernel
from ntm_kernels.backends.torch.lift import lift, lower
from ntm_kernels.ops import NothingSaved, Sizes, WriteInputs, WriteOutputs


def write(memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    if weightings.shape[1] == 1:
        # Erased before added to: where w e = 1 nothing of the old word may be left. M − M w e would
        # make NaN of an infinite one.
        kept = 1 - torch.bmm(weightings.mT, erase)
        return torch.baddbmm(kept.mul_(memory), weightings.mT, add)
    retained = retention(weightings, erase).prod(1)
    return torch.baddbmm(memory * retained, weightings.mT, add)


def retention(weightings: Tensor, erase: Tensor) -> Tensor:
    """What each head leaves of each element, ``1 − w e``: ``[B, H, N, M]``."""
    return 1 - weightings.unsqueeze(-1) * erase.unsqueeze(2)


def write_backward(d_memory: Tensor, inputs: WriteInputs) -> WriteInputs:
    """Gradients of memory, weightings, erase and add from that of the memory after the write.

    The product over heads is differentiated by prefix and suffix products, never by a division:
    ``1 − w e`` may be exactly 0.
    """
    memory, weightings, erase, add = inputs
    d_add = torch.bmm(weightings, d_memory)
    d_weightings = torch.bmm(add, d_memory.mT)
    d_kept = d_memory * memory
    if weightings.shape[1] == 1:
        d_weightings.baddbmm_(erase, d_kept.mT, alpha=-1)
        d_erase = torch.bmm(weightings, d_kept).neg_()
        erased = torch.bmm(weightings.mT, erase)
        d_before = torch.addcmul(d_memory, d_memory, erased, value=-1)
        return WriteInputs(d_before, d_weightings, d_erase, d_add)
    kept, d_retention = others(retention(weightings, erase), d_kept)
    d_erase = (weightings.unsqueeze(-1) * d_retention).sum(2).neg_()
    d_weightings -= (erase.unsqueeze(2) * d_retention).sum(-1)
    return WriteInputs(d_memory * kept, d_weightings, d_erase, d_add)


def others(retained: Tensor, d_kept: Tensor) -> tuple[Tensor, Tensor]:
    """The product of ``retained [B, H, N, M]`` over all heads, and its gradient for each head: the
    product over the other heads times ``d_kept [B, N, M]``, the gradient of the whole product."""
    heads = retained.unbind(1)
    prefix = [torch.ones_like(d_kept)]
    for head in heads:
        prefix.append(prefix[-1] * head)
    products = []
    suffix = d_kept
    for before, head in zip(reversed(prefix[:-1]), reversed(heads), strict=True):
        products.append(before * suffix)
        suffix = suffix * head
    return prefix[-1], torch.stack(products[::-1], 1)


class Write(Kernel[WriteInputs, WriteOutputs, NothingSaved]):
    """The op ``write``."""

    def forward(
        self, inputs: WriteInputs, sizes: Sizes, save_for_backward: bool
    ) -> tuple[WriteOutputs, NothingSaved]:
        return lower(WriteOutputs(write(*lift(inputs))), inputs), NothingSaved()

    def backward(
        self,
        grads: WriteOutputs,
        inputs: WriteInputs,
        outputs: WriteOutputs,
        saved: NothingSaved,
        sizes: Sizes,
        wanted: frozenset[str],
    ) -> WriteInputs:
        return lower(write_backward(lift(grads).memory, lift(inputs)), inputs)
