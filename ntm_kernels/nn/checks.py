"""Checks of what modules are called with; messages name the module and show what it was given."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ntm_kernels.backends import require_registered
from ntm_kernels.checks import (
    FLOATS,
    Arguments,
    autocast_enabled,
    lengths_within,
    positive_int,
    require_dense,
)
from ntm_kernels.nn.parts import shapes_of
from ntm_kernels.nn.state import NTMState, require_state
from ntm_kernels.reference import arithmetic_dtype
from ntm_kernels.torch_private import is_tracing

PAD_IT = "; pad it, as torch.nn.utils.rnn.pad_sequence does, and give lengths"


class StateSizes(NamedTuple):
    """The sizes of the parts of an ``NTMState``.

    ``controller`` is a nest of sizes, ``None`` where any state will do. ``dtype`` and ``device``
    are those of the parameters.
    """

    memory_size: int
    word_size: int
    num_read_heads: int
    num_heads: int
    controller: Any
    dtype: torch.dtype
    device: torch.device


def check_dtype(owner: str, dtype: Any) -> None:
    """``dtype`` must be one that an NTM computes in, or ``None``."""
    if dtype is not None and dtype not in FLOATS:
        raise TypeError(
            f"{owner}: dtype must be torch.float32, torch.float64, torch.bfloat16, torch.float16 "
            f"or None, got {dtype!r}"
        )


def check_batch_size(owner: str, batch_size: Any) -> int:
    """``batch_size`` as an ``int`` of at least 0."""
    if isinstance(batch_size, Tensor) and is_tracing():
        # Inside torch.jit.trace the sizes of a tensor are tensors themselves.
        return cast(int, batch_size)
    return positive_int(owner, "batch_size", batch_size, minimum=0)


def check_backend(owner: str, backend: Any) -> str | None:
    """``backend`` must be the name of a registered backend, or ``None``."""
    if backend is not None:
        require_registered(owner, backend)
    return cast("str | None", backend)


def check_checkpoint_every(owner: str, checkpoint_every: Any) -> int | None:
    """``checkpoint_every`` as an ``int`` of at least 1, or ``None``."""
    if checkpoint_every is None:
        return None
    return positive_int(owner, "checkpoint_every", checkpoint_every)


def check_input(
    owner: str,
    name: str,
    x: Any,
    forms: Sequence[Sequence[str]],
    input_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """``x`` must have the dimensions of one of the forms, such as ``("TB", "T")``, and then
    ``input_size``, and the dtype and device of the parameters."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: {name} must be a tensor, got {type(x).__name__}")
    require_dense(owner, name, x, PAD_IT)
    for form in forms:
        if len(form) + 1 == x.dim() and x.size(-1) == input_size:
            break
    else:
        raise ValueError(f"{owner}: {name} must be {_wanted(forms, x, input_size)}")
    if x.dtype != dtype and not (x.dtype in FLOATS and autocast_enabled(x.device.type)):
        raise TypeError(
            f"{owner}: {name} is {x.dtype} and the parameters are {dtype}; "
            "convert one, or use torch.autocast between floating-point dtypes"
        )
    if x.device != device:
        raise ValueError(f"{owner}: {name} is on {x.device} and the parameters on {device}")


def _wanted(forms: Sequence[Sequence[str]], x: Tensor, input_size: int) -> str:
    """The forms that x could have been meant in, and its shape."""
    meant = [form for form in forms if len(form) + 1 == x.dim()] or forms
    shapes = (f"[{', '.join([*form, f'input_size={input_size}'])}]" for form in meant)
    return f"{' or '.join(shapes)}, got {list(x.shape)}"


def check_state(
    owner: str,
    state: Any,
    sizes: StateSizes,
    batch: int | None,
    fixed_by: Callable[[], str | None],
) -> NTMState:
    """The state; every part must be of its size, after the batch or, with ``None``, alone.

    ``fixed_by`` returns the reason that fixes ``memory_size``, or ``None``.
    """
    state = require_state(owner, state)
    lead = () if batch is None else (batch,)
    rows = sizes.memory_size
    if isinstance(state.memory, Tensor) and state.memory.dim() == len(lead) + 2:
        rows = state.memory.shape[-2]
        if rows != sizes.memory_size:
            _check_rows(owner, rows, sizes.memory_size, fixed_by())
    _check_kind(owner, state, arithmetic_dtype(sizes.dtype), sizes.device)
    _check_part(owner, "memory", state.memory, (*lead, rows, sizes.word_size))
    _check_part(owner, "weightings", state.weightings, (*lead, sizes.num_heads, rows))
    reads = (*lead, sizes.num_read_heads, sizes.word_size)
    _check_part(owner, "read_vectors", state.read_vectors, reads)
    if sizes.controller is not None and not _fits(state.controller, sizes.controller, lead):
        raise ValueError(
            f"{owner}: state.controller must be {_shown(sizes.controller, lead)}, "
            f"got {shapes_of(state.controller)}"
        )
    return state


