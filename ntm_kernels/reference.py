"""The Neural Turing Machine in plain PyTorch, equation by equation.

This is the specification: every backend is tested against these functions, and their derivatives,
of whatever order, are what autograd makes of them. Nothing here is tuned. Equation numbers are
those of Graves, Wayne and Danihelka, "Neural Turing Machines", arXiv 1410.5401 (2014).

Sizes: batch ``B``, memory locations ``N``, word size ``M``, read heads ``R``, write heads ``W``,
heads ``H = R + W`` with the read heads first, shift taps ``S = 2 * shift_range + 1``, controller
width ``C``, steps ``T``. A weighting ``[B, H, N]`` is non-negative and sums to one over ``N``.
Arithmetic is in float32 for 16-bit and float32 arguments, in float64 for float64 arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from ntm_kernels.checks import given_together
from ntm_kernels.interface import HeadParameters, InterfaceLayout

COSINE_EPS = 1e-8
"""A product of norms below this counts as no similarity at all."""

FOCUS_EPS = 1e-20
"""A weighting that reaches this nowhere counts as no weighting at all. Only a gate this small after
no weighting gives one, and its slopes, as large as the inverse, would overflow float32."""


class SequenceState(NamedTuple):
    """The state that one step of ``sequence`` passes to the next.

    ``memory [B, N, M]``, ``weightings [B, H, N]``, ``read_vectors [B, R, M]``; ``hidden`` and
    ``cell`` ``[L, B, C]`` of an LSTM controller of L layers, ``None`` for a feed-forward one.
    """

    memory: Tensor
    weightings: Tensor
    read_vectors: Tensor
    hidden: Tensor | None = None
    cell: Tensor | None = None


class LayerWeights(NamedTuple):
    """The weights of one layer of the controller; G = 4C for an LSTM, else C.

    The first layer has ``recurrent_weight [G, K]`` on the read vectors and, in an LSTM, on its own
    hidden state: K = R·M + C or R·M. It has ``input_weight [G, I]`` and ``bias [G]`` on the input,
    both ``None`` where the input comes projected. Each layer above has ``input_weight [G, C]`` and
    ``bias [G]`` on the layer below, and in an LSTM ``recurrent_weight [G, C]`` on its own hidden
    state.
    """

    recurrent_weight: Tensor | None = None
    input_weight: Tensor | None = None
    bias: Tensor | None = None


class Trace(NamedTuple):
    """What the heads did at each step, for pictures; not differentiable, everything activated.

    ``weightings [T, B, H, N]``, key ``[T, B, H, M]``, strength, gate and sharpening ``[T, B, H]``,
    shift ``[T, B, H, S]``, erase and add ``[T, B, W, M]``. Read heads come first in ``H``.
    """

    weightings: Tensor
    key: Tensor
    strength: Tensor
    gate: Tensor
    shift: Tensor
    sharpening: Tensor
    erase: Tensor
    add: Tensor

    @property
    def heads(self) -> HeadParameters:
        return HeadParameters._make(getattr(self, name) for name in HeadParameters._fields)


class SequenceResult(NamedTuple):
    """``hidden [T, B, C]`` and ``read_vectors [T, B, R, M]`` of every step, the final state, and
    the trace if it was asked for."""

    hidden: Tensor
    read_vectors: Tensor
    state: SequenceState
    trace: Trace | None


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which arguments of ``dtype`` are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _lift(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(arithmetic_dtype(tensor.dtype)) for tensor in tensors]


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))`` without a threshold."""
    # Unlike that of torch.logaddexp, its second derivative is never NaN. Above 40 it is x itself,
    # which changes no bit in float64: e^−40 is less than a rounding of x.
    return torch.nn.functional.softplus(x, threshold=40)


def similarity(memory: Tensor, key: Tensor) -> Tensor:
    """Cosine similarity ``K[k, M_i] = k·M_i / (‖k‖ ‖M_i‖)``, equation 6.

    Zero, with zero gradient, where ``‖k‖ ‖M_i‖ < 1e-8``.
    memory ``[B, N, M]``, key ``[B, H, M]`` -> ``[B, H, N]``.
    """
    dots = torch.einsum("bhm,bnm->bhn", key, memory)
    cut = _norms(memory.detach(), key.detach()) < COSINE_EPS
    # A vector whose similarities are all cut off takes no part. It may be zero, where the second
    # derivative of its norm is infinite, so another vector stands in for it.
    key = torch.where(cut.all(dim=2)[:, :, None], 1, key)
    memory = torch.where(cut.all(dim=1)[:, :, None], 1, memory)
    return torch.where(cut, 0, dots / torch.where(cut, 1, _norms(memory, key)))


