"""Checkpoints of loudinthecloud/pytorch-ntm become models with the same outputs.

With the path of a checkout in NTM_KERNELS_PYTORCH_NTM, they are compared with the model itself too.
"""

import os

import pytest
import torch

from bench import peers
from ntm_kernels.interop import from_pytorch_ntm
from tests.interop.checkpoints import READ, WRITE, Transcription, checkpoint

CHECKOUT = os.environ.get("NTM_KERNELS_PYTORCH_NTM")


@pytest.fixture
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def bits(steps, batch, size):
    return torch.randint(2, (steps, batch, size)).to(torch.get_default_dtype())


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("reads", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_outputs_are_those_of_the_equations(reads, layers, scale):
    state_dict = checkpoint((READ,) * reads + (WRITE,), layers=layers, scale=scale)
    x = bits(41, 3, 5)
    outputs, memory = Transcription(state_dict).run(x)
    assert outputs.std(dim=0).min() > 1e-4, "outputs that do not vary would show nothing"
    model = from_pytorch_ntm(state_dict)
    logits, state = model(x)
    torch.testing.assert_close(logits.sigmoid(), outputs, rtol=0, atol=1e-12)
    torch.testing.assert_close(state.memory, memory, rtol=0, atol=1e-12)


def test_a_model_of_float32_stays_one():
    state_dict = checkpoint()
    model = from_pytorch_ntm(state_dict)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    x = bits(20, 2, 5)
    torch.testing.assert_close(
        model(x)[0].sigmoid(), Transcription(state_dict).run(x)[0], rtol=0, atol=1e-5
    )


def test_the_model_shares_nothing_with_the_checkpoint_and_learns():
    state_dict = checkpoint()
    model = from_pytorch_ntm(state_dict)
    x = bits(6, 2, 5)
    before = model(x)[0].detach()
    for value in state_dict.values():
        value.zero_()
    assert torch.equal(model(x)[0], before)
    model(x)[0].square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert "cell.start.given_memory" in model.state_dict()


@pytest.mark.parametrize(
    "kinds",
    [(WRITE, READ), (READ, WRITE, READ, WRITE), (READ, WRITE, WRITE), (READ, READ), (WRITE,), ()],
)
def test_heads_whose_order_no_model_has_are_refused(kinds):
    message = f"read heads and then one write head, got {', '.join(kinds) or 'none'}. An NTM"
    with pytest.raises(ValueError, match=message):
        from_pytorch_ntm(checkpoint(kinds))


@pytest.mark.usefixtures("_float64")
def test_the_order_of_heads_matters_there():
    """Why others are refused: their equations give other outputs."""
    state_dict = checkpoint((READ, WRITE))
    others = {"ntm.heads.0": "ntm.heads.1", "ntm.heads.1": "ntm.heads.0"}
    swapped = {others.get(n[:11], n[:11]) + n[11:]: value for n, value in state_dict.items()}
    x = bits(5, 2, 5)
    outputs = [Transcription(given).run(x)[0] for given in (state_dict, swapped)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4


def without(name):
    return lambda found: found.pop(name)


def changed(name, change):
    return lambda found: found.update({name: change(found[name])})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("memory.mem_bias"), "must have a tensor memory.mem_bias of 2 dimensions, got the"),
        (without("ntm.fc.weight"), "lacks ntm.fc.weight; give the state_dict of an Encapsulated"),
        (changed("ntm.fc.bias", lambda v: v[None]), r"tensor ntm.fc.bias of 1 .*got \[1, 4\]"),
        (
            changed("ntm.fc.weight", lambda v: v[:, 1:]),
            r"ntm.fc.weight must be \[4, 13\].*\[4, 12\]",
        ),
        (
            changed("ntm.read0_bias", lambda v: v.double()),
            "one floating-point dtype and one device",
        ),
        (changed("ntm.memory.mem_bias", lambda v: v + 1), "must equal memory.mem_bias"),
        (
            changed("ntm.controller.lstm.weight_ih_l0", lambda v: v[:, :6]),
            "must have more columns than the 1 read vectors of 6 elements together, got 6",
        ),
        (
            lambda found: found.update(extra=torch.zeros(1), more=torch.zeros(1)),
            "state_dict has also extra, more; give",
        ),
    ],
)
def test_another_layout_is_refused(spoil, message):
    state_dict = checkpoint()
    spoil(state_dict)
    with pytest.raises(ValueError, match=message):
        from_pytorch_ntm(state_dict)


def test_what_is_no_checkpoint_is_refused():
    with pytest.raises(TypeError, match=r"got Linear; of a model give model.state_dict\(\)"):
        from_pytorch_ntm(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"state_dict\['step'\] must be a tensor, got int"):
        from_pytorch_ntm({"step": 3})
    with pytest.raises(ValueError, match="got the names none"):
        from_pytorch_ntm({})


@pytest.mark.skipif(CHECKOUT is None, reason="no checkout in NTM_KERNELS_PYTORCH_NTM")
@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("layers", [1, 2])
def test_outputs_are_those_of_the_model_itself(layers):
    """After some training, so that no part is as it was initialised."""
    module = peers.parse(f"pytorch-ntm={CHECKOUT}").load()
    theirs = module.EncapsulatedNTM(9, 8, 20, layers, 1, 16, 6)
    optimiser = torch.optim.RMSprop(theirs.parameters(), 1e-3, momentum=0.9)

    def outputs(x):
        theirs.init_sequence(x.shape[1])
        return torch.stack([theirs(now)[0] for now in x])

    for _ in range(20):
        x = bits(12, 4, 9)
        loss = torch.nn.functional.binary_cross_entropy(outputs(x), x[..., :8])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = bits(41, 3, 9)
    ours = from_pytorch_ntm(theirs.state_dict())
    torch.testing.assert_close(ours(x)[0].sigmoid(), outputs(x), rtol=0, atol=1e-12)
