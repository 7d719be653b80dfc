"""Writes csrc/cuda/REPORT.md: what the CUDA kernels cost, measured without a GPU.

    python -m scripts.cuda_report [--check | --update-budget] [--cases PATTERN]

Registers, spills, stack and shared memory are ptxas's, for every architecture. Launches, barriers,
sectors and wavefronts are counted by the instrumented emulator. Instructions are counted by running
the machine code of every architecture (scripts/machine_code). csrc/cuda/budget.json bounds them;
what exceeds its bound is printed and is an error. `--check` writes nothing, and fails also if the
report that is there was made from other sources. `--update-budget` makes the instructions that were
counted their new bounds; the other bounds are written by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ntm_kernels.backends.cuda.library import CudaLibrary
from ntm_kernels.ops import Sizes
from scripts import cuda_instruction_tables as instruction_tables
from scripts import cuda_ways
from scripts.cuda_counts import Counts, Emulated
from scripts.cuda_instruction_tables import Counted
from scripts.cuda_instructions import count as instructions_of
from scripts.cuda_instructions import extract
from scripts.cuda_resources import PROCESSORS, Resources, read_logs, resident_blocks, shorten
from tests.cuda_emulator import build as emulator

ROOT = Path(__file__).parents[1]
DIRECTIONS = ("forward", "backward")
REPORT, BUDGET = ROOT / "csrc/cuda/REPORT.md", ROOT / "csrc/cuda/budget.json"


def step(batch: int, rows: int, words: int, heads: int) -> Sizes:
    return Sizes(batch, rows, words, heads, heads, num_taps=3)


def paper(heads: int, is_lstm: bool = True, num_layers: int = 1) -> Sizes:
    sizes = sequence(128, 20, heads, time=24, checkpoint_every=6, is_lstm=is_lstm)
    return sizes._replace(num_layers=num_layers)


def sequence(
    rows: int, words: int, heads: int, time: int, checkpoint_every: int, is_lstm: bool = True
) -> Sizes:
    return Sizes(
        batch=1,
        memory_size=rows,
        word_size=words,
        num_read_heads=heads,
        num_write_heads=heads,
        num_taps=3,
        time=time,
        hidden_size=100,
        checkpoint_every=checkpoint_every,
        is_lstm=is_lstm,
    )


class Case(NamedTuple):
    """A call to count, on the architecture whose shared memory it is planned for."""

    op: str
    sizes: Sizes
    architecture: int = 90
    backward: bool = True

    @property
    def elements(self) -> int:
        """Of the memories of all steps."""
        sizes = self.sizes
        return sizes.batch * sizes.memory_size * sizes.word_size * max(1, sizes.time)


CASES = {
    "step, B=16 N=128 M=20 R=W=1": Case("step", step(16, 128, 20, 1)),
    "step, B=16 N=256 M=64 R=W=1": Case("step", step(16, 256, 64, 1)),
    "step, B=16 N=512 M=64 R=W=1": Case("step", step(16, 512, 64, 1), backward=False),
    "step, B=4 N=128 M=20 R=W=5": Case("step", step(4, 128, 20, 5)),
    "step, B=1 N=4096 M=64 R=W=1": Case("step", step(1, 4096, 64, 1)),
    "step, B=1 N=65536 M=64 R=W=1": Case("step", step(1, 65536, 64, 1)),
    "sequence, LSTM C=100 N=128 M=20 R=W=1": Case("sequence", paper(1)),
    "sequence, LSTM C=100 N=128 M=20 R=W=1, sm_80": Case("sequence", paper(1), 80),
    "sequence, LSTM C=100 N=128 M=20 R=W=5": Case("sequence", paper(5)),
    "sequence, LSTM 2 x C=100 N=128 M=20 R=W=5": Case("sequence", paper(5, num_layers=2)),
    "sequence, feed-forward C=100 N=128 M=20 R=W=1": Case("sequence", paper(1, is_lstm=False)),
    "sequence, LSTM C=100 N=4096 M=64 R=W=1": Case(
        "sequence", sequence(4096, 64, 1, time=4, checkpoint_every=2)
    ),
}


# The calls whose instructions are counted, for one sequence and on every architecture. The
# sequence has two segments, and a step is a sixth of the second.
INSTRUCTION_CASES = {
    "step, B=16 N=128 M=20 R=W=1": Case("step", step(1, 128, 20, 1)),
    "sequence, LSTM C=100 N=128 M=20 R=W=1": Case("sequence", paper(1)._replace(time=12)),
}


def build() -> Path:
    """Compile for every architecture; the folder of the objects and of what ptxas said."""
    environment = {**os.environ, "NTM_KERNELS_REQUIRE_CUDA": "1"}
    environment.pop("TORCH_CUDA_ARCH_LIST", None)
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=ROOT,
        env=environment,
        check=True,
    )
    logs = sorted(ROOT.glob("build/temp.*/csrc/cuda/*.log"), key=lambda log: log.stat().st_mtime)
    if not logs:
        raise RuntimeError("the build left no record of the CUDA kernels under build/")
    return logs[-1].parent


@cache
def emulated() -> Emulated:
    return Emulated(emulator.kernels("instrumented"))


def count_case(name: str) -> list[tuple[str, Counts | str]]:
    """Counts of a case, direction by direction, or why no kernel serves it."""
    case = CASES[name]
    os.environ["CUDA_EMULATOR_ARCHITECTURE"] = str(case.architecture)
    CudaLibrary.device.cache_clear()  # a device does not change otherwise
    if case.backward and (why_not := emulated().why_not(case.op, case.sizes)):
        return [(name, why_not)]
    if case.op == "step":
        counted = emulated().step(case.sizes, case.backward)
    else:
        counted = emulated().sequence(case.sizes)
    directions = zip(DIRECTIONS, counted, strict=False)
    return [(f"{name}, {direction}", counts) for direction, counts in directions]


def count_instructions(objects: Path, pattern: str) -> Counted:
    """Instructions of the calls that match, on every architecture."""
    names = [name for name in INSTRUCTION_CASES if re.search(pattern, name)]
    emulator.kernels("plain")  # compiled once, before several processes ask for it
    found: Counted = {}
    with tempfile.TemporaryDirectory() as folder, processes() as pool:
        cubins = Path(folder)
        extract(objects, cubins)
        jobs = {
            (name, architecture): pool.submit(
                instructions_of, *INSTRUCTION_CASES[name][:2], architecture, cubins
            )
            for name in reversed(names)  # the longest first
            for architecture in PROCESSORS
        }
        for name, direction in itertools.product(names, DIRECTIONS):
            found[f"{name}, {direction}"] = {
                architecture: jobs[name, architecture].result()[DIRECTIONS.index(direction)]
                for architecture in PROCESSORS
            }
    return found


def processes() -> ProcessPoolExecutor:
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))


def count(pattern: str) -> Iterator[tuple[str, Counts | str]]:
    """Counts of every case that ``pattern`` matches, some at a time, in order."""
    names = [name for name in CASES if re.search(pattern, name)]
    emulated()  # compiled once, before several processes ask for it
    with processes() as pool:
        # The largest first, so that none is left to go on alone.
        by_size = sorted(names, key=lambda name: -CASES[name].elements)
        counts = {name: pool.submit(count_case, name) for name in by_size}
        for name in names:
            yield from counts[name].result()


def overruns(
    resources: dict[str, dict[int, Resources]], counted: dict[str, Counts], pattern: str
) -> list[str]:
    """What exceeds the budget, or is in the budget and was not measured."""
    budget: dict[str, Any] = json.loads(BUDGET.read_text())
    found = []
    for architecture, bounds in budget["resources"].items():
        for kernel, by_architecture in resources.items():
            if int(architecture) not in by_architecture:
                found.append(f"{kernel}: not compiled for sm_{architecture}")
                continue
            used = by_architecture[int(architecture)]._asdict()
            found += [
                f"{kernel} on sm_{architecture}: {name} {used[name]}, the budget is {bound}"
                for name, bound in bounds.items()
                if used[name] > bound
            ]
    for case, bounds in budget["counts"].items():
        if not re.search(pattern, case):
            continue
        if case not in counted:
            found.append(f"{case}: not measured")
            continue
        measured = counted[case]._asdict()
        found += [
            f"{case}: {name} {measured[name]:.4g}, the budget is {bound}"
            for name, bound in bounds.items()
            if not measured[name] <= bound
        ]
    return found


def static_overruns(resources: dict[str, dict[int, Resources]]) -> list[str]:
    """Kernels with more static shared memory than their plans leave free for it."""
    header = (ROOT / "csrc/cuda/tiled.cuh").read_text()
    kilobytes = re.search(r"constexpr int kTiledStatic = (\d+) \* 1024;", header)
    if kilobytes is None:
        return ["csrc/cuda/tiled.cuh: kTiledStatic is not a number of kilobytes"]
    left = 1024 * int(kilobytes[1])
    return [
        f"{kernel} on sm_{architecture}: {used.shared_bytes} bytes of static shared memory, "
        f"its plan leaves {left if 'tiled' in kernel else 0}"
        for kernel, by_architecture in resources.items()
        for architecture, used in by_architecture.items()
        if used.shared_bytes > (left if "tiled" in kernel else 0)
    ]


def fingerprint() -> str:
    """A digest of the kernels' sources without comments and layout."""
    digest = hashlib.sha256()
    for source in sorted(REPORT.parent.glob("*.[ch]u*")) + sorted(REPORT.parent.glob("*.h")):
        digest.update("".join(re.sub(r"//.*", "", source.read_text()).split()).encode())
    return digest.hexdigest()[:16]


