import json
import re

import pytest

from ntm_kernels import tasks
from ntm_kernels.fields import describe
from ntm_kernels.training.config import TrainConfig, preset
from ntm_kernels.training.models import build_model

# Heads, hidden size, layers and rate of tables 1 to 3 of the paper, typed from them.
PAPER = {
    ("copy", "feedforward"): (1, 100, 1, 1e-4),
    ("copy", "lstm"): (1, 100, 1, 1e-4),
    ("repeat_copy", "feedforward"): (1, 100, 1, 1e-4),
    ("repeat_copy", "lstm"): (1, 100, 1, 1e-4),
    ("associative_recall", "feedforward"): (4, 256, 1, 1e-4),
    ("associative_recall", "lstm"): (1, 100, 1, 1e-4),
    ("ngrams", "feedforward"): (1, 100, 1, 3e-5),
    ("ngrams", "lstm"): (1, 100, 1, 3e-5),
    ("priority_sort", "feedforward"): (8, 512, 1, 3e-5),
    ("priority_sort", "lstm"): (5, 100, 2, 3e-5),
}


@pytest.mark.parametrize(("task", "controller"), PAPER)
def test_paper_preset_is_the_table(task, controller):
    config = preset(task, "paper", controller=controller)
    heads, hidden, layers, lr = PAPER[task, controller]
    assert (config.num_read_heads, config.num_write_heads) == (heads, heads)
    assert (config.hidden_size, config.num_layers, config.lr) == (hidden, layers, lr)
    assert (config.memory_size, config.word_size) == (128, 20)
    assert (config.optimiser, config.momentum) == ("graves_rmsprop", None)
    assert (config.clip, config.clip_norm) == (10.0, "off")
    assert config.hold == 1.0, "the paper's rate is constant"
    assert config.task == tasks.make(task)


@pytest.mark.parametrize(
    ("task", "hidden", "lr"),
    [
        ("copy", 256, 3e-5),
        ("repeat_copy", 512, 3e-5),
        ("associative_recall", 256, 1e-4),
        ("ngrams", 128, 1e-4),
        ("priority_sort", 128, 3e-5),
    ],
)
def test_paper_baseline_is_the_table(task, hidden, lr):
    config = preset(task, "paper", model="lstm")
    assert (config.num_layers, config.hidden_size, config.lr) == (3, hidden, lr)


GRAVES = {"optimiser": "graves_rmsprop", "batch_size": 4, "clip": "off", "clip_norm": 2.0}
# The runs of docs/training.md.
LEARNT = {
    "copy": {**GRAVES, "lr": 3e-4, "hold": 0.6, "memory_size": 128, "total_sequences": 60_000},
    "repeat_copy": {
        **GRAVES,
        "clip_norm": 1.0,
        "lr": 1e-3,
        "hold": 0.33,
        "memory_size": 64,
        "grow_memory": 128,
        "grow_at": 0.0,
        "curriculum": True,
        "promote_below": 0.2,
        "mix_earlier": 0.2,
        "last_stage_sequences": 150_000,
        "total_sequences": 250_000,
    },
    "associative_recall": {
        **GRAVES,
        "lr": 1e-3,
        "hold": 0.6,
        "memory_size": 32,
        "grow_memory": 128,
        "grow_at": 0.6,
        "total_sequences": 64_000,
    },
    "ngrams": {
        **GRAVES,
        "clip_norm": 0.2,
        "lr": 1e-3,
        "hold": 0.3,
        "memory_size": 64,
        "total_sequences": 240_000,
    },
    "priority_sort": {
        "optimiser": "adam",
        "batch_size": 16,
        "clip": 0.01,
        "clip_norm": "off",
        "hold": 0.4,
        "lr": 1e-3,
        "memory_size": 128,
        "total_sequences": 1_600_000,
    },
}


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_defaults_are_what_was_trained(task):
    config = preset(task)
    assert {name: getattr(config, name) for name in LEARNT[task]} == LEARNT[task]
    assert (config.controller, config.num_layers, config.hidden_size) == ("lstm", 1, 100)
    assert (config.decay, config.momentum, config.eps) == (None, None, None)
    assert (config.word_size, config.final_lr) == (20, 0.02)
    has_places = task in ("ngrams", "priority_sort")
    learned = ("learned", "learned") if has_places else (1e-6, "one_hot")
    assert (config.initial_memory, config.initial_weightings) == learned
    assert config.output_from == ("features" if has_places else "read_vectors")
    posed = {"answer_channel": True} if task == "copy" else {}
    assert config.task == tasks.make(task, **posed), "posed as in the paper, but for copy"


def test_the_better_settings_may_choose_the_controller():
    config = preset("associative_recall")
    assert (config.controller, config.num_read_heads, config.hidden_size) == ("lstm", 1, 100)
    other = preset("associative_recall", controller="feedforward")
    assert (other.controller, other.num_read_heads, other.hidden_size) == ("feedforward", 4, 256)
    for chosen in (config, other):
        assert (chosen.memory_size, chosen.lr, chosen.clip_norm) == (32, 1e-3, 2.0)
        assert chosen.output_from == "read_vectors"
    paper = preset("associative_recall", "paper")
    assert (paper.memory_size, paper.lr, paper.output_from) == (128, 1e-4, "features")


