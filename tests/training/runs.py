"""Tiny runs that take milliseconds, and how two of them are compared."""

import csv
import os
import resource
import sys
from contextlib import contextmanager

import torch

from ntm_kernels.training import records, runs
from ntm_kernels.training.checkpoint import CheckpointStore, load
from ntm_kernels.training.presets import preset

# Parameters of each task that make its sequences a few steps long.
SHORT = {
    "copy": {"width": 2, "max_length": 3},
    "repeat_copy": {"width": 2, "max_length": 2, "max_repeats": 2},
    "associative_recall": {"width": 2, "item_length": 1, "max_items": 3},
    "ngrams": {"length": 8, "context": 2},
    "priority_sort": {"width": 2, "num_items": 3, "num_answers": 2},
}
TRAINING = {
    "hidden_size": 5,
    "num_layers": 1,
    "memory_size": 4,
    "word_size": 3,
    "num_read_heads": 1,
    "num_write_heads": 1,
    "batch_size": 2,
    "total_sequences": 60,
    "curriculum": False,
    "clip_norm": "off",
    "lr": 1e-2,
    "validate_every": 12,
    "validation_size": 4,
    "checkpoint_every": 10,
    "log_every": 6,
    "evaluation_size": 4,
}
GRAVES = {"optimiser": "graves_rmsprop", "clip": 10.0, "hold": 0.75}
TINY = {**SHORT["priority_sort"], **TRAINING, **GRAVES}
BASELINE = {
    key: value
    for key, value in TINY.items()
    if key not in ("memory_size", "word_size", "num_read_heads", "num_write_heads")
}


def tiny(**changes):
    return preset("priority_sort", **{**TINY, **changes})


def baseline(**changes):
    return preset("priority_sort", model="lstm", **{**BASELINE, **changes})


def as_options(settings):
    words = []
    for key, value in settings.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            words += [f"--{name}" if value else f"--no-{name}"]
        else:
            words += [f"--{name}", str(value)]
    return words


def command(*words):
    return [sys.executable, "-m", "ntm_kernels", *map(str, words)]


def environment():
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return {**inherited, "OMP_NUM_THREADS": "1"}


def everything_but_time(run_dir):
    """The newest checkpoint and the rows of metrics.csv, without what a clock decides."""
    contents = load(CheckpointStore(run_dir / "checkpoints").latest())
    del contents["counters"]["seconds"], contents["counters"]["processor_seconds"]
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds"]
    return {"checkpoint": contents, "rows": rows}


def assert_same(one, other, where="run"):
    """Equality bit for bit through nested dictionaries, lists and tensors."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    else:
        assert one == other, where


@contextmanager
def no_file_larger_than(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def quiet(line):
    """Takes the trainer's lines."""


def without_extras(monkeypatch):
    """No events and pictures, which would take most of the time."""
    for module in (records, runs):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
