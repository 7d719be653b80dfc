"""Arguments at which a careless gradient is NaN, infinite or wrong."""

import torch

from tests.support.cases import Case, arguments

ADDRESS = Case("address", 2, 6, 4, 2)
ONE_HOT = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
STAY = torch.tensor([0.0, 1.0, 0.0])
ONE_WORD = torch.tensor([0.0, 1.0, 0.0, 0.0])
NEAR = torch.tensor([0.99, 1.01, 3.96, 4.04, 0.5, 2.0])  # 1 and 4 lie between


def _address(case=ADDRESS, **changes):
    """Values by argument name, broadcast into random arguments, or functions of what is there."""
    tensors = arguments(case)
    for name, change in changes.items():
        value = change(tensors[name]) if callable(change) else torch.as_tensor(change)
        tensors[name] = value.to(torch.float64).expand_as(tensors[name]).clone()
    return case, tensors


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
    # A ratio of 1 - 2^-24 in the row of the largest would be 0 to this power. Few weightings of a
    # batch round so.
    "sharpening 1e10": lambda: _address(ADDRESS.with_(batch=40), sharpening=1e10),
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


# Arguments outside of their domains, where the specification gives NaN, infinities, or numbers that
# no weighting would have.

WIDE = Case("address", 1, 37, 4, 2)  # more than a vector, and than a warp, of locations
NEXT_TO_NOTHING = torch.tensor([0.0, 0.0, -1e-25, 0.0, 0.0, 0.0])


def _set(case, **values):
    """Random arguments, with ``(index, value)`` pairs by the argument's name put into them."""
    tensors = arguments(case)
    for name, (index, value) in values.items():
        tensors[name][index] = torch.as_tensor(value, dtype=torch.float64)
    return case, tensors


def _raw(values):
    """A step with a value in the first element of each of these groups of its raw interface."""
    case, tensors = _set(Case("step", 2, 6, 4, 2, 2))
    raw = case.layout.split(tensors["interface"])
    for group, value in values.items():
        getattr(raw, group)[1].view(-1)[0] = value
    return case, tensors


def _sequence_with(name, value, controller="lstm", **sizes):
    case, tensors = _set(Case("sequence", 2, 6, 4, time=3, controller=controller, **sizes))
    tensors[name].view(-1)[-1] = value
    return case, tensors


