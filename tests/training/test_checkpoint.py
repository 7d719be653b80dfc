import zipfile

import pytest
import torch

from ntm_kernels.training.checkpoint import (
    CheckpointError,
    CheckpointStore,
    load,
    write_atomically,
)
from ntm_kernels.training.trainer import load_run
from tests.training.runs import assert_same

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
    store.forget_after(first)
    assert list(store.folder.iterdir()) == [first]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"new but incompl")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"


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


@pytest.mark.parametrize("kind", ["text", "zip", "tensor", "code", "dictionary", "folder", "none"])
def test_wrong_files(tmp_path, kind):
    path = tmp_path / "000000000001.pt"
    if kind == "text":
        path.write_text("weightings")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weightings", "none")
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


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path} holds no checkpoint"):
        load_run(tmp_path)
