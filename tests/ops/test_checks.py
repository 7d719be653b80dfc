"""Wrong arguments: the error names the argument, what was expected and what came."""

import re

import pytest
import torch

from ntm_kernels import BackendError, InterfaceLayout, functional, ops
from ntm_kernels.checks import INTEGERS
from ntm_kernels.ops import OPS
from ntm_kernels.ops.declare import fields
from tests.support.cases import Case, Dtypes, Whole, arguments, invoke, shown

CASES = {
    op: Case(op, 2, 7, 5, 2, 1, hidden_size=6, time=4)
    for op in ("address", "read", "write", "step", "sequence")
}
TENSORS = [(op, name) for op, case in CASES.items() for name in case.shapes]
each_tensor = pytest.mark.parametrize(("op", "name"), TENSORS)
# What changes no shape, and yet is refused.
CONVERSIONS = [torch.Tensor.double, torch.Tensor.int, torch.Tensor.to_sparse]


def call(op, **changes):
    case = CASES[op]
    options = arguments(case, Dtypes.all(torch.float32)) | case.options | changes
    tensors = {name: options.pop(name) for name in case.shapes}
    return invoke(functional, op, tensors, **options)


def refused(error, *words):
    """``pytest.raises`` of a message with all of ``words``, in order."""
    return pytest.raises(error, match=".*".join(re.escape(str(word)) for word in words))


@pytest.mark.parametrize(
    ("op", "name", "value"),
    [
        (op, name, value)
        for op, name in TENSORS
        for value in (3.0, [1.0], "x", None)
        if value is not None or not fields(OPS[op].inputs)[name].when
    ],
)
def test_not_a_tensor(op, name, value):
    with refused(TypeError, op, shown(op, name), "must be a tensor", type(value).__name__):
        call(op, **{name: value})


@each_tensor
@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint8]
)
def test_dtype(op, name, dtype):
    tensor = arguments(CASES[op])[name].to(dtype)
    with refused(TypeError, op, shown(op, name), "float32, float64, bfloat16 or float16", dtype):
        call(op, **{name: tensor})


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
@each_tensor
def test_layout(op, name):
    tensor = arguments(CASES[op], Dtypes.all(torch.float32))[name]
    with refused(TypeError, op, shown(op, name), "must be a dense tensor", "torch.sparse_coo"):
        call(op, **{name: tensor.to_sparse()})
    with refused(TypeError, op, shown(op, name), "must be a dense tensor", "a nested tensor"):
        call(op, **{name: torch.nested.nested_tensor([tensor])})


@each_tensor
def test_number_of_dimensions(op, name):
    tensor = arguments(CASES[op], Dtypes.all(torch.float32))[name]
    for wrong in (tensor[None], tensor[0], tensor.flatten(), tensor.sum()):
        if wrong.dim() == tensor.dim():
            continue
        got = f"[{', '.join(map(str, wrong.shape))}]"
        with refused(ValueError, op, shown(op, name), "must be [", f"got {got}"):
            call(op, **{name: wrong})


# Sizes that no other argument shares: these may be anything.
FREE = {("sequence", "x", 0), ("read", "memory", 2), ("read", "weightings", 1)}


@each_tensor
def test_each_size(op, name):
    """One too many and one too few, in every dimension, is noticed somewhere."""
    tensor = arguments(CASES[op], Dtypes.all(torch.float32))[name]
    for dim in range(tensor.dim()):
        for index in (torch.arange(tensor.shape[dim] - 1), [0, *range(tensor.shape[dim])]):
            wrong = tensor.index_select(dim, torch.as_tensor(index))
            if (op, name, dim) in FREE:
                call(op, **{name: wrong})
                continue
            with refused(ValueError, f"{op}: ", "got "):
                call(op, **{name: wrong})


@pytest.mark.parametrize(
    ("op", "name", "shape", "message"),
    [
        (
            "address",
            "key",
            (2, 2, 4),
            "key must be [B=2, H=2, M=5] (M as in memory), got [2, 2, 4]",
        ),
        ("address", "shift", (2, 2, 4), "odd number of taps, offsets −r … +r, got 4"),
        ("address", "strength", (2, 3), "strength must be [B=2, H=2] (H as in key), got [2, 3]"),
        ("read", "weightings", (2, 2, 8), "(N as in memory), got [2, 2, 8]"),
        ("write", "erase", (2, 1, 5), "erase must be [B=2, H=2, M=5] (H as in weightings)"),
        ("step", "interface", (2, 50), "interface must be [B=2, P="),
        ("step", "previous_weightings", (2, 2, 7), "(H as in num_read_heads + num_write_heads)"),
        ("sequence", "recurrent_weight", (24, 10), "recurrent_weight must be [G=24, K=16]"),
        (
            "sequence",
            "x",
            (4, 2, 6),
            "(I as in interface_weight, x being projected), got [4, 2, 6]",
        ),
        ("sequence", "interface_weight", (10, 6), "(P as in the interface layout), got [10, 6]"),
    ],
)
def test_message(op, name, shape, message):
    with refused(ValueError, f"{op}: ", message):
        call(op, **{name: torch.ones(shape)})


