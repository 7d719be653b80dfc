"""``torch.ops.ntm``: schemas, fake kernels and autograd of every op.

An op takes the name of the backend that serves it, chosen in Python, so its backward, compiled
graphs and other threads use the same one. What a backward needs beyond arguments and outputs is
the op's last output ``saved``, sized by the backend and empty unless ``save_for_backward``. Each
backward is an op of its own, through which a second derivative raises.

Arguments are checked in ``ntm_kernels.functional``; calling these ops directly checks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import linear

from ntm_kernels.backends import SequenceArguments, SequenceOutputs, Sizes
from ntm_kernels.backends import get as get_backend
from ntm_kernels.reference import arithmetic_dtype

_library = torch.library.Library("ntm", "DEF")


def _op(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    tags = (torch.Tag.pt2_compliant_tag,)
    _library.define(f"{name}{schema}", tags=tags)
    _library.impl(name, _outside_autocast(kernel), "CompositeExplicitAutograd")
    torch.library.register_fake(f"ntm::{name}", fake, lib=_library)


def _outside_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel decides its dtypes itself: autocast must not reach into it."""

    def run(*args: Any) -> Any:
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        if not torch.is_autocast_enabled(device):
            return kernel(*args)
        with torch.autocast(device, enabled=False):
            return kernel(*args)

    return run


