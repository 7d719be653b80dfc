"""InitialState: equality and hash; states of a batch."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from ntm_kernels import NTM, InitialState
from ntm_kernels.torch_private import tree_leaves

MEMORY = torch.arange(6.0).view(2, 3)
ALIKE = [
    InitialState(),
    InitialState(memory=1.0),
    InitialState(weightings="learned"),
    InitialState(memory="learned", weightings="zero"),
    InitialState(read_vectors=0.5),
    InitialState(controller=0.5),
    InitialState(memory=MEMORY),
    InitialState(memory=MEMORY + 1),
    InitialState(memory=MEMORY.double()),
    InitialState(memory=MEMORY.view(3, 2)),
    InitialState(memory=MEMORY[:1, :1]),
]


def twin(initial):
    memory = initial.memory.clone() if isinstance(initial.memory, torch.Tensor) else initial.memory
    return InitialState(memory, initial.weightings, initial.read_vectors, initial.controller)


@pytest.mark.parametrize("index", range(len(ALIKE)))
def test_equal_where_its_parts_are(index):
    own = twin(ALIKE[index])
    assert [own == other for other in ALIKE] == [other == index for other in range(len(ALIKE))]
    assert [own != other for other in ALIKE] == [other != index for other in range(len(ALIKE))]
    assert hash(own) == hash(ALIKE[index])
    assert {own, *ALIKE} == set(ALIKE)


def test_equal_to_nothing_else():
    initial = InitialState(memory=MEMORY)
    for other in (MEMORY, "learned", 1e-6, None, (MEMORY, "one_hot", "learned", "learned")):
        assert (initial == other) is False
    numbers = InitialState(memory=torch.tensor(1.0)), InitialState(memory=1.0)
    assert numbers[0] != numbers[1]


def test_memory_without_values_equals_itself_alone():
    memory = MEMORY.to("meta")
    assert InitialState(memory=memory) == InitialState(memory=memory)
    assert InitialState(memory=memory) != InitialState(memory=MEMORY)
    assert InitialState(memory=memory) != InitialState(memory=memory.clone())


@pytest.mark.parametrize("wrong", [MEMORY.to(torch.complex64), MEMORY.to_sparse()])
def test_a_memory_that_is_not_real_or_not_dense_is_refused(wrong):
    with pytest.raises(ValueError, match="memory must be a finite number, a dense real tensor or"):
        InitialState(memory=wrong)


@pytest.mark.parametrize("owner", ["NTM", "NTMCell"])
@pytest.mark.parametrize("wrong", ["a", None, 2.5, True, torch.tensor(2), -1])
def test_a_batch_size_is_a_whole_number(owner, wrong):
    model = NTM(3, 2, 4, memory_size=5, word_size=2)
    module = model if owner == "NTM" else model.cell
    kind = ValueError if wrong == -1 else TypeError
    expected = "at least 0, got -1" if wrong == -1 else f"an int, got {type(wrong).__name__}"
    with pytest.raises(kind, match=rf"^{owner}\.initial_state: batch_size must be {expected}$"):
        module.initial_state(wrong)


def test_a_batch_size_may_be_zero_or_of_numpy():
    model = NTM(3, 2, 4, memory_size=5, word_size=2)
    assert model.initial_state(0).memory.shape == (0, 5, 2)
    assert model.initial_state(np.int64(3)).memory.shape == (3, 5, 2)


class Counting(torch.nn.Module):
    """A controller of the user's own that starts from views of its parameter."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(torch.zeros(4))
        self.layer = torch.nn.Linear(3 + 2, 4)

    def initial_state(self, batch_size):
        return {"first": self.first.expand(batch_size, 4)}

    def forward(self, input, state):
        return torch.tanh(self.layer(input) + state["first"]), state


