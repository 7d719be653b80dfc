"""Several processes that train one run together, each on its part of every batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ntm_kernels.tasks import Batch
from ntm_kernels.training.errors import TrainingError

__all__ = ["Processes", "joined", "require_alone"]

# How long a process waits for another one that is alive but does not answer. One that has ended is
# noticed at once.
_PATIENCE = timedelta(minutes=5)

T = TypeVar("T")


class Processes:
    """The processes that train a run together, as ``torch.distributed`` knows them.

    Without ``torch.distributed`` a process is alone, and every method returns what it is given.
    Otherwise all processes must call the methods in the same order: a method waits until the others
    call it too. Numbers and objects travel between the CPUs, so that no GPU has to wait for them.

    Raises:
        ValueError: a launcher has started several processes, which have not :func:`joined`.

    Attributes:
        count: how many processes there are.
        rank: the number of this one, from 0.
        first: whether it is number 0, the one that writes.

    >>> alone = Processes()
    >>> alone.count, alone.first, alone.total([2.0, 3.0])
    (1, True, [2.0, 3.0])
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        if not together and _launched() > 1:
            raise ValueError(
                "WORLD_SIZE in the environment says that this is one of several processes: train "
                "within `with ntm_kernels.training.distributed.joined():`, or unset WORLD_SIZE"
            )
        self.count = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        self.first = self.rank == 0

    def take_gpu(self, device: str) -> None:
        """Lets the device ``"cuda"`` be another GPU in each process of a machine.

        Raises:
            ValueError: ``device`` names one GPU for all of them, or there are not enough.
        """
        if self.count == 1 or not device.startswith("cuda"):
            return
        if device != "cuda":
            raise ValueError(
                "device must be cuda in a run of several processes, each of which takes the GPU "
                f"of number LOCAL_RANK, got {device}; leave the number out"
            )
        number, there = _number("LOCAL_RANK", 0), torch.cuda.device_count()
        if number >= there:
            raise ValueError(
                f"LOCAL_RANK is {number}, and this machine has {there} GPUs, numbered from 0: "
                "start at most one process for each GPU (--nproc-per-node)"
            )
        torch.cuda.set_device(number)

    def require_equal_parts(self, what: str, sequences: int) -> None:
        """Raises ValueError where a batch does not divide into parts of equal size.

        Args:
            what: where the number comes from.
            sequences: the sequences of the batch.
        """
        if sequences % self.count:
            raise ValueError(
                f"{what} must be divisible by the number of processes, {self.count}, got "
                f"{sequences}; give another number, or start another number of processes"
            )

    def require_same(self, what: str, value: Any) -> None:
        """Raises ValueError in every process that has another value than the first."""
        of_first = self.from_first(lambda: value)
        if value != of_first:
            raise ValueError(
                f"{what} must be the same in all processes of a run, got {value!r} in the process "
                f"of rank {self.rank} and {of_first!r} in that of rank 0; give all of them the "
                "same options"
            )

    def part_of(self, batch: Batch) -> Batch:
        """The sequences of a batch that this process trains on, cut to the longest of them."""
        if self.count == 1:
            return batch
        return batch.select(torch.arange(len(batch.lengths)).chunk(self.count)[self.rank])

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every ``count``-th of some items, beginning with number ``rank``."""
        return items[self.rank :: self.count]

    def part_of_total(self, value: float) -> float:
        """A number for each process, which :meth:`total` adds up to ``value``."""
        return value if self.first else 0.0

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all processes: the same bits in every process."""
        if self.count == 1:
            return list(values)
        mine = torch.tensor(values, dtype=torch.float64)
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(parts, mine)
        return torch.stack(parts).sum(dim=0).tolist()

    def mean_of(self, value: Tensor) -> Tensor:
        """The mean of a number on any device: alone, without the wait for a GPU."""
        if self.count == 1:
            return value
        return torch.tensor(self.total([float(value)])[0] / self.count, device=value.device)

    def any(self, here: bool) -> bool:
        """Whether something is true in one of the processes."""
        return self.total([here])[0] > 0

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes; the others get a copy."""
        if self.count == 1:
            return make()
        box: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def wait(self) -> None:
        """Waits until all processes are here."""
        self.total([0.0])

    def averaging_gradients(self, model: nn.Module) -> nn.Module:
        """The model, with weights as in the first process and the mean gradients of all.

        Its parameters are those of ``model``; only calls go through what is returned.
        """
        return model if self.count == 1 else nn.parallel.DistributedDataParallel(model)


@contextmanager
def joined() -> Iterator[Processes]:
    """Enters the processes that torchrun, or another launcher, has started for one run.

    The launcher says in the environment who belongs together: ``WORLD_SIZE``, ``RANK``,
    ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``. Without ``WORLD_SIZE``, or if it is 1, the
    process is alone.

    Raises:
        ValueError: the environment cannot be that of one of several processes.
        TrainingError: within the block too, if another process has ended or does not answer.
    """
    if _launched() == 1:
        yield Processes()
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    with _naming_lost_processes():
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_PATIENCE)
        try:
            yield Processes()
        finally:
            dist.destroy_process_group()


def require_alone(what: str) -> None:
    """Raises ValueError where a launcher has started several processes."""
    count = _launched()
    if count > 1:
        raise ValueError(
            f"{what} runs in one process, and WORLD_SIZE in the environment says that this is one "
            f"of {count}: start it without torchrun"
        )


def _launched() -> int:
    """How many processes a launcher has started for one run."""
    count, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if rank >= count:
        raise ValueError(
            f"RANK is {rank} in the environment, which must be less than WORLD_SIZE, the number of "
            f"processes, {count}: start them with torchrun, or unset RANK for a process of its own"
        )
    return count


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise ValueError(
            f"{name} in the environment must be a number, got {text!r}: start the processes with "
            f"torchrun, or unset {name}"
        )
    return int(text)


@contextmanager
def _naming_lost_processes() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo/" not in str(error):
            raise
        raise TrainingError(
            "another process of this run has ended or does not answer: look for its own message, "
            f"and go on from the last checkpoint with --resume ({str(error).splitlines()[0]})"
        ) from error
