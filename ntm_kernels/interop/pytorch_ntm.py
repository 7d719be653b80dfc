"""Checkpoints of the public repository loudinthecloud/pytorch-ntm."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntm_kernels.interop.lstm import copy_weights, layers_of
from ntm_kernels.nn import NTM, InitialState

__all__ = ["from_pytorch_ntm"]

_EXPECTED = "the state_dict of an EncapsulatedNTM of loudinthecloud/pytorch-ntm"
_HEAD = re.compile(r"ntm\.heads\.(\d+)\.fc_(read|write)\.weight")
_TAPS = 3


class _Sizes(NamedTuple):
    """The sizes of a checkpoint."""

    input_size: int
    output_size: int
    hidden_size: int
    memory_size: int
    word_size: int
    num_read_heads: int
    num_layers: int


@torch.no_grad()
def from_pytorch_ntm(state_dict: Mapping[str, Tensor]) -> NTM:
    """An ``NTM`` that computes what a model of loudinthecloud/pytorch-ntm does.

    Its outputs are those of the model before the sigmoid that the model has on its output: take
    ``torch.sigmoid`` of them for the same numbers. ``model(x)`` takes a whole sequence
    ``[T, B, input_size]`` and starts anew, as ``init_sequence`` does.

    The first memory is the checkpoint's ``mem_bias``, a buffer that is not trained. The first
    weightings are zeros. The first read vectors, a buffer there, are a parameter here, and the
    first state of the LSTM is one in both.

    Args:
        state_dict: what ``EncapsulatedNTM.state_dict()`` returns, on one device and in one dtype.
            Any sizes, any number of layers, and any number of read heads, followed by one write
            head: the same number of heads of both kinds that its constructor makes is 1.

    Returns:
        A model of the dtype and on the device of ``state_dict``.

    Raises:
        TypeError: ``state_dict`` is no mapping of names to tensors.
        ValueError: it has other names, shapes or dtypes than such a model, or heads in an order
            that an ``NTM`` does not have: there all heads address the memory of the step before
            and all reads come before all writes, whereas a head of pytorch-ntm sees what the
            write heads before it in the list have written in the same step.

    >>> file = "copy-task-1000-batch-50000.model"  # what train.py of pytorch-ntm has saved
    >>> model = from_pytorch_ntm(torch.load(file, map_location="cpu"))  # doctest: +SKIP
    >>> logits, state = model(torch.zeros(41, 1, model.input_size))  # doctest: +SKIP
    """
    _require_tensors(state_dict)
    sizes = _sizes(state_dict)
    _require_layout(state_dict, sizes)
    memory = state_dict["memory.mem_bias"]
    model = NTM(
        *sizes[:6],
        num_layers=sizes.num_layers,
        initial_state=InitialState(memory=memory, weightings="zero"),
        device=memory.device,
        dtype=memory.dtype,
    )
    prefix = "ntm.controller.lstm."
    copy_weights(
        layers_of("from_pytorch_ntm", model),
        {n.removeprefix(prefix): w for n, w in state_dict.items() if n.startswith(prefix)},
    )
    hidden, cell = (state_dict[f"ntm.controller.lstm_{part}_bias"] for part in "hc")
    start: Any = model.cell.controller.start
    start.value.copy_(torch.stack([hidden, cell], dim=1).flatten(0, 2))
    reads = [state_dict[f"ntm.read{number}_bias"] for number in range(sizes.num_read_heads)]
    model.cell.start.read_vectors.copy_(torch.cat(reads))
    for kind in ("weight", "bias"):
        heads = [state_dict[f"{name}.{kind}"] for name in _head_names(sizes.num_read_heads)]
        getattr(model.cell.interface, kind).copy_(_regrouped(heads, sizes.word_size))
        getattr(model.output, kind).copy_(state_dict[f"ntm.fc.{kind}"])
    return model


def _regrouped(heads: Sequence[Tensor], word_size: int) -> Tensor:
    """Rows of the heads' layers, one head after the other, as rows of the interface.

    Each head has key, strength, gate, shift and sharpening, a write head erase and add too. The
    interface groups them by kind. The taps of the shift are in reversed order: pytorch-ntm
    correlates where the paper convolves.
    """
    widths = (word_size, 1, 1, _TAPS, 1, word_size, word_size)
    groups: list[list[Tensor]] = [[] for _ in widths]
    for head in heads:
        parts = head.split(widths if head is heads[-1] else widths[:5])
        for group, part in zip(groups, parts, strict=False):
            group.append(part.flip(0) if group is groups[3] else part)
    return torch.cat([part for group in groups for part in group])


def _head_names(num_read_heads: int) -> list[str]:
    """The names of the heads' layers: all read heads, then the write head."""
    reads = [f"ntm.heads.{number}.fc_read" for number in range(num_read_heads)]
    return [*reads, f"ntm.heads.{num_read_heads}.fc_write"]


def _require_tensors(state_dict: Mapping[str, Tensor]) -> None:
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"from_pytorch_ntm: state_dict must be {_EXPECTED}, got "
            f"{type(state_dict).__name__}; of a model give model.state_dict(), of a file "
            "torch.load(file)"
        )
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"from_pytorch_ntm: state_dict[{name!r}] must be a tensor, got "
                f"{type(value).__name__}; give {_EXPECTED}"
            )
    kinds = {(value.dtype, value.device) for value in state_dict.values()}
    if len(kinds) > 1 or not all(dtype.is_floating_point for dtype, _ in kinds):
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ValueError(
            "from_pytorch_ntm: the tensors of state_dict must have one floating-point dtype and "
            f"one device, got {found}; convert them first"
        )


