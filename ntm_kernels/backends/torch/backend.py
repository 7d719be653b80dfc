"""The ``Backend`` interface over the stages: lift to the arithmetic dtype, compute, lower again."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ntm_kernels.backends.base import Backend, SequenceArguments, SequenceOutputs, Sizes
from ntm_kernels.backends.torch.addressing import address, address_backward
from ntm_kernels.backends.torch.interface import activate, activate_backward, activation_slopes
from ntm_kernels.backends.torch.memory import read, read_backward, write, write_backward
from ntm_kernels.backends.torch.sequence import saved_shapes, sequence, sequence_backward
from ntm_kernels.backends.torch.step import step, step_backward
from ntm_kernels.reference import arithmetic_dtype


def _lift(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(arithmetic_dtype(tensor.dtype)) for tensor in tensors]


def _lower(results: Sequence[Tensor], like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Contiguous results in the dtypes of ``like``."""
    return tuple(
        result.to(target.dtype).contiguous() for result, target in zip(results, like, strict=True)
    )


class TorchBackend(Backend):
    """Serves every call on every device."""

    name = "torch"

    def describe(self) -> str:
        return "plain PyTorch, any device"

    def saved_shapes(self, op: str, sizes: Sizes, controller: str = "") -> list[tuple[int, ...]]:
        return saved_shapes(sizes, controller) if op == "sequence" else []

    def address(
        self,
        memory: Tensor,
        key: Tensor,
        strength: Tensor,
        gate: Tensor,
        shift: Tensor,
        sharpening: Tensor,
        previous_weightings: Tensor,
        save_for_backward: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        arguments = _lift(memory, key, strength, gate, shift, sharpening, previous_weightings)
        return address(*arguments).weightings.to(previous_weightings.dtype), []

    def address_backward(
        self,
        grad_weightings: Tensor,
        memory: Tensor,
        key: Tensor,
        strength: Tensor,
        gate: Tensor,
        shift: Tensor,
        sharpening: Tensor,
        previous_weightings: Tensor,
        weightings: Tensor,
        saved: list[Tensor],
    ) -> tuple[Tensor, ...]:
        given = memory, key, strength, gate, shift, sharpening, previous_weightings
        d_weightings, *arguments = _lift(grad_weightings, *given)
        return _lower(address_backward(d_weightings, address(*arguments), *arguments), given)

    def read(self, memory: Tensor, weightings: Tensor) -> Tensor:
        return read(*_lift(memory, weightings)).to(memory.dtype)

    def read_backward(
        self, grad_read_vectors: Tensor, memory: Tensor, weightings: Tensor
    ) -> tuple[Tensor, ...]:
        return _lower(
            read_backward(*_lift(grad_read_vectors, memory, weightings)), (memory, weightings)
        )

    def write(self, memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor) -> Tensor:
        return write(*_lift(memory, weightings, erase, add)).to(memory.dtype)

    def write_backward(
        self, grad_memory: Tensor, memory: Tensor, weightings: Tensor, erase: Tensor, add: Tensor
    ) -> tuple[Tensor, ...]:
        given = memory, weightings, erase, add
        return _lower(write_backward(*_lift(grad_memory, *given)), given)

    def step(
        self,
        memory: Tensor,
        interface: Tensor,
        previous_weightings: Tensor,
        sizes: Sizes,
        save_for_backward: bool,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        lifted_memory, raw, lifted_weightings = _lift(memory, interface, previous_weightings)
        heads = activate(raw, sizes.layout)
        results = step(lifted_memory, heads, lifted_weightings, sizes.num_read_heads)
        read_vectors, written, weightings = _lower(results, (memory, memory, previous_weightings))
        return read_vectors, written, weightings, []

    def step_backward(
        self,
        grad_read_vectors: Tensor | None,
        grad_memory: Tensor | None,
        grad_weightings: Tensor | None,
        memory: Tensor,
        interface: Tensor,
        previous_weightings: Tensor,
        weightings: Tensor,
        saved: list[Tensor],
        sizes: Sizes,
    ) -> tuple[Tensor, ...]:
        given = memory, interface, previous_weightings
        lifted_memory, raw, lifted_weightings = _lift(*given)
        layout = sizes.layout
        heads = activate(raw, layout)
        forward = address(lifted_memory, *heads[:5], lifted_weightings)

        def lifted(grad: Tensor | None, *shape: int) -> Tensor:
            return lifted_memory.new_zeros(shape) if grad is None else grad.to(lifted_memory.dtype)

        d_memory, d_heads, d_previous = step_backward(
            lifted(grad_read_vectors, sizes.batch, sizes.num_read_heads, sizes.word_size),
            lifted(grad_memory, *memory.shape),
            lifted(grad_weightings, *previous_weightings.shape),
            forward,
            lifted_memory,
            heads,
            lifted_weightings,
        )
        slopes = activation_slopes(raw, heads, layout)
        d_interface = activate_backward(d_heads, slopes, heads.shift)
        return _lower((d_memory, d_interface, d_previous), given)

    def sequence(
        self,
        arguments: SequenceArguments,
        sizes: Sizes,
        controller: str,
        save_for_backward: bool,
        return_trace: bool,
    ) -> tuple[SequenceOutputs, list[Tensor]]:
        outputs, saved = sequence(
            _lift_arguments(arguments), sizes, controller, save_for_backward, return_trace
        )
        memory, weightings = arguments.memory, arguments.weightings
        hidden = memory if arguments.hidden is None else arguments.hidden
        cell = memory if arguments.cell is None else arguments.cell
        reads = arguments.read_vectors
        trace_weightings = (
            outputs.trace_weightings.clone() if save_for_backward else outputs.trace_weightings
        )
        kinds = (
            hidden,
            reads,
            memory,
            weightings,
            reads,
            hidden,
            cell,
            weightings,
            outputs.trace_interface,
        )
        lowered = _lower(outputs._replace(trace_weightings=trace_weightings), kinds)
        return SequenceOutputs(*lowered), saved

    def sequence_backward(
        self,
        grads: list[Tensor | None],
        arguments: SequenceArguments,
        hidden: Tensor,
        read_vectors: Tensor,
        saved: list[Tensor],
        sizes: Sizes,
        controller: str,
    ) -> tuple[Tensor, ...]:
        lifted_hidden, lifted_reads = _lift(hidden, read_vectors)
        results = sequence_backward(
            [None if grad is None else _lift(grad)[0] for grad in grads],
            _lift_arguments(arguments),
            lifted_hidden,
            lifted_reads,
            saved,
            sizes,
            controller,
        )
        like = [saved[0] if part is None else part for part in arguments[:9]]
        return _lower(results, like)


def _lift_arguments(arguments: SequenceArguments) -> SequenceArguments:
    lifted = {
        name: _lift(part)[0]
        for name, part in arguments._asdict().items()
        if part is not None and name != "lengths"
    }
    return arguments._replace(**lifted)
