import csv
import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch

from ntm_kernels import tasks
from ntm_kernels.optim import GravesRMSprop
from ntm_kernels.training import records
from ntm_kernels.training import trainer as trainer_module
from ntm_kernels.training.checkpoint import CheckpointError, CheckpointStore, load
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.evaluation import evaluate, fixed_set, score
from ntm_kernels.training.metrics import MetricsLog, read_metrics
from ntm_kernels.training.models import answer, trained_model
from ntm_kernels.training.playing import play
from ntm_kernels.training.trainer import Trainer, TrainingError, build_optimiser
from tests.training.runs import assert_same, baseline, everything_but_time, quiet, tiny


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """TensorBoard's writer costs more than these runs; test_cli writes its events."""
    monkeypatch.setattr(records, "find_spec", lambda name: None)


def make(config, run_dir, **options):
    return Trainer(config, run_dir, report=quiet, **options)


def stop_after(trainer, sequences):
    return lambda: trainer.counters.sequences >= sequences


@pytest.mark.parametrize(
    "config",
    [
        tiny(),
        tiny(controller="feedforward"),
        baseline(),
        tiny(optimiser="adam", dtype="float64"),
        tiny(dtype="bfloat16", batch_size=7, clip="off", clip_norm=0.01),
    ],
    ids=["ntm", "feedforward", "lstm", "adam", "bfloat16 and norm"],
)
def test_resuming_changes_nothing(tmp_path, config):
    straight = make(config, tmp_path / "straight")
    assert straight.run()
    for name, stops in (("boundary", [20, 40]), ("between", [4, 26, 34])):
        for stop in stops:
            part = make(config, tmp_path / name, resume=True)
            assert not part.run(stop_after(part, stop))
            assert stop <= part.counters.sequences < stop + config.batch_size
        assert make(config, tmp_path / name, resume=True).run()
        assert_same(
            everything_but_time(tmp_path / name), everything_but_time(tmp_path / "straight")
        )


def test_seconds_go_on(tmp_path, monkeypatch):
    """The clock of a resumed run starts where the checkpoint stopped it."""
    ticks, processor = itertools.count(1000), itertools.count(2000)
    clock = SimpleNamespace(
        perf_counter=lambda: float(next(ticks)), process_time=lambda: float(next(processor))
    )
    monkeypatch.setattr(trainer_module, "time", clock)
    part = make(tiny(), tmp_path)
    part.run(stop_after(part, 30))
    make(tiny(), tmp_path, resume=True).run()
    seconds = [row["seconds"] for row in read_metrics(tmp_path / "metrics.csv")]
    assert len(seconds) == 10
    assert all(0 < before < after for before, after in itertools.pairwise(seconds))
    assert seconds[-1] < 1000
    counters = load(CheckpointStore(tmp_path / "checkpoints").latest())["counters"]
    assert counters["processor_seconds"] == 30, "one tick for each of the 30 updates"


def test_rows_and_files_after_the_checkpoint_are_dropped(tmp_path):
    """What a kill leaves behind: rows and half a row beyond the checkpoint, half a checkpoint."""
    make(tiny(), tmp_path / "straight").run()
    run_dir = tmp_path / "killed"
    part = make(tiny(), run_dir)
    part.run(stop_after(part, 30))
    with open(run_dir / "metrics.csv", "a") as file:
        file.write("36,18,1.5,,,0.01,9.0,1,16\n42,21,1.4,1.2,0.5,0.01,9.0,1,16\n48,2")
    (run_dir / "checkpoints" / ".000000000040.pt.tmp").write_bytes(b"half")
    make(tiny(), run_dir, resume=True).run()
    assert_same(everything_but_time(run_dir), everything_but_time(tmp_path / "straight"))
    assert not list((run_dir / "checkpoints").glob(".*"))


def test_resuming_from_the_checkpoint_before(tmp_path):
    make(tiny(), tmp_path / "straight").run()
    run_dir = tmp_path / "damaged"
    part = make(tiny(), run_dir)
    part.run(stop_after(part, 30))
    store = CheckpointStore(run_dir / "checkpoints")
    before, newest = store.all()
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=f"use the one before it with --checkpoint {before}"):
        make(tiny(), run_dir, resume=True)
    make(tiny(), run_dir, resume=True, checkpoint=before).run()
    assert_same(everything_but_time(run_dir), everything_but_time(tmp_path / "straight"))


