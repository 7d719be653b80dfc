"""The command line, in processes of its own where signals or missing packages are concerned."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time

import pytest
import torch

from ntm_kernels.training import cli, runs, trainer
from ntm_kernels.training.checkpoint import CheckpointStore
from tests.training.runs import (
    SHORT,
    TINY,
    TRAINING,
    as_options,
    assert_same,
    command,
    environment,
    everything_but_time,
    without_extras,
)

pytest.importorskip("matplotlib")
LONG = {**TINY, "batch_size": 5, "total_sequences": 1500, "checkpoint_every": 250}


def start(run_dir, settings, *more, task="priority_sort"):
    words = ["train", task, "--run-dir", run_dir, *as_options(settings), *more]
    return subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def wait_for(happened, process):
    """Waits for something in the run's folder; the process must still be training then."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if happened():
            assert process.poll() is None
            return
        time.sleep(0.005)
    raise AssertionError("the run made no progress")


def has_seen(run_dir, sequences):
    latest = CheckpointStore(run_dir / "checkpoints").latest()
    return latest is not None and int(latest.stem) >= sequences


@pytest.mark.parametrize("task", SHORT)
def test_kill_and_resume_gives_the_same_run(tmp_path, monkeypatch, task):
    """Killed before its first checkpoint and between two, at the default settings of the task."""
    monkeypatch.setattr(runs, "find_spec", lambda name: None)  # pictures would take most of it
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    sizes = {"batch_size": 5, "total_sequences": 2500, "checkpoint_every": 250}
    settings = {**SHORT[task], **TRAINING, **sizes}
    assert cli.main(["train", task, *as_options(settings), "--run-dir", str(straight)]) == 0
    for happened in (
        lambda: (killed / "metrics.csv").exists(),
        lambda: has_seen(killed, 500),
    ):
        process = start(killed, settings, "--resume", task=task)
        wait_for(happened, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert cli.main(["train", task, "--run-dir", str(killed), "--resume"]) == 0
    assert_same(everything_but_time(killed), everything_but_time(straight))
    scores = [json.loads((d / "evaluation.json").read_text())["scores"] for d in (straight, killed)]
    assert_same(*scores)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_stopping_by_signal(tmp_path, which):
    process = start(tmp_path / "run", {**LONG, "total_sequences": 10**6})
    assert process.stdout.readline().startswith("training priority_sort"), "shown as it happens"
    wait_for(lambda: has_seen(tmp_path / "run", 250), process)
    process.send_signal(which)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in errors
    stopped = re.search(r"stopped at ([\d,]+) sequences, nothing is lost", output)
    assert stopped, output
    latest = CheckpointStore(tmp_path / "run" / "checkpoints").latest()
    assert int(latest.stem) == int(stopped[1].replace(",", ""))
    assert f"python -m ntm_kernels train priority_sort --run-dir {tmp_path / 'run'} --resume" in (
        output
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of every kind of file, made once."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    words = ["train", "priority_sort", "--run-dir", str(run_dir), *as_options(TINY)]
    assert cli.main(words) == 0
    return run_dir


def test_a_run_leaves_every_file(finished):
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    events = {name for name in names if name.startswith("tensorboard/events.out.tfevents")}
    assert len(events) == 1
    assert names - events == {
        "config.json",
        "metrics.csv",
        "evaluation.json",
        "pictures/heads_30_items_give_24.png",
        "checkpoints/000000000050.pt",
        "checkpoints/000000000060.pt",
        "pictures/answers.png",
        "pictures/heads_as_trained.png",
        "pictures/learning_curve.png",
        "pictures/summary.png",
    }


def test_tensorboard_events_hold_the_metrics(finished):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(finished / "tensorboard")).Reload()
    train = events.Scalars("bits/train")
    assert [event.step for event in train] == list(range(6, 61, 6))
    assert [event.step for event in events.Scalars("bits/validation")] == [12, 24, 36, 48, 60]
    rows = everything_but_time(finished)["rows"]
    assert train[0].value == pytest.approx(float(rows[0]["train_bits"]))


def test_eval_repeats_the_evaluation(finished, capsys):
    evaluation = (finished / "evaluation.json").read_bytes()
    picture = finished / "pictures" / "answers.png"
    drawn = picture.read_bytes()
    (finished / "evaluation.json").unlink()
    picture.unlink()
    assert cli.main(["eval", str(finished)]) == 0
    assert (finished / "evaluation.json").read_bytes() == evaluation
    assert picture.read_bytes() == drawn
    assert "as trained" in capsys.readouterr().out


def test_resuming_a_finished_run_only_draws_it(finished, capsys):
    before = everything_but_time(finished)
    picture = finished / "pictures" / "answers.png"
    picture.unlink()
    assert cli.main(["train", "priority_sort", "--run-dir", str(finished), "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "evaluation.json has the results already" in printed
    assert f"python -m ntm_kernels eval {finished}\n" in printed
    assert "as trained" not in printed
    assert picture.exists()
    assert_same(everything_but_time(finished), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda written: None,
        lambda written: written[:10],
        lambda written: written.replace(b'"threads": 1', b'"threads": 2'),
        lambda written: written.replace(b'"checkpoint_sha256": "', b'"checkpoint_sha256": "0'),
        lambda written: written.replace(b'"30 items, give 24": null', b'"30 items, give 24": 64'),
        lambda written: b"null",
    ],
    ids=["none", "damaged", "other options", "other weights", "other tests", "no object"],
)
def test_resuming_a_finished_run_makes_the_tests_that_it_lacks(
    finished, monkeypatch, capsys, change
):
    monkeypatch.setattr(runs, "find_spec", lambda name: None)  # pictures would take most of it
    path = finished / "evaluation.json"
    whole = path.read_bytes()
    changed = change(whole)
    assert changed != whole
    path.unlink() if changed is None else path.write_bytes(changed)
    assert cli.main(["train", "priority_sort", "--run-dir", str(finished), "--resume"]) == 0
    assert "as trained" in capsys.readouterr().out
    assert path.read_bytes() == whole


def test_a_finished_run_is_trained_longer(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "find_spec", lambda name: None)  # pictures would take most of it
    run_dir = tmp_path / "longer"
    shutil.copytree(finished, run_dir)
    words = ["train", "priority_sort", "--run-dir", str(run_dir), "--resume"]
    assert cli.main([*words, "--total-sequences", "84"]) == 0
    assert "from there to 84 it stays at its final value, 0.0002" in capsys.readouterr().out
    assert cli.main(words) == 0
    assert "all 84 sequences are seen" in capsys.readouterr().out
    assert json.loads((run_dir / "evaluation.json").read_text())["sequences"] == 84


def test_clipping_takes_a_number_or_off(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "copy", "--clip-norm", "none"])
    assert "--clip-norm: must be a number or 'off', got 'none'" in capsys.readouterr().err


def test_a_run_needs_a_folder(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "copy", "--run-dir", ""])
    assert "--run-dir: must name a folder" in capsys.readouterr().err


