import errno
import os
import threading
import zipfile
from contextlib import suppress

import pytest
import torch

from ntm_kernels.training import checkpoint
from ntm_kernels.training.checkpoint import (
    CheckpointError,
    CheckpointStore,
    load,
    load_run,
)
from ntm_kernels.training.files import WriteError, write_atomically
from ntm_kernels.training.metrics import COLUMNS, MetricsLog, read_metrics
from tests.training.runs import assert_same, no_file_larger_than

CONTENTS = {
    "config": {"lr": 0.5},
    "model": {"weight": torch.arange(3000.0), "bias": torch.ones(7)},
    "generator": torch.Generator().manual_seed(1).get_state(),
}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def test_round_trip(store):
    path = store.save(10, CONTENTS)
    assert_same(load(path), {"version": 1, **CONTENTS})


def test_the_last_two_are_kept(store):
    for sequences in (5, 90, 1000, 20_000):
        store.save(sequences, CONTENTS)
    assert [int(path.stem) for path in store.all()] == [1000, 20_000]
    assert store.before(store.latest()) == store.all()[0]
    assert store.before(store.all()[0]) is None


def test_forgetting_later_ones_and_leftovers(store):
    first = store.save(1, CONTENTS)
    store.save(2, CONTENTS)
    leftover = store.folder / ".000000000003.pt.tmp"
    leftover.write_bytes(b"half")
    store.forget_after(1)
    assert list(store.folder.iterdir()) == [first]


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("disk full")], ids=repr)
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"new but incompl")
        raise error

    with pytest.raises((OSError, ValueError), match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_any_truncation_is_noticed(store):
    path = store.save(10, CONTENTS)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=f"{path} is damaged or is no checkpoint"):
            load(path)


def test_no_flipped_byte_goes_through(store):
    """Either the flip is noticed or it hit a byte that means nothing."""
    path = store.save(10, CONTENTS)
    whole = path.read_bytes()
    noticed = 0
    for place in range(0, len(whole), 61):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            contents = load(path)
        except CheckpointError:
            noticed += 1
        else:
            assert_same(contents, {"version": 1, **CONTENTS})
    assert noticed > 100


