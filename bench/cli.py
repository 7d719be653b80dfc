"""The command line: ``python -m bench [run | claims | plot | readme]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench import claims, plan, readme, results
from bench.contenders import automatic, live
from bench.machine import Ceilings, ceilings
from bench.peers import PEERS, parse
from bench.runner import Runner, choose
from bench.subjects import SUBJECTS
from bench.timing import Limits
from bench.workload import Workload

COMMANDS = ("run", "claims", "plot", "readme")
FULL_LIMITS = Limits(seconds=6.0)
QUICK_LIMITS = Limits(seconds=2.0)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="measure, the default command")
    run.add_argument("--list", action="store_true", help="list subjects and contenders and leave")
    run.add_argument("--quick", action="store_true", help="the paper's sizes at batch 1 and 16")
    run.add_argument("--subject", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    run.add_argument("--contender", nargs="+", metavar="NAME", help="only these (see --list)")
    run.add_argument("--device", default="cpu")
    run.add_argument("--threads", type=_positive, default=1)
    run.add_argument("--seconds", type=float, help="per case, once everything is warm")
    sizes = run.add_argument_group("sizes", "one value fixes a size, several are swept")
    for axis, fields in plan.AXES.items():
        default = getattr(Workload, fields[0])
        sizes.add_argument(
            f"--{axis}", nargs="+", type=_positive, metavar="SIZE", help=f"default {default}"
        )
    run.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help=f"a checkout of a public implementation: {', '.join(PEERS)}",
    )

    check = commands.add_parser("claims", help="measure every claim and say whether it holds")
    check.add_argument("--only", nargs="+", type=int, choices=claims.CLAIMS, metavar="NUMBER")

    for name, about in (("plot", "draw results again"), ("readme", "put results into the README")):
        command = commands.add_parser(name, help=about)
        command.add_argument("--results", type=Path, help="a rows.csv; default: the newest run's")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where something failed or a claim is missed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0] not in COMMANDS and given[0] not in ("-h", "--help")):
        given.insert(0, "run")
    parser = build_parser()
    options = parser.parse_args(given)
    command = {"run": _run, "claims": _claims, "plot": _plot, "readme": _readme}[options.command]
    try:
        return command(options)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


def _run(options: argparse.Namespace) -> int:
    contenders = live(options.device) + [parse(peer) for peer in options.peer]
    if options.list:
        for title, things in (("subjects", SUBJECTS.values()), ("contenders", contenders)):
            print(f"{title}:")
            for thing in things:
                print(f"  {thing.name:14}{thing.about}")
        return 0
    contenders = choose(contenders, options.contender)
    base, sweeps = _sizes(options)
    if sweeps:
        cases = plan.plan(base, sweeps, options.subject, every_axis=True)
    else:
        cases = plan.plan(base, plan.QUICK if options.quick else plan.FULL, options.subject)
    limits = QUICK_LIMITS if options.quick else FULL_LIMITS
    if options.seconds is not None:
        limits = replace(limits, seconds=options.seconds)

    folder = results.new_folder()
    runner = Runner(options.device, folder / results.ROWS, limits)
    for case in cases:
        # Who takes long to start is measured at the base, or everywhere when asked for by name.
        wait = (case.central and not options.quick) or options.contender is not None
        these = [c for c in contenders if wait or not c.slow_start]
        runner.side_by_side(case.subject, case.measured, these, case.workload)

    base_name = automatic(options.device)
    found = ceilings(options.device, options.threads)
    table = results.ratio_table(runner.rows, base_name)
    if "sequence" in options.subject:
        table += "\n" + results.roofline_table(runner.rows, found)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(table, encoding="utf-8")
    (folder / "ceilings.json").write_text(json.dumps(asdict(found), indent=2) + "\n")
    print(f"\nmedians, and how many times those of {base_name}:\n\n{table}")
    _draw(runner.rows, found, folder)
    return _close(runner, folder)


def _claims(options: argparse.Namespace) -> int:
    folder = results.new_folder("claims")
    runner = Runner("cpu", folder / results.ROWS, claims.LIMITS)
    findings = claims.check(runner, options.only or list(claims.CLAIMS))
    table = claims.table(findings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "claims.md").write_text(table, encoding="utf-8")
    print(f"\n{table}")
    status = _close(runner, folder)
    return status or int(any(not f.holds for _, f in findings))


def _plot(options: argparse.Namespace) -> int:
    path = options.results or results.newest()
    saved = path.with_name("ceilings.json")
    found = Ceilings(**json.loads(saved.read_text())) if saved.exists() else None
    _draw(results.read(path), found, path.parent)
    return 0


def _readme(options: argparse.Namespace) -> int:
    path = options.results or results.newest()
    text = readme.section(results.read(path))
    path.with_name("readme.md").write_text(text, encoding="utf-8")
    readme.insert(text)
    print(text)
    return 0


def _draw(rows: Sequence[results.Row], found: Ceilings | None, folder: Path) -> None:
    try:
        from bench import plots
    except ModuleNotFoundError as error:
        print(f'no pictures: {error}; pip install "ntm_kernels[train]" adds it', file=sys.stderr)
        return
    for path in plots.draw(rows, found, folder):
        print(path)


def _close(runner: Runner, folder: Path) -> int:
    print(folder)
    if (disturbed := runner.disturbed()) is not None:
        print(disturbed, file=sys.stderr)
    for failure in runner.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return int(bool(runner.failures))


def _sizes(options: argparse.Namespace) -> tuple[Workload, dict[str, list[int]]]:
    """The base, and the sizes given of each axis."""
    base = Workload(threads=options.threads, device=options.device)
    given = {axis: getattr(options, axis.replace("-", "_")) for axis in plan.AXES}
    given = {axis: sizes for axis, sizes in given.items() if sizes}
    for axis, sizes in given.items():
        if getattr(base, plan.AXES[axis][0]) not in sizes:
            base = plan.resized(base, axis, sizes[0])
    return base, given


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
