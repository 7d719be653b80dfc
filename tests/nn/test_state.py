"""``NTMState`` as a thing one holds: copied, moved, cut along the batch and joined again, saved."""

import re
import subprocess
import sys

import pytest
import torch

from ntm_kernels import NTM, NTMState
from ntm_kernels.torch_private import tree_flatten, tree_leaves

FORMS = {"lstm": {}, "two layers": {"num_layers": 2}, "feedforward": {"controller": "feedforward"}}
each_form = pytest.mark.parametrize("form", FORMS)


def problem(form="lstm", batch=4):
    torch.manual_seed(0)
    model = NTM(3, 2, 5, memory_size=7, word_size=4, **FORMS[form])
    x = torch.randn(6, batch, 3)
    return model, x, model(x)[1]


def assert_same(one, other):
    leaves, tree = tree_flatten(one)
    others, other_tree = tree_flatten(other)
    assert tree == other_tree
    assert all(map(torch.equal, leaves, others))


@each_form
def test_picking_sequences(form):
    """The picked sequences go on as in the whole batch."""
    model, x, state = problem(form)
    whole, _ = model(x, state)
    for index in ([2], [3, 0, 0], [], [0, 1, 2, 3]):
        index = torch.tensor(index, dtype=torch.int64)
        picked = state.select(index)
        assert picked.memory.shape[0] == len(index)
        torch.testing.assert_close(model(x[:, index], picked)[0], whole[:, index])
    torch.testing.assert_close(model(x[:, 1:3], state.narrow(1, 2))[0], whole[:, 1:3])
    beams = state.repeat_interleave(2)
    torch.testing.assert_close(
        model(x.repeat_interleave(2, 1), beams)[0], whole.repeat_interleave(2, 1)
    )
    assert_same(
        state.repeat_interleave(torch.tensor([0, 2, 0, 1])), state.select(torch.tensor([1, 1, 3]))
    )


@each_form
def test_joining_what_was_cut(form):
    _, _, state = problem(form)
    assert_same(NTMState.cat([state.narrow(0, 1), state.narrow(1, 3)]), state)
    assert_same(NTMState.cat(iter([state])), state)


def test_gradients_go_through():
    model, x, _ = problem()
    _, state = model(x)
    picked = NTMState.cat([state.select(torch.tensor([1])), state.narrow(2, 1)]).repeat_interleave(
        2
    )
    picked.memory.sum().backward()
    assert model.cell.interface.weight.grad.abs().sum() > 0


@each_form
def test_copies(form):
    _, _, state = problem(form)
    clone = state.clone()
    assert_same(clone, state)
    taken = {part.untyped_storage().data_ptr() for part in tree_leaves(state)}
    assert not taken & {part.untyped_storage().data_ptr() for part in tree_leaves(clone)}
    assert all(part.requires_grad for part in tree_leaves(clone))
    assert not any(part.requires_grad for part in tree_leaves(state.detach()))
    assert {part.dtype for part in tree_leaves(state.to(torch.float64))} == {torch.float64}
    assert {part.device.type for part in tree_leaves(state.to("meta"))} == {"meta"}
    assert_same(state.cpu(), state)


def test_it_is_a_tuple():
    _, _, state = problem()
    memory, weightings, read_vectors, controller = state
    assert state == (memory, weightings, read_vectors, controller)
    assert state._replace(memory=None).weightings is weightings


def test_what_is_no_tensor_stays():
    _, _, state = problem()
    marked = state._replace(controller={"steps": 3, "hidden": state.controller[0]})
    for other in (marked.clone(), marked.narrow(0, 2), NTMState.cat([marked, marked])):
        assert other.controller["steps"] == 3
    with pytest.raises(ValueError, match=r"state 1 must be as state 0.*controller 4 beside 3"):
        NTMState.cat([marked, marked._replace(controller={**marked.controller, "steps": 4})])


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda s: s._replace(memory=s.memory[:, :5]), "memory [4, 5, 4] torch.float32 on cpu"),
        (lambda s: s.to(torch.float64), "memory [4, 7, 4] torch.float64 on cpu"),
        (lambda s: s.to("meta"), "memory [4, 7, 4] torch.float32 on meta"),
        (lambda s: s._replace(controller=()), "the form"),
        (lambda s: s._replace(read_vectors=s.read_vectors[:, :, :2]), "read_vectors [4, 1, 2]"),
    ],
)
def test_states_that_do_not_fit(change, got):
    _, _, state = problem()
    with pytest.raises(ValueError, match=re.escape(got)):
        NTMState.cat([state, change(state)])


def test_bad_arguments():
    _, _, state = problem()
    with pytest.raises(ValueError, match="give at least one state, got none"):
        NTMState.cat([])
    with pytest.raises(TypeError, match="every state must be an NTMState, got tuple"):
        NTMState.cat([state, tuple(state)])
    for start, length in ((0, 5), (-1, 2), (3, -1), (5, 0)):
        with pytest.raises(ValueError, match=f"batch of 4, got start={start} and length={length}"):
            state.narrow(start, length)
    single = NTMState(*(part[0] for part in state[:3]), ())
    for method in (
        lambda: single.select(torch.tensor([0])),
        lambda: single.narrow(0, 1),
        lambda: single.repeat_interleave(2),
        lambda: NTMState.cat([single]),
    ):
        with pytest.raises(ValueError, match=r"must have a batch, .* got memory \[7, 4\]"):
            method()


def test_read_in_a_fresh_process(tmp_path):
    """With weights_only, after ``import ntm_kernels`` alone."""
    _, _, state = problem("two layers")
    torch.save(state.detach(), tmp_path / "state.pt")
    program = (
        "import torch, ntm_kernels\n"
        f"state = torch.load({str(tmp_path / 'state.pt')!r}, weights_only=True)\n"
        "print(type(state).__name__, list(state.memory.shape), len(state.controller))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "NTMState [4, 7, 4] 2", done.stderr


def test_its_form_has_a_name():
    """What torch.export writes of a program that takes or returns a state."""
    _, _, state = problem("two layers")
    _, tree = tree_flatten(state)
    text = torch.utils._pytree.treespec_dumps(tree)
    assert "ntm_kernels.NTMState" in text
    assert torch.utils._pytree.treespec_loads(text) == tree
