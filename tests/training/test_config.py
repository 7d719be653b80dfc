import json
import re

import pytest

from ntm_kernels import tasks, weights
from ntm_kernels.fields import describe
from ntm_kernels.training import checkpoint
from ntm_kernels.training.config import TESTED, TrainConfig
from ntm_kernels.training.models import build_model
from ntm_kernels.training.presets import preset
from ntm_kernels.training.trainer import saved_config

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


# What says how a run is watched and tested, and nothing of what it learns.
WATCHED = {"seed", "validate_every", "checkpoint_every", *TESTED}


@pytest.mark.parametrize("task", weights.available())
def test_the_defaults_are_what_was_trained(task):
    """Those of the model of this task that comes with the package."""
    path = weights.path_of(task)
    trained = saved_config(path, checkpoint.load(path)["config"])
    default = preset(task)
    differing = {line.partition(":")[0] for line in default.differences(trained)}
    assert differing <= WATCHED
    posed = {"answer_channel": True} if task == "copy" else {}
    assert default.task == tasks.make(task, **posed), "posed as in the paper, but for copy"


def test_another_controller_keeps_the_better_settings():
    """It has the sizes of its own row in the paper's tables."""
    config = preset("associative_recall", controller="feedforward")
    assert (config.controller, config.num_read_heads, config.hidden_size) == ("feedforward", 4, 256)
    better = preset("associative_recall")
    kept = ("memory_size", "grow_memory", "lr", "clip_norm", "output_from", "total_sequences")
    assert [getattr(config, name) for name in kept] == [getattr(better, name) for name in kept]
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


@pytest.mark.parametrize(
    "overrides", [{"grow_memory": 2048}, {"grow_memory": None}, {"grow_at": 1}]
)
def test_a_growth_of_ones_own_has_no_second(overrides):
    assert preset("ngrams").grow_again == 1024
    [(name, value)] = overrides.items()
    config = preset("ngrams", **overrides)
    assert config.grow_again is None
    assert getattr(config, name) == value
    assert preset("ngrams", grow_memory=512, grow_again=2048).growth == ((0.0, 512), (0.9, 2048))


@pytest.mark.parametrize("task", ["ngrams", "priority_sort"])
def test_write_heads_that_cannot_shift_do_not_walk(task):
    assert preset(task).walking_write_heads
    assert not preset(task, "paper").walking_write_heads
    assert not preset(task, shift_range=0).walking_write_heads
    assert not preset(task, initial_weightings="learned").walking_write_heads
    for wrong in ({"shift_range": 0}, {"initial_weightings": "uniform", "initial_memory": 0.5}):
        with pytest.raises(ValueError, match="needs heads that can shift and begin on one loc"):
            preset(task, walking_write_heads=True, **wrong)


def test_read_heads_that_cannot_shift_do_not_step():
    assert preset("ngrams").stepping_read_heads
    assert preset("ngrams", initial_weightings="learned").stepping_read_heads
    assert not preset("ngrams", "paper").stepping_read_heads
    assert not preset("ngrams", shift_range=0).stepping_read_heads
    with pytest.raises(ValueError, match="stepping_read_heads needs heads that can shift"):
        preset("ngrams", stepping_read_heads=True, shift_range=0)


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
