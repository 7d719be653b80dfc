"""``step``: one time step of the heads and the memory, without a controller."""

from __future__ import annotations

import torch

from bench.contenders import Contender
from bench.subjects.base import TimedSubject, differentiable
from bench.timing import Job
from bench.workload import Workload


class Step(TimedSubject):
    name = "step"
    about = "the op: raw interface vector to read vectors, new memory and weightings"
    passes = ("forward", "backward", "both")

    def job(self, contender: Contender, workload: Workload, measured: str) -> Job:
        w, layout = workload, workload.layout
        function = contender.step(w)
        inputs = (
            torch.randn(w.batch, w.memory_size, w.word_size),
            torch.randn(w.batch, layout.size),
            torch.randn(w.batch, layout.num_heads, w.memory_size).softmax(-1),
        )
        memory, interface, weightings = (x.to(w.device).requires_grad_() for x in inputs)
        return differentiable(
            lambda: function(memory, interface, weightings),
            (memory, interface, weightings),
            measured,
            w.threads,
        )
