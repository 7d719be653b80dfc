"""Checks everything that needs a GPU, and writes one file to send back.

    python -m scripts.gpu_check [--report FILE] [--only STAGE ...] [--quick] [--without-sanitizer]

It builds the CUDA kernels, runs the whole test suite on the device with them and with Triton's, the
op suite under compute-sanitizer (both under memcheck, the CUDA kernels also under racecheck and
synccheck), and the benchmark. A stage that fails does not keep the others from running. The exit
status is 0 if none failed and none was missing a tool: without compute-sanitizer the check is not
whole, and passes only if told to go on ``--without-sanitizer``, which the report says. Where there
is no nvcc, or the cards are AMD's, which have no compute-sanitizer, Triton's kernels alone are
checked.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[1]
TAIL = 200  # lines of a stage's output that go into the report
BOTH = "(cuda-cuda or triton-cuda)"
SANITIZED = "test_sizes and float32"
SANITIZED_QUICK = f"{SANITIZED} and (step or sequence) and (N7M5 or N1M1)"


class Stage(NamedTuple):
    """One command; or why there is no need of it here, or what is missing for it to run."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = MappingProxyType({})
    why_not: str = ""
    missing: str = ""


class Outcome(NamedTuple):
    stage: Stage
    status: int | None  # None: it did not run
    seconds: float
    output: str

    @property
    def verdict(self) -> str:
        if self.stage.missing:
            return f"NOT CHECKED: {self.stage.missing}"
        if self.status is None:
            return f"did not run: {self.stage.why_not}"
        return "passed" if self.status == 0 else f"FAILED (exit status {self.status})"

    @property
    def good(self) -> bool:
        return not self.stage.missing and self.status in (0, None)


def find_sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which(f"{home}/bin/compute-sanitizer")


def finds_nvcc() -> bool:
    """Whether the CUDA kernels can be built for the cards that are here."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    named = os.environ.get("NVCC", "nvcc")
    return torch.version.hip is None and bool(
        shutil.which(named) or shutil.which(f"{home}/bin/nvcc")
    )


def stages(quick: bool, without_sanitizer: bool = False) -> list[Stage]:
    compiled = finds_nvcc()
    no_cuda = "" if compiled else "the CUDA kernels need nvcc and an NVIDIA card"
    python = sys.executable
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    live = {
        "NTM_KERNELS_REQUIRE_BACKENDS": "cuda,triton" if compiled else "triton",
        "NTM_KERNELS_EMULATOR": "off",
    }
    found = [
        Stage("devices", ["nvidia-smi"]),
        Stage("toolkit", ["nvcc", "--version"]),
        Stage(
            "build",
            [python, "setup.py", "--quiet", "build_ext", "--inplace"],
            {"NTM_KERNELS_REQUIRE_CUDA": "1"} if compiled else {},
        ),
        Stage("info", [python, "-m", "ntm_kernels", "info"]),
        Stage("self-check", [python, "-m", "ntm_kernels", "selfcheck"]),
        Stage(
            "device tests",
            [*pytest, "tests/ops/test_on_gpu.py", "tests/cuda/test_device.py"],
            live,
        ),
        Stage(
            "tests",
            [
                *pytest,
                "tests",
                *(["-k", BOTH] if quick else ["-m", "not slow"]),
            ],
            live,
        ),
    ]
    sanitizer, unneeded, missing = find_sanitizer(), "", ""
    if torch.version.hip is not None:
        unneeded = "compute-sanitizer is for NVIDIA cards"
    elif without_sanitizer:
        unneeded = "--without-sanitizer"
    elif sanitizer is None:
        missing = (
            "no compute-sanitizer (it comes with the CUDA toolkit; --without-sanitizer goes on "
            "without)"
        )
    for tool in ("memcheck", "racecheck", "synccheck"):
        why_not = unneeded or ("" if tool == "memcheck" else no_cuda)
        kernels = BOTH if tool == "memcheck" else "cuda-cuda"
        selection = f"{kernels} and {SANITIZED_QUICK if quick else SANITIZED}"
        found.append(
            Stage(
                tool,
                [
                    *(sanitizer or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9"),
                    *("--launch-timeout", "120", *pytest, "tests/ops", "-k", selection),
                ],
                # Each tensor in an allocation of its own, so that its bounds are known.
                {**live, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                why_not,
                "" if why_not else missing,
            )
        )
    bench = [python, "-m", "bench", "run", "--device", "cuda", *(["--quick"] if quick else [])]
    found.append(Stage("bench", bench))
    return found


def run(stage: Stage) -> Outcome:
    """Run a stage, showing its output as it comes."""
    print(f"\n=== {stage.name}: {shlex.join(stage.command)}", flush=True)
    if not (stage.why_not or stage.missing or shutil.which(stage.command[0])):
        stage = stage._replace(why_not=f"no {stage.command[0]}")
    if stage.why_not or stage.missing:
        outcome = Outcome(stage, None, 0.0, "")
        print(outcome.verdict, flush=True)
        return outcome
    begin, lines = time.monotonic(), []
    process = subprocess.Popen(
        stage.command,
        cwd=ROOT,
        env={**os.environ, **stage.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    status = process.wait()
    return Outcome(stage, status, time.monotonic() - begin, "".join(lines[-TAIL:]))


def render(outcomes: list[Outcome]) -> str:
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    devices = ", ".join(
        torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
    )
    lines = [
        f"# GPU check, {when}",
        "",
        f"commit {commit or 'unknown'}; {devices}; torch {torch.__version__}; "
        f"Python {platform.python_version()}; {platform.platform()}",
        "",
        "| stage | verdict | seconds |",
        "| --- | --- | ---: |",
        *(f"| {o.stage.name} | {o.verdict} | {o.seconds:.0f} |" for o in outcomes),
    ]
    for outcome in outcomes:
        if outcome.status is not None:
            command = shlex.join(outcome.stage.command)
            lines += ["", f"## {outcome.stage.name}", "", "```", f"$ {command}"]
            lines += [outcome.output.rstrip(), "```"]
    results = sorted(ROOT.glob("bench/results/*/table.md"), key=lambda path: path.stat().st_mtime)
    if results and any(o.stage.name == "bench" and o.status is not None for o in outcomes):
        lines += ["", "## table of the benchmark", "", results[-1].read_text()]
    return "\n".join(lines) + "\n"


def main() -> str | int:
    """Run the stages; the exit status, or what kept them from running."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--report", type=Path, default=Path("gpu-report.md"))
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    parser.add_argument(
        "--without-sanitizer", action="store_true", help="pass without compute-sanitizer"
    )
    names = [stage.name for stage in stages(quick=True)]
    parser.add_argument("--only", nargs="+", choices=names, help="only these stages")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        return "gpu-check needs a CUDA device and a torch built for CUDA; there is none here"
    chosen = [
        stage
        for stage in stages(options.quick, options.without_sanitizer)
        if not options.only or stage.name in options.only
    ]
    outcomes: list[Outcome] = []
    for stage in chosen:
        outcomes.append(run(stage))
        # After every stage, so that an interrupted check leaves what it found.
        options.report.write_text(render(outcomes), encoding="utf-8")
    print()
    for outcome in outcomes:
        print(f"{outcome.stage.name:14}{outcome.verdict}")
    print(f"\nPlease send back {options.report.resolve()}")
    return int(not all(outcome.good for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
