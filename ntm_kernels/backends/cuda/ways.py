"""Which plans serve a call, and whether a sequence runs in one launch or as a loop of steps."""

from __future__ import annotations

import torch

from ntm_kernels.backends import controller_cost, step_loop
from ntm_kernels.backends.base import Problem
from ntm_kernels.backends.controller_cost import ONE_LAUNCH, STEP_LOOP, Block
from ntm_kernels.backends.cuda.run import INT32_MAX, Runner
from ntm_kernels.backends.cuda.structs import kernel_sizes
from ntm_kernels.ops import Sizes

# Warp instructions for 32 multiply-adds of the controller, the mean of both directions: the machine
# code for sm_90 issues 8.4 and 5.9 with an LSTM of 256, most of whose weights come from L2.
INSTRUCTIONS = 7.2


def way(runner: Runner, problem: Problem) -> str:
    """``ONE_LAUNCH`` or ``STEP_LOOP``, as a call of ``sequence`` runs now."""
    sizes, device = problem.sizes, problem.device_index
    is_double = problem.dtype == torch.float64

    def block() -> Block:
        return block_of(runner, sizes, is_double, device)

    return controller_cost.way(
        sizes,
        refusals(runner, sizes, is_double, device),
        block,
        element_size=8 if is_double else 4,
        launch=controller_cost.launch_time(runner.device_type),
        in_bfloat16=step_loop.rounds(problem),
    )


def refusals(runner: Runner, sizes: Sizes, is_double: bool, device: int) -> dict[str, str | None]:
    """Why each way cannot serve a sequence; ``None`` for one that can."""
    one_launch = why_unplanned(runner, "sequence", is_double, device, sizes)
    if sizes.has_resets:
        one_launch = "one launch has no resets"
    return {
        ONE_LAUNCH: one_launch,
        STEP_LOOP: why_unplanned(runner, "step", is_double, device, sizes.of_step()),
    }


def why_not(runner: Runner, op: str, is_double: bool, device: int, sizes: Sizes) -> str | None:
    """Why nothing here serves a call on that device; ``None`` if something does."""
    if op != "sequence":
        return why_unplanned(runner, op, is_double, device, sizes)
    found = refusals(runner, sizes, is_double, device)
    return found[ONE_LAUNCH] if all(found.values()) else None


def why_unplanned(
    runner: Runner, op: str, is_double: bool, device: int, sizes: Sizes
) -> str | None:
    """Why no plan of one launch serves a call on that device; ``None`` if one does."""
    if why_not := runner.library.unserved(device):
        return why_not
    told = kernel_sizes(sizes)
    if max(told) > INT32_MAX:
        return f"a size is beyond {INT32_MAX}"
    states = sizes.num_layers * sizes.hidden_size
    rows = {
        "weightings": sizes.num_heads * sizes.memory_size,
        "head parameters": sizes.interface_size,
        "gates' inputs": 4 * (sizes.num_read_heads * sizes.word_size + states),
    }
    for what, elements in rows.items():
        if elements > INT32_MAX:
            return f"the {what} of a sequence have more than {INT32_MAX} elements"
    for direction in ("forward", "backward"):
        plan = runner.plan(op, direction, is_double, told, device)
        if why_not := plan.refusal(told.batch):
            return f"{direction}: {why_not}"
    return None


def block_of(runner: Runner, sizes: Sizes, is_double: bool, device: int) -> Block:
    """What the plans of one launch make a block do."""
    told = kernel_sizes(sizes)
    plans = [
        runner.plan("sequence", direction, is_double, told, device)
        for direction in ("forward", "backward")
    ]
    return Block(
        INSTRUCTIONS,
        weight_bytes=sum(plan.weight_bytes[2] for plan in plans),
        holds_memory=all(plan.tile_rows >= sizes.memory_size for plan in plans),
    )