def _check_rows(owner: str, rows: int, memory_size: int, fixed_by: str | None) -> None:
    """Raise where a state has a number of locations that the module cannot take."""
    if fixed_by is not None:
        raise ValueError(
            f"{owner}: state.memory must have memory_size={memory_size} locations, since "
            f"{fixed_by}, got {rows}"
        )
    if rows < 1:
        raise ValueError(f"{owner}: state.memory must have at least one location, got {rows}")


def _check_kind(owner: str, state: NTMState, dtype: torch.dtype, device: torch.device) -> None:
    """The state's tensors must be in the dtype that the module computes in, and on its device."""
    for name, part in zip(state._fields[:3], state[:3], strict=True):
        if not isinstance(part, Tensor):
            continue
        if part.dtype != dtype:
            raise TypeError(
                f"{owner}: state.{name} must be {dtype}, in which this module keeps its state, got "
                f"{part.dtype}; convert it with state.to({dtype})"
            )
        if part.device != device:
            raise ValueError(
                f"{owner}: state.{name} is on {part.device} and the parameters on {device}; move "
                f"it with state.to({str(device)!r})"
            )


def _check_part(owner: str, name: str, part: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(part, Tensor) or part.shape != shape:
        raise ValueError(f"{owner}: state.{name} must be {list(shape)}, got {shapes_of(part)}")


def _as_lengths(owner: str, lengths: Any, device: torch.device) -> Tensor:
    """Lengths that come as a tensor, an array or a list of integers, on ``device``."""
    if isinstance(lengths, Tensor):
        return lengths.to(device)
    if torch.compiler.is_exporting():
        raise TypeError(
            f"{owner}: while torch.export traces, lengths must be a tensor [B] of integers, got "
            f"{type(lengths).__name__}: its values would be constants of the program"
        )
    try:
        return torch.tensor([_as_length(one) for one in lengths], dtype=torch.int64, device=device)
    except TypeError as error:
        raise TypeError(
            f"{owner}: lengths must be a tensor or a list of integers, got {lengths!r}"
        ) from error


def _as_length(length: Any) -> int:
    if isinstance(length, bool):
        raise TypeError("a boolean is no length")
    return operator.index(length)


def check_lengths(owner: str, lengths: Any, batch: int, time: int, device: torch.device) -> Tensor:
    """``lengths`` in int64 on ``device``; they must be integers ``[B]``, at most ``time``."""
    lengths = _as_lengths(owner, lengths, device)
    given = Arguments(owner)
    given.fix("B", batch, "x")
    given.lengths(lengths, device)
    return lengths_within(owner, lengths, time)


def check_resets(
    owner: str, resets: Any, sizes: tuple[int, ...], device: torch.device, dims: str = "T B"
) -> None:
    """``resets`` must be bool, of these sizes, on ``device``."""
    given = Arguments(owner)
    for dim, size in zip(dims.split(), sizes, strict=True):
        given.fix(dim, size, "x")
    given.resets(resets, device, dims)


def _fits(nest: Any, sizes: Any, lead: tuple[int, ...]) -> bool:
    """Whether the nest has a tensor ``[*lead, size]`` for every one of ``sizes``."""
    if not isinstance(sizes, (tuple, list)):
        return isinstance(nest, Tensor) and nest.shape == (*lead, sizes)
    return (
        isinstance(nest, (tuple, list))
        and len(nest) == len(sizes)
        and all(_fits(part, size, lead) for part, size in zip(nest, sizes, strict=True))
    )


def _shown(sizes: Any, lead: tuple[int, ...]) -> Any:
    if not isinstance(sizes, (tuple, list)):
        return [*lead, sizes]
    return tuple(_shown(size, lead) for size in sizes)
