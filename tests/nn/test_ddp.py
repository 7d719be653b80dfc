"""DistributedDataParallel on two CPU processes, without find_unused_parameters."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from ntm_kernels import NTM


def make():
    torch.manual_seed(0)
    return NTM(3, 2, 7, memory_size=11, word_size=5, dtype=torch.float64)


def inputs():
    return torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def work(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = DistributedDataParallel(make())
    for _ in range(2):
        model.zero_grad()
        output, _ = model(inputs()[:, 3 * rank : 3 * rank + 3])
        output.square().mean().backward()
    torch.save([p.grad for p in model.parameters()], f"{results}/{rank}.pt")
    dist.barrier()
    # Torn down in order, torch's reducer can wait for gloo's thread and that for the interpreter.
    os._exit(0)


def test_gradients_are_those_of_the_whole_batch(tmp_path):
    mp.spawn(work, (tmp_path / "store", tmp_path), nprocs=2)
    model = make()
    model(inputs())[0].square().mean().backward()
    for rank in range(2):
        for grad, parameter in zip(
            torch.load(tmp_path / f"{rank}.pt"), model.parameters(), strict=True
        ):
            torch.testing.assert_close(grad, parameter.grad)