def test_a_backend_of_the_environment_is_looked_at_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NTM_KERNELS_BACKEND", "abacus")
    assert cli.main(["train", "copy", "--run-dir", str(tmp_path / "run")]) == 1
    assert "got 'abacus' by the environment variable NTM_KERNELS_BACKEND" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_errors_are_one_line_and_no_traceback(finished, tmp_path, capsys):
    run, empty = str(finished), str(tmp_path / "empty")
    cases = {
        f"train priority_sort --run-dir {run}": "already holds a run",
        f"train priority_sort --run-dir {run} --resume --lr 7": "lr: 0.01 and 7.0",
        f"train priority_sort --run-dir {run} --resume --clip off": "clip: 10.0 and 'off'",
        f"train priority_sort --run-dir {run} --resume --clip-norm 2": "clip_norm: 'off' and 2.0",
        f"train priority_sort --run-dir {run} --resume --total-sequences 30": "at least 60",
        f"train copy --run-dir {run} --resume": "this run trains priority_sort, not copy",
        "train copy --resume": "--resume needs the --run-dir",
        f"train copy --run-dir {empty} --checkpoint x": "give --resume with it",
        f"train copy --run-dir {empty} --batch-size 0": "batch_size must be at least 1, got 0",
        f"train copy --run-dir {empty} --max-length 0": "1 <= min_length <= max_length",
        f"train copy --run-dir {empty} --model lstm --word-size 3": "has no word_size",
        f"train copy --run-dir {empty} --backend fastest": "backend must be one of",
        f"train copy --run-dir {empty} --device cudaa": "device 'cudaa' cannot be used here",
        f"train copy --run-dir {empty} --device meta": "device 'meta' cannot be used here",
        f"train copy --run-dir {empty} --seed {10**30}": f"seed must fit 64 bits, got {10**30}",
        f"train copy --run-dir {empty} --threads 9999999": "threads must be at most",
        f"train copy --run-dir {empty} --lr nan": "lr must be greater than 0, got nan",
        f"train copy --run-dir {run}/config.json": f"since {run}/config.json is a file: give an",
        f"train copy --run-dir {run}/config.json/deeper": f"since {run}/config.json is a file: ",
        f"eval {run} --out {run}/config.json": f"since {run}/config.json is a file: ",
        f"eval {empty}": "holds no checkpoint",
        f"eval {run} --checkpoint {run}/config.json": "config.json is damaged or is no checkpoint",
    }
    for words, message in cases.items():
        assert cli.main(words.split()) == 1, words
        captured = capsys.readouterr()
        assert captured.err.count("error:") == 1, words
        assert message in captured.err, words
        assert "Errno" not in captured.err, words
        assert captured.err.splitlines()[-1].startswith("error:"), words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is no JSON file"),
        (b"\xff\xfe", "config.json is no JSON file"),
        ("[]", "config.json: a configuration must be a mapping, got list"),
        ("{}", "config.json: this version of ntm_kernels cannot read"),
        ({"lr": "fast"}, "config.json: lr must be a number, got 'fast'"),
        ({"seed": True}, "config.json: seed must be a whole number, got True"),
        ({"task": 3}, "config.json: task must be a mapping with its name and parameters, got 3"),
        (
            {"task": {"name": "priority_sort", "width": "x"}},
            "config.json: priority_sort: width must be a whole number, got 'x'",
        ),
        ({"task": {"name": ["copy"]}}, "config.json: the task is ['copy'], which is none of"),
        ({"model": "gru"}, "config.json: model must be one of ntm, lstm, got 'gru'"),
        ({"initial_memory": "x"}, "initial_memory must be a number or 'learned', got 'x'"),
    ],
)
def test_a_damaged_configuration_is_one_line(finished, tmp_path, capsys, text, message):
    if isinstance(text, dict):
        text = json.dumps(json.loads((finished / "config.json").read_text()) | text)
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert cli.main(["train", "priority_sort", "--run-dir", str(tmp_path), "--resume"]) == 1
    errors = capsys.readouterr().err
    assert errors.count("error:") == 1
    assert message in errors


