"""``sequence``: the whole recurrence, controller included."""

from typing import Annotated, NamedTuple

from torch import Tensor

from ntm_kernels import reference
from ntm_kernels.checks import Arguments, positive_int
from ntm_kernels.ops.declare import Field, Op, check_record, record
from ntm_kernels.ops.sizes import Sizes
from ntm_kernels.ops.step import check_heads
from ntm_kernels.reference import LayerWeights, SequenceState


@record
class SequenceInputs(NamedTuple):
    """With an ``input_weight``, x is still to be projected; without, it has G elements.

    The weights of the controller's layers above the first are stacked. Each applies to the hidden
    state of the layer below, and to the right of it, for an LSTM, to the layer's own.
    """

    x: Annotated[Tensor, Field("T B I", "input")]
    recurrent_weight: Annotated[
        Tensor, Field("G K", "controller_weights", argument="layers[0].recurrent_weight")
    ]
    interface_weight: Annotated[Tensor, Field("P C", "controller_weights")]
    interface_bias: Annotated[Tensor, Field("P", "controller_weights")]
    initial_memory: Annotated[Tensor, Field("B N M", "memory", argument="initial_state.memory")]
    initial_weightings: Annotated[
        Tensor, Field("B H N", "weightings", argument="initial_state.weightings")
    ]
    initial_read_vectors: Annotated[
        Tensor, Field("B R M", "memory", argument="initial_state.read_vectors")
    ]
    initial_hidden: Annotated[
        Tensor | None, Field("L B C", "state", "is_lstm", argument="initial_state.hidden")
    ]
    initial_cell: Annotated[
        Tensor | None, Field("L B C", "state", "is_lstm", argument="initial_state.cell")
    ]
    lengths: Annotated[Tensor | None, Field("B", "steps", "has_lengths", differentiable=False)]
    input_weight: Annotated[
        Tensor | None, Field("G I", "input", "projects_input", argument="layers[0].input_weight")
    ]
    input_bias: Annotated[
        Tensor | None, Field("G", "input", "projects_input", argument="layers[0].bias")
    ]
    resets: Annotated[Tensor | None, Field("T B", "resets", "has_resets", differentiable=False)] = (
        None
    )
    upper_weight: Annotated[
        Tensor | None,
        Field("U G J", "controller_weights", "is_deep", argument="weights of layers[1:]"),
    ] = None
    upper_bias: Annotated[
        Tensor | None,
        Field("U G", "controller_weights", "is_deep", argument="biases of layers[1:]"),
    ] = None


@record
class SequenceOutputs(NamedTuple):
    """Of every step, and the state after the last; the trace if it is asked for."""

    hidden: Annotated[Tensor, Field("T B C", "state", kept=True)]
    read_vectors: Annotated[Tensor, Field("T B R M", "memory", kept=True)]
    final_memory: Annotated[Tensor, Field("B N M", "memory")]
    final_weightings: Annotated[Tensor, Field("B H N", "weightings")]
    final_read_vectors: Annotated[Tensor, Field("B R M", "memory")]
    final_hidden: Annotated[Tensor | None, Field("L B C", "state", "is_lstm")]
    final_cell: Annotated[Tensor | None, Field("L B C", "state", "is_lstm")]
    trace_weightings: Annotated[
        Tensor | None, Field("T B H N", "weightings", "return_trace", differentiable=False)
    ]
    trace_interface: Annotated[
        Tensor | None, Field("T B P", "arithmetic", "return_trace", differentiable=False)
    ]


class SequenceOptions(NamedTuple):
    """How the interface vector is cut, the steps between checkpoints, and whether to trace.

    ``bfloat16_products``: the call is under autocast in bfloat16. A backend may then round the
    operands of the products of the controller's and the interface's weights to bfloat16; it adds
    up in float32.
    """

    num_read_heads: int
    num_write_heads: int
    shift_range: int
    checkpoint_every: int | None  # None: about √T
    return_trace: bool
    bfloat16_products: bool = False


