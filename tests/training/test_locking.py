"""One process at a time writes in a run's folder."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from ntm_kernels.training import cli, locking
from ntm_kernels.training.checkpoint import CheckpointStore, load
from ntm_kernels.training.locking import RunInUseError, RunLock
from ntm_kernels.training.metrics import read_metrics
from ntm_kernels.training.trainer import Trainer, TrainingError
from tests.training.runs import (
    TINY,
    as_options,
    command,
    environment,
    quiet,
    tiny,
    without_extras,
)

SHORT = {"total_sequences": 20, "validate_every": 20}
OPTIONS = as_options({**TINY, **SHORT})


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Events and pictures would take most of the time."""
    without_extras(monkeypatch)


@pytest.fixture
def elsewhere():
    """A function that has another process lock a folder, and returns the number of the process."""
    started = []

    def hold(folder):
        ready, locked = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                RunLock(folder).__enter__()
                os.write(locked, b"1")
                signal.pause()
            finally:  # the tests go on in the parent alone
                os._exit(1)
        os.close(locked)
        started.append(child)
        assert os.read(ready, 1) == b"1"
        return child

    yield hold
    for child in started:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train(run_dir, *more):
    return cli.main(["train", "priority_sort", "--run-dir", str(run_dir), *OPTIONS, *more])


def test_a_run_in_use_is_left_alone(tmp_path, elsewhere, capsys):
    run_dir = tmp_path / "run"
    child = elsewhere(run_dir)
    for more in ([], ["--resume"]):
        assert train(run_dir, *more) == 1
        error = capsys.readouterr().err
        assert (
            f"error: {run_dir} is in use by process {child} on {os.uname().nodename}, sin" in error
        )
        assert error.count("\n") == 1 + error.count("note: ")
    assert [path.name for path in run_dir.iterdir()] == [".lock"]

    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert train(run_dir) == 0, "a lock ends with the process that held it"
    assert not (run_dir / ".lock").exists()


def test_eval_of_a_run_in_use_writes_elsewhere(tmp_path, elsewhere, capsys):
    run_dir, out = tmp_path / "run", tmp_path / "out"
    assert train(run_dir) == 0
    evaluation = (run_dir / "evaluation.json").read_bytes()
    elsewhere(run_dir)
    before = contents(run_dir)
    for more in ([], ["--out", str(run_dir / "inside")]):
        assert cli.main(["eval", str(run_dir), *more]) == 1
        assert "eval writes elsewhere with --out FOLDER" in capsys.readouterr().err
    assert cli.main(["eval", str(run_dir), "--out", str(out)]) == 0
    assert contents(run_dir) == before
    assert contents(out) == {out / "evaluation.json": evaluation}


def test_a_trainer_keeps_its_folder_only_while_it_runs(tmp_path):
    run_dir = tmp_path / "run"
    idle = Trainer(tiny(**SHORT), run_dir, report=quiet)
    assert not run_dir.exists(), "nothing is written or locked before it runs"
    other = Trainer(tiny(**SHORT, seed=1), run_dir, report=quiet)

    def meanwhile():
        with pytest.raises(RunInUseError, match=f"in use by process {os.getpid()} "):
            Trainer(tiny(**SHORT), run_dir, resume=True, report=quiet)
        return True

    other.run(meanwhile)
    assert not (run_dir / ".lock").exists()
    after = contents(run_dir)
    with pytest.raises(TrainingError, match="was changed by another process since"):
        idle.run()
    assert contents(run_dir) == after, "the other's run is as it was"
    with pytest.raises(ZeroDivisionError):
        other.run(lambda: 1 // 0)
    assert other.run(), "an exception releases the lock"
    with RunLock(run_dir) as lock:
        assert Trainer(tiny(**SHORT, seed=1), run_dir, resume=True, report=quiet, lock=lock).run()
        with pytest.raises(RunInUseError):
            RunLock(run_dir).__enter__()
    assert not (run_dir / ".lock").exists()


def test_a_lock_file_that_its_holder_removes_meanwhile(tmp_path, monkeypatch):
    """Locked, it would keep nobody out: another one is made, and the folder too if need be."""
    lock = locking.lock
    folder, opened = tmp_path / "run", []

    def meanwhile(file, wait):
        opened.append(file)
        if len(opened) == 1:
            (folder / ".lock").unlink()
            folder.rmdir()
        return lock(file, wait=wait)

    monkeypatch.setattr(locking, "lock", meanwhile)
    with RunLock(folder):
        assert (folder / ".lock").exists()
        with pytest.raises(RunInUseError):
            RunLock(folder).__enter__()
    assert len(opened) == 3


@pytest.mark.parametrize("missing", ["locks", "fcntl"])
def test_without_locks_there_is_one_warning(tmp_path, monkeypatch, missing):
    def none(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if missing == "locks":
        monkeypatch.setattr(fcntl, "flock", none)
    else:
        monkeypatch.setitem(sys.modules, "fcntl", None)
    lines = []
    assert Trainer(tiny(total_sequences=4), tmp_path, report=lines.append).run()
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == 1
    reason = os.strerror(errno.ENOLCK) if missing == "locks" else "no fcntl.flock"
    assert f"{tmp_path} cannot be locked" in warnings[0]
    assert reason in warnings[0]


# Forks processes that start training in the same folder at the same moment, again and again.
RACE = """
import json, os, sys
from pathlib import Path
from ntm_kernels.training import cli, records, runs
runs.find_spec = records.find_spec = lambda name: None  # no pictures, no events
folder, rounds, words = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
for number in range(rounds):
    waiting, start = os.pipe()
    children = []
    for seed in range(4):
        child = os.fork()
        if child == 0:
            os.close(start)
            output = os.open(folder / f"{number}-{seed}.txt", os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1), os.dup2(output, 2)
            os.read(waiting, 1)
            run_dir = folder / str(number)
            words += ["--run-dir", str(run_dir), "--seed", str(seed)] + ["--resume"] * (number % 2)
            os._exit(cli.main(words))
        children.append(child)
    os.close(start)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""


@pytest.mark.slow
def test_processes_that_start_at_once(tmp_path):
    """Twenty times: one trains, the others say who, and no row is lost."""
    total = {"total_sequences": 2000, "checkpoint_every": 100}
    words = ["train", "priority_sort", *as_options({**TINY, **total})]
    done = subprocess.run(
        [*command()[:1], "-c", RACE, str(tmp_path), "20", *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
        env={**environment(), "PYTHONPATH": os.getcwd()},
    )
    codes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(codes) == 20
    for number, round_codes in enumerate(codes):
        run_dir = tmp_path / str(number)
        winner = round_codes.index(0)
        assert sorted(round_codes) == [0, 1, 1, 1]
        for seed in {0, 1, 2, 3} - {winner}:
            lines = (tmp_path / f"{number}-{seed}.txt").read_text().splitlines()
            errors = [line for line in lines if not line.startswith("note: ")]
            assert len(errors) == 1, errors
            assert f"error: {run_dir} is in use by process " in errors[0]
        assert json.loads((run_dir / "config.json").read_text())["seed"] == winner
        latest = load(CheckpointStore(run_dir / "checkpoints").latest())
        assert (latest["config"]["seed"], latest["counters"]["sequences"]) == (winner, 2000)
        rows = [row["sequences"] for row in read_metrics(run_dir / "metrics.csv")]
        assert rows == [*range(6, 2000, 6), 2000]
