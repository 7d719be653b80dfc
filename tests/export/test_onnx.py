"""Programs of ONNX, run by the real onnxruntime."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ntm_kernels import NTM, NTMCell, export
from ntm_kernels.training import cli
from tests.training.runs import SHORT, TRAINING, as_options

pytestmark = pytest.mark.slow

for package in ("onnx", "onnxscript"):
    pytest.importorskip(package)
runtime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]
SIZES = {"memory_size": 16, "word_size": 6}
CELLS = {
    "lstm": {},
    "feedforward": {"controller": "feedforward"},
    "two layers": {"num_layers": 2, "num_read_heads": 2, "num_write_heads": 2, "shift_range": 2},
    "gru": {"controller": torch.nn.GRUCell(5 + 6, 8)},
}


def session_of(program):
    return runtime.InferenceSession(program.model_proto.SerializeToString())


def arrays(state):
    return {name: part.detach().numpy() for name, part in export.named_state(state).items()}


def assert_close(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other.detach(), rtol=0, atol=1e-5)


def assert_streams(session, model, batch, steps=50):
    """Step by step, with the state handed on, as the model does it."""
    state = model.initial_state(batch)
    parts = arrays(state)
    with torch.no_grad():
        for x in torch.randn(steps, 1, batch, 5):
            output, *new = session.run(None, {"x": x[0].numpy(), **parts})
            wanted, state = model(x if isinstance(model, NTM) else x[0], state)
            wanted = wanted[0] if isinstance(model, NTM) else wanted
            assert_close([output, *new], [wanted, *export.named_state(state).values()])
            parts = dict(zip(parts, new, strict=True))


@pytest.mark.parametrize("kind", CELLS.values(), ids=CELLS)
def test_cell_for_fifty_steps(kind):
    cell = NTMCell(5, 8, **SIZES, **kind).eval()
    session = session_of(export.onnx(cell))
    names = list(arrays(cell.initial_state(1)))
    assert [one.name for one in session.get_inputs()] == ["x", *names]
    assert [one.name for one in session.get_outputs()] == [
        "output",
        *(f"next_{name}" for name in names),
    ]
    for batch in (1, 4):
        assert_streams(session, cell, batch)


def test_cell_by_torch_onnx_alone():
    cell = NTMCell(5, 8, **SIZES).eval()
    x, state = torch.randn(3, 5), cell.initial_state(3).detach()
    program = torch.onnx.export(cell, (x, state), dynamo=True, verbose=False)
    session = session_of(program)
    names = [one.name for one in session.get_inputs()]
    given = dict(zip(names, [x.numpy(), *arrays(state).values()], strict=True))
    features, new = cell(x, state)
    assert_close(session.run(None, given), [features, *export.named_state(new).values()])


def test_model_for_fifty_steps():
    model = NTM(5, 4, 8, **SIZES).eval()
    assert_streams(session_of(export.onnx(model)), model, 3)


def test_model_of_a_fixed_time():
    model = NTM(5, 4, 8, batch_first=True, **SIZES).eval()
    session = session_of(export.onnx(model, time=4))
    for batch in (1, 5):
        x, state = torch.randn(batch, 4, 5), model.initial_state(batch)
        output, new = model(x, state)
        found = session.run(None, {"x": x.numpy(), **arrays(state)})
        assert_close(found, [output, *export.named_state(new).values()])


class WithoutForm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(5 + 6, 8)

    def initial_state(self, batch):
        return torch.zeros(batch, 8)

    def forward(self, x, state):
        return torch.special.bessel_j1(self.layer(x)), state


def test_controller_without_a_form():
    cell = NTMCell(5, 8, **SIZES, controller=WithoutForm()).eval()
    with pytest.raises(export.ExportError, match=r"controller is a WithoutForm.*bessel_j1"):
        export.onnx(cell)


def test_a_run_is_streamed_by_the_example(tmp_path):
    """The files of ``export`` and the example need neither torch nor this package."""
    run = tmp_path / "run"
    settings = {**SHORT["copy"], **TRAINING}
    assert cli.main(["train", "copy", "--run-dir", str(run), *as_options(settings)]) == 0
    assert cli.main(["export", str(run), "--format", "onnx"]) == 0
    example = [sys.executable, ROOT / "examples/streaming.py", run / "export", "--steps", "6"]
    done = subprocess.run(example, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6 + 1


def test_the_example_without_a_model(tmp_path):
    example = [sys.executable, ROOT / "examples/streaming.py", tmp_path, "--steps", "6"]
    done = subprocess.run(example, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "export RUN --format onnx" in done.stderr
    assert done.stderr.startswith("error: there is no ")
