"""Adapters of public implementations, with checkouts that the test makes."""

from dataclasses import replace

import pytest
import torch

from bench import peers
from bench.contenders import Unsupported
from bench.subjects.base import copy_batch
from bench.workload import Workload
from ntm_kernels import tasks

SMALL = Workload(batch=2, time=5, memory_size=6, word_size=3, hidden_size=4)

PYTORCH_NTM = """
import torch

class EncapsulatedNTM(torch.nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.sizes = sizes
        self.linear = torch.nn.Linear(sizes[0], sizes[1])

    def init_sequence(self, batch_size):
        self.steps = 0
        self.batch_size = batch_size

    def forward(self, x):
        assert x.shape == (self.batch_size, self.sizes[0])
        self.steps += 1
        return torch.sigmoid(self.linear(x)), None
"""

MGUPTA = """
import torch

class NTM(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.linear = torch.nn.Linear(options["input_size"], options["output_size"])

    def forward(self, x):
        self.seen = x.shape
        return self.linear(x)
"""


def checkout(path, module, text):
    """A checkout in which ``module`` is importable; undone with the ``clean`` fixture."""
    file = path.joinpath(*module.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True)
    for folder in file.relative_to(path).parents[:-1]:
        (path / folder / "__init__.py").touch()
    file.write_text(text)
    return path


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    import sys

    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name.partition(".")[0] in ("ntm", "src"):
            del sys.modules[name]


@pytest.fixture
def pytorch_ntm(tmp_path):
    return peers.parse(f"pytorch-ntm={checkout(tmp_path, 'ntm.aio', PYTORCH_NTM)}")


@pytest.fixture
def mgupta8143(tmp_path):
    return peers.parse(f"mgupta8143={checkout(tmp_path, 'src.models.ntm.ntm', MGUPTA)}")


def test_pytorch_ntm_is_stepped_through_the_sequence(pytorch_ntm):
    model = pytorch_ntm.model(SMALL)
    batch = copy_batch(SMALL)
    output = model(batch.inputs)
    assert output.shape == batch.targets.shape
    assert model.net.steps == SMALL.time
    # inputs, outputs, controller, its layers, heads, N, M
    assert model.net.sizes == (9, 8, 4, 1, 1, 6, 3)


def test_the_loss_of_probabilities_is_that_of_their_logits(pytorch_ntm):
    batch = copy_batch(SMALL)
    output = pytorch_ntm.model(SMALL)(batch.inputs)
    torch.testing.assert_close(
        pytorch_ntm.loss(output, batch), tasks.loss(torch.logit(output), batch)
    )


def test_pytorch_ntm_has_a_step(pytorch_ntm):
    step = pytorch_ntm.cell(SMALL)
    assert step(torch.rand(2, 9))[0].shape == (2, 8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_read_heads": 2}, "as many"),
        ({"shift_range": 2}, "at most one"),
        ({"controller": "own"}, "LSTM"),
        ({"device": "meta"}, "CPU"),
    ],
)
def test_what_pytorch_ntm_cannot_do_is_left_out(pytorch_ntm, change, reason):
    with pytest.raises(Unsupported, match=reason):
        pytorch_ntm.model(replace(SMALL, **change))


def test_mgupta8143_takes_the_batch_first(mgupta8143):
    model = mgupta8143.model(replace(SMALL, num_read_heads=2))
    batch = copy_batch(SMALL)
    assert model(batch.inputs).shape == batch.targets.shape
    assert model.net.seen == (2, 5, 9)
    assert model.net.options["memory_locations"] == 6
    assert model.net.options["memory_width"] == 3
    assert model.net.options["num_read_heads"] == 2
    with pytest.raises(Unsupported, match="no cell"):
        mgupta8143.cell(SMALL)


@pytest.mark.parametrize("text", ["pytorch-ntm", "other=/tmp", "=x"])
def test_a_peer_needs_a_known_name_and_a_path(text):
    with pytest.raises(ValueError, match="NAME=PATH with NAME one of pytorch-ntm, mgupta8143"):
        peers.parse(text)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no checkout of pytorch-ntm"):
        peers.parse(f"pytorch-ntm={tmp_path}")


def test_a_package_of_the_same_name_is_not_taken_for_the_peer(pytorch_ntm, tmp_path_factory):
    pytorch_ntm.load()
    other = checkout(tmp_path_factory.mktemp("other"), "ntm.aio", PYTORCH_NTM)
    with pytest.raises(Unsupported, match="another package named 'ntm'"):
        peers.parse(f"pytorch-ntm={other}").load()