@pytest.mark.parametrize("name", ["good.pt", "000000000099.pt"])
def test_resuming_from_a_copied_checkpoint(tmp_path, name):
    """Later checkpoints go by the sequences that they have seen, whatever the copy is called."""
    make(tiny(total_sequences=40, schedule_sequences=60), tmp_path / "straight").run()
    run_dir, copied = tmp_path / "run", tmp_path / name
    part = make(tiny(), run_dir)
    part.run(stop_after(part, 20))
    copied.write_bytes(CheckpointStore(run_dir / "checkpoints").latest().read_bytes())
    make(tiny(), run_dir, resume=True).run()
    config = tiny(total_sequences=40)
    make(config, run_dir, resume=True, checkpoint=copied).run()
    assert [path.stem for path in CheckpointStore(run_dir / "checkpoints").all()] == [
        "000000000030",
        "000000000040",
    ]
    assert_same(everything_but_time(run_dir), everything_but_time(tmp_path / "straight"))


def test_a_copied_checkpoint_with_nothing_left_to_train_becomes_the_newest(tmp_path):
    run_dir, copied = tmp_path / "run", tmp_path / "good.pt"
    part = make(tiny(), run_dir)
    part.run(stop_after(part, 20))
    copied.write_bytes(CheckpointStore(run_dir / "checkpoints").latest().read_bytes())
    make(tiny(), run_dir, resume=True).run()
    assert make(tiny(total_sequences=20), run_dir, resume=True, checkpoint=copied).run()
    [path] = CheckpointStore(run_dir / "checkpoints").all()
    assert path.name == "000000000020.pt"
    assert_same(load(path), load(copied))


def test_seeds_decide(tmp_path):
    runs = [make(tiny(seed=seed), tmp_path / str(i)) for i, seed in enumerate([1, 1, 2])]
    for run in runs:
        run.run()
    states = [run.model.state_dict() for run in runs]
    assert_same(states[0], states[1])
    assert not torch.equal(states[0]["output.weight"], states[2]["output.weight"])


def test_the_global_generator_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    make(tiny(), tmp_path).run()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_the_threads_of_the_process_are_left_alone(tmp_path):
    config, seen = tiny(threads=2), []
    run = make(config, tmp_path)
    run.model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    assert torch.get_num_threads() == 3
    run.run()
    assert torch.get_num_threads() == 3
    evaluate(run.model, config)
    play(run.model, config, seed=0)
    contents = load(CheckpointStore(tmp_path / "checkpoints").latest())
    trained_model(config, contents)
    assert torch.get_num_threads() == 3
    assert set(seen) == {2}, "a model runs on those of the configuration"


def test_a_run_is_not_overwritten(tmp_path):
    make(tiny(), tmp_path).run()
    with pytest.raises(FileExistsError, match="already holds a run; go on with --resume"):
        make(tiny(), tmp_path)


def test_other_settings_are_refused(tmp_path):
    make(tiny(), tmp_path).run()
    with pytest.raises(CheckpointError, match=r"other settings .*\(lr: 0.01 and 0.5\)"):
        make(tiny(lr=0.5), tmp_path, resume=True)


def extend(config, run_dir, *, stops=()):
    """Goes on with a run, stopped and gone on with from its config.json at each of ``stops``."""
    lines = []
    for stop in stops:
        part = Trainer(config, run_dir, resume=True, report=lines.append)
        assert not part.run(stop_after(part, stop))
        config = TrainConfig.from_dict(json.loads((run_dir / "config.json").read_text()))
    assert Trainer(config, run_dir, resume=True, report=lines.append).run()
    return lines


def test_a_finished_run_trains_longer_at_the_final_rate(tmp_path):
    """Twice, which gives the run that had this total and the shorter schedule from its start."""
    config = tiny(total_sequences=108, schedule_sequences=60)
    make(config, tmp_path / "straight").run()
    make(tiny(), tmp_path / "longer").run()
    for total in (84, 108):
        lines = extend(tiny(total_sequences=total), tmp_path / "longer")
        assert lines[1] == (
            "the learning rate keeps its schedule of 60 sequences; "
            f"from there to {total} it stays at its final value, 0.0002"
        )
    assert_same(
        everything_but_time(tmp_path / "longer"), everything_but_time(tmp_path / "straight")
    )
    rows = everything_but_time(tmp_path / "longer")["rows"]
    assert [int(row["sequences"]) for row in rows] == list(range(6, 109, 6))
    rates = [float(row["lr"]) for row in rows]
    assert rates[8] > 0.0002, "falling until the end of the schedule"
    assert rates[9:] == [pytest.approx(0.0002)] * 9
    assert json.loads((tmp_path / "longer" / "config.json").read_text()) == config.to_dict()