@pytest.mark.parametrize(
    "overrides",
    [{"memory_size": 256}, {"memory_size": 32}, {"initial_memory": "learned"}],
)
def test_a_memory_of_ones_own_does_not_grow(overrides):
    config = preset("associative_recall", **overrides)
    assert config.grow_memory is None
    assert config.memory_size == overrides.get("memory_size", 32)
    assert preset("associative_recall", memory_size=64, grow_memory=96).grow_memory == 96


def test_without_the_curriculum_its_settings_go():
    config = preset("repeat_copy", curriculum=False)
    assert (config.last_stage_sequences, config.mix_earlier) == (None, 0.0)
    assert config.stages == (config.task,)
    assert preset("repeat_copy", curriculum=True) == preset("repeat_copy")


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_baseline_is_trained_as_the_paper_says(task):
    config = preset(task, model="lstm")
    assert (config.optimiser, config.batch_size, config.clip) == ("graves_rmsprop", 1, 10.0)


@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("model", ["ntm", "lstm"])
def test_round_trip_through_json(task, model):
    config = preset(task, model=model, seed=7)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_field_reaches_the_model():
    config = preset(
        "copy",
        hidden_size=11,
        memory_size=7,
        word_size=5,
        num_read_heads=2,
        num_write_heads=3,
        shift_range=2,
        output_from="features",
        dtype="float64",
        initial_memory="learned",
        initial_read_vectors=0.5,
    )
    model = build_model(config)
    state = model.initial_state(4)
    assert state.memory.shape == (4, 7, 5)
    assert state.weightings.shape == (4, 5, 7)
    assert (state.read_vectors == 0.5).all()
    assert state.memory.requires_grad
    assert model.output.weight.shape == (8, 11 + 2 * 5)
    assert {p.dtype for p in model.parameters()} == {state.memory.dtype}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "best"}, "preset must be one of default, paper, got 'best'"),
        ({"controller": "gru"}, "controller must be lstm or feedforward, got 'gru'"),
        ({"model": "gru"}, "model must be one of ntm, lstm, got 'gru'"),
        ({"model": "lstm", "memory_size": 4}, "the LSTM baseline has no memory_size"),
        ({"depth": 3}, "copy has no parameter depth"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be greater than 0, got 0.0"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"batch_size": 2.0}, "batch_size must be a whole number, got 2.0"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"same_length": 1}, "same_length must be True or False, got 1"),
        ({"initial_memory": "lernt"}, "initial_memory must be a number or 'learned', got 'lernt'"),
        ({"backend": 3}, "backend must be text, got 3"),
        ({"max_length": "9"}, "copy: max_length must be a whole number, got '9'"),
        ({"clip": 0.0}, "clip must be greater than 0, or off, got 0.0"),
        ({"clip_norm": -1.0}, "clip_norm must be greater than 0, or off, got -1.0"),
        ({"clip_norm": float("nan")}, "clip_norm must be greater than 0, or off, got nan"),
        ({"schedule_sequences": 0}, "schedule_sequences must be at least 1, got 0"),
        ({"hold": 1.5}, r"hold must be in \[0, 1\], got 1.5"),
        ({"optimiser": "adam", "momentum": 0.5}, "decay and momentum belong to RMSProp"),
        ({"dtype": "float16"}, "dtype must be one of float32, float64, bfloat16, got 'float16'"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        preset("copy", **changes)


def test_whole_numbers_are_numbers_and_none_is_unset():
    config = preset("repeat_copy", optimiser="graves_rmsprop", lr=1, decay=None, momentum=0)
    assert (config.lr, config.decay, config.momentum) == (1, None, 0)


def test_a_task_is_a_task():
    with pytest.raises(ValueError, match=r"task must be a Task, got 'copy'; tasks\.make makes one"):
        TrainConfig(task="copy")


def test_configuration_of_another_version_is_refused():
    values = preset("copy").to_dict()
    values["depth"] = values.pop("clip")
    expected = r": 1 unknown field \(depth\), 1 missing field \(clip\); use the version"
    with pytest.raises(ValueError, match=expected):
        TrainConfig.from_dict(values)


@pytest.mark.parametrize("values", [{}, {"task": 5}])
def test_of_many_missing_fields_the_first_are_named(values):
    with pytest.raises(ValueError, match=r"\d missing fields \(backend, batch_size, ") as raised:
        TrainConfig.from_dict(values)
    assert re.search(r"cannot read the configuration: \d+ missing fields", str(raised.value))
    assert len(str(raised.value)) < 200


def test_help_says_weightings_only_of_the_heads():
    """The weights of the network are another thing."""
    texts = {name: field.help for name, field in describe(TrainConfig).items()}
    assert [name for name in texts if "weightings" in texts[name]] == ["initial_weightings"]
    assert "the gradient of all weights together" in texts["clip_norm"]


def test_configuration_of_before_means_what_it_did():
    """Clipped by element alone, and a rate that falls over the whole training."""
    config = preset("copy", clip=5.0, clip_norm="off", total_sequences=700)
    values = config.to_dict()
    del values["clip_norm"], values["schedule_sequences"]
    read = TrainConfig.from_dict(values)
    assert read == config
    assert (read.clip, read.clip_norm, read.planned_sequences) == (5.0, "off", 700)
