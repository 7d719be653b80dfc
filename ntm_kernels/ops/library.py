"""``torch.ops.ntm``: each declared op and its backward, with fake kernels and derivative.

An op takes the name of the backend that serves it, chosen in Python, so that its backward, compiled
graphs and other threads use the same one. Its last output is the list of tensors that the backend
saves for the backward, empty unless ``save_for_backward``. A tensor that is not there (an LSTM's
state of a feed-forward controller, a gradient that nobody wants) is an empty one here and ``None``
in the records. Each backward is an op of its own, through which a second derivative raises. Where
the backend has every derivative, a backward that is itself to be differentiated does not call that
op: it is computed by ``ntm_kernels.ops.by_equations``.

A program of ``torch.export`` may run on another machine than the one that made it. Its calls have
``None`` for ``save_for_backward`` and, unless a backend was asked for, for ``backend``: both are
decided when the call runs. Nothing that depends on the backend is then in the program.

Arguments are checked in ``ntm_kernels.ops.call``; calling these ops directly checks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, NoReturn

import torch
from torch import Tensor

from ntm_kernels import torch_private
from ntm_kernels.backends import choose as choose_backend
from ntm_kernels.backends import get as get_backend
from ntm_kernels.backends import trust
from ntm_kernels.backends.base import USE_TORCH, problem_of, restore
from ntm_kernels.checks import outside_autocast, transform_of_grads
from ntm_kernels.ops import OPS, by_equations
from ntm_kernels.ops.declare import (
    Op,
    choose,
    dtypes_of,
    empty,
    fields,
    leading,
    those_present,
    unpack,
)
from ntm_kernels.ops.sizes import Sizes

_library = torch.library.Library("ntm", "DEF")


def _define(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    _library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, _outside_autocast(kernel), "CompositeExplicitAutograd")
    torch.library.register_fake(f"ntm::{name}", fake, lib=_library)


def _outside_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel decides its dtypes itself: autocast must not reach into it."""

    def run(*args: Any) -> Any:
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        return outside_autocast(device, kernel, *args)

    return run


def _results(record: Iterable[Tensor | None], like: Tensor) -> list[Tensor]:
    return [like.new_empty(0) if part is None else part for part in record]


def _returned(first: Tensor, *others: Tensor) -> Any:
    """The results as torch wants them of an op: one alone is no tuple."""
    return (first, *others) if others else first


def _require_steps(op: Op[Any, Any, Any], sizes: Sizes) -> None:
    """An exported program may be called with any number of steps, and a backend needs one."""
    if op.name == "sequence" and sizes.time == 0:
        raise ValueError(
            "ntm_kernels: a program of torch.export needs at least one step, got x with T=0; "
            "without a step, go on with the state that you have"
        )


def _chosen(op: Op[Any, Any, Any], inputs: Any, sizes: Sizes, backend: str | None) -> str:
    """The backend of a call, which is chosen now if it was not before."""
    if backend is not None:
        return backend
    return choose_backend(problem_of(op, inputs, sizes)).backend


def _define_op(op: Op[Any, Any, Any]) -> None:
    def forward(*args: Any) -> Any:
        inputs, options, (save_for_backward, backend) = unpack(args, op.inputs, op.options)
        sizes = op.sizes(inputs, options)
        if save_for_backward is None:
            _require_steps(op, sizes)
        serving = get_backend(_chosen(op, inputs, sizes, backend))
        if trust.pending:  # chosen while something traced
            trust.settle(serving, problem_of(op, inputs, sizes))
        kernel = serving.kernels[op.name]
        outputs, saved = kernel.forward(inputs, sizes, bool(save_for_backward))
        like = leading(inputs)
        kept = [] if saved is None else [part for part in saved if part is not None]
        return *_results(outputs, like), kept

    def fake(*args: Any) -> Any:
        inputs, options, (save_for_backward, backend) = unpack(args, op.inputs, op.options)
        sizes, like = op.sizes(inputs, options), leading(inputs)
        outputs = empty(op.outputs, sizes, like, dtypes_of(inputs))
        if not save_for_backward:
            return *_results(outputs, like), []
        kernel = get_backend(_chosen(op, inputs, sizes, backend)).kernels[op.name]
        saved = kernel.empty_saved(sizes, like)
        return *_results(outputs, like), [part for part in saved if part is not None]

    _define(op.name, op.schema(), forward, fake)


