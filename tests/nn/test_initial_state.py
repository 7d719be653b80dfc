"""InitialState: equality and hash; states of a batch."""

import numpy as np
import pytest
import torch

from ntm_kernels import NTM, InitialState

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


def test_a_memory_of_complex_numbers_is_refused():
    with pytest.raises(ValueError, match="memory must be a finite number, a real tensor or 'lear"):
        InitialState(memory=MEMORY.to(torch.complex64))


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
