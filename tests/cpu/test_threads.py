"""The CPU kernels on several threads, under the thread sanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("csrc/cpu/kernels.cpp", "csrc/workspace.cpp", "tests/cpu/threads.cpp")
FLAGS = ("-std=c++20", "-O1", "-g", "-fsanitize=thread", "-pthread", "-Icsrc", "-DNTM_ISA=baseline")


def compiler():
    """g++ if its thread sanitizer works here."""
    path = shutil.which("g++")
    if path is None:
        pytest.skip("there is no g++")
    empty = [path, "-fsanitize=thread", "-x", "c++", "-", "-o", os.devnull]
    if subprocess.run(empty, input="int main() {}", text=True, capture_output=True).returncode:
        pytest.skip("g++ has no thread sanitizer")
    return path


def build(folder, sources=SOURCES):
    program = folder / "threads"
    subprocess.run([compiler(), *FLAGS, *sources, "-o", program], cwd=ROOT, check=True)
    return subprocess.run([program], text=True, capture_output=True)


def test_threads_share_nothing(tmp_path):
    done = build(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("threads: the same bits")


def test_a_race_is_seen(tmp_path):
    """The same program over a pool without its lock."""
    source = (ROOT / "csrc/workspace.cpp").read_text()
    assert source.count("const std::lock_guard<std::mutex> lock") == 2
    unlocked = tmp_path / "workspace.cpp"
    unlocked.write_text(source.replace("const std::lock_guard<std::mutex> lock", "(void)"))
    done = build(tmp_path, (SOURCES[0], unlocked, SOURCES[2]))
    assert done.returncode != 0
    assert "data race" in done.stderr
