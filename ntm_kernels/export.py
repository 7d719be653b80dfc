"""Models as programs for other processes: ``torch.export``, AOTInductor, ONNX.

``program`` and ``onnx`` fill in what ``torch.export.export`` and ``torch.onnx.export`` ask for:
examples of the arguments, the sizes that stay open and, for ONNX, the names of inputs and outputs.
``docs/export.md`` shows how to save, load and run the results.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from ntm_kernels.checks import positive_int
from ntm_kernels.nn import NTM, NTMCell, NTMState
from ntm_kernels.nn.parts import dtype_and_device, map_tensors, shapes_of
from ntm_kernels.torch_private import tree_flatten, tree_leaves

__all__ = ["ExportError", "named_state", "onnx", "program"]

# An exporter takes a size of 0 or 1 for a constant.
EXAMPLE_BATCH, EXAMPLE_TIME = 2, 3


class ExportError(ValueError):
    """A model cannot be exported; the message says why and what to do."""


def program(model: NTM | NTMCell, *, time: int | None = None) -> torch.export.ExportedProgram:
    """``model(x, state) -> (output, state)`` as a program of ``torch.export``, for any batch.

    The program of an ``NTM`` takes x ``[T, B, I]``, or ``[B, T, I]`` with ``batch_first``; that of
    an ``NTMCell`` takes x ``[B, I]``. The state is an ``NTMState`` of ``model.memory_size``
    locations. The backend is chosen where and when the program runs, unless the model was made with
    a ``backend``.

    Args:
        model: the model. Call ``model.eval()`` first if it has parts that behave differently in
            training, such as dropout in a controller of your own.
        time: the one number of steps T for an ``NTM`` that calls its controller at every step.
            ``None``: any number.

    Returns:
        The program, for ``torch.export.save`` or ``torch._inductor.aoti_compile_and_package``. A
        process that loads it must have imported ``ntm_kernels``.

    Raises:
        TypeError: ``model`` is neither an ``NTM`` nor an ``NTMCell``, or ``time`` is no integer.
        ExportError: the state of a controller of your own is unsuitable, or ``time`` is given for
            an ``NTMCell``.
        ValueError: the model calls its controller at every step and ``time`` is ``None``, or
            ``time`` is less than 1.

    >>> import torch, ntm_kernels
    >>> model = ntm_kernels.NTM(3, 2, 8, memory_size=16, word_size=4)
    >>> run = program(model).module()
    >>> output, state = run(torch.randn(9, 5, 3), model.initial_state(5))
    >>> output.shape
    torch.Size([9, 5, 2])
    """
    example = _example("export.program", model, time)
    batch = Dim("batch", min=1)
    open_sizes = {"B": batch} if time is not None else {"B": batch, "T": Dim("time", min=1)}
    of_state = map_tensors(lambda part: {0: batch}, example.state)
    return torch.export.export(
        model,
        (example.x, example.state),
        dynamic_shapes=(_open(example.dims, open_sizes), of_state),
    )


def onnx(model: NTM | NTMCell, *, time: int | None = None) -> torch.onnx.ONNXProgram:
    """One step of the model in ONNX, for any batch; with ``time``, a whole sequence.

    The inputs are ``x`` and the parts of the state under the names of ``named_state``. The outputs
    are ``output`` and ``next_memory``, ``next_weightings`` and so on, in the same order. For one
    step x is ``[B, I]`` and the output ``[B, O]``. ONNX has no form of the package's ops, so that
    the program holds the equations of ``ntm_kernels.reference``, written out for each step.

    Args:
        model: the model; see ``program``.
        time: steps T of an ``NTM``. x is then ``[T, B, I]``, or ``[B, T, I]`` with
            ``batch_first``. ``None``: one step.

    Returns:
        The program; its method ``save`` writes it to a file.

    Raises:
        TypeError: ``model`` is neither an ``NTM`` nor an ``NTMCell``, or ``time`` is no integer.
        ExportError: onnx or onnxscript is not installed, a part of the model has no form in ONNX,
            the state of a controller of your own is unsuitable, or ``time`` is given for an
            ``NTMCell``.
        ValueError: ``time`` is less than 1.

    >>> import ntm_kernels
    >>> model = ntm_kernels.NTM(3, 2, 8, memory_size=16, word_size=4)
    >>> onnx(model).save("model.onnx")  # doctest: +SKIP
    """
    example = _example("export.onnx", model, time)
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"export.onnx: {' and '.join(missing)} must be installed; "
            'pip install "ntm_kernels[onnx]", or: pip install onnx onnxscript onnxruntime'
        )
    traced: nn.Module = model
    if time is None and isinstance(model, NTM):
        traced = _OneStep(model)
        example = example._replace(x=example.x.select(traced.time_dim, 0), dims="B")
    names, parts = list(named_state(example.state)), tree_leaves(example.state)
    batch = Dim("batch", min=1)
    flat = _Flat(traced, example.state)
    flat.training = model.training
    try:
        with warnings.catch_warnings():
            # It says of every part but one that its axis has the name of an equal axis.
            warnings.filterwarnings("ignore", ".*The axis name")
            found = torch.onnx.export(
                flat,
                (example.x, *parts),
                input_names=["x", *names],
                output_names=["output", *(f"next_{name}" for name in names)],
                dynamic_shapes=(_open(example.dims, {"B": batch}), ({0: batch},) * len(parts)),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(
            "export.onnx: a part of the model has no form in ONNX. Its controller is a "
            f"{type(_cell_of(model).controller).__name__}. torch.onnx.export stopped at: "
            f"{_root_of(error)}"
        ) from error
    assert found is not None  # None is the result of the older exporter.
    return found


def named_state(state: NTMState) -> dict[str, Tensor]:
    """The tensors of a state under the names that they have in ONNX.

    ``memory``, ``weightings`` and ``read_vectors``, then ``controller_0``, ``controller_1`` and so
    on: of an LSTM the hidden and the cell state of each layer, from the first layer to the top.

    >>> import ntm_kernels
    >>> model = ntm_kernels.NTM(3, 2, 8, memory_size=16, word_size=4)
    >>> list(named_state(model.initial_state(1)))
    ['memory', 'weightings', 'read_vectors', 'controller_0', 'controller_1']
    """
    of_controller = enumerate(tree_leaves(state.controller))
    return {
        "memory": state.memory,
        "weightings": state.weightings,
        "read_vectors": state.read_vectors,
        **{f"controller_{number}": part for number, part in of_controller},
    }


class _Example(NamedTuple):
    """The arguments of a call, and the letters of the dimensions of x before its last."""

    x: Tensor
    dims: str
    state: NTMState


def _example(owner: str, model: NTM | NTMCell, time: int | None) -> _Example:
    if not isinstance(model, (NTM, NTMCell)):
        raise TypeError(
            f"{owner}: model must be an NTM or an NTMCell, got {type(model).__name__}; give the "
            "NTM inside it, such as model.module of a DistributedDataParallel"
        )
    if time is not None:
        time = positive_int(owner, "time", time)
        if isinstance(model, NTMCell):
            raise ExportError(
                f"{owner}: time is for an NTM, got an NTMCell, whose program is one step"
            )
    dims = "B"
    if isinstance(model, NTM):
        dims = "BT" if model.batch_first else "TB"
    sizes = {"B": EXAMPLE_BATCH, "T": EXAMPLE_TIME if time is None else time}
    cell = _cell_of(model)
    dtype, device = dtype_and_device(cell.interface, cell.controller, cell.start)
    shape = (*(sizes[letter] for letter in dims), cell.input_size)
    x = torch.zeros(shape, dtype=dtype, device=device)
    state = map_tensors(torch.Tensor.detach, model.initial_state(EXAMPLE_BATCH))
    _require_suitable(owner, state)
    return _Example(x, dims, state)


def _cell_of(model: NTM | NTMCell) -> NTMCell:
    return model.cell if isinstance(model, NTM) else model


def _require_suitable(owner: str, state: NTMState) -> None:
    """The state of the controller must be tensors, each with the batch first."""
    parts = tree_leaves(state.controller)
    if state.controller is None:
        raise ExportError(
            f"{owner}: the controller has no initial state, so that the program's state has no "
            "form; give it a method initial_state(batch_size)"
        )
    if not all(isinstance(part, Tensor) and part.shape[:1] == (EXAMPLE_BATCH,) for part in parts):
        raise ExportError(
            f"{owner}: the controller's state must be tensors with the batch first, got "
            f"{shapes_of(state.controller)} for a batch of {EXAMPLE_BATCH}; what is no tensor "
            "would be a constant of the program"
        )


def _root_of(error: BaseException) -> BaseException:
    """The error that all others came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _open(dims: str, sizes: dict[str, Dim]) -> dict[int, Dim]:
    """The dimensions that have a letter in ``sizes``."""
    return {index: sizes[letter] for index, letter in enumerate(dims) if letter in sizes}


class _OneStep(nn.Module):
    """An ``NTM`` called like an ``NTMCell``: ``(x [B, I], state) -> (output [B, O], state)``."""

    def __init__(self, model: NTM) -> None:
        super().__init__()
        self.model, self.time_dim = model, 1 if model.batch_first else 0

    def forward(self, x: Tensor, state: NTMState) -> tuple[Tensor, NTMState]:
        output, state = self.model(x.unsqueeze(self.time_dim), state)
        return output.squeeze(self.time_dim), state


class _Flat(nn.Module):
    """A model with the parts of its state as arguments and results of their own."""

    def __init__(self, model: nn.Module, state: NTMState) -> None:
        super().__init__()
        self.model = model
        _, self.tree = tree_flatten(state)

    def forward(self, x: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        output, state = self.model(x, self.tree.unflatten(parts))
        return (output, *tree_leaves(state))
