"""Who is measured. A contender makes a step function, a model over sequences, or a cell."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import ntm_kernels
from bench.workload import Workload
from ntm_kernels import NTM, NTMCell, NTMState, functional, reference, tasks
from ntm_kernels.ops.call import known_calls

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Memory, raw interface vector and previous weightings -> read vectors, memory and weightings."""


class Unsupported(Exception):
    """The contender has nothing of the kind that is measured."""


class Contender(ABC):
    """One implementation. What it does not have raises ``Unsupported``, with the reason.

    Attributes:
        name: how it is called on the command line and in results.
        about: what it is, for ``--list``.
        slow_start: it needs so long to warm up that it takes part in few sizes only.
        graphed: its calls are captured into a CUDA graph.
    """

    name: str
    about: str
    slow_start = False
    graphed = False

    def step(self, workload: Workload) -> Step:
        raise Unsupported("it has no step apart from a controller")

    def model(self, workload: Workload) -> nn.Module:
        """``model(x [T, B, I]) -> [T, B, O]``."""
        raise Unsupported("it has no model")

    def cell(self, workload: Workload) -> Callable[[Tensor], object]:
        """One step of the model on ``x [B, I]``, always from the same state."""
        raise Unsupported("it has no cell")

    def loss(self, output: Tensor, batch: tasks.Batch) -> Tensor:
        """Mean binary cross-entropy of the answer bits from the model's output."""
        return tasks.loss(output, batch)


class BackendContender(Contender):
    """``ntm_kernels`` as a user has it, on one of its backends."""

    def __init__(self, backend: str, about: str, graphed: bool = False) -> None:
        self.backend, self.graphed = backend, graphed
        self.name = backend + ("+graph" if graphed else "")
        self.about = about + (", whole calls in a CUDA graph" if graphed else "")

    def step(self, workload: Workload) -> Step:
        return partial(functional.step, **heads(workload), backend=self.backend)

    def model(self, workload: Workload) -> nn.Module:
        return LogitsOnly(build_ntm(workload, self.backend))

    def cell(self, workload: Workload) -> Callable[[Tensor], object]:
        cell = build_ntm(workload, self.backend).cell
        state = moved_on(cell, workload)
        return lambda x: cell(x, state)


class BySteps(BackendContender):
    """The same, its model calling the controller, the interface and one op once a step."""

    def __init__(self, backend: str) -> None:
        super().__init__(backend, "the model with fused=False")
        self.name = f"{backend}, by steps"

    def model(self, workload: Workload) -> nn.Module:
        return LogitsOnly(build_ntm(workload, self.backend, fused=False))


class OpAlone(BackendContender):
    """The op ``sequence`` alone: the read vectors of all steps, without an output layer."""

    def __init__(self, backend: str) -> None:
        super().__init__(backend, "the op without the output layer")
        self.name = f"{backend}, op alone"

    def model(self, workload: Workload) -> nn.Module:
        return ReadVectorsOnly(build_ntm(workload, self.backend).cell)


class UnderAutocast(BackendContender):
    """The same model, its forward under autocast in bfloat16."""

    def __init__(self, backend: str) -> None:
        super().__init__(backend, "the model under autocast in bfloat16")
        self.name = f"{backend}, bfloat16"

    def model(self, workload: Workload) -> nn.Module:
        return Autocast(super().model(workload), workload.device)


