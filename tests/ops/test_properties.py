"""What holds for all sizes and values, however extreme."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ntm_kernels import functional
from tests.support.cases import Case, Dtypes, arguments, assert_agrees, call, cotangents, run
from tests.support.table import each_backend, fitting

sizes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 4),
        "memory_size": st.integers(1, 40),
        "word_size": st.integers(1, 24),
        "num_read_heads": st.integers(1, 3),
        "num_write_heads": st.integers(1, 3),
        "shift_range": st.integers(0, 3),
    }
)
# Magnitudes of the raw parameters and of the memory, from nothing to what saturates everything.
magnitudes = st.sampled_from([0.0, 1e-12, 1e-6, 1e-3, 1.0, 30.0, 100.0, 1e3, 1e4])
starts = st.sampled_from(["random", "one-hot", "uniform", "nothing"])
seeds = st.integers(0, 2**31 - 1)
dtypes = st.sampled_from([torch.float32, torch.float64])


def weighting(tensor, start):
    if start == "one-hot":
        return torch.nn.functional.one_hot(tensor.argmax(-1), tensor.shape[-1]).to(tensor)
    if start == "uniform":
        return torch.full_like(tensor, 1 / tensor.shape[-1])
    return torch.zeros_like(tensor) if start == "nothing" else tensor


def assert_weightings(weightings):
    assert (weightings >= 0).all()
    sums = weightings.double().sum(-1)
    eps = torch.finfo(weightings.dtype).eps
    torch.testing.assert_close(
        sums, torch.ones_like(sums), rtol=0, atol=4 * eps * weightings.shape[-1] ** 0.5
    )


@given(sizes, magnitudes, magnitudes, starts, seeds, dtypes)
@each_backend
def test_step_keeps_weightings(entry, size, raw, stored, start, seed, dtype):
    """Weightings are weightings, results and gradients finite, wherever the parameters are."""
    case = Case("step", **size)
    tensors = arguments(case, Dtypes.all(dtype), entry.device, seed=seed)
    tensors["interface"] *= raw
    tensors["memory"] *= stored
    tensors["previous_weightings"] = weighting(tensors["previous_weightings"], start)
    outputs, grads = run(case, tensors, entry.backend)
    assert_weightings(outputs["weightings"])
    for group in (outputs, grads):
        for name, part in group.items():
            assert part.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("raw", [-40.0, -46.0, -50.0, -80.0, -90.0, -103.0, -110.0, -700.0, -745.0])
@each_backend
def test_faint_gate_after_no_weighting(entry, raw, dtype):
    """All of w̃ is as small as the gate: every slope is finite, down to where the gate is 0."""
    case = Case("step", num_read_heads=2)
    tensors = arguments(case, Dtypes.all(dtype), entry.device)
    tensors["previous_weightings"][:] = 0
    case.layout.split(tensors["interface"]).gate[:] = raw
    outputs, grads = run(case, tensors, entry.backend)
    assert_weightings(outputs["weightings"])
    for group in (outputs, grads):
        for name, part in group.items():
            assert part.isfinite().all(), name
    assert_agrees(case, entry, tensors)


@given(
    sizes,
    st.integers(1, 6),
    st.sampled_from(["lstm", "feedforward"]),
    magnitudes,
    starts,
    seeds,
    st.lists(st.integers(0, 6), min_size=4, max_size=4),
)
@each_backend
def test_sequence_keeps_weightings(entry, size, time, controller, raw, start, seed, lengths):
    case = Case("sequence", **size, time=time, hidden_size=3, controller=controller)
    tensors = arguments(case, Dtypes.all(torch.float32), entry.device, seed=seed)
    tensors["interface_bias"] *= raw
    tensors["initial_weightings"] = weighting(tensors["initial_weightings"], start)
    lengths = torch.tensor(lengths, device=entry.device)[: case.batch].clamp(max=time)
    outputs, grads = run(case, tensors, entry.backend, lengths=lengths)
    moved = outputs["final_weightings"][lengths > 0]
    assert_weightings(moved)
    for group in (outputs, grads):
        for name, part in group.items():
            assert part.isfinite().all(), name


@given(sizes, seeds)
@each_backend
def test_read_returns_what_was_written(entry, size, seed):
    """A full-strength write at one location, then a read there."""
    case = Case("write", size["batch"], size["memory_size"], size["word_size"])
    tensors = arguments(case, Dtypes.all(torch.float32), entry.device, seed=seed)
    tensors["memory"] *= 1e3
    tensors["weightings"] = weighting(tensors["weightings"], "one-hot")
    tensors["erase"][:] = 1
    written = functional.write(**tensors, backend=entry.backend)
    found = functional.read(written, tensors["weightings"], backend=entry.backend)
    assert torch.equal(found, tensors["add"])
    elsewhere = tensors["weightings"][:, 0] == 0
    assert torch.equal(written[elsewhere], tensors["memory"][elsewhere])


@given(sizes, st.integers(-3, 3), seeds)
@each_backend
def test_whole_shifts_rotate(entry, size, offset, seed):
    """All mass on one offset moves the focus by as many rows, around the end."""
    case = Case("address", **{k: v for k, v in size.items() if k != "shift_range"}, shift_range=3)
    tensors = arguments(case, Dtypes.all(torch.float64), entry.device, seed=seed)
    tensors["gate"][:] = 0
    tensors["sharpening"][:] = 1
    tensors["shift"][:] = torch.eye(7)[offset + 3]
    found = functional.address(*tensors.values(), backend=entry.backend)
    torch.testing.assert_close(found, tensors["previous_weightings"].roll(offset, -1))


@given(sizes, seeds)
@each_backend
def test_rotating_the_memory_rotates_the_weightings(entry, size, seed):
    """No location is special."""
    case = Case("address", **size)
    tensors = arguments(case, Dtypes.all(torch.float64), entry.device, seed=seed)
    wanted = functional.address(*tensors.values(), backend=entry.backend)
    tensors["memory"] = tensors["memory"].roll(2, 1)
    tensors["previous_weightings"] = tensors["previous_weightings"].roll(2, -1)
    found = functional.address(*tensors.values(), backend=entry.backend)
    torch.testing.assert_close(found, wanted.roll(2, -1))


@given(sizes, seeds)
@each_backend
def test_order_of_heads_does_not_matter(entry, size, seed):
    """All erase before any adds."""
    case = Case(
        "write", size["batch"], size["memory_size"], size["word_size"], size["num_write_heads"]
    )
    tensors = arguments(case, Dtypes.all(torch.float64), entry.device, seed=seed)
    wanted = functional.write(**tensors, backend=entry.backend)
    turned = {name: part if name == "memory" else part.flip(1) for name, part in tensors.items()}
    torch.testing.assert_close(functional.write(**turned, backend=entry.backend), wanted)


@given(sizes, st.floats(1e-3, 1e3), seeds)
@each_backend
def test_content_ignores_the_length_of_the_key(entry, size, factor, seed):
    case = Case("address", **size)
    tensors = arguments(case, Dtypes.all(torch.float64), entry.device, seed=seed)
    wanted = functional.address(*tensors.values(), backend=entry.backend)
    tensors["key"] *= factor
    found = functional.address(*tensors.values(), backend=entry.backend)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 8.0, 12.0, 50.0, 1e4])
@pytest.mark.parametrize("locations", [1, 128, 1000])
@each_backend
def test_sharpening_keeps_the_sum(entry, locations, gamma):
    """The quotient form with an epsilon sums to 7e-8 here at γ = 12."""
    case = Case("address", 1, locations, 3)
    tensors = arguments(case, Dtypes.all(torch.float32), entry.device)
    tensors["gate"][:] = 0
    tensors["sharpening"][:] = gamma
    tensors["previous_weightings"][:] = 1 / locations
    assert_weightings(functional.address(*tensors.values(), backend=entry.backend))


@pytest.mark.parametrize(
    "case", [Case("step", num_write_heads=2), Case("sequence", num_write_heads=2, time=7)], ids=str
)
@each_backend
def test_the_gradient_of_an_erase_vector_that_is_nearly_one(entry, case):
    """Its slope e (1 − e) is right in relative terms: 1 − e has no correct digit in float32."""
    name = "interface" if case.op == "step" else "interface_bias"
    tensors = arguments(case, Dtypes.all(torch.float32), entry.device)
    end = case.layout.size - case.num_write_heads * case.word_size
    erase = slice(end - case.num_write_heads * case.word_size, end)
    tensors[name][..., erase] = 14
    if case.op == "sequence":
        tensors["interface_weight"][erase] /= 10
    wanted = {key: tensor.double() for key, tensor in tensors.items()}
    grads = cotangents(call(case, wanted))
    truth = run(case, wanted, None, grads)[1][name][..., erase]
    grads = {key: grad.float() for key, grad in grads.items()}
    found = run(case, tensors, entry.backend, grads)[1][name][..., erase]
    bound = 1e-4 * truth.abs().max().item()
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=bound)


@pytest.mark.parametrize("locations", [7, 128])
@each_backend
def test_results_can_be_resized(entry, locations):
    """Whoever the storage of a result comes from: FSDP frees and regrows it."""
    case = Case("write", batch=9, memory_size=locations, word_size=32)
    fitting(entry, case, Dtypes.all(torch.float32))
    written = call(case, arguments(case, Dtypes.all(torch.float32), entry.device), entry.backend)
    memory = written["memory"]
    kept = memory.clone()
    assert torch.equal(memory.resize_(9, locations, 64).flatten()[: kept.numel()], kept.flatten())
    memory.untyped_storage().resize_(0)
    assert memory.untyped_storage().nbytes() == 0