def outdated(report: str) -> list[str]:
    """What is wrong with a report that was not made from the present sources."""
    if f"Sources: {fingerprint()}." in report:
        return []
    return [f"{REPORT.relative_to(ROOT)}: made from other sources; run `make cuda-report`"]


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def resource_cell(used: Resources | None) -> str:
    if used is None:
        return ""
    extra = [f"{used.spill_bytes} spilled"] if used.spill_bytes else []
    extra += [f"{used.stack_bytes} stack"] if used.stack_bytes else []
    return ", ".join([str(used.registers), *extra])


def occupancy_cell(used: Resources | None, architecture: int, counts: Counts) -> str:
    if used is None:
        return ""
    blocks, share = resident_blocks(
        architecture, used.registers, counts.threads, counts.shared_bytes
    )
    return f"{blocks} ({share:.0%})" if blocks else ""


def nvcc_release() -> str:
    release = re.search(r"V([\d.]+)", subprocess.check_output(["nvcc", "--version"], text=True))
    return release[1] if release else "of unknown version"


def toolchain() -> str:
    gxx = subprocess.check_output(["g++", "-dumpfullversion"], text=True).strip()
    return f"nvcc {nvcc_release()}, g++ {gxx}"


def plans() -> str:
    """Where a sequence's memory and weights lie, for every amount of shared memory."""
    by_shared: dict[int, list[str]] = {}
    for architecture, processor in PROCESSORS.items():
        shared = processor.shared_bytes - processor.reserved_bytes
        by_shared.setdefault(shared, []).append(str(architecture))
    rows = []
    for name, case in CASES.items():
        if case.op != "sequence" or case.architecture != 90:
            continue
        for shared, architectures in sorted(by_shared.items()):
            for direction in DIRECTIONS:
                plan = emulated().plan(case.op, case.sizes, direction, shared)
                resident = plan.tile_rows == case.sizes.memory_size
                memories = str(plan.memories) if direction == "backward" else ""
                rows.append(
                    [
                        f"{name.removeprefix('sequence, ')}, {direction}",
                        f"sm_{', '.join(architectures)}",
                        "shared memory" if resident else f"L2, {plan.tile_rows} rows at a time",
                        memories if resident else "",
                        *map(str, plan.weight_bytes),
                    ]
                )
    header = ["sequence", "on", "memory", "memories kept", "registers", "shared", "L2 at each step"]
    return table(header, rows)


