"""``NTMState``: what an NTM carries from one step to the next."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntm_kernels.checks import INTEGERS, positive_int
from ntm_kernels.nn.parts import is_same, map_tensors, shapes_of
from ntm_kernels.torch_private import (
    is_tracing,
    register_namedtuple,
    tree_flatten,
    tree_leaves,
)


class NTMState(NamedTuple):
    """Everything an NTM carries from one step to the next.

    ``memory [B, N, M]``, ``weightings [B, H, N]`` (read heads first), ``read_vectors [B, R, M]``,
    and ``controller``, a nest of tensors with the batch first: ``(h, c)``, each ``[B, C]``, for one
    LSTM layer, a tuple of such pairs for several, ``()`` for a feed-forward controller, whatever
    the controller returns for a user's own. Unbatched, every tensor lacks its ``B``. All are
    float32 (float64 in a float64 module), whatever the dtype of inputs and weights.

    It is a tuple, a pytree for ``torch.utils._pytree``, ``torch.export`` and ``torch.compile``, and
    ``torch.load`` reads it with ``weights_only``. No method changes a state in place; gradients go
    through all but ``detach``. The methods that pick or join sequences work along the batch, which
    every tensor must have first, those of the controller too. A state of a user's controller with
    another dimension first is refused, unless that dimension is as long as the batch: then nothing
    tells them apart. Values that are not tensors are kept unchanged.
    """

    memory: Tensor
    weightings: Tensor
    read_vectors: Tensor
    controller: Any

    def detach(self) -> NTMState:
        """The same state, cut from the graph, for truncated backpropagation through time.

        >>> import torch, ntm_kernels
        >>> model = ntm_kernels.NTM(3, 2, 8, memory_size=16, word_size=4)
        >>> _, state = model(torch.randn(5, 1, 3))
        >>> state.memory.requires_grad, state.detach().memory.requires_grad
        (True, False)
        """
        return map_tensors(torch.Tensor.detach, self)

    def clone(self) -> NTMState:
        """A state that shares no memory with this one."""
        return map_tensors(torch.Tensor.clone, self)

    def to(self, *args: Any, **kwargs: Any) -> NTMState:
        """``Tensor.to`` of every tensor: to another device or dtype.

        As by ``nn.Module.to``, only floating-point tensors get another dtype.
        """
        device = self.memory.to(*args, **kwargs).device

        def move(part: Tensor) -> Tensor:
            return part.to(*args, **kwargs) if part.is_floating_point() else part.to(device)

        return map_tensors(move, self)

    def cpu(self) -> NTMState:
        """The state in the memory of the CPU."""
        return self.to("cpu")

    def select(self, index: Tensor | Sequence[int]) -> NTMState:
        """The sequences at ``index [K]``, in that order; one may be taken twice.

        ``index`` has integers from 0 to B − 1, or is a bool mask ``[B]``.

        >>> import torch, ntm_kernels
        >>> state = ntm_kernels.NTM(3, 2, 8, memory_size=16, word_size=4).initial_state(5)
        >>> state.select(torch.tensor([4, 0, 0])).memory.shape
        torch.Size([3, 16, 4])
        """
        found = _as_index(index, _batch_of(self, "select"))
        return map_tensors(lambda part: part.index_select(0, found.to(part.device)), self)

    def narrow(self, start: int, length: int) -> NTMState:
        """The ``length`` sequences from ``start`` on, as views of this state."""
        batch = _batch_of(self, "narrow")
        start = positive_int("NTMState.narrow", "start", start, minimum=0)
        length = positive_int("NTMState.narrow", "length", length, minimum=0)
        if not 0 <= start <= start + length <= batch:
            raise ValueError(
                f"NTMState.narrow: start and length must stay within the batch of {batch}, got "
                f"start={start} and length={length}"
            )
        return map_tensors(lambda part: part.narrow(0, start, length), self)

    def repeat_interleave(self, repeats: int | Tensor) -> NTMState:
        """Each sequence ``repeats`` times, one copy after the other: the beams of a beam search.

        ``repeats`` is one number, or integers ``[B]``.

        >>> import torch, ntm_kernels
        >>> state = ntm_kernels.NTM(3, 2, 8, memory_size=16, word_size=4).initial_state(2)
        >>> state.repeat_interleave(3).memory.shape
        torch.Size([6, 16, 4])
        """
        _check_repeats(repeats, _batch_of(self, "repeat_interleave"))
        return map_tensors(
            lambda part: part.repeat_interleave(
                repeats.to(part.device) if isinstance(repeats, Tensor) else repeats, dim=0
            ),
            self,
        )

    @staticmethod
    def cat(states: Iterable[NTMState]) -> NTMState:
        """The sequences of several states, one state after the other.

        >>> import torch, ntm_kernels
        >>> model = ntm_kernels.NTM(3, 2, 8, memory_size=16, word_size=4)
        >>> NTMState.cat([model.initial_state(2), model.initial_state(3)]).memory.shape
        torch.Size([5, 16, 4])
        """
        if isinstance(states, (NTMState, Tensor)) or not isinstance(states, Iterable):
            raise TypeError(
                f"NTMState.cat: states must be a list of NTMStates, got {type(states).__name__}"
            )
        states = list(states)
        if not states:
            raise ValueError("NTMState.cat: give at least one state, got none")
        for state in states:
            if not isinstance(state, NTMState):
                raise TypeError(
                    f"NTMState.cat: every state must be an NTMState, got {type(state).__name__}"
                )
            _batch_of(state, "cat")
        first, *others = states
        for number, other in enumerate(others, start=1):
            _require_like(first, other, number)
        return map_tensors(lambda *parts: torch.cat(parts), first, *others)


def _batch_of(state: NTMState, method: str) -> int:
    """The number of sequences; raises for an unbatched state."""
    memory = state.memory
    if not isinstance(memory, Tensor) or memory.dim() != 3:
        raise ValueError(
            f"NTMState.{method}: the state must have a batch, memory [B, N, M], got memory "
            f"{shapes_of(memory)}"
        )
    batch = memory.shape[0]
    for part in tree_leaves(state):
        if isinstance(part, Tensor) and (part.dim() == 0 or part.shape[0] != batch):
            raise ValueError(
                f"NTMState.{method}: every tensor of the state must have the batch {batch} first, "
                f"got {list(part.shape)}"
            )
    return batch


def _as_index(index: Any, batch: int) -> Tensor:
    """``index`` of ``NTMState.select`` in int64."""
    owner = "NTMState.select: index"
    if not isinstance(index, Tensor):
        try:
            index = torch.tensor([operator.index(one) for one in index], dtype=torch.int64)
        except TypeError as error:
            raise TypeError(
                f"{owner} must be a tensor or a list of integers, got {index!r}"
            ) from error
    if index.dtype == torch.bool and index.shape == (batch,):
        return index.nonzero().squeeze(1)
    if index.dim() != 1:
        raise ValueError(f"{owner} must be [K], got {list(index.shape)}")
    if index.dtype not in INTEGERS:
        raise TypeError(
            f"{owner} must have integers, or be a bool mask [{batch}], got {index.dtype}"
        )
    index = index.to(torch.int64)
    if index.device.type == "cpu" and not torch.compiler.is_compiling() and index.numel():
        low, high = map(int, index.aminmax())
        if low < 0 or high >= batch:
            got = low if low < 0 else high
            raise ValueError(f"{owner} must lie in 0 … {batch - 1}, got {got}")
    return index


def _check_repeats(repeats: Any, batch: int) -> None:
    owner = "NTMState.repeat_interleave"
    if not isinstance(repeats, Tensor):
        positive_int(owner, "repeats", repeats, minimum=0)
    elif repeats.shape != (batch,) or repeats.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{owner}: repeats must be an int or integers [{batch}] of dtype torch.int64, got "
            f"{list(repeats.shape)} of {repeats.dtype}"
        )


def _require_like(first: NTMState, other: NTMState, number: int) -> None:
    """Raises where ``other`` cannot be joined to ``first`` along the batch."""
    parts, tree = tree_flatten(first)
    others, tree_of_other = tree_flatten(other)
    where = (
        f"NTMState.cat: state {number} must have the sizes, dtypes and devices of state 0, except "
        "the batch"
    )
    if tree != tree_of_other:
        raise ValueError(
            f"{where}, got the controller's state {shapes_of(other.controller)} beside "
            f"{shapes_of(first.controller)}"
        )
    for index, (part, beside) in enumerate(zip(parts, others, strict=True)):
        name = first._fields[min(index, 3)]
        if not isinstance(part, Tensor) or not isinstance(beside, Tensor):
            if isinstance(part, Tensor) or isinstance(beside, Tensor) or not is_same(part, beside):
                raise ValueError(f"{where}, got {name} {beside!r} beside {part!r}")
        elif (part.shape[1:], part.dtype, part.device) != (
            beside.shape[1:],
            beside.dtype,
            beside.device,
        ):
            raise ValueError(f"{where}, got {name} {_shown(beside)} beside {_shown(part)}")


def _shown(part: Tensor) -> str:
    return f"{list(part.shape)} {part.dtype} on {part.device}"


# So that torch.load takes a saved state without being told to trust this file.
torch.serialization.add_safe_globals([NTMState])
# So that torch.export can save a program that takes or returns a state.
register_namedtuple(NTMState, serialized_type_name="ntm_kernels.NTMState")


def require_state(owner: str, state: Any) -> NTMState:
    if isinstance(state, NTMState):
        return state
    if is_tracing() and type(state) is tuple and len(state) == len(NTMState._fields):
        # torch.jit.trace hands named tuples over as plain ones.
        return NTMState(*state)
    raise TypeError(f"{owner}: state must be an NTMState or None, got {type(state).__name__}")


def batch_of_one(state: NTMState) -> NTMState:
    """An unbatched state with ``B = 1``."""
    return map_tensors(lambda part: part.unsqueeze(0), state)


def batch_removed(owner: str, state: NTMState) -> NTMState:
    """A state with ``B = 1`` unbatched."""

    def first(part: Tensor) -> Tensor:
        if part.dim() > 0 and part.shape[0] != 1:
            raise ValueError(
                f"{owner}: with an unbatched x, the controller's state must have the batch 1 "
                f"first, got {list(part.shape)}; put the batch first, or give x a batch"
            )
        return part.squeeze(0)

    return map_tensors(first, state)
