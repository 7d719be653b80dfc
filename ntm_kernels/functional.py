"""The NTM as functions: ``address``, ``read``, ``write``, ``step`` and ``sequence``.

Every function is functional (no argument is mutated), differentiable once in every tensor argument,
and runs on the backend that ``ntm_kernels.backends`` chooses, or on the one named by ``backend=``.

Sizes: batch ``B``, memory locations ``N``, word size ``M``, read heads ``R``, write heads ``W``,
heads ``H = R + W`` with the read heads first, shift taps ``S = 2 * shift_range + 1``, controller
width ``C``, steps ``T``. Equation numbers are those of Graves et al. 2014, arXiv 1410.5401;
``ntm_kernels.reference`` has them in code.

Dtypes: tensors of one kind share a dtype. All are float64, or they are float32 and at most one of
bfloat16 and float16. Arithmetic is in float32 (float64 for float64), and a result has the dtype of
the argument of its kind: memory and read vectors that of ``memory``, weightings that of
``previous_weightings``. Values are not checked (a GPU would have to be synchronised): strength ≥ 0,
0 ≤ gate ≤ 1, sharpening ≥ 1, 0 ≤ erase ≤ 1, shift and weightings distributions. With float16 memory
its gradient grows as 1/‖M_i‖ and may overflow to inf where a row is tiny.

All raise ``TypeError`` for a wrong type or dtype, ``ValueError`` for a wrong shape or device,
``NotImplementedError`` under forward-mode AD and ``torch.func``, and ``ntm_kernels.BackendError``
where the backend asked for cannot serve the call. A second derivative raises ``RuntimeError``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ntm_kernels.ops  # noqa: F401  (registers torch.ops.ntm)
from ntm_kernels import checks
from ntm_kernels.backends import BackendChoice, Problem, SequenceArguments, Sizes, choose
from ntm_kernels.backends import explain as explain_choice
from ntm_kernels.backends import get as get_backend
from ntm_kernels.interface import InterfaceLayout
from ntm_kernels.reference import SequenceResult, SequenceState, Trace, arithmetic_dtype

__all__ = ["address", "explain", "read", "sequence", "step", "write"]


def address(
    memory: Tensor,
    key: Tensor,
    strength: Tensor,
    gate: Tensor,
    shift: Tensor,
    sharpening: Tensor,
    previous_weightings: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Weightings of all heads from activated parameters, equations 5 to 9.

    Content ``w^c = softmax(β K[k, M_i])`` with the cosine similarity K, interpolation
    ``w^g = g w^c + (1 − g) w_{t−1}``, circular shift ``w̃_i = Σ_o s_o w^g_{i−o}``, sharpening
    ``w_i = w̃_i^γ / Σ_j w̃_j^γ``, uniform without gradient where no ``w̃_i`` reaches 1e-20.

    Args:
        memory: ``[B, N, M]``.
        key: ``[B, H, M]``.
        strength: β ``[B, H]``.
        gate: g ``[B, H]``.
        shift: s ``[B, H, S]``, S odd; tap 0 has offset ``−(S // 2)``, and all mass on offset o
            moves the focus by o rows. S may exceed N.
        sharpening: γ ``[B, H]``.
        previous_weightings: ``[B, H, N]``; all zero is valid too.
        backend: name of the backend, or ``None`` to choose.

    Returns:
        Weights ``[B, H, N]``, in the dtype of ``previous_weightings``.

    The focus is on row 0 and moves one row on:

    >>> import torch
    >>> memory = torch.eye(4)[None]
    >>> one = torch.ones(1, 1)
    >>> focus = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    >>> address(memory, memory[:, :1], one, 0 * one, torch.tensor([[[0.0, 0.0, 1.0]]]), one, focus)
    tensor([[[0., 1., 0., 0.]]])
    """
    given = checks.Arguments("address")
    given.tensor("memory", memory, "B N M")
    given.tensor("key", key, "B H M")
    given.tensor("strength", strength, "B H")
    given.tensor("gate", gate, "B H")
    given.tensor("shift", shift, "B H S")
    given.tensor("sharpening", sharpening, "B H")
    given.tensor("previous_weightings", previous_weightings, "B H N")
    checks.odd_taps("address", shift)
    given.dtypes(
        memory=("memory",),
        weightings=("previous_weightings",),
        head_parameters=("key", "strength", "gate", "shift", "sharpening"),
    )
    sizes = Sizes.of(memory, key.shape[1], num_taps=shift.shape[2])
    chosen = _choose(_problem("address", memory, key, sizes), backend)
    weightings, _ = torch.ops.ntm.address(
        memory,
        key,
        strength,
        gate,
        shift,
        sharpening,
        previous_weightings,
        given.needs_grad(),
        chosen,
    )
    return weightings


