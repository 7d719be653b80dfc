"""Initial weights beside those of ``reset_parameters``."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from ntm_kernels import NTM, NTMCell
from ntm_kernels.nn import stepping_read_heads_, walking_write_heads_


@pytest.mark.parametrize("shift_range", [1, 2])
def test_write_heads_go_on_by_one_location_a_step(shift_range):
    torch.manual_seed(0)
    cell = NTMCell(
        3, 16, memory_size=12, num_read_heads=2, num_write_heads=2, shift_range=shift_range
    )
    assert walking_write_heads_(cell) is cell
    state = None
    for step in range(1, 7):
        _, state = cell(torch.randn(4, 3), state)
        write = state.weightings[:, 2:]
        assert (write.argmax(-1) == step).all()
        assert (write.amax(-1) > 0.7).all(), "nearly all of it on one location"


def _changed(what):
    """What was added to the biases of two read heads and a write head."""
    model, twin = (
        NTM(3, 2, 8, memory_size=5, num_read_heads=2, num_write_heads=1) for _ in range(2)
    )
    twin.load_state_dict(model.state_dict())
    assert what(model) is model
    changed = {}
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if not torch.equal(one, other):
            changed[name] = one.detach() - other.detach()
    assert set(changed) == {"cell.interface.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    return model.cell.layout.split(changed["cell.interface.bias"])


def test_only_biases_of_write_heads_change():
    heads = _changed(walking_write_heads_)
    close = {"atol": 1e-6, "rtol": 0.0}
    torch.testing.assert_close(heads.gate, torch.tensor([0.0, 0.0, -3.0]), **close)
    torch.testing.assert_close(heads.sharpening, torch.tensor([0.0, 0.0, 1.0]), **close)
    shifts = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    torch.testing.assert_close(heads.shift, shifts, **close)
    for part in (heads.key, heads.strength, heads.erase, heads.add):
        assert not part.any()


def test_only_the_shift_of_read_heads_changes():
    heads = _changed(stepping_read_heads_)
    shifts = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(heads.shift, shifts, atol=1e-6, rtol=0.0)
    for name, part in heads._asdict().items():
        assert name == "shift" or not part.any()


@pytest.mark.parametrize("shift_range", [1, 2])
def test_read_heads_read_what_lies_behind_what_they_find(shift_range):
    torch.manual_seed(0)
    cell = NTMCell(
        3, 16, memory_size=12, num_read_heads=2, num_write_heads=2, shift_range=shift_range
    )
    stepping_read_heads_(cell)
    _, state = cell(torch.randn(4, 3))
    read = state.weightings[:, :2]
    assert (read.argmax(-1) == 1).all(), "one beyond the one-hot location of the beginning"


def _pruned(cell):
    prune.l1_unstructured(cell.interface, "bias", amount=1)


def _parametrized(cell):
    parametrize.register_parametrization(cell.interface, "bias", nn.Identity())


def _on_meta(cell):
    cell.to("meta")


_BOTH = pytest.mark.parametrize("what", [walking_write_heads_, stepping_read_heads_])


@_BOTH
@pytest.mark.parametrize("change", [_pruned, _parametrized, _on_meta])
def test_a_bias_that_would_not_keep_it(change, what):
    cell = NTMCell(3, 4, memory_size=5)
    change(cell)
    with pytest.raises(ValueError, match="bias is no parameter with values of its own; call it"):
        what(cell)


@_BOTH
def test_what_cannot_walk(what):
    with pytest.raises(TypeError, match="takes an NTM or an NTMCell, got LSTM; call it on the"):
        what(nn.LSTM(3, 4))
    with pytest.raises(ValueError, match="cannot shift with shift_range = 0"):
        what(NTMCell(3, 4, memory_size=5, shift_range=0))
