"""One time step: address, read, write; and its backward."""

from __future__ import annotations

from torch import Tensor

from ntm_kernels.backend.reference.addressing import Addressing, address, address_backward
from ntm_kernels.backend.reference.memory import read, read_backward, write, write_backward
from ntm_kernels.interface import HeadParameters


def step(
    memory: Tensor, heads: HeadParameters, previous_weights: Tensor, num_read_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Read vectors, memory and weights; the parameters are activated."""
    key, strength, gate, taps, sharpening, erase, add = heads
    weights = address(memory, key, strength, gate, taps, sharpening, previous_weights).weights
    num_write_heads = weights.shape[1] - num_read_heads
    read_weights, write_weights = weights.split((num_read_heads, num_write_heads), 1)
    return read(memory, read_weights), write(memory, write_weights, erase, add), weights


def step_backward(
    d_read_vectors: Tensor,
    d_memory: Tensor,
    d_weights: Tensor,
    forward: Addressing,
    memory: Tensor,
    heads: HeadParameters,
    previous_weights: Tensor,
) -> tuple[Tensor, HeadParameters, Tensor]:
    """Gradients of memory, activated head parameters and previous weights."""
    key, strength, gate, taps, sharpening, erase, add = heads
    num_read_heads, num_write_heads = d_read_vectors.shape[1], erase.shape[1]
    read_weights, write_weights = forward.weights.split((num_read_heads, num_write_heads), 1)
    d_written, d_write_weights, d_erase, d_add = write_backward(
        d_memory, memory, write_weights, erase, add
    )
    d_read_memory, d_read_weights = read_backward(d_read_vectors, memory, read_weights)
    d_weights = d_weights.clone()
    into_read, into_write = d_weights.split((num_read_heads, num_write_heads), 1)
    into_read += d_read_weights
    into_write += d_write_weights
    d_addressed, d_key, d_strength, d_gate, d_taps, d_sharpening, d_previous = address_backward(
        d_weights, forward, memory, key, strength, gate, taps, sharpening, previous_weights
    )
    d_heads = HeadParameters(d_key, d_strength, d_gate, d_taps, d_sharpening, d_erase, d_add)
    return d_written.add_(d_read_memory).add_(d_addressed), d_heads, d_previous