def _autograd(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    _differentiable(name, setup, backward)

    def refuse(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(
            f"ntm_kernels: the second derivative of {name} is not implemented; "
            "ntm_kernels.reference has it through plain autograd"
        )

    _differentiable(f"{name}_backward", lambda ctx, inputs, output: None, refuse)


def _refuse_tangents(name: str, args: Sequence[Any]) -> None:
    """Below autograd a tangent would be lost and the derivative 0. ``functional`` refuses it first,
    with the argument's name, but not while ``torch.compile`` traces."""
    if forward_ad._current_level < 0 and torch._C._functorch.peek_interpreter_stack() is None:
        return
    for arg in args:
        if isinstance(arg, Tensor) and torch._VF._unpack_dual(arg, level=0)[1] is not None:
            raise NotImplementedError(
                f"ntm_kernels: forward-mode AD of {name} is not implemented; "
                "ntm_kernels.reference has it"
            )


def _differentiable(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Give an op its derivative, as ``torch.library.register_autograd`` would.

    That one walks the arguments as trees wherever a list is among them, which costs more than the
    whole op at batch 1. Here the list of saved tensors is no output of the autograd node at all.
    """
    op = getattr(torch.ops.ntm, name).default

    def below_autograd(keyset: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    class Derivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
            output = below_autograd(keyset, *args)
            ctx.set_materialize_grads(False)
            setup(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return None, *backward(ctx, *grads)

    def run(keyset: Any, *args: Any) -> Any:
        _refuse_tangents(name, args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return Derivative.apply(keyset, *args)
        return below_autograd(keyset, *args)

    _library.impl(name, run, "Autograd", with_keyset=True)


def _saved(op: str, like: Tensor, backend: str, sizes: Sizes, controller: str = "") -> list[Tensor]:
    dtype = arithmetic_dtype(like.dtype)
    shapes = get_backend(backend).saved_shapes(op, sizes, controller)
    return [like.new_empty(shape, dtype=dtype) for shape in shapes]


def _lifted(tensor: Tensor) -> Tensor:
    return tensor.to(arithmetic_dtype(tensor.dtype))


def _require_saved(op: str, was_saved: bool) -> None:
    if not was_saved:
        raise RuntimeError(
            f"ntm_kernels: {op} ran with save_for_backward=False and cannot be differentiated"
        )


def _like(tensors: Sequence[Tensor | None], none: Tensor) -> tuple[Tensor, ...]:
    """Fake gradients: contiguous, of the shape and dtype of their argument, empty for ``None``."""
    return tuple(
        none.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)
        for tensor in tensors
    )


# address


def _address_sizes(memory: Tensor, key: Tensor, shift: Tensor) -> Sizes:
    return Sizes.of(memory, key.shape[1], num_taps=shift.shape[2])


def _address(*args: Any) -> tuple[Tensor, list[Tensor]]:
    *arguments, backend = args
    return get_backend(backend).address(*arguments)


def _address_fake(*args: Any) -> tuple[Tensor, list[Tensor]]:
    memory, key, _, _, shift, _, previous_weightings, save_for_backward, backend = args
    weightings = previous_weightings.new_empty(previous_weightings.shape)
    if not save_for_backward:
        return weightings, []
    return weightings, _saved("address", memory, backend, _address_sizes(memory, key, shift))


def _address_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.was_saved, ctx.backend = inputs
    weightings, saved = output
    ctx.save_for_backward(*tensors, weightings, *saved)


def _address_autograd(ctx: Any, grad_weightings: Tensor | None, _: Any) -> tuple[Any, ...]:
    _require_saved("address", ctx.was_saved)
    if grad_weightings is None:
        return (None,) * 9
    kept = ctx.saved_tensors
    grads = torch.ops.ntm.address_backward(grad_weightings, *kept[:8], list(kept[8:]), ctx.backend)
    return *grads, None, None


def _address_backward(*args: Any) -> tuple[Tensor, ...]:
    *rest, backend = args
    return get_backend(backend).address_backward(*rest)


def _address_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return _like(args[1:8], args[1])


_ADDRESS = (
    "Tensor memory, Tensor key, Tensor strength, Tensor gate, Tensor shift, Tensor sharpening, "
    "Tensor previous_weightings"
)
_op(
    "address",
    f"({_ADDRESS}, bool save_for_backward, str backend) -> (Tensor weightings, Tensor[] saved)",
    _address,
    _address_fake,
)
_op(
    "address_backward",
    f"(Tensor grad_weightings, {_ADDRESS}, Tensor weightings, Tensor[] saved, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _address_backward,
    _address_backward_fake,
)
_autograd("address", _address_setup, _address_autograd)


# read


def _read(memory: Tensor, weightings: Tensor, backend: str) -> Tensor:
    return get_backend(backend).read(memory, weightings)


def _read_fake(memory: Tensor, weightings: Tensor, backend: str) -> Tensor:
    return memory.new_empty(weightings.shape[0], weightings.shape[1], memory.shape[2])


def _arguments_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _read_autograd(ctx: Any, grad_read_vectors: Tensor | None) -> tuple[Any, ...]:
    if grad_read_vectors is None:
        return None, None, None
    grads = torch.ops.ntm.read_backward(grad_read_vectors, *ctx.saved_tensors, ctx.backend)
    return *grads, None


def _read_backward(
    grad_read_vectors: Tensor, memory: Tensor, weightings: Tensor, backend: str
) -> tuple[Tensor, ...]:
    return get_backend(backend).read_backward(grad_read_vectors, memory, weightings)


def _arguments_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return _like(args[1:-1], args[1])


_op("read", "(Tensor memory, Tensor weightings, str backend) -> Tensor", _read, _read_fake)
_op(
    "read_backward",
    "(Tensor grad_read_vectors, Tensor memory, Tensor weightings, str backend) -> (Tensor, Tensor)",
    _read_backward,
    _arguments_backward_fake,
)
_autograd("read", _arguments_setup, _read_autograd)


# write


def _write(memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor, backend: str) -> Tensor:
    return get_backend(backend).write(memory, weightings, erase, add)


def _write_fake(memory: Tensor, *_: Any) -> Tensor:
    return memory.new_empty(memory.shape)


def _write_autograd(ctx: Any, grad_memory: Tensor | None) -> tuple[Any, ...]:
    if grad_memory is None:
        return (None,) * 5
    grads = torch.ops.ntm.write_backward(grad_memory, *ctx.saved_tensors, ctx.backend)
    return *grads, None


def _write_backward(grad_memory: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *tensors, backend = args
    return get_backend(backend).write_backward(grad_memory, *tensors)


_WRITE = "Tensor memory, Tensor weightings, Tensor erase, Tensor add"
_op("write", f"({_WRITE}, str backend) -> Tensor", _write, _write_fake)
_op(
    "write_backward",
    f"(Tensor grad_memory, {_WRITE}, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _write_backward,
    _arguments_backward_fake,
)
_autograd("write", _arguments_setup, _write_autograd)


# step


def _step_sizes(
    memory: Tensor, num_read_heads: int, num_write_heads: int, shift_range: int
) -> Sizes:
    return Sizes.of(
        memory, num_read_heads, num_write_heads=num_write_heads, num_taps=2 * shift_range + 1
    )


def _step(
    memory: Tensor,
    interface: Tensor,
    previous_weightings: Tensor,
    num_read_heads: int,
    num_write_heads: int,
    shift_range: int,
    save_for_backward: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    sizes = _step_sizes(memory, num_read_heads, num_write_heads, shift_range)
    return get_backend(backend).step(
        memory, interface, previous_weightings, sizes, save_for_backward
    )


def _step_fake(
    memory: Tensor,
    interface: Tensor,
    previous_weightings: Tensor,
    num_read_heads: int,
    num_write_heads: int,
    shift_range: int,
    save_for_backward: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    sizes = _step_sizes(memory, num_read_heads, num_write_heads, shift_range)
    return (
        memory.new_empty(sizes.batch, num_read_heads, sizes.word_size),
        memory.new_empty(memory.shape),
        previous_weightings.new_empty(previous_weightings.shape),
        _saved("step", memory, backend, sizes) if save_for_backward else [],
    )


def _step_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.read_heads, ctx.write_heads, ctx.shift_range, ctx.was_saved, ctx.backend = inputs
    _, _, weightings, saved = output
    ctx.save_for_backward(*tensors, weightings, *saved)


def _step_autograd(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    _require_saved("step", ctx.was_saved)
    grads = grads[:3]
    if all(grad is None for grad in grads):
        return (None,) * 8
    kept = ctx.saved_tensors
    heads = ctx.read_heads, ctx.write_heads, ctx.shift_range
    results = torch.ops.ntm.step_backward(*grads, *kept[:4], list(kept[4:]), *heads, ctx.backend)
    return (*results, *(None,) * 5)


def _step_backward(*args: Any) -> tuple[Tensor, ...]:
    num_read_heads, num_write_heads, shift_range, backend = args[8:]
    sizes = _step_sizes(args[3], num_read_heads, num_write_heads, shift_range)
    arguments = (*args[:8], sizes)
    return get_backend(backend).step_backward(*arguments)


def _step_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return _like(args[3:6], args[3])


_STEP = "Tensor memory, Tensor interface, Tensor previous_weightings"
_HEADS = "int num_read_heads, int num_write_heads, int shift_range"
_op(
    "step",
    f"({_STEP}, {_HEADS}, bool save_for_backward, str backend)"
    " -> (Tensor read_vectors, Tensor memory, Tensor weightings, Tensor[] saved)",
    _step,
    _step_fake,
)
_op(
    "step_backward",
    "(Tensor? grad_read_vectors, Tensor? grad_memory, Tensor? grad_weightings, "
    f"{_STEP}, Tensor weightings, Tensor[] saved, {_HEADS}, str backend) -> (Tensor, Tensor, Tensor)",
    _step_backward,
    _step_backward_fake,
)
_autograd("step", _step_setup, _step_autograd)


# sequence


def _sequence_sizes(
    arguments: SequenceArguments,
    num_read_heads: int,
    num_write_heads: int,
    shift_range: int,
    checkpoint_every: int,
) -> Sizes:
    return Sizes.of(
        arguments.memory,
        num_read_heads,
        num_write_heads=num_write_heads,
        num_taps=2 * shift_range + 1,
        time=arguments.input.shape[0],
        hidden_size=arguments.interface_weight.shape[1],
        checkpoint_every=checkpoint_every,
    )


def _sequence(*args: Any) -> tuple[Any, ...]:
    arguments = SequenceArguments(*args[:12])
    reads, writes, shift_range, controller, checkpoint_every = args[12:17]
    save_for_backward, return_trace, name = args[17:]
    sizes = _sequence_sizes(arguments, reads, writes, shift_range, checkpoint_every)
    backend = get_backend(name)
    x, weight, bias = arguments.input, arguments.input_weight, arguments.input_bias
    if weight is not None and bias is not None and not backend.projects_input:
        projected = linear(_lifted(x), _lifted(weight), _lifted(bias))
        arguments = SequenceArguments(projected, *arguments[1:10])
    outputs, saved = backend.sequence(arguments, sizes, controller, save_for_backward, return_trace)
    return *outputs, saved


def _sequence_fake(*args: Any) -> tuple[Any, ...]:
    arguments = SequenceArguments(*args[:12])
    reads, writes, shift_range, controller, checkpoint_every = args[12:17]
    save_for_backward, return_trace, backend = args[17:]
    sizes = _sequence_sizes(arguments, reads, writes, shift_range, checkpoint_every)
    memory, weightings = arguments.memory, arguments.weightings
    read_vectors = arguments.read_vectors
    dtype = arithmetic_dtype(memory.dtype)
    steps = (sizes.time, sizes.batch)
    empty = memory.new_empty(0)
    hidden = memory if arguments.hidden is None else arguments.hidden
    cell = memory if arguments.cell is None else arguments.cell
    interface_size = arguments.interface_bias.shape[0]
    state = (sizes.batch, sizes.hidden_size)
    is_lstm = controller == "lstm"
    outputs = SequenceOutputs(
        hidden=hidden.new_empty(*steps, sizes.hidden_size),
        read_vectors=read_vectors.new_empty(sizes.time, *read_vectors.shape),
        memory=memory.new_empty(memory.shape),
        weightings=weightings.new_empty(weightings.shape),
        final_read_vectors=read_vectors.new_empty(read_vectors.shape),
        final_hidden=hidden.new_empty(state) if is_lstm else empty,
        final_cell=cell.new_empty(state) if is_lstm else memory.new_empty(0),
        trace_weightings=weightings.new_empty(
            (sizes.time, *weightings.shape) if return_trace else (0,)
        ),
        trace_interface=memory.new_empty(
            (*steps, interface_size) if return_trace else (0,), dtype=dtype
        ),
    )
    saved = _saved("sequence", memory, backend, sizes, controller) if save_for_backward else []
    return *outputs, saved


def _sequence_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.numbers = inputs[12:17]
    ctx.was_saved, _, ctx.backend = inputs[17:]
    *outputs, saved = output
    ctx.mark_non_differentiable(outputs[7], outputs[8])
    ctx.save_for_backward(*inputs[:12], *outputs[:2], *saved)


def _sequence_autograd(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    _require_saved("sequence", ctx.was_saved)
    grads = grads[:7]
    if all(grad is None for grad in grads):
        return (None,) * 20
    kept = ctx.saved_tensors
    tensors, saved = kept[:14], list(kept[14:])
    input_needs_grad = ctx.needs_input_grad[1]
    results = torch.ops.ntm.sequence_backward(
        *grads, *tensors, saved, *ctx.numbers, input_needs_grad, ctx.backend
    )
    of_arguments = [
        None if argument is None else result
        for argument, result in zip((*tensors[:9], *tensors[10:12]), results, strict=True)
    ]
    if not input_needs_grad:
        of_arguments[0] = None
    return (*of_arguments[:9], None, *of_arguments[9:], *(None,) * 8)


def _sequence_backward(*args: Any) -> tuple[Tensor, ...]:
    grads, arguments = list(args[:7]), SequenceArguments(*args[7:19])
    hidden, read_vectors, saved = args[19:22]
    reads, writes, shift_range, controller, checkpoint_every, input_needs_grad, name = args[22:]
    sizes = _sequence_sizes(arguments, reads, writes, shift_range, checkpoint_every)
    backend = get_backend(name)
    x, weight, bias = arguments.input, arguments.input_weight, arguments.input_bias
    if weight is None or bias is None:
        results = backend.sequence_backward(
            grads, arguments, hidden, read_vectors, saved, sizes, controller
        )
        return *results, x.new_empty(0), x.new_empty(0)
    if not backend.projects_input:
        # Of the projected input a backward needs the shape alone.
        projected = _lifted(x.new_empty(1)).expand(*x.shape[:2], weight.shape[0])
        arguments = SequenceArguments(projected, *arguments[1:10])
    d_projected, *others = backend.sequence_backward(
        grads, arguments, hidden, read_vectors, saved, sizes, controller
    )
    if not backend.projects_input:
        rows = d_projected.flatten(0, 1)
        d_weight = rows.mT @ x.flatten(0, 1).to(rows.dtype)
        others += [d_weight.to(weight.dtype), rows.sum(0).to(bias.dtype)]
    d_input = d_projected @ weight.to(d_projected.dtype) if input_needs_grad else x.new_empty(0)
    return d_input.to(x.dtype), *others


def _sequence_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    arguments = SequenceArguments(*args[7:19])
    input_needs_grad = args[27]
    none = arguments.memory.new_empty(0, dtype=arithmetic_dtype(arguments.memory.dtype))
    x, *others = arguments[:9]
    weight, bias = arguments[10:]
    unused = x.new_empty(0)
    d_input = unused if weight is not None and not input_needs_grad else x.new_empty(x.shape)
    return d_input, *_like(others, none), *_like((weight, bias), unused)


_SEQUENCE = (
    "Tensor input, Tensor recurrent_weight, Tensor interface_weight, "
    "Tensor interface_bias, Tensor memory, Tensor weightings, Tensor read_vectors, Tensor? hidden, "
    "Tensor? cell, Tensor? lengths, Tensor? input_weight, Tensor? input_bias"
)
_op(
    "sequence",
    f"({_SEQUENCE}, {_HEADS}, str controller, SymInt checkpoint_every, bool save_for_backward, "
    "bool return_trace, str backend) -> (Tensor hidden, Tensor read_vectors, Tensor memory, "
    "Tensor weightings, Tensor final_read_vectors, Tensor final_hidden, Tensor final_cell, "
    "Tensor trace_weightings, Tensor trace_interface, Tensor[] saved)",
    _sequence,
    _sequence_fake,
)
_op(
    "sequence_backward",
    "(Tensor? grad_hidden, Tensor? grad_read_vectors, Tensor? grad_memory, Tensor? grad_weightings, "
    "Tensor? grad_final_read_vectors, Tensor? grad_final_hidden, Tensor? grad_final_cell, "
    f"{_SEQUENCE}, Tensor out_hidden, Tensor out_read_vectors, Tensor[] saved, {_HEADS}, "
    "str controller, SymInt checkpoint_every, bool input_needs_grad, str backend) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _sequence_backward,
    _sequence_backward_fake,
)
_autograd("sequence", _sequence_setup, _sequence_autograd)
