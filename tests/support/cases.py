"""Problems to put to an op, and how to run one forward and backward."""

from dataclasses import dataclass, replace

import pytest
import torch

from ntm_kernels import InterfaceLayout, LayerWeights, SequenceState, functional, ops, reference
from ntm_kernels.backends.trust.tolerance import largest_error, scale_and_factor
from ntm_kernels.backends.trust.tolerance import neighbour as neighbour_of
from ntm_kernels.ops.declare import fields
from tests.support.tolerance import assert_accurate

F32, F64 = torch.float32, torch.float64
NEIGHBOURS = 4
OPS = ("address", "read", "write", "step", "sequence")


@dataclass(frozen=True)
class Case:
    """Sizes of one call; what an op does not know it ignores.

    For ``address``, ``read`` and ``write`` the number of heads is ``num_read_heads``.
    """

    op: str
    batch: int = 2
    memory_size: int = 7
    word_size: int = 5
    num_read_heads: int = 1
    num_write_heads: int = 1
    shift_range: int = 1
    time: int = 4
    hidden_size: int = 6
    controller: str = "lstm"
    input_size: int = 0  # 0: the input comes projected
    num_layers: int = 1

    def __str__(self):
        base = f"{self.op}-B{self.batch}N{self.memory_size}M{self.word_size}R{self.num_read_heads}"
        if self.op == "address":
            return f"{base}r{self.shift_range}"
        if self.op in ("read", "write"):
            return base
        base = f"{base}W{self.num_write_heads}r{self.shift_range}"
        if self.op == "step":
            return base
        projected = f"I{self.input_size}" if self.input_size else ""
        layers = f"L{self.num_layers}" if self.num_layers > 1 else ""
        return f"{base}T{self.time}C{self.hidden_size}{layers}{projected}{self.controller}"

    @property
    def num_heads(self):
        return self.num_read_heads + (
            self.num_write_heads if self.op in ("step", "sequence") else 0
        )

    @property
    def work(self):
        time = self.time if self.op == "sequence" else 1
        return self.batch * self.memory_size * self.word_size * self.num_heads * max(time, 1)

    @property
    def layout(self):
        return InterfaceLayout(
            self.word_size, self.num_read_heads, self.num_write_heads, self.shift_range
        )

    @property
    def options(self):
        """The keyword arguments of the op."""
        if self.op not in ("step", "sequence"):
            return {}
        return {
            "num_read_heads": self.num_read_heads,
            "num_write_heads": self.num_write_heads,
            "shift_range": self.shift_range,
        }

    @property
    def terms(self):
        """How long the longest sums are."""
        return self.memory_size * (max(self.time, 1) if self.op == "sequence" else 1)

    @property
    def shapes(self):
        """Shape and kind of every tensor argument."""
        B, N, M, H = self.batch, self.memory_size, self.word_size, self.num_heads
        taps, C = 2 * self.shift_range + 1, self.hidden_size
        memory, weightings = ((B, N, M), "memory"), ((B, H, N), "weightings")
        if self.op == "address":
            return {
                "memory": memory,
                "key": ((B, H, M), "parameters"),
                "strength": ((B, H), "parameters"),
                "gate": ((B, H), "parameters"),
                "shift": ((B, H, taps), "parameters"),
                "sharpening": ((B, H), "parameters"),
                "previous_weightings": weightings,
            }
        if self.op == "read":
            return {"memory": memory, "weightings": weightings}
        if self.op == "write":
            words = ((B, H, M), "parameters")
            return {"memory": memory, "weightings": weightings, "erase": words, "add": words}
        P = self.layout.size
        if self.op == "step":
            return {
                "memory": memory,
                "interface": ((B, P), "parameters"),
                "previous_weightings": weightings,
            }
        lstm = self.controller == "lstm"
        G, K = (4 * C, self.num_read_heads * M + C) if lstm else (C, self.num_read_heads * M)
        shapes = {
            "x": ((self.time, B, self.input_size or G), "input"),
            "recurrent_weight": ((G, K), "parameters"),
            "interface_weight": ((P, C), "parameters"),
            "interface_bias": ((P,), "parameters"),
            "initial_memory": memory,
            "initial_weightings": weightings,
            "initial_read_vectors": ((B, self.num_read_heads, M), "memory"),
        }
        if lstm:
            layers = ((self.num_layers, B, C), "state")
            shapes |= {"initial_hidden": layers, "initial_cell": layers}
        if self.input_size:
            shapes |= {
                "input_weight": ((G, self.input_size), "input"),
                "input_bias": ((G,), "input"),
            }
        if self.num_layers > 1:
            U, J = self.num_layers - 1, 2 * C if lstm else C
            shapes |= {
                "upper_weight": ((U, G, J), "parameters"),
                "upper_bias": ((U, G), "parameters"),
            }
        return shapes

    def with_(self, **changes):
        return replace(self, **changes)


