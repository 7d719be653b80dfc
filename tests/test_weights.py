"""The trained models that come with the package, and the script that makes their files."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ntm_kernels
from ntm_kernels import tasks, weights
from ntm_kernels.training.arguments import parse
from ntm_kernels.training.checkpoint import load
from ntm_kernels.training.presets import preset
from ntm_kernels.training.trainer import Trainer, saved_config
from scripts import pretrained as script
from tests.training.runs import SHORT, TRAINING, baseline, without_extras

each_model = pytest.mark.parametrize("name", weights.available())


@each_model
def test_a_model_answers_as_its_record_says(name):
    record, contents = weights.record(name), load(weights.path_of(name))
    config = saved_config(weights.path_of(name), contents["config"])
    found = script.sample_score(ntm_kernels.pretrained(name), config)
    expected = record["sample"]
    assert found["sequences"] == expected["sequences"] >= 8
    assert found["wrong"] == expected["wrong"]
    assert found["bits"] == pytest.approx(expected["bits"], rel=1e-3)


def test_the_sample_notices_other_weights():
    model, path = ntm_kernels.pretrained("copy"), weights.path_of("copy")
    with torch.no_grad():
        model.output.weight *= 1.05
    found = script.sample_score(model, saved_config(path, load(path)["config"]))
    assert found["bits"] != pytest.approx(weights.record("copy")["sample"]["bits"], rel=1e-2)


def test_loading_a_model_imports_no_trainer():
    program = "import sys, ntm_kernels; ntm_kernels.pretrained('copy'); print(*sys.modules)"
    words = [sys.executable, "-c", program]
    loaded = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert "ntm_kernels.training.checkpoint" in loaded
    assert "ntm_kernels.training.trainer" not in loaded


@each_model
def test_a_record_says_where_the_weights_come_from(name):
    record, contents = weights.record(name), load(weights.path_of(name))
    config = saved_config(weights.path_of(name), contents["config"])
    assert tasks.from_dict(record["task"]) == config.task
    assert record["sequences"] == contents["counters"]["sequences"]
    assert record["memory_size"] == contents["memory_size"]
    assert record["results"]["as trained"]["sequences"] >= 512
    words = shlex.split(record["command"])
    assert words[:3] == ["python", "-m", "ntm_kernels"]
    options = parse(words[3:])
    options = {k: v for k, v in options.items() if k not in ("command", "resume")}
    trained = preset(options.pop("task"), **options)
    assert replace(trained, device="cpu", backend=None) == config
    assert record["seed"] == config.seed
    assert weights.path_of(name).stat().st_size < 600_000


def test_a_model_is_ready_to_use():
    before = torch.get_rng_state()
    model = ntm_kernels.pretrained("copy")
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert model.memory_size == 128
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert ntm_kernels.pretrained("copy", memory_size=300).memory_size == 300


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sort", {}, f"name must be one of {', '.join(weights.available())}, got 'sort'; `python"),
        ("../copy", {}, "name must be one of"),
        (None, {}, "got None"),
        ("copy", {"memory_size": 0}, "memory_size must be at least 1, got 0"),
        ("copy", {"memory_size": 2.5}, "memory_size must be"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises((TypeError, ValueError), match=message.replace("(", r"\(")):
        ntm_kernels.pretrained(name, **options)


def test_the_page_has_the_table_of_the_models():
    assert script.table() in script.PAGE.read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with its evaluation."""
    folder = tmp_path_factory.mktemp("weights") / "run"
    with pytest.MonkeyPatch.context() as patch:
        without_extras(patch)
        Trainer(preset("copy", seed=3, **{**SHORT["copy"], **TRAINING}), folder).run()
    [*_, newest] = sorted((folder / "checkpoints").glob("*.pt"))
    # It was tested again after the training, with the long tests.
    tests = {"evaluation_size": 7, "evaluation_seed": 1, "long_tests": True}
    contents = {"checkpoint": newest.name, "sequences": 60, "memory_size": 4, "scores": {}}
    contents["tested_with"] = tests
    (folder / "evaluation.json").write_text(json.dumps(contents))
    return folder


def test_a_run_is_made_into_a_model(finished, tmp_path, monkeypatch):
    files = script.ship(finished, "small", tmp_path)
    assert [file.name for file in files] == ["small.pt", "small.json"]
    monkeypatch.setattr(weights, "_FOLDER", tmp_path)
    assert weights.available() == ("small",)
    model, contents = ntm_kernels.pretrained("small"), load(files[0])
    run = load(sorted((finished / "checkpoints").glob("*.pt"))[-1])
    for name, value in model.state_dict().items():
        assert torch.equal(value, run["model"][name]), name
    assert "optimiser" not in contents
    record = weights.record("small")
    assert record["command"].startswith(
        "python -m ntm_kernels train copy --width 2 --max-length 3 "
    )
    tests = "--evaluation-size 7 --evaluation-seed 1 --long-tests"
    assert record["command"].endswith(f" {tests} --seed 3")
    assert record["version"] == ntm_kernels.__version__


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: shutil.rmtree(run / "checkpoints"), "holds no checkpoint"),
        (
            lambda run: (run / "evaluation.json").unlink(),
            "has no evaluation.json: let the training",
        ),
        (
            lambda run: (run / "evaluation.json").write_text('{"checkpoint": "000000000001.pt"}'),
            "is of the checkpoint 000000000001.pt, and the newest is 000000000060.pt: run",
        ),
    ],
)
def test_a_run_that_is_not_finished_is_refused(finished, tmp_path, capsys, spoil, message):
    run = shutil.copytree(finished, tmp_path / "run")
    spoil(run)
    before = weights.available()
    assert script.main([str(run), "never"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert weights.available() == before


@pytest.mark.parametrize("name", ["../copy", "Copy", "a b", "1"])
def test_a_name_that_is_no_word_is_refused(finished, tmp_path, name):
    with pytest.raises(ValueError, match="NAME must be a word of small letters, digits and _, got"):
        script.ship(finished, name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_baseline_is_refused(tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        without_extras(patch)
        Trainer(baseline(), tmp_path / "run").run()
    assert script.main([str(tmp_path / "run"), "never"]) == 1
    assert "trained the LSTM baseline; give the run of an NTM" in capsys.readouterr().err
    assert not Path(script.FOLDER, "never.pt").exists()
