"""The number of locations belongs to the state: a trained model runs on any."""

import copy

import pytest
import torch

from ntm_kernels import NTM, InitialState, NTMCell

FIXING = {
    "the initial memory is learned": InitialState(memory="learned"),
    "the initial memory is a given tensor": InitialState(memory=torch.rand(6, 4)),
    "the initial weightings are learned": InitialState(weightings="learned"),
}
each_fixing = pytest.mark.parametrize(("why", "initial"), FIXING.items())


def model(controller="lstm", memory_size=6, **options):
    torch.manual_seed(0)
    return NTM(3, 2, 5, memory_size, 4, 2, 1, controller=controller, **options)


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("size", [1, 6, 40])
def test_another_size_is_a_model_made_with_it(size, fused, controller):
    """The same weights in a model that was made with that number of locations."""
    made, set_later = model(controller, size, fused=fused), model(controller, fused=fused)
    set_later.load_state_dict(made.state_dict())
    set_later.memory_size = size
    x = torch.randn(5, 3, 3)
    results = []
    for ntm in (made, set_later):
        output, state = ntm(x)
        output.square().sum().backward()
        grads = [parameter.grad for parameter in ntm.parameters()]
        results.append([output, state.memory, state.weightings, *grads])
    assert results[0][1].shape == (3, size, 4)
    assert all(map(torch.equal, *results))


def test_a_size_for_one_state():
    """``initial_state`` of another size leaves the model's own size alone."""
    ntm = model()
    state = ntm.initial_state(2, memory_size=9)
    assert state.memory.shape == (2, 9, 4)
    assert ntm.memory_size == ntm.cell.memory_size == 6
    for state_after in (ntm(torch.randn(4, 2, 3), state)[1], ntm.cell(torch.randn(2, 3), state)[1]):
        assert state_after.memory.shape == (2, 9, 4)
    assert ntm(torch.randn(4, 2, 3))[1].memory.shape == (2, 6, 4)


def test_unbatched():
    ntm = model()
    single = type(ntm.initial_state(1))(
        torch.rand(9, 4), torch.eye(9)[:3], torch.zeros(2, 4), (torch.zeros(5), torch.zeros(5))
    )
    assert ntm(torch.randn(4, 3), single)[1].memory.shape == (9, 4)
    assert ntm.cell(torch.randn(3), single)[1].memory.shape == (9, 4)


def test_the_size_goes_with_the_model(tmp_path):
    ntm = model()
    ntm.memory_size = 11
    assert "memory_size=11" in repr(ntm)
    torch.save(ntm, tmp_path / "model.pt")
    for other in (copy.deepcopy(ntm), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert other.memory_size == 11
        assert other.initial_state(1).memory.shape == (1, 11, 4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_compiled_with_several_sizes():
    ntm = model()
    compiled = torch.compile(ntm, backend="aot_eager")
    x = torch.randn(3, 2, 3)
    for size in (6, 12, 7):
        ntm.memory_size = size
        torch.testing.assert_close(compiled(x)[0], ntm(x)[0])
    torch._dynamo.reset()


@each_fixing
def test_what_is_learned_fixes_it(why, initial):
    ntm = model(initial_state=initial)
    ntm.memory_size = 6
    refused = rf"must be 6, since {why}, got 7; .*InitialState"
    with pytest.raises(ValueError, match=rf"NTM\.memory_size: memory_size {refused}"):
        ntm.memory_size = 7
    with pytest.raises(ValueError, match=rf"NTMCell\.memory_size: memory_size {refused}"):
        ntm.cell.memory_size = 7
    with pytest.raises(ValueError, match=rf"NTM\.initial_state: memory_size {refused}"):
        ntm.initial_state(2, memory_size=7)
    with pytest.raises(ValueError, match=rf"NTMCell\.initial_state: memory_size {refused}"):
        ntm.cell.initial_state(2, memory_size=7)
    assert ntm.memory_size == 6
    assert ntm.initial_state(2, memory_size=6).memory.shape == (2, 6, 4)
    with pytest.raises(ValueError, match=rf"memory_size=6 locations, since {why}, got 9"):
        ntm(torch.randn(3, 2, 3), model().initial_state(2, memory_size=9))


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), ("4", TypeError)]
)
def test_bad_sizes(size, error):
    ntm = model()
    for owner, give in (
        ("NTM.memory_size", lambda: setattr(ntm, "memory_size", size)),
        ("NTMCell.memory_size", lambda: setattr(ntm.cell, "memory_size", size)),
        ("NTM.initial_state", lambda: ntm.initial_state(2, memory_size=size)),
        ("NTMCell.initial_state", lambda: ntm.cell.initial_state(2, size)),
    ):
        with pytest.raises(
            error, match=f"{owner}: memory_size must be .*(got {size}|got {type(size).__name__})"
        ):
            give()
    assert ntm.memory_size == 6


def test_parts_of_a_state_must_agree():
    ntm = model()
    state = ntm.initial_state(2, memory_size=9)
    for wrong, name in (
        (state._replace(weightings=ntm.initial_state(2).weightings), "weightings"),
        (state._replace(memory=state.memory[:, :0]), "memory"),
        (state._replace(memory=state.memory[0]), "memory"),
    ):
        with pytest.raises(ValueError, match=f"NTM: state.{name} must"):
            ntm(torch.randn(3, 2, 3), wrong)


def test_a_cell_alone():
    cell = NTMCell(3, 5, memory_size=6, word_size=4)
    cell.memory_size = 8
    _, state = cell(torch.randn(2, 3))
    assert state.memory.shape == (2, 8, 4)
