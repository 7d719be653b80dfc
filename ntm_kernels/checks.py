"""Checks of arguments before any kernel runs: shapes, dtypes, devices, of values lengths alone."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from ntm_kernels import torch_private

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


class Arguments:
    """Checks the tensor arguments of one call against each other.

    Dimensions are named by letters; the first argument that has one fixes its size.
    """

    def __init__(self, op: str) -> None:
        self.op = op
        self.sizes: dict[str, int] = {}
        self.owners: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}

    def fix(self, dim: str, size: int, owner: str) -> None:
        """Let ``dim`` be ``size``, as ``owner`` says."""
        self.sizes[dim], self.owners[dim] = size, owner

    def tensor(self, name: str, value: Any, dims: str) -> None:
        """``value`` must be a dense floating-point tensor with the dimensions ``dims``."""
        if name in self.tensors and self.tensors[name] is value:
            return
        _require_tensor(self.op, name, value)
        require_dense(self.op, name, value)
        if value.dtype not in FLOATS:
            raise TypeError(
                f"{self.op}: {name} must be float32, float64, bfloat16 or float16, "
                f"got {value.dtype}"
            )
        self._shape(name, value, dims)
        for first, other in islice(self.tensors.items(), 1):
            if value.device != other.device:
                raise ValueError(
                    f"{self.op}: {name} is on {value.device}, {first} on {other.device}"
                )
        self.tensors[name] = value

    @property
    def device(self) -> torch.device:
        """The device of the tensors that are checked already."""
        return next(iter(self.tensors.values())).device

    def lengths(self, value: Any, device: torch.device) -> None:
        """``value`` must be ``[B]``, of any integer dtype, on ``device``."""
        _require_tensor(self.op, "lengths", value)
        if value.dtype not in INTEGERS:
            raise TypeError(
                f"{self.op}: lengths must be of an integer dtype, such as torch.int64, "
                f"got {value.dtype}"
            )
        if value.device != device:
            raise ValueError(f"{self.op}: lengths are on {value.device}, the input on {device}")
        require_dense(self.op, "lengths", value)
        self._shape("lengths", value, "B")

    def resets(self, value: Any, device: torch.device, dims: str = "T B") -> None:
        """``value`` must be bool on ``device``, with a value for each step of each sequence."""
        _require_tensor(self.op, "resets", value)
        if value.dtype != torch.bool:
            raise TypeError(f"{self.op}: resets must be of dtype torch.bool, got {value.dtype}")
        if value.device != device:
            raise ValueError(f"{self.op}: resets are on {value.device}, the input on {device}")
        require_dense(self.op, "resets", value)
        self._shape("resets", value, dims)

    def dtypes(self, **kinds: tuple[str, ...]) -> None:
        """Each kind of argument has one dtype; float64 is everywhere or nowhere; at most one
        16-bit dtype beside float32."""
        used: dict[torch.dtype, str] = {}
        for kind, names in kinds.items():
            present = [name for name in names if name in self.tensors]
            for name in present:
                if self.tensors[name].dtype != self.tensors[present[0]].dtype:
                    raise TypeError(
                        f"{self.op}: {name} is {self.tensors[name].dtype}, "
                        f"{present[0]} {self.tensors[present[0]].dtype}; "
                        f"{kind} must share one dtype"
                    )
            for name in present[:1]:
                used.setdefault(self.tensors[name].dtype, name)
        mixed = [dtype for dtype in used if dtype != torch.float32]
        if (torch.float64 in used and len(used) > 1) or len(mixed) > 1:
            listed = ", ".join(f"{name} {dtype}" for dtype, name in used.items())
            raise TypeError(
                f"{self.op}: cannot mix {listed}; float64 goes with float64 alone, and float32 "
                "with one of bfloat16 and float16"
            )

    def _shape(self, name: str, value: Tensor, dims: str) -> None:
        letters = dims.split()
        if value.dim() != len(letters):
            raise ValueError(
                f"{self.op}: {name} must be [{', '.join(letters)}], got {_show(value)}"
            )
        for letter, size in zip(letters, value.shape, strict=True):
            known = self.sizes.get(letter)
            if known is None:
                if size < 1 and letter not in "BT":
                    raise ValueError(f"{self.op}: {letter} of {name} must be at least 1")
                self.fix(letter, size, name)
            elif size != known:
                wanted = ", ".join(f"{one}={self.sizes.get(one, '?')}" for one in letters)
                raise ValueError(
                    f"{self.op}: {name} must be [{wanted}] ({letter} as in "
                    f"{self.owners[letter]}), got {_show(value)}"
                )


def needs_grad(inputs: NamedTuple) -> bool:
    """Whether an op on this record has to save for a backward."""
    if torch_private.is_tracing():
        # The graph keeps this answer, and may be run with gradients wherever it was traced.
        return True
    if not torch.is_grad_enabled():
        return False
    return any(value is not None and value.requires_grad for value in inputs)


def transform_of_call(names: Iterable[str], inputs: Iterable[Tensor | None]) -> str:
    """The transform that a call with these inputs is under: forward-mode AD or one of
    ``torch.func``; ``""`` for none. ``names`` are those that the caller knows."""
    # While torch.compile traces, a tangent is not seen; the op itself refuses it then.
    if not torch.compiler.is_compiling() and torch_private.in_forward_ad():
        for name, value in zip(names, inputs, strict=True):
            if value is not None and forward_ad.unpack_dual(value).tangent is not None:
                return f"forward-mode AD ({name} carries a tangent)"
    return _function_transform()


# A constant to torch.compile, which guards on the transforms itself.
@torch_private.assume_constant_result
def _function_transform() -> str:
    transform = torch_private.innermost_transform()
    return "" if transform is None else torch_private.FUNCTION_TRANSFORMS.get(transform.key(), "")


def transform_of_grads(grads: Iterable[Any]) -> str:
    """The transform that a backward with these gradients is under; ``""`` for none."""
    for grad in grads:
        if not isinstance(grad, Tensor):
            continue
        if torch_private.is_batched(grad):
            return "batched gradients (is_grads_batched, vectorize, torch.func.vmap of a gradient)"
        if torch_private.is_differentiated(grad):
            return "torch.func of a gradient"
        if torch_private.in_forward_ad() and torch_private.tangent_of(grad) is not None:
            return "forward-mode AD of a gradient"
    return ""


def given_together(op: str, **pair: object) -> None:
    """Raise where one of two arguments is ``None`` and the other is not."""
    missing = [name for name, value in pair.items() if value is None]
    if len(missing) == 1:
        raise ValueError(f"{op}: give both {' and '.join(pair)} or none, {missing.pop()} is None")


def lengths_within(op: str, lengths: Tensor, time: int) -> Tensor:
    """``lengths`` in int64. The values must lie in ``0 … time``; they are looked at on a CPU alone,
    where reading them costs nothing."""
    if lengths.dtype != torch.int64:
        lengths = lengths.to(torch.int64)
    if lengths.device.type != "cpu" or torch.compiler.is_compiling() or lengths.numel() == 0:
        return lengths
    if type(lengths) is not Tensor:  # A fake tensor has no values.
        return lengths
    # Inside a vmap the values of all of its batch are looked at.
    low, high = map(int, torch.func.debug_unwrap(lengths).aminmax())
    if low < 0 or high > time:
        raise ValueError(f"{op}: lengths must lie in 0 … {time}, got {low if low < 0 else high}")
    return lengths


def signature(*arguments: Any) -> Any:
    """All that the checks of these depend on, to recognise a call that passed them before.

    ``None`` if a call cannot be recognised: while tracing, and for subclasses of tensors.
    """
    if torch.compiler.is_compiling():
        return None
    parts: list[Any] = []
    for value in arguments:
        if type(value) is Tensor or type(value) is Parameter:
            if value.is_nested:
                return None
            parts += value.shape, value.dtype, value.device, value.layout
        elif value is None or type(value) is int:
            parts.append(value)
        elif type(value) is bool:  # True must not pass for the 1 of a call before.
            parts.append(str(value))
        else:
            return None
    return tuple(parts)


def eager_alone() -> bool:
    """Whether calls run as they are written: nothing traces, transforms or watches them."""
    return (
        not torch.compiler.is_compiling()
        and torch_private.dispatch_modes() == 0
        and torch_private.innermost_transform() is None
    )


def positive_int(op: str, name: str, value: Any, minimum: int = 1) -> int:
    """``value`` as an ``int``; it must be an integer, of whatever type, of at least ``minimum``."""
    number: Any = value
    if type(value) is not int and not isinstance(value, torch.SymInt):
        number = _index(value)
    if number is None:
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")
    if number < minimum:
        raise ValueError(f"{op}: {name} must be at least {minimum}, got {number}")
    return number


def _index(value: Any) -> int | None:
    """The integer that ``value`` stands for; ``None`` for what is none. A boolean is none, and
    neither is a tensor, which a GPU would have to be synchronised for."""
    if isinstance(value, (bool, Tensor)):
        return None
    try:
        return int(operator.index(value))
    except TypeError:
        return None


def as_int(value: Any) -> Any:
    """An integer of any type as an ``int``; all else as it is."""
    if type(value) in (int, bool) or value is None or isinstance(value, torch.SymInt):
        return value
    return _index(value)


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for a type of device; torch itself raises for a type, such as
    ``"meta"``, that has no autocast."""
    # The compiler of torch 2.11 cannot trace this question.
    if not torch.compiler.is_compiling() and not torch.amp.is_autocast_available(device_type):
        return False
    return torch.is_autocast_enabled(device_type)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype of autocast for a type of device; ``None`` where it is off."""
    return torch.get_autocast_dtype(device_type) if autocast_enabled(device_type) else None


def outside_autocast(device_type: str, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` where autocast does not reach: an op decides its dtypes itself."""
    if not autocast_enabled(device_type):
        return function(*args)
    with torch.autocast(device_type, enabled=False):
        return function(*args)


def _require_tensor(op: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def require_dense(op: str, name: str, value: Tensor, mend_nested: str = "") -> None:
    """``value`` must be dense; ``mend_nested`` says what to do with a nested tensor."""
    if value.layout is not torch.strided or value.is_nested:
        got = "a nested tensor" + mend_nested if value.is_nested else str(value.layout)
        raise TypeError(f"{op}: {name} must be a dense tensor, got {got}")


def _show(value: Tensor) -> str:
    return f"[{', '.join(str(size) for size in value.shape)}]"