def sizes(inputs: SequenceInputs, options: SequenceOptions) -> Sizes:
    time, _, input_size = inputs.x.shape
    return Sizes.of(
        inputs.initial_memory,
        options.num_read_heads,
        num_write_heads=options.num_write_heads,
        num_taps=2 * options.shift_range + 1,
        time=time,
        hidden_size=inputs.interface_weight.shape[1],
        num_layers=_num_layers(inputs),
        checkpoint_every=options.checkpoint_every,
        input_size=input_size,
        is_lstm=inputs.initial_hidden is not None,
        has_lengths=inputs.lengths is not None,
        has_resets=inputs.resets is not None,
        projects_input=inputs.input_weight is not None,
        return_trace=options.return_trace,
        bfloat16_products=options.bfloat16_products,
    )


def _num_layers(inputs: SequenceInputs) -> int:
    return 1 if inputs.upper_bias is None else 1 + inputs.upper_bias.shape[0]


def check(given: Arguments, inputs: SequenceInputs, options: SequenceOptions) -> None:
    layout = check_heads(
        given,
        inputs.initial_memory,
        options.num_read_heads,
        options.num_write_heads,
        options.shift_range,
        "initial_state.memory",
    )
    if not isinstance(options.return_trace, bool):
        kind = type(options.return_trace).__name__
        raise TypeError(f"{given.op}: return_trace must be True or False, got {kind}")
    if options.checkpoint_every is not None:
        positive_int(given.op, "checkpoint_every", options.checkpoint_every)
    given.tensor("interface_weight", inputs.interface_weight, "P C")
    known = Sizes.of(
        inputs.initial_memory,
        layout.num_read_heads,
        hidden_size=inputs.interface_weight.shape[1],
        is_lstm=inputs.initial_hidden is not None,
        num_layers=_num_layers(inputs),
    )
    given.fix("L", known.num_layers, "layers")
    given.fix("U", known.num_upper_layers, "layers")
    given.fix("J", known.upper_size, "interface_weight")
    given.fix("G", known.gate_size, "interface_weight")
    given.fix("K", known.recurrent_size, "initial_state.memory and interface_weight")
    if inputs.input_weight is None:
        given.fix("I", known.gate_size, "interface_weight, x being projected")
    check_record(given, inputs)


def equations(inputs: SequenceInputs, sizes: Sizes) -> SequenceOutputs:
    result = reference.sequence(
        inputs.x,
        _layers(inputs, sizes.hidden_size),
        inputs.interface_weight,
        inputs.interface_bias,
        initial_state(inputs),
        num_read_heads=sizes.num_read_heads,
        num_write_heads=sizes.num_write_heads,
        shift_range=sizes.shift_range,
        lengths=inputs.lengths,
        resets=inputs.resets,
        return_trace=sizes.return_trace,
    )
    final, trace = result.state, result.trace
    return SequenceOutputs(
        hidden=result.hidden,
        read_vectors=result.read_vectors,
        final_memory=final.memory,
        final_weightings=final.weightings,
        final_read_vectors=final.read_vectors,
        final_hidden=final.hidden,
        final_cell=final.cell,
        trace_weightings=None if trace is None else trace.weightings,
        trace_interface=None if trace is None else sizes.layout.join(trace.heads),
    )


def initial_state(inputs: SequenceInputs) -> SequenceState:
    return SequenceState(
        memory=inputs.initial_memory,
        weightings=inputs.initial_weightings,
        read_vectors=inputs.initial_read_vectors,
        hidden=inputs.initial_hidden,
        cell=inputs.initial_cell,
    )


def _layers(inputs: SequenceInputs, hidden_size: int) -> list[LayerWeights]:
    layers = [LayerWeights(inputs.recurrent_weight, inputs.input_weight, inputs.input_bias)]
    if inputs.upper_weight is None or inputs.upper_bias is None:
        return layers
    for weight, bias in zip(inputs.upper_weight, inputs.upper_bias, strict=True):
        of_input, of_hidden = weight.tensor_split((hidden_size,), -1)
        recurrent = None if inputs.initial_hidden is None else of_hidden
        layers.append(LayerWeights(recurrent, of_input, bias))
    return layers


SEQUENCE = Op("sequence", SequenceInputs, SequenceOutputs, SequenceOptions, sizes, equations, check)
