"""``sequence``: a model over a whole sequence, without loss and optimiser."""

from __future__ import annotations

from bench.contenders import Contender
from bench.subjects.base import TimedSubject, copy_batch, differentiable
from bench.timing import Job
from bench.workload import Workload


class Sequence(TimedSubject):
    name = "sequence"
    about = "a model over a whole sequence: input projection, recurrence, output layer"
    passes = ("forward", "backward", "both")

    def job(self, contender: Contender, workload: Workload, measured: str) -> Job:
        model = contender.model(workload)
        x = copy_batch(workload).inputs
        parameters = list(model.parameters())
        return differentiable(lambda: [model(x)], parameters, measured, workload.threads)
