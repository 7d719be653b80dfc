"""Rows of results: to CSV and back, and what is derived from them."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.machine import ROOT, Ceilings, Environment
from bench.workload import Workload, sequence_cost

FOLDER = ROOT / "bench" / "results"
ROWS = "rows.csv"


@dataclass(frozen=True)
class Row:
    """One contender's number, with all that it depends on.

    ``median``, ``p20`` and ``p80`` are in ``unit``; ``calls`` is how many calls one of the
    ``samples`` is the mean of; ``other_cores`` how many cores other processes kept busy meanwhile,
    NaN if unknown.
    """

    subject: str
    measured: str
    contender: str
    unit: str
    median: float
    p20: float
    p80: float
    samples: int
    calls: int
    other_cores: float
    method: str
    workload: Workload
    environment: Environment

    def flat(self) -> dict[str, Any]:
        """The row's cells by column."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        workload, environment = own.pop("workload"), own.pop("environment")
        # Both have a device: where the call ran, and what that is.
        facts = {("machine" if k == "device" else k): v for k, v in asdict(environment).items()}
        for name in ("median", "p20", "p80"):
            own[name] = float(f"{own[name]:.6g}")
        return {**own, **asdict(workload), **facts}

    @classmethod
    def parse(cls, cells: dict[str, str]) -> Row:
        """The row of the cells that ``flat`` gives, as text; raises ``KeyError`` if one lacks."""
        cells = dict(cells)
        workload = Workload(**_typed(Workload, cells))
        cells["device"] = cells["machine"]
        return cls(
            **_typed(cls, cells, skip=("workload", "environment")),
            workload=workload,
            environment=Environment(**_typed(Environment, cells)),
        )


def _typed(cls: Any, cells: dict[str, str], skip: tuple[str, ...] = ()) -> dict[str, Any]:
    kinds: dict[Any, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
    return {f.name: kinds[f.type](cells[f.name]) for f in fields(cls) if f.name not in skip}


def write(path: Path, rows: Iterable[Row]) -> None:
    """Append rows; a new file gets its header first."""
    rows = list(rows)
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0].flat()))
        if new:
            writer.writeheader()
        writer.writerows(row.flat() for row in rows)


def read(path: Path) -> list[Row]:
    """All rows of a file; raises ``ValueError`` if it is not one of results."""
    with path.open(newline="") as file:
        try:
            return [Row.parse(cells) for cells in csv.DictReader(file)]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a file of results: {error!r}") from error


def newest(folder: Path = FOLDER, prefix: str = "run") -> Path:
    """The last file of results written; raises ``FileNotFoundError`` if there is none."""
    found = sorted(folder.glob(f"{prefix}-*/{ROWS}"))
    if not found:
        raise FileNotFoundError(f"no results in {folder}: `python -m bench` makes them")
    return found[-1]


def new_folder(prefix: str = "run") -> Path:
    """Where the results of what begins now go; they sort by time."""
    return FOLDER / f"{prefix}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"


def describe(workload: Workload) -> str:
    """The sizes, in the letters of the project."""
    w = workload
    text = (
        f"B={w.batch} T={w.time} N={w.memory_size} M={w.word_size} "
        f"R={w.num_read_heads} W={w.num_write_heads} C={w.hidden_size}"
    )
    if w.shift_range != Workload.shift_range:
        text += f" S={w.layout.num_taps}"
    if w.controller != Workload.controller:
        text += f" controller={w.controller}"
    if w.num_layers != Workload.num_layers:
        text += f" L={w.num_layers}"
    return text + (f" threads={w.threads}" if w.threads > 1 else "")


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def ratio_table(rows: list[Row], base: str) -> str:
    """Markdown: median of every case and contender, and in brackets how many times ``base``'s."""
    names = list(dict.fromkeys(row.contender for row in rows))
    cases: dict[tuple[str, str, Workload], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row.subject, row.measured, row.workload), {})[row.contender] = row
    lines = [
        "| subject | pass | sizes | unit | " + " | ".join(names) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(names),
    ]
    for (subject, measured, workload), found in cases.items():
        cells = []
        for name in names:
            if name not in found:
                cells.append("")
                continue
            cell = number(found[name].median)
            if base in found and name != base and found[base].median > 0:
                cell += f" (×{number(found[name].median / found[base].median)})"
            cells.append(cell)
        unit = next(iter(found.values())).unit
        lines.append(
            f"| {subject} | {measured} | {describe(workload)} | {unit} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def roofline_table(rows: list[Row], ceilings: Ceilings) -> str:
    """Markdown: what whole sequences reach of the machine's limits, by ``sequence_cost``."""
    places = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in ceilings.bandwidth.items())
    lines = [
        f"Limits: {ceilings.flops / 1e9:.0f} GFLOP/s; GB/s: {places} ({ceilings.method}).",
        "",
        "| pass | sizes | contender | GFLOP/s | of the limit | GB/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if row.subject == "sequence" and row.contender != "lstm":
            cost, seconds = sequence_cost(row.workload, row.measured), row.median / 1e3
            flops = cost.flops / seconds
            lines.append(
                f"| {row.measured} | {describe(row.workload)} | {row.contender} "
                f"| {number(flops / 1e9)} | {flops / ceilings.flops:.1%} "
                f"| {number(cost.bytes / seconds / 1e9)} |"
            )
    return "\n".join(lines) + "\n"


def exponent(sizes: list[float], values: list[float]) -> float:
    """``k`` of the least-squares fit ``value = c · size^k``."""
    logs = [math.log(x) for x in sizes], [math.log(y) for y in values]
    return statistics.linear_regression(*logs).slope
