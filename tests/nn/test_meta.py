"""On the device meta: shapes without values, and the way from there to a real device."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from ntm_kernels import NTM, InitialState, NTMCell

SIZES = {"hidden_size": 7, "memory_size": 11, "word_size": 5, "num_read_heads": 2}
CONTROLLERS = {
    "lstm": lambda: {"controller": "lstm"},
    "feedforward": lambda: {"controller": "feedforward"},
    "two layers": lambda: {"num_layers": 2},
    "own": lambda: {"controller": nn.GRUCell(13, 7)},
}
STARTS = {
    "default": InitialState(),
    "given": InitialState(memory=torch.rand(11, 5), weightings="uniform"),
    "learned": InitialState(memory="learned", weightings="learned"),
    "constants": InitialState(memory=0.5, read_vectors=0.25, controller=0.125),
}


def shapes(*nest):
    return torch.utils._pytree.tree_map(lambda part: (part.shape, part.dtype), nest)


def on_meta(nest):
    return all(part.is_meta for part in torch.utils._pytree.tree_leaves(nest))


@pytest.mark.parametrize(
    ("controller", "start"), [*((name, "default") for name in CONTROLLERS), ("lstm", "given")]
)
def test_shapes_are_those_of_a_real_device(controller, start):
    model = NTM(3, 2, **SIZES, **CONTROLLERS[controller](), initial_state=STARTS[start])
    meta = copy.deepcopy(model).to("meta")
    x = torch.randn(2, 4, 3)
    calls = [
        ((x,), {"return_trace": True, "lengths": [2, 1, 1, 0]}),
        ((x[:, 0],), {}),
        ((x, model.initial_state(4)), {}),
    ]
    for arguments, options in calls:
        expected = model(*arguments, **options)
        moved = torch.utils._pytree.tree_map(lambda part: part.to("meta"), arguments)
        result = meta(*moved, **options)
        assert on_meta(result)
        assert shapes(*result) == shapes(*expected)
    with torch.no_grad():
        output, _ = meta(x.to("meta"))
    assert output.shape == model(x)[0].shape
    output, _ = meta(x.to("meta"))
    output.sum().backward()
    assert all(part.grad.is_meta and part.grad.shape == part.shape for part in meta.parameters())
    features, state = meta.cell(x[0].to("meta"))
    assert on_meta((features, state))
    packed = pack_padded_sequence(x, torch.tensor([2, 2, 1, 1]))
    output, _ = meta(packed.to("meta"))
    assert output.data.is_meta
    assert output.data.shape == model(packed)[0].data.shape


def test_as_torch_lstm():
    x = torch.randn(6, 4, 3, device="meta")
    wanted, _ = nn.LSTM(3, 2, device="meta")(x)
    output, _ = NTM(3, 2, **SIZES, device="meta")(x)
    assert (output.shape, output.device) == (wanted.shape, wanted.device)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("begun", ["moved", "device", "context"])
def test_reset_after_meta_gives_what_construction_gives(begun, controller, start):
    """Buffers that nothing set are NaN here, and would be whatever was in memory elsewhere."""

    def build(**place):
        return NTM(3, 2, **SIZES, **CONTROLLERS[controller](), initial_state=STARTS[start], **place)

    twin = build()
    if begun == "moved":
        model = build().to("meta")
    elif begun == "device":
        model = build(device="meta").to("meta")
    else:
        with torch.device("meta"):
            model = build()
    assert on_meta((list(model.parameters()), list(model.buffers())))
    model.to_empty(device="cpu")
    for part in (*model.parameters(), *model.buffers()):
        part.detach().fill_(torch.nan)
    for one in (model, twin):
        torch.manual_seed(3)
        one.reset_parameters()
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=0, atol=0)
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(model(x), twin(x), rtol=0, atol=0)


def test_a_given_memory_survives_every_device_and_dtype():
    memory = torch.rand(11, 5, dtype=torch.float64)
    model = NTM(3, 2, **SIZES, initial_state=InitialState(memory=memory))
    original = memory.clone()
    memory.zero_()
    model.half().to("meta").to_empty(device="cpu").double()
    assert model.cell.start.given_memory.dtype == torch.float64
    model.reset_parameters()
    for one in (model, copy.deepcopy(model)):
        torch.testing.assert_close(one.initial_state(2).memory[1], original, rtol=0, atol=0)
    model.cell.start.given_memory.zero_()
    model.reset_parameters()
    torch.testing.assert_close(model.initial_state(1).memory[0], original, rtol=0, atol=0)


def test_a_memory_given_on_meta_has_no_values():
    with torch.device("meta"):
        cell = NTMCell(3, 7, 11, 5, initial_state=InitialState(memory=torch.rand(11, 5)))
    cell.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match=r"given .* on the device meta, .* state_dict"):
        cell.reset_parameters()
