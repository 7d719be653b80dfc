"""The two ways of a sequence on CUDA as a table of the report: what the model says of each.

Nothing is run: the plans are the library's, the times those of ``backends/controller_cost.py``.
"""

from __future__ import annotations

from ntm_kernels.backends import controller_cost as model
from ntm_kernels.backends.cuda import ways
from ntm_kernels.backends.cuda.run import Runner
from ntm_kernels.ops import Sizes

HIDDEN_SIZES = (100, 256, 512, 1024)
BATCHES = (1, 16, 64, 256)


def section(runner: Runner) -> str:
    """The part of the report about the two ways."""
    return f"""## One launch, or a loop of steps

Modelled microseconds of a step forward and backward together, of an LSTM controller with N = 128,
M = 64 and one head of each kind, on an H100: in one launch / in a loop of steps that torch launches
/ in the same loop inside a CUDA graph. The backend takes the first or the second, and inside a
graph the first or the third, whichever is less. It is a model, not a measurement, of what differs
between the ways: the heads' instructions are left out
([assumptions](../../ntm_kernels/backends/controller_cost.py)).

{table(runner, in_bfloat16=False)}

The same under autocast in bfloat16, also modelled. The matrix products of the loop are then in
bfloat16, and every step has some launches more; one launch stays in float32.

{table(runner, in_bfloat16=True)}
"""


def table(runner: Runner, in_bfloat16: bool) -> str:
    """A row for each width of the controller, a column for each batch."""
    lines = [
        f"| C | {' | '.join(f'B = {batch}' for batch in BATCHES)} |",
        "| ---: |" + " ---: |" * len(BATCHES),
    ]
    for hidden_size in HIDDEN_SIZES:
        given = (sizes(batch, hidden_size) for batch in BATCHES)
        cells = " | ".join(_cell(runner, one, in_bfloat16) for one in given)
        lines.append(f"| {hidden_size} | {cells} |")
    return "\n".join(lines)


def sizes(batch: int, hidden_size: int) -> Sizes:
    """The sizes of a row and a column."""
    return Sizes(
        batch,
        memory_size=128,
        word_size=64,
        num_read_heads=1,
        num_write_heads=1,
        num_taps=3,
        time=41,
        hidden_size=hidden_size,
        is_lstm=True,
    )


def _cell(runner: Runner, given: Sizes, in_bfloat16: bool) -> str:
    block = ways.block_of(runner, given, is_double=False, device=0)
    eager = model.cost(given, block, 4, model.LAUNCH, in_bfloat16)
    in_graph = model.cost(given, block, 4, model.GRAPH_LAUNCH, in_bfloat16)
    seconds = (eager.one_launch, eager.step_loop, in_graph.step_loop)
    return " / ".join(f"{1e6 * one:.0f}" for one in seconds)