def tiles(counted: dict[str, Counts]) -> str:
    """How much of a memory in tiles the blocks hold from the first phase to the last."""
    rows = []
    for name, case in CASES.items():
        processor = PROCESSORS[case.architecture]
        shared = processor.shared_bytes - processor.reserved_bytes
        for direction in DIRECTIONS:
            counts = counted.get(f"{name}, {direction}")
            if counts is None or "tiled" not in counts.kernel:
                continue
            tile_rows = emulated().plan(case.op, case.sizes, direction, shared).tile_rows
            kept = counts.blocks * tile_rows / (case.sizes.batch * case.sizes.memory_size)
            share = f"{min(kept, 1):.0%}"
            rows.append([f"{name}, {direction}", str(tile_rows), str(counts.blocks), share])
    return table(["call", "rows of a tile", "blocks", "of the memory kept"], rows)


def registers(resources: dict[str, dict[int, Resources]]) -> str:
    """What ptxas says of each kernel on each architecture."""
    rows = [
        [f"`{kernel}`", *(resource_cell(used.get(a)) for a in sorted(PROCESSORS))]
        for kernel, used in resources.items()
    ]
    return table(["kernel", *(f"sm_{a}" for a in sorted(PROCESSORS))], rows)


def occupancy(resources: dict[str, dict[int, Resources]], counted: dict[str, Counts]) -> str:
    """How far each call fills a multiprocessor."""
    rows = []
    for case, counts in counted.items():
        kernel = shorten(counts.kernel)
        used = resources.get(kernel, {})
        cells = (occupancy_cell(used.get(a), a, counts) for a in sorted(PROCESSORS))
        rows.append([case, f"`{kernel}`", str(counts.threads), str(counts.shared_bytes), *cells])
    columns = (f"sm_{a}" for a in sorted(PROCESSORS))
    return table(["call", "kernel", "threads", "shared bytes", *columns], rows)