def _define_backward(op: Op[Any, Any, Any]) -> None:
    shapes = (len(op.differentiated_outputs), op.inputs, len(op.kept_outputs), 1, op.options)

    def backward(*args: Any) -> Any:
        given, inputs, kept, (saved,), options, (wanted, backend) = unpack(args, *shapes)
        sizes, names = op.sizes(inputs, options), _wanted(op, wanted)
        grads = those_present(choose(op.outputs, op.differentiated_outputs, given), sizes)
        outputs = choose(op.outputs, op.kept_outputs, kept)
        kernel = get_backend(backend).kernels[op.name]
        found = kernel.backward(
            grads, inputs, outputs, restore(kernel, saved, sizes), sizes, names
        )._asdict()
        results = (found[name] if name in names else None for name in op.differentiated_inputs)
        return _returned(*_results(results, leading(inputs)))

    def fake(*args: Any) -> Any:
        _, inputs, _, _, _, (wanted, _) = unpack(args, *shapes)
        names, tensors = _wanted(op, wanted), inputs._asdict()
        results = (
            tensors[name].new_empty(tensors[name].shape) if name in names else None
            for name in op.differentiated_inputs
        )
        return _returned(*_results(results, leading(inputs)))

    _define(f"{op.name}_backward", op.backward_schema(), backward, fake)


def _wanted(op: Op[Any, Any, Any], flags: Iterable[bool]) -> frozenset[str]:
    pairs = zip(op.differentiated_inputs, flags, strict=True)
    return frozenset(name for name, flag in pairs if flag)


