"""Which stage of a curriculum a run trains on, and when it goes on to the next."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ntm_kernels.tasks import Task
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.evaluation import fixed_set

__all__ = ["Curriculum"]

# The weight of the newest update in the running cost.
_NEWEST = 0.02
# Updates of a stage between two looks at its cost: each makes the CPU wait for a GPU.
_LOOK_EVERY = 10
# Sequences from which the cost of the best possible predictor of a stage is estimated.
_ESTIMATED_FROM = 256


class Curriculum:
    """The stages of a run, from the easiest to the task itself, and how far the run has come.

    The running cost of a stage is an exponential mean of the cost of its updates, in bits for each
    answer bit, and begins at that of a coin. Where it is less than ``promote_below`` above that of
    the best possible predictor, the next stage begins. Without ``config.curriculum`` the task is
    the only stage.

    Attributes:
        stages: the tasks of the stages.
        stage: the index of the running one.
        last_from: sequences trained on when the last stage began, or None before that.

    >>> from ntm_kernels.training.presets import preset
    >>> config = preset("repeat_copy", curriculum=True)
    >>> [stage.max_length for stage in Curriculum(config).stages]
    [3, 4, 5, 6, 7, 8, 9, 10]
    """

    def __init__(self, config: TrainConfig) -> None:
        self.stages: tuple[Task, ...] = config.stages
        self.stage = 0
        self.last_from: int | None = 0 if len(self.stages) == 1 else None
        self._config = config
        self._updates = 0
        self._optimum: float | None = None  # of the running stage, once it was needed
        self._cost = torch.ones((), dtype=torch.float64, device=config.device)

    @property
    def is_last(self) -> bool:
        """Whether the run trains on the task itself."""
        return self.last_from is not None

    def draw(self, generator: torch.Generator) -> int:
        """The stage of the next update: the running one, or now and then an earlier one."""
        mix = self._config.mix_earlier
        if self.stage == 0 or not mix:
            return self.stage
        if float(torch.rand((), generator=generator)) >= mix:
            return self.stage
        return int(torch.randint(self.stage, (), generator=generator))

    def note(self, drawn: int, loss: Tensor, sequences: int) -> bool:
        """Takes the loss of an update, and begins the next stage when this one is learnt.

        Args:
            drawn: the stage that the update was of.
            loss: its loss, in nats for each answer bit.
            sequences: sequences trained on, this update's included.

        Returns:
            Whether the next stage has begun.
        """
        if self.is_last or drawn != self.stage:
            return False
        self._cost += _NEWEST * (loss.detach().double() / math.log(2) - self._cost)
        self._updates += 1
        if self._updates % _LOOK_EVERY:
            return False
        if self._optimum is None:
            self._optimum = _best_possible(self.stages[drawn], self._config)
        if not float(self._cost) - self._optimum < self._config.promote_below:
            return False
        self.stage += 1
        self._updates, self._optimum = 0, None
        self._cost.fill_(1)
        if self.stage == len(self.stages) - 1:
            self.last_from = sequences
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "stage": self.stage,
            "last_from": self.last_from,
            "updates": self._updates,
            "cost": float(self._cost),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where :meth:`state_dict` was taken."""
        self.stage, self.last_from = state["stage"], state["last_from"]
        self._updates, self._optimum = state["updates"], None
        self._cost.fill_(state["cost"])


def _best_possible(stage: Task, config: TrainConfig) -> float:
    """Cost of the best possible predictor in bits for each answer bit: 0 where it is sure."""
    batches = fixed_set(stage, _ESTIMATED_FROM, config, "optimum of a stage")
    bits = sum(float(stage.optimal_bits(batch).sum()) for batch in batches)
    return bits / (sum(int(batch.mask.sum()) for batch in batches) * stage.output_size)
