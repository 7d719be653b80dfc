"""Writes ntm_kernels/backends/triton/REPORT.md: what the Triton kernels take of a GPU.

    python -m scripts.triton_report [--update-budget]
    python -m scripts.triton_report --check [--targets sm_90 gfx942 ...]

No GPU is needed: every op is called on tensors without data, and each kernel that it would launch
is compiled for every target. ``budget.json`` beside the report has upper bounds of registers,
shared memory and spilled bytes. What exceeds its bound is printed, and is an error if the Triton is
the one that the budget was made with.
``--check`` compares and writes nothing. ``--update-budget`` makes what is found the new bounds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ntm_kernels.backends.triton import Launcher, TritonBackend
from ntm_kernels.ops import ADDRESS, READ, SEQUENCE, STEP, WRITE, Op, Sizes
from ntm_kernels.ops.declare import choose, empty

FOLDER = Path(__file__).parents[1] / "ntm_kernels/backends/triton"
REPORT, BUDGET = FOLDER / "REPORT.md", FOLDER / "budget.json"
NVIDIA = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
AMD = ("gfx90a", "gfx942", "gfx1100")
TARGETS = (*NVIDIA, *AMD)


class Model(NamedTuple):
    """Sizes and dtypes of the calls of one model."""

    name: str
    locations: int = 128
    words: int = 20
    heads: int = 1  # that read, and as many that write
    hidden: int = 100
    layers: int = 1
    resets: bool = False
    controller: str = "lstm"
    memory: torch.dtype = torch.float32
    parameters: torch.dtype = torch.float32
    shift_range: int = 1


# Every row of the launch table, the tiled path, several layers, storage in 16 bits, and the largest
# sizes.
MODELS = (
    Model("paper"),
    Model("1024 x 64", locations=1024, words=64),
    Model("2 + 2 heads", heads=2),
    Model("4 + 4 heads", heads=4),
    Model("feed-forward", controller="feedforward"),
    Model("feed-forward, 8 + 8 heads", heads=8, hidden=512, controller="feedforward"),
    Model("2 layers, resets", layers=2, resets=True),
    Model("64 x 16", locations=64, words=16, hidden=64),
    Model("16 x 8", locations=16, words=8, hidden=32),
    Model("256 x 16", locations=256, words=16),
    Model("bfloat16", memory=torch.bfloat16, parameters=torch.bfloat16),
    Model("bfloat16, 4 + 4 heads", heads=4, memory=torch.bfloat16, parameters=torch.bfloat16),
    Model("float64", memory=torch.float64, parameters=torch.float64),
    Model("2^20 x 1024", locations=2**20, words=1024),
)


class Usage(NamedTuple):
    """What a compiled kernel takes."""

    registers: int  # per thread
    shared: int  # bytes per program
    spilled: int  # bytes of a thread's stack

    def most(self, other: Usage) -> Usage:
        return Usage(*map(max, self, other))


class Offline:
    """In the place of Triton's driver, where there is no GPU: what to compile for."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        if self.target in AMD:
            return GPUTarget("hip", self.target, 32 if self.target.startswith("gfx11") else 64)
        return GPUTarget("cuda", int(self.target.removeprefix("sm_")), 32)

    def get_current_device(self) -> str:
        return self.target

    def get_current_stream(self, device: str) -> int:
        return 0


class Compiler(Launcher):
    """Compiles what it would launch; ``found`` has the most that a kernel's variants take."""

    def __init__(self, target: str) -> None:
        from triton.runtime.driver import driver

        super().__init__()
        self.target = target
        driver.set_active(Offline(target))
        self.found: dict[str, tuple[frozenset[str], Usage]] = {}

    def on_amd(self) -> bool:
        return self.target in AMD

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        compiled = kernel.warmup(*arguments, grid=grid, **options)
        name = kernel.__name__.removesuffix("_kernel")
        hashes, usage = self.found.get(name, (frozenset(), Usage(0, 0, 0)))
        if compiled.hash not in hashes:
            self.found[name] = hashes | {compiled.hash}, usage.most(usage_of(compiled))


