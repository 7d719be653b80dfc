"""``resets`` of ``NTM`` and ``NTMCell``: the state goes back to where the call started."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from ntm_kernels import NTM, NTMCell, functional
from ntm_kernels.backends import get

RESETS = torch.tensor([[0, 0], [0, 1], [1, 0], [0, 0], [0, 1]], dtype=torch.bool)
CONTROLLERS = {
    "lstm": {},
    "two layers": {"num_layers": 2},
    "feedforward": {"controller": "feedforward"},
    "own": {"controller": "gru"},
}
each_controller = pytest.mark.parametrize("controller", CONTROLLERS)


def model(controller="lstm", **options):
    torch.manual_seed(0)
    options |= CONTROLLERS[controller]
    if options.get("controller") == "gru":
        options["controller"] = nn.GRUCell(3 + 4, 5)
    return NTM(3, 2, 5, memory_size=7, word_size=4, **options)


@each_controller
@pytest.mark.parametrize("fused", [True, False])
def test_as_cut_by_hand(fused, controller):
    ntm = model(controller, fused=fused)
    x = torch.randn(5, 2, 3)
    output, state = ntm(x, resets=RESETS)
    for b, starts in enumerate(([0, 2, 5], [0, 1, 4, 5])):
        for start, stop in pairwise(starts):
            piece, last = ntm(x[start:stop, b : b + 1])
            torch.testing.assert_close(output[start:stop, b : b + 1], piece)
        torch.testing.assert_close(state.memory[b : b + 1], last.memory)


@each_controller
def test_stepped_is_fused(controller):
    ntm, x = model(controller), torch.randn(5, 2, 3)
    results = []
    for fused in (True, False):
        ntm.fused = fused
        ntm.zero_grad()
        ntm(x, lengths=[5, 4], resets=RESETS)[0].square().sum().backward()
        results.append({name: part.grad for name, part in ntm.named_parameters()})
    for name, grad in results[0].items():
        torch.testing.assert_close(grad, results[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_back_to_the_state_given(fused):
    """Not to the module's own initial state."""
    ntm, x = model(fused=fused), torch.randn(5, 2, 3)
    _, given = ntm(torch.randn(3, 2, 3))
    resets = torch.zeros(5, 2, dtype=torch.bool)
    resets[2] = True
    output, _ = ntm(x, given, resets=resets)
    torch.testing.assert_close(output[2:], ntm(x[2:], given)[0])


def test_layouts():
    ntm, x = model(), torch.randn(5, 2, 3)
    wanted, _ = ntm(x, resets=RESETS)
    first = model(batch_first=True)
    output, _ = first(x.transpose(0, 1), resets=RESETS.transpose(0, 1))
    torch.testing.assert_close(output.transpose(0, 1), wanted)
    single, _ = ntm(x[:, 1], resets=RESETS[:, 1])
    torch.testing.assert_close(single, wanted[:, 1])
    unrolled = ntm.cell.unroll(x, resets=RESETS, return_trace=True)
    torch.testing.assert_close(ntm.output(ntm.cell.features(*unrolled[:2])), wanted)
    assert unrolled.trace.weightings.shape[0] == 5


class Blank(nn.Module):
    """A controller without an initial state."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 5)

    def forward(self, input, state):
        return torch.tanh(self.linear(input)), torch.zeros(len(input), 1)


def test_what_is_refused():
    ntm, x = model(), torch.randn(5, 2, 3)
    with pytest.raises(ValueError, match=r"NTM: resets must be \[T=5, B=2\].*got \[2, 5\]"):
        ntm(x, resets=RESETS.T)
    with pytest.raises(ValueError, match=r"NTM: resets must be \[B=2, T=5\].*got \[5, 2\]"):
        model(batch_first=True)(x.transpose(0, 1), resets=RESETS)
    with pytest.raises(ValueError, match=r"NTM: resets must be \[T\], got \[5, 2\]"):
        ntm(x[:, 0], resets=RESETS)
    with pytest.raises(TypeError, match=r"NTM: resets must be of dtype torch.bool"):
        ntm(x, resets=RESETS.int())
    with pytest.raises(ValueError, match="NTM: resets go with a padded x"):
        ntm(pack_padded_sequence(x, [5, 5]), resets=RESETS)
    with pytest.raises(ValueError, match="NTMCell: lengths, resets and return_trace are for whole"):
        ntm.cell(x[0], resets=RESETS[0])
    with pytest.raises(ValueError, match=r"NTMCell: resets must be \[T=5, B=2\]"):
        ntm.cell.unroll(x, resets=RESETS[1:])
    cell = NTMCell(3, 5, memory_size=7, word_size=4, controller=Blank())
    with pytest.raises(ValueError, match=r"must have an initial state.*give Blank a method"):
        cell.unroll(x, resets=RESETS)


@each_controller
@pytest.mark.parametrize("fused", [True, False])
def test_with_lengths_the_state_stays(fused, controller):
    """A reset beyond the length does nothing, to the state at the end either."""
    ntm, x = model(controller, fused=fused), torch.randn(5, 2, 3)
    resets = torch.zeros(5, 2, dtype=torch.bool)
    resets[3, 0] = True
    output, state = ntm(x, lengths=[3, 5], resets=resets)
    wanted, last = ntm(x, lengths=[3, 5])
    assert torch.equal(output, wanted)
    assert torch.equal(state.memory, last.memory)
    assert torch.equal(state.weightings, last.weightings)


def test_a_stepped_trace():
    ntm, x = model(), torch.randn(5, 2, 3)
    wanted = ntm(x, resets=RESETS, return_trace=True)[2]
    ntm.fused = False
    found = ntm(x, resets=RESETS, return_trace=True)[2]
    for part, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(part, other)


def test_a_fused_op_runs_them(monkeypatch):
    """One call of the op for all steps, with several layers too."""
    calls = []
    original = functional.sequence
    monkeypatch.setattr(
        functional, "sequence", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    )
    for controller in ("lstm", "two layers", "feedforward"):
        model(controller)(torch.randn(5, 2, 3), resets=RESETS)
    assert len(calls) == 3


class Counting(nn.Module):
    """Its state is one number for all sequences, which cannot be put back for one of them."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 5)

    def initial_state(self, batch_size):
        return torch.zeros(3, batch_size, 2)

    def forward(self, input, state):
        return torch.tanh(self.linear(input)), state + 1


def test_the_batch_must_come_first():
    cell = NTMCell(3, 5, memory_size=7, word_size=4, controller=Counting())
    with pytest.raises(ValueError, match="must have the batch first"):
        cell.unroll(torch.randn(5, 2, 3), resets=RESETS)


def test_a_named_backend_without_resets_steps(monkeypatch):
    ntm, x = model(backend="torch"), torch.randn(5, 2, 3)
    wanted, _ = ntm(x, resets=RESETS)

    def unsupported(problem):
        return "no resets" if problem.sizes.has_resets else None

    monkeypatch.setattr(get("torch"), "unsupported", unsupported)
    called = []
    monkeypatch.setattr(functional, "sequence", lambda *args, **kwargs: called.append(1))
    output, _ = ntm(x, resets=RESETS)
    torch.testing.assert_close(output, wanted)
    assert called == []
