"""Sequences of different length, and restarts, where a module steps: padding and held states.

A sequence that is over keeps its state while the others go on. A sequence that is reset starts anew
while the others go on. For both, every tensor of the state must have the batch first. Of a
controller of the user's this is not known from one state: in ``[4, 4, 8]`` the batch of 4 may come
first or second.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ntm_kernels.nn.parts import is_same, map_tensors, shapes_of
from ntm_kernels.nn.state import NTMState
from ntm_kernels.ops.sequence_call import beyond
from ntm_kernels.torch_private import tree_flatten, tree_leaves

OWNER = "NTMCell: with lengths or resets"
PROBED = (2, 3)


def blank(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Zeros in the padding of x: 0 · NaN in a weight gradient would be NaN."""
    return x if lengths is None else x.masked_fill(beyond(lengths, x.shape[0], x.dim()), 0)


def batch_comes_first(controller: nn.Module, device: torch.device) -> bool:
    """Whether it is certain that every tensor of the controller's state has the batch first.

    A controller says so by ``state_batch_first``; otherwise its ``initial_state`` is called at two
    batch sizes. Raises ``ValueError`` where the batch is elsewhere. ``False``: nothing can be known
    before there is a state.
    """
    name = type(controller).__name__
    declared = getattr(controller, "state_batch_first", None)
    if declared is not None and not declared:
        raise ValueError(
            f"{OWNER}, the controller's state must have the batch first, and {name} says "
            "state_batch_first = False; give sequences of one length at a time, without lengths "
            "or resets"
        )
    if declared:
        return True
    return hasattr(controller, "initial_state") and _probe(controller, name, device)


def _probe(controller: Any, name: str, device: torch.device) -> bool:
    """Whether the initial state has tensors, all with the batch first; raises where not so."""
    devices = [device] if device.type == "cuda" else []
    # torch.compile cannot trace a change of the generators' state.
    compiling = torch.compiler.is_compiling()
    kept = nullcontext() if compiling else torch.random.fork_rng(devices)
    with torch.no_grad(), kept:
        try:
            states = [controller.initial_state(batch) for batch in PROBED]
        except Exception as error:
            raise ValueError(
                f"{OWNER}, {name}.initial_state is called for batches of {PROBED[0]} and "
                f"{PROBED[1]}, to see where its state has the batch, and raised {error!r}; mend "
                "it, or set state_batch_first = True if every tensor has the batch first"
            ) from error
    one, other = (
        [part for part in tree_leaves(state) if isinstance(part, Tensor)] for state in states
    )
    follows = len(one) == len(other) and all(
        part.dim() > 0 and part.shape[0] == batch
        for batch, parts in zip(PROBED, (one, other), strict=True)
        for part in parts
    )
    if not follows:
        shapes = [shapes_of(state) for state in states]
        raise ValueError(
            f"{OWNER}, every tensor of the controller's state must have the batch first; "
            f"{name}.initial_state gives {shapes[0]} for a batch of {PROBED[0]} and {shapes[1]} "
            f"for one of {PROBED[1]}. Put the batch first (a number that all sequences share too, "
            "as [B]), or give sequences of one length at a time, without lengths or resets"
        )
    return len(one) > 0


def require_unambiguous(controller: nn.Module, state: Any, batch: int) -> None:
    """No tensor of the state may have another dimension of the batch's size beside the first. With
    a batch of one it does not matter which dimension it is."""
    if batch < 2:
        return
    for part in tree_leaves(state):
        if isinstance(part, Tensor) and batch in part.shape[1:] and part.shape[0] == batch:
            name = type(controller).__name__
            raise ValueError(
                f"{OWNER}, the controller's state must have the batch first, and in "
                f"{list(part.shape)} the batch {batch} may be another dimension; set "
                f"state_batch_first = True in {name} if it always comes first, or give it a "
                "method initial_state(batch_size) that shows it"
            )


def select(active: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Per sequence ``new`` where it is active, else ``old``, in the dtype of ``old``."""
    if new.dim() == 0 or len(new) != len(active):
        raise ValueError(
            f"{OWNER}, a controller's state must have the batch {len(active)} first, "
            f"got {list(new.shape)}"
        )
    if new.shape != old.shape:
        raise ValueError(
            f"{OWNER}, a controller's state must keep its shapes, got {list(new.shape)} after "
            f"{list(old.shape)}"
        )
    return torch.where(active.view(-1, *[1] * (new.dim() - 1)), new.to(old.dtype), old)


def hold(active: Tensor, new: NTMState, old: NTMState) -> NTMState:
    """The new state, with the old one kept for the sequences that are over."""
    controller = old.controller
    if controller is None:
        # The first step of a controller without initial_state: nothing to hold but zeros.
        controller = map_tensors(torch.zeros_like, new.controller)
    return NTMState(
        select(active, new.memory, old.memory),
        select(active, new.weightings, old.weightings),
        select(active, new.read_vectors, old.read_vectors),
        _hold_nest(active, new.controller, controller),
    )


def put_back(
    controller: nn.Module, reset: Tensor, start: NTMState, state: NTMState, certain: bool
) -> NTMState:
    """The initial state for the sequences that are reset, the state of before for the others.

    ``certain``: the batch is known to come first in the controller's state.
    """
    if start.controller is None:
        if state.controller is None:
            return state
        name = type(controller).__name__
        raise ValueError(
            f"NTMCell: with resets, the controller must have an initial state to go back to; give "
            f"{name} a method initial_state(batch_size), or give the cell a state"
        )
    if not certain:
        require_unambiguous(controller, state.controller, len(reset))
    return hold(reset, start, state)


def _hold_nest(active: Tensor, new: Any, old: Any) -> Any:
    parts, tree = tree_flatten(new)
    before, tree_before = tree_flatten(old)
    pairs = list(zip(parts, before, strict=False))
    if tree != tree_before or any(_is_tensor(part) != _is_tensor(was) for part, was in pairs):
        raise ValueError(
            f"{OWNER}, a controller's state must keep its form, got {shapes_of(new)} after "
            f"{shapes_of(old)}"
        )
    return tree.unflatten([_hold_part(active, *pair) for pair in pairs])


def _is_tensor(part: Any) -> bool:
    return isinstance(part, Tensor)


def _hold_part(active: Tensor, new: Any, old: Any) -> Any:
    if _is_tensor(new):
        return select(active, new, old)
    if not is_same(new, old):
        raise ValueError(
            f"{OWNER}, what is no tensor in a controller's state must stay as it is, since "
            f"sequences end or restart at different steps; got {new!r} after {old!r}. Make it a "
            "tensor with the batch first"
        )
    return new
