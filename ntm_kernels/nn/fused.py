"""The weights that the fused op takes from a cell's parts, where it may take them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ntm_kernels.nn.controllers import (
    FeedforwardController,
    HiddenLayer,
    LSTMController,
    RecurrentLayer,
    layer_weights,
)
from ntm_kernels.nn.parts import is_plain, transform_weights, weight_of, weights_suffice
from ntm_kernels.reference import LayerWeights

BUILT_IN = (LSTMController, FeedforwardController)
LAYERS = (RecurrentLayer, HiddenLayer)


class FusedWeights(NamedTuple):
    """The weights of a controller and of the interface, as the fused op takes them."""

    layers: list[LayerWeights]
    interface_weight: Tensor
    interface_bias: Tensor

    def all_plain(self) -> bool:
        """Whether the fused op can read every one of them."""
        of_layers = [part for layer in self.layers for part in layer if part is not None]
        return all(map(is_plain, [self.interface_weight, self.interface_bias, *of_layers]))


def fused_weights(controller: nn.Module, interface: nn.Module) -> FusedWeights | None:
    """The weights for the fused op, or ``None`` where the parts have to be called instead."""
    if not isinstance(controller, BUILT_IN):
        return None
    layers = list(controller.layers)
    if not (
        weights_suffice(controller, BUILT_IN)
        and weights_suffice(interface, (nn.Linear,))
        and all(weights_suffice(layer, LAYERS) for layer in layers)
    ):
        return None
    for part in (controller, *layers, interface):
        transform_weights(part)
    weights = FusedWeights(
        list(map(layer_weights, layers)),
        weight_of(interface, "weight"),
        weight_of(interface, "bias"),
    )
    return weights if weights.all_plain() else None
