"""Initial weights beside those that ``reset_parameters`` draws, in the manner of ``torch.nn.init``.

>>> from ntm_kernels import NTM
>>> model = walking_write_heads_(NTM(input_size=9, output_size=8, hidden_size=100))
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from ntm_kernels.interface import HeadParameters, InterfaceLayout
from ntm_kernels.nn.cell import NTMCell
from ntm_kernels.nn.ntm import NTM

__all__ = ["stepping_read_heads_", "walking_write_heads_"]

_Module = TypeVar("_Module", NTM, NTMCell)

# What is added to the raw gate, to the raw shift by one and to the raw sharpening of a head that
# walks. From a weighting on one location the gate then lets 5 % of the content weighting in, and
# 0.9 of the weight goes on to the next location, which the sharpening keeps together.
_GATE, _SHIFT, _SHARPENING = -3.0, 3.0, 1.0


def walking_write_heads_(module: _Module) -> _Module:
    """Lets the write heads begin by going on to the next location in every step.

    A write head that is trained from small random weights smears what it writes over many
    locations at first, and an LSTM controller may learn to do without the memory meanwhile. A write
    head that walks keeps every step in a location of its own from the first update on, so that
    there is something to read. It is the idea of a positive bias on an LSTM's forget gate
    (Jozefowicz, Zaremba and Sutskever 2015): only biases are changed, and training may undo it.

    Added to the biases of the write heads, in the notation of Graves et al. (2014): −3 to the raw
    gate (g ≈ 0.05), 3 to the raw shift by +1 location (s ≈ 0.9 with ``shift_range`` 1), 1 to the
    raw sharpening (γ ≈ 2.3). Calling it twice adds twice; ``reset_parameters`` undoes it.

    Args:
        module: the model, changed in place, before it is trained, wrapped or compiled. Its initial
            weightings should be one-hot.

    Returns:
        The module.

    Raises:
        TypeError: another kind of module.
        ValueError: its heads cannot shift, because its ``shift_range`` is 0; or the bias of its
            interface is no parameter with values of its own: it is pruned, parametrized, on the
            device ``meta``, or missing.

    >>> import torch
    >>> from ntm_kernels import NTMCell
    >>> cell = walking_write_heads_(NTMCell(9, 100, memory_size=32))
    >>> features, state = cell(torch.zeros(1, 9))
    >>> features, state = cell(torch.zeros(1, 9), state)
    >>> int(state.weightings[0, 1].argmax())  # of the write head, after two steps
    2
    """
    layout, heads = _biases_of_heads(module, "walking_write_heads_")
    write = slice(layout.num_read_heads, None)
    heads.gate[write] += _GATE
    heads.shift[write, layout.shift_range + 1] += _SHIFT
    heads.sharpening[write] += _SHARPENING
    return module


def stepping_read_heads_(module: _Module) -> _Module:
    """Lets the read heads begin by going one location beyond what they find.

    With write heads that go on by one location a step, what followed something lies one location
    behind it. A read head that steps finds the one by its content and reads the other. From small
    random weights it may learn to step back instead. As with :func:`walking_write_heads_` only
    biases are changed, and training may undo it.

    Added to the biases of the read heads, in the notation of Graves et al. (2014): 3 to the raw
    shift by +1 location (s ≈ 0.9 with ``shift_range`` 1). Calling it twice adds twice;
    ``reset_parameters`` undoes it.

    Args:
        module: the model, changed in place, before it is trained, wrapped or compiled.

    Returns:
        The module.

    Raises:
        TypeError, ValueError: as :func:`walking_write_heads_`.

    >>> import torch
    >>> from ntm_kernels import NTM
    >>> model = stepping_read_heads_(NTM(9, 8, 100))
    >>> trace = model(torch.zeros(1, 1, 9), return_trace=True)[-1]
    >>> bool(trace.shift[0, 0, 0, 2] > 0.8)  # of the read head, by one location
    True
    """
    layout, heads = _biases_of_heads(module, "stepping_read_heads_")
    heads.shift[: layout.num_read_heads, layout.shift_range + 1] += _SHIFT
    return module


def _biases_of_heads(module: nn.Module, caller: str) -> tuple[InterfaceLayout, HeadParameters]:
    """The layout of a model, and views of the biases of its interface by the heads' parameters."""
    cell = module.cell if isinstance(module, NTM) else module
    if not isinstance(cell, NTMCell):
        raise TypeError(
            f"{caller} takes an NTM or an NTMCell, got {type(module).__name__}; call it on the "
            "model before that is wrapped or compiled"
        )
    layout = cell.layout
    if layout.shift_range < 1:
        raise ValueError(f"{caller}: the heads cannot shift with shift_range = 0")
    bias = dict(cell.interface.named_parameters(recurse=False)).get("bias")
    if bias is None or bias.is_meta:
        raise ValueError(
            f"{caller}: cell.interface.bias is no parameter with values of its own; call it "
            "before pruning and parametrizations, and after to_empty and reset_parameters"
        )
    return layout, layout.split(bias.detach())
