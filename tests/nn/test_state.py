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
    with pytest.raises(ValueError, match=r"state 1 must have .* got controller 4 beside 3"):
        NTMState.cat([marked, marked._replace(controller={**marked.controller, "steps": 4})])


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda s: s._replace(memory=s.memory[:, :5]), "memory [4, 5, 4] torch.float32 on cpu"),
        (lambda s: s.to(torch.float64), "memory [4, 7, 4] torch.float64 on cpu"),
        (lambda s: s.to("meta"), "memory [4, 7, 4] torch.float32 on meta"),
        (lambda s: s._replace(controller=()), "the controller's state () beside ([4, 5], [4, 5])"),
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
    for start, length in ((0, 5), (5, 0), (3, 2)):
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


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (2, TypeError, "index must be a tensor or a list of integers, got 2"),
        ([0.5], TypeError, r"index must be a tensor or a list of integers, got \[0.5\]"),
        (torch.tensor([4]), ValueError, r"index must lie in 0 … 3, got 4"),
        ([-1], ValueError, r"index must lie in 0 … 3, got -1"),
        (torch.tensor([[0]]), ValueError, r"index must be \[K\], got \[1, 1\]"),
        (torch.tensor([0.0]), TypeError, "index must have integers, or be a bool mask"),
    ],
)
def test_bad_indices(index, error, message):
    _, _, state = problem()
    with pytest.raises(error, match=f"NTMState.select: {message}"):
        state.select(index)


def test_other_ways_to_select():
    _, _, state = problem()
    wanted = state.select(torch.tensor([0, 2]))
    for index in ([0, 2], torch.tensor([0, 2], dtype=torch.int8), torch.tensor([1, 0, 1, 0]) > 0):
        assert_same(state.select(index), wanted)


def test_bad_repeats_and_ranges():
    _, _, state = problem()
    for repeats, error in ((-1, ValueError), (1.5, TypeError), ([1, 2, 0, 1], TypeError)):
        with pytest.raises(error, match=r"NTMState.repeat_interleave: repeats must be"):
            state.repeat_interleave(repeats)
    with pytest.raises(ValueError, match=r"integers \[4\] of dtype torch.int64, got \[2\]"):
        state.repeat_interleave(torch.tensor([1, 2]))
    for start in ("a", True, 0.0):
        with pytest.raises(TypeError, match=r"NTMState.narrow: start must be an int"):
            state.narrow(start, 1)
    with pytest.raises(TypeError, match="states must be a list of NTMStates, got NoneType"):
        NTMState.cat(None)


@pytest.mark.parametrize("part", [torch.zeros(2, 4, 5), torch.zeros(()), torch.zeros(3)])
def test_a_part_without_the_batch_first(part):
    _, _, state = problem()
    odd = state._replace(controller=(part,))
    for method in (lambda: odd.select([0]), lambda: odd.narrow(0, 1), lambda: NTMState.cat([odd])):
        with pytest.raises(ValueError, match="every tensor of the state must have the batch 4"):
            method()


def test_integers_keep_their_dtype():
    _, _, state = problem()
    moved = state._replace(controller=torch.arange(4)).to(torch.float64)
    assert moved.memory.dtype == torch.float64
    assert moved.controller.dtype == torch.int64


@pytest.mark.parametrize("method", ["select", "narrow", "repeat_interleave", "cat", "to", "clone"])
def test_gradients_through_each(method):
    _, _, state = problem()
    made = {
        "select": lambda: state.select([1, 1]),
        "narrow": lambda: state.narrow(1, 2),
        "repeat_interleave": lambda: state.repeat_interleave(2),
        "cat": lambda: NTMState.cat([state, state]),
        "to": lambda: state.to(torch.float64),
        "clone": state.clone,
    }[method]()
    (grad,) = torch.autograd.grad(made.memory.sum(), state.memory)
    assert grad[1].sum() != 0


def test_a_range_is_a_view():
    _, _, state = problem()
    part = state.detach().narrow(1, 2)
    assert part.memory.data_ptr() == state.memory[1].data_ptr()


def test_a_state_of_another_kind():
    model, x, state = problem()
    with pytest.raises(TypeError, match=r"NTM: state.memory must be torch.float32.*torch.float64"):
        model(x, state.to(torch.float64))
    with pytest.raises(ValueError, match=r"NTM: state.memory is on meta and the parameters on cpu"):
        model(x, state.to("meta"))
