"""Sequences of different length in one batch."""

import pytest
import torch

from ntm_kernels import functional, reference
from ntm_kernels.ops import SequenceInputs, SequenceOptions, SequenceOutputs
from ntm_kernels.ops.declare import names
from tests.support.cases import (
    Case,
    Dtypes,
    arguments,
    assert_agrees,
    assert_results,
    call,
    cotangents,
    differentiate,
    leaves,
    of_sequence,
    run,
)
from tests.support.table import each_backend, fitting

CASE = Case("sequence", 4, time=5, num_read_heads=2)
LENGTHS = (3, 0, 5, 1)
SHARED = ("recurrent_weight", "interface_weight", "interface_bias", "input_weight", "input_bias")
SHARED += ("upper_weight", "upper_bias")
INPUTS, OUTPUTS = ("x",), ("hidden", "read_vectors")
CONTROLLERS = {
    "lstm": {},
    "feedforward": {"controller": "feedforward", "input_size": 3},
    "lstm of 3 layers": {"num_layers": 3, "input_size": 3},
    "feedforward of 2 layers": {"controller": "feedforward", "num_layers": 2},
}
each_controller = pytest.mark.parametrize("controller", CONTROLLERS)


def problem(entry, controller, dtype=torch.float64, **sizes):
    case = CASE.with_(**CONTROLLERS[controller], **sizes)
    fitting(entry, case, Dtypes.all(dtype))
    tensors = arguments(case, Dtypes.all(dtype), entry.device)
    return case, tensors, torch.tensor(LENGTHS, device=entry.device)


