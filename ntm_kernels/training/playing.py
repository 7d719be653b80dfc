"""One sequence, a model's answer to it, and whether it is right, as text of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ntm_kernels.tasks import bits, wrong_bits
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.evaluation import fresh_generator, verdict, verdict_beside_optimum
from ntm_kernels.training.models import (
    answer_in_pieces,
    compute_dtype,
    memory_size_of,
    threads_of,
)
from ntm_kernels.training.sizes import naming_sizes

__all__ = ["play"]

# Steps in a line, and how many lines of steps are printed of a long sequence.
_WIDTH, _MOST_LINES = 70, 6
_NO, _YES, _WRONG = ".", "#", "!"


@torch.no_grad()
def play(model: nn.Module, config: TrainConfig, seed: int) -> str:
    """A text that shows a sequence of a task, the right answer and the model's.

    Args:
        model: the trained model.
        config: its configuration, with the task that the sequence is of.
        seed: the sequence is another for every seed.

    Raises:
        TrainingError: there is not enough memory for the sequence.
    """
    task, locations = config.task, memory_size_of(model)
    with naming_sizes(config), threads_of(config):
        batch = task.sample(1, fresh_generator(seed, "play"))
        batch = batch.to(config.device, compute_dtype(config))
        logits = answer_in_pieces(model, batch.inputs, config)
    memory = "" if locations is None else f", {locations:,} memory locations"
    answering = batch.mask[:, 0]
    lines = [
        f"{task.name}: {len(answering):,} steps, {int(answering.sum()):,} of them answer steps"
        f"{memory}, seed {seed}",
        f"{_NO} is 0, {_YES} is 1, {_WRONG} is a wrong bit",
        "",
        *_inputs(batch.inputs[:, 0]),
    ]
    optimal, target = task.optimal_answer(batch), batch.targets[answering, 0] > 0.5
    if optimal is not None:
        said = verdict_beside_optimum(bits(logits, batch).item(), task.optimal_bits(batch).item())
        answers = {"output": logits.sigmoid(), "optimum": optimal}
        rows = {name: _scaled(one[answering, 0], 0, 1) for name, one in answers.items()}
        explained = ["  a digit is the probability of a 1 in tenths, rounded down"]
    else:
        wrong = wrong_bits(logits, batch)[answering, 0]
        said = f"{'wrong' if wrong.any() else 'right'}: {verdict(int(wrong.sum()), wrong.numel())}"
        rows = {"output": _bits(target, wrong)}
        explained = []
    lines += _in_lines({"target": _bits(target), **rows}, "answer step", len(target))
    given = _steps_given(batch.inputs[:, 0])
    if locations is not None and given > locations:
        enough = 2 ** math.ceil(math.log2(given))
        explained.append(f"  more input than memory locations: try --memory-size {enough}")
    return "\n".join([*lines, *explained, "", said])


def _steps_given(values: Tensor) -> int:
    """Up to which step the inputs ``[T, I]`` change."""
    changes = (values[1:] != values[:-1]).any(dim=1).nonzero()
    return int(changes.max()) + 2 if len(changes) else 1


def _inputs(values: Tensor) -> list[str]:
    """The inputs ``[T, I]`` in lines, up to where they no longer change."""
    shown = _steps_given(values)
    rows, explained = [], []
    for number, channel in enumerate(values.unbind(1)):
        if ((channel == 0) | (channel == 1)).all():
            rows += _bits(channel.unsqueeze(1) > 0.5)
            continue
        low, high = channel.min().item() + 0.0, channel.max().item() + 0.0  # No -0 is printed.
        [row] = _scaled(channel.unsqueeze(1), low, high)
        empty = (channel == 0).tolist()
        rows.append("".join(_NO if no else one for no, one in zip(empty, row, strict=True)))
        explained.append(f"  channel {number}: digits from 0 for {low:.3g} to 9 for {high:.3g}")
    lines = _in_lines({"input": rows}, "step", shown) + explained
    if shown < len(values):
        lines.append(f"  from there to step {len(values) - 1:,} as in step {shown - 1:,}")
    return [*lines, ""]


def _bits(values: Tensor, wrong: Tensor | None = None) -> list[str]:
    """A row of characters for each channel ``[T, channels]``, with a mark where it is wrong."""
    rows = values.T.tolist()
    marks = torch.zeros_like(values) if wrong is None else wrong
    return [
        "".join(_WRONG if bad else _YES if one else _NO for one, bad in zip(row, bads, strict=True))
        for row, bads in zip(rows, marks.T.tolist(), strict=True)
    ]


def _scaled(values: Tensor, low: float, high: float) -> list[str]:
    """A row of digits for each channel ``[T, channels]``, from 0 for ``low`` to 9 for ``high``."""
    tenths = ((values - low) / ((high - low) or 1.0) * 10).clamp(0, 9)
    return ["".join(map(_digit, row)) for row in tenths.T.tolist()]


def _digit(tenths: float) -> str:
    return "?" if math.isnan(tenths) else str(int(tenths))


def _in_lines(rows: Mapping[str, Sequence[str]], unit: str, steps: int) -> list[str]:
    """Rows by what they are, cut into lines of so many steps; of a long sequence the first ones."""
    lines = []
    shown = min(steps, _WIDTH * _MOST_LINES)
    for first in range(0, shown, _WIDTH):
        last = min(first + _WIDTH, shown)
        for name, channels in rows.items():
            lines.append(f"{name}, {unit}s {first:,} to {last - 1:,}")
            lines += [f"{number:>4} {row[first:last]}" for number, row in enumerate(channels)]
    if shown < steps:
        lines.append(f"  {unit}s {shown:,} to {steps - 1:,} are not printed")
    return lines
