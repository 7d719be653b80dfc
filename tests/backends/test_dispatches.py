"""The backend ``torch`` is a fair baseline: few dispatches a time step."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ntm_kernels.backends import SequenceArguments, Sizes, get
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
    packed = SequenceArguments(*tensors.values(), lengths=given)
    sizes = Sizes(
        batch=case.batch,
        memory_size=case.memory_size,
        word_size=case.word_size,
        num_read_heads=1,
        num_write_heads=1,
        num_taps=3,
        time=case.time,
        hidden_size=case.hidden_size,
        checkpoint_every=6,
    )
    backend = get("torch")
    with torch.no_grad():
        backend.sequence(packed, sizes, "lstm", True, False)  # fills the caches
        with Count() as forward:
            outputs, saved = backend.sequence(packed, sizes, "lstm", True, False)
        grads = [torch.randn_like(part) for part in outputs[:7]]
        with Count() as backward:
            backend.sequence_backward(
                grads, packed, outputs.hidden, outputs.read_vectors, saved, sizes, "lstm"
            )
    per_step = forward.ops.total() / case.time, backward.ops.total() / case.time
    assert per_step[0] <= 120, forward.ops.most_common()
    assert per_step[1] <= 240, backward.ops.most_common()