def _differentiate(op: Op[Any, Any, Any]) -> None:
    """The derivative of an op, and that of its backward, which raises."""
    backward_op = getattr(torch.ops.ntm, f"{op.name}_backward")

    def setup(ctx: Any, args: Sequence[Any], results: Sequence[Any]) -> None:
        inputs, options, (ctx.was_saved, ctx.backend) = unpack(args, op.inputs, op.options)
        outputs, (saved,) = unpack(results, op.outputs)
        ctx.options = options
        named = outputs._asdict()
        kept = [named[name] for name in op.kept_outputs]
        ctx.mark_non_differentiable(
            *(named[name] for name, field in fields(op.outputs).items() if not field.differentiable)
        )
        ctx.save_for_backward(*inputs, *kept, *saved)

    def backward(ctx: Any, *grads: Any) -> Any:
        if not ctx.was_saved:
            raise RuntimeError(
                f"ntm_kernels: {op.name} ran with save_for_backward=False and cannot be "
                "differentiated"
            )
        found, _ = unpack(grads, op.outputs)
        named = found._asdict()
        given = [named[name] for name in op.differentiated_outputs]
        if all(grad is None for grad in given):
            return (None,) * (len(fields(op.inputs)) + len(ctx.options) + 2)
        inputs, kept, saved = unpack(ctx.saved_tensors, op.inputs, len(op.kept_outputs))
        wanted = _needed(op, inputs, ctx)
        if _beyond_the_kernel(op.name, ctx.backend, given):
            given = choose(op.outputs, op.differentiated_outputs, given)
            sizes = op.sizes(inputs, ctx.options)
            of_inputs = by_equations.backward(op, given, inputs, sizes, _wanted(op, wanted))
            return *of_inputs, *(None,) * (len(ctx.options) + 2)
        results = backward_op(*given, *inputs, *kept, saved, *ctx.options, wanted, ctx.backend)
        results = (results,) if isinstance(results, Tensor) else results
        back = (part if flag else None for part, flag in zip(results, wanted, strict=True))
        of_inputs = choose(op.inputs, op.differentiated_inputs, back)
        return *of_inputs, *(None,) * (len(ctx.options) + 2)

    def decided(args: Sequence[Any]) -> Sequence[Any]:
        """The arguments of a call that autograd records, with nothing left open."""
        inputs, options, (save_for_backward, backend) = unpack(args, op.inputs, op.options)
        if save_for_backward is not None:
            return args
        sizes = op.sizes(inputs, options)
        _require_steps(op, sizes)
        return *inputs, *options, True, _chosen(op, inputs, sizes, backend)

    _register_derivative(op.name, setup, backward, decided)

    def refuse(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(
            f"ntm_kernels: the second derivative of {op.name} is not implemented on this backend; "
            f"{USE_TORCH}"
        )

    _register_derivative(f"{op.name}_backward", lambda ctx, args, results: None, refuse)


def _beyond_the_kernel(op: str, backend: str, grads: Iterable[Tensor | None]) -> bool:
    """Whether a backward is asked for what the hand-derived one of a kernel does not have.

    Raises ``NotImplementedError`` where the backend has nothing else. Such a backend may run while
    its backward is recorded: only a backward through that backward raises.
    """
    transform = transform_of_grads(grads)
    if get_backend(backend).every_derivative:
        return bool(transform) or torch.is_grad_enabled()
    if transform:
        raise NotImplementedError(
            f"{op}: {transform}: not implemented on the backend {backend!r}; {USE_TORCH}, or ask "
            "for the gradients one by one, by an ordinary backward"
        )
    return False


def _needed(op: Op[Any, Any, Any], inputs: Any, ctx: Any) -> list[bool]:
    """Of each differentiable input, whether it is there and autograd asks for its gradient."""
    # The first argument of the autograd function is the set of dispatch keys.
    flags = islice(ctx.needs_input_grad, 1, None)
    needed = dict(zip(fields(op.inputs), flags, strict=False))
    tensors = inputs._asdict()
    return [needed[name] and tensors[name] is not None for name in op.differentiated_inputs]


def _refuse_tangents(name: str, args: Sequence[Any]) -> None:
    """Below autograd a tangent would be lost and the derivative 0. ``ops.call`` refuses it first,
    with the argument's name, but not while ``torch.compile`` traces."""
    if not torch_private.in_forward_ad() and torch_private.innermost_transform() is None:
        return
    for arg in args:
        if isinstance(arg, Tensor) and torch_private.tangent_of(arg) is not None:
            raise NotImplementedError(
                f"ntm_kernels: forward-mode AD of {name} is not implemented in torch.ops.ntm; "
                f"{USE_TORCH}. With torch.compile, call torch.func.jvp inside the compiled function"
            )


def _register_derivative(
    name: str,
    setup: Callable[..., None],
    backward: Callable[..., Any],
    decided: Callable[[Sequence[Any]], Sequence[Any]] = lambda args: args,
) -> None:
    """Give an op its derivative, as ``torch.library.register_autograd`` would.

    ``decided`` completes the arguments of a call that autograd records.

    That function flattens the arguments as pytrees wherever a list is among them, which costs more
    than the whole op at batch 1. Here the list of saved tensors is no output of the autograd node.
    """
    overload = getattr(torch.ops.ntm, name).default

    def below_autograd(keyset: Any, *args: Any) -> Any:
        with torch_private.below_autograd():
            return overload.redispatch(keyset & torch_private.after_autograd, *args)

    class Derivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
            results = below_autograd(keyset, *args)
            ctx.set_materialize_grads(False)
            setup(ctx, args, results)
            return results

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return None, *backward(ctx, *grads)

    def run(keyset: Any, *args: Any) -> Any:
        _refuse_tangents(name, args)
        # torch.export keeps the call itself, and autograd records it when the program runs.
        exporting = torch.compiler.is_exporting()
        recorded = torch.is_grad_enabled() and torch_private.any_requires_grad(*args)
        if recorded and not exporting:
            return Derivative.apply(keyset, *decided(args))
        return below_autograd(keyset, *args)

    _library.impl(name, run, "Autograd", with_keyset=True)


for _op in OPS.values():
    _define_op(_op)
    _define_backward(_op)
    _differentiate(_op)
