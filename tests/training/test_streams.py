"""Output whose reader has gone."""

import io
import os
import sys

import pytest

from ntm_kernels.training import cli
from ntm_kernels.training.streams import outlasting_readers
from tests.training.runs import TINY, as_options, everything_but_time, without_extras


def pipe():
    """Both ends of a pipe: the file descriptor to read from, the stream to write to."""
    reader, writer = os.pipe()
    return reader, os.fdopen(writer, "w", buffering=1)


def terminal():
    """A terminal's window, and the stream that programs write to."""
    window, inside = os.openpty()
    return window, os.fdopen(inside, "w", buffering=1)


def unread_pipe():
    reader, stream = pipe()
    os.close(reader)
    return stream


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("make", [pipe, terminal])
def test_writing_goes_on_without_a_reader(monkeypatch, make, name):
    reader, stream = make()
    monkeypatch.setattr(sys, name, stream)
    with stream, outlasting_readers():
        print("first", file=getattr(sys, name), flush=True)
        assert os.read(reader, 5) == b"first"
        os.close(reader)
        for _ in range(3):
            print("x" * 10_000, file=getattr(sys, name), flush=True)
        assert getattr(sys, name).fileno() == stream.fileno()
    assert getattr(sys, name) is stream


def test_a_full_disk_is_still_an_error(monkeypatch, capsys):
    stream = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["info"]) == 1
    assert capsys.readouterr().err == f"error: {stream.name}: No space left on device\n"
    with pytest.raises(OSError, match="No space left"):
        stream.close()


def test_closed_streams_stay_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with outlasting_readers():
        print("nowhere")


def test_a_run_ends_as_usual_without_a_reader(tmp_path, monkeypatch):
    """As with ``train … | head -1``, of standard output and standard error at once."""
    without_extras(monkeypatch)
    with unread_pipe() as out, unread_pipe() as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        words = ["train", "priority_sort", "--run-dir", str(tmp_path), *as_options(TINY)]
        assert cli.main(words) == 0
        assert cli.main(["eval", str(tmp_path)]) == 0
        assert cli.main(["info"]) == 0
        for words, code in ((["--help"], 0), (["train", "copy", "--bogus"], 2)):
            with pytest.raises(SystemExit) as stop:
                cli.main(words)
            assert stop.value.code == code
    monkeypatch.undo()
    assert everything_but_time(tmp_path)["checkpoint"]["counters"]["sequences"] == 60
    assert (tmp_path / "evaluation.json").exists()


def test_what_is_read_arrives(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with outlasting_readers():
        print("here")
    assert sys.stdout.getvalue() == "here\n"
