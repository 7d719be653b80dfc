"""Plan, rows, tables, pictures, claims and the README."""

import math
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from bench import claims, cli, plan, readme, results
from bench.claims import Finding, Target
from bench.contenders import BackendContender, Eager
from bench.machine import ROOT, Ceilings, Environment, Others, revision
from bench.results import Row
from bench.runner import Runner, choose
from bench.subjects import SUBJECTS, Entry, memory
from bench.timing import Limits
from bench.workload import Workload, sequence_cost

SMALL = Workload(batch=2, time=5, memory_size=6, word_size=3, hidden_size=4)
WHERE = Environment("2030-01-02T03:04:05+00:00", "abc", 'A, "quoted" CPU', 2, "3", "2", "0")
LIMIT = Ceilings(1e11, {"L1": 2e11, "L2": 1e11, "DRAM": 1e10}, "made up", 1e9)


def row(contender="cpu", value=2.0, workload=None, subject="train", measured="iteration"):
    return Row(
        subject=subject,
        measured=measured,
        contender=contender,
        unit="ms",
        median=value,
        p20=0.9 * value,
        p80=1.1 * value,
        samples=7,
        calls=3,
        other_cores=math.nan,
        method="made up",
        workload=workload or Workload(),
        environment=WHERE,
    )


def test_rows_survive_a_file(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    first = [row(), row("lstm", 0.123456789, replace(SMALL, threads=2, controller="own"))]
    results.write(path, first[:1])
    results.write(path, first[1:])
    back = results.read(path)
    assert [r.workload for r in back] == [r.workload for r in first]
    assert back[1].median == 0.123457
    assert math.isnan(back[0].other_cores)
    assert [asdict(r.environment) for r in back] == [asdict(WHERE)] * 2
    assert len(path.read_text().splitlines()) == 3


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"rows\.csv is not a file of results"):
        results.read(path)


def test_the_newest_results_are_found(tmp_path):
    for name in ("run-20300101-000000", "run-20310101-000000", "claims-20320101-000000"):
        results.write(tmp_path / name / results.ROWS, [row()])
    assert results.newest(tmp_path).parent.name == "run-20310101-000000"
    with pytest.raises(FileNotFoundError, match="python -m bench"):
        results.newest(tmp_path / "none")


def test_ratios_are_of_the_same_case():
    rows = [row(), row("lstm", 1.0), row("lstm", 8.0, SMALL)]
    text = results.ratio_table(rows, "cpu").splitlines()
    assert text[0].endswith("| cpu | lstm |")
    assert text[2].endswith("| 2.00 | 1.00 (×0.500) |")
    assert text[3].endswith("|  | 8.00 |")


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1234"), (12.345, "12.3"), (0.012345, "0.0123"), (0.0, "0")]
)
def test_numbers_have_three_digits(value, text):
    assert results.number(value) == text


def test_the_exponent_of_a_power():
    sizes = [100.0, 200.0, 4000.0]
    assert results.exponent(sizes, [3 * size**1.2 for size in sizes]) == pytest.approx(1.2)


def test_the_work_of_a_sequence_grows_as_it_must():
    base = sequence_cost(Workload(), "forward")
    assert sequence_cost(Workload(time=82), "forward") == pytest.approx(
        (2 * base.flops, 2 * base.bytes)
    )
    assert sequence_cost(Workload(), "both").flops == pytest.approx(3 * base.flops)
    # Twice the batch is twice the arithmetic, but the weights are read once for all of it.
    double = sequence_cost(Workload(batch=32), "forward")
    assert double.flops == pytest.approx(2 * base.flops)
    assert base.bytes < double.bytes < 2 * base.bytes


def test_matrix_products_are_counted_as_torch_counts_them():
    from torch.utils.flop_counter import FlopCounterMode

    workload = replace(SMALL, memory_size=1, word_size=1)
    model = Eager().model(workload)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(5, 2, workload.input_size))
    counted = sum(
        flops for op, flops in counter.get_flop_counts()["Global"].items() if "bmm" not in str(op)
    )
    w, layout = workload, workload.layout
    rest = w.memory_size * w.word_size * 13 + layout.num_heads * w.memory_size * 19
    assert sequence_cost(w, "forward").flops - w.time * w.batch * rest == counted


def test_a_plan_sweeps_one_size_at_a_time():
    cases = plan.plan(Workload(), {"batch": (1, 16), "heads": (1, 4)}, ["train", "sequence"])
    train = [case.workload for case in cases if case.subject == "train"]
    assert train == [
        Workload(),
        Workload(batch=1),
        Workload(num_read_heads=4, num_write_heads=4),
    ]
    sequence = [
        (case.measured, case.workload.batch) for case in cases if case.subject == "sequence"
    ]
    assert sequence == [("forward", 16), ("backward", 16), ("forward", 1), ("backward", 1)]
    assert [case.central for case in cases] == [True, False, False, True, True, False, False]


