"""Every private name of torch that the package uses; no other file has one.

torch promises nothing about these names. Each is here because no public name does the same, or
because the public one costs too much where it is needed. ``tests/test_torch_private.py`` calls
each of them, and runs on the oldest and on the newest torch that the package supports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.jit._trace import is_tracing as is_tracing
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import _register_namedtuple
from torch.utils._pytree import tree_flatten as tree_flatten
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map

# Whether a tensor is of a class that wraps other tensors, such as a quantized or distributed one.
is_traceable_wrapper: Callable[[Any], bool] = is_traceable_wrapper_subclass

# torch.export saves a program that takes or returns a named tuple once this has named its type.
register_namedtuple: Callable[..., None] = _register_namedtuple

# Autograd. An op registers its derivative with them as torch.autograd's own ops do.
any_requires_grad: Callable[..., bool] = torch._C._any_requires_grad
below_autograd: Callable[[], Any] = torch._C._AutoDispatchBelowAutograd
after_autograd = torch._C._after_autograd_keyset
softmax_backward = torch._softmax_backward_data

# The transforms of torch.func: the innermost one at work, or None, and those that differentiate
# or batch, with the functions that use them. Functionalization is a transform too; ops work under
# it unchanged.
innermost_transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
_Transform = torch._C._functorch.TransformType
FUNCTION_TRANSFORMS = {
    _Transform.Grad: "torch.func.grad, vjp or jacrev",
    _Transform.Vmap: "torch.func.vmap",
    _Transform.Jvp: "torch.func.jvp or jacfwd",
}

# How many modes watch every call: fake tensors, profilers of dispatch, a user's own.
dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack

# One call for a whole list of parameters, as the optimizers of torch.optim make it.
foreach_add, foreach_add_ = torch._foreach_add, torch._foreach_add_
foreach_addcdiv_ = torch._foreach_addcdiv_
foreach_addcmul, foreach_addcmul_ = torch._foreach_addcmul, torch._foreach_addcmul_
foreach_clamp_min_ = torch._foreach_clamp_min_
foreach_lerp_, foreach_mul_ = torch._foreach_lerp_, torch._foreach_mul_
foreach_sqrt_ = torch._foreach_sqrt_

_Function = TypeVar("_Function", bound=Callable[..., Any])


def in_forward_ad() -> bool:
    """Whether the caller is inside ``torch.autograd.forward_ad.dual_level``."""
    return forward_ad._current_level >= 0


def tangent_of(tensor: Tensor) -> Tensor | None:
    """The tangent that a tensor carries at the outermost level of forward-mode AD.

    ``forward_ad.unpack_dual`` sees none while ``torch.compile`` traces.
    """
    return torch._VF._unpack_dual(tensor, level=0).tangent


def is_batched(tensor: Tensor) -> bool:
    """Whether ``tensor`` stands for a whole batch of tensors inside a vmap."""
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


def is_differentiated(tensor: Tensor) -> bool:
    """Whether a transform of ``torch.func`` follows ``tensor`` in order to differentiate."""
    return torch._C._functorch.is_gradtrackingtensor(tensor)


def base_of(tensor: Tensor) -> Tensor | None:
    """The tensor that autograd knows ``tensor`` as a view of."""
    return tensor._base


def has_call_hooks(module: nn.Module) -> bool:
    """Whether a call of ``module`` runs hooks other than its forward pre-hooks."""
    own = module._forward_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(own) or _has_any_global_hook()


def forward_pre_hooks(module: nn.Module) -> Mapping[int, Callable[..., Any]]:
    return module._forward_pre_hooks


def parameters_of(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """The module's own parameters by name, without the cost of ``nn.Module.__getattr__``."""
    return module._parameters


def modules_of(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """The module's own submodules by name, without the cost of ``nn.Module.__getattr__``."""
    return module._modules


def assume_constant_result(function: _Function) -> _Function:
    """Mark ``function`` so that ``torch.compile`` calls it while tracing and keeps the result.

    Sets the same mark as ``torch.compiler.assume_constant_result``. That one imports
    ``torch._dynamo``, which takes longer than all the rest of ``import ntm_kernels``.
    """
    function.__dict__["_dynamo_marked_constant"] = True
    return function
