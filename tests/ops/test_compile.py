"""The ops under ``torch.library.opcheck``, ``torch.compile`` and ``torch.export``."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from ntm_kernels import functional
from ntm_kernels.ops import OPS, SequenceInputs, SequenceOptions
from ntm_kernels.ops.declare import unpack
from tests.support.cases import (
    Case,
    Dtypes,
    arguments,
    call,
    cotangents,
    differentiate,
    each_small,
    leaves,
    named_outputs,
    of_sequence,
    run,
)
from tests.support.table import F64, each_backend, fitting

FLOAT32 = Dtypes.all(torch.float32)
SEQUENCE = Case("sequence", num_write_heads=2, time=5)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def problem(entry, case, dtypes=FLOAT32):
    fitting(entry, case, dtypes)
    return arguments(case, dtypes, entry.device)


def assert_close(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name in other:
            torch.testing.assert_close(one[name], other[name])


def op_arguments(case, tensors, backend, save, lengths=None, trace=False):
    if case.op != "sequence":
        return (*tensors.values(), *case.options.values(), save, backend)
    values = [(tensors | {"lengths": lengths}).get(name) for name in SequenceInputs._fields]
    options = SequenceOptions(**case.options, checkpoint_every=2, return_trace=trace)
    return (*values, *options, save, backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@each_small
@each_backend
def test_opcheck(entry, case, dtype):
    """Schema, fake kernel, autograd registration and AOT dispatch."""
    dtypes = Dtypes.all(dtype)
    if case.op == "sequence" and dtype == torch.bfloat16:
        dtypes = Dtypes.float32_but(dtype, "input", "parameters")
    tensors = leaves(problem(entry, case, dtypes))
    op = getattr(torch.ops.ntm, case.op).default
    torch.library.opcheck(op, op_arguments(case, tensors, entry.backend, True))
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    torch.library.opcheck(op, op_arguments(case, plain, entry.backend, False))
    if case.op == "sequence":
        lengths = torch.tensor([3, 1], device=entry.device)
        torch.library.opcheck(op, op_arguments(case, plain, entry.backend, True, lengths, True))


@pytest.mark.parametrize("locations", [16, 17, 33])
@each_backend
def test_fake_results_at_any_size(entry, locations):
    """What is saved may be padded; the fake kernel has to know by how much."""
    case = SEQUENCE.with_(memory_size=locations)
    given = op_arguments(case, problem(entry, case), entry.backend, True)
    torch.library.opcheck(torch.ops.ntm.sequence.default, given, test_utils="test_faketensor")


@each_small
@each_backend
def test_opcheck_of_the_backward(entry, case):
    tensors = problem(entry, case, Dtypes.all(F64))
    op = getattr(torch.ops.ntm, case.op)
    given = op_arguments(case, tensors, entry.backend, True)
    results = op(*given)
    declared = OPS[case.op]
    inputs, options, _ = unpack(given, declared.inputs, declared.options)
    outputs, (saved,) = unpack(results, declared.outputs)
    named = outputs._asdict()
    grads = [
        torch.randn_like(named[name]) if named[name].numel() else None
        for name in declared.differentiated_outputs
    ]
    kept = [named[name] for name in declared.kept_outputs]
    there = inputs._asdict()
    wanted = [there[name] is not None for name in declared.differentiated_inputs]
    backward = getattr(torch.ops.ntm, f"{case.op}_backward").default
    torch.library.opcheck(
        backward,
        (*grads, *inputs, *kept, saved, *options, wanted, entry.backend),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@each_small
@each_backend
def test_compiled_whole(entry, case):
    """One graph, no break; forward and backward give what eager gives."""
    tensors = problem(entry, case)
    wanted = run(case, tensors, entry.backend)
    names = list(tensors)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(*values):
        return call(case, dict(zip(names, values, strict=True)), entry.backend)

    given = leaves(tensors)
    outputs = compiled(*given.values())
    grads = differentiate(outputs, cotangents(outputs), given)
    assert_close(({k: v.detach() for k, v in outputs.items()}, grads), wanted)
    with torch.no_grad():
        assert_close([compiled(*tensors.values())], wanted[:1])


@pytest.mark.parametrize("trace", [False, True])
@each_backend
def test_compiled_lengths_and_trace(entry, trace):
    tensors = problem(entry, SEQUENCE)
    options = SEQUENCE.options | {"return_trace": trace, "backend": entry.backend}

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(lengths, *values):
        named = dict(zip(tensors, values, strict=True))
        return functional.sequence(**of_sequence(named), **options, lengths=lengths)

    for lengths in ((5, 2), (0, 4)):
        lengths = torch.tensor(lengths, device=entry.device)
        wanted = functional.sequence(**of_sequence(tensors), **options, lengths=lengths)
        found = compiled(lengths, *tensors.values())
        assert_close([named_outputs("sequence", found)], [named_outputs("sequence", wanted)])
        if trace:
            assert_close([found.trace._asdict()], [wanted.trace._asdict()])


@each_backend
def test_compiled_by_inductor(entry):
    """The default compiler, with work of its own around the op."""
    tensors = problem(entry, SEQUENCE)
    names = list(tensors)

    def model(*values):
        given = dict(zip(names, values, strict=True))
        given["x"] = given["x"].tanh() * 2
        outputs = call(SEQUENCE, given, entry.backend)
        return sum(part.square().mean() for part in outputs.values())

    wanted = leaves(tensors)
    loss = model(*wanted.values())
    loss.backward()
    given = leaves(tensors)
    found = torch.compile(model, fullgraph=True)(*given.values())
    found.backward()
    torch.testing.assert_close(found, loss)
    for name in names:
        torch.testing.assert_close(given[name].grad, wanted[name].grad)


@pytest.mark.parametrize("op", ["address", "read", "write", "step", "sequence"])
@each_backend
def test_sizes_stay_dynamic(entry, op):
    """Other batch sizes and sequence lengths run the same graph."""
    counter = CompileCounterWithBackend("aot_eager")
    first = Case(op)
    problem(entry, first)

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def compiled(given):
        return call(first, given, entry.backend)

    # At first sizes that equal no other: torch takes equal ones for one and the same.
    for batch, time in ((13, 17), (3, 5), (5, 9), (4, 16), (7, 3)):
        case = first.with_(batch=batch, time=time)
        tensors = leaves(problem(entry, case))
        wanted = run(case, tensors, entry.backend)
        outputs = compiled(tensors)
        grads = differentiate(outputs, cotangents(outputs), tensors)
        assert_close(({k: v.detach() for k, v in outputs.items()}, grads), wanted)
    assert counter.frame_count == 1


@each_small
@each_backend
def test_export(entry, case):
    tensors = problem(entry, case)

    class Module(torch.nn.Module):
        def forward(self, given):
            return call(case, given, entry.backend)

    program = torch.export.export(Module(), (tensors,))
    assert_close([program.module()(tensors)], [call(case, tensors, entry.backend)])


@each_backend
def test_fake_tensors_give_shapes(entry):
    """Lengths among them: there are no values to check."""
    tensors = problem(entry, SEQUENCE)
    lengths = torch.tensor([5, 2], device=entry.device)
    wanted = call(SEQUENCE, tensors, entry.backend, lengths=lengths)
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}
        found = call(SEQUENCE, fake, entry.backend, lengths=mode.from_tensor(lengths))
    for name, part in found.items():
        assert part.shape == wanted[name].shape
        assert part.dtype == wanted[name].dtype


@each_backend
def test_meta_tensors_give_shapes(entry):
    """On the meta device only shapes are computed."""
    for case in (Case("address"), Case("step"), SEQUENCE):
        tensors = problem(entry, case)
        wanted = call(case, tensors, entry.backend)
        meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
        for name, part in call(case, meta, "torch").items():
            assert part.device.type == "meta"
            assert part.shape == wanted[name].shape
            assert part.dtype == wanted[name].dtype