def counts_table(counted: dict[str, Counts]) -> str:
    """What the emulator counted of each call."""
    header = [
        *("call", "launches", "barriers", "bytes loaded", "bytes stored", "sectors"),
        *("M and dM", "wavefronts", "wavefronts / ideal"),
    ]
    rows = [
        [
            case,
            str(counts.launches),
            f"{counts.barriers:.4g}",
            f"{counts.load_bytes:.0f}",
            f"{counts.store_bytes:.0f}",
            f"{counts.sector_excess:.2f}",
            f"{counts.memory_traffic:.2f}",
            f"{counts.wavefronts:.0f}",
            f"{counts.wavefront_excess:.2f}",
        ]
        for case, counts in counted.items()
    ]
    return table(header, rows)


def render(
    resources: dict[str, dict[int, Resources]],
    counted: dict[str, Counts],
    unserved: dict[str, str],
    instructions: Counted,
) -> str:
    """The page csrc/cuda/REPORT.md."""
    shared = max(used.shared_bytes for by_arch in resources.values() for used in by_arch.values())
    missing = "".join(f"\nNo kernel serves {case}: {why}.\n" for case, why in unserved.items())
    return f"""# What the CUDA kernels cost

Written by `make cuda-report` ({toolchain()}); bounded by `budget.json`. No GPU was used.
Sources: {fingerprint()}.

## Registers

Per thread, by ptxas; bytes spilled and of stack where there are any. Static shared memory: at most
{shared} bytes. Kernels are compiled for each dtype of the arithmetic; storage dtypes are converted
as they are loaded.

{registers(resources)}

## Occupancy

Blocks on a multiprocessor together, and the share of its warps that they fill, for float32 and the
shared memory that the call asks for on sm_90; empty where a block has less, and the call is planned
in another way.

{occupancy(resources, counted)}

## Plans

Where a sequence has its memory, how many memories of a segment its backward keeps at a time, and
the bytes of the controller's weights in registers, in shared memory, and loaded from L2 at each
step.

{plans()}

## Tiles

Where a memory is cut into tiles, each block keeps its last one on the chip from phase to phase.

{tiles(counted)}

## Counts

By the instrumented emulator, as sm_90 unless it says otherwise. Bytes and wavefronts are per
sequence of the batch. Rows of a `sequence` are one time step of it, except launches, sectors, M and
dM and the ratio of wavefronts, which are of the whole.

- bytes loaded, stored: distinct bytes that warps ask global memory for, caches left out
- sectors: 32-byte sectors moved / those that the bytes need
- M and dM: their sectors moved / those of one read and one write each
- wavefronts: of shared memory; / ideal: those without bank conflicts

{counts_table(counted)}
{missing}
{instruction_tables.sections(instructions, counted)}

{cuda_ways.section(emulated().backend.runner)}"""