class CheckedAnew(BackendContender):
    """A backend whose every call is checked as if there had been none like it."""

    def __init__(self, backend: str) -> None:
        super().__init__(backend, "arguments checked at every call")
        self.name = f"{backend}, checked anew"

    def step(self, workload: Workload) -> Step:
        step = super().step(workload)

        def anew(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            known_calls.clear()
            return step(*tensors)

        return anew


class Eager(Contender):
    """The equations of ``ntm_kernels.reference`` under plain autograd."""

    name = "eager"
    about = "ntm_kernels.reference under plain autograd"
    compiled = False

    def step(self, workload: Workload) -> Step:
        function = partial(reference.step, **heads(workload))
        return _compiled(function) if self.compiled else function

    def model(self, workload: Workload) -> nn.Module:
        return EagerNTM(workload, self.compiled)

    def cell(self, workload: Workload) -> Callable[[Tensor], object]:
        model = EagerNTM(workload, self.compiled)
        state = moved_on(model.ntm.cell, workload)
        return lambda x: model.advance(model.project(x), state)


class GraphedEager(Eager):
    """The same code, whole calls of it in a CUDA graph."""

    name = "eager+graph"
    about = "the code of eager, whole calls in a CUDA graph"
    graphed = True


class Compiled(Eager):
    """The same code under ``torch.compile``, one time step at a time."""

    name = "compiled"
    about = "the code of eager, its time step under torch.compile"
    compiled = True
    slow_start = True


class LSTM(Contender):
    """``nn.LSTM`` of the same width with a linear output: no memory at all."""

    name = "lstm"
    about = "nn.LSTM of the same hidden size with a linear output, without any memory"

    def model(self, workload: Workload) -> nn.Module:
        if workload.controller != "lstm":
            raise Unsupported("it is compared with the built-in controller")
        return PlainLSTM(workload).to(workload.device)

    def cell(self, workload: Workload) -> Callable[[Tensor], object]:
        model = PlainLSTM(workload).to(workload.device)
        return lambda x: model(x.unsqueeze(0))


class LogitsOnly(nn.Module):
    """A model that returns ``(output, state)``, without the state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x)[0]
        return output


class Autocast(nn.Module):
    """A model under autocast in bfloat16, its output in float32."""

    def __init__(self, model: nn.Module, device: str) -> None:
        super().__init__()
        self.inner, self.device_type = model, torch.device(device).type

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device_type, torch.bfloat16):
            output: Tensor = self.inner(x)
        return output.float()


class ReadVectorsOnly(nn.Module):
    """The read vectors of a cell over a whole sequence."""

    def __init__(self, cell: NTMCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        read_vectors: Tensor = self.cell.unroll(x).read_vectors
        return read_vectors


class PlainLSTM(nn.Module):
    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.lstm = nn.LSTM(workload.input_size, workload.hidden_size, workload.num_layers)
        self.output = nn.Linear(workload.hidden_size, workload.output_size)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.output(self.lstm(x)[0])
        return output


class EagerNTM(nn.Module):
    """``NTM``, its ops replaced by the functions of ``ntm_kernels.reference`` step by step."""

    def __init__(self, workload: Workload, compiled: bool = False) -> None:
        super().__init__()
        if workload.num_layers > 1:
            raise Unsupported("its controller has one layer")
        self.ntm = build_ntm(workload)
        self.heads = heads(workload)
        self.built_in = workload.controller == "lstm"
        self.advance = _compiled(self._advance) if compiled else self._advance

    def forward(self, x: Tensor) -> Tensor:
        state = self.ntm.cell.initial_state(x.shape[1])
        features = []
        for now in self.project(x).unbind(0):
            seen, state = self.advance(now, state)
            features.append(seen)
        assert self.ntm.output is not None
        output: Tensor = self.ntm.output(torch.stack(features))
        return output

    def project(self, x: Tensor) -> Tensor:
        """The part of the built-in controller that does not recur, of all steps at once."""
        projected: Tensor = self.ntm.cell.controller.layers[0].project(x) if self.built_in else x  # type: ignore[union-attr, index]
        return projected

    def _advance(self, x: Tensor, state: NTMState) -> tuple[Tensor, NTMState]:
        """One time step: features ``[h, r]`` and the new state."""
        cell = self.ntm.cell
        controller: Any
        if self.built_in:
            weight = cell.controller.layers[0].recurrent_weight  # type: ignore[union-attr, index]
            before, before_cell = state.controller
            recurrent = torch.cat((state.read_vectors.flatten(1), before), -1)
            controller = reference.lstm(x, weight, recurrent, before_cell)
            hidden = controller[0]
        else:
            seen = torch.cat((x, state.read_vectors.flatten(1)), -1)
            hidden, controller = cell.controller(seen, state.controller)
        interface = cell.interface(hidden)
        reads, memory, weightings = reference.step(
            state.memory, interface, state.weightings, **self.heads
        )
        return cell.features(hidden, reads), NTMState(memory, weightings, reads, controller)


def heads(workload: Workload) -> dict[str, Any]:
    """The head counts, as the ops take them."""
    return {
        "num_read_heads": workload.num_read_heads,
        "num_write_heads": workload.num_write_heads,
        "shift_range": workload.shift_range,
    }


def build_ntm(workload: Workload, backend: str | None = None, fused: bool = True) -> NTM:
    """The module with its default initial state and output from ``[h, r]``."""
    w = workload
    controller: str | nn.Module = w.controller
    if w.controller == "own":
        controller = nn.LSTMCell(w.input_size + w.num_read_heads * w.word_size, w.hidden_size)
    model = NTM(
        w.input_size,
        w.output_size,
        w.hidden_size,
        memory_size=w.memory_size,
        word_size=w.word_size,
        **heads(w),
        controller=controller,
        num_layers=w.num_layers,
        backend=backend,
        fused=fused,
    )
    return model.to(w.device)


def moved_on(cell: NTMCell, workload: Workload) -> NTMState:
    """A state as it is after a step, detached."""
    x = torch.rand(workload.batch, workload.input_size, device=workload.device)
    with torch.no_grad():
        state: NTMState = cell(x)[1]
    return state


def live(device: str) -> list[Contender]:
    """Every contender that this machine has by itself."""
    found: list[Contender] = []
    on_cuda = torch.device(device).type == "cuda"
    for status in ntm_kernels.available_backends():
        if not status.available:
            continue
        about = f"ntm_kernels, backend {status.name}: {status.reason}"
        found.append(BackendContender(status.name, about))
        if on_cuda:
            found.append(BackendContender(status.name, about, graphed=True))
    graphed = [GraphedEager()] if on_cuda else []
    return [*found, Eager(), *graphed, Compiled(), LSTM()]


def automatic(device: str) -> str:
    """The backend that serves a call when none is named."""
    memory = torch.zeros(1, 1, 1, device=device)
    return functional.explain("read", memory, memory).backend


def _compiled(function: Any) -> Any:
    # Forget earlier sizes: the number of recompilations is limited.
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)
