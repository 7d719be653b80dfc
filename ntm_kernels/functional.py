"""The NTM as functions: ``address``, ``read``, ``write``, ``step`` and ``sequence``.

Every function is functional (no argument is mutated), differentiable in every tensor argument, and
runs on the backend that ``ntm_kernels.backends`` chooses, or on the one named by ``backend=``.

Every backend has the first derivative, by an ordinary backward. The backend ``torch`` has all
others: derivatives of higher order, forward-mode AD, ``torch.func`` and batched gradients. A call
under ``torch.func`` or forward-mode AD that names no backend uses it. A second derivative cannot be
seen in advance: name the backend.

Sizes: batch ``B``, memory locations ``N``, word size ``M``, read heads ``R``, write heads ``W``,
heads ``H = R + W`` with the read heads first, shift taps ``S = 2 * shift_range + 1``, controller
width ``C``, steps ``T``. Equation numbers are those of Graves et al. 2014, arXiv 1410.5401;
``ntm_kernels.reference`` has them in code.

Dtypes: tensors of one kind share a dtype. All are float64, or they are float32 and at most one of
bfloat16 and float16. Arithmetic is in float32 (float64 for float64), and a result has the dtype of
the argument of its kind: memory and read vectors that of ``memory``, weightings that of
``previous_weightings``. Values are not checked, since reading them would force the CPU to wait for
the GPU: strength ≥ 0, 0 ≤ gate ≤ 1, sharpening ≥ 1, 0 ≤ erase ≤ 1, shift and weightings
distributions. Other values give what the equations give, on every backend: a negative ``w̃_i`` has
no logarithm, and makes NaN of its head's weightings. With float16 memory its gradient grows as
1/‖M_i‖ and may overflow to inf where a row is tiny.

All raise ``TypeError`` for a wrong type or dtype, ``ValueError`` for a wrong shape or device, and
``ntm_kernels.BackendError`` where the backend asked for cannot serve the call: a backend other than
``torch`` also under forward-mode AD and ``torch.func``. In the backward such a backend raises
``NotImplementedError`` for batched gradients and for the forward-mode AD of a gradient, and
``RuntimeError`` for a second derivative.

>>> import torch
>>> memory, weightings = torch.eye(3)[None], torch.tensor([[[0.1, 0.7, 0.2]]])
>>> slope = torch.func.grad(lambda w: read(memory, w, backend="torch").square().sum())
>>> torch.func.jvp(slope, (weightings,), (torch.ones(1, 1, 3),))[1]
tensor([[[2., 2., 2.]]])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ntm_kernels.backends import BackendChoice
from ntm_kernels.backends import explain as explain_choice
from ntm_kernels.ops import (
    ADDRESS,
    OPS,
    READ,
    STEP,
    WRITE,
    AddressInputs,
    NoOptions,
    ReadInputs,
    SequenceOptions,
    StepInputs,
    StepOptions,
    StepOutputs,
    WriteInputs,
)
from ntm_kernels.ops.call import call, prepare
from ntm_kernels.ops.declare import names
from ntm_kernels.ops.sequence_arguments import sequence_inputs
from ntm_kernels.ops.sequence_call import call_sequence, under_autocast
from ntm_kernels.reference import LayerWeights, SequenceResult, SequenceState, Trace
from ntm_kernels.torch_private import register_namedtuple

__all__ = ["address", "explain", "read", "sequence", "step", "write"]

# So that torch.export can save a program that takes or returns one of them.
for _kind in (LayerWeights, SequenceResult, SequenceState, StepOutputs, Trace):
    register_namedtuple(_kind, serialized_type_name=f"ntm_kernels.{_kind.__name__}")


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
        Weightings ``[B, H, N]``, in the dtype of ``previous_weightings``.

    The focus is on row 0 and moves one row on:

    >>> import torch
    >>> memory = torch.eye(4)[None]
    >>> one = torch.ones(1, 1)
    >>> focus = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    >>> address(memory, memory[:, :1], one, 0 * one, torch.tensor([[[0.0, 0.0, 1.0]]]), one, focus)
    tensor([[[0., 1., 0., 0.]]])
    """
    inputs = AddressInputs(memory, key, strength, gate, shift, sharpening, previous_weightings)
    return call(ADDRESS, inputs, NoOptions(), backend).weightings


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
    return call(READ, ReadInputs(memory, weightings), NoOptions(), backend).read_vectors


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
    inputs = WriteInputs(memory, weightings, erase, add)
    return call(WRITE, inputs, NoOptions(), backend).memory


