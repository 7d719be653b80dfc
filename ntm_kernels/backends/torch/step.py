"""One time step: address, read, write; and its backward."""

from __future__ import annotations

from torch import Tensor

from ntm_kernels.backends.torch.addressing import Addressing, address, address_backward
from ntm_kernels.backends.torch.memory import read, read_backward, write, write_backward
from ntm_kernels.interface import HeadParameters


def step(
    memory: Tensor, heads: HeadParameters, previous_weightings: Tensor, num_read_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Read vectors, memory and weightings; the parameters are activated."""
    key, strength, gate, shift_weighting, sharpening, erase, add = heads
    weightings = address(
        memory, key, strength, gate, shift_weighting, sharpening, previous_weightings
    ).weightings
    num_write_heads = weightings.shape[1] - num_read_heads
    read_weightings, write_weightings = weightings.split((num_read_heads, num_write_heads), 1)
    return read(memory, read_weightings), write(memory, write_weightings, erase, add), weightings


def step_backward(
    d_read_vectors: Tensor,
    d_memory: Tensor,
    d_weightings: Tensor,
    forward: Addressing,
    memory: Tensor,
    heads: HeadParameters,
    previous_weightings: Tensor,
) -> tuple[Tensor, HeadParameters, Tensor]:
    """Gradients of memory, activated head parameters and previous weightings."""
    key, strength, gate, shift_weighting, sharpening, erase, add = heads
    num_read_heads, num_write_heads = d_read_vectors.shape[1], erase.shape[1]
    read_weightings, write_weightings = forward.weightings.split(
        (num_read_heads, num_write_heads), 1
    )
    d_written, d_write_weightings, d_erase, d_add = write_backward(
        d_memory, memory, write_weightings, erase, add
    )
    d_read_memory, d_read_weightings = read_backward(d_read_vectors, memory, read_weightings)
    d_weightings = d_weightings.clone()
    into_read, into_write = d_weightings.split((num_read_heads, num_write_heads), 1)
    into_read += d_read_weightings
    into_write += d_write_weightings
    d_addressed, d_key, d_strength, d_gate, d_taps, d_sharpening, d_previous = address_backward(
        d_weightings,
        forward,
        memory,
        key,
        strength,
        gate,
        shift_weighting,
        sharpening,
        previous_weightings,
    )
    d_heads = HeadParameters(d_key, d_strength, d_gate, d_taps, d_sharpening, d_erase, d_add)
    return d_written.add_(d_read_memory).add_(d_addressed), d_heads, d_previous
