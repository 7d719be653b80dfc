"""With lengths, the state of a user's controller is held where a sequence ends, or refused."""

import re

import pytest
import torch
from torch import nn

from ntm_kernels import NTMCell, NTMState

LENGTHS = [6, 2, 0, 5]


class Controller(nn.Module):
    """Has the state ``form(input, state)``, and ``initial_state`` where ``start`` gives one."""

    def __init__(self, form, start=None, **attributes):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 7)
        self.form, self.start, self.asked = form, start, []
        if start is not None:
            self.initial_state = self._initial_state
        for name, value in attributes.items():
            setattr(self, name, value)

    def _initial_state(self, batch_size):
        self.asked.append((batch_size, torch.is_grad_enabled()))
        return self.start(batch_size)

    def forward(self, input, state):
        return torch.tanh(self.linear(input)), self.form(input, state)


def run(controller, batch=4, lengths=LENGTHS):
    torch.manual_seed(0)
    cell = NTMCell(3, 7, 11, 5, controller=controller)
    return cell.unroll(torch.randn(6, batch, 3), lengths=torch.tensor(lengths)).state.controller


def refused(message):
    return pytest.raises(ValueError, match=re.escape(f"NTMCell: with lengths or resets, {message}"))


def layered(input, state, layers=4):
    """``[layers, B, 5]``, as nn.LSTM has it."""
    total = input.sum(-1)[:, None].expand(layers, -1, 5)
    return total if state is None else state + total


def summed(input, state, size=5):
    """``[B, size]``."""
    total = input.sum(-1)[:, None].expand(-1, size)
    return total if state is None else state + total


def test_as_many_layers_as_sequences_by_the_initial_state():
    """``[4, 4, 5]`` does not tell the layers from the batch; two batch sizes do."""
    controller = Controller(layered, lambda batch: torch.zeros(4, batch, 5))
    for batch in (4, 3):
        with refused(
            "every tensor of the controller's state must have the batch first; "
            "Controller.initial_state gives [4, 2, 5] for a batch of 2 and [4, 3, 5] for one of 3"
        ):
            run(controller, batch, LENGTHS[:batch])


def test_as_many_layers_as_sequences_without_an_initial_state():
    with refused(
        "the controller's state must have the batch first, and in [4, 4, 5] the batch 4 may be "
        "another dimension; set state_batch_first = True in Controller if it always"
    ):
        run(Controller(layered))
    with refused("the controller's state must have the batch first, and in [4, 4, 5]"):
        run(Controller(layered, state_sizes=5))
    with refused("a controller's state must have the batch 3 first, got [4, 3, 5]"):
        run(Controller(layered), 3, LENGTHS[:3])


def test_a_state_from_before_is_no_excuse():
    cell = NTMCell(3, 7, 11, 5, controller=Controller(layered))
    _, state = cell(torch.randn(4, 3))
    with refused("the controller's state must have the batch first, and in [4, 4, 5]"):
        cell.unroll(torch.randn(6, 4, 3), state, torch.tensor(LENGTHS))


def sums(size):
    """What ``summed`` gives each sequence alone."""
    controller = Controller(lambda x, state: summed(x, state, size))
    torch.manual_seed(0)
    cell = NTMCell(3, 7, 11, 5, controller=controller)
    x = torch.randn(6, 4, 3)
    states = [
        cell.unroll(x[:length, index : index + 1]).state.controller
        for index, length in enumerate(LENGTHS)
    ]
    return torch.cat([torch.zeros(1, size) if state is None else state for state in states])


@pytest.mark.parametrize(
    "how",
    [
        {"state_batch_first": True},
        {"state_sizes": 4, "start": lambda batch: torch.zeros(batch, 4)},
        {"start": lambda batch: torch.zeros(batch, 4)},
    ],
    ids=["declared", "sized", "shown"],
)
def test_a_state_as_wide_as_the_batch_is_held_once_its_form_is_known(how):
    def form(input, state):
        return summed(input, state, 4)

    torch.testing.assert_close(run(Controller(form, **how)), sums(4))
    with refused("the controller's state must have the batch first, and in [4, 4]"):
        run(Controller(form))


def test_what_cannot_be_taken_for_another_dimension_needs_no_declaration():
    torch.testing.assert_close(run(Controller(summed)), sums(5))


def test_a_declaration_against():
    controller = Controller(summed, state_batch_first=False)
    with refused("the controller's state must have the batch first, and Controller says"):
        run(controller)


