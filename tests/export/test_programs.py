"""Programs of ``torch.export``: saved, loaded, run at other sizes and in other processes."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.export import Dim

import ntm_kernels
from ntm_kernels import NTM, NTMCell, export
from ntm_kernels import functional as F
from ntm_kernels.torch_private import tree_leaves

ROOT = Path(__file__).parents[2]
SIZES = {"memory_size": 16, "word_size": 6}
KINDS = {
    "lstm": {},
    "feedforward": {"controller": "feedforward"},
    "two layers": {"num_layers": 2, "num_read_heads": 2},
    "batch first": {"batch_first": True},
    "float64": {"dtype": torch.float64},
}
BATCH, TIME = Dim("batch", min=1), Dim("time", min=1)


class Own(torch.nn.Module):
    """A controller of the user's, whose first state may be unsuitable."""

    def __init__(self, first=None):
        super().__init__()
        self.layer, self.first = torch.nn.Linear(5 + 6, 8), first

    def initial_state(self, batch):
        return torch.zeros(batch, 8) if self.first is None else self.first

    def forward(self, x, state):
        return torch.tanh(self.layer(x)), state


class WithoutStart(torch.nn.Module):
    def forward(self, x, state):
        return x[:, :8], x[:, :8]


def ntm(**kind):
    return NTM(5, 4, 8, **SIZES, **kind)


def reloaded(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def inputs(model, time, batch):
    dtype = next(model.parameters()).dtype
    shape = (batch, time, 5) if getattr(model, "batch_first", False) else (time, batch, 5)
    return torch.randn(shape, dtype=dtype), model.initial_state(batch)


def assert_same(found, wanted):
    for one, other in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def calls(program):
    """The calls of the op ``sequence``, as text."""
    lines = program.graph_module.code.splitlines()
    return [line.split(";")[0] for line in lines if "ntm.sequence" in line]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_other_sizes(kind):
    """Results and gradients are those of the model, to the bit."""
    model = ntm(**kind)
    run = reloaded(export.program(model)).module()
    for time, batch in ((9, 4), (1, 1), (2, 3)):
        x, state = inputs(model, time, batch)
        wanted, found = model(x, state), run(x, state)
        assert type(found[1]) is type(wanted[1])
        assert_same(found, wanted)
    for module in (model, run):
        module.zero_grad()
        module(x, state)[0].square().sum().backward(retain_graph=True)
    gradients = {name: part.grad for name, part in run.named_parameters()}
    assert_same(gradients["cell.interface.weight"], model.cell.interface.weight.grad)
    assert model.cell.interface.weight.grad.abs().max() > 0


def test_cell():
    cell = NTMCell(5, 8, **SIZES)
    run = reloaded(export.program(cell)).module()
    x, state = torch.randn(7, 5), cell.initial_state(7)
    assert_same(run(x, state), cell(x, state))


def test_lengths_resets_and_trace():
    model, x = ntm(), torch.randn(6, 3, 5)
    lengths, resets = torch.tensor([6, 0, 2]), torch.rand(6, 3) > 0.7
    of_steps = {0: TIME, 1: BATCH}
    program = torch.export.export(
        model,
        (x, None, lengths, True, resets),
        dynamic_shapes=(of_steps, None, {0: BATCH}, None, of_steps),
    )
    run = reloaded(program).module()
    x, lengths, resets = torch.randn(9, 2, 5), torch.tensor([3, 9]), torch.rand(9, 2) > 0.7
    assert_same(run(x, None, lengths, True, resets), model(x, None, lengths, True, resets))


def test_functions():
    class Steps(torch.nn.Module):
        def forward(self, memory, interface, weightings):
            return F.step(
                *(memory, interface, weightings),
                num_read_heads=1,
                num_write_heads=1,
                shift_range=1,
            )

    layout = ntm_kernels.InterfaceLayout(6, 1, 1, 1)

    def given(batch):
        return (
            torch.randn(batch, 16, 6),
            torch.randn(batch, layout.size),
            torch.rand(batch, 2, 16),
        )

    shapes = ({0: BATCH},) * 3
    program = reloaded(torch.export.export(Steps(), given(3), dynamic_shapes=shapes))
    arguments = given(5)
    assert_same(program.module()(*arguments), Steps()(*arguments))


@pytest.mark.parametrize("backend", [None, "torch"])
def test_the_backend_is_left_open(backend, monkeypatch):
    """Neither ``use_backend`` nor the environment reaches the program, only the model's own."""
    monkeypatch.setenv("NTM_KERNELS_BACKEND", "torch")
    with ntm_kernels.use_backend("torch"):
        program = export.program(ntm(backend=backend))
    (call,) = calls(program)
    assert call.endswith(f"None, {backend!r})")
    assert "'cpu'" not in call


def test_the_backend_of_the_running_process():
    model = ntm()
    run, (x, state) = export.program(model).module(), inputs(model, 4, 2)
    wanted = model(x, state)
    with ntm_kernels.use_backend("torch"):
        found = run(x, state)
        assert_same(found, model(x, state))
    torch.testing.assert_close(found, wanted)


def test_compiled_afterwards():
    """Gradients too: the backend is chosen when torch.compile traces the program."""
    model = ntm()
    run, (x, state) = export.program(model).module(), inputs(model, 5, 2)
    model(x, state)[0].sum().backward()
    torch.compile(run, backend="aot_eager")(x, state)[0].sum().backward()
    for name, part in run.named_parameters():
        torch.testing.assert_close(part.grad, model.get_parameter(name).grad)


def test_no_step():
    model = ntm()
    open_time = Dim("time", min=0)
    program = torch.export.export(
        model, inputs(model, 3, 2)[:1], dynamic_shapes=({0: open_time, 1: BATCH},)
    )
    run = program.module()
    assert all(parameter.requires_grad for parameter in run.parameters())
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled), pytest.raises(ValueError, match="at least one step"):
            run(torch.randn(0, 2, 5))


