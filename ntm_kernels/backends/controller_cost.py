"""Whether a `sequence` runs in one launch or as a loop of steps: by a modelled time.

In one launch each sequence has a block of threads. It computes the controller's products for this
sequence alone, and loads at every step the weights and the memory that it cannot hold. In a loop of
steps a library computes the products for the whole batch, a large memory is spread over the whole
card, and every step has some twenty launches, forward and backward together. The heads issue about
as many instructions either way, so only what differs is compared: products, loads and launches.

The model is no measurement: no GPU has run these kernels. Its figures are those of an H100, from
the data sheet where that has one, and assumptions where it has not. Left out: instructions of the
heads, the time before the first step, and how far loads and products overlap.

``NTM_KERNELS_SEQUENCE=one_launch`` or ``step_loop`` takes the decision away from the model, for
tests and for measurements.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from ntm_kernels.backends.base import BackendError
from ntm_kernels.ops import Sizes

CLOCK = 1.755e9  # cycles a second
MULTIPROCESSORS = 132
SCHEDULERS = 4  # of a multiprocessor, each of which issues a warp instruction a cycle
L2_BYTES_PER_CYCLE = 64  # that a multiprocessor takes
L2_BYTES = 5.5e12  # a second, for all multiprocessors together
# Multiply-adds a second, half of the peak: in float32, and of bfloat16 with sums in float32.
LIBRARY_MULTIPLY_ADDS, LIBRARY_BFLOAT16_MULTIPLY_ADDS = 15e12, 250e12
SHORTEST_PRODUCT = 3e-6  # seconds of a matrix product, however small
# Seconds from a launch to the next: by torch from Python, and inside a CUDA graph.
LAUNCH, GRAPH_LAUNCH = 5e-6, 1.5e-6
# Launches of a step in a loop, forward and backward together, and those of each layer of the
# controller (tests/triton/test_launches.py counts them).
LAUNCHES, LAUNCHES_OF_A_LAYER = 8, 14
# The same with products in bfloat16: operands are rounded and biases added by further launches.
LAUNCHES_IN_BFLOAT16, LAUNCHES_OF_A_LAYER_IN_BFLOAT16 = 12, 17
# How often a step loads or stores a memory that is not on the chip, forward and backward together.
MEMORY_PASSES = 8

VARIABLE = "NTM_KERNELS_SEQUENCE"
ONE_LAUNCH, STEP_LOOP = "one_launch", "step_loop"


class Block(NamedTuple):
    """What the block of a sequence does in a step of one launch.

    Attributes:
        instructions: warp instructions for 32 multiply-adds of the controller's products.
        weight_bytes: weights that it loads from L2, forward and backward together.
        holds_memory: whether the memory stays on the chip from step to step.
    """

    instructions: float
    weight_bytes: float
    holds_memory: bool


class Cost(NamedTuple):
    """Modelled seconds of a step forward and backward, without what both ways have alike."""

    one_launch: float
    step_loop: float


def weights(sizes: Sizes) -> int:
    """Weights of the controller's layers and of the interface that a step multiplies with."""
    first, upper = sizes.recurrent_size, sizes.num_upper_layers * sizes.upper_size
    return sizes.gate_size * (first + upper) + sizes.interface_size * sizes.hidden_size


def cost(
    sizes: Sizes,
    block: Block,
    element_size: int,
    launch: float = LAUNCH,
    in_bfloat16: bool = False,
) -> Cost:
    """The modelled times of a step of both ways; ``element_size`` is that of the arithmetic.

    ``in_bfloat16`` are the products of the loop. One launch has none in bfloat16.
    """
    batch = max(sizes.batch, 1)
    rounds = math.ceil(batch / MULTIPROCESSORS)
    multiply_adds = 2 * weights(sizes)  # of one sequence, forward and backward
    memory_bytes = MEMORY_PASSES * sizes.memory_size * sizes.word_size * element_size
    loaded = block.weight_bytes + (0 if block.holds_memory else memory_bytes)
    in_block = max(
        multiply_adds / 32 * block.instructions / SCHEDULERS / CLOCK,
        loaded / L2_BYTES_PER_CYCLE / CLOCK,
        min(batch, MULTIPROCESSORS) * loaded / L2_BYTES,
    )
    products = 2 * (sizes.num_layers + 1)
    rate = LIBRARY_BFLOAT16_MULTIPLY_ADDS if in_bfloat16 else LIBRARY_MULTIPLY_ADDS
    in_library = max(
        batch * multiply_adds / rate,
        (2 if in_bfloat16 else element_size) * multiply_adds / L2_BYTES,
        products * SHORTEST_PRODUCT,
    )
    heads = batch * memory_bytes / L2_BYTES
    launches = LAUNCHES + LAUNCHES_OF_A_LAYER * sizes.num_layers
    if in_bfloat16:
        launches = LAUNCHES_IN_BFLOAT16 + LAUNCHES_OF_A_LAYER_IN_BFLOAT16 * sizes.num_layers
    return Cost(rounds * in_block, in_library + heads + launches * launch)


def launch_time(device_type: str) -> float:
    """Of a launch now: a CUDA graph that is being recorded will launch faster than torch does."""
    # No stream records before CUDA is initialised, which asking would do.
    if device_type != "cuda" or not torch.cuda.is_initialized():
        return LAUNCH
    return GRAPH_LAUNCH if torch.cuda.is_current_stream_capturing() else LAUNCH


def way(
    sizes: Sizes,
    refusals: Mapping[str, str | None],
    block: Callable[[], Block],
    *,
    element_size: int,
    launch: float,
    in_bfloat16: bool,
) -> str:
    """``ONE_LAUNCH`` or ``STEP_LOOP``, whichever is asked for, or possible, or cheaper.

    Args:
        sizes: of the call.
        refusals: why each way cannot serve it; ``None`` for one that can.
        block: finds what a block does, where the times must be compared.
        element_size: bytes of an element of the arithmetic.
        launch: seconds of a launch.
        in_bfloat16: whether the loop's products are in bfloat16.

    Raises:
        BackendError: the way that the environment variable asks for cannot serve the call, or it
            asks for one that there is not.
    """
    asked = os.environ.get(VARIABLE)
    if asked:
        if asked not in refusals:
            raise BackendError(f"{VARIABLE} must be one of {', '.join(refusals)}, got {asked!r}")
        if refusals[asked] is not None:
            raise BackendError(f"{VARIABLE}={asked}: {refusals[asked]}")
        return asked
    possible = [one for one, why_not in refusals.items() if why_not is None]
    if len(possible) == 1:
        return possible[0]
    times = cost(sizes, block(), element_size, launch, in_bfloat16)
    return STEP_LOOP if times.step_loop < times.one_launch else ONE_LAUNCH