# Controllers of several layers.
DEEP = [
    Case("sequence", num_layers=3, input_size=3),
    Case("sequence", num_layers=2, controller="feedforward"),
]
SMALL = [
    Case("address", num_read_heads=3),
    Case("read", num_read_heads=2),
    Case("write", num_read_heads=2),
    Case("step", num_read_heads=2, num_write_heads=2),
    Case("sequence"),
    Case("sequence", controller="feedforward", num_read_heads=2, num_write_heads=2, input_size=3),
    *DEEP,
]
# Memories in tiles, worked on by blocks that wait for one another.
TILED = [Case("address", 2, 20_000, 64, 2), Case("step", 1, 20_000, 64, 1, 1)]
each_small = pytest.mark.parametrize("case", SMALL, ids=str)


@dataclass(frozen=True)
class Dtypes:
    """The dtype of each kind of argument."""

    memory: torch.dtype = torch.float64
    weightings: torch.dtype = torch.float64
    parameters: torch.dtype = torch.float64
    input: torch.dtype = torch.float64
    state: torch.dtype = torch.float64

    @classmethod
    def all(cls, dtype):
        return cls(dtype, dtype, dtype, dtype, dtype)

    @classmethod
    def float32_but(cls, dtype, *kinds):
        return replace(cls.all(torch.float32), **dict.fromkeys(kinds, dtype))

    def of(self, op):
        """The different dtypes that ``op`` sees."""
        return {getattr(self, kind) for _, kind in Case(op).shapes.values()}

    def __str__(self):
        names = [str(dtype).removeprefix("torch.") for dtype in vars(self).values()]
        return names[0] if len(set(names)) == 1 else "-".join(names)


def _values(name, shape, generator):
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    if name.endswith("weightings"):
        return (2 * noise).softmax(-1)
    if name == "shift":
        return noise.softmax(-1)
    if name in ("gate", "erase"):
        return noise.sigmoid()
    if name == "strength":
        return 5 * noise.sigmoid()
    if name == "sharpening":
        return 1 + noise.exp()
    if name in ("input_weight", "recurrent_weight", "interface_weight", "upper_weight"):
        return noise / max(shape[-1], 1) ** 0.5
    return noise


def arguments(case, dtypes=Dtypes(), device="cpu", seed=0):
    """Random arguments, the same numbers for every dtype but for their rounding."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _values(name, shape, generator).to(getattr(dtypes, kind)).to(device)
        for name, (shape, kind) in case.shapes.items()
    }


def named_outputs(op, result):
    """The differentiable results of ``op`` by name."""
    if op in ("address", "read", "write"):
        return {{"address": "weightings", "read": "read_vectors", "write": "memory"}[op]: result}
    if op == "step":
        return dict(zip(("read_vectors", "memory", "weightings"), result, strict=True))
    final = {f"final_{name}": part for name, part in result.state._asdict().items()}
    outputs = {"hidden": result.hidden, "read_vectors": result.read_vectors, **final}
    return {name: part for name, part in outputs.items() if part is not None}


def of_sequence(tensors):
    """The arguments of ``sequence`` from the tensors of its op by their names."""
    rest = dict(tensors)
    state = {name: rest.pop(f"initial_{name}", None) for name in SequenceState._fields}
    names = ("recurrent_weight", "input_weight", "input_bias")
    layers = [LayerWeights(*(rest.pop(name, None) for name in names))]
    for weight, bias in zip(rest.pop("upper_weight", ()), rest.pop("upper_bias", ()), strict=True):
        below, own = weight.tensor_split((rest["interface_weight"].shape[1],), -1)
        layers.append(LayerWeights(own if own.numel() else None, below, bias))
    return {**rest, "layers": layers, "initial_state": SequenceState(**state)}


def shown(op, name):
    """What an error calls the tensor ``name``."""
    return fields(ops.OPS[op].inputs)[name].argument or name


def invoke(module, op, tensors, **options):
    """The result of the function ``op`` of ``functional`` or ``reference``."""
    function = getattr(module, op)
    if op == "sequence":
        return function(**of_sequence(tensors), **options)
    return function(*tensors.values(), **options)


def call(case, tensors, backend=None, **extra):
    """The outputs of the op on ``backend``; ``None`` is ``ntm_kernels.reference`` itself."""
    options = case.options | extra
    if backend is None:
        options.pop("checkpoint_every", None)
        result = invoke(reference, case.op, tensors, **options)
    else:
        result = invoke(functional, case.op, tensors, **options, backend=backend)
    return named_outputs(case.op, result)


def explained(case, tensors, backend, **extra):
    """How ``backend`` would compute a sequence, in its own words."""
    given = of_sequence(tensors) | case.options | extra
    return functional.explain("sequence", **given, backend=backend).reason


def cotangents(outputs, seed=1):
    """A random gradient for every output."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(part.shape, generator=generator, dtype=torch.float64)
        .to(part.dtype)
        .to(part.device)
        for name, part in outputs.items()
    }


