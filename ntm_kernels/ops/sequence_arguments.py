"""From the arguments of ``functional.sequence`` to the record of its op.

The record has one tensor for all layers above the first, since an op takes tensors one by one.
These layers are checked here, while they still have names that the caller knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ntm_kernels.checks import Arguments
from ntm_kernels.ops.sequence import SequenceInputs
from ntm_kernels.reference import LayerWeights, SequenceState, require_pairs


def sequence_inputs(
    x: Tensor,
    layers: Sequence[LayerWeights],
    interface_weight: Tensor,
    interface_bias: Tensor,
    initial_state: SequenceState,
    lengths: Tensor | None,
    resets: Tensor | None,
) -> SequenceInputs:
    """The record of the op.

    Raises:
        TypeError: ``initial_state`` is not a SequenceState, or ``layers`` not a list of
            LayerWeights.
        ValueError: only one of ``hidden`` and ``cell`` is given, or a layer above the first has
            weights of another size.
    """
    if not isinstance(initial_state, SequenceState):
        raise TypeError(
            "sequence: initial_state must be an ntm_kernels.SequenceState, got "
            f"{type(initial_state).__name__}"
        )
    first, *upper = _require_layers(layers)
    require_pairs(first, initial_state)
    upper_weight, upper_bias = None, None
    if upper:
        is_lstm = initial_state.hidden is not None
        upper_weight, upper_bias = _stacked(upper, interface_weight, is_lstm)
    recurrent_weight: Any = first.recurrent_weight  # check_record refuses None later
    return SequenceInputs(
        x=x,
        recurrent_weight=recurrent_weight,
        interface_weight=interface_weight,
        interface_bias=interface_bias,
        initial_memory=initial_state.memory,
        initial_weightings=initial_state.weightings,
        initial_read_vectors=initial_state.read_vectors,
        initial_hidden=initial_state.hidden,
        initial_cell=initial_state.cell,
        lengths=lengths,
        resets=resets,
        input_weight=first.input_weight,
        input_bias=first.bias,
        upper_weight=upper_weight,
        upper_bias=upper_bias,
    )


def _require_layers(layers: Any) -> Sequence[LayerWeights]:
    # A layer is a tuple too, of tensors.
    if not isinstance(layers, (list, tuple)) or isinstance(layers, LayerWeights):
        raise TypeError(
            "sequence: layers must be a list of ntm_kernels.LayerWeights, one for each layer of "
            f"the controller, got {type(layers).__name__}"
        )
    if not layers:
        raise ValueError("sequence: layers must have the weights of at least one layer, got none")
    for index, layer in enumerate(layers):
        if not isinstance(layer, LayerWeights):
            raise TypeError(
                f"sequence: layers[{index}] must be an ntm_kernels.LayerWeights, got "
                f"{type(layer).__name__}"
            )
    return layers


def _stacked(
    upper: Sequence[LayerWeights], interface_weight: Tensor, is_lstm: bool
) -> tuple[Tensor, Tensor]:
    """Weights ``[U, G, J]`` and biases ``[U, G]`` of the layers above the first."""
    given = Arguments("sequence")
    given.tensor("interface_weight", interface_weight, "P C")
    hidden_size = given.sizes["C"]
    kind = "an LSTM" if is_lstm else "a feed-forward controller, initial_state.hidden being None"
    rows = 4 * hidden_size if is_lstm else hidden_size
    given.fix("G", rows, f"interface_weight, for {kind}")
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for index, layer in enumerate(upper, start=1):
        for name, part, dims in (
            ("input_weight", layer.input_weight, "G C"),
            ("bias", layer.bias, "G"),
            ("recurrent_weight", layer.recurrent_weight, "G C"),
        ):
            if name == "recurrent_weight" and not is_lstm:
                if part is not None:
                    raise ValueError(
                        f"sequence: layers[{index}].recurrent_weight must be None, since a "
                        "feed-forward layer above the first sees the layer below alone"
                    )
            else:
                given.tensor(f"layers[{index}].{name}", part, dims)
        seen: Any = (layer.input_weight, layer.recurrent_weight)[: 2 if is_lstm else 1]
        weights.append(torch.cat(seen, 1))
        bias: Any = layer.bias
        biases.append(bias)
    given.dtypes(layers=tuple(given.tensors))
    return torch.stack(weights), torch.stack(biases)
