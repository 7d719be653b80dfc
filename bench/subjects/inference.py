"""``inference``: one step of a cell without gradients, as in serving."""

from __future__ import annotations

import torch

from bench.contenders import Contender
from bench.subjects.base import TimedSubject
from bench.timing import Job
from bench.workload import Workload


class Inference(TimedSubject):
    name = "inference"
    about = "one step of NTMCell, controller included, under no_grad"
    passes = ("forward",)

    def job(self, contender: Contender, workload: Workload, measured: str) -> Job:
        cell = contender.cell(workload)
        x = torch.rand(workload.batch, workload.input_size, device=workload.device)

        def step() -> None:
            with torch.no_grad():
                cell(x)

        return Job(step, threads=workload.threads)
