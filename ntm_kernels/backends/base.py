"""What a backend is: for each op that it has, a kernel with a forward and a backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ntm_kernels.ops.declare import Inputs, NothingSaved, Op, Outputs, empty, fields, leading
from ntm_kernels.ops.sizes import Sizes
from ntm_kernels.reference import arithmetic_dtype

Saved = TypeVar("Saved", bound=NamedTuple)

USE_TORCH = "use backend='torch', which has every derivative"


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot serve the call."""


class Problem(NamedTuple):
    """What a backend is asked to serve.

    ``device`` is the type of the tensors' device, ``device_index`` which one of that type,
    ``dtype`` that of the memory. ``transform`` names the transform that the call is under, such as
    a vmap or forward-mode AD; it is ``""`` for an ordinary call.
    """

    op: str
    device: str
    dtype: torch.dtype
    sizes: Sizes
    device_index: int = 0
    transform: str = ""


def problem_of(op: Op[Any, Any, Any], inputs: NamedTuple, sizes: Sizes) -> Problem:
    """What a call of ``op`` asks of a backend."""
    first = leading(inputs)
    device = first.device
    return Problem(op.name, device.type, first.dtype, sizes, device.index or 0)


class Kernel(ABC, Generic[Inputs, Outputs, Saved]):
    """Forward and backward of one op on one backend.

    Attributes:
        saved: the record of the tensors that a forward leaves for its backward, beyond inputs and
            kept outputs; all are in the arithmetic dtype.
        differentiates: the forward may be called with autograd recording, and then records its own
            derivative. ``torch.ops.ntm`` records that of the others.
    """

    saved: type[Saved] = NothingSaved  # type: ignore[assignment]
    differentiates = False

    @abstractmethod
    def forward(
        self, inputs: Inputs, sizes: Sizes, save_for_backward: bool
    ) -> tuple[Outputs, Saved | None]:
        """The outputs, and what the backward needs if there will be one.

        The inputs are as the user gave them: any strides, any dtypes that the backend supports.
        Outputs are new contiguous tensors, never views of inputs, each in the dtype of the inputs
        of its kind.
        """

    @abstractmethod
    def backward(
        self,
        grads: Outputs,
        inputs: Inputs,
        outputs: Outputs,
        saved: Saved,
        sizes: Sizes,
        wanted: frozenset[str],
    ) -> Inputs:
        """The gradient of each input, in its dtype.

        ``grads`` has ``None`` for outputs without a gradient, ``outputs`` for those that are not
        kept. Inputs that are not ``wanted`` may be left out: ``None``.
        """

    def saved_letters(self, sizes: Sizes) -> Mapping[str, int]:
        """Letters of the shapes of ``saved`` that belong to this backend alone."""
        return {}

    def empty_saved(self, sizes: Sizes, like: Tensor) -> Saved:
        """New tensors to save, on the device of ``like``, the memory."""
        dtypes = {"arithmetic": arithmetic_dtype(like.dtype)}
        return empty(self.saved, sizes, like, dtypes, self.saved_letters(sizes))


class Backend(ABC):
    """Kernels for some of the ops, and what they can serve.

    Attributes:
        name: the name under which it is asked for.
        kernels: its kernels by the name of their op.
        every_derivative: ``ntm_kernels.reference`` serves its calls in place of the kernels where
            more is asked for than the first derivative by backward: under a transform, and where
            the backward is differentiated again. Without it, such calls are refused.
        needs_check: the automatic choice uses it on a device only after a self-check there has
            passed (``ntm_kernels.backends.trust``).
    """

    name: str
    every_derivative = False
    needs_check = False
    kernels: Mapping[str, Kernel[Any, Any, Any]] = MappingProxyType({})

    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine at all; ``None`` if it can."""
        return None

    def missed(self, device: str, why_not: str) -> None:  # noqa: B027 (most have nothing to say)
        """The automatic choice for a call on ``device`` passed over this backend, since it is not
        available: to warn, or to raise where it was asked for."""

    def unsupported(self, problem: Problem) -> str | None:
        """Why this backend does not serve ``problem`` of an op that it has; ``None`` if it does."""
        return None

    def refuses(self, problem: Problem) -> str | None:
        """Why this backend does not serve ``problem``; ``None`` if it does."""
        if problem.op not in self.kernels:
            return f"it has no kernel for {problem.op}"
        if problem.transform and not self.every_derivative:
            return f"it does not support {problem.transform}; {USE_TORCH}"
        return self.unsupported(problem)

    def describe(self) -> str:
        """What it is and where it runs, in a few words."""
        return ""

    def release_workspaces(self) -> int:
        """Give the memory that is kept between calls back to the system; its bytes."""
        return 0

    def how(self, problem: Problem) -> str:
        """Which of its ways it serves ``problem``, where it has several."""
        return ""

    def path(self, problem: Problem) -> str:
        """The code path that serves ``problem``. A self-check tries each path once."""
        return ""

    def fingerprint(self) -> str:
        """A digest of its kernels. With other kernels a self-check is made anew."""
        return ""


def restore(kernel: Kernel[Any, Any, Saved], saved: list[Tensor], sizes: Sizes) -> Saved:
    """The record of what ``kernel`` saved from the list of the tensors that are there."""
    rest = iter(saved)
    return kernel.saved._make(
        next(rest) if field.present(sizes) else None for field in fields(kernel.saved).values()
    )
