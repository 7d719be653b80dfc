"""One training with many seeds: processes, what they leave, and the table made of it."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ntm_kernels.training import cli
from ntm_kernels.training.evaluation import validation_optimum
from ntm_kernels.training.metrics import COLUMNS
from ntm_kernels.training.presets import preset
from ntm_kernels.training.seeds import Outcome, SeedRuns, parse_seeds, table
from tests.training.runs import TINY, as_options

WORDS = ["train", "priority_sort", *as_options(TINY)]


@pytest.mark.parametrize(
    ("text", "seeds"), [("4", (4,)), ("0-2", (0, 1, 2)), (" 3 , 0 - 1,9", (3, 0, 1, 9))]
)
def test_seeds_in_words(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be numbers and ranges such as 0-9 or 0,3,5, got ''"),
        ("1,two", "must be numbers and ranges"),
        ("-1", "must be numbers and ranges"),
        ("5-3", "the range '5-3' is empty"),
        ("0-2,2", "seeds must differ, got '0-2,2'"),
        ("0-99999", "more than 10,000 runs"),
    ],
)
def test_bad_seeds(text, message):
    with pytest.raises(ValueError, match=message):
        parse_seeds(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two seeds that finish, and one whose folder cannot be made."""
    folder = tmp_path_factory.mktemp("seeds")
    (folder / "seed-1").write_text("a file")
    words = [*WORDS, "--seeds", "0-2", "--jobs", "3", "--run-dir", str(folder)]
    assert cli.main(words) == 1
    return folder


def test_one_seed_that_fails_takes_no_other_with_it(finished, capsys):
    seeds = json.loads((finished / "summary.json").read_text())["seeds"]
    assert list(seeds) == ["0", "1", "2"]
    for seed in ("0", "2"):
        evaluation = json.loads((finished / f"seed-{seed}" / "evaluation.json").read_text())
        assert seeds[seed] == evaluation
        assert evaluation["sequences"] == 60
        assert evaluation["processor_seconds"] > 0
    assert seeds["0"]["scores"] != seeds["2"]["scores"]
    assert "exit code 1: error: " in seeds["1"]["problem"]
    assert "seed-1" in seeds["1"]["problem"]


def test_a_seed_is_the_run_that_it_is_alone(finished, tmp_path):
    assert cli.main([*WORDS, "--seed", "2", "--run-dir", str(tmp_path / "alone")]) == 0
    of_seeds = json.loads((finished / "seed-2" / "evaluation.json").read_text())
    alone = json.loads((tmp_path / "alone" / "evaluation.json").read_text())
    assert of_seeds["scores"] == alone["scores"]


def test_the_table_and_the_picture(finished):
    lines = (finished / "table.md").read_text().splitlines()
    assert lines[0].startswith("| seed | sequences | learnt after | processor s | as trained | ")
    assert [line.split(" | ")[0] for line in lines[2:6]] == ["| 0", "| 1", "| 2", "| median"]
    assert "0 of 3 seeds end below 0.1 bits a sequence" in lines[-1]
    image = pytest.importorskip("matplotlib.image").imread(finished / "seeds.png")
    assert image.std() > 0.05


def test_curves_are_above_the_optimum_of_their_own_seed(tmp_path):
    figure = pytest.importorskip("matplotlib.figure")
    seed_plots = pytest.importorskip("ntm_kernels.training.seed_plots")
    config = preset("ngrams", length=8, context=2, validation_size=4)
    optima = [validation_optimum(replace(config, seed=seed)) for seed in (0, 1)]
    assert optima[0] != optima[1]
    for seed, optimum in enumerate(optima):
        (tmp_path / f"seed-{seed}").mkdir()
        rows = [dict.fromkeys(COLUMNS, 1) | {"validation_bits": optimum + 2 - n} for n in (0, 1)]
        lines = [",".join(COLUMNS), *(",".join(map(str, row.values())) for row in rows), ""]
        (tmp_path / f"seed-{seed}" / "metrics.csv").write_text("\n".join(lines))
    axes = figure.Figure().subplots()
    seed_plots._draw_curves(axes, {0: {}, 1: {}}, tmp_path, config)
    for line in axes.lines:
        assert list(line.get_ydata()) == pytest.approx([2.0, 1.0])


