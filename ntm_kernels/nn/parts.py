"""What a cell has to know of its parts before it uses their parameters.

The fused path never calls the controller, its layer and the interface: it hands their weights to
one op. That is right as long as a call of these modules would do no more than the op does.
``weights_suffice`` tells whether that holds for one part. If it does not, the cell calls its parts
as modules, once a step.

A part may also have been replaced by another module: wrapped by an adapter, quantized, sharded.
``dtype_and_device`` and ``first_state`` ask a part only for what every module has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ntm_kernels.torch_private import (
    forward_pre_hooks,
    has_call_hooks,
    is_traceable_wrapper,
    parameters_of,
    tree_map,
)


def weights_suffice(part: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether ``part`` is of one of the classes ``kinds``, of no subclass, and has no hooks but
    weight transforms."""
    if has_call_hooks(part) or "forward" in vars(part):
        return False
    kind = type(part)
    if kind not in kinds and is_parametrized(part):
        # A parametrized module has a class of its own, made from the one it had.
        kind = kind.__bases__[0]
    if kind not in kinds:
        return False
    hooks = forward_pre_hooks(part)
    return not hooks or all(map(is_weight_transform, hooks.values()))


def is_weight_transform(hook: object) -> bool:
    """Whether a forward pre-hook sets a weight of its module and looks at nothing else."""
    # Imported here because `import torch` does not load it.
    from torch.nn.utils.prune import BasePruningMethod

    return isinstance(hook, (BasePruningMethod, SpectralNorm, WeightNorm))


def transform_weights(part: nn.Module) -> None:
    """Run the weight transforms of a part that ``weights_suffice`` has accepted."""
    hooks = forward_pre_hooks(part)
    for transform in hooks.values() if hooks else ():
        transform(part, ())


def weight_of(part: nn.Module, name: str) -> Any:
    """``getattr(part, name)``, without the cost of nn.Module.__getattr__ for a parameter."""
    parameter = parameters_of(part).get(name)
    return getattr(part, name) if parameter is None else parameter


def is_plain(weight: Tensor | None) -> bool:
    """Whether ``weight`` is a tensor that a fused op can read.

    Quantized and distributed weights may be of classes that wrap other tensors. Those are known to
    the operators that a module calls, and unknown to a fused op.
    """
    kind = type(weight)
    if kind is nn.Parameter or kind is Tensor:
        return True
    return weight is not None and not is_traceable_wrapper(weight)


def dtype_and_device(*modules: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of the first floating-point tensor that one of ``modules`` has.

    No parametrized weight is computed for it. Quantized modules have no such tensor; torch's take
    float32 on a CPU, which is the answer where no module has one.
    """
    for module in modules:
        for parameter in parameters_of(module).values():
            if parameter is not None and parameter.is_floating_point():
                return parameter.dtype, parameter.device
        # The replicas of nn.DataParallel keep their parameters as plain attributes.
        for other in chain(vars(module).values(), module.parameters(), module.buffers()):
            if isinstance(other, Tensor) and other.is_floating_point():
                return other.dtype, other.device
    return torch.float32, torch.device("cpu")


def require_linear_weights(owner: str, name: str, part: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer, to draw them anew; the bias is ``None`` where it has none.

    Raises ``TypeError`` for a module that does not keep them as floating-point tensors, such as a
    quantized layer.
    """
    weight: Any = getattr(part, "weight", None)
    bias: Any = getattr(part, "bias", None)
    # A quantized layer has integers, or methods of these names.
    present = [weight] if bias is None else [weight, bias]
    if not all(isinstance(value, Tensor) and value.is_floating_point() for value in present):
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        raise TypeError(
            f"{owner}.reset_parameters: {name} must be a linear layer with a floating-point "
            f"weight, as nn.Linear has, got {kind}, which cannot be drawn anew: give {name} an "
            "nn.Linear first, or make a new model and replace the layer again"
        )
    return weight, bias


def reset_modules(modules: Iterable[nn.Module]) -> None:
    """Call ``reset_parameters`` of each module that has such a method."""
    for module in modules:
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


def first_state(controller: nn.Module, batch: int) -> Any:
    """``controller.initial_state(batch)``, or ``None`` where it has no such method."""
    method: Any = getattr(controller, "initial_state", None)
    if method is not None and is_sharded(controller) and "initial_state" not in vars(controller):
        method = _gathering(controller, method)
    return None if method is None else method(batch)


def for_batch(value: Tensor, batch: int) -> Tensor:
    """``value`` for every sequence of a batch, ``[batch, …]``, as a view.

    The view of a batch of one has nothing to add up in its backward. While ``torch.jit.trace``
    traces, the batch is no ``int``, and the graph has the view that is right for any batch.
    """
    if type(batch) is int and batch == 1:
        return value.unsqueeze(0)
    return value.expand(batch, *value.shape)


def map_tensors(function: Any, nest: Any, *others: Any) -> Any:
    """``function`` of every tensor of ``nest``, with the tensors at the same place in ``others``.

    What is no tensor stays as it is.
    """

    def of(part: Any, *more: Any) -> Any:
        return function(part, *more) if isinstance(part, Tensor) else part

    return tree_map(of, nest, *others)


def shapes_of(nest: Any) -> Any:
    """The nest with the shapes of its tensors, and of what is no tensor the type."""
    if isinstance(nest, (tuple, list)):
        shapes = [shapes_of(part) for part in nest]
        return shapes if isinstance(nest, list) else tuple(shapes)
    if isinstance(nest, dict):
        return {key: shapes_of(part) for key, part in nest.items()}
    return list(nest.shape) if isinstance(nest, Tensor) else type(nest).__name__


def is_same(new: Any, old: Any) -> bool:
    """Whether two values that are not tensors are equal, as far as they can tell."""
    try:
        return new is old or bool(new == old)
    except (RuntimeError, TypeError, ValueError):  # A comparison by element, for example.
        return False


def is_sharded(module: nn.Module) -> bool:
    """Whether ``module`` is a unit of FSDP2, which gathers its parameters for each call."""
    kind = type(module)
    # The class that FSDP2 makes of another one has its name behind these letters.
    return kind.__name__.startswith("FSDP") and "FSDPModule" in [
        base.__name__ for base in kind.__mro__
    ]


def outlasting(module: nn.Module, nest: Any) -> Any:
    """Results of ``module``, copied where they may be views of parameters that FSDP2 will free.

    It frees the gathered parameters when a call returns, under any view of them.
    """
    if not is_sharded(module):
        return nest
    return map_tensors(torch.Tensor.clone, nest)


def _gathering(controller: nn.Module, method: Callable[[int], Any]) -> Any:
    """The method ``initial_state`` of a sharded controller, with its parameters gathered.

    FSDP2 gathers them for the forward alone, until it is told of another method.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    vars(controller)["initial_state"] = lambda batch: outlasting(controller, method(batch))
    register_fsdp_forward_method(controller, "initial_state")
    return controller.initial_state