def _sizes(state_dict: Mapping[str, Tensor]) -> _Sizes:
    """The sizes that the shapes of a checkpoint tell."""
    dims = {
        "ntm.controller.lstm.weight_ih_l0": 2,
        "ntm.controller.lstm_h_bias": 3,
        "ntm.fc.bias": 1,
        "memory.mem_bias": 2,
    }
    for name, dim in dims.items():
        if name not in state_dict or state_dict[name].dim() != dim:
            there = state_dict.get(name)
            got = f"the names {_some(state_dict)}" if there is None else list(there.shape)
            raise ValueError(
                f"from_pytorch_ntm: state_dict must have a tensor {name} of {dim} dimensions, got "
                f"{got}; give {_EXPECTED}"
            )
    num_read_heads = _num_read_heads(state_dict)
    memory_size, word_size = state_dict["memory.mem_bias"].shape
    num_layers, _, hidden_size = state_dict["ntm.controller.lstm_h_bias"].shape
    seen = state_dict["ntm.controller.lstm.weight_ih_l0"].shape[1]
    input_size = seen - num_read_heads * word_size
    if input_size < 1:
        raise ValueError(
            "from_pytorch_ntm: ntm.controller.lstm.weight_ih_l0 must have more columns than the "
            f"{num_read_heads} read vectors of {word_size} elements together, got {seen}"
        )
    (output_size,) = state_dict["ntm.fc.bias"].shape
    return _Sizes(
        input_size, output_size, hidden_size, memory_size, word_size, num_read_heads, num_layers
    )


def _num_read_heads(state_dict: Mapping[str, Tensor]) -> int:
    """How many read heads come before the one write head; raises for any other list of heads."""
    found = {int(m[1]): m[2] for m in map(_HEAD.fullmatch, state_dict) if m}
    kinds = [found[number] for number in sorted(found)]
    count = len(kinds) - 1
    if count < 1 or kinds != ["read"] * count + ["write"]:
        raise ValueError(
            "from_pytorch_ntm: the heads of state_dict must be read heads and then one write head, "
            f"got {', '.join(kinds) or 'none'}. An NTM addresses and reads with all heads before "
            "any writes; in pytorch-ntm each head sees what the write heads before it in the list "
            "have just written. No weights make one of these models the other"
        )
    return count


def _require_layout(state_dict: Mapping[str, Tensor], sizes: _Sizes) -> None:
    """Raises ValueError where names or shapes are not those of a model of these sizes."""
    shapes = _shapes(sizes)
    missing, unknown = set(shapes) - set(state_dict), set(state_dict) - set(shapes)
    for what, names in (("lacks", missing), ("has also", unknown)):
        if names:
            raise ValueError(
                f"from_pytorch_ntm: state_dict {what} {_some(sorted(names))}; give {_EXPECTED}, "
                "unchanged"
            )
    for name, shape in shapes.items():
        if state_dict[name].shape != shape:
            raise ValueError(
                f"from_pytorch_ntm: {name} must be {list(shape)} in a model of {sizes}, got "
                f"{list(state_dict[name].shape)}"
            )
    memory = state_dict["memory.mem_bias"]
    for name in shapes:
        if name.endswith("mem_bias") and not torch.equal(state_dict[name], memory):
            raise ValueError(
                f"from_pytorch_ntm: {name} must equal memory.mem_bias, since all heads share one "
                "memory, got other values"
            )


def _shapes(sizes: _Sizes) -> dict[str, tuple[int, ...]]:
    """The shapes of a checkpoint, by name."""
    hidden, word, reads = sizes.hidden_size, sizes.word_size, sizes.num_read_heads
    memory = (sizes.memory_size, word)
    shapes: dict[str, tuple[int, ...]] = {"memory.mem_bias": memory, "ntm.memory.mem_bias": memory}
    for number, name in enumerate(_head_names(reads)):
        rows = word + 3 + _TAPS + (2 * word if name.endswith("write") else 0)
        shapes |= {f"{name}.weight": (rows, hidden), f"{name}.bias": (rows,)}
        shapes[f"ntm.heads.{number}.memory.mem_bias"] = memory
    for number in range(reads):
        shapes[f"ntm.read{number}_bias"] = (1, word)
    for part in "hc":
        shapes[f"ntm.controller.lstm_{part}_bias"] = (sizes.num_layers, 1, hidden)
    for layer in range(sizes.num_layers):
        seen = hidden if layer else sizes.input_size + reads * word
        for part, columns in (("ih", seen), ("hh", hidden)):
            shapes[f"ntm.controller.lstm.weight_{part}_l{layer}"] = (4 * hidden, columns)
            shapes[f"ntm.controller.lstm.bias_{part}_l{layer}"] = (4 * hidden,)
    shapes["ntm.fc.weight"] = (sizes.output_size, hidden + reads * word)
    shapes["ntm.fc.bias"] = (sizes.output_size,)
    return shapes


def _some(names: Iterable[str]) -> str:
    """The first of some names."""
    first = [*names]
    return ", ".join(first[:3] + ["…"] * (len(first) > 3)) or "none"
