"""Stages of a curriculum, a memory that grows, and the ends of a training."""

import dataclasses
import json

import pytest
import torch

from ntm_kernels import tasks
from ntm_kernels.training import records, runs
from ntm_kernels.training.checkpoint import load_run
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.curriculum import Curriculum
from ntm_kernels.training.metrics import COLUMNS, read_metrics
from ntm_kernels.training.models import build_model, load_model
from ntm_kernels.training.presets import preset
from ntm_kernels.training.runs import finish_run
from ntm_kernels.training.trainer import Trainer
from tests.training.runs import GRAVES, TRAINING, assert_same, everything_but_time, tiny

LN2 = 0.6931471805599453
# Stages with up to 3, 4 and 5 vectors and repeats. Every look at the cost promotes: after 10
# updates of the stage.
STAGED = {
    **TRAINING,
    **GRAVES,
    "initial_memory": 1e-6,
    "width": 2,
    "max_length": 5,
    "max_repeats": 5,
    "curriculum": True,
    "mix_earlier": 0.0,
    "grow_memory": None,
    "grow_again": None,
    "promote_below": 100.0,
    "last_stage_sequences": 40,
    "total_sequences": 1000,
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for module in (records, runs):
        monkeypatch.setattr(module, "find_spec", lambda name: None)


def staged(**changes):
    return preset("repeat_copy", **{**STAGED, **changes})


def run(config, run_dir, **options):
    said = []
    trainer = Trainer(config, run_dir, report=said.append, **options)
    trainer.run()
    return trainer, said


def test_stages_and_growth_by_the_rows(tmp_path):
    """20 sequences a stage, then 40 of the last; the memory grows after 20 and 32 of these."""
    growth = {"grow_memory": 7, "grow_at": 0.5, "grow_again": 9, "grow_again_at": 0.8}
    trainer, said = run(staged(**growth, hold=0.5), tmp_path)
    assert (trainer.end, trainer.counters.sequences) == ("last stage", 80)
    rows = read_metrics(tmp_path / "metrics.csv")
    of_stage = {row["sequences"]: row["stage"] for row in rows}
    assert [of_stage[seen] for seen in (18, 24, 36, 42, 80)] == [1, 2, 2, 3, 3]
    sizes = {row["sequences"]: row["memory_size"] for row in rows}
    assert [sizes[seen] for seen in (54, 60, 66, 72, 78, 80)] == [4, 4, 7, 7, 9, 9]
    rates = {row["sequences"]: row["lr"] for row in rows}
    assert [rates[seen] for seen in (18, 42, 60)] == [0.01] * 3, "held until the last stage is half"
    assert rates[66] < 0.01
    assert rates[80] == pytest.approx(0.01 * 0.02)
    assert [line for line in said if "begins" in line or "locations" in line] == [
        "stage 2 of 3 begins after 20 sequences",
        "stage 3 of 3 begins after 40 sequences",
        "the memory has 7 locations from 60 sequences on",
        "the memory has 9 locations from 72 sequences on",
    ]


@pytest.mark.parametrize(
    "growth",
    [{}, {"grow_memory": 7, "grow_at": 0.2, "grow_again": 9, "grow_again_at": 0.5}],
)
def test_resuming_changes_nothing(tmp_path, growth):
    config = staged(mix_earlier=0.4, **growth)
    run(config, tmp_path / "straight")
    for stop in (14, 26, 44, 70, 90):
        part = Trainer(config, tmp_path / "parts", resume=True, report=lambda line: None)
        part.run(lambda part=part, stop=stop: part.counters.sequences >= stop)
    last, said = run(config, tmp_path / "parts", resume=True)
    assert last.end == "last stage"
    assert not any("schedule" in line for line in said), "the schedule is that of the last stage"
    assert_same(everything_but_time(tmp_path / "parts"), everything_but_time(tmp_path / "straight"))


def test_the_last_stage_may_be_longer_on_resume(tmp_path):
    run(staged(), tmp_path)
    longer = staged(last_stage_sequences=50)
    trainer, said = run(longer, tmp_path, resume=True)
    assert trainer.counters.sequences == 90
    assert any("schedule of 40 sequences; from there to 50 it" in line for line in said)
    again, said = run(longer, tmp_path, resume=True)
    assert again.counters.sequences == 90
    assert "the last stage has seen its 50 sequences" in said[-1]
    assert "--last-stage-sequences" in said[-1]


def test_a_run_whose_last_stage_is_never_reached_ends_with_the_total(tmp_path):
    trainer, _ = run(staged(promote_below=1e-9, total_sequences=60), tmp_path)
    assert (trainer.end, trainer.counters.sequences) == ("total", 60)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert {row["stage"] for row in rows} == {1}
    assert {row["lr"] for row in rows} == {0.01}, "the schedule has not begun"


def test_promotion_follows_the_running_cost():
    """From 1 bit towards 0 by 2 % an update: 0.98^n is below 0.5 from n = 35 on; it looks at 40."""
    curriculum = Curriculum(staged(promote_below=0.5))
    nothing = torch.zeros(())
    begun = [n for n in range(1, 81) if curriculum.note(curriculum.stage, nothing, 2 * n)]
    assert begun == [40, 80]
    assert (curriculum.stage, curriculum.last_from) == (2, 160)
    assert not curriculum.note(2, nothing, 162), "the last stage has none after it"


def test_promotion_counts_from_the_optimum():
    """The best predictor of the first stage pays some 0.5 bit; twice the margin is too much."""
    config = preset("ngrams", length=125, context=2, promote_below=0.1)
    stages = Curriculum(config).stages
    assert [(stage.context, stage.length) for stage in stages] == [(2, 50), (2, 125)]
    batch = stages[0].sample(2000, torch.Generator().manual_seed(1))
    optimum = float(stages[0].optimal_bits(batch).mean()) / 50
    assert 0.3 < optimum < 0.7
    for excess, begins in ((0.05, True), (0.2, False)):
        curriculum = Curriculum(config)
        loss = torch.tensor((optimum + excess) * LN2)
        assert any(curriculum.note(0, loss, n) for n in range(400)) == begins


@dataclasses.dataclass(frozen=True)
class Listed(tasks.NGrams):
    """A task with a parameter that cannot be hashed."""

    name = "listed"
    notes: list = dataclasses.field(default_factory=list)


def test_a_task_that_cannot_be_hashed_has_stages_too():
    task = Listed(length=20, context=2)
    config = TrainConfig(task=task, curriculum=True, promote_below=0.1)
    curriculum = Curriculum(config)
    assert any(curriculum.note(0, torch.zeros(()), n) for n in range(400))


def test_only_updates_of_the_running_stage_count():
    curriculum = Curriculum(staged(promote_below=0.5))
    curriculum.note(0, torch.zeros(()), 2)
    assert not any(curriculum.note(1, torch.zeros(()), n) for n in range(100))
    coin = torch.tensor(LN2)
    assert not any(curriculum.note(0, coin, n) for n in range(100)), "a coin is no progress"


def test_earlier_stages_are_mixed_in():
    curriculum = Curriculum(staged(mix_earlier=0.25))
    generator = torch.Generator().manual_seed(0)
    assert {curriculum.draw(generator) for _ in range(20)} == {0}
    curriculum.stage = 2
    drawn = torch.tensor([curriculum.draw(generator) for _ in range(2000)]).bincount(minlength=3)
    assert drawn[2] == pytest.approx(1500, abs=80)
    assert drawn[0] == pytest.approx(250, abs=60)
    assert drawn[1] == pytest.approx(250, abs=60)


def test_giving_up(tmp_path):
    config = tiny(give_up_after=20, give_up_above=1e-3)
    trainer, _ = run(config, tmp_path / "bad")
    assert (trainer.end, trainer.counters.sequences) == ("given up", 20)
    _, said = run(config, tmp_path / "bad", resume=True)
    assert "given up, since no validation up to give_up_after = 20 sequences" in said[-1]
    later, _ = run(dataclasses.replace(config, give_up_after=None), tmp_path / "bad", resume=True)
    assert later.end == "total", "it may be asked to go on"
    good, _ = run(tiny(give_up_after=20, give_up_above=1e3), tmp_path / "good")
    assert good.end == "total"


def test_a_good_validation_keeps_a_run_going_when_it_gets_worse(tmp_path):
    trainer = Trainer(tiny(give_up_after=20), tmp_path, report=lambda line: None)
    trainer.counters.sequences, trainer.counters.excess_bits = 30, 50.0
    trainer.counters.lowest_excess_bits = 0.5
    assert trainer.end is None
    trainer.counters.lowest_excess_bits = 1.5
    assert trainer.end == "given up"


def test_metrics_of_an_older_run_go_on(tmp_path):
    """Its rows lack the last two columns."""
    run(tiny(total_sequences=36), tmp_path)
    path = tmp_path / "metrics.csv"
    lines = [line.rsplit(",", 2)[0] for line in path.read_text().splitlines()]
    assert lines[0].endswith("seconds")
    path.write_text("".join(f"{line}\n" for line in lines))
    assert "stage" not in read_metrics(path)[0]
    run(tiny(total_sequences=60), tmp_path, resume=True)
    rows = read_metrics(path)
    assert [row["sequences"] for row in rows] == list(range(6, 61, 6))
    assert [row.get("memory_size") for row in rows] == [None] * 6 + [4] * 4
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)