def test_own_controller_has_one_time():
    model = ntm(controller=Own())
    with pytest.raises(ValueError, match=r"calls its controller at every step .* one number"):
        export.program(model)
    run = reloaded(export.program(model, time=4)).module()
    x, state = inputs(model, 4, 6)
    assert_same(run(x, state), model(x, state))


def test_lists_of_lengths_are_refused():
    with pytest.raises(TypeError, match=r"lengths must be a tensor \[B\] of integers, got list"):
        torch.export.export(ntm(), (torch.randn(3, 2, 5), None, [3, 1]))


@pytest.mark.parametrize("form", [export.program, export.onnx])
@pytest.mark.parametrize(
    ("make", "time", "error", "message"),
    [
        (lambda: torch.nn.LSTM(3, 4), None, TypeError, "must be an NTM or an NTMCell, got LSTM"),
        (ntm, 0, ValueError, "time must be at least 1, got 0"),
        (ntm, 2.0, TypeError, "time must be an int, got float"),
        (lambda: NTMCell(5, 8), 3, export.ExportError, "time is for an NTM, got an NTMCell"),
        (
            lambda: ntm(controller=WithoutStart()),
            2,
            export.ExportError,
            "the controller has no initial state",
        ),
        (
            lambda: ntm(controller=Own((0.5,))),
            2,
            export.ExportError,
            "must be tensors with the batch first, got .'float',. for a batch of 2",
        ),
        (
            lambda: ntm(controller=Own(torch.zeros(1, 2, 8))),
            2,
            export.ExportError,
            r"must be tensors with the batch first, got \[1, 2, 8\]",
        ),
    ],
)
def test_refused(form, make, time, error, message):
    with pytest.raises(error, match=f"^export.{form.__name__}: .*{message}"):
        form(make(), time=time)


RUN = """
import sys, torch, ntm_kernels
run = {load}
x, state, wanted = torch.load(sys.argv[2], weights_only=True)
output, state = run(x, state)
print(type(state).__name__, float((output - wanted).abs().max()))
print([status.name for status in ntm_kernels.available_backends() if status.available])
"""
LOAD = "torch.export.load(sys.argv[1]).module()"


def run_elsewhere(tmp_path, model, program, load=LOAD, root=ROOT):
    """Run a saved program in another process; the lines that it prints."""
    x, state = torch.randn(11, 3, model.cell.input_size), model.initial_state(3).detach()
    torch.save((x, state, model(x, state)[0].detach()), tmp_path / "given.pt")
    script = tmp_path / "run.py"
    script.write_text(RUN.format(load=load))
    words = [sys.executable, "-W", "ignore", script, program, tmp_path / "given.pt"]
    found = subprocess.run(
        words, env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


@pytest.mark.slow
def test_process_without_the_cpu_library(tmp_path):
    """A program that was made where there is one."""
    model, path = ntm(), tmp_path / "model.pt2"
    torch.export.save(export.program(model), path)
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(
        ROOT / "ntm_kernels", tmp_path / "elsewhere/ntm_kernels", ignore=lambda *_: ["_cpu.so"]
    )
    kind, error = run_elsewhere(tmp_path, model, path)[0].split()
    assert (kind, float(error)) == ("NTMState", 0.0)
    first, backends = run_elsewhere(tmp_path, model, path, root=tmp_path / "elsewhere")
    assert float(first.split()[1]) < 1e-5
    assert "cpu" not in backends
    assert "torch" in backends