@each_tensor
def test_device(op, name):
    """Not all on one device."""
    tensor = arguments(CASES[op], Dtypes.all(torch.float32))[name]
    with refused(
        ValueError, op, " is on ", "meta" if name not in ("memory", "initial_memory") else "cpu"
    ):
        call(op, **{name: tensor.to("meta")})


@pytest.mark.parametrize(
    ("op", "name", "shape", "letter"),
    [
        ("address", "memory", (2, 0, 5), "N"),
        ("step", "memory", (2, 7, 0), "M"),
        ("address", "key", (2, 0, 5), "H"),
        ("write", "weightings", (2, 0, 7), "H"),
        ("sequence", "interface_weight", (43, 0), "C"),
    ],
)
def test_no_size_is_zero(op, name, shape, letter):
    """But for the batch and the time."""
    with refused(ValueError, op, f"{letter} of {name} must be at least 1"):
        call(op, **{name: torch.ones(shape)})


@pytest.mark.parametrize("op", ["step", "sequence"])
@pytest.mark.parametrize("name", ["num_read_heads", "num_write_heads", "shift_range"])
def test_counts(op, name):
    least = 0 if name == "shift_range" else 1
    for value in (least - 1, -7):
        with refused(ValueError, op, name, f"at least {least}", f"got {value}"):
            call(op, **{name: value})
    for value in (1.0, "1", None, True, torch.tensor(1)):
        with refused(TypeError, op, name, "must be an int", type(value).__name__):
            call(op, **{name: value})


@pytest.mark.parametrize("op", ["step", "sequence"])
def test_any_integer_is_a_count(op):
    counts = ["num_read_heads", "num_write_heads", "shift_range"]
    changes = {name: Whole(CASES[op].options[name]) for name in counts}
    if op == "sequence":
        changes["checkpoint_every"] = Whole(2)
    expected = call(op, **({"checkpoint_every": 2} if op == "sequence" else {}))
    torch.testing.assert_close(call(op, **changes), expected)
    with refused(ValueError, op, "num_read_heads must be at least 1, got 0"):
        call(op, num_read_heads=Whole(0))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_lengths_of_any_integer_dtype(dtype):
    expected = call("sequence", lengths=torch.tensor([1, 3]))
    result = call("sequence", lengths=torch.tensor([1, 3], dtype=dtype))
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@pytest.mark.parametrize("op", CASES)
def test_memory_that_is_short(op):
    """One sequence, expanded to a batch whose results no machine holds."""
    many = CASES[op].with_(batch=10**13)
    tensors = arguments(CASES[op].with_(batch=1), Dtypes.all(torch.float32))
    expanded = {name: tensor.expand(many.shapes[name][0]) for name, tensor in tensors.items()}
    with refused(RuntimeError, f"{op}: there is no room for", f"B={10**13}", "make the", "torch: "):
        call(op, **expanded)


def test_checkpoint_every():
    for value in (0, -1):
        with refused(ValueError, "checkpoint_every must be at least 1", f"got {value}"):
            call("sequence", checkpoint_every=value)
    for value in (1.5, "2", True):
        with refused(TypeError, "checkpoint_every must be an int", type(value).__name__):
            call("sequence", checkpoint_every=value)


@pytest.mark.parametrize("missing", ["initial_hidden", "initial_cell"])
def test_half_an_lstm(missing):
    with refused(
        ValueError,
        "sequence: give both initial_state.hidden and initial_state.cell or none",
        f"{shown('sequence', missing)} is None",
    ):
        call("sequence", **{missing: None})


@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        ([1, 2], TypeError, ("must be a tensor", "list")),
        (torch.tensor([1.0, 2.0]), TypeError, ("integer dtype", "int64", "float32")),
        (torch.tensor([True, False]), TypeError, ("integer dtype", "int64", "bool")),
        (torch.tensor([1, 5], dtype=torch.uint8), ValueError, ("must lie in 0 … 4", "got 5")),
        (torch.tensor([1, 2, 3]), ValueError, ("must be [B=2]", "got [3]")),
        (torch.tensor(2), ValueError, ("must be [B]", "got []")),
        (torch.tensor([[1, 2]]), ValueError, ("must be [B]", "got [1, 2]")),
        (torch.tensor([1, 5]), ValueError, ("must lie in 0 … 4", "got 5")),
        (torch.tensor([-1, 4]), ValueError, ("must lie in 0 … 4", "got -1")),
        (torch.ones(2, dtype=torch.int64, device="meta"), ValueError, ("meta", "cpu")),
    ],
)
def test_lengths(lengths, error, words):
    with refused(error, "sequence: ", "lengths", *words):
        call("sequence", lengths=lengths)


KINDS = {
    "address": [("key", "strength", "gate", "shift", "sharpening")],
    "write": [("erase", "add")],
    "sequence": [
        ("initial_memory", "initial_read_vectors"),
        ("initial_hidden", "initial_cell"),
        ("recurrent_weight", "interface_weight", "interface_bias"),
    ],
}


