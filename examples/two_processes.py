"""Trains in several processes with DistributedDataParallel, in a loop of one's own.

    torchrun --nproc-per-node 2 examples/two_processes.py

Every process has the whole model and computes its part of each batch. The gradients of the parts
are averaged before the update, so that all processes make the same one. Before it trains, the
program compares the averaged gradients with those of the whole batch in one process.

With the package's own trainer, ``torchrun -m ntm_kernels train`` does all of this
(``docs/several-processes.md``).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ntm_kernels import NTM, tasks
from ntm_kernels.optim import GravesRMSprop
from ntm_kernels.tasks import Batch, Task


def build(task: Task) -> NTM:
    """The same weights in every process."""
    torch.manual_seed(0)
    return NTM(
        task.input_size,
        task.output_size,
        hidden_size=32,
        memory_size=16,
        word_size=12,
        controller="feedforward",
        output_from="read_vectors",
    )


def part_of(batch: Batch) -> Batch:
    """The sequences of this process: every second one of two processes."""
    count = len(batch.lengths)
    return batch.select(torch.arange(dist.get_rank(), count, dist.get_world_size()))


def loss_of_part(model: nn.Module, part: Batch, whole: Batch) -> torch.Tensor:
    """A loss that has, averaged over the processes, the gradients of the whole batch's loss.

    The parts may have different numbers of answer steps. A mean over the steps of each part would
    give a step of the shorter part more weight.
    """
    output, _ = model(part.inputs, lengths=part.lengths)
    return tasks.loss(output, part, int(whole.mask.sum()) / dist.get_world_size())


def difference_to_one_process(model: DistributedDataParallel, whole: Batch) -> float:
    """The largest difference of a gradient to that of the whole batch, relative to the largest."""
    loss_of_part(model, part_of(whole), whole).backward()
    alone = model.module
    averaged = [parameter.grad.clone() for parameter in alone.parameters()]
    model.zero_grad()
    output, _ = alone(whole.inputs, lengths=whole.lengths)
    expected = torch.autograd.grad(tasks.loss(output, whole), list(alone.parameters()))
    largest = max(float(gradient.abs().max()) for gradient in expected)
    pairs = zip(averaged, expected, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs) / largest


def train(model: DistributedDataParallel, task: Task, updates: int, batch_size: int) -> None:
    # Every process draws the whole batch from one seed, and needs no other process for its part.
    generator = torch.Generator().manual_seed(1)
    optimizer = GravesRMSprop(model.parameters(), lr=1e-3)
    for update in range(1, updates + 1):
        whole = task.sample(batch_size, generator)
        loss = loss_of_part(model, part_of(whole), whole)
        optimizer.zero_grad()
        loss.backward()  # averages the gradients over the processes, while it computes them
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        if update % 100 == 0:
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            if dist.get_rank() == 0:
                print(f"update {update}: loss {mean / dist.get_world_size():.4f}")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=16, help="of all processes together")
    options = parser.parse_args(words)
    if not dist.is_torchelastic_launched():
        parser.error("start it with torchrun --nproc-per-node 2 examples/two_processes.py")
    if options.batch_size < int(os.environ["WORLD_SIZE"]):
        parser.error("--batch-size must be at least the number of processes")
    task = tasks.make("copy", width=4, max_length=5, answer_channel=True)
    # gloo exchanges tensors between CPUs. torchrun has set the addresses in the environment.
    dist.init_process_group("gloo")
    try:
        model = DistributedDataParallel(build(task))
        whole = task.sample(options.batch_size, torch.Generator().manual_seed(2))
        difference = difference_to_one_process(model, whole)
        if dist.get_rank() == 0:
            count = dist.get_world_size()
            print(f"{count} processes: gradients as in one process but for {difference:.1e}")
        train(model, task, options.updates, options.batch_size)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
