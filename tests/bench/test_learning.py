"""The record of what is learnt: its tables, from the files of the runs."""

import json

import pytest

from bench import learning
from ntm_kernels.training.arguments import parse
from ntm_kernels.training.presets import preset
from ntm_kernels.training.seeds import Outcome, write_summary


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "KEPT", tmp_path / "results")
    monkeypatch.setattr(learning, "FOLDER", tmp_path / "runs")
    (tmp_path / "results").mkdir()


def evaluation(bits):
    score = {"bits": bits, "optimal_bits": 0.0, "wrong": 1, "sequences": 4, "parts": {}}
    return {
        "sequences": 60,
        "learnt_at": None,
        "learnt_bits": 0.1,
        "processor_seconds": 2.0,
        "scores": {"as trained": score, "20 items": {**score, "bits": 10 * bits}},
    }


def keep(tmp_path, name):
    write_summary(tmp_path, ["copy"], [Outcome(0, evaluation(0.05)), Outcome(1, None, "broken")])
    (tmp_path / "summary.json").rename(tmp_path / "results" / f"{name}.json")


def page(tmp_path, *names):
    path = tmp_path / "page.md"
    places = [f"<!-- results: {name} -->\nold\n<!-- end of results -->" for name in names]
    path.write_text("\n\n".join(["before", *places, "after"]))
    return path


def test_a_table_takes_the_place_of_the_old_one(tmp_path):
    keep(tmp_path, "copy")
    path = page(tmp_path, "copy")
    learning.write_tables([path])
    text = path.read_text()
    assert "old" not in text
    assert text.startswith("before")
    assert text.endswith("after")
    assert "`python -m ntm_kernels train copy --seeds 0-9`" in text
    assert "| 0 | 60 | never | 2 | 0.05 (1 of 4 wrong) |" in text
    assert "| 1 | broken |" in text
    learning.write_tables([path])
    assert path.read_text() == text


def test_results_and_places_must_fit_each_other(tmp_path):
    keep(tmp_path, "copy")
    with pytest.raises(ValueError, match=r"no page has a place for .*copy\.json: write"):
        learning.write_tables([page(tmp_path)])
    with pytest.raises(ValueError, match=r"has a place for ngrams, and there is no .*ngrams\.json"):
        learning.write_tables([page(tmp_path, "copy", "ngrams")])


def test_the_table_of_rates(tmp_path, monkeypatch):
    costs = {"1e-5": [0.01, 0.2], "3.16e-5": [0.01, 0.02], "1e-4": [0.03, 0.04]}
    bits = {"someone": {rate: costs.get(rate, [None, 5.0]) for rate in learning.RATES}}
    (tmp_path / "results" / "rates_copy.json").write_text(json.dumps(bits))
    path = page(tmp_path, "rates_copy")
    learning.write_tables([path])
    row = "| someone | 1 of 2 | 2 of 2 | 2 of 2 | 0 of 2 | 0 of 2 | 0 of 2 | 0 of 2 | 1 |"
    assert row in path.read_text()


def test_the_table_of_factors(tmp_path):
    bits = {"the default": [[0.004, 0.123], [12.34, 35.6]], "Adam": [[None, None], [0.1, 9.99]]}
    (tmp_path / "results" / "factors_associative_recall.json").write_text(json.dumps(bits))
    path = page(tmp_path, "factors_associative_recall")
    learning.write_tables([path])
    text = path.read_text()
    assert "| the default | 0.004 / 0.12 | 12 / 36 |" in text
    assert "| Adam | failed / failed | 0.1 / 10 |" in text


def test_one_setting_is_changed_at_a_time():
    """The words are options of ``train``, and each row but the first differs from the default."""
    for task, factors in learning.FACTORS.items():
        configs = []
        for words in factors.values():
            options = parse(["train", task, *words])
            options = {k: v for k, v in options.items() if k not in ("command", "task", "resume")}
            configs.append(preset(task, **options))
        assert configs[0] == preset(task)
        assert all(config != configs[0] for config in configs[1:])
        assert learning._BEYOND[task] in configs[0].task.suite()


def test_runs_are_asked_for_and_kept(tmp_path, monkeypatch):
    asked = []

    def train(words, seeds, folder, jobs):
        asked.append((words, seeds, jobs))
        folder.mkdir(parents=True)
        (folder / "seeds.png").write_bytes(b"png")
        write_summary(folder, words, [Outcome(0, evaluation(0.05))])
        return [Outcome(0, evaluation(0.05))]

    monkeypatch.setattr(learning, "train", train)
    assert learning.main(["run", "copy_paper_inputs", "--jobs", "2"]) == 0
    ((words, seeds, jobs),) = asked
    assert words[:2] == ["copy", "--no-answer-channel"]
    assert "--long-tests" in words
    assert (seeds, jobs) == ("0-9", 2)
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "copy_paper_inputs.json",
        "copy_paper_inputs.png",
    }
    assert learning.main(["rates", "copy"]) == 0
    bits = json.loads((tmp_path / "results" / "rates_copy.json").read_text())
    assert all(len(by_rate) == 7 for by_rate in bits.values())
    assert bits["NTM, Adam"]["1e-3"] == [0.05]
    assert (tmp_path / "results" / "rates_copy.png").read_bytes().startswith(b"\x89PNG")
    assert learning.main(["factors", "associative_recall"]) == 0
    bits = json.loads((tmp_path / "results" / "factors_associative_recall.json").read_text())
    assert list(bits) == list(learning.FACTORS["associative_recall"])
    assert bits["Adam"] == [[0.05, 0.5]]