@pytest.mark.parametrize("stops", [[60], [61, 75, 83]], ids=["at the old end", "between"])
def test_a_run_made_longer_resumes_bit_for_bit(tmp_path, stops):
    """The batch that the first total cut short included; stopped before its next checkpoint too."""
    for name in ("straight", "stopped"):
        make(tiny(batch_size=7), tmp_path / name).run()
    longer = tiny(batch_size=7, total_sequences=90)
    extend(longer, tmp_path / "straight")
    make(longer, tmp_path / "stopped", resume=True)  # killed once config.json was written
    extend(longer, tmp_path / "stopped", stops=stops)
    assert_same(
        everything_but_time(tmp_path / "stopped"), everything_but_time(tmp_path / "straight")
    )


@pytest.mark.parametrize("total", [48, 84])
def test_an_unfinished_run_keeps_its_schedule_too(tmp_path, total):
    config = tiny(total_sequences=total, schedule_sequences=60)
    make(config, tmp_path / "straight").run()
    part = make(tiny(), tmp_path / "other")
    part.run(stop_after(part, 30))
    lines = extend(tiny(total_sequences=total), tmp_path / "other")
    assert lines[1].startswith("the learning rate keeps its schedule of 60 sequences; ")
    assert ("the run ends at 48, before the rate is final" in lines[1]) == (total == 48)
    assert_same(everything_but_time(tmp_path / "other"), everything_but_time(tmp_path / "straight"))


def test_a_total_below_what_was_seen_is_refused(tmp_path):
    make(tiny(), tmp_path).run()
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(
        CheckpointError, match=r"total_sequences must be at least 60, .* has seen, got 59; ask for"
    ):
        make(tiny(total_sequences=59), tmp_path, resume=True)
    assert (tmp_path / "config.json").read_text() == before


def test_another_schedule_is_refused(tmp_path):
    make(tiny(), tmp_path).run()
    make(tiny(schedule_sequences=60), tmp_path, resume=True)  # the one it has
    for total in (60, 84):
        config = tiny(total_sequences=total, schedule_sequences=72)
        with pytest.raises(CheckpointError, match=r"other settings .*\(schedule_sequences: "):
            make(config, tmp_path, resume=True)


def test_a_run_of_before_goes_on_and_longer(tmp_path):
    """Its configuration has neither a norm to clip to nor a schedule of its own."""
    straight, old = tmp_path / "straight", tmp_path / "old"
    make(tiny(total_sequences=84, schedule_sequences=60), straight).run()
    part = make(tiny(), old)
    part.run(stop_after(part, 30))
    path = CheckpointStore(old / "checkpoints").latest()
    contents = load(path)
    for name in ("clip_norm", "schedule_sequences"):
        del contents["config"][name]
    torch.save(contents, path)
    (old / "config.json").write_text(json.dumps(contents["config"]))
    config = TrainConfig.from_dict(contents["config"])
    extend(config, old)
    extend(tiny(total_sequences=84), old)
    assert_same(everything_but_time(old), everything_but_time(straight))


def test_resuming_nothing_says_so(tmp_path):
    lines = []
    Trainer(tiny(), tmp_path, resume=True, report=lines.append)
    assert "holds no checkpoint to resume from: starting from the beginning" in lines[0]