def alone(group, b, length, per_step):
    """Sequence ``b`` of each tensor; those named ``per_step`` are ``[T, B, ...]``, those of the
    controller's layers ``[L, B, C]``."""

    def cut(name, part):
        if name in SHARED:
            return part
        if name in per_step:
            return part[:length, b : b + 1]
        of_layers = name.endswith(("_hidden", "_cell"))
        return part[:, b : b + 1] if of_layers else part[b : b + 1]

    return {name: cut(name, part) for name, part in group.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@each_controller
@each_backend
def test_against_the_reference(entry, controller, dtype):
    case, tensors, lengths = problem(entry, controller, dtype)
    assert_agrees(case, entry, tensors, lengths=lengths)


@pytest.mark.parametrize("every", [1, 2, 5])
@each_controller
@each_backend
def test_checkpoints(entry, controller, every):
    case, tensors, lengths = problem(entry, controller)
    assert_agrees(case, entry, tensors, lengths=lengths, checkpoint_every=every)


@each_controller
@each_backend
def test_padding_has_no_influence(entry, controller):
    """NaN in the padding, and in the gradients of the outputs there, changes no bit."""
    case, tensors, lengths = problem(entry, controller, torch.float32)
    inside = torch.arange(case.time, device=entry.device)[:, None] < lengths
    grads = cotangents(call(case, tensors, entry.backend, lengths=lengths))
    wanted = run(case, tensors, entry.backend, grads, lengths=lengths)
    tensors["x"][~inside] = torch.nan
    for name in ("hidden", "read_vectors"):
        grads[name][~inside] = torch.nan
    found = run(case, tensors, entry.backend, grads, lengths=lengths)
    for one, other in zip(found, wanted, strict=True):
        for name in other:
            assert torch.equal(one[name], other[name]), name
    for name in ("hidden", "read_vectors"):
        assert not found[0][name][~inside].any()
    assert not found[1]["x"][~inside].any()


@each_controller
@each_backend
def test_each_sequence_alone(entry, controller):
    """Outputs, final state and gradients are those of each sequence by itself, unpadded."""
    case, tensors, lengths = problem(entry, controller)
    grads = cotangents(call(case, tensors, entry.backend))
    together = run(case, tensors, entry.backend, grads, lengths=lengths)
    weight_grads = {name: torch.zeros_like(tensors[name]) for name in SHARED if name in tensors}
    for b, length in enumerate(LENGTHS):
        outputs, found = run(
            case.with_(batch=1, time=length),
            alone(tensors, b, length, INPUTS),
            entry.backend,
            alone(grads, b, length, OUTPUTS),
        )
        for name, part in alone(together[0], b, length, OUTPUTS).items():
            torch.testing.assert_close(part, outputs[name], rtol=1e-12, atol=1e-12)
        for name, part in alone(together[1], b, length, INPUTS).items():
            if name in SHARED:
                weight_grads[name] += found[name]
            else:
                torch.testing.assert_close(part, found[name], rtol=1e-11, atol=1e-11)
    for name, grad in weight_grads.items():
        torch.testing.assert_close(together[1][name], grad, rtol=1e-11, atol=1e-11)


@each_controller
@each_backend
def test_full_lengths_change_nothing(entry, controller):
    case, tensors, _ = problem(entry, controller)
    lengths = torch.full((case.batch,), case.time, device=entry.device)
    results = run(case, tensors, entry.backend, lengths=lengths)
    assert_results(case, results, tensors)


@each_controller
@each_backend
def test_lengths_in_any_layout(entry, controller):
    """Every second element of a tensor gives what a tensor of those gives."""
    case, tensors, lengths = problem(entry, controller)
    sliced = torch.stack([lengths, case.time - lengths], 1)[:, 0]
    assert not sliced.is_contiguous()
    wanted = run(case, tensors, entry.backend, lengths=lengths)
    for found, expected in zip(
        run(case, tensors, entry.backend, lengths=sliced), wanted, strict=True
    ):
        for name, part in expected.items():
            assert torch.equal(found[name], part), name


@each_controller
@each_backend
def test_no_length_at_all(entry, controller):
    """Every sequence empty: the initial state, its gradient handed through."""
    case, tensors, lengths = problem(entry, controller)
    lengths = torch.zeros_like(lengths)
    outputs, _ = run(case, tensors, entry.backend, lengths=lengths)
    assert torch.equal(outputs["final_memory"], tensors["initial_memory"])
    assert torch.equal(outputs["final_weightings"], tensors["initial_weightings"])
    assert not outputs["hidden"].any()
    assert_agrees(case, entry, tensors, lengths=lengths)


@each_controller
@each_backend
def test_the_op_clamps_lengths(entry, controller):
    """Nobody checks the lengths of a direct call, nor those on a GPU: -1 is 0, and T + 1 is T."""
    sizes = {"memory_size": 3, "word_size": 2, "num_read_heads": 1}
    case, tensors, _ = problem(entry, controller, torch.float32, **sizes)
    outside = torch.tensor([3, -(2**40), 2**40, case.time + 1], device=entry.device)

    def call_op(lengths):
        wanted = leaves(tensors)
        given = [(wanted | {"lengths": lengths}).get(name) for name in names(SequenceInputs)]
        options = SequenceOptions(**case.options, checkpoint_every=2, return_trace=True)
        results = torch.ops.ntm.sequence(*given, *options, True, entry.backend)
        outputs = dict(zip(names(SequenceOutputs), results, strict=False))
        outputs = {name: part for name, part in outputs.items() if part.numel()}
        grads = cotangents(outputs)
        for name in ("trace_weightings", "trace_interface"):
            del grads[name], outputs[name]
        return outputs, differentiate(outputs, grads, wanted)

    found, expected = call_op(outside), call_op(outside.clamp(0, case.time))
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, part in other.items():
            assert torch.equal(one[name], part), name


@pytest.mark.parametrize("given", [None, LENGTHS])
@pytest.mark.parametrize("grad", [True, False])
@each_controller
@each_backend
def test_trace(entry, controller, grad, given):
    """What the heads did, activated; zero in the padding; the same with and without gradients."""
    case, tensors, lengths = problem(entry, controller)
    lengths = None if given is None else lengths
    if grad:
        tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    options = case.options | {"lengths": lengths, "return_trace": True}
    traced = functional.sequence(**of_sequence(tensors), **options, backend=entry.backend)
    wanted = reference.sequence(**of_sequence(tensors), **options)
    for name, part in wanted.trace._asdict().items():
        found = getattr(traced.trace, name)
        assert not found.requires_grad
        torch.testing.assert_close(found, part, rtol=1e-11, atol=1e-12)
    assert torch.equal(traced.hidden, call(case, tensors, entry.backend, lengths=lengths)["hidden"])


@pytest.mark.parametrize("time", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@each_controller
@each_backend
def test_shapes_and_dtypes_of_a_trace(entry, controller, dtype, time):
    """Those of the reference, also without a step: weightings as given, the rest as computed."""
    case = CASE.with_(**CONTROLLERS[controller], time=time)
    fitting(entry, case, Dtypes.all(dtype))
    tensors = arguments(case, Dtypes.all(dtype), entry.device)
    options = case.options | {"return_trace": True}
    found = functional.sequence(**of_sequence(tensors), **options, backend=entry.backend).trace
    wanted = reference.sequence(**of_sequence(tensors), **options).trace
    layout = case.layout
    assert wanted.weightings.shape == (time, case.batch, layout.num_heads, case.memory_size)
    assert wanted.erase.shape == (time, case.batch, case.num_write_heads, case.word_size)
    assert wanted.weightings.dtype == dtype
    assert wanted.key.dtype == reference.arithmetic_dtype(dtype)
    for name, part in wanted._asdict().items():
        assert getattr(found, name).shape == part.shape, name
        assert getattr(found, name).dtype == part.dtype, name
