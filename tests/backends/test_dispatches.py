"""The backend ``torch`` is a fair baseline: few dispatches a time step."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ntm_kernels.backends import get
from ntm_kernels.ops import SEQUENCE, SequenceInputs, SequenceOptions, SequenceOutputs
from tests.support.cases import Case, Dtypes, arguments


class Count(TorchDispatchMode):
    """How often each operator is dispatched, views among them."""

    def __init__(self):
        super().__init__()
        self.ops = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lengths", [False, True])
def test_dispatches_of_the_paper_size(lengths):
    case = Case("sequence", 16, 128, 20, time=41, hidden_size=100)
    tensors = arguments(case, Dtypes.all(torch.float32))
    given = torch.full((case.batch,), case.time) if lengths else None
    inputs = SequenceInputs(**{name: tensors.get(name) for name in SequenceInputs._fields})
    inputs = inputs._replace(lengths=given)
    options = SequenceOptions(1, 1, 1, checkpoint_every=6, return_trace=False)
    sizes = SEQUENCE.sizes(inputs, options)
    kernel = get("torch").kernels["sequence"]
    with torch.no_grad():
        kernel.forward(inputs, sizes, True)  # fills the caches
        with Count() as forward:
            outputs, saved = kernel.forward(inputs, sizes, True)
        grads = SequenceOutputs(
            *(None if part is None else torch.randn_like(part) for part in outputs)
        )
        with Count() as backward:
            kernel.backward(grads, inputs, outputs, saved, sizes, frozenset({"x"}))
    per_step = forward.ops.total() / case.time, backward.ops.total() / case.time
    assert per_step[0] <= 100, forward.ops.most_common()
    assert per_step[1] <= 180, backward.ops.most_common()
