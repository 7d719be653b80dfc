"""Trains a small model for very many updates and looks at every one of them.

    python -m bench.soak [--task copy] [--dtype float32 bfloat16] [--updates N] [--folder DIR]

A million updates in float32, then a hundred thousand under bfloat16 autocast. In each of them the
gradients before clipping, the weights, the outputs and the final state must be finite; the sum of
the losses must be at every row of the run's metrics.csv. Called again it goes on where it was
stopped, and repeats the line of what has finished. The first update that fails is kept in a file,
with its weights and inputs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves

from bench.results import FOLDER
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.presets import preset
from ntm_kernels.training.trainer import Trainer

UPDATES = {"float32": 1_000_000, "bfloat16": 100_000}
FAILURE, LINE = "failure.pt", "soak.txt"
MODEL: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "memory_size": 16, "word_size": 8}
#: Sequences as short as a task allows without being trivial.
TASKS: dict[str, dict[str, Any]] = {
    "copy": {"width": 4, "max_length": 5},
    "repeat_copy": {"width": 3, "max_length": 3, "max_repeats": 3, "normalise_high": 3},
    "associative_recall": {"width": 3, "item_length": 1, "max_items": 4},
    "ngrams": {"length": 20, "context": 2},
    "priority_sort": {"width": 4, "num_items": 5, "num_answers": 3},
}


class SoakError(RuntimeError):
    """An update in which something was not finite."""


class Watch:
    """Checks every update of a model, before the optimiser's step, while it is entered.

    Raises:
        SoakError: out of the optimiser's step, after the update was saved to ``path``.
    """

    def __init__(self, model: nn.Module, path: Path) -> None:
        self.updates = 0
        self._model = model
        self._path = path
        self._inputs: tuple[Tensor, ...] = ()
        self._results: list[Tensor] = []
        self._gradients: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Watch:
        self._hooks = [
            self._model.register_forward_hook(self._keep_results),
            register_optimizer_step_pre_hook(self._check),
            *(p.register_hook(self._keeper(name)) for name, p in self._model.named_parameters()),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep_results(self, model: nn.Module, inputs: tuple[Tensor, ...], results: Any) -> None:
        self._inputs = inputs
        self._results = [part.detach() for part in tree_leaves(results)]

    def _keeper(self, name: str) -> Callable[[Tensor], None]:
        def keep(gradient: Tensor) -> None:
            self._gradients[name] = gradient.clone()  # the trainer clips the original in place

        return keep

    def _check(self, optimiser: Optimizer, *call: Any) -> None:
        seen = [*self._results, *self._gradients.values(), *self._model.parameters()]
        if all_finite(seen):
            self.updates += 1
            self._gradients.clear()
            return
        update = {
            "weights": self._model.state_dict(),
            "inputs": self._inputs,
            "gradients": self._gradients,
        }
        torch.save(update, self._path)
        parts: dict[str, Sequence[Tensor]] = {
            "the outputs or the final state": self._results,
            "a weight": list(self._model.parameters()),
            **{f"the gradient of {name}": [one] for name, one in self._gradients.items()},
        }
        broken = ", ".join(what for what, part in parts.items() if not all_finite(part))
        raise SoakError(f"not finite: {broken}; weights and inputs are in {self._path}")


@torch.no_grad()
def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no element of any tensor is NaN or infinite."""
    largest = torch._foreach_norm([t.float() for t in tensors], float("inf"))
    return bool(torch.stack(largest).isfinite().all())


def settings(task: str, dtype: str, updates: int) -> TrainConfig:
    """A run of so many updates, one short sequence each, at ten times the task's usual rate."""
    return preset(
        task,
        **MODEL,
        **TASKS[task],
        dtype=dtype,
        num_read_heads=1,
        num_write_heads=1,
        batch_size=1,
        total_sequences=updates,
        optimiser="graves_rmsprop",
        lr=1e-3,
        hold=1.0,
        validate_every=max(updates // 10, 1),
        validation_size=64,
        checkpoint_every=10_000,
        log_every=1_000,
    )


def soak(config: TrainConfig, folder: Path) -> str:
    """Trains to the end, going on with what is in the folder.

    Returns:
        One line of what was found.

    Raises:
        SoakError: something was not finite.
        TrainingError: the loss was not.
    """
    trainer = Trainer(config, folder, resume=True)
    with Watch(trainer.model, folder / FAILURE):
        trainer.run()
    counters = trainer.counters
    return (
        f"{config.task.name}, {config.dtype}: {counters.updates:,} updates in "
        f"{counters.seconds:.0f} s, loss, gradients, weights and state all finite; "
        f"{counters.excess_bits:.4f} bits above the optimum at the end"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", choices=TASKS, default="copy")
    parser.add_argument("--dtype", nargs="+", choices=UPDATES, default=list(UPDATES))
    parser.add_argument("--updates", type=int, help="instead of a million and a hundred thousand")
    parser.add_argument("--folder", type=Path, default=FOLDER / "soak")
    options = parser.parse_args(arguments)
    if options.updates is not None and options.updates < 1:
        parser.error("--updates must be at least 1")
    for dtype in options.dtype:
        config = settings(options.task, dtype, options.updates or UPDATES[dtype])
        run = options.folder / f"{options.task}-{dtype}"
        line = soak(config, run)
        print(line)
        (run / LINE).write_text(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