def step(
    memory: Tensor,
    interface: Tensor,
    previous_weightings: Tensor,
    *,
    num_read_heads: int,
    num_write_heads: int,
    shift_range: int,
    backend: str | None = None,
) -> StepOutputs:
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
        A named tuple of ``read_vectors [B, R, M]``, ``memory [B, N, M]`` and
        ``weightings [B, H, N]``.

    >>> import torch
    >>> from ntm_kernels import InterfaceLayout
    >>> layout = InterfaceLayout(word_size=4, num_read_heads=1, num_write_heads=1, shift_range=1)
    >>> memory, weightings = torch.zeros(2, 8, 4), torch.full((2, 2, 8), 1 / 8)
    >>> read_vectors, memory, weightings = step(
    ...     memory, torch.randn(2, layout.size), weightings,
    ...     num_read_heads=1, num_write_heads=1, shift_range=1)
    >>> read_vectors.shape, memory.shape, weightings.shape
    (torch.Size([2, 1, 4]), torch.Size([2, 8, 4]), torch.Size([2, 2, 8]))
    """
    inputs = StepInputs(memory, interface, previous_weightings)
    options = StepOptions(num_read_heads, num_write_heads, shift_range)
    return call(STEP, inputs, options, backend)


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
    checkpoint_every: int | None = None,
    return_trace: bool = False,
    backend: str | None = None,
) -> SequenceResult:
    """A whole sequence in one call, controller included.

    The controller has one layer or several of one width C. With ``initial_state.hidden`` and
    ``initial_state.cell`` they are LSTM layers, gates ``i, f, g, o = x̂ + W s`` in the order of
    ``torch.nn.LSTM``; without, feed-forward layers, ``h = tanh(x̂ + W s)``.

    - The first layer has ``x̂_t = W_x x_t + b``. It sees ``s = [r_{t−1}, h_{t−1}]`` in an LSTM, and
      ``s = r_{t−1}`` in a feed-forward controller.
    - In each layer above, ``x̂`` comes in the same way from the new hidden state of the layer below.
      An LSTM layer sees its own ``s = h_{t−1}``; a feed-forward layer is ``h = tanh(x̂)``.
    - The top layer's h drives one ``step`` through ``interface_weight @ h + interface_bias``.

    The forward stores the memory of every ``checkpoint_every``-th step, and the backward recomputes
    the others. Under autocast in bfloat16 a GPU, or a CPU with AMX, may round the operands of the
    weights' products.

    Args:
        x: ``[T, B, I]``; or ``x̂ [T, B, G]`` of all steps, G = 4C for an LSTM, else C, where the
            first layer has no ``input_weight`` and no ``bias``.
        layers: the weights of each layer, the first to the top (``ntm_kernels.LayerWeights``).
        interface_weight: ``[P, C]``, ``P = InterfaceLayout(M, R, W, shift_range).size``.
        interface_bias: ``[P]``.
        initial_state: memory ``[B, N, M]``, weightings ``[B, H, N]``, read vectors ``[B, R, M]`` in
            the dtype of the memory. For an LSTM also hidden and cell, ``[L, B, C]`` each.
        num_read_heads: R.
        num_write_heads: W.
        shift_range: largest shift, in rows.
        lengths: ``[B]`` integers, steps of each sequence; beyond them outputs are 0, the state
            stays, and the padding has no influence. ``None``: all T. A length outside ``0 … T``
            raises on a CPU; on a GPU and in compiled code the values are not looked at.
        resets: ``[T, B]`` bool. Where true, the state of that sequence is ``initial_state`` again
            before the step, as if a new sequence began. Gradients of ``initial_state`` add up over
            these parts. A reset beyond a sequence's length does nothing.
        checkpoint_every: steps between stored memories; ``None`` chooses about √T.
        return_trace: also return what the heads did at every step.
        backend: name of the backend, or ``None`` to choose.

    Returns:
        ``SequenceResult``: hidden of the top layer ``[T, B, C]``, read vectors ``[T, B, R, M]``,
        the final state, and the trace or ``None``.

    >>> import torch
    >>> T, B, N, M, C = 5, 2, 16, 4, 8
    >>> from ntm_kernels import InterfaceLayout
    >>> layout = InterfaceLayout(M, num_read_heads=1, num_write_heads=1, shift_range=1)
    >>> focus = torch.zeros(B, 2, N)
    >>> focus[:, :, 0] = 1
    >>> state = SequenceState(
    ...     memory=torch.full((B, N, M), 1e-6), weightings=focus, read_vectors=torch.zeros(B, 1, M),
    ...     hidden=torch.zeros(1, B, C), cell=torch.zeros(1, B, C))
    >>> result = sequence(
    ...     torch.randn(T, B, 4 * C), [LayerWeights(torch.randn(4 * C, M + C) / 4)],
    ...     torch.randn(layout.size, C) / 4, torch.zeros(layout.size), state,
    ...     num_read_heads=1, num_write_heads=1, shift_range=1)
    >>> result.hidden.shape, result.state.memory.shape
    (torch.Size([5, 2, 8]), torch.Size([2, 16, 4]))
    """
    inputs = sequence_inputs(
        x, layers, interface_weight, interface_bias, initial_state, lengths, resets
    )
    options = SequenceOptions(
        num_read_heads, num_write_heads, shift_range, checkpoint_every, return_trace
    )
    return call_sequence(inputs, options, backend)


def explain(op: str, *args: Any, **kwargs: Any) -> BackendChoice:
    """Which backend would serve ``op(*args, **kwargs)``, why, and why no backend tried before it.

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
    bound = inspect.signature(functions[op]).bind(*args, **kwargs)
    bound.apply_defaults()
    given, declared = bound.arguments, OPS[op]
    inputs: Any
    if op == "sequence":
        inputs = sequence_inputs(
            given["x"],
            given["layers"],
            given["interface_weight"],
            given["interface_bias"],
            given["initial_state"],
            given["lengths"],
            given["resets"],
        )
    else:
        inputs = declared.inputs._make(given[name] for name in names(declared.inputs))
    options: Any = declared.options(
        **{name: given[name] for name in names(declared.options) if name in given}
    )
    if op == "sequence":
        options = under_autocast(options, inputs.x)
    return explain_choice(prepare(declared, inputs, options).problem, given["backend"])
