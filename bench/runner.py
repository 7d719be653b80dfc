"""Runs cases: measures, prints, keeps the rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench import results
from bench.contenders import Contender
from bench.machine import Others, environment
from bench.results import Row
from bench.subjects import SUBJECTS, Entry
from bench.timing import Limits
from bench.workload import Workload

BUSY = 0.1
"""Cores used by others from which on a time is called disturbed."""


class Runner:
    """Measures entries side by side and appends their rows to a file.

    Attributes:
        rows: everything measured.
        failures: entries that raised something unforeseen.
    """

    def __init__(self, device: str, path: Path, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.rows: list[Row] = []
        self.failures: list[str] = []
        self._environment = environment(device)
        self._noticed: set[str] = set()

    def run(self, subject_name: str, measured: str, entries: Sequence[Entry]) -> dict[Entry, Row]:
        """The row of every entry that could be measured; the others are said on stderr."""
        subject = SUBJECTS[subject_name]
        others = Others()
        outcome = subject.measure(entries, measured, self.limits)
        other_cores = others.cores()
        rows = {
            entry: Row(
                subject=subject.name,
                measured=measured,
                contender=entry.contender.name,
                unit=subject.unit,
                **stats._asdict(),
                other_cores=float("nan") if other_cores is None else round(other_cores, 2),
                method=subject.method(entry.workload),
                workload=entry.workload,
                environment=self._environment,
            )
            for entry, stats in outcome.stats.items()
        }
        self._report(subject.name, measured, list(rows.values()))
        for entry, reason in outcome.failed.items():
            failure = f"{subject.name} of {entry.contender.name}, {_sizes(entry)}: {reason}"
            self.failures.append(failure)
            print(f"  failed: {failure}", file=sys.stderr)
        for entry, reason in outcome.skipped.items():
            notice = f"  left out: {entry.contender.name}: {reason}"
            if notice not in self._noticed:
                self._noticed.add(notice)
                print(notice, file=sys.stderr)
        self.rows += rows.values()
        results.write(self.path, rows.values())
        return rows

    def side_by_side(
        self, subject: str, measured: str, contenders: Sequence[Contender], workload: Workload
    ) -> dict[str, Row]:
        """One workload of several contenders, by their names."""
        rows = self.run(subject, measured, [Entry(c, workload) for c in contenders])
        return {entry.contender.name: row for entry, row in rows.items()}

    def disturbed(self) -> str | None:
        """A sentence if other processes kept cores busy while times were taken."""
        worst = max((row.other_cores for row in self.rows if row.unit == "ms"), default=0.0)
        if worst <= BUSY:
            return None
        return (
            f"Other processes used up to {worst:.1f} of {self._environment.cores} cores meanwhile: "
            "these times are not final."
        )

    def _report(self, subject: str, measured: str, rows: list[Row]) -> None:
        if not rows:
            return
        sizes = list(dict.fromkeys(results.describe(row.workload) for row in rows))
        print(f"{subject} {measured}: {sizes[0] if len(sizes) == 1 else ''}")
        for row in sorted(rows, key=lambda row: row.median):
            apart = "" if len(sizes) == 1 else f" {results.describe(row.workload)}"
            spread = f"{results.number(row.p20)} … {results.number(row.p80)}"
            print(
                f"  {row.contender:18}{results.number(row.median):>9} {row.unit}"
                f"   ({spread}; {row.samples} × {row.calls} calls){apart}"
            )
        sys.stdout.flush()


def _sizes(entry: Entry) -> str:
    return results.describe(entry.workload)


def choose(contenders: Sequence[Contender], wanted: Sequence[str] | None) -> list[Contender]:
    """Those named, or all; raises ``ValueError`` for a name there is none of."""
    if wanted is None:
        return list(contenders)
    by_name = {contender.name: contender for contender in contenders}
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise ValueError(
            f"there is no contender {', '.join(unknown)} here; there are: {', '.join(by_name)}"
        )
    return [by_name[name] for name in wanted]
