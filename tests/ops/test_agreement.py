"""Outputs and every gradient of every op on every backend, against the reference in float64."""

import pytest
import torch

from tests.support.cases import (
    DEEP,
    OPS,
    SMALL,
    Case,
    Dtypes,
    arguments,
    assert_agrees,
    assert_results,
    call,
    cotangents,
    each_small,
    leaves,
    run,
    to_dtype,
)
from tests.support.table import each_backend, fitting
from tests.support.traps import OUTSIDE, TRAPS

SINGLE = [Dtypes.all(torch.float64), Dtypes.all(torch.float32)]
HALF = [
    Dtypes.all(half) if kinds is None else Dtypes.float32_but(half, *kinds)
    for half in (torch.bfloat16, torch.float16)
    for kinds in (
        None,
        ("memory",),
        ("weightings",),
        ("parameters",),
        ("input",),
        ("state",),
        ("memory", "weightings", "state"),
        ("parameters", "input"),
    )
]

ONE_STEP = [
    {"batch": 2, "memory_size": 7, "word_size": 5},
    {"batch": 1, "memory_size": 1, "word_size": 1},
    {"batch": 3, "memory_size": 1, "word_size": 4, "num_read_heads": 2},
    {"batch": 1, "memory_size": 13, "word_size": 1, "num_read_heads": 3},
    {"batch": 2, "memory_size": 3, "word_size": 2, "shift_range": 3},
    {"batch": 2, "memory_size": 17, "word_size": 11, "num_read_heads": 5, "shift_range": 2},
    {"batch": 2, "memory_size": 33, "word_size": 19, "shift_range": 0},
    {"batch": 5, "memory_size": 128, "word_size": 20},
    {"batch": 1, "memory_size": 37, "word_size": 3, "shift_range": 17},
    {"batch": 1, "memory_size": 5, "word_size": 3, "num_read_heads": 8},
]
WRITE_HEADS = (1, 1, 2, 1, 3, 4, 1, 1, 6, 8)
STEPS = [
    size | {"num_write_heads": heads} for size, heads in zip(ONE_STEP, WRITE_HEADS, strict=True)
]
SEQUENCES = [
    {"time": 5},
    {"time": 1},
    {"time": 5, "controller": "feedforward"},
    {"time": 3, "memory_size": 1, "word_size": 1, "hidden_size": 1, "batch": 1},
    {
        "time": 4,
        "memory_size": 3,
        "word_size": 2,
        "shift_range": 3,
        "num_read_heads": 2,
        "num_write_heads": 3,
    },
    {
        "time": 7,
        "batch": 3,
        "memory_size": 17,
        "word_size": 11,
        "hidden_size": 13,
        "num_read_heads": 2,
    },
    {
        "time": 9,
        "memory_size": 11,
        "num_write_heads": 2,
        "controller": "feedforward",
        "hidden_size": 17,
    },
    {"time": 10, "batch": 2, "memory_size": 128, "word_size": 20, "hidden_size": 33},
    {"time": 6, "batch": 3, "word_size": 20, "num_read_heads": 2, "input_size": 5},
    {"time": 4, "batch": 1, "input_size": 1, "controller": "feedforward"},
    {"time": 5, "batch": 13, "memory_size": 3, "word_size": 2, "hidden_size": 5, "input_size": 3},
    {
        "time": 2,
        "batch": 1,
        "memory_size": 37,
        "word_size": 3,
        "num_write_heads": 6,
        "shift_range": 17,
    },
    {"time": 3, "batch": 1, "memory_size": 5, "word_size": 3, "num_write_heads": 8},
    {"time": 5, "batch": 3, "num_layers": 2, "hidden_size": 17},
    {"time": 3, "num_layers": 4, "hidden_size": 1, "input_size": 2, "memory_size": 3},
    {"time": 7, "batch": 9, "num_layers": 3, "controller": "feedforward", "input_size": 4},
    {
        "time": 3,
        "batch": 2,
        "memory_size": 128,
        "word_size": 20,
        "num_read_heads": 5,
        "num_write_heads": 5,
        "hidden_size": 100,
        "num_layers": 2,
        "input_size": 9,
    },
]
CASES = [
    Case(op, **size)
    for op, sizes in (
        ("address", ONE_STEP),
        ("read", ONE_STEP),
        ("write", ONE_STEP),
        ("step", STEPS),
        ("sequence", SEQUENCES),
    )
    for size in sizes
]
# Nearly all of a weighting is in one row and γ is 9, so that the gradient of the previous
# weightings is a small difference times a large slope.
CASES.append(Case("address", 3, 37, 9, 3, shift_range=3))