@pytest.mark.parametrize("clip", ["off", 1e-3])
@pytest.mark.parametrize("clip_norm", ["off", 1e-3])
def test_one_update_is_the_documented_one(tmp_path, clip, clip_norm):
    """Loss averaged over answer bits, elements clipped, then the norm, and Graves' RMSProp."""
    config = tiny(clip=clip, clip_norm=clip_norm, total_sequences=2)
    run = make(config, tmp_path)
    twin = make(config, tmp_path / "twin").model
    batch = config.task.sample(2, run._generator.clone_state())
    run.run()

    logits = twin(batch.inputs)[0]
    chosen = batch.mask.unsqueeze(-1).expand_as(logits)
    expected = torch.nn.BCEWithLogitsLoss()(logits[chosen], batch.targets[chosen])
    expected.backward()
    gradients = [parameter.grad for parameter in twin.parameters()]
    assert any((gradient.abs() > 1e-3).any() for gradient in gradients), "there is what to clip"
    if clip != "off":
        for gradient in gradients:
            gradient.clamp_(-clip, clip)
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
    assert norm > 1e-3
    if clip_norm != "off":
        for gradient in gradients:
            gradient.mul_(clip_norm / norm)
    GravesRMSprop(twin.parameters(), lr=config.lr).step()
    for ours, theirs in zip(run.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_training_learns(tmp_path):
    settings = {"num_items": 1, "num_answers": 1, "hidden_size": 16, "batch_size": 10}
    every = {"validate_every": 600, "log_every": 600, "checkpoint_every": 3000}
    config = baseline(**settings, **every, total_sequences=3000)
    run = make(config, tmp_path)
    run.run()
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows[0]["train_bits"] > 1
    assert rows[-1]["validation_bits"] < 0.1
    assert run.counters.learnt_at in [row["sequences"] for row in rows]
    learnt = [row["sequences"] for row in rows if row["validation_bits"] < 0.1]
    assert run.counters.learnt_at == learnt[0]


def test_stop_below_ends_the_run(tmp_path):
    run = make(tiny(stop_below=100.0), tmp_path)
    assert run.run()
    assert run.counters.sequences == 12, "the first validation"
    assert make(tiny(stop_below=100.0), tmp_path, resume=True).run()
    assert extend(tiny(stop_below=100.0, total_sequences=84), tmp_path)[2].endswith(
        "bits above the optimum, below stop_below = 100; to train longer, give a lower --stop-below"
    )
    more = make(tiny(stop_below=0.0, total_sequences=84), tmp_path, resume=True)
    assert more.run()
    assert more.counters.sequences == 84
    assert more.config.planned_sequences == 60
    assert extend(tiny(stop_below=0.0, total_sequences=84), tmp_path)[2] == (
        "nothing left to train: all 84 sequences are seen; "
        "to train longer, give a larger --total-sequences"
    )


def test_the_last_batch_is_cut_to_the_total(tmp_path):
    run = make(tiny(batch_size=25), tmp_path)
    run.run()
    assert (run.counters.sequences, run.counters.updates) == (60, 3)


def test_rows_hold_what_they_say(tmp_path):
    config = tiny()
    run = make(config, tmp_path)
    run.run()
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["sequences"]) for row in rows] == list(range(6, 61, 6))
    assert [bool(row["validation_bits"]) for row in rows] == [False, True] * 5
    assert float(rows[0]["lr"]) == config.lr
    assert float(rows[-1]["lr"]) == pytest.approx(0.02 * config.lr)
    # An untrained model is unsure of each of the four answer bits.
    assert 2 < float(rows[0]["train_bits"]) < 6
    result = score(run.model, fixed_set(config.task, 4, config, "validation"), config)
    assert float(rows[-1]["validation_bits"]) == result.bits


@pytest.mark.parametrize("poison", ["loss", "weight"])
@pytest.mark.parametrize(
    ("healthy", "between", "kept"),
    [(12, "between sequences 24 and 30", 20), (9, "between sequences 18 and 20", 10)],
    ids=["noticed by a row", "noticed by a checkpoint"],
)
def test_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch, poison, healthy, between, kept
):
    config = tiny()
    run = make(config, tmp_path)
    calls = iter(range(1000))

    def poisoned(*arguments):
        value = tasks.base.loss(*arguments)
        if next(calls) < healthy:
            return value
        if poison == "loss":
            return value * math.inf
        with torch.no_grad():
            run.model.output.bias[0] = math.nan
        return value

    monkeypatch.setattr(trainer_module.tasks, "loss", poisoned)
    with pytest.raises(TrainingError, match=f"no longer finite, {between}") as e:
        run.run()
    store = CheckpointStore(tmp_path / "checkpoints")
    assert str(store.latest()) in str(e.value)
    contents = load(store.latest())
    assert contents["counters"]["sequences"] == kept
    assert all(value.isfinite().all() for value in contents["model"].values())