def _norms(memory: Tensor, key: Tensor) -> Tensor:
    """``‖k‖ ‖M_i‖`` ``[B, H, N]``."""
    return key.norm(dim=-1)[:, :, None] * memory.norm(dim=-1)[:, None, :]


def content(memory: Tensor, key: Tensor, strength: Tensor) -> Tensor:
    """Content weighting ``w^c = softmax_i(β K[k, M_i])``, equation 5.

    memory ``[B, N, M]``, key ``[B, H, M]``, strength ``[B, H]`` -> ``[B, H, N]``.

    >>> memory = torch.eye(3)[None]
    >>> content(memory, memory[:, 1:2], torch.tensor([[50.0]])).round(decimals=3)
    tensor([[[0., 1., 0.]]])
    """
    return torch.softmax(strength[:, :, None] * similarity(memory, key), dim=-1)


def interpolate(content: Tensor, previous_weightings: Tensor, gate: Tensor) -> Tensor:
    """Gated weighting ``w^g = g w^c + (1 − g) w_{t−1}``, equation 7.

    weightings ``[B, H, N]``, gate ``[B, H]`` -> ``[B, H, N]``.

    >>> now, before = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    >>> interpolate(now, before, torch.tensor([[0.25]]))
    tensor([[[0.2500, 0.7500]]])
    """
    gate = gate[:, :, None]
    return gate * content + (1 - gate) * previous_weightings


def shift(weightings: Tensor, shift_weighting: Tensor) -> Tensor:
    """Circular convolution ``w̃_i = Σ_o s_o w_{i−o}``, index modulo N, equation 8.

    Tap 0 has the offset ``−shift_range``; all mass on offset ``o`` moves the focus by ``o`` rows.
    weightings ``[B, H, N]``, shift weighting ``[B, H, S]`` -> ``[B, H, N]``.

    >>> shift(torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 0.25, 0.75]]]))
    tensor([[[0.2500, 0.7500, 0.0000, 0.0000]]])
    """
    shift_range = shift_weighting.shape[-1] // 2
    terms = [
        shift_weighting[:, :, tap, None] * weightings.roll(tap - shift_range, dims=-1)
        for tap in range(shift_weighting.shape[-1])
    ]
    return torch.stack(terms).sum(0)


def sharpen(weightings: Tensor, sharpening: Tensor) -> Tensor:
    """Sharpening ``w_i = w̃_i^γ / Σ_j w̃_j^γ``, equation 9, as ``softmax_i(γ log w̃_i)``.

    The softmax's maximum is taken out before the logarithm, ``(w̃_i / max w̃)^γ``: the same value,
    the sum is at least one however large γ is, and autograd is right at ``w̃_i = 0``, where the
    slope is 0 for γ > 1 and not 0 for γ = 1. Uniform, with zero gradient, where all
    ``w̃_i < 1e-20``.

    Outside the domains: a negative ``w̃_i`` has no logarithm, so it makes the whole weighting NaN,
    and so does a γ that is not finite. ``w̃_i = 0`` gives 0 for every γ; its slope is infinite for
    0 < γ < 1, and 0 for γ ≤ 0. Its second derivative is infinite for 1 < γ < 2 too.
    weightings ``[B, H, N]``, sharpening ``[B, H]`` -> ``[B, H, N]``.

    >>> sharpen(torch.tensor([[[0.6, 0.3, 0.1]]]), torch.tensor([[2.0]])).round(decimals=3)
    tensor([[[0.7830, 0.1960, 0.0220]]])
    """
    exponent, seen = sharpening[:, :, None], weightings.detach()
    defined = (seen >= 0).all(-1, keepdim=True) & exponent.isfinite()
    peak = seen.amax(-1, keepdim=True)
    empty = defined & (peak < FOCUS_EPS)
    # Both factors of a power become NaN, since NaN^0 and 1^NaN are 1.
    exponent = exponent * torch.where(defined, 1, torch.nan)
    ratio = weightings / torch.where(empty, 1, torch.where(defined, peak, torch.nan))
    # 0^γ has a slope in w̃ alone, none in γ. The second derivative of one power of both would be
    # NaN. 0^γ is 0 for γ ≤ 0 too. No branch that is not taken may have an infinite slope.
    zero = defined & (seen == 0)
    base_of_zero = torch.where(zero & ~empty & (exponent > 0), ratio, 1)
    power_of_zero = torch.where(exponent <= 0, 0, base_of_zero ** exponent.detach())
    powers = torch.where(zero, power_of_zero, torch.where(empty | zero, 1, ratio) ** exponent)
    total = torch.where(empty, 1, powers.sum(-1, keepdim=True))
    return torch.where(empty, 1 / weightings.shape[-1], powers / total)


