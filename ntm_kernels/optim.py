"""The RMSProp of Graves (2013), with which the paper's tasks are trained, and its schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ntm_kernels import torch_private
from ntm_kernels.backends import get

__all__ = ["GravesRMSprop", "hold_then_linear"]


class GravesRMSprop(Optimizer):
    r"""RMSProp as in Graves (2013, arXiv 1308.0850, equations 38-45).

    For every element θ of a parameter, with its gradient g:

    .. code-block:: text

        n ← ρ n + (1 − ρ) g²
        m ← ρ m + (1 − ρ) g
        Δ ← μ Δ − lr · g / √(max(n − m², 0) + ε)
        θ ← θ + Δ

    It differs from :class:`torch.optim.RMSprop` in where ε stands (inside the root, and large), in
    the learning rate being part of Δ (so that a change of rate acts on new gradients alone), and in
    ``n − m²`` never being negative, which in float32 it otherwise is wherever gradients are steady.

    Args:
        params: parameters, or dictionaries of parameter groups with their own ``lr``, ``decay``,
            ``momentum``, ``eps`` and ``centered``. float32 or float64, dense, real.
        lr: learning rate, ≥ 0.
        decay: ρ, in [0, 1).
        momentum: μ, in [0, 1).
        eps: ε, > 0. It is compared with a variance of gradients: scaling the loss changes its
            effect.
        centered: whether m² is subtracted; without it m is neither computed nor stored.
        foreach: updates all parameters of a group in one call for each operation (the default,
            faster) or one parameter after the other; on a CPU both give the same bits.
        fused: does the whole update in one CPU kernel: on a CPU, for contiguous parameters and
            gradients. ``None``: wherever it can.

    Raises:
        ValueError: a value outside its range.
        TypeError: a parameter that is not float32 or float64, or a sparse gradient.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> optimizer = GravesRMSprop([weight], lr=0.1, momentum=0.0)
    >>> (weight ** 2).sum().backward()
    >>> optimizer.step()
    >>> weight.detach()
    tensor([ 0.5413, -1.5412])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        decay: float = 0.95,
        momentum: float = 0.9,
        eps: float = 1e-4,
        centered: bool = True,
        *,
        foreach: bool = True,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "decay": decay,
            "momentum": momentum,
            "eps": eps,
            "centered": centered,
            "foreach": foreach,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes a state, also one that was saved before ``foreach`` and ``fused`` existed."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("foreach", self.defaults.get("foreach", True))
            group.setdefault("fused", self.defaults.get("fused"))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters after checking its options; see :class:`GravesRMSprop`."""
        options = {**self.defaults, **param_group}
        if not options["lr"] >= 0:
            raise ValueError(f"lr must be at least 0, got {options['lr']}")
        for name in ("decay", "momentum"):
            if not 0 <= options[name] < 1:
                raise ValueError(f"{name} must be in [0, 1), got {options[name]}")
        if not options["eps"] > 0:
            raise ValueError(f"eps must be greater than 0, got {options['eps']}")
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.dtype not in (torch.float32, torch.float64):
                self.param_groups.pop()
                raise TypeError(
                    f"GravesRMSprop needs float32 or float64 parameters, got {parameter.dtype}; "
                    "keep the parameters in float32 and compute under torch.autocast instead"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient.

        Args:
            closure: computes the loss again and returns it, with gradients enabled.

        Returns:
            What ``closure`` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["fused"] is not False:
                parameters = self._update_fused(parameters, group)
            if group["foreach"]:
                # Foreach kernels need all tensors of a call on one device and in one dtype.
                alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
                for parameter in parameters:
                    alike.setdefault((parameter.device, parameter.dtype), []).append(parameter)
                for some in alike.values():
                    self._update_all(some, group)
            else:
                for parameter in parameters:
                    self._update_one(parameter, group)
        return loss

    def _state_of(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Its averages; zeros for those that an option asks for from now on."""
        state = self.state[parameter]
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise TypeError("GravesRMSprop does not support sparse gradients")
        if "square_avg" not in state:
            state["square_avg"] = torch.zeros_like(parameter)
        if group["centered"] and "grad_avg" not in state:
            state["grad_avg"] = torch.zeros_like(parameter)
        if group["momentum"] and "delta" not in state:
            state["delta"] = torch.zeros_like(parameter)
        return state

    def _update_fused(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Update what the CPU kernel can; the others."""
        left: list[Tensor] = []
        alike: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            why_not = _not_fused(parameter, self.state[parameter])
            if why_not is None:
                alike.setdefault(parameter.dtype, []).append(parameter)
            elif group["fused"]:
                raise RuntimeError(f"GravesRMSprop: fused=True, but {why_not}")
            else:
                left.append(parameter)
        for some in alike.values():
            states = [self._state_of(p, group) for p in some]
            torch.ops.ntm.cpu_graves_rmsprop_(
                some,
                [p.grad for p in some],
                [state["square_avg"] for state in states],
                [state["grad_avg"] for state in states] if group["centered"] else [],
                [state["delta"] for state in states] if group["momentum"] else [],
                float(group["lr"]),
                group["decay"],
                group["momentum"],
                group["eps"],
            )
        return left

    def _update_all(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        decay = group["decay"]
        grads = [p.grad for p in parameters if p.grad is not None]
        states = [self._state_of(p, group) for p in parameters]
        square_avgs = [s["square_avg"] for s in states]
        torch_private.foreach_mul_(square_avgs, decay)
        torch_private.foreach_addcmul_(square_avgs, grads, grads, 1 - decay)
        if group["centered"]:
            grad_avgs = [s["grad_avg"] for s in states]
            torch_private.foreach_lerp_(grad_avgs, grads, 1 - decay)
            scales = torch_private.foreach_addcmul(square_avgs, grad_avgs, grad_avgs, -1)
            torch_private.foreach_clamp_min_(scales, 0)
            torch_private.foreach_add_(scales, group["eps"])
        else:
            scales = torch_private.foreach_add(square_avgs, group["eps"])
        torch_private.foreach_sqrt_(scales)
        if group["momentum"]:
            deltas = [s["delta"] for s in states]
            torch_private.foreach_mul_(deltas, group["momentum"])
            torch_private.foreach_addcdiv_(deltas, grads, scales, -group["lr"])
            torch_private.foreach_add_(parameters, deltas)
        else:
            torch_private.foreach_addcdiv_(parameters, grads, scales, -group["lr"])

    def _update_one(self, parameter: Tensor, group: dict[str, Any]) -> None:
        decay, grad = group["decay"], parameter.grad
        assert grad is not None
        state = self._state_of(parameter, group)
        scale = state["square_avg"].mul_(decay).addcmul_(grad, grad, value=1 - decay)
        if group["centered"]:
            grad_avg = state["grad_avg"].lerp_(grad, 1 - decay)
            scale = torch.addcmul(scale, grad_avg, grad_avg, value=-1).clamp_min_(0)
        scale = (scale + group["eps"]).sqrt_()
        if group["momentum"]:
            delta = state["delta"].mul_(group["momentum"])
            parameter.add_(delta.addcdiv_(grad, scale, value=-group["lr"]))
        else:
            parameter.addcdiv_(grad, scale, value=-group["lr"])


def _not_fused(parameter: Tensor, state: dict[str, Tensor]) -> str | None:
    """Why the CPU kernel does not update this parameter; ``None`` if it does."""
    grad = parameter.grad
    assert grad is not None
    if type(parameter) not in (Tensor, nn.Parameter) or type(grad) is not Tensor:
        return f"a parameter is a {type(parameter).__name__}, its gradient a {type(grad).__name__}"
    if not parameter.device.type == grad.device.type == "cpu":
        return f"a parameter is on {parameter.device}"
    if grad.dtype != parameter.dtype:
        return f"a gradient is {grad.dtype}, its parameter {parameter.dtype}"
    if grad.layout is not torch.strided:
        return f"a gradient is {grad.layout}"
    for part in (parameter, grad, *state.values()):
        if not part.is_contiguous():
            return "a parameter, its gradient or an average of it is not contiguous"
    return get("cpu").unavailable()


def hold_then_linear(
    optimizer: Optimizer, total_steps: int, hold: float = 0.75, final: float = 0.02
) -> LambdaLR:
    """Learning rate constant for the first part of the training, then falling linearly.

    Args:
        optimizer: the optimiser whose rate is set.
        total_steps: optimiser steps of the whole training, ≥ 1; the rate stays final afterwards.
        hold: share of the steps at the full rate, in [0, 1].
        final: what the rate falls to at ``total_steps``, as a share of the full rate, in [0, 1].

    Raises:
        ValueError: a value outside its range.

    >>> optimizer = GravesRMSprop([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = hold_then_linear(optimizer, total_steps=4, hold=0.5, final=0.1)
    >>> rates = []
    >>> for _ in range(5):
    ...     rates.append(round(schedule.get_last_lr()[0], 4))
    ...     optimizer.step()
    ...     schedule.step()
    >>> rates
    [1.0, 1.0, 1.0, 0.55, 0.1]
    """
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    for name, value in (("hold", hold), ("final", final)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")

    def factor(step: int) -> float:
        done = min(step / total_steps, 1.0)
        if done <= hold:
            return 1.0
        return 1.0 - (1.0 - final) * (done - hold) / (1.0 - hold)

    return LambdaLR(optimizer, factor)