def test_a_flip_inside_the_weights_is_noticed(store):
    path = store.save(10, CONTENTS)
    whole = path.read_bytes()
    place = whole.index(torch.tensor(1234.0).numpy().tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(CheckpointError, match="wrong checksum"):
        load(path)


class Code:
    """What a pickle may hold: a call that is made when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_code_is_not_executed_and_the_refusal_gives_no_advice_to_do_so(tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "000000000001.pt"
    torch.save({"version": 1, "config": Code(os.mkdir, str(marker))}, path)
    with pytest.raises(CheckpointError, match=r"objects other than .* \(posix.mkdir\)") as e:
        load(path)
    assert "weights_only" not in str(e.value)
    assert "\n" not in str(e.value)
    assert not marker.exists()


def test_a_program_is_no_checkpoint(store):
    """torch would load a file like this as TorchScript."""
    path = store.save(10, CONTENTS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="is no checkpoint: it is a program in TorchScript"):
        load(path)


def test_a_checkpoint_that_does_not_fit(store):
    """At every size the reason is the disk's, the file is named, and the one before is whole."""
    before = store.save(10, CONTENTS)
    whole = before.stat().st_size
    for size in (*range(1, whole, whole // 8), whole - 1):
        with no_file_larger_than(size), pytest.raises(WriteError) as e:
            store.save(20, CONTENTS)
        path = store.folder / "000000000020.pt"
        assert str(e.value).startswith(f"cannot write {path}: {os.strerror(errno.EFBIG)}; make ro")
    assert list(store.folder.iterdir()) == [before], "nothing is left of those that did not fit"
    assert_same(load(before), {"version": 1, **CONTENTS})


def test_metrics_that_do_not_fit(tmp_path):
    log = MetricsLog(tmp_path, 0, tensorboard=False)
    row = dict.fromkeys(COLUMNS, 1.0)
    # The header and one row fit, two rows do not.
    with no_file_larger_than(len(",".join(COLUMNS)) + 6 * len(COLUMNS)):
        log.write(row)
        for call in (lambda: log.write(row), log.close):
            with pytest.raises(WriteError, match=f"cannot write {tmp_path}/metrics.csv: .*; make"):
                call()
    assert read_metrics(tmp_path / "metrics.csv") == [row], "what fitted is there"


def test_events_that_do_not_fit(tmp_path, monkeypatch):
    """The thread that writes them fails: it is said here, and not by the thread."""
    pytest.importorskip("tensorboard")
    said = []

    def hook(failed):
        said.append(failed.exc_value)

    monkeypatch.setattr(threading, "excepthook", hook)
    log = MetricsLog(tmp_path, 0, tensorboard=True)
    log._events.flush()
    with no_file_larger_than(100):
        log._events.add_scalar("bits/train", 1.0, 1)
        for _ in range(2):
            with pytest.raises(WriteError, match=f"cannot write {tmp_path}/tensorboard: "):
                log.sync()
        another = threading.Thread(target=open, args=(tmp_path / "nothing",))
        another.start()
        another.join()
        with suppress(WriteError):
            log.close()
    assert [type(error) for error in said] == [FileNotFoundError], "other threads are heard"
    assert threading.excepthook is hook


def test_two_logs_of_events_leave_the_hook_of_threads_as_it_was(tmp_path, monkeypatch):
    """The one opened first is closed first."""
    pytest.importorskip("tensorboard")
    said = []

    def hook(failed):
        said.append(failed.exc_value)

    monkeypatch.setattr(threading, "excepthook", hook)
    folders = tmp_path / "1", tmp_path / "2"
    for folder in folders:
        folder.mkdir()
    first, second = (MetricsLog(folder, 0, tensorboard=True) for folder in folders)
    first.close()
    with no_file_larger_than(100):
        second._events.add_scalar("bits/train", 1.0, 1)
        with pytest.raises(WriteError):
            second.sync()
        with suppress(WriteError):
            second.close()
    assert not said
    assert threading.excepthook is hook


@pytest.mark.parametrize("text", ["", "sequences,updates"])
def test_metrics_without_columns_are_said_to_be_none(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=r"metrics.csv is not a metrics.csv: its columns must be"):
        MetricsLog(tmp_path, 10, tensorboard=False)


@pytest.mark.parametrize("kind", ["text", "zip", "tensor", "code", "dictionary", "folder", "none"])
def test_wrong_files(tmp_path, kind):
    path = tmp_path / "000000000001.pt"
    if kind == "text":
        path.write_text("weights")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights", "none")
    elif kind == "tensor":
        torch.save(torch.ones(3), path)
    elif kind == "code":
        torch.save({"version": 1, "config": print}, path)
    elif kind == "dictionary":
        torch.save({"state_dict": {}}, path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(CheckpointError, match=str(path)):
        load(path)


def test_another_version_is_refused(store):
    path = store.save(10, {**CONTENTS, "version": 99})
    with pytest.raises(CheckpointError, match="has version 99 of the format, this package reads 1"):
        load(path)


def test_a_damaged_checkpoint_names_the_one_before(store):
    before, newest = store.save(10, CONTENTS), store.save(20, CONTENTS)
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=f"{newest} is damaged.*--checkpoint {before}"):
        load_run(store.folder.parent)
    path, contents = load_run(store.folder.parent, before)
    assert path == before
    assert_same(contents, {"version": 1, **CONTENTS})


def test_a_checkpoint_that_a_running_training_removes_meanwhile(store, monkeypatch):
    """Then it has a newer one."""
    older = store.save(10, CONTENTS)

    def meanwhile(path):
        if path == older:
            older.unlink()
            store.save(20, CONTENTS)
        return load(path)

    monkeypatch.setattr(checkpoint, "load", meanwhile)
    path, _ = load_run(store.folder.parent)
    assert path.name == "000000000020.pt"


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path} holds no checkpoint"):
        load_run(tmp_path)
