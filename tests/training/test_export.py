"""``export``: the files of a run's model, and what is refused."""

import shutil

import pytest
import torch

from ntm_kernels.training import cli, runs
from ntm_kernels.training.checkpoint import load_run
from ntm_kernels.training.models import build_model
from ntm_kernels.training.trainer import saved_config
from tests.training.runs import BASELINE, SHORT, TRAINING, as_options

LSTM = {name: value for name, value in TRAINING.items() if name in BASELINE}


def train(folder, settings, *more):
    words = ["train", "copy", "--run-dir", str(folder), *as_options({**SHORT["copy"], **settings})]
    assert cli.main([*words, *more]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "find_spec", lambda name: None)
        return train(tmp_path_factory.mktemp("export") / "run", TRAINING)


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def model_of(run):
    path, contents = load_run(run)
    model = build_model(saved_config(path, contents["config"]))
    model.load_state_dict(contents["model"])
    return model


def test_torch(run, capsys):
    capsys.readouterr()
    assert cli.main(["export", str(run), "--format", "torch"]) == 0
    files = [run / "export/initial_state.pt", run / "export/model.pt2"]
    assert capsys.readouterr().out.splitlines() == [f"wrote {file}" for file in files]
    assert sorted((run / "export").iterdir()) == files
    state = torch.load(files[0], weights_only=True)
    program = torch.export.load(files[1]).module()
    model, x = model_of(run), torch.randn(7, 5, 4)
    output, final = program(x, state.repeat_interleave(5))
    wanted, wanted_final = model(x)
    assert torch.equal(output, wanted)
    assert torch.equal(final.memory, wanted_final.memory)


def test_another_memory_and_folder(run, tmp_path):
    words = ["--format", "torch", "--memory-size", "9", "--out", str(tmp_path / "deep/out")]
    assert cli.main(["export", str(run), *words]) == 0
    assert not (run / "export").exists()
    state = torch.load(tmp_path / "deep/out/initial_state.pt", weights_only=True)
    model, x = model_of(run), torch.randn(3, 1, 4)
    model.memory_size = 9
    output, _ = torch.export.load(tmp_path / "deep/out/model.pt2").module()(x, state)
    assert torch.equal(output, model(x)[0])


def test_nothing_half_written(run, monkeypatch, capsys):
    (run / "export").mkdir()
    (run / "export/model.pt2").write_bytes(b"of before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert cli.main(["export", str(run), "--format", "torch"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert [file.name for file in (run / "export").iterdir()] == ["model.pt2"]
    assert (run / "export/model.pt2").read_bytes() == b"of before"


def test_a_plain_lstm_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "find_spec", lambda name: None)
    run = train(tmp_path / "run", LSTM, "--model", "lstm")
    assert cli.main(["export", str(run), "--format", "torch"]) == 1
    assert "trained a plain LSTM (--model lstm); export takes an NTM" in capsys.readouterr().err


def test_missing_packages_are_named(run, monkeypatch, capsys):
    monkeypatch.setattr("ntm_kernels.export.find_spec", lambda name: None)
    assert cli.main(["export", str(run), "--format", "onnx"]) == 1
    assert "onnx and onnxscript must be installed" in capsys.readouterr().err
    assert not (run / "export").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: --format"),
        (["--format", "tflite"], "invalid choice: 'tflite'"),
        (["--format", "torch", "--out", ""], "must name a folder"),
    ],
)
def test_wrong_words(run, words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", str(run), *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_no_memory(run, capsys):
    assert cli.main(["export", str(run), "--format", "torch", "--memory-size", "0"]) == 1
    assert "memory_size must be at least 1, got 0" in capsys.readouterr().err
    assert not (run / "export").exists()


def test_no_run(tmp_path, capsys):
    assert cli.main(["export", str(tmp_path), "--format", "torch"]) == 1
    assert "holds no checkpoint" in capsys.readouterr().err