def overflowing(run, updates, value=math.inf):
    """Gives the gradient of these updates, counted from 0, a value that is not finite."""
    calls = itertools.count()

    def hook(gradient):
        if next(calls) in updates:
            gradient = gradient.clone()
            gradient[0] = value
        return gradient

    run.model.output.bias.register_hook(hook)


@pytest.mark.parametrize(
    ("clip", "clip_norm", "value"),
    [("off", "off", math.inf), ("off", 0.1, math.nan), (1.0, "off", -math.inf)],
)
def test_a_gradient_that_is_not_finite_counts_as_zero(tmp_path, clip, clip_norm, value):
    config = tiny(clip=clip, clip_norm=clip_norm)
    said = []
    straight = Trainer(config, tmp_path / "straight", report=said.append)
    overflowing(straight, {4, *range(15, 30)}, value)
    assert straight.run()
    for parameter in straight.model.parameters():
        assert parameter.isfinite().all()
        assert not parameter.grad.any()
    lines = [line for line in said if "norm of the gradient was not finite" in line]
    assert [line.partition(" in ")[2].partition(";")[0] for line in lines] == [
        "1 update between sequences 6 and 12",
        *(f"3 updates between sequences {seen} and {seen + 6}" for seen in range(30, 60, 6)),
    ]

    part = make(config, tmp_path / "parts")
    overflowing(part, {4, 15}, value)
    assert not part.run(stop_after(part, 32))
    rest = make(config, tmp_path / "parts", resume=True)
    assert (rest.counters.overflowed, rest.counters.overflowed_in_a_row) == (1, 1)
    overflowing(rest, range(14), value)
    assert rest.run()
    assert_same(everything_but_time(tmp_path / "parts"), everything_but_time(tmp_path / "straight"))


def test_twenty_gradients_that_are_not_finite_end_the_run(tmp_path):
    config = tiny(log_every=1000)
    nineteen = make(config, tmp_path / "nineteen")
    overflowing(nineteen, range(11, 100))
    assert nineteen.run()
    twenty = make(config, tmp_path / "twenty")
    overflowing(twenty, range(10, 100))
    message = "gradients of the last 20 updates, up to sequence 60, were not finite; .*50.pt"
    with pytest.raises(TrainingError, match=message):
        twenty.run()


def test_optimisers_take_their_options():
    model = torch.nn.Linear(2, 2)
    graves = build_optimiser(tiny(momentum=0.5), model)
    assert isinstance(graves, GravesRMSprop)
    assert (graves.defaults["momentum"], graves.defaults["decay"]) == (0.5, 0.95)
    plain = build_optimiser(tiny(optimiser="rmsprop", decay=0.7), model)
    assert isinstance(plain, torch.optim.RMSprop)
    assert (plain.defaults["alpha"], plain.defaults["centered"]) == (0.7, True)
    adam = build_optimiser(tiny(optimiser="adam", eps=1e-5), model)
    assert isinstance(adam, torch.optim.Adam)
    assert adam.defaults["eps"] == 1e-5


def test_unusable_device_is_refused(tmp_path):
    for device in ("cudaa", "meta:x"):
        with pytest.raises(ValueError, match=f"device '{device}' cannot be used here"):
            make(tiny(device=device), tmp_path)


def test_score_of_padded_chunks_is_that_of_each_sequence(tmp_path):
    config = tiny()
    copying = make(tiny(), tmp_path).config
    task = tasks.make("copy", width=2, max_length=6)
    model = torch.nn.LSTM(3, 2)
    batch = task.sample(20, torch.Generator().manual_seed(0))
    result = score(model, batch.sorted_chunks(6), copying)
    alone = [
        tasks.bits(answer(model, one.inputs, config), one).item()
        for one in (batch.select(torch.tensor([i])) for i in range(20))
    ]
    assert result.bits == pytest.approx(sum(alone) / 20, rel=1e-6)
    assert result.sequences == 20


@pytest.mark.parametrize("row", [b"6,3,much,,,0.01,1.0\n", b"6,3\n", b"\xff,\xfe\n"])
def test_a_damaged_row_is_named(tmp_path, row):
    make(tiny(total_sequences=12), tmp_path).run()
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes() + row)
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged in line 4: "):
        read_metrics(path)
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged in line 4: "):
        MetricsLog(tmp_path, 6, tensorboard=False)


def test_metrics_of_other_columns_are_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"is not a metrics\.csv"):
        MetricsLog(tmp_path, 10, tensorboard=False)