def usage_of(compiled: Any) -> Usage:
    if "amdgcn" in compiled.asm:
        found = dict(re.findall(r"\.(\w+):\s+(\d+)", compiled.asm["amdgcn"]))
        registers, spilled = found["vgpr_count"], found["private_segment_fixed_size"]
    else:
        import triton

        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            text = subprocess.run(
                [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
            ).stdout
        found = dict(re.findall(r"(REG|STACK):(\d+)", text))
        registers, spilled = found["REG"], found["STACK"]
    return Usage(int(registers), compiled.metadata.shared, int(spilled))


def call_everything(backend: TritonBackend, model: Model) -> None:
    """Every op and its backward; step and sequence with few arguments and with all."""
    B, N, M, R = 16, model.locations, model.words, model.heads
    taps, wide = 2 * model.shift_range + 1, torch.promote_types(model.memory, torch.float32)
    parameters = dict.fromkeys(("head_parameters", "controller_weights", "input"), model.parameters)
    dtypes = {"memory": model.memory, "weightings": model.memory, **parameters, "arithmetic": wide}
    call = partial(call_both, backend, dtypes=dtypes)
    call(ADDRESS, Sizes(B, N, M, 2 * R, num_taps=taps))
    call(READ, Sizes(B, N, M, R))
    call(WRITE, Sizes(B, N, M, 0, num_write_heads=R))
    stepping = Sizes(B, N, M, R, R, num_taps=taps)
    call(STEP, stepping, grads=["read_vectors"])
    call(STEP, stepping)

    sizes = stepping._replace(
        time=41,
        hidden_size=model.hidden,
        num_layers=model.layers,
        checkpoint_every=6,
        is_lstm=model.controller == "lstm",
    )
    sizes = sizes._replace(input_size=sizes.gate_size)
    # The public op widens the state before it calls the backend.
    state = dict.fromkeys(("memory", "weightings", "state"), wide)
    whole = {"steps": torch.int64, "resets": torch.bool}
    call = partial(call_both, backend, dtypes={**dtypes, **state, **whole})
    call(SEQUENCE, sizes, forward_alone=True)
    call(SEQUENCE, sizes, grads=["hidden", "read_vectors"])
    varying = sizes._replace(has_lengths=True, has_resets=model.resets)
    call(SEQUENCE, varying._replace(return_trace=True))


def call_both(
    backend: TritonBackend,
    op: Op[Any, Any, Any],
    sizes: Sizes,
    dtypes: dict[str, torch.dtype],
    grads: list[str] | None = None,
    forward_alone: bool = False,
) -> None:
    """Forward and backward, with the gradients of some outputs or of all."""
    kernel = backend.kernels[op.name]
    inputs = empty(op.inputs, sizes, torch.empty(0, device="meta"), dtypes)
    outputs, saved = kernel.forward(inputs, sizes, not forward_alone)
    if forward_alone:
        return
    there = outputs._asdict()
    given = op.differentiated_outputs if grads is None else grads
    kernel.backward(
        choose(op.outputs, given, [there[name] for name in given]),
        inputs,
        choose(op.outputs, op.kept_outputs, [there[name] for name in op.kept_outputs]),
        saved,
        sizes,
        frozenset(op.differentiated_inputs),
    )


def compiled_for(job: tuple[str, Model]) -> dict[str, tuple[frozenset[str], Usage]]:
    target, model = job
    compiler = Compiler(target)
    call_everything(TritonBackend(device_type="meta", launcher=compiler), model)
    return compiler.found


Results = dict[str, dict[str, Usage]]  # by row, then by target


def measure(targets: Iterable[str], jobs: int) -> Results:
    """Rows ``model: kernel``; what two models share stands under the first."""
    results: Results = {}
    seen: set[str] = set()
    work = [(target, model) for model in MODELS for target in targets]
    with ProcessPoolExecutor(jobs) as pool:
        for (target, model), found in zip(work, pool.map(compiled_for, work), strict=True):
            for kernel, (hashes, usage) in found.items():
                if not hashes <= seen:
                    results.setdefault(f"{model.name}: {kernel}", {})[target] = usage
                seen |= hashes
            print(f"compiled: {model.name}, {target}", file=sys.stderr, flush=True)
    return results


def family(target: str) -> str:
    return "amd" if target in AMD else "nvidia"


def bounds(results: Results, version: str) -> dict[str, Any]:
    """A budget that the results just meet: registers and shared memory for all cards of a maker,
    spills only where there are some."""
    most: dict[str, dict[str, list[int]]] = {}
    spilled: dict[str, dict[str, int]] = {}
    for row, usages in results.items():
        for target, usage in usages.items():
            bound = most.setdefault(row, {}).setdefault(family(target), [0, 0])
            bound[:] = max(bound[0], usage.registers), max(bound[1], usage.shared)
            if usage.spilled:
                spilled.setdefault(row, {})[target] = usage.spilled
    return {"triton": version, "most": most, "spilled": spilled}


# Registers alone cost nothing before a spill; a small change of a kernel moves them by this much.
REGISTER_SLACK = 1.15


def problems(results: Results, budget: dict[str, Any]) -> list[str]:
    """What exceeds its bound, or has none."""
    found = []
    for row, usages in results.items():
        for target, usage in usages.items():
            registers, shared = budget["most"].get(row, {}).get(family(target), (0, 0))
            spilled = budget["spilled"].get(row, {}).get(target, 0)
            found += [
                f"{row}, {target}: {value} {what}, at most {bound} allowed"
                for what, value, bound in (
                    ("registers", usage.registers, int(registers * REGISTER_SLACK)),
                    ("bytes of shared memory", usage.shared, shared),
                    ("bytes spilled", usage.spilled, spilled),
                )
                if value > bound
            ]
    return found


def dump(budget: dict[str, Any]) -> str:
    """JSON with a line for each row."""
    parts = []
    for name, rows in budget.items():
        if isinstance(rows, str):
            parts.append(f'  "{name}": {json.dumps(rows)}')
            continue
        lines = ",\n".join(f"    {json.dumps(row)}: {json.dumps(rows[row])}" for row in rows)
        parts.append(f'  "{name}": {{\n{lines}\n  }}' if rows else f'  "{name}": {{}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def render(results: Results, version: str) -> str:
    lines = [
        "# What the Triton kernels take",
        "",
        f"Written by `make triton-report` (Triton {version}); bounded by `budget.json`. No GPU was",
        "used. Registers of a thread / KiB of shared memory of a program, the most of the variants",
        "(with lengths and without, outputs kept or not, gradients given or not). **Bold**: bytes",
        "spilled per thread. On AMD cards registers are VGPRs, AGPRs included.",
        "",
        "Models are N x M where nothing is said of the paper's 128 x 20; one read and one write",
        "head, three taps and an LSTM of one layer of 100 units unless named; float32 unless",
        "named. A kernel that two models share stands under the first.",
    ]
    model = ""
    for row, usages in results.items():
        name, _, kernel = row.rpartition(": ")
        if name != model:
            model = name
            lines += ["", f"## {name}", "", f"| kernel | {' | '.join(TARGETS)} |"]
            lines.append(f"| --- |{' ---: |' * len(TARGETS)}")
        cells = [cell(usages[target]) if target in usages else "" for target in TARGETS]
        lines.append(f"| `{kernel}` | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def cell(usage: Usage) -> str:
    text = f"{usage.registers} / {usage.shared / 1024:.3g}"
    return f"{text}, **{usage.spilled}**" if usage.spilled else text


def main() -> str | None:
    """Compile, compare, write; what exceeds its bound, or ``None``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare with the budget")
    parser.add_argument("--update-budget", action="store_true", help="bound by what is found")
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS, metavar="TARGET")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if not options.check and options.targets != TARGETS:
        parser.error("the report is of all targets: --targets needs --check")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 is set: interpreted kernels cannot be compiled"
    import triton

    results = measure(options.targets, options.jobs)
    if options.update_budget:
        BUDGET.write_text(dump(bounds(results, triton.__version__)))
    if not options.check:
        REPORT.write_text(render(results, triton.__version__))
    budget = json.loads(BUDGET.read_text())
    found = "\n".join(problems(results, budget)) or None
    if found and budget["triton"] != triton.__version__:
        print(f"All compiles. Beyond the budget, which is of Triton {budget['triton']}:\n{found}")
        return None
    return found


if __name__ == "__main__":
    sys.exit(main())