def test_a_file_that_is_no_checkpoint_names_no_older_one(finished, capsys):
    assert cli.main(["eval", str(finished), "--checkpoint", "/nowhere/zzz.pt"]) == 1
    errors = capsys.readouterr().err
    assert "there is no checkpoint /nowhere/zzz.pt" in errors
    assert "the one before" not in errors


@pytest.mark.parametrize(
    ("words", "message", "where"),
    [
        ("", "arguments are required: COMMAND", ""),
        ("fly", "invalid choice: 'fly'", ""),
        ("eval", "arguments are required: RUN", " eval"),
        ("train", "arguments are required: TASK", " train"),
        ("train --run-dir=a:b copy", "unrecognized arguments: --run-dir=a:b", " train"),
        ("train sorting", "invalid choice: 'sorting'", " train"),
        ("train copy --lr fast", "--lr: must be a number, got 'fast'", " train copy"),
        ("train copy --width 2.5", "--width: must be a whole number, got '2.5'", " train copy"),
        ("train copy --model gru", "--model: must be one of ntm, lstm, got 'gru'", " train copy"),
        ("train copy --depth 3", "unrecognized arguments: --depth 3", " train copy"),
        (
            "train copy --initial-memory abc",
            "--initial-memory: must be a number or 'learned', got 'abc'",
            " train copy",
        ),
    ],
)
def test_wrong_words_are_one_line(words, message, where, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.endswith(f"; see python -m ntm_kernels{where} --help\n")
    assert error.count("\n") == 1


TOO_LARGE = [
    ("--memory-size", 10**12),
    ("--memory-size", 10**19),
    ("--word-size", 10**17),
    ("--hidden-size", 10**12),
    ("--num-read-heads", 10**12),
    ("--max-length", 10**13),
    ("--validation-size", 10**13),
    ("--batch-size", 10**13),
]


@pytest.mark.usefixtures("limited_memory")
@pytest.mark.parametrize(("option", "size"), TOO_LARGE)
def test_sizes_beyond_the_memory_are_named(tmp_path, capsys, option, size):
    """As they were made, and with the others at their own sizes."""
    words = ["train", "copy", "--run-dir", str(tmp_path), "--total-sequences", str(10**14)]
    assert cli.main([*words, option, str(size)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "error: there is not enough memory on device 'cpu' for these sizes; make "
        f"{option} {size} smaller"
    )


@pytest.mark.usefixtures("limited_memory")
def test_sizes_beyond_the_memory_of_the_tests(finished, capsys):
    assert cli.main(["eval", str(finished), "--evaluation-size", str(10**13)]) == 1
    assert f"make --evaluation-size {10**13} smaller" in capsys.readouterr().err


def test_default_sizes_may_be_too_large_too(tmp_path, monkeypatch, capsys):
    def exhausted(config):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "build_model", exhausted)
    words = ["train", "copy", "--preset", "paper", "--run-dir", str(tmp_path)]
    assert cli.main(words) == 1
    assert "make --batch-size 1 or --memory-size 128 smaller" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("of a kernel"), TypeError("of a callback")])