@pytest.mark.parametrize("stages", [(), (tasks.make("repeat_copy", max_length=2),)])
def test_a_curriculum_must_end_with_the_task(monkeypatch, stages):
    monkeypatch.setattr(tasks.TASKS["repeat_copy"], "curriculum", lambda task: stages)
    with pytest.raises(ValueError, match=r"repeat_copy\.curriculum\(\) must end with the task"):
        staged()


def test_a_stage_must_have_the_channels_of_the_task(monkeypatch):
    wide = tasks.make("repeat_copy", width=5)
    monkeypatch.setattr(tasks.TASKS["repeat_copy"], "curriculum", lambda task: (wide, task))
    with pytest.raises(ValueError, match="must have the channels of the task itself, 4 and 3; got"):
        staged()


def test_a_grown_memory_is_that_of_the_tests(tmp_path):
    trainer, _ = run(staged(grow_memory=7, grow_at=0.5), tmp_path)
    path, contents = load_run(tmp_path)
    model = build_model(trainer.config)
    load_model(model, contents)
    assert model.memory_size == 7
    said = []
    finish_run(model, trainer.config, tmp_path, path, contents["counters"], said.append)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["memory_size"] == evaluation["scores"]["as trained"]["memory_size"] == 7
    assert "sequences wrong, N = 7; vectors: " in said[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promote_below": 0.0}, "promote_below must be greater than 0, got 0.0"),
        ({"mix_earlier": 1.5}, r"mix_earlier must be in \[0, 1\], got 1.5"),
        ({"grow_at": -0.1}, r"grow_at must be in \[0, 1\], got -0.1"),
        ({"give_up_after": 0}, "give_up_after must be at least 1, got 0"),
        ({"last_stage_sequences": 0}, "last_stage_sequences must be at least 1, got 0"),
        ({"curriculum": False}, "last_stage_sequences is for a training with a curriculum"),
        ({"grow_memory": 4}, "grow_memory must be greater than memory_size = 4, got 4"),
        ({"grow_again": 9}, "grow_again is for a memory that has grown: give grow_memory too"),
        ({"grow_memory": 8, "grow_again": 8}, "grow_again must be greater than grow_memory = 8"),
        (
            {"grow_memory": 8, "grow_again": 9, "grow_again_at": 0.5},
            "grow_again_at must be at least grow_at = 0.6, got 0.5",
        ),
        (
            {"grow_memory": 8, "initial_memory": "learned"},
            "grow_memory cannot be given with initial_memory = learned, which fixes the number",
        ),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        staged(**changes)
