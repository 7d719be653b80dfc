"""The models that a configuration asks for, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ntm_kernels import NTM, InitialState, available_backends
from ntm_kernels.backends import requested
from ntm_kernels.nn import stepping_read_heads_, walking_write_heads_
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.sizes import naming_sizes

__all__ = [
    "LSTMBaseline",
    "answer",
    "answer_in_pieces",
    "build_model",
    "check_device",
    "compute_dtype",
    "load_model",
    "memory_of_at_least",
    "memory_size_of",
    "threads_of",
    "trained_model",
]

# Steps computed at once where no gradients are wanted: long enough that the work at the borders of
# a piece does not count, and the outputs of a piece are small beside the memories.
_PIECE = 1024


class LSTMBaseline(nn.Module):
    """``nn.LSTM`` with an output layer, called as :class:`ntm_kernels.NTM` is.

    >>> model = LSTMBaseline(input_size=9, output_size=8, hidden_size=16, num_layers=3)
    >>> output, state = model(torch.zeros(5, 2, 9))
    >>> output.shape
    torch.Size([5, 2, 8])
    """

    def __init__(
        self, input_size: int, output_size: int, hidden_size: int, num_layers: int = 1
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers)
        self.output = nn.Linear(hidden_size, output_size)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits ``[T, B, O]`` of the inputs ``[T, B, I]``, and the final (h, c)."""
        hidden, state = self.lstm(x, state)
        return self.output(hidden), state


def check_device(device: str) -> None:
    """Raises ValueError when nothing can be computed on the device."""
    try:
        torch.zeros((), device=device).item()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {error}") from error


@contextmanager
def threads_of(config: TrainConfig) -> Iterator[None]:
    """Computes on the CPU threads of a configuration, and then on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute_dtype(config: TrainConfig) -> torch.dtype:
    """The dtype of weights, inputs and targets."""
    return torch.float64 if config.dtype == "float64" else torch.float32


def build_model(config: TrainConfig) -> nn.Module:
    """The model of a configuration, its initial weights drawn from torch's global generator."""
    task = config.task
    # Made on the CPU in float32 and then moved, a seed means the same weights everywhere.
    place: dict[str, Any] = {"device": config.device, "dtype": compute_dtype(config)}
    if config.model == "lstm":
        baseline = LSTMBaseline(
            task.input_size, task.output_size, config.hidden_size, config.num_layers
        )
        return baseline.to(**place)

    _check_backend(config.backend)
    model = NTM(
        task.input_size,
        task.output_size,
        config.hidden_size,
        memory_size=config.memory_size,
        word_size=config.word_size,
        num_read_heads=config.num_read_heads,
        num_write_heads=config.num_write_heads,
        shift_range=config.shift_range,
        controller=config.controller,
        num_layers=config.num_layers,
        output_from=config.output_from,
        initial_state=InitialState(
            memory=config.initial_memory,
            weightings=config.initial_weightings,
            read_vectors=config.initial_read_vectors,
            controller=config.initial_controller,
        ),
        backend=config.backend,
    )
    if config.walking_write_heads:
        walking_write_heads_(model)
    if config.stepping_read_heads:
        stepping_read_heads_(model)
    return model.to(**place)


def load_model(model: nn.Module, contents: Mapping[str, Any]) -> None:
    """Puts the weights of a checkpoint into a model, and the number of locations it had then.

    Raises:
        KeyError, RuntimeError: the checkpoint is not of such a model.
    """
    model.load_state_dict(contents["model"])
    # Older checkpoints do not have it: their memories never grew.
    size = contents.get("memory_size")
    if size is not None and isinstance(model, NTM) and size != model.memory_size:
        model.memory_size = size


def trained_model(config: TrainConfig, contents: Mapping[str, Any]) -> nn.Module:
    """The model of a configuration with the weights of a checkpoint.

    Raises:
        ValueError: its device or backend cannot be used here.
        TrainingError: there is not enough memory for it.
    """
    check_device(config.device)
    with naming_sizes(config), threads_of(config):
        model = build_model(config)
    load_model(model, contents)
    return model


@contextmanager
def memory_of_at_least(model: nn.Module, size: int | None) -> Iterator[int | None]:
    """Gives an NTM so many memory locations for a while, unless something it learned fixes them.

    Yields how many it has: None for a model without a memory.
    """
    before = memory_size_of(model)
    if not isinstance(model, NTM) or before is None or size is None or size <= before:
        yield before
        return
    try:
        model.memory_size = size
    except ValueError:
        yield before
        return
    try:
        yield size
    finally:
        model.memory_size = before


def memory_size_of(model: nn.Module) -> int | None:
    """Memory locations of an NTM; None of a model without a memory."""
    return model.memory_size if isinstance(model, NTM) else None


def _check_backend(name: str | None) -> None:
    """Raises ValueError when a backend is unknown or cannot run here, before anything is made."""
    asked = requested(name)
    if asked is None:
        return
    source = asked[1] if name is None else "--backend (the field backend of a TrainConfig)"
    name, _ = asked
    there = {status.name: status for status in available_backends()}
    if name not in there:
        raise ValueError(f"backend must be one of {', '.join(there)}, got {name!r} by {source}")
    if not there[name].available:
        raise ValueError(
            f"backend {name!r}, asked for by {source}, cannot be used here: {there[name].reason}"
        )


def answer(model: nn.Module, inputs: Tensor, config: TrainConfig) -> Tensor:
    """Logits ``[T, B, O]`` of the inputs ``[T, B, I]``, computed in the configuration's dtype.

    Padding is not told to the model: it comes after the answer, where it can change nothing.
    """
    return _continue(model, inputs, None, config)[0]


@torch.no_grad()
def answer_in_pieces(
    model: nn.Module,
    inputs: Tensor,
    config: TrainConfig,
    advance: Callable[[int], None] = lambda steps: None,
) -> Tensor:
    """As :func:`answer`, without gradients, for sequences of any number of steps.

    A piece of the steps is computed after the other, each from the state after the one before. The
    working memory does not grow with the number of steps; the inputs and the answer do.

    Args:
        advance: called after each piece with its number of steps, added up over the sequences.
    """
    logits: list[Tensor] = []
    state = None
    for piece in inputs.split(_PIECE):
        output, state = _continue(model, piece, state, config)
        logits.append(output)
        advance(piece.shape[0] * piece.shape[1])
    return torch.cat(logits)


def _continue(
    model: nn.Module, inputs: Tensor, state: Any, config: TrainConfig
) -> tuple[Tensor, Any]:
    """Logits of the inputs, begun from a state, and the state after them."""
    given = (inputs,) if state is None else (inputs, state)
    if config.dtype != "bfloat16":
        logits, state = model(*given)
        return logits, state
    with torch.autocast(inputs.device.type, torch.bfloat16):
        logits, state = model(*given)
    return logits.float(), state