def leaves(tensors):
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def differentiate(outputs, grads, wanted, create_graph=False):
    """Gradients of ``wanted`` by name; outputs without an entry in ``grads`` contribute nothing."""
    names = [name for name in outputs if name in grads and outputs[name].requires_grad]
    found = torch.autograd.grad(
        [outputs[name] for name in names],
        list(wanted.values()),
        [grads[name] for name in names],
        allow_unused=True,
        create_graph=create_graph,
    )
    return dict(zip(wanted, found, strict=True))


def run(case, tensors, backend=None, grads=None, **extra):
    """Outputs and gradients, detached; ``grads`` defaults to random ones for every output."""
    wanted = leaves(tensors)
    outputs = call(case, wanted, backend, **extra)
    grads = cotangents(outputs) if grads is None else grads
    results = {name: part.detach() for name, part in outputs.items()}
    found = differentiate(outputs, grads, wanted)
    return results, {
        name: torch.zeros_like(tensors[name]) if grad is None else grad
        for name, grad in found.items()
    }


def to_dtype(tensors, dtype):
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def assert_agrees(case, entry, tensors, grads=None, **extra):
    """Outputs and all gradients of the backend are as accurate as the policy demands."""
    actual = run(case, tensors, entry.backend, grads, **extra)
    assert_results(case, actual, tensors, grads, **extra)


def assert_results(case, actual, tensors, grads=None, *, only_finite=False, **extra):
    """``actual``, as ``run`` returns it, is as accurate as the policy demands; with ``only_finite``
    where the truth is a number.

    Rounding errors at one point are a matter of luck; before failing, those of plain autograd are
    measured at a few neighbouring points too.
    """
    tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
    extra = {name: v.cpu() if isinstance(v, torch.Tensor) else v for name, v in extra.items()}
    outputs = call(case, tensors, **extra)
    grads = cotangents(outputs) if grads is None else {k: grad.cpu() for k, grad in grads.items()}
    like = outputs, tensors
    truth = run(case, to_dtype(tensors, F64), None, to_dtype(grads, F64), **extra)
    is_float64 = any(tensor.dtype == F64 for tensor in tensors.values())
    step, factor = scale_and_factor(is_float64)
    plain_errors = _plain_errors(case, tensors, grads, is_float64, only_finite, extra)
    for neighbour in range(NEIGHBOURS + 1):
        try:
            for kind, what in enumerate(("", "gradient of ")):
                assert actual[kind].keys() == truth[kind].keys()
                for name, wanted in truth[kind].items():
                    found, title = actual[kind][name], f"{case}: {what}{name}"
                    assert found.dtype == like[kind][name].dtype, f"{title} is {found.dtype}"
                    if only_finite:
                        found, wanted = found[wanted.isfinite()], wanted[wanted.isfinite()]
                    assert_accurate(
                        title,
                        found,
                        wanted,
                        step * plain_errors[kind][name],
                        terms=case.terms,
                        factor=factor,
                    )
            return
        except AssertionError:
            if neighbour == NEIGHBOURS:
                raise
        near = {name: neighbour_of(tensor, neighbour) for name, tensor in tensors.items()}
        more = _plain_errors(case, near, grads, is_float64, only_finite, extra)
        plain_errors = [
            {name: max(error, other[name]) for name, error in errors.items()}
            for errors, other in zip(plain_errors, more, strict=True)
        ]


def _plain_errors(case, tensors, grads, is_float64, only_finite, extra):
    """Largest errors of plain autograd in the dtypes of ``tensors``, for float64 in float32."""
    if is_float64:
        tensors, grads = to_dtype(tensors, F32), to_dtype(grads, F32)
    plain = run(case, tensors, None, grads, **extra)
    truth = run(case, to_dtype(tensors, F64), None, to_dtype(grads, F64), **extra)
    kept = torch.isfinite if only_finite else _everywhere
    return [
        {
            name: largest_error(found[name][kept(part)], part[kept(part)])
            for name, part in wanted.items()
        }
        for found, wanted in zip(plain, truth, strict=True)
    ]


def _everywhere(tensor):
    return torch.ones_like(tensor, dtype=torch.bool)


class Whole:
    """An integer of another library's."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value
