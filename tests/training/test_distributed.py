"""Runs in several processes: the same run as in one, and no process waits for one that is gone."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from ntm_kernels import tasks
from ntm_kernels.training import cli
from ntm_kernels.training.checkpoint import CheckpointStore, load
from ntm_kernels.training.distributed import Processes, joined
from ntm_kernels.training.trainer import Trainer
from tests.training.runs import (
    TINY,
    as_options,
    command,
    environment,
    everything_but_time,
    quiet,
    tiny,
)

# Batches of 6 divide among 1, 2, 3 and 6 processes, and so does the last one, of 24.
SETTINGS = {
    **TINY,
    "batch_size": 6,
    "total_sequences": 1200,
    "validate_every": 300,
    "validation_size": 130,  # three pieces: the processes validate unequal shares
    "checkpoint_every": 120,
    "log_every": 120,
    "dtype": "float64",
}
LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


def one_of(count, rank):
    """Number ``rank`` of several processes, for what needs no other process."""
    processes = Processes()
    processes.count, processes.rank, processes.first = count, rank, rank == 0
    return processes


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_parts_of_a_batch_are_the_batch(count):
    batch = tasks.make("copy", width=3).sample(12, torch.Generator().manual_seed(0))
    parts = [one_of(count, rank).part_of(batch) for rank in range(count)]
    assert [len(part.lengths) for part in parts] == [12 // count] * count
    assert torch.equal(torch.cat([part.lengths for part in parts]), batch.lengths)
    padded = [
        torch.nn.functional.pad(part.inputs, (0, 0, 0, 0, 0, len(batch.inputs) - len(part.inputs)))
        for part in parts
    ]
    assert torch.equal(torch.cat(padded, dim=1), batch.inputs)
    shares = [one_of(count, rank).share(range(7)) for rank in range(count)]
    assert sorted(number for share in shares for number in share) == list(range(7))
    assert sum(one_of(count, rank).part_of_total(2.5) for rank in range(count)) == 2.5


def test_a_batch_that_does_not_divide_is_refused():
    one_of(3, 1).require_equal_parts("batch_size", 6)
    message = r"batch_size must be divisible by the number of processes, 4, got 6; give another"
    with pytest.raises(ValueError, match=message):
        one_of(4, 1).require_equal_parts("batch_size", 6)


@pytest.mark.parametrize("device", ["cuda:1", "cuda:0"])
def test_one_gpu_for_all_processes_is_refused(device):
    Processes().take_gpu(device)
    with pytest.raises(ValueError, match=f"device must be cuda in a run .* got {device}"):
        one_of(2, 0).take_gpu(device)


def test_a_process_without_a_gpu_is_refused(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    one_of(4, 3).take_gpu("cuda")
    one_of(4, 3).take_gpu("cpu")
    assert taken == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="LOCAL_RANK is 2, and this machine has 2 GPUs"):
        one_of(4, 2).take_gpu("cuda")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"RANK": "1"}, "RANK is 1 in the environment, which must be less than WORLD_SIZE"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "must be less than WORLD_SIZE, .* processes, 2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE in the environment must be a number, got 'two'"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK in the environment must be a number, got '-1'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR expected, but not set"),
    ],
)
def test_an_environment_of_no_launcher_is_refused(tmp_path, monkeypatch, capsys, given, message):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    words = ["train", "copy", "--run-dir", str(tmp_path / "run")]
    assert cli.main(words) == 1
    assert re.search(f"^error: .*{message}", capsys.readouterr().err)
    with pytest.raises(ValueError, match=message), joined():
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_process_of_torchrun_is_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with joined() as processes:
        assert processes.count == 1
        assert Trainer(tiny(total_sequences=4), tmp_path, report=quiet).run()


def test_what_belongs_to_one_process_is_refused_in_several(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"train within `with .*joined\(\):`"):
        Trainer(tiny(), tmp_path / "run", report=quiet)
    assert cli.main(["eval", str(tmp_path / "run")]) == 1
    assert list(tmp_path.iterdir()) == []


def launch(count, *words, start=command):
    """Starts processes as a launcher that stops none when another one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return [
        subprocess.Popen(
            start(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment(), **place, "WORLD_SIZE": str(count), "RANK": str(rank)},
        )
        for rank in range(count)
    ]


def finish(processes, timeout=120):
    """The exit codes, outputs and errors; whoever still runs after the timeout is stopped."""
    try:
        ends = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return [(process.returncode, *end) for process, end in zip(processes, ends, strict=True)]


def train(run_dir, *more):
    return ["train", "priority_sort", "--run-dir", run_dir, *as_options(SETTINGS), *more]


def wait_until_seen(run_dir, sequences, processes):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        latest = CheckpointStore(run_dir / "checkpoints").latest()
        if latest is not None and int(latest.stem) >= sequences:
            assert [process.poll() for process in processes] == [None] * len(processes)
            return
        time.sleep(0.005)
    raise AssertionError("the run made no progress")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run in one process."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    assert cli.main([str(word) for word in train(run_dir)]) == 0
    return run_dir