def address(
    memory: Tensor,
    key: Tensor,
    strength: Tensor,
    gate: Tensor,
    shift_weighting: Tensor,
    sharpening: Tensor,
    previous_weightings: Tensor,
) -> Tensor:
    """The addressing chain, equations 5 to 9: content, interpolate, shift, sharpen.

    memory ``[B, N, M]``, key ``[B, H, M]``, strength, gate and sharpening ``[B, H]``, shift
    ``[B, H, S]``, previous weightings ``[B, H, N]`` -> weightings ``[B, H, N]`` in the dtype of the
    previous ones.
    """
    dtype = previous_weightings.dtype
    memory, key, strength, gate, shift_weighting, sharpening, previous_weightings = _lift(
        memory, key, strength, gate, shift_weighting, sharpening, previous_weightings
    )
    weightings = content(memory, key, strength)
    weightings = interpolate(weightings, previous_weightings, gate)
    weightings = shift(weightings, shift_weighting)
    return sharpen(weightings, sharpening).to(dtype)


def read(memory: Tensor, weightings: Tensor) -> Tensor:
    """Read vectors ``r = Σ_i w_i M_i``, equation 2.

    memory ``[B, N, M]``, weightings ``[B, H, N]`` -> ``[B, H, M]`` in the dtype of the memory.
    """
    dtype = memory.dtype
    memory, weightings = _lift(memory, weightings)
    return torch.einsum("bhn,bnm->bhm", weightings, memory).to(dtype)


