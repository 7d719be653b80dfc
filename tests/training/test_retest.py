"""``eval`` with parameters of the task and with ``--memory-size``."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from ntm_kernels import tasks
from ntm_kernels.tasks import Trial
from ntm_kernels.training import cli, evaluation, replay, retest, runs
from ntm_kernels.training.checkpoint import load_run
from ntm_kernels.training.evaluation import evaluate
from ntm_kernels.training.models import build_model
from ntm_kernels.training.replay import _TRACED, _Runs
from ntm_kernels.training.trainer import saved_config
from tests.training.runs import BASELINE, SHORT, TRAINING, as_options, tiny

pytest.importorskip("matplotlib")


def train(folder, *more, task="copy", settings=TRAINING):
    words = ["train", task, "--run-dir", str(folder), *as_options({**SHORT[task], **settings})]
    assert cli.main([*words, *more]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "find_spec", lambda name: None)
        return train(tmp_path_factory.mktemp("retest") / "run")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a finished run of copy, with N = 4 and lengths 1 to 3."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def _no_pictures(monkeypatch):
    monkeypatch.setattr(runs, "find_spec", lambda name: None)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def evaluated(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_another_task_and_memory_are_tested_instead(run, capsys):
    before = contents(run)
    words = ["--memory-size", "9", "--min-length", "6", "--max-length", "6"]
    assert cli.main(["eval", str(run), *words]) == 0
    after = contents(run)
    assert {name: after[name] for name in before} == before
    folder = "tests/length_6_N_9"
    assert set(after) - set(before) == {
        f"{folder}/evaluation.json",
        f"{folder}/pictures/answers.png",
        f"{folder}/pictures/heads_length_6.png",
    }
    result = evaluated(run / folder)
    assert list(result["scores"]) == ["length 6"]
    assert result["memory_size"] == 9
    assert result["task"] == {
        "name": "copy", "width": 2, "min_length": 6, "max_length": 6, "answer_channel": True,
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "tested with length 6, N 9" in said
    assert "length 6: 4 sequences of 13 steps" in said
    assert evaluated(run)["memory_size"] == 4


@pytest.mark.usefixtures("_no_pictures")
def test_the_result_is_that_of_a_model_made_with_this_memory(run):
    assert cli.main(["eval", str(run), "--memory-size", "9", "--max-length", "7"]) == 0
    path, saved = load_run(run)
    config = saved_config(path, saved["config"])
    task = replace(config.task, max_length=7)
    config = replace(config, memory_size=9, task=task)
    model = build_model(config)
    model.load_state_dict(saved["model"])
    scores = evaluate(model, config, {"max length 7": Trial(task)})
    result = evaluated(run / "tests" / "max_length_7_N_9")["scores"]
    assert result == {title: score.to_dict() for title, score in scores.items()}


@pytest.mark.usefixtures("_no_pictures")
def test_another_memory_alone_repeats_the_usual_tests(run):
    assert cli.main(["eval", str(run), "--memory-size", "200"]) == 0
    result = evaluated(run / "tests" / "N_200")
    assert list(result["scores"]) == list(evaluated(run)["scores"])
    assert result["scores"] != evaluated(run)["scores"]


@pytest.mark.usefixtures("_no_pictures")
def test_a_test_of_the_suite_asked_for_by_hand_has_the_same_sequences(run):
    assert cli.main(["eval", "--length=20", str(run)]) == 0
    result = evaluated(run / "tests" / "length_20")["scores"]
    assert result["length 20"] == evaluated(run)["scores"]["length 20"]


@pytest.mark.usefixtures("_no_pictures")
def test_out_is_another_folder(run, tmp_path):
    before = contents(run)
    out = tmp_path / "elsewhere"
    assert cli.main(["eval", str(run), "--max-length", "5", "--out", str(out)]) == 0
    assert contents(run) == before
    assert list(evaluated(out)["scores"]) == ["max length 5"]


@pytest.mark.usefixtures("_no_pictures")
def test_long_tests_have_fewer_sequences_unless_told_otherwise(run, monkeypatch, capsys):
    _, saved = load_run(run)
    weights = sum(value.numel() for value in saved["model"].values())
    longest = weights + 9 * 3
    monkeypatch.setattr(retest, "_AFFORDABLE", 13 * longest * 2 + 1)
    words = ["eval", str(run), "--memory-size", "9", "--min-length", "6", "--max-length", "6"]
    assert cli.main(words) == 0
    assert "2 instead of 4 sequences, to take about a minute" in capsys.readouterr().out
    result = run / "tests" / "length_6_N_9"
    assert evaluated(result)["scores"]["length 6"]["sequences"] == 2
    assert cli.main([*words, "--evaluation-size", "3"]) == 0
    assert evaluated(result)["scores"]["length 6"]["sequences"] == 3
    monkeypatch.setattr(retest, "_AFFORDABLE", 1)
    assert cli.main(words) == 0
    assert evaluated(result)["scores"]["length 6"]["sequences"] == 1


@pytest.mark.usefixtures("_no_pictures")
def test_a_test_that_takes_long_says_how_far_it_is(run, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "_SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr("ntm_kernels.training.models._PIECE", 4)
    assert cli.main(["eval", str(run), "--min-length", "7", "--max-length", "7"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "of the steps" in line]
    shares = [line.split()[2] for line in said]
    assert shares == ["27%", "53%", "80%", "100%"]


def test_help_shows_the_parameters_of_the_run(run, capsys):
    for words in (["--help", str(run)], [str(run), "--max-length", "7", "--help"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["eval", *words])
        assert stop.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "--max-length INT most vectors of a sequence (default 3)" in text
        assert "--memory-size INT memory locations, N (default 4)" in text
        assert "--length INT --min-length and --max-length at once" in text
    for words in (["--help"], ["/nowhere", "--help"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["eval", *words])
        assert stop.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "eval RUN --help lists them" in text
        assert "--max-length" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--max-repeats 3", "unrecognized arguments: --max-repeats 3; see python -m ntm_kernels"),
        ("--memory-size 2.5", "--memory-size: must be a whole number, got '2.5'"),
        ("--max-length ten", "--max-length: must be a whole number, got 'ten'"),
        ("--memory-size 0", "memory_size must be at least 1, got 0"),
        ("--memory-size -3", "memory_size must be at least 1, got -3"),
        (
            "--min-length 0",
            "1 <= min_length <= max_length is needed, got min_length=0, max_length=",
        ),
        ("--min-length 30", "needed, got min_length=30, max_length=3"),
        ("--length 6 --max-length 7", "--length 6 sets --max-length too, which is 7: give one"),
        ("--width 5", "--width 5: the sequences would have 7 input and 5 output channels, but"),
        ("--no-answer-channel", "--no-answer-channel: the sequences would have 3 input and 2"),
        (f"--max-length {10**13}", f"make --max-length {10**13} smaller"),
        (f"--memory-size {10**13}", f"make --memory-size {10**13} smaller"),
        ("--max-length 5 --out RUN/config.json", "config.json is a file: give another folder"),
        ("--max-length 5 --checkpoint RUN/config.json", "is damaged or is no checkpoint"),
    ],
)
@pytest.mark.usefixtures("_no_pictures", "limited_memory")
def test_errors_are_one_line_and_write_nothing(run, capsys, words, message):
    before = contents(run)
    folders = {path for path in run.rglob("*") if path.is_dir()}
    words = words.replace("RUN", str(run)).split()
    try:
        code = cli.main(["eval", str(run), *words])
    except SystemExit as stop:
        code = stop.code
    assert code in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert message in error
    assert contents(run) == before
    assert {path for path in run.rglob("*") if path.is_dir()} == folders


@pytest.mark.parametrize("words", ["EMPTY --max-length 5", "--max-length 5 EMPTY", "EMPTY"])
def test_a_folder_that_is_no_run(tmp_path, capsys, words):
    words = words.replace("EMPTY", str(tmp_path))
    assert cli.main(["eval", *words.split()]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path} holds no checkpoint: give the folder of a run")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("_no_pictures")
def test_a_memory_size_that_is_learned_cannot_change(tmp_path, capsys):
    run = train(tmp_path / "run", "--initial-memory", "learned")
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--memory-size", "9"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: --memory-size 9: ")
    assert "must be 4, since the initial memory is learned, got 9" in error
    assert not (run / "tests").exists()
    assert cli.main(["eval", str(run), "--min-length", "6", "--max-length", "6"]) == 0


@pytest.mark.usefixtures("_no_pictures")
def test_a_memory_larger_than_the_grown_one(tmp_path):
    run = train(tmp_path / "run", "--grow-memory", "6", "--grow-at", "0.5")
    assert cli.main(["eval", str(run), "--memory-size", "9"]) == 0
    scores = evaluated(run / "tests" / "N_9")["scores"]
    assert {score["memory_size"] for score in scores.values()} == {9}


@pytest.mark.usefixtures("_no_pictures")
def test_the_baseline_has_no_memory_and_takes_longer_sequences(tmp_path, capsys):
    settings = {name: BASELINE[name] for name in TRAINING if name in BASELINE}
    run = train(tmp_path / "run", "--model", "lstm", settings=settings)
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--memory-size", "9"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--memory-size 9: this run trained the LSTM baseline, which has no memory" in error
    assert cli.main(["eval", str(run), "--min-length", "6", "--max-length", "6"]) == 0
    assert evaluated(run / "tests" / "length_6")["memory_size"] is None


@pytest.mark.parametrize(
    ("task", "given", "title"),
    [
        (tasks.make("copy"), {"max_length": 20}, "max length 20"),
        (tasks.make("copy", max_length=1), {"max_length": 1}, "length 1"),
        (tasks.make("ngrams"), {"length": 500}, "length 500"),
        (
            tasks.make("repeat_copy", min_length=3, max_length=3),
            {"max_repeats": 4, "max_length": 3, "min_length": 3},
            "length 3, max repeats 4",
        ),
    ],
)
def test_a_test_is_titled_by_what_was_given(task, given, title):
    changed = retest.retest(replace(tiny(), task=task), given)
    assert changed.title == title
    assert list(changed.tests) == [title]


def test_a_trace_is_made_in_pieces_that_fit():
    """Of 20,000 steps and 16,384 locations it would be 2.6 GB."""
    config = tiny(memory_size=300_000)
    model, seen = build_model(config), []
    with torch.no_grad():
        for _, trace in _Runs(model, torch.zeros(20, 1, config.task.input_size)):
            assert trace.weightings.numel() <= _TRACED
            seen.append(len(trace.weightings))
    assert sum(seen) == 20
    assert max(seen) == _TRACED // (2 * 300_000)


@pytest.mark.parametrize(("traced", "times"), [(2**22, 1), (40, 3)])
def test_a_short_sequence_is_run_once(monkeypatch, traced, times):
    """However often what its heads did is asked for; one that does not fit is run again."""
    monkeypatch.setattr(replay, "_TRACED", traced)
    config = tiny(memory_size=4)
    model, calls = build_model(config), []
    model.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        runs = _Runs(model, torch.zeros(20, 1, config.task.input_size))
        for _ in range(3):
            assert sum(len(trace.weightings) for _, trace in runs) == 20
    assert len(calls) == times * len(runs.pieces)