def read(memory: Tensor, weightings: Tensor, *, backend: str | None = None) -> Tensor:
    """Read vectors ``r = Σ_i w_i M_i``, equation 2.

    Args:
        memory: ``[B, N, M]``.
        weightings: ``[B, H, N]``.
        backend: name of the backend, or ``None`` to choose.

    Returns:
        Read vectors ``[B, H, M]``, in the dtype of ``memory``.

    >>> import torch
    >>> memory = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    >>> read(memory, torch.tensor([[[0.5, 0.5]]]))
    tensor([[[0.5000, 1.0000]]])
    """
    given = checks.Arguments("read")
    given.tensor("memory", memory, "B N M")
    given.tensor("weightings", weightings, "B H N")
    given.dtypes(memory=("memory",), weightings=("weightings",))
    given.needs_grad()
    sizes = Sizes.of(memory, weightings.shape[1])
    chosen = _choose(_problem("read", memory, weightings, sizes), backend)
    return torch.ops.ntm.read(memory, weightings, chosen)


def write(
    memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor, *, backend: str | None = None
) -> Tensor:
    """The memory after all write heads: ``M_i ∘ Π_h (1 − w_{h,i} e_h) + Σ_h w_{h,i} a_h``.

    Equations 3 and 4; every head erases before any head adds.

    Args:
        memory: ``[B, N, M]``; not changed.
        weightings: ``[B, H, N]``.
        erase: e ``[B, H, M]``.
        add: a ``[B, H, M]``.
        backend: name of the backend, or ``None`` to choose.

    Returns:
        Memory ``[B, N, M]``, in the dtype of ``memory``.

    >>> import torch
    >>> focus = torch.tensor([[[0.0, 1.0]]])
    >>> write(torch.ones(1, 2, 2), focus, torch.ones(1, 1, 2), torch.tensor([[[3.0, 4.0]]]))
    tensor([[[1., 1.],
             [3., 4.]]])
    """
    given = checks.Arguments("write")
    given.tensor("memory", memory, "B N M")
    given.tensor("weightings", weightings, "B H N")
    given.tensor("erase", erase, "B H M")
    given.tensor("add", add, "B H M")
    given.dtypes(memory=("memory",), weightings=("weightings",), head_parameters=("erase", "add"))
    given.needs_grad()
    sizes = Sizes.of(memory, 0, num_write_heads=weightings.shape[1])
    chosen = _choose(_problem("write", memory, erase, sizes), backend)
    return torch.ops.ntm.write(memory, weightings, erase, add, chosen)