def test_resuming_mends_what_failed(finished, capsys):
    (finished / "seed-1").unlink()
    words = [*WORDS, "--seeds", "0-2", "--jobs", "3", "--run-dir", str(finished)]
    assert cli.main(words) == 1
    assert "already holds a run; go on with --resume" in capsys.readouterr().err
    before = json.loads((finished / "summary.json").read_text())["seeds"]
    assert cli.main([*words, "--resume"]) == 0
    after = json.loads((finished / "summary.json").read_text())["seeds"]
    assert after["0"] == before["0"], "it had nothing left to train"
    assert after["1"]["sequences"] == 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0-1", "--seed", "3"], "--seed is for one run"),
        (["--seeds", "0-1", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--jobs", "2"], "--jobs says how many seeds are trained at once"),
        (["--seeds", "0-1", "--lr", "-1"], "lr must be greater than 0, got -1"),
    ],
)
def test_bad_words_are_refused_before_anything_runs(tmp_path, capsys, words, message):
    run_dir = tmp_path / "runs"
    assert cli.main(["train", "copy", *words, "--run-dir", str(run_dir)]) == 1
    assert message in capsys.readouterr().err
    assert not run_dir.exists()


def test_stopping_tells_the_runs_and_waits_for_them(tmp_path, monkeypatch):
    """Runs that would take long stop after an update; those not begun stay so."""
    started = []
    real = subprocess.Popen

    def popen(command, **options):
        script = "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(130))\nsignal.pause()"
        process = real([sys.executable, "-c", script], **options)
        started.append(process)
        time.sleep(0.5)
        return process

    monkeypatch.setattr(subprocess, "Popen", popen)
    runs = SeedRuns(tmp_path, ["copy"], [0, 1, 2], jobs=2, report=lambda line: None)
    outcomes = runs.run(lambda: len(started) == 2)
    assert [process.returncode for process in started] == [130, 130]
    assert [outcome.problem.split(":")[0] for outcome in outcomes] == [
        *["ended with exit code 130"] * 2,
        "not begun",
    ]


def outcome(seed, bits, optimal_bits):
    score = {"bits": bits, "optimal_bits": optimal_bits, "wrong": 4, "sequences": 4}
    score["parts"] = {
        "vectors": {"steps": 80, "wrong_steps": 2},
        "end marker": {"steps": 80, "wrong_steps": 0},
    }
    evaluation = {
        "sequences": 60,
        "learnt_at": 24,
        "learnt_bits": 0.2,
        "processor_seconds": 2.0,
        "scores": {"as trained": score},
    }
    return Outcome(seed, evaluation)


def test_cells_say_what_is_wrong():
    lines = table([outcome(0, 0.125, 0.0)]).splitlines()
    assert lines[2] == "| 0 | 60 | 24 | 2 | 0.125 (4 of 4 wrong; vectors 2.50%) |"


def test_cells_and_medians_are_above_the_optimum_where_no_answer_is_sure():
    lines = table([outcome(seed, bits, 132.0) for seed, bits in enumerate((132.125, 132.5, 135.0))])
    lines = lines.splitlines()
    assert lines[2] == "| 0 | 60 | 24 | 2 | 0.125 |"
    assert lines[5] == "| median |  |  | 2 | 0.5 |"
    assert lines[-1].startswith("1 of 3 seeds end below 0.2 bits a sequence above the optimum.")


def test_the_picture_shows_wrong_answers_only_where_answers_are_sure(tmp_path, monkeypatch):
    seed_plots = pytest.importorskip("ntm_kernels.training.seed_plots")
    titles = []
    monkeypatch.setattr(seed_plots, "_draw_curves", lambda *_: None)
    monkeypatch.setattr(
        seed_plots, "_draw_tests", lambda axes, done, title, value_of: titles.append(title)
    )
    for optimum in (0.0, 132.0):
        seed_plots.draw_seeds([outcome(0, 132.125, optimum)], tmp_path, preset("ngrams"))
    cost = "bits per sequence above the optimum"
    assert titles == [cost, "share of sequences wrong", cost]


def test_a_table_of_nothing():
    assert "None of 2 runs finished." in table([Outcome(0, None, "x|y"), Outcome(1, None, "z")])
