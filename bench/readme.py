"""The README's table of speed, made from results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import results
from bench.machine import ROOT
from bench.plan import workloads
from bench.results import Row
from bench.workload import Workload

README = ROOT / "README.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
BATCHES = (1, 16, 64)
LINES = (
    ("train", "iteration", "training iteration", BATCHES),
    ("sequence", "forward", "sequence, forward", (16,)),
    ("sequence", "backward", "sequence, backward", (16,)),
    ("step", "both", "`step` op, forward and backward", (16,)),
    ("inference", "forward", "one step of `NTMCell`, no gradients", BATCHES),
    ("memory", "iteration", "peak memory of an iteration", BATCHES),
)


def section(rows: Sequence[Row]) -> str:
    """The table at the paper's sizes, and what it was measured with.

    Raises:
        ValueError: the rows have none of its lines.
    """
    base = rows[0].workload if rows else Workload()
    common = Workload(threads=base.threads, device=base.device)
    wanted = {w.batch: w for w in workloads(common, {"batch": BATCHES}, ["batch"])}
    names = list(dict.fromkeys(row.contender for row in rows))
    found = {(r.subject, r.measured, r.workload, r.contender): r for r in rows}
    lines = [
        f"| | B | {' | '.join(names)} |",
        f"| --- | --- |{' ---: |' * len(names)}",
    ]
    used: list[Row] = []
    for subject, measured, label, batches in LINES:
        for batch in batches:
            key = subject, measured, wanted[batch]
            here = [found.get((*key, name)) for name in names]
            present = [row for row in here if row is not None]
            if not present:
                continue
            used += present
            cells = ["–" if row is None else results.number(row.median) for row in here]
            lines.append(f"| {label}, {present[0].unit} | {batch} | {' | '.join(cells)} |")
    if not used:
        raise ValueError("the results have nothing at the paper's sizes: run `python -m bench`")
    where, w = used[0].environment, used[0].workload
    threads = "one thread" if w.threads == 1 else f"{w.threads} threads"
    sizes = f"T = {w.time}, N = {w.memory_size}, M = {w.word_size}, {w.num_read_heads} read and "
    sizes += f"{w.num_write_heads} write head, LSTM of {w.hidden_size}"
    lines += [
        "",
        f"Medians; {sizes}; float32, {threads} of {where.device}, torch {where.torch}, "
        f"{where.date[:10]}, revision {where.revision}. `python -m bench --list` says who is who; "
        "`python -m bench` and `python -m bench readme` make this table.",
    ]
    return "\n".join(lines) + "\n"


def insert(text: str, readme: Path = README) -> None:
    """Put ``text`` between the markers of the README.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    whole = readme.read_text(encoding="utf-8")
    if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(BEGIN) > whole.index(END):
        raise ValueError(f"{readme.name} must hold {BEGIN} and after it {END}, once each")
    before, rest = whole.split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")