inf, nan = torch.inf, torch.nan
OUTSIDE = {
    "negative weight": lambda: _set(WIDE, previous_weightings=((0, 1, 20), -3.0)),
    "negative weight, sharpening 2": lambda: _set(
        WIDE, previous_weightings=((0, 1, 36), -3.0), sharpening=((0, 1), 2.0)
    ),
    "negative weight, sharpening 0": lambda: _set(
        WIDE, previous_weightings=((0, 1, 33), -3.0), sharpening=((0, 1), 0.0)
    ),
    "negative weight, sharpening 1": lambda: _set(
        WIDE, previous_weightings=((0, 0, 0), -3.0), sharpening=((0, 0), 1.0)
    ),
    "weightings all negative": lambda: _address(gate=0.0, previous_weightings=lambda w: -w),
    "a negative weight and nothing else": lambda: _address(
        gate=0.0, previous_weightings=NEXT_TO_NOTHING
    ),
    "negative weight beside a zero row": lambda: _address(
        memory=_with_zero(0, 3), previous_weightings=lambda w: w - 2 * ONE_HOT
    ),
    "weightings above 1": lambda: _set(WIDE, previous_weightings=((0, 0), 3.0)),
    "infinite weight": lambda: _set(WIDE, previous_weightings=((0, 1, 20), inf)),
    "NaN weight, sharpening 0": lambda: _set(
        WIDE, previous_weightings=((0, 1, 20), nan), sharpening=((0, 1), 0.0)
    ),
    "gate 1.5": lambda: _address(gate=1.5),
    "gate 1.5, nothing negative": lambda: _address(gate=1.5, previous_weightings=0.0),
    "gate -0.5": lambda: _address(gate=-0.5),
    "gate infinite": lambda: _set(ADDRESS, gate=((0, 1), inf)),
    "negative tap": lambda: _address(shift=torch.tensor([0.5, -0.25, 0.75])),
    "taps of 4 in all": lambda: _address(shift=torch.tensor([2.0, 1.5, 0.5])),
    "tap infinite": lambda: _set(ADDRESS, shift=((0, 1, 2), inf)),
    "sharpening 0.5": lambda: _address(sharpening=0.5),
    "sharpening 0.5 of zeros": lambda: _address(
        gate=0.0,
        previous_weightings=torch.tensor([0.0, 0.0, 0.25, 0.75, 0.0, 0.0]),
        sharpening=0.5,
    ),
    "sharpening 0": lambda: _address(sharpening=0.0),
    "sharpening 0 of zeros": lambda: _address(
        gate=0.0,
        previous_weightings=torch.tensor([0.0, 0.0, 0.25, 0.75, 0.0, 0.0]),
        sharpening=0.0,
    ),
    "sharpening -1.5": lambda: _address(sharpening=-1.5),
    "sharpening -1.5 of zeros": lambda: _address(
        gate=0.0,
        previous_weightings=torch.tensor([0.0, 0.0, 0.25, 0.75, 0.0, 0.0]),
        sharpening=-1.5,
    ),
    "sharpening infinite": lambda: _set(WIDE, sharpening=((0, 1), inf)),
    "sharpening infinite of nothing": lambda: _address(
        gate=0.0, previous_weightings=0.0, sharpening=inf
    ),
    "sharpening infinite of one location": lambda: _set(
        Case("address", 1, 1, 4), sharpening=((0, 0), inf)
    ),
    "sharpening NaN of nothing": lambda: _address(
        gate=0.0, previous_weightings=0.0, sharpening=nan
    ),
    "strength -3": lambda: _address(strength=-3.0),
    "strength infinite": lambda: _set(ADDRESS, strength=((0, 1), inf)),
    "strength minus infinite": lambda: _set(ADDRESS, strength=((0, 1), -inf)),
    "memory infinite": lambda: _set(ADDRESS, memory=((0, 2, 1), inf)),
    "key infinite": lambda: _set(ADDRESS, key=((0, 1, 1), -inf)),
    "read, weightings of any size": lambda: _set(
        Case("read", 2, 6, 4, 2), weightings=((0,), [-1.0, 2, 0, 5, -3, 0.5])
    ),
    "read, weight infinite": lambda: _set(Case("read", 2, 6, 4, 2), weightings=((0, 1, 2), inf)),
    "read, memory infinite": lambda: _set(Case("read", 2, 6, 4, 2), memory=((0, 1, 2), inf)),
}
OUTSIDE |= {
    f"write, {heads} heads, any size": lambda heads=heads: _set(
        Case("write", 2, 6, 4, heads),
        weightings=((0, 0), [-1.0, 2, 0, 5, -3, 0.5]),
        erase=((0, heads - 1), [-0.5, 1.5, 3, 1]),
    )
    for heads in (1, 2, 6)
}
OUTSIDE |= {
    f"write, {heads} heads, {name} infinite": lambda heads=heads, name=name: _set(
        Case("write", 2, 20, 4, heads), **{name: ((0, heads - 1, 2), inf)}
    )
    for heads, names in (
        (1, ("weightings", "erase", "add", "memory")),
        (2, ("weightings", "erase", "memory")),
        (6, ("memory",)),
    )
    for name in names
}
OUTSIDE |= {
    f"step, raw {group} infinite": lambda group=group: _raw({group: inf})
    for group in ("key", "strength", "gate", "shift", "sharpening", "erase", "add")
}
OUTSIDE |= {
    "step, raw parameters minus infinite": lambda: _raw(
        dict.fromkeys(("strength", "gate", "shift", "sharpening", "erase"), -inf)
    ),
    "step, negative weight": lambda: _set(
        Case("step", 2, 20, 4), previous_weightings=((0, 1, 18), -3.0)
    ),
    "step, negative weight of several": lambda: _set(
        Case("step", 2, 20, 4, 2, 2), previous_weightings=((0, 1, 18), -3.0)
    ),
    "step, memory infinite": lambda: _set(Case("step", 2, 20, 4), memory=((0, 1, 2), inf)),
    "sequence, negative weight": lambda: _sequence_with("initial_weightings", -3.0),
    "sequence, negative weightings of several": lambda: _sequence_with(
        "initial_weightings", -3.0, "feedforward", num_read_heads=2, num_write_heads=2
    ),
    "sequence, memory infinite": lambda: _sequence_with("initial_memory", inf),
    "sequence, cell infinite": lambda: _sequence_with("initial_cell", inf),
    "sequence, hidden infinite": lambda: _sequence_with("initial_hidden", inf),
    "sequence, read vector infinite": lambda: _sequence_with(
        "initial_read_vectors", inf, controller="feedforward"
    ),
}