def test_plans_name_what_exists():
    assert set(plan.SWEPT) == set(SUBJECTS)
    assert set(plan.FULL) <= set(plan.AXES)
    for subject, passes in plan.PASSES.items():
        assert set(passes) <= set(SUBJECTS[subject].passes)


def test_a_run_writes_rows_table_and_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(cli, "QUICK_LIMITS", Limits(seconds=0.0, sample=0.0, least=1, most=1))
    monkeypatch.setattr(cli, "ceilings", lambda device, threads: LIMIT)
    sizes = ["--batch", "2", "3", "--time", "4", "--memory-size", "5", "--hidden-size", "4"]
    who = ["--contender", "torch", "lstm"]
    drawn = []
    with monkeypatch.context() as patch:
        patch.setattr(cli, "_draw", lambda rows, limits, folder: drawn.append(len(rows)))
        assert cli.main(["--quick", "--subject", "sequence", *who, *sizes]) == 0
    assert drawn == [8]
    (folder,) = tmp_path.iterdir()
    rows = results.read(folder / results.ROWS)
    assert {(r.contender, r.workload.batch, r.measured) for r in rows} == {
        (contender, batch, measured)
        for contender in ("torch", "lstm")
        for batch in (2, 3)
        for measured in ("forward", "backward")
    }
    assert {r.workload.memory_size for r in rows} == {5}
    assert cli.main(["plot", "--results", str(folder / results.ROWS)]) == 0
    pictures = {path.name for path in folder.glob("*.png") if path.stat().st_size > 5000}
    assert pictures == {
        "scaling-sequence-forward.png",
        "scaling-sequence-backward.png",
        "roofline.png",
    }
    table = (folder / "table.md").read_text()
    assert "| sequence | backward | B=3 T=4 N=5 M=20 R=1 W=1 C=4 | ms |" in table
    assert "GFLOP/s" in table
    assert "100 GFLOP/s" in table
    assert "medians" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contender", "nobody"], "there is no contender nobody here; there are: "),
        (["--peer", "nobody=/"], "a peer must be NAME=PATH"),
        (["--batch", "0"], "must be at least 1, got 0"),
        (["--subject", "nothing"], "invalid choice: 'nothing'"),
        (["claims", "--only", "99"], "invalid choice"),
        (["plot", "--results", "/does/not/exist.csv"], "exist.csv"),
    ],
)
def test_bad_arguments_are_explained(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_list_names_subjects_and_contenders(capsys):
    assert cli.main(["--list"]) == 0
    out = capsys.readouterr().out
    for name in (*SUBJECTS, "torch", "eager", "compiled", "lstm"):
        assert f"  {name} " in out


def test_contenders_keep_the_order_asked_for():
    first, second = Eager(), Eager()
    second.name = "second"
    assert choose([first, second], ["second", "eager"]) == [second, first]
    assert choose([first, second], None) == [first, second]


# In a process of its own, as in the bench. Here the memory that earlier tests have left could be
# freed at any time, and would make room for new memory.
PEAKS = """
import gc
import torch
from bench.subjects.memory import MIB, peak_bytes, reset_peak

def peak(then):
    before = reset_peak()
    then()
    return (peak_bytes() - before) / MIB

def use_32_mib():
    torch.ones(32 * MIB // 4)

def collect_garbage_and_use_32_mib():
    gc.collect()
    use_32_mib()

use_32_mib()  # loads the code
print(peak(use_32_mib), peak(lambda: None))
cycle = [torch.ones(64 * MIB // 4)]
cycle.append(cycle)
del cycle
print(peak(collect_garbage_and_use_32_mib))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a peak can be reset on Linux alone")
def test_a_peak_is_what_was_in_use_at_most():
    command = [sys.executable, "-c", PEAKS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    block, nothing, block_after_garbage = map(float, done.stdout.split())
    assert 31 < block < 34
    assert nothing < 2
    assert 31 < block_after_garbage < 34


def test_memory_is_measured_in_a_fresh_process():
    workload = replace(SMALL, time=20, batch=8, memory_size=512, word_size=32)
    entry = Entry(Eager(), workload)
    outcome = SUBJECTS["memory"].measure([entry], "iteration", Limits())
    assert outcome.failed == outcome.skipped == {}
    # Plain autograd keeps at least two memories a step.
    kept = 2 * 20 * 8 * 512 * 32 * 4 / memory.MIB
    assert kept < outcome.stats[entry].median < 20 * kept


def test_targets():
    low = Target(0.8, at_most=True, stretch=0.6)
    assert str(low) == "≤ 0.8 (stretch 0.6)"
    assert [low.verdict(v) for v in (0.5, 0.7, 0.9, math.nan)] == [
        "met, stretch too",
        "met",
        "missed",
        "missed",
    ]
    high = Target(5, at_most=False)
    assert str(high) == "≥ 5"
    assert [high.verdict(v) for v in (4.9, 5.0, math.nan)] == ["missed", "met", "missed"]


class FakeRunner:
    """Says of every entry what ``values`` has for its contender, scaled by T and threads."""

    def __init__(self, **values):
        self.values, self.asked = values, []

    def run(self, subject, measured, entries):
        self.asked += [(subject, measured, entry.workload) for entry in entries]
        return {
            entry: row(
                entry.contender.name,
                self.values[entry.contender.name] * entry.workload.time / entry.workload.threads,
                entry.workload,
            )
            for entry in entries
        }

    side_by_side = Runner.side_by_side


def test_claims_compare_what_they_say(monkeypatch):
    others = {"cpu, checked anew": 1.5, "cpu, by steps": 7.0, "cpu, bfloat16": 0.8}
    runner = FakeRunner(**others, cpu=1.0, torch=6.0, lstm=2.0, eager=20.0)
    runner.values["cpu, op alone"] = 0.5
    monkeypatch.setattr(claims, "ceilings", lambda device, threads: LIMIT)
    monkeypatch.setattr(claims, "automatic", lambda device: "cpu")
    monkeypatch.setattr(claims.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(claims, "moved_by_rounding", lambda contender, workload: (0.004, 0.012))
    found = claims.check(runner, list(claims.CLAIMS))
    values = [(number, finding.value) for number, finding in found]
    assert values == [
        (1, 0.5),
        (1, 0.5),
        (1, 0.5),
        (2, 2.0),
        (2, 2.0),
        (3, 6.0),
        (3, 0.05),
        (3, pytest.approx(0.0, abs=1e-9)),
        (4, 20.0),
        (4, 20.0),
        (5, 1.5),
        (6, 7.0),
        (6, 1.0),
        (7, pytest.approx(0.6962176)),  # 14.27 ms of 41 x 0.5 ms
        (7, pytest.approx(0.32995072)),  # 16.50 ms of 100 x 0.5 ms
        (8, 0.5),
        (8, 0.5),
        *[(9, pytest.approx(1.25))] * 3,
    ]
    assert all(finding.holds for _, finding in found)
    assert [w.batch for _, _, w in runner.asked[:9]] == [1, 1, 1, 16, 16, 16, 64, 64, 64]
    text = claims.table(found)
    assert "| 1 | training iteration, B = 1: cpu / lstm | ≤ 0.9 (stretch 0.7) | 0.500 |" in text
    assert text.endswith("cpu, bfloat16 32.8 ms; output 0.004 apart, gradients 0.01 |\n")
    assert len(text.splitlines()) == 2 + len(found)
    assert {line.count("|") for line in text.splitlines()} == {7}


def test_rounding_moves_the_output_and_the_gradients_a_little():
    output, gradients = claims.moved_by_rounding(BackendContender("torch", ""), SMALL)
    assert 1e-4 < output < 0.02
    assert 1e-4 < gradients < 0.1


def test_a_claim_that_cannot_be_measured_is_not_met(monkeypatch):
    monkeypatch.setattr(claims.os, "sched_getaffinity", lambda pid: {0}, raising=False)
    for finding in claims.Claims(FakeRunner(), "cpu").threads():
        assert finding.verdict == "not measured"
        assert not finding.holds
    assert Finding("x", Target(1, True), None, "").verdict == "not measured"


def test_a_missed_claim_fails_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    missed = Finding("faster than light", Target(1, True), 2.0, "")
    monkeypatch.setattr(claims, "check", lambda runner, numbers: [(1, missed)])
    assert cli.main(["claims"]) == 1
    assert "| 1 | faster than light | ≤ 1 | 2.00 | missed |" in capsys.readouterr().out


def test_the_readme_gets_its_table(tmp_path, monkeypatch):
    rows = [row(), row("lstm", 1.0), row("cpu", 9.0, SMALL)]
    text = readme.section(rows)
    assert "| training iteration, ms | 16 | 2.00 | 1.00 |" in text
    assert "9.00" not in text
    assert "2030-01-02" in text
    assert "revision abc" in text
    path = tmp_path / "README.md"
    path.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    for _ in range(2):
        readme.insert(text, path)
    whole = path.read_text()
    assert whole.startswith("before\n")
    assert whole.endswith("\nafter\n")
    assert "old" not in whole
    assert whole.count(text) == 1


def test_the_readme_is_not_guessed_at(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"{readme.END} {readme.BEGIN}")
    with pytest.raises(ValueError, match="must hold"):
        readme.insert("", path)
    with pytest.raises(ValueError, match="nothing at the paper's sizes"):
        readme.section([row(workload=SMALL)])


def test_the_machine_is_described():
    assert revision() == "" or revision().rstrip("+").isalnum()
    others = Others()
    assert others.cores() is None or others.cores() >= 0


def test_disturbed_times_are_said_to_be(tmp_path):
    runner = Runner("cpu", tmp_path / "rows.csv", Limits())
    runner.rows = [replace(row(), other_cores=0.05)]
    assert runner.disturbed() is None
    runner.rows.append(replace(row(), other_cores=1.5))
    assert "1.5 of" in runner.disturbed()