def main() -> str | None:
    """Make the report, and return what is wrong with the kernels or with the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, compare with the budget and the report"
    )
    parser.add_argument("--cases", default="", help="count only the calls that match this pattern")
    parser.add_argument(
        "--update-budget", action="store_true", help="bound instructions by what is counted"
    )
    options = parser.parse_args()
    if options.update_budget and (options.check or options.cases):
        parser.error("--update-budget needs all calls, and writes: no --check, no --cases")
    objects = build()
    resources = read_logs(objects)
    counted: dict[str, Counts] = {}
    unserved: dict[str, str] = {}
    for case, result in count(options.cases):
        if isinstance(result, str):
            unserved[case] = result
            print(f"not served: {case}: {result}", flush=True)
        else:
            counted[case] = result
            print(f"counted: {case}", flush=True)
    instructions = count_instructions(objects, options.cases)
    print(f"counted: instructions of {len(instructions)} calls", flush=True)
    if options.update_budget:
        update_budget(instructions)
    if not options.check and not options.cases:
        REPORT.write_text(render(resources, counted, unserved, instructions))
        print(f"wrote {REPORT.relative_to(ROOT)}")
    found = overruns(resources, counted, options.cases) + static_overruns(resources)
    budget = json.loads(BUDGET.read_text())
    found += instruction_tables.too_many_rounds(instructions, budget["load_rounds"])
    bounds = budget["instructions"]
    found += instruction_tables.overruns(
        instructions, bounds["most"], nvcc_release(), bounds["nvcc"]
    )
    if options.check:
        found += outdated(REPORT.read_text())
    return "not as it should be:\n  " + "\n  ".join(found) if found else None


def update_budget(instructions: Counted) -> None:
    """Make what was counted the bounds of the instructions, a line for each architecture."""
    budget = json.loads(BUDGET.read_text())
    budget["instructions"] = {
        "nvcc": nvcc_release(),
        "most": instruction_tables.bounds(instructions),
    }
    BUDGET.write_text(dump(budget))


def dump(value: Any, indent: str = "") -> str:
    """JSON in which objects without objects in them take one line each."""
    if not isinstance(value, dict):
        return json.dumps(value)
    if indent and not any(isinstance(inner, dict) for inner in value.values()):
        return json.dumps(value)
    inside = indent + "  "
    lines = (f"{inside}{json.dumps(key)}: {dump(inner, inside)}" for key, inner in value.items())
    text = "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return text if indent else text + "\n"


if __name__ == "__main__":
    sys.exit(main())