def step(
    memory: Tensor,
    interface: Tensor,
    previous_weightings: Tensor,
    *,
    num_read_heads: int,
    num_write_heads: int,
    shift_range: int,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One time step from the raw interface vector: activate, address, read, write.

    All heads address ``M_{t−1}``, the read heads read it, then the write heads write. The interface
    vector holds, for read heads before write heads in each group, key ``[H·M]``, strength ``[H]``,
    gate ``[H]``, shift ``[H·S]``, sharpening ``[H]``, erase ``[W·M]``, add ``[W·M]``
    (``ntm_kernels.InterfaceLayout``); activations are ``β = softplus``, ``g = sigmoid``,
    ``s = softmax``, ``γ = 1 + softplus``, ``e = sigmoid``, key and add are linear.

    Args:
        memory: ``[B, N, M]``.
        interface: ``[B, P]``, ``P = InterfaceLayout(M, R, W, shift_range).size``.
        previous_weightings: ``[B, H, N]``.
        num_read_heads: R.
        num_write_heads: W.
        shift_range: largest shift, in rows.
        backend: name of the backend, or ``None`` to choose.

    Returns:
        Read vectors ``[B, R, M]``, memory ``[B, N, M]`` and weightings ``[B, H, N]``.

    >>> import torch
    >>> layout = InterfaceLayout(word_size=4, num_read_heads=1, num_write_heads=1, shift_range=1)
    >>> memory, weightings = torch.zeros(2, 8, 4), torch.full((2, 2, 8), 1 / 8)
    >>> read_vectors, memory, weightings = step(
    ...     memory, torch.randn(2, layout.size), weightings,
    ...     num_read_heads=1, num_write_heads=1, shift_range=1)
    >>> read_vectors.shape, memory.shape, weightings.shape
    (torch.Size([2, 1, 4]), torch.Size([2, 8, 4]), torch.Size([2, 2, 8]))
    """
    plan, plain = _planned(
        _step_plan,
        memory,
        interface,
        previous_weightings,
        num_read_heads,
        num_write_heads,
        shift_range,
    )
    chosen = _choose(plan.problem, backend)
    tensors = {"memory": memory, "interface": interface, "previous_weightings": previous_weightings}
    save_for_backward = checks.needs_grad("step", tensors)
    if plain and _straight("step", chosen):
        read_vectors, memory, weightings, _ = get_backend(chosen).step(
            memory, interface, previous_weightings, plan.problem.sizes, save_for_backward
        )
    else:
        read_vectors, memory, weightings, _ = torch.ops.ntm.step(
            memory,
            interface,
            previous_weightings,
            num_read_heads,
            num_write_heads,
            shift_range,
            save_for_backward,
            chosen,
        )
    return read_vectors, memory, weightings


def _step_plan(
    memory: Tensor,
    interface: Tensor,
    previous_weightings: Tensor,
    num_read_heads: int,
    num_write_heads: int,
    shift_range: int,
) -> _Plan:
    """Check the arguments of ``step``."""
    given = checks.Arguments("step")
    layout = _layout(given, num_read_heads, num_write_heads, shift_range, memory)
    given.tensor("interface", interface, "B P")
    given.tensor("previous_weightings", previous_weightings, "B H N")
    given.dtypes(
        memory=("memory",), weightings=("previous_weightings",), head_parameters=("interface",)
    )
    sizes = Sizes.of(
        memory, num_read_heads, num_write_heads=num_write_heads, num_taps=layout.num_taps
    )
    return _Plan(layout, _problem("step", memory, interface, sizes))


def sequence(
    x: Tensor,
    recurrent_weight: Tensor,
    interface_weight: Tensor,
    interface_bias: Tensor,
    memory: Tensor,
    weightings: Tensor,
    read_vectors: Tensor,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    *,
    num_read_heads: int,
    num_write_heads: int,
    shift_range: int,
    lengths: Tensor | None = None,
    input_weight: Tensor | None = None,
    input_bias: Tensor | None = None,
    checkpoint_every: int | None = None,
    return_trace: bool = False,
    backend: str | None = None,
) -> SequenceResult:
    """A whole sequence in one call, controller included.

    With ``hidden`` and ``cell`` the controller is an LSTM, gates ``i, f, g, o = x̂_t + W [r_{t−1},
    h_{t−1}]`` in the order of ``torch.nn.LSTM``; without, it is feed-forward,
    ``h_t = tanh(x̂_t + W r_{t−1})``. Then ``interface_weight @ h_t + interface_bias`` drives one
    ``step``. The input projection ``x̂`` of all steps (bias included) is one matrix product outside;
    or, with ``input_weight`` and ``input_bias``, the call does that too, ``x̂_t = W_x x_t + b``.

    The backward does not store the memory of every step but one in ``checkpoint_every``, and
    recomputes those between.

    Args:
        x: x̂ ``[T, B, G]``, G = 4C for an LSTM, else C; or x ``[T, B, I]``.
        recurrent_weight: ``[4C, R·M + C]`` for an LSTM, else ``[C, R·M]``.
        interface_weight: ``[P, C]``, ``P = InterfaceLayout(M, R, W, shift_range).size``.
        interface_bias: ``[P]``.
        memory: initial memory ``[B, N, M]``.
        weightings: initial weightings ``[B, H, N]``.
        read_vectors: initial read vectors ``[B, R, M]``, in the dtype of ``memory``.
        hidden: initial h of an LSTM ``[B, C]``, or ``None``.
        cell: initial c of an LSTM ``[B, C]``; give both or none.
        num_read_heads: R.
        num_write_heads: W.
        shift_range: largest shift, in rows.
        lengths: ``[B]`` int64, steps of each sequence; beyond them outputs are 0, the state stays,
            and the padding has no influence. ``None``: all T. One outside ``0 … T`` raises on a
            CPU; on a GPU and in compiled code the values are not looked at.
        input_weight: W_x ``[G, I]``, or ``None`` where the input comes projected.
        input_bias: b ``[G]``; give both or none.
        checkpoint_every: steps between stored memories; ``None`` chooses about √T.
        return_trace: also return what the heads did at every step.
        backend: name of the backend, or ``None`` to choose.

    Returns:
        ``SequenceResult``: hidden ``[T, B, C]``, read vectors ``[T, B, R, M]``, the final state,
        and the trace or ``None``.

    >>> import torch
    >>> T, B, N, M, C = 5, 2, 16, 4, 8
    >>> layout = InterfaceLayout(M, num_read_heads=1, num_write_heads=1, shift_range=1)
    >>> focus = torch.zeros(B, 2, N)
    >>> focus[:, :, 0] = 1
    >>> result = sequence(
    ...     torch.randn(T, B, 4 * C), torch.randn(4 * C, M + C) / 4,
    ...     torch.randn(layout.size, C) / 4, torch.zeros(layout.size),
    ...     torch.full((B, N, M), 1e-6), focus, torch.zeros(B, 1, M),
    ...     torch.zeros(B, C), torch.zeros(B, C),
    ...     num_read_heads=1, num_write_heads=1, shift_range=1)
    >>> result.hidden.shape, result.state.memory.shape
    (torch.Size([5, 2, 8]), torch.Size([2, 16, 4]))
    """
    arguments = SequenceArguments(
        x,
        recurrent_weight,
        interface_weight,
        interface_bias,
        memory,
        weightings,
        read_vectors,
        hidden,
        cell,
        lengths,
        input_weight,
        input_bias,
    )
    numbers = (num_read_heads, num_write_heads, shift_range)
    plan, plain = _planned(_sequence_plan, *arguments, *numbers, checkpoint_every)
    sizes = plan.problem.sizes
    if lengths is not None:
        checks.lengths_within("sequence", lengths, sizes.time)
    chosen = _choose(plan.problem, backend)
    if lengths is not None and input_weight is not None:
        # Zeros, since 0 · NaN in a weight gradient is NaN whatever the padding's own gradient.
        x = x.masked_fill(beyond(lengths, sizes.time, x.dim()), 0)
    save_for_backward = checks.needs_grad("sequence", {"x": x, **arguments._asdict()})
    start = SequenceState(memory, weightings, read_vectors, hidden, cell)
    if sizes.time == 0:
        return _empty_sequence(sizes, plan.layout, start, return_trace)
    # 16-bit states are widened here and results narrowed below, outside the op: its backward reads
    # its own outputs, and rounded ones would give rounded weight gradients.
    tensors = (
        x,
        recurrent_weight,
        interface_weight,
        interface_bias,
        *(None if part is None else _as(part, arithmetic_dtype(part.dtype)) for part in start),
        lengths,
        input_weight,
        input_bias,
    )
    controller = plan.problem.controller
    how = (save_for_backward, return_trace)
    if plain and _straight("sequence", chosen):
        own = SequenceArguments(*tensors)  # type: ignore[arg-type]
        outputs, _ = get_backend(chosen).sequence(own, sizes, controller, *how)
    else:
        outputs = torch.ops.ntm.sequence(
            *tensors, *numbers, controller, sizes.checkpoint_every, *how, chosen
        )
    final = (
        None if like is None else _as(part, like.dtype)
        for part, like in zip(outputs[2:7], start, strict=True)
    )
    state_dtype = memory.dtype if hidden is None else hidden.dtype
    trace = None
    if return_trace:
        trace = _trace(_as(outputs[7], weightings.dtype), outputs[8], plan.layout, lengths)
    return SequenceResult(
        _as(outputs[0], state_dtype),
        _as(outputs[1], memory.dtype),
        SequenceState(*final),  # type: ignore[arg-type]
        trace,
    )


class _Plan(NamedTuple):
    """What follows from the shapes and dtypes of a call that passed its checks."""

    layout: InterfaceLayout
    problem: Problem


# Checking costs a tenth of the smallest calls: one like a call before is not checked anew.
_plans: dict[Any, _Plan] = {}
MOST_PLANS = 1000


def _planned(check: Callable[..., _Plan], *arguments: Any) -> tuple[_Plan, bool]:
    """The plan of a call, and whether all its tensors are plain ones and nothing traces it."""
    signature = checks.signature(*arguments)
    if signature is None:
        return check(*arguments), False
    plan = _plans.get((check, signature))
    if plan is None:
        plan = check(*arguments)
        if len(_plans) >= MOST_PLANS:
            _plans.clear()
        _plans[check, signature] = plan
    return plan, True


def _sequence_plan(*given_arguments: Any) -> _Plan:
    """Check the arguments of ``sequence``."""
    arguments = SequenceArguments(*given_arguments[:12])
    num_read_heads, num_write_heads, shift_range, checkpoint_every = given_arguments[12:]
    given = checks.Arguments("sequence")
    checks.sequence_pairs(
        arguments.hidden, arguments.cell, arguments.input_weight, arguments.input_bias
    )
    is_lstm = arguments.hidden is not None
    layout = _layout(given, num_read_heads, num_write_heads, shift_range, arguments.memory)
    given.tensor("interface_weight", arguments.interface_weight, "P C")
    hidden_size = arguments.interface_weight.shape[1]
    reads = num_read_heads * layout.word_size
    given.fix("G", 4 * hidden_size if is_lstm else hidden_size, "interface_weight")
    given.fix("K", reads + hidden_size if is_lstm else reads, "memory and interface_weight")
    if arguments.input_weight is None:
        given.tensor("x", arguments.input, "T B G")
    else:
        given.tensor("x", arguments.input, "T B I")
        given.tensor("input_weight", arguments.input_weight, "G I")
        given.tensor("input_bias", arguments.input_bias, "G")
    given.tensor("recurrent_weight", arguments.recurrent_weight, "G K")
    given.tensor("interface_bias", arguments.interface_bias, "P")
    given.tensor("weightings", arguments.weightings, "B H N")
    given.tensor("read_vectors", arguments.read_vectors, "B R M")
    if is_lstm:
        given.tensor("hidden", arguments.hidden, "B C")
        given.tensor("cell", arguments.cell, "B C")
    given.dtypes(
        memory=("memory", "read_vectors"),
        weightings=("weightings",),
        controller_state=("hidden", "cell"),
        x=("x", "input_weight", "input_bias"),
        controller_weights=("recurrent_weight", "interface_weight", "interface_bias"),
    )
    memory = arguments.memory
    if arguments.lengths is not None:
        given.lengths(arguments.lengths, memory.device)
    time = arguments.input.shape[0]
    if checkpoint_every is None:
        checkpoint_every = max(1, int(math.sqrt(time)))
    checks.positive_int("sequence", "checkpoint_every", checkpoint_every)
    sizes = Sizes.of(
        memory,
        num_read_heads,
        num_write_heads=num_write_heads,
        num_taps=layout.num_taps,
        time=time,
        hidden_size=hidden_size,
        checkpoint_every=checkpoint_every,
    )
    controller = "lstm" if is_lstm else "feedforward"
    return _Plan(
        layout, _problem("sequence", memory, arguments.interface_weight, sizes, controller)
    )


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def explain(op: str, *args: Any, **kwargs: Any) -> BackendChoice:
    """Which backend would serve ``op(*args, **kwargs)``, why, and why not those before it.

    The call itself is not run. Raises what the call would raise.

    >>> import torch
    >>> choice = explain("read", torch.ones(1, 2, 3), torch.ones(1, 1, 2), backend="torch")
    >>> choice.backend, choice.reason
    ('torch', 'asked for by the backend argument')
    """
    functions: dict[str, Callable[..., Any]] = {
        "address": address,
        "read": read,
        "write": write,
        "step": step,
        "sequence": sequence,
    }
    if op not in functions:
        raise ValueError(f"op must be one of {', '.join(functions)}, got {op!r}")
    try:
        functions[op](*args, **{**kwargs, "backend": _Question(kwargs.get("backend"))})
    except _Answer as answer:
        return answer.choice
    raise AssertionError(f"{op} ran without choosing a backend")


class _Question:
    """In the place of a backend's name: do not run, raise the choice."""

    def __init__(self, backend: str | None) -> None:
        self.backend = backend


class _Answer(Exception):
    def __init__(self, choice: BackendChoice) -> None:
        self.choice = choice


def _layout(
    given: checks.Arguments,
    num_read_heads: int,
    num_write_heads: int,
    shift_range: int,
    memory: Tensor,
) -> InterfaceLayout:
    """Check the head counts and the memory, and fix the dimensions that follow from them."""
    checks.positive_int(given.op, "num_read_heads", num_read_heads)
    checks.positive_int(given.op, "num_write_heads", num_write_heads)
    checks.positive_int(given.op, "shift_range", shift_range, minimum=0)
    given.tensor("memory", memory, "B N M")
    layout = InterfaceLayout(memory.shape[2], num_read_heads, num_write_heads, shift_range)
    given.fix("R", num_read_heads, "num_read_heads")
    given.fix("H", layout.num_heads, "num_read_heads + num_write_heads")
    given.fix("P", layout.size, "the interface layout")
    return layout


def _problem(
    op: str, memory: Tensor, parameter: Tensor, sizes: Sizes, controller: str = ""
) -> Problem:
    device = memory.device
    dtypes = memory.dtype, parameter.dtype
    return Problem(op, device.type, *dtypes, controller, sizes, device.index or 0)


def _choose(problem: Problem, backend: str | _Question | None) -> str:
    if isinstance(backend, _Question):
        raise _Answer(explain_choice(problem, backend.backend))
    return choose(problem, backend).backend


def _straight(op: str, backend: str) -> bool:
    """Whether to call the backend itself, past ``torch.ops.ntm``, whose cost small calls feel."""
    return op in get_backend(backend).differentiates and checks.eager_alone()


def _empty_sequence(
    sizes: Sizes, layout: InterfaceLayout, state: SequenceState, return_trace: bool
) -> SequenceResult:
    """No step: the initial state, and outputs of length 0."""
    like = state.memory if state.hidden is None else state.hidden
    none = (0, sizes.batch)
    trace = None
    if return_trace:
        dtype = arithmetic_dtype(state.memory.dtype)
        empty = layout.split(state.memory.new_empty(*none, layout.size, dtype=dtype))
        trace = Trace(state.weightings.new_empty(*none, *state.weightings.shape[1:]), *empty)
    return SequenceResult(
        like.new_empty(*none, sizes.hidden_size),
        state.read_vectors.new_empty(*none, *state.read_vectors.shape[1:]),
        SequenceState(*(None if part is None else part.clone() for part in state)),  # type: ignore[arg-type]
        trace,
    )


def _trace(
    weightings: Tensor, interface: Tensor, layout: InterfaceLayout, lengths: Tensor | None
) -> Trace:
    if lengths is not None:
        weightings, interface = (
            part.masked_fill(beyond(lengths, part.shape[0], part.dim()), 0)
            for part in (weightings, interface)
        )
    return Trace(weightings, *layout.split(interface))


def beyond(lengths: Tensor, time: int, dims: int) -> Tensor:
    """Which steps lie beyond their sequence, ``[T, B, 1, …]`` with ``dims`` dimensions."""
    outside = torch.arange(time, device=lengths.device).unsqueeze(-1) >= lengths
    return outside.view(*outside.shape, *[1] * (dims - 2))