def test_the_initial_state_is_probed_once_and_leaves_no_trace():
    controller = Controller(summed, lambda batch: torch.randn(batch, 5))
    cell = NTMCell(3, 7, 11, 5, controller=controller)
    x, lengths = torch.randn(6, 4, 3), torch.tensor(LENGTHS)
    torch.manual_seed(5)
    expected = torch.randn(4, 5)
    torch.manual_seed(5)
    state = cell.unroll(x, lengths=lengths).state
    torch.testing.assert_close(state.controller[2], expected[2], rtol=0, atol=0)
    cell.unroll(x, lengths=lengths)
    assert controller.asked == [(4, True), (2, False), (3, False), (4, True)]
    cell.unroll(x)
    assert controller.asked[4:] == [(4, True)]
    cell.controller = Controller(layered, lambda batch: torch.zeros(4, batch, 5))
    with refused("every tensor of the controller's state must have the batch first"):
        cell.unroll(x, lengths=lengths)


def test_an_initial_state_that_fails_for_the_probe():
    def start(batch):
        if batch != 4:
            raise IndexError("a table of 4")
        return torch.zeros(batch, 5)

    with refused("Controller.initial_state is called for batches of 2 and 3"):
        run(Controller(summed, start))
    torch.testing.assert_close(run(Controller(summed, start, state_batch_first=True)), sums(5))


@pytest.mark.parametrize(
    ("start", "form", "message"),
    [
        (
            lambda batch: torch.zeros(()),
            lambda x, count: count + 1,
            "every tensor of the controller's state must have the batch first; "
            "Controller.initial_state gives [] for a batch of 2",
        ),
        (
            lambda batch: {"h": torch.zeros(batch, 5), "steps": 0},
            lambda x, state: {"h": summed(x, state["h"]), "steps": state["steps"] + 1},
            "what is no tensor in a controller's state must stay as it is, since sequences end or "
            "restart at different steps; got 1 after 0",
        ),
        (
            lambda batch: {"h": None},
            lambda x, state: {"h": x},
            "a controller's state must keep its form, got {'h': [4, 8]} after {'h': 'NoneType'}",
        ),
        (
            lambda batch: [torch.zeros(5) for _ in range(batch)],
            lambda x, state: state,
            "every tensor of the controller's state must have the batch first",
        ),
        (
            lambda batch: (torch.zeros(batch, 5),),
            lambda x, state: (*state, x),
            "a controller's state must keep its form, got ([4, 5], [4, 8]) after ([4, 5],)",
        ),
        (
            lambda batch: torch.zeros(batch, 1),
            summed,
            "a controller's state must keep its shapes, got [4, 5] after [4, 1]",
        ),
        (
            None,
            lambda x, state: torch.zeros(()),
            "a controller's state must have the batch 4 first, got []",
        ),
        (
            None,
            lambda x, state: {"h": x, "steps": 1 if state is None else state["steps"] + 1},
            "what is no tensor in a controller's state must stay as it is, since sequences end or "
            "restart at different steps; got 2 after 1",
        ),
    ],
    ids=["scalar", "number", "none", "list", "form", "shape", "late scalar", "late number"],
)
def test_what_cannot_be_held_is_refused(start, form, message):
    with refused(message):
        run(Controller(form, start))


def test_what_never_changes_may_be_anything():
    constants = {"name": "sum", "sizes": (3, None)}

    def form(input, state):
        return {**constants, "h": summed(input, state["h"])}

    state = run(Controller(form, lambda batch: {**constants, "h": torch.zeros(batch, 5)}))
    assert state["name"] == "sum"
    torch.testing.assert_close(state["h"], sums(5))


def test_steps_counted_by_sequence():
    def form(input, steps):
        return (torch.zeros(len(input)) if steps is None else steps) + 1

    assert run(Controller(form)).tolist() == LENGTHS


def test_an_unbatched_state_has_no_batch_to_take_away():
    controller = Controller(layered, lambda batch: torch.zeros(4, batch, 5))
    cell = NTMCell(3, 7, 11, 5, controller=controller)
    with pytest.raises(ValueError, match=r"unbatched x, .* the batch 1 first, got \[4, 1"):
        cell(torch.randn(3))
    _, state = NTMCell(3, 7, 11, 5, controller=Controller(summed))(torch.randn(3))
    assert isinstance(state, NTMState)
    assert state.controller.shape == (5,)


def test_compiled():
    torch.compiler.reset()
    controller = Controller(summed, lambda batch: torch.zeros(batch, 5))
    cell = NTMCell(3, 7, 11, 5, controller=controller)
    x, lengths = torch.randn(2, 4, 3), torch.tensor([2, 1, 0, 2])
    compiled = torch.compile(cell.unroll, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, None, lengths), cell.unroll(x, None, lengths))
