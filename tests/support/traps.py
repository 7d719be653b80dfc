"""Arguments at which a careless gradient is NaN, infinite or wrong."""

import torch

from tests.support.cases import Case, arguments

ADDRESS = Case("address", 2, 6, 4, 2)
ONE_HOT = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
STAY = torch.tensor([0.0, 1.0, 0.0])
ONE_WORD = torch.tensor([0.0, 1.0, 0.0, 0.0])
NEAR = torch.tensor([0.99, 1.01, 3.96, 4.04, 0.5, 2.0])  # 1 and 4 lie between


def _address(**changes):
    """Values by argument name, broadcast into random arguments, or functions of what is there."""
    tensors = arguments(ADDRESS)
    for name, change in changes.items():
        value = change(tensors[name]) if callable(change) else torch.as_tensor(change)
        tensors[name] = value.to(torch.float64).expand_as(tensors[name]).clone()
    return ADDRESS, tensors


def _with_zero(*index):
    def change(tensor):
        tensor = tensor.clone()
        tensor[index] = 0
        return tensor

    return change


def _write(heads, spread=False):
    """Every head erases all of location 2, ``w e = 1`` exactly; one of them also elsewhere."""
    case = Case("write", 2, 6, 4, heads)
    tensors = arguments(case)
    tensors["weightings"][:] = ONE_HOT
    tensors["erase"][:] = 1
    if spread:
        tensors["weightings"][:, 0] = 1 / 6
        tensors["erase"][:, 0, 1] = 0
    return case, tensors


def _step(raw, **changes):
    """Raw parameters at ``raw`` times random signs, one group left as it is per head kind."""
    case = Case("step", 2, 6, 4, 2, 2)
    tensors = arguments(case)
    generator = torch.Generator().manual_seed(7)
    sign = torch.randint(0, 2, tensors["interface"].shape, generator=generator) * 2 - 1
    keys = case.num_heads * case.word_size
    extreme = (raw * sign).double()
    extreme[:, :keys] = tensors["interface"][:, :keys]
    extreme[:, -case.num_write_heads * case.word_size :] *= 1e-4
    tensors["interface"] = extreme
    for name, value in changes.items():
        tensors[name] = value.to(torch.float64).expand_as(tensors[name]).clone()
    return case, tensors


def _sequence(controller, raw, memory=None):
    """All heads on location 0, and raw parameters around ±raw."""
    case = Case("sequence", 2, 5, 3, 1, 2, time=3, hidden_size=3, controller=controller)
    tensors = arguments(case)
    if memory is not None:
        tensors["initial_memory"][:] = memory
    tensors["initial_weightings"][:] = torch.eye(5)[0]
    parameters = slice(case.num_heads * case.word_size, -case.num_write_heads * case.word_size)
    generator = torch.Generator().manual_seed(7)
    bias = tensors["interface_bias"][parameters]
    sign = torch.randint(0, 2, bias.shape, generator=generator) * 2 - 1
    tensors["interface_bias"][parameters] = raw * sign
    return case, tensors


TRAPS = {
    "zero key": lambda: _address(key=_with_zero(0, 1)),
    "zero row": lambda: _address(memory=_with_zero(1, 3)),
    "zero memory": lambda: _address(memory=0.0),
    "norms below epsilon": lambda: _address(memory=lambda memory: 1e-10 * memory),
    "norms around epsilon": lambda: _address(
        memory=1e-8 * NEAR[:, None] * ONE_WORD,
        key=torch.tensor([[1.0], [0.25]]) * ONE_WORD,
        strength=4.0,
    ),
    "constant tiny memory": lambda: _address(memory=1e-6),
    "strength 0": lambda: _address(strength=0.0),
    "strength 1e4": lambda: _address(strength=1e4),
    "gate 0": lambda: _address(gate=0.0),
    "gate 1": lambda: _address(gate=1.0),
    "gate close to 1": lambda: _address(gate=1 - 2.0**-12),
    "one-hot, sharpening 1": lambda: _address(
        gate=0.0, previous_weightings=ONE_HOT, shift=STAY, sharpening=1.0
    ),
    "one-hot, sharpening 1.5": lambda: _address(
        gate=0.0, previous_weightings=ONE_HOT, shift=STAY, sharpening=1.5
    ),
    "one-hot, sharpening 2": lambda: _address(
        gate=0.0, previous_weightings=ONE_HOT, shift=STAY, sharpening=2.0
    ),
    "one-hot, sharpening 30": lambda: _address(
        gate=0.0, previous_weightings=ONE_HOT, sharpening=30.0
    ),
    "sharpening 1": lambda: _address(sharpening=1.0),
    "sharpening 100": lambda: _address(sharpening=100.0),
    "sharpening 1e4": lambda: _address(sharpening=1e4),
    "no weighting": lambda: _address(gate=0.0, previous_weightings=0.0),
    "no weighting, sharpening 1": lambda: _address(
        gate=0.0, previous_weightings=0.0, sharpening=1.0
    ),
    "no weighting before": lambda: _address(previous_weightings=0.0),
    "weightings around epsilon": lambda: _address(
        gate=0.0,
        previous_weightings=1e-20 * torch.tensor([[0.99], [1.01]]) * NEAR / NEAR.max(),
        shift=STAY,
    ),
    "nearly no weighting": lambda: _address(gate=1e-18, previous_weightings=0.0),
    "no weighting but for rounding": lambda: _address(gate=1e-30, previous_weightings=0.0),
    "write, one head": lambda: _write(1),
    "write, two heads": lambda: _write(2),
    "write, three heads": lambda: _write(3, spread=True),
    "raw parameters 30": lambda: _step(30),
    "raw parameters 1000": lambda: _step(1e3),
    "raw parameters 1e4": lambda: _step(1e4),
    "raw parameters 1e4, one-hot": lambda: _step(1e4, previous_weightings=ONE_HOT),
    "raw parameters 1e4, no weighting before": lambda: _step(
        1e4, previous_weightings=torch.zeros(())
    ),
    "sequence from the default start": lambda: _sequence("lstm", 1, memory=1e-6),
    "sequence saturated": lambda: _sequence("lstm", 1e4),
    "feed-forward sequence saturated": lambda: _sequence("feedforward", 1e4),
}
