"""``train``: a whole training iteration."""

from __future__ import annotations

from torch import nn

from bench.contenders import Contender
from bench.subjects.base import TimedSubject, copy_batch
from bench.timing import Job
from bench.workload import Workload
from ntm_kernels.optim import GravesRMSprop


class Train(TimedSubject):
    name = "train"
    about = "a training iteration: zero_grad, forward, loss, backward, clipping, GravesRMSprop"
    passes = ("iteration",)

    def job(self, contender: Contender, workload: Workload, measured: str) -> Job:
        model = contender.model(workload)
        batch = copy_batch(workload)
        optimiser = GravesRMSprop(model.parameters(), lr=1e-4)

        def iteration() -> None:
            optimiser.zero_grad()
            contender.loss(model(batch.inputs), batch).backward()
            nn.utils.clip_grad_value_(model.parameters(), 10.0)
            optimiser.step()

        return Job(iteration, threads=workload.threads)