@pytest.mark.parametrize("memory", [MEMORY.view(3, 2), "learned", 0.5])
@pytest.mark.parametrize("weightings", ["one_hot", "learned"])
@pytest.mark.parametrize("rest", ["learned", 0.5])
@pytest.mark.parametrize("controller", ["lstm", "cell", "own"])
def test_a_state_may_be_written_to(memory, weightings, rest, controller):
    """Writing to one sequence changes no other sequence, no parameter and no later state."""
    initial = InitialState(memory, weightings, rest, rest)
    made = {"lstm": "lstm", "cell": torch.nn.LSTMCell(3 + 2, 4), "own": Counting()}[controller]
    model = NTM(3, 2, 4, memory_size=3, word_size=2, initial_state=initial, controller=made)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for owner in (model, model.cell):
        original = owner.initial_state(2).detach()
        with torch.no_grad():
            state = owner.initial_state(2)
            for part in tree_leaves(state):
                part[0] += 7
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        torch.testing.assert_close(owner.initial_state(2).detach(), original, rtol=0, atol=0)
        for part, old in zip(tree_leaves(state), tree_leaves(original), strict=True):
            torch.testing.assert_close(part[0], old[0] + 7, rtol=0, atol=0)
            torch.testing.assert_close(part[1], old[1], rtol=0, atol=0)


def test_gradients_go_through_a_state_to_what_is_learned():
    initial = InitialState("learned", "learned", "learned", "learned")
    model = NTM(3, 2, 4, memory_size=3, word_size=2, initial_state=initial)
    x = torch.randn(4, 2, 3)
    grads = []
    for state in (None, model.initial_state(2)):
        model.zero_grad()
        model(x, state)[0].square().sum().backward()
        grads.append({name: one.grad.clone() for name, one in model.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    "value", [np.float32(0.1), np.float64(0.1), np.int64(2), Fraction(1, 4), 1]
)
@pytest.mark.parametrize("name", ["memory", "read_vectors", "controller"])
def test_every_kind_of_real_number_is_one(value, name):
    initial = InitialState(**{name: value})
    assert type(getattr(initial, name)) is float
    assert initial == InitialState(**{name: float(value)})
    model = NTM(3, 2, 4, memory_size=5, word_size=2, initial_state=initial)
    state = model.initial_state(1)
    part = state.controller[0] if name == "controller" else getattr(state, name)
    assert (part == torch.tensor(float(value))).all()


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), np.float32("inf"), True, 1j, Fraction(10**400)]
)
@pytest.mark.parametrize("name", ["memory", "read_vectors", "controller"])
def test_what_is_no_finite_number_is_refused(value, name):
    with pytest.raises(ValueError, match=f"^InitialState: {name} must be a finite number.* got "):
        InitialState(**{name: value})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_memory_with_a_value_that_is_not_finite_is_refused(value):
    memory = torch.zeros(2, 2)
    memory[1, 0] = value
    with pytest.raises(ValueError, match=r"^InitialState: memory must be finite, got a tensor"):
        InitialState(memory=memory)


@pytest.mark.parametrize("weightings", ["uniform", "zero"])
def test_a_memory_of_equal_rows_is_refused_like_a_constant(weightings):
    row = torch.randn(8)
    eighths = torch.ones(16, 8).to(torch.float8_e4m3fn)
    for memory in (torch.full((16, 8), 1e-6), row.expand(16, 8), eighths):
        with pytest.raises(ValueError, match=f"equal rows with {weightings} weightings never tell"):
            InitialState(memory=memory, weightings=weightings)
        for other in ("one_hot", "learned"):
            InitialState(memory=memory, weightings=other)
    different = row.repeat(16, 1)
    different[3, 2] += 1
    for memory in (different, row[None], torch.ones(16, 8, device="meta")):
        InitialState(memory=memory, weightings=weightings)


def test_a_memory_without_values_is_taken():
    with FakeTensorMode():
        InitialState(memory=torch.ones(16, 8), weightings="uniform")