@pytest.mark.parametrize(
    ("op", "kind", "odd"),
    [(op, kind, name) for op, kinds in KINDS.items() for kind in kinds for name in kind],
)
def test_one_kind_one_dtype(op, kind, odd):
    tensor = arguments(CASES[op], Dtypes.all(torch.float16))[odd]
    with refused(TypeError, op, "float16" if odd != kind[0] else "float32", "must share one dtype"):
        call(op, **{odd: tensor})


@each_tensor
def test_float64_goes_alone(op, name):
    tensor = arguments(CASES[op])[name]
    with refused(TypeError, op, "torch.float64"):
        call(op, **{name: tensor})


@pytest.mark.parametrize("op", CASES)
def test_two_16_bit_dtypes(op):
    names = {"address": "previous_weightings", "read": "weightings", "write": "weightings"}
    other = names.get(op, {"step": "interface", "sequence": "initial_weightings"}.get(op))
    tensors = arguments(CASES[op])
    memories = ("initial_memory", "initial_read_vectors") if op == "sequence" else ("memory",)
    changes = {name: tensors[name].to(torch.bfloat16) for name in memories}
    changes[other] = tensors[other].half()
    with refused(TypeError, f"{op}: cannot mix", "bfloat16", "float16"):
        call(op, **changes)


def error(op, **changes):
    with pytest.raises((TypeError, ValueError)) as caught:
        call(op, **changes)
    return caught.type, str(caught.value)


@pytest.mark.parametrize(
    ("op", "changes"),
    [
        *((op, {name: convert}) for op, name in TENSORS for convert in CONVERSIONS),
        *(
            (op, counts)
            for op in ("step", "sequence")
            for counts in (
                {"num_read_heads": 1, "num_write_heads": 2},
                {"shift_range": 2},
                {"num_read_heads": True},
            )
        ),
        ("sequence", {"checkpoint_every": 0}),
        ("sequence", {"lengths": torch.ones(2, dtype=torch.bool)}),
        ("sequence", {"lengths": torch.full((2,), 5, dtype=torch.int32)}),
    ],
)
def test_a_call_before_excuses_nothing(op, changes, monkeypatch):
    """Calls like one that passed are not checked anew; these have its shapes only."""
    tensors = arguments(CASES[op], Dtypes.all(torch.float32))
    changes = {
        name: change(tensors[name]) if callable(change) else change
        for name, change in changes.items()
    }
    monkeypatch.setattr(ops.call, "known_calls", {})
    wanted = error(op, **changes)
    call(op)
    if "lengths" in changes:
        call(op, lengths=changes["lengths"].clamp(max=1).int())
    assert error(op, **changes) == wanted


def test_remembered_problems_stay_few(monkeypatch):
    plans = {}
    monkeypatch.setattr(ops.call, "known_calls", plans)
    monkeypatch.setattr(ops.call, "MOST_KNOWN", 3)
    case = CASES["step"]
    for batch in (1, 2, 3, 4, 5, 1, 2):
        tensors = arguments(case.with_(batch=batch))
        reads, _, _ = functional.step(*tensors.values(), **case.options)
        assert reads.shape[0] == batch
        assert 1 <= len(plans) <= 3


@pytest.mark.parametrize("op", CASES)
def test_backend(op):
    with refused(BackendError, "no backend named 'abacus'", "torch"):
        call(op, backend="abacus")


def test_layout_splits_what_it_sizes():
    layout = InterfaceLayout(word_size=5, num_read_heads=2, num_write_heads=3, shift_range=2)
    raw = torch.arange(7 * layout.size).view(7, layout.size)
    parts = layout.split(raw)
    assert torch.equal(torch.cat([part.flatten(1) for part in parts], 1), raw)
    assert parts.key.shape == (7, 5, 5)
    assert parts.shift.shape == (7, 5, 5)
    assert parts.erase.shape == parts.add.shape == (7, 3, 5)
    assert parts.strength.shape == parts.gate.shape == parts.sharpening.shape == (7, 5)


@pytest.mark.parametrize("op", CASES)
def test_shapes_on_meta(op):
    """No values, but shapes, dtypes and gradients."""
    case = CASES[op]
    tensors = arguments(case, Dtypes.all(torch.float32))
    expected = invoke(functional, op, tensors, **case.options)
    moved = {name: part.to("meta").requires_grad_() for name, part in tensors.items()}
    result = invoke(functional, op, moved, **case.options)
    leaves, wanted = map(torch.utils._pytree.tree_leaves, (result, expected))
    assert all(part is None or part.is_meta for part in leaves)
    for part, expected_part in zip(leaves, wanted, strict=True):
        if part is None:
            assert expected_part is None
        else:
            assert (part.shape, part.dtype) == (expected_part.shape, expected_part.dtype)
    sum(part.sum() for part in leaves if part is not None).backward()
    assert all(part.grad.is_meta and part.grad.shape == part.shape for part in moved.values())