def write(memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """``M_i ← M_i ∘ Π_h (1 − w_{h,i} e_h) + Σ_h w_{h,i} a_h``, equations 3 and 4 of all heads.

    memory ``[B, N, M]``, weightings ``[B, H, N]``, erase and add ``[B, H, M]`` -> ``[B, N, M]`` in
    the dtype of the memory.
    """
    dtype = memory.dtype
    memory, weightings, erase, add = _lift(memory, weightings, erase, add)
    retained = memory
    for head in range(weightings.shape[1]):
        retained = retained * (1 - weightings[:, head, :, None] * erase[:, head, None, :])
    return (retained + torch.einsum("bhn,bhm->bnm", weightings, add)).to(dtype)


def activate(interface: Tensor, layout: InterfaceLayout) -> HeadParameters:
    """The heads' parameters from a raw interface vector ``[..., layout.size]``.

    Key and add are linear, ``β = softplus``, ``g = sigmoid``, ``s = softmax`` over the taps,
    ``γ = 1 + softplus``, ``e = sigmoid``.
    """
    raw = layout.split(interface)
    return HeadParameters(
        key=raw.key,
        strength=softplus(raw.strength),
        gate=torch.sigmoid(raw.gate),
        shift=torch.softmax(raw.shift, dim=-1),
        sharpening=1 + softplus(raw.sharpening),
        erase=torch.sigmoid(raw.erase),
        add=raw.add,
    )


def step(
    memory: Tensor,
    interface: Tensor,
    previous_weightings: Tensor,
    *,
    num_read_heads: int,
    num_write_heads: int,
    shift_range: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """One time step: all heads address ``M_{t−1}``, read heads read it, write heads then write it.

    memory ``[B, N, M]``, raw interface ``[B, P]``, previous weightings ``[B, H, N]`` ->
    read vectors ``[B, R, M]``, memory ``[B, N, M]``, weightings ``[B, H, N]``.
    """
    layout = InterfaceLayout(memory.shape[-1], num_read_heads, num_write_heads, shift_range)
    (interface,) = _lift(interface)
    heads = activate(interface, layout)
    weightings = address(
        memory,
        heads.key,
        heads.strength,
        heads.gate,
        heads.shift,
        heads.sharpening,
        previous_weightings,
    )
    read_vectors = read(memory, weightings[:, :num_read_heads])
    memory = write(memory, weightings[:, num_read_heads:], heads.erase, heads.add)
    return read_vectors, memory, weightings


def lstm(
    x: Tensor, recurrent_weight: Tensor, recurrent: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM layer.

    ``i, f, g, o = x̂ + W s`` in the gate order of ``torch.nn.LSTM``, ``c ← σ(f) c + σ(i) tanh(g)``,
    ``h ← σ(o) tanh(c)``. Projected input ``x̂ [B, 4C]`` (bias included), recurrent weight
    ``W [4C, K]``, what it applies to ``s [B, K]``, cell ``[B, C]`` -> hidden and cell ``[B, C]``.
    """
    gates = x + linear(recurrent, recurrent_weight)
    input_gate, forget_gate, candidate, output_gate = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(forget_gate) * cell + torch.sigmoid(input_gate) * torch.tanh(candidate)
    return torch.sigmoid(output_gate) * torch.tanh(cell), cell


def controller(
    x: Tensor,
    layers: Sequence[LayerWeights],
    read_vectors: Tensor,
    hidden: Tensor | None,
    cell: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """One step of all layers of the controller.

    The first layer sees ``x̂`` and the read vectors, each further one the layer below; a layer of
    an LSTM also sees its own hidden state of the step before. A feed-forward layer is
    ``h = tanh(x̂ + W r)``, above the first ``h = tanh(W h_below + b)``. Projected input ``[B, G]``,
    read vectors ``[B, R, M]``, hidden and cell of an LSTM ``[L, B, C]`` -> hidden ``[L, B, C]``,
    and an LSTM's cell.
    """
    hiddens: list[Tensor] = []
    cells: list[Tensor] = []
    for index, layer in enumerate(layers):
        seen = [] if hiddens else [read_vectors.flatten(1)]
        if hiddens:
            assert layer.input_weight is not None
            x = linear(hiddens[-1], layer.input_weight, layer.bias)
        if hidden is not None and cell is not None:
            assert layer.recurrent_weight is not None
            recurrent = torch.cat([*seen, hidden[index]], dim=-1)
            below, new_cell = lstm(x, layer.recurrent_weight, recurrent, cell[index])
            cells.append(new_cell)
        else:
            for part in seen:
                assert layer.recurrent_weight is not None
                x = x + linear(part, layer.recurrent_weight)
            below = torch.tanh(x)
        hiddens.append(below)
    return torch.stack(hiddens), torch.stack(cells) if cells else None


def sequence(
    x: Tensor,
    layers: Sequence[LayerWeights],
    interface_weight: Tensor,
    interface_bias: Tensor,
    initial_state: SequenceState,
    *,
    num_read_heads: int,
    num_write_heads: int,
    shift_range: int,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_trace: bool = False,
) -> SequenceResult:
    """The whole recurrence, with an LSTM controller if the initial state has ``hidden`` and
    ``cell``, else a feed-forward one. Arguments and results are those of
    ``ntm_kernels.functional.sequence``.

    A step beyond a sequence's length leaves its state alone and outputs zeros. Where ``resets`` is
    true, the step starts from the initial state.

    Raises:
        ValueError: ``hidden`` without ``cell``, or the first layer's ``input_weight`` without its
            ``bias``, or the reverse.
    """
    require_pairs(layers[0], initial_state)
    state = start = _lift_state(initial_state)
    layers = [
        LayerWeights(*(None if w is None else _lift(w)[0] for w in layer)) for layer in layers
    ]
    x, interface_weight, interface_bias = _lift(x, interface_weight, interface_bias)
    if lengths is not None:
        x = torch.where(_inside(lengths, x), x, 0)
    if layers[0].input_weight is not None:
        x = linear(x, layers[0].input_weight, layers[0].bias)
    layout = InterfaceLayout(state.memory.shape[-1], num_read_heads, num_write_heads, shift_range)
    # One entry a step. Each list starts with a dummy, removed below, because torch.stack fails on
    # an empty list when T = 0.
    blank = x.new_zeros(x.shape[1], layout.size)
    hiddens = [x.new_zeros(x.shape[1], interface_weight.shape[1])]
    reads, weightings, interfaces = [state.read_vectors], [state.weightings], [blank]
    for time, projected in enumerate(x.unbind(0)):
        if resets is not None:
            reset = resets[time] if lengths is None else resets[time] & (lengths > time)
            state = _hold(reset, start, state)
        hidden, cell = controller(projected, layers, state.read_vectors, state.hidden, state.cell)
        interface = linear(hidden[-1], interface_weight, interface_bias)
        new_reads, new_memory, new_weightings = step(
            state.memory,
            interface,
            state.weightings,
            num_read_heads=num_read_heads,
            num_write_heads=num_write_heads,
            shift_range=shift_range,
        )
        new = SequenceState(
            new_memory, new_weightings, new_reads, None if cell is None else hidden, cell
        )
        state = new if lengths is None else _hold(lengths > time, new, state)
        hiddens.append(hidden[-1])
        reads.append(new_reads)
        weightings.append(state.weightings.detach())
        interfaces.append(interface.detach())

    trace = None
    if return_trace:
        parts = (torch.stack(weightings), *activate(torch.stack(interfaces), layout))
        weightings_dtype = initial_state.weightings.dtype
        trace = Trace(*(part[1:] for part in parts))
        trace = trace._replace(weightings=trace.weightings.to(weightings_dtype))
        trace = Trace(*(_zero_outside(lengths, part) for part in trace))
    like = initial_state.memory if initial_state.hidden is None else initial_state.hidden
    return SequenceResult(
        _zero_outside(lengths, torch.stack(hiddens)[1:]).to(like.dtype),
        _zero_outside(lengths, torch.stack(reads)[1:]).to(initial_state.memory.dtype),
        _in_dtypes_of(state, initial_state),
        trace,
    )


def require_pairs(first: LayerWeights, initial_state: SequenceState) -> None:
    """Raise where one of ``hidden`` and ``cell`` is given alone, or one of ``input_weight`` and
    ``bias``."""
    given_together(
        "sequence",
        **{"initial_state.hidden": initial_state.hidden, "initial_state.cell": initial_state.cell},
    )
    given_together(
        "sequence",
        **{"layers[0].input_weight": first.input_weight, "layers[0].bias": first.bias},
    )


def _inside(lengths: Tensor, part: Tensor) -> Tensor:
    """Whether each step of ``part [T, B, …]`` is inside its sequence."""
    inside = torch.arange(part.shape[0], device=lengths.device)[:, None] < lengths
    return inside.view(*inside.shape, *[1] * (part.dim() - 2))


def _zero_outside(lengths: Tensor | None, part: Tensor) -> Tensor:
    return part if lengths is None else torch.where(_inside(lengths, part), part, 0)


def _lift_state(state: SequenceState) -> SequenceState:
    return SequenceState(*(None if part is None else _lift(part)[0] for part in state))  # type: ignore[arg-type]


def _in_dtypes_of(state: SequenceState, given: SequenceState) -> SequenceState:
    pairs = zip(state, given, strict=True)
    return SequenceState(*(None if b is None else a.to(b.dtype) for a, b in pairs))  # type: ignore[union-attr, arg-type]


def _hold(active: Tensor, new: SequenceState, old: SequenceState) -> SequenceState:
    """The new state of the active sequences, the old one of those that are over."""

    def one(after: Tensor, before: Tensor) -> Tensor:
        return torch.where(active.view(-1, *[1] * (after.dim() - 1)), after, before)

    def of_layers(after: Tensor | None, before: Tensor | None) -> Tensor | None:
        if after is None or before is None:
            return None
        return torch.where(active[:, None], after, before)

    return SequenceState(
        one(new.memory, old.memory),
        one(new.weightings, old.weightings),
        one(new.read_vectors, old.read_vectors),
        of_layers(new.hidden, old.hidden),
        of_layers(new.cell, old.cell),
    )
