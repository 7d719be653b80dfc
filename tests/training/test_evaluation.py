"""Tests beyond training: their memories, the long ones, and errors by parts of the output."""

import dataclasses

import pytest
import torch
from torch import nn

from ntm_kernels import tasks
from ntm_kernels.tasks import Trial
from ntm_kernels.training import evaluation
from ntm_kernels.training.models import build_model, memory_of_at_least, memory_size_of
from ntm_kernels.training.presets import preset
from tests.training.runs import SHORT, TRAINING, baseline


def tiny_copy(**changes):
    return preset("copy", **{**TRAINING, **SHORT["copy"], **changes})


def test_a_test_gets_the_memory_it_needs():
    config = tiny_copy(initial_memory=1e-6)
    model = build_model(config)
    tests = {"small": Trial(config.task, 3), "large": Trial(config.task, 9)}
    scores = evaluation.evaluate(model, config, tests)
    assert {title: score.memory_size for title, score in scores.items()} == {"small": 4, "large": 9}
    assert model.memory_size == 4, "it has its own again"
    same = build_model(dataclasses.replace(config, memory_size=9))
    same.load_state_dict(model.state_dict())
    again = evaluation.evaluate(same, config, {"large": Trial(config.task)})
    assert again["large"].bits == scores["large"].bits


def test_what_is_learned_fixes_the_memory_of_every_test():
    config = tiny_copy(initial_memory="learned")
    scores = evaluation.evaluate(build_model(config), config, {"large": Trial(config.task, 9)})
    assert scores["large"].memory_size == 4


def test_a_model_without_memory_takes_every_test():
    model = build_model(baseline())
    assert memory_size_of(model) is None
    with memory_of_at_least(model, 9) as locations:
        assert locations is None


def test_the_memory_is_put_back_after_an_error():
    model = build_model(tiny_copy(initial_memory=1e-6))

    def fail():
        with memory_of_at_least(model, 9):
            assert model.memory_size == 9
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model.memory_size == 4


def test_long_tests_are_made_where_they_are_asked_for():
    titles = [f"length {n}" for n in (20, 30, 50, 80, 120)]
    assert list(evaluation.test_sets(tiny_copy())) == [evaluation.AS_TRAINED, *titles]
    long = evaluation.test_sets(tiny_copy(long_tests=True))
    assert list(long)[-2:] == ["length 1,000", "length 10,000"]
    assert long["length 10,000"][1:] == (16_384, 4)


def test_a_trial_bounds_its_sequences():
    config = tiny_copy(evaluation_size=5)
    tests = {"few": Trial(config.task, sequences=2), "all": Trial(config.task, sequences=9)}
    scores = evaluation.evaluate(build_model(config), config, tests)
    assert {title: score.sequences for title, score in scores.items()} == {"few": 2, "all": 5}


def test_a_seed_of_the_tests_gives_all_runs_the_same_sequences():
    model = build_model(tiny_copy())

    def bits(**seeds):
        config = tiny_copy(**seeds)
        return evaluation.evaluate(model, config, {"x": Trial(config.task)})["x"].bits

    assert bits(seed=0) != bits(seed=1)
    assert bits(seed=0, evaluation_seed=5) == bits(seed=1, evaluation_seed=5)
    assert bits(seed=0, evaluation_seed=5) == bits(seed=5)


class Answers(nn.Module):
    """Answers with what it is given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x, state=None):
        return self.logits, state


def test_errors_by_parts_of_the_output():
    task = tasks.make("repeat_copy", width=2, max_length=3, max_repeats=2)
    config = preset("repeat_copy", model="lstm", width=2, max_length=3, max_repeats=2)
    batch = task.sample(6, torch.Generator().manual_seed(0))
    right = batch.targets * 2 - 1
    start = int(batch.mask[:, 1].nonzero()[0])
    end = int(batch.lengths[4]) - 1
    outside = (~batch.mask).nonzero()[0].tolist()

    def parts(*wrong):
        logits = right.clone()
        for place in wrong:
            logits[place] = float("nan") if place[1] == 5 else -logits[place]
        return evaluation.score(Answers(logits), [batch], config).parts

    steps = int(batch.mask.sum())
    assert parts() == {"vectors": (steps, 0, 0), "end marker": (steps, 0, 0)}
    assert parts((start, 1, 0), (start, 1, 1), (start + 1, 1, 0)) == {
        "vectors": (steps, 2, 1),
        "end marker": (steps, 0, 0),
    }
    assert parts((end, 4, 2), (start, 1, 0)) == {
        "vectors": (steps, 1, 1),
        "end marker": (steps, 1, 1),
    }
    assert parts((*outside, 0))["vectors"] == (steps, 0, 0), "no answer is asked for there"
    first = int(batch.mask[:, 5].nonzero()[0])
    assert parts((first, 5, 1))["vectors"] == (steps, 1, 1), "NaN is wrong"


def test_a_score_says_its_parts():
    config = preset("repeat_copy", **{**TRAINING, **SHORT["repeat_copy"]})
    result = evaluation.evaluate(build_model(config), config, {"x": Trial(config.task)})["x"]
    assert "; vectors: " in str(result)
    assert result.to_dict()["parts"]["end marker"].keys() == {
        "steps",
        "wrong_steps",
        "wrong_sequences",
    }
