"""Restarts inside a sequence: what cutting it there gives, gradients included."""

from itertools import pairwise

import pytest
import torch

from ntm_kernels import functional, reference
from tests.support.cases import (
    DEEP,
    Case,
    Dtypes,
    arguments,
    assert_agrees,
    call,
    cotangents,
    of_sequence,
    run,
)
from tests.support.table import each_backend, fitting

CASES = [
    Case("sequence", 3, time=7, num_read_heads=2),
    Case("sequence", 3, time=7, num_write_heads=2, controller="feedforward", input_size=3),
    *(case.with_(batch=3, time=7) for case in DEEP),
    Case("sequence", 3, memory_size=3, word_size=2, time=7, num_layers=2),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
RESETS = [[0, 0, 1], [1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1], [1, 0, 1]]
SHARED = {"recurrent_weight", "interface_weight", "interface_bias", "input_weight", "input_bias"}
SHARED |= {"upper_weight", "upper_bias"}


def problem(entry, case, dtype=torch.float64):
    fitting(entry, case, Dtypes.all(dtype))
    resets = torch.tensor(RESETS, dtype=torch.bool, device=entry.device)
    return arguments(case, Dtypes.all(dtype), entry.device), resets


def of_one(group, b):
    """Sequence ``b`` of each tensor."""

    def cut(name, part):
        if name in SHARED:
            return part
        if name in ("x", "hidden", "read_vectors") or name.endswith(("_hidden", "_cell")):
            return part[:, b : b + 1]
        return part[b : b + 1]

    return {name: cut(name, part) for name, part in group.items()}


def assert_near(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@each_case
@each_backend
def test_against_the_reference(entry, case, dtype):
    tensors, resets = problem(entry, case, dtype)
    assert_agrees(case, entry, tensors, resets=resets)


@pytest.mark.parametrize("every", [1, 2, 3, 7])
@each_backend
def test_checkpoints(entry, every):
    tensors, resets = problem(entry, CASES[0])
    assert_agrees(CASES[0], entry, tensors, resets=resets, checkpoint_every=every)


@each_case
@each_backend
def test_cutting_there_gives_the_same(entry, case):
    """Each sequence by itself, part by part. Gradients of what the parts share add up."""
    tensors, resets = problem(entry, case)
    outputs = call(case, tensors, entry.backend)
    grads = cotangents(outputs)
    together, found = run(case, tensors, entry.backend, grads, resets=resets)
    wanted = {name: torch.zeros_like(tensors[name]) for name in found if name in SHARED}
    for b in range(case.batch):
        single, single_grads = of_one(tensors, b), of_one(grads, b)
        starts = [0, *(t for t in range(1, case.time) if resets[t, b]), case.time]
        initial = {name: torch.zeros_like(part) for name, part in single.items()}
        for start, stop in pairwise(starts):
            part = case.with_(batch=1, time=stop - start)
            piece = single | {"x": single["x"][start:stop]}
            of_piece = {
                name: grad[start:stop] if name in ("hidden", "read_vectors") else grad
                for name, grad in single_grads.items()
                if stop == case.time or not name.startswith("final_")
            }
            piece_outputs, piece_found = run(part, piece, entry.backend, of_piece)
            for name in ("hidden", "read_vectors"):
                assert_near(piece_outputs[name], of_one(together, b)[name][start:stop])
            for name, grad in piece_found.items():
                if name in wanted:
                    wanted[name] += grad
                elif name == "x":
                    assert_near(of_one(found, b)["x"][start:stop], grad)
                else:
                    initial[name] += grad
        for name, part in piece_outputs.items():
            if name.startswith("final_"):
                assert_near(part, of_one(together, b)[name])
        for name, grad in initial.items():
            if name.startswith("initial_"):
                assert_near(of_one(found, b)[name], grad)
    for name, grad in wanted.items():
        assert_near(found[name], grad)


@each_case
@each_backend
def test_the_same_bits_as_cutting_all_there(entry, case, monkeypatch):
    """Where all sequences start anew together, a product has the same rows as in the parts. The
    projection of the input is one product over all steps, so the input comes projected."""
    if entry.backend.startswith("cuda"):
        # One launch has no resets, and rounds otherwise.
        monkeypatch.setenv("NTM_KERNELS_SEQUENCE", "step_loop")
    case = case.with_(input_size=0)
    tensors, resets = problem(entry, case, torch.float32)
    resets = resets[:, :1].expand_as(resets).contiguous()
    together = call(case, tensors, entry.backend, resets=resets)
    starts = [0, 1, 3, 6, case.time]
    assert resets[:, 0].nonzero().flatten().tolist()[1:] == starts[2:-1]
    for start, stop in pairwise(starts[1:]):
        part = case.with_(time=stop - start)
        piece = call(part, tensors | {"x": tensors["x"][start:stop]}, entry.backend)
        for name in ("hidden", "read_vectors"):
            assert torch.equal(piece[name], together[name][start:stop])
    for name, last in piece.items():
        if name.startswith("final_"):
            assert torch.equal(last, together[name])


@each_backend
def test_none_true_changes_nothing(entry):
    tensors, resets = problem(entry, CASES[0])
    wanted = run(CASES[0], tensors, entry.backend)
    actual = run(CASES[0], tensors, entry.backend, resets=torch.zeros_like(resets))
    for parts, others in zip(wanted, actual, strict=True):
        for name, part in parts.items():
            torch.testing.assert_close(others[name], part, rtol=1e-12, atol=1e-12)


@each_backend
def test_with_lengths(entry):
    """A reset beyond the length does nothing."""
    tensors, resets = problem(entry, CASES[0])
    lengths = torch.tensor([3, 7, 0], device=entry.device)
    assert_agrees(CASES[0], entry, tensors, resets=resets, lengths=lengths)
    inside = resets & (torch.arange(7, device=entry.device)[:, None] < lengths)
    wanted = call(CASES[0], tensors, entry.backend, resets=inside, lengths=lengths)
    found = call(CASES[0], tensors, entry.backend, resets=resets, lengths=lengths)
    assert all(torch.equal(found[name], part) for name, part in wanted.items())


@each_backend
def test_trace(entry):
    tensors, resets = problem(entry, CASES[0])
    options = CASES[0].options | {"resets": resets, "return_trace": True}
    found = functional.sequence(**of_sequence(tensors), **options, backend=entry.backend).trace
    wanted = reference.sequence(**of_sequence(tensors), **options).trace
    for name, part in wanted._asdict().items():
        torch.testing.assert_close(getattr(found, name), part, rtol=1e-10, atol=1e-10)


def test_no_steps():
    case = Case("sequence", time=0)
    tensors = arguments(case)
    outputs = call(case, tensors, "torch", resets=torch.zeros(0, case.batch, dtype=torch.bool))
    assert torch.equal(outputs["final_memory"], tensors["initial_memory"])


@pytest.mark.parametrize(
    ("resets", "error", "message"),
    [
        ([[True]], TypeError, "resets must be a tensor, got list"),
        (torch.zeros(7, 3), TypeError, r"resets must be of dtype torch.bool, got torch.float32"),
        (torch.zeros(7, 2, dtype=torch.bool), ValueError, r"resets must be \[T=7, B=3\]"),
        (torch.zeros(3, 7, dtype=torch.bool), ValueError, r"resets must be \[T=7, B=3\]"),
        (torch.zeros(7, dtype=torch.bool), ValueError, r"resets must be \[T, B\], got \[7\]"),
        (torch.zeros(7, 3, dtype=torch.bool, device="meta"), ValueError, "resets are on meta"),
    ],
)
def test_bad_resets(resets, error, message):
    with pytest.raises(error, match=f"sequence: {message}"):
        call(CASES[0], arguments(CASES[0]), "torch", resets=resets)