def assert_equal_to_rounding(one, other, where="run"):
    if isinstance(one, torch.Tensor) and one.is_floating_point():
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=where)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal_to_rounding(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal_to_rounding(a, b, f"{where}[{number}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-9), where
    else:
        assert one == other, where


def as_numbers(found):
    """The rows of metrics.csv as numbers, which may differ by rounding."""
    rows = [{name: float(cell or "nan") for name, cell in row.items()} for row in found["rows"]]
    return {**found, "rows": [{n: v for n, v in row.items() if v == v} for row in rows]}


def scores(run_dir):
    return json.loads((run_dir / "evaluation.json").read_text())["scores"]


def assert_same_run(run_dir, straight):
    found, expected = (as_numbers(everything_but_time(folder)) for folder in (run_dir, straight))
    assert_equal_to_rounding(found, expected)
    assert_equal_to_rounding(*(scores(folder) for folder in (run_dir, straight)))
    assert not (run_dir / ".lock").exists()


@pytest.mark.slow
def test_torchrun_gives_the_run_of_one_process(tmp_path, straight):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", *command(*train(tmp_path / "run"))[1:]],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("training priority_sort") for line in lines) == 1
    assert sum(" validation " in line for line in lines) == 4
    assert_same_run(tmp_path / "run", straight)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {path.name for path in straight.iterdir()}


@pytest.mark.slow
def test_killed_and_resumed_with_another_number_of_processes(tmp_path, straight):
    """Two, killed; three, stopped by a signal to one of them; then one to the end."""
    run_dir = tmp_path / "run"
    processes = launch(2, *train(run_dir))
    wait_until_seen(run_dir, 240, processes)
    processes[1].kill()
    (code, _, error), (killed, _, _) = finish(processes, 60)
    assert (code, killed) == (1, -signal.SIGKILL)
    assert "error: another process of this run has ended or does not answer" in error
    assert "Traceback" not in error

    processes = launch(3, *train(run_dir, "--resume"))
    wait_until_seen(run_dir, 600, processes)
    processes[2].send_signal(signal.SIGTERM)
    ends = finish(processes)
    assert [code for code, _, _ in ends] == [130, 0, 0], ends
    stopped = re.search(r"stopped at ([\d,]+) sequences, nothing is lost", ends[0][1])
    latest = CheckpointStore(run_dir / "checkpoints").latest()
    assert int(latest.stem) == int(stopped[1].replace(",", ""))
    assert load(latest)["counters"]["sequences"] < SETTINGS["total_sequences"]

    assert cli.main(["train", "priority_sort", "--run-dir", str(run_dir), "--resume"]) == 0
    assert_same_run(run_dir, straight)


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused_by_every_process(tmp_path):
    for more, message in (
        (
            ["--batch-size", 5],
            "batch_size must be divisible by the number of processes, 2, got 5",
        ),
        (["--total-sequences", 21], "the last batch, .*, must be divisible .* 2, got 3"),
    ):
        for code, output, error in finish(launch(2, *train(tmp_path / "run", *more))):
            assert (code, output) == (1, "")
            assert re.search(f"^error: {message}", error, re.MULTILINE), error
    assert list(tmp_path.iterdir()) == []


# A script of a user's: a trainer in each process, of which one fails.
FAILING = """
import sys
from pathlib import Path
from ntm_kernels.tasks import PrioritySort
from ntm_kernels.training.distributed import joined
from ntm_kernels.training.trainer import Trainer
from tests.training.runs import tiny

run_dir, failing, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with joined() as processes:
    fails = processes.rank == failing
    if how == "folder" and fails:
        (run_dir / "checkpoints").mkdir(parents=True)
        (run_dir / "checkpoints" / "000000000002.pt").touch()
    seed = 1 if how == "configuration" and fails else 0
    trainer = Trainer(tiny(seed=seed), run_dir)
    trainer.run(lambda: 1 // (not (how == "update" and fails)) == 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failing", "how", "message"),
    [
        (1, "update", "ZeroDivisionError"),
        (0, "folder", "FileExistsError: .* already holds a run"),
        (1, "configuration", "ValueError: the configuration must be the same in all processes"),
    ],
)
def test_an_error_in_one_process_ends_the_others_soon(tmp_path, failing, how, message):
    def script(*words):
        return [sys.executable, "-c", FAILING, *map(str, words)]

    processes = launch(2, tmp_path / "run", failing, how, start=script)
    ends = finish(processes, timeout=60)
    assert [code for code, _, _ in ends] == [1, 1]
    assert re.search(message, ends[failing][2]), ends
    assert "TrainingError: another process of this run has ended" in ends[1 - failing][2]


@pytest.mark.slow
def test_the_processes_of_a_run_in_use_end(tmp_path):
    run_dir = tmp_path / "run"
    first = launch(1, *train(run_dir, "--total-sequences", 10**6))
    wait_until_seen(run_dir, 120, first)
    ends = finish(launch(2, *train(run_dir, "--resume", "--total-sequences", 10**6)), timeout=60)
    first[0].kill()
    finish(first)
    assert [code for code, _, _ in ends] == [1, 1]
    assert f"{run_dir} is in use by process {first[0].pid}" in ends[0][2]
    assert "error: another process of this run has ended" in ends[1][2]