@pytest.mark.parametrize("dtypes", SINGLE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@each_backend
def test_sizes(entry, case, dtypes):
    fitting(entry, case, dtypes)
    assert_agrees(case, entry, arguments(case, dtypes, entry.device))


@pytest.mark.parametrize(
    ("case", "dtypes"),
    [(case, dtypes) for case in SMALL for dtypes in HALF if dtypes.of(case.op) != {torch.float32}],
    ids=str,
)
@each_backend
def test_dtypes(entry, case, dtypes):
    fitting(entry, case, dtypes)
    assert_agrees(case, entry, arguments(case, dtypes, entry.device))


@pytest.mark.parametrize("lengths", [None, (4, 0)])
@pytest.mark.parametrize("dtypes", [*SINGLE, *HALF], ids=str)
@pytest.mark.parametrize("case", DEEP, ids=str)
@each_backend
def test_layers(entry, case, dtypes, lengths):
    fitting(entry, case, dtypes)
    extra = {} if lengths is None else {"lengths": torch.tensor(lengths, device=entry.device)}
    assert_agrees(case, entry, arguments(case, dtypes, entry.device), **extra)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("trap", TRAPS)
@each_backend
def test_traps(entry, trap, dtype):
    """At the places where a careless gradient is NaN: finite, and right."""
    case, tensors = TRAPS[trap]()
    fitting(entry, case, Dtypes.all(dtype))
    tensors = {name: tensor.to(entry.device, dtype) for name, tensor in tensors.items()}
    for group in run(case, tensors, entry.backend):
        for name, value in group.items():
            assert value.isfinite().all(), name
    assert_agrees(case, entry, tensors)


@pytest.mark.parametrize("outside", OUTSIDE)
@each_backend
def test_outside_the_domains(entry, outside):
    """NaN and infinities where the equations have them, and the right numbers everywhere else.

    Of gradients, whether an element is finite: of infinite slopes one order of summing makes an
    infinity, and another NaN.
    """
    case, tensors = OUTSIDE[outside]()
    fitting(entry, case, Dtypes.all(torch.float32))
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    truth = run(case, to_dtype(tensors, torch.float64))
    moved = {name: tensor.to(entry.device) for name, tensor in tensors.items()}
    actual = run(case, moved, entry.backend)
    for kind, what in enumerate(("", "gradient of ")):
        for name, wanted in truth[kind].items():
            found, finite = actual[kind][name].cpu(), wanted.isfinite()
            assert torch.equal(found.isfinite(), finite), f"{what}{name}: {found}, not {wanted}"
            if kind == 0:
                assert torch.equal(found.isnan(), wanted.isnan()), f"{name}: {found}, not {wanted}"
                infinite = wanted.isinf()
                assert torch.equal(found[infinite].double(), wanted[infinite]), name
    assert_results(case, actual, tensors, only_finite=True)


@each_small
@each_backend
def test_nan_is_neither_lost_nor_invented(entry, case):
    """NaN in an argument is NaN in the results where it is in the specification's."""
    fitting(entry, case, Dtypes.all(torch.float32))
    given = arguments(case, Dtypes.all(torch.float32), entry.device)
    for name, tensor in given.items():
        spoilt = tensor.clone()
        spoilt.view(-1)[tensor.numel() // 3] = torch.nan
        tensors = given | {name: spoilt}
        wanted = run(case, {part: value.cpu() for part, value in tensors.items()})
        assert any(part.isnan().any() for part in wanted[0].values()), name
        for found, expected in zip(run(case, tensors, entry.backend), wanted, strict=True):
            for part, value in expected.items():
                assert torch.equal(found[part].isnan().cpu(), value.isnan()), (name, part)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
@each_backend
def test_results_in_16_bits_are_rounded_once(entry, op, dtype):
    """A result rounded twice, or made of a rounded one, has a root mean square error 20 to 40 %
    above that of plain autograd, which rounds at the end."""
    inputs = 24 if op == "sequence" else 0
    case = Case(op, 32, 9, 6, 2, 2, time=6, hidden_size=16, input_size=inputs)
    fitting(entry, case, Dtypes.all(dtype))
    tensors = arguments(case, Dtypes.all(dtype))
    grads = cotangents(call(case, tensors))
    truth = run(case, to_dtype(tensors, torch.float64), None, to_dtype(grads, torch.float64))
    plain = run(case, tensors, None, grads)
    moved, moved_grads = (
        {name: tensor.to(entry.device) for name, tensor in some.items()}
        for some in (tensors, grads)
    )
    actual = run(case, moved, entry.backend, moved_grads)

    def error(results, kind, name):
        return (results[kind][name].cpu() - truth[kind][name]).square().mean().sqrt().item()

    for kind in (0, 1):
        for name in truth[kind]:
            if truth[kind][name].numel() > 200:  # enough for a mean
                found, of_plain = error(actual, kind, name), error(plain, kind, name)
                assert found <= 1.1 * of_plain, name


@each_backend
def test_float16_gradient_of_a_tiny_row_overflows_to_infinity(entry):
    """A gradient of about 1/‖M_i‖ that float16 cannot hold is inf, not some number."""
    case = Case("address", 1, 3, 2)
    dtypes = Dtypes.all(torch.float16)
    fitting(entry, case, dtypes)
    tensors = arguments(case, dtypes, entry.device)
    tensors["memory"][0, 1] = torch.tensor([6e-8, 1.2e-7])
    tensors["key"][0, 0] = torch.tensor([2.0, -1.0])
    tensors["gate"][:] = 1
    _, grads = run(case, tensors, entry.backend)
    assert grads["memory"][0, 1].isinf().any()
    assert not any(grad.isnan().any() for grad in grads.values())
    assert grads["memory"][0, 0].isfinite().all()
    assert_agrees(case, entry, tensors)


def sliced(tensor):
    """Every second element of a tensor that holds NaN between."""
    wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan)
    wide[..., ::2] = tensor
    return wide[..., ::2]


def transposed(tensor):
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def unaligned(tensor):
    flat = tensor.new_full((tensor.numel() + 1,), torch.nan)
    flat[1:] = tensor.flatten()
    return flat[1:].view(tensor.shape)


def repeated(tensor):
    """One row for the whole first dimension, without copying it."""
    return tensor[:1].expand_as(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [sliced, transposed, unaligned, repeated])
@each_small
@each_backend
def test_strides(entry, case, layout, dtype):
    """Arguments and gradients may lie in memory as they like; results are contiguous."""
    dtypes = Dtypes.all(dtype)
    fitting(entry, case, dtypes)
    tensors = {name: layout(part) for name, part in arguments(case, dtypes, entry.device).items()}
    outputs = call(case, tensors, entry.backend)
    grads = {name: layout(grad) for name, grad in cotangents(outputs).items()}
    results = run(case, tensors, entry.backend, grads)
    for group in results:
        for name, part in group.items():
            assert part.is_contiguous(), name
    assert_results(case, results, tensors, grads)


@each_small
@each_backend
def test_gradient_from_a_sum(entry, case):
    """``.sum()`` hands over one number expanded to the whole output."""
    fitting(entry, case, Dtypes.all(torch.float32))
    tensors = arguments(case, Dtypes.all(torch.float32), entry.device)
    grads = {
        name: part.new_ones(()).expand_as(part)
        for name, part in call(case, tensors, entry.backend).items()
    }
    assert_agrees(case, entry, tensors, grads)


def subsets(case):
    names = list(call(case, arguments(case)))
    return [[name] for name in names] + ([names[1:], names[:-1]] if len(names) > 2 else [])


@pytest.mark.parametrize(
    ("case", "names"),
    [(case, names) for case in SMALL[3:] for names in subsets(case)],
    ids=lambda value: str(value) if isinstance(value, Case) else "+".join(value),
)
@each_backend
def test_missing_output_gradients(entry, case, names):
    """A loss may use any part of the outputs."""
    fitting(entry, case, Dtypes.all(torch.float64))
    tensors = arguments(case, device=entry.device)
    grads = cotangents(call(case, tensors, entry.backend))
    assert_agrees(case, entry, tensors, {name: grads[name] for name in names})


@each_small
@each_backend
def test_frozen_arguments(entry, case):
    """Each argument alone has the gradient that it has among all."""
    fitting(entry, case, Dtypes.all(torch.float32))
    tensors = arguments(case, Dtypes.all(torch.float32), entry.device)
    outputs, together = run(case, tensors, entry.backend)
    grads = cotangents(outputs)
    for name, tensor in tensors.items():
        wanted = tensor.clone().requires_grad_()
        results = call(case, tensors | {name: wanted}, entry.backend)
        results = {part: value for part, value in results.items() if value.requires_grad}
        (grad,) = torch.autograd.grad(
            list(results.values()), wanted, [grads[part] for part in results]
        )
        assert torch.equal(grad, together[name]), name


@pytest.mark.parametrize(
    ("every", "layers"),
    [*((every, 1) for every in (1, 2, 3, 5, 6, 7, 100, 2**32 + 2, 2**63 - 1)), (1, 2), (4, 2)],
)
@each_backend
def test_checkpoints(entry, every, layers):
    """However many memories are kept, the gradients agree."""
    case = Case("sequence", time=6, num_write_heads=2, num_layers=layers)
    fitting(entry, case, Dtypes.all(torch.float64))
    assert_agrees(case, entry, arguments(case, device=entry.device), checkpoint_every=every)


@pytest.mark.parametrize("op", OPS)
@each_backend
def test_empty_batch(entry, op):
    case = Case(op, batch=0)
    fitting(entry, case, Dtypes.all(torch.float32))
    tensors = leaves(arguments(case, Dtypes.all(torch.float32), entry.device))
    outputs = call(case, tensors, entry.backend)
    wanted = call(case, tensors)
    for name, part in outputs.items():
        assert part.shape == wanted[name].shape
    sum(part.sum() for part in outputs.values()).backward()
    for name, tensor in tensors.items():
        assert not tensor.grad.any(), name


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
@each_backend
def test_no_steps(entry, controller):
    """T = 0 gives the initial state, and passes its gradient on."""
    case = Case("sequence", time=0, controller=controller)
    assert_agrees(case, entry, arguments(case, Dtypes.all(torch.float32), entry.device))


@each_backend
def test_large_values(entry):
    """Memory, key and add of 1e4, far from anything trained, still agree."""
    case = Case("step", num_read_heads=2, num_write_heads=2)
    fitting(entry, case, Dtypes.all(torch.float32))
    tensors = arguments(case, Dtypes.all(torch.float32), entry.device)
    tensors["memory"] *= 1e4
    tensors["interface"][:, : case.num_heads * case.word_size] *= 1e4
    tensors["interface"][:, -case.num_write_heads * case.word_size :] *= 1e4
    assert_agrees(case, entry, tensors)


@each_backend
def test_overwriting_leaves_nothing(entry):
    """Where ``w e = 1``, the new word stands as it is, however large the old one was."""
    add = torch.tensor([[[1e-3, -0.3, 0.0]]], device=entry.device)
    for heads in (1, 2):
        weightings = torch.zeros(1, heads, 2, device=entry.device)
        weightings[0, 0, 1] = 1
        written = call(
            Case("write", num_read_heads=heads),
            {
                "memory": torch.full((1, 2, 3), 1e4, device=entry.device),
                "weightings": weightings,
                "erase": torch.ones(1, heads, 3, device=entry.device),
                "add": add.expand(1, heads, 3),
            },
            entry.backend,
        )["memory"]
        assert torch.equal(written[0, 1], add[0, 0])