def test_other_errors_are_left_as_they_are(tmp_path, monkeypatch, error):
    def broken(config):
        raise error

    monkeypatch.setattr(trainer, "build_model", broken)
    with pytest.raises(type(error), match="of a "):
        cli.main(["train", "copy", "--run-dir", str(tmp_path)])


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    """A checkpoint does not fit: the one before is whole, and from it the run goes on."""
    without_extras(monkeypatch)
    run_dir, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    store = CheckpointStore(run_dir / "checkpoints")
    save = CheckpointStore.save

    def saving_once(store, sequences, contents):
        path = save(store, sequences, contents)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2, limits[1]))
        return path

    words = ["train", "priority_sort", "--run-dir", str(run_dir), *as_options(TINY)]
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", saving_once)
        try:
            assert cli.main(words) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err.splitlines()[-1]
    path = store.folder / "000000000020.pt"
    assert error.startswith(f"error: cannot write {path}: {os.strerror(errno.EFBIG)}; make room")
    assert [one.name for one in store.folder.iterdir()] == ["000000000010.pt"]
    assert cli.main([*words, "--resume"]) == 0
    assert everything_but_time(run_dir)["checkpoint"]["counters"]["sequences"] == 60


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "repeat_copy", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("--max-repeats", "--hidden-size", "--seed", "--stop-below", "--resume", "--dtype"):
        assert word in text


def test_help_of_the_package_is_one_line_of_its_docstring(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert "Neural Turing Machines with fused kernels." in text
    assert ">>>" not in text


def test_a_wrong_backend_is_said_to_come_from_its_option(tmp_path, capsys):
    assert cli.main(["train", "copy", "--backend", "fastest", "--run-dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "got 'fastest' by --backend" in error
    assert "argument" not in error


def test_info(capsys):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^torch \d", text, re.MULTILINE)
    assert "backend torch: available" in text


WITHOUT_EXTRAS = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("matplotlib", "tensorboard", "tqdm", "numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
def find_spec(name, package=None):
    try:
        return found(name, package)
    except ModuleNotFoundError:
        return None
importlib.util.find_spec = find_spec
from ntm_kernels.training.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_training_needs_torch_alone(tmp_path):
    words = ["train", "priority_sort", "--run-dir", str(tmp_path / "run"), *as_options(TINY)]
    done = subprocess.run(
        [*command()[:1], "-c", WITHOUT_EXTRAS, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**environment(), "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
    for package in ("matplotlib", "tensorboard", "tqdm"):
        assert f"note: {package} is not installed" in done.stderr
    assert (
        'no pictures: matplotlib is not installed (pip install "ntm_kernels[train]"' in done.stdout
    )
    assert (tmp_path / "run" / "evaluation.json").exists()
    assert not (tmp_path / "run" / "tensorboard").exists()
