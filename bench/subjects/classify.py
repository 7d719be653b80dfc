"""``classify``: a training iteration whose loss is at the last step alone.

The gradient of the first steps then fades towards zero and may become denormal, which makes
arithmetic many times slower on most processors.
"""

from __future__ import annotations

import torch
from torch import nn

from bench.contenders import Contender
from bench.subjects.base import TimedSubject, copy_batch
from bench.timing import Job
from bench.workload import Workload


class Classify(TimedSubject):
    name = "classify"
    about = "forward, loss at the last step, backward; flushed: with torch.set_flush_denormal"
    passes = ("iteration", "flushed")

    def job(self, contender: Contender, workload: Workload, measured: str) -> Job:
        model = contender.model(workload)
        x = copy_batch(workload).inputs
        classes = torch.randint(workload.output_size, (workload.batch,), device=x.device)

        def iteration() -> None:
            model.zero_grad()
            nn.functional.cross_entropy(model(x)[-1], classes).backward()

        def flushed() -> None:
            if not torch.set_flush_denormal(True):
                raise RuntimeError("this processor cannot flush denormal numbers")
            try:
                iteration()
            finally:
                torch.set_flush_denormal(False)

        run = iteration if measured == "iteration" else flushed
        return Job(run, threads=workload.threads)
