"""Trains a task of one's own: a sequence of vectors has to be given back in reverse order.

    python examples/own_task.py
    python -m ntm_kernels train --task examples.own_task:Reversal --run-dir runs/reversal

The second command has all options of the trainer, and the parameters of the task among them, such
as ``--max-length 30``. ``docs/training.md`` explains the parts of a task.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import torch

from ntm_kernels.tasks import Batch, Task, Trial
from ntm_kernels.training.evaluation import evaluate
from ntm_kernels.training.presets import preset
from ntm_kernels.training.trainer import Trainer


@dataclass(frozen=True)
class Reversal(Task):
    """Random bit vectors, a delimiter, then the vectors from the last to the first.

    A sequence of L vectors has 2 L + 1 steps: the vectors, a step with 1 on the delimiter channel
    alone, and L steps with 1 on the answer channel alone, in which the answer is expected.
    """

    name: ClassVar[str] = "reversal"
    input_channels: ClassVar[str] = "bits, delimiter, answer"

    width: Annotated[int, "bits of a vector"] = 6
    min_length: Annotated[int, "fewest vectors of a sequence"] = 1
    max_length: Annotated[int, "most vectors of a sequence"] = 10

    def __post_init__(self) -> None:
        if self.width < 1 or not 1 <= self.min_length <= self.max_length:
            raise ValueError(
                "Reversal: width >= 1 and 1 <= min_length <= max_length are needed, got "
                f"width={self.width}, min_length={self.min_length}, max_length={self.max_length}"
            )

    @property
    def input_size(self) -> int:
        return self.width + 2

    @property
    def output_size(self) -> int:
        return self.width

    def _draw(self, batch_size: int, generator: torch.Generator, same_length: bool) -> Batch:
        shape = (1 if same_length else batch_size,)
        drawn = torch.randint(self.min_length, self.max_length + 1, shape, generator=generator)
        count = drawn.expand(batch_size)
        most = int(count.max())
        step = torch.arange(2 * most + 1).unsqueeze(1)  # [T, 1], beside count [B]
        answering = (step > count) & (step <= 2 * count)

        vectors = torch.randint(2, (most, batch_size, self.width), generator=generator).float()
        inputs = torch.zeros(2 * most + 1, batch_size, self.input_size)
        inputs[:most, :, : self.width] = vectors * (step[:most] < count).unsqueeze(2)
        inputs[:, :, -2] = step == count
        inputs[:, :, -1] = answering

        # Step count + 1 asks for vector count − 1, the next step for the one before it.
        asked = (2 * count - step).clamp(0, most - 1)
        targets = vectors[asked, torch.arange(batch_size)] * answering.unsqueeze(2)
        return Batch(inputs, targets, answering, 2 * count + 1)

    def suite(self) -> dict[str, Task | Trial]:
        """Longer sequences, with as many memory locations as they need."""
        lengths = {
            length: replace(self, min_length=length, max_length=length) for length in (20, 50)
        }
        return {f"length {length}": Trial(task, 64) for length, task in lengths.items()}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, default=Path("runs/own-task"))
    parser.add_argument("--sequences", type=int, default=24_000, help="to train on (24000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    config = preset(
        Reversal,
        seed=options.seed,
        total_sequences=options.sequences,
        memory_size=32,
        output_from="read_vectors",
        batch_size=4,
        lr=1e-3,
        clip="off",
        clip_norm=2.0,
    )
    # The model and the metrics go into the folder of the run. A run that was stopped goes on.
    trainer = Trainer(config, options.run_dir, resume=True)
    trainer.run()
    for title, score in evaluate(trainer.model, config).items():
        print(f"{title}: {score}")


if __name__ == "__main__":
    main()
