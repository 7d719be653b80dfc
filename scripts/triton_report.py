"""What the Triton kernels take of a GPU, compiled ahead of time: no GPU is needed.

    python scripts/triton_report.py [--targets sm_90 gfx942 ...] [--update]

Records every launch of the backend at the sizes below, compiles the launched variants, and compares
registers and shared memory with the budget in ``scripts/triton_budget.json``: more of either, or
any spill, is an error. ``--update`` writes the budget and the table ``docs/triton.md`` anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUDGET = ROOT / "scripts" / "triton_budget.json"
TABLE = ROOT / "docs" / "triton.md"
NVIDIA = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
AMD = ("gfx90a", "gfx942", "gfx1100")


class Size(NamedTuple):
    """Sizes of one model."""

    name: str
    locations: int = 128
    words: int = 20
    read_heads: int = 1
    write_heads: int = 1
    shift_range: int = 1
    hidden: int = 100
    controller: str = "lstm"


SIZES = (
    Size("paper, LSTM"),
    Size("paper, feed-forward", controller="feedforward"),
    Size("4 + 4 heads", read_heads=4, write_heads=4, hidden=256, controller="feedforward"),
    Size("16 x 8", locations=16, words=8, hidden=32),
    Size("64 x 16", locations=64, words=16, hidden=64),
    Size("1024 x 64", locations=1024, words=64),
)


class Launch(NamedTuple):
    """A kernel as it was launched."""

    kernel: str
    signature: tuple[tuple[str, str], ...]  # of every argument: type, or "constexpr"
    constants: tuple[tuple[str, Any], ...]
    warps: int


class Usage(NamedTuple):
    """What a compiled kernel takes."""

    registers: int
    shared: int  # bytes per program
    spilled: int  # bytes per thread


def record(size: Size) -> list[Launch]:
    """Every kernel launched by a step and a sequence of ``size``, and by the smaller ops."""
    import torch

    from ntm_kernels import InterfaceLayout
    from ntm_kernels.backend import SequenceArguments, Sizes
    from ntm_kernels.backend.triton import TritonBackend

    launches: dict[Launch, None] = {}

    class Recorder(TritonBackend):
        def run(self, kernel: Any, grid: Any, *arguments: Any, warps: int, **sizes: Any) -> None:
            launches[_launch(kernel, arguments, warps, sizes)] = None

    backend = Recorder(device_type="cpu")
    B, T, C = 2, 4, size.hidden
    N, M, R, W = size.locations, size.words, size.read_heads, size.write_heads
    H, taps = R + W, 2 * size.shift_range + 1
    P = InterfaceLayout(M, R, W, size.shift_range).size
    is_lstm = size.controller == "lstm"
    G, K = (4 * C, R * M + C) if is_lstm else (C, R * M)
    memory, weights, reads = (
        torch.zeros(B, N, M),
        torch.zeros(B, H, N),
        torch.zeros(B, R, M),
    )
    key, scalar, shift = torch.zeros(B, H, M), torch.zeros(B, H), torch.zeros(B, H, taps)
    sizes = Sizes(B, N, M, R, W, taps, T, C, 2)

    if is_lstm:
        addressing = (memory, key, scalar, scalar, shift, scalar, weights)
        backend.address(*addressing, True)
        backend.address_backward(weights, *addressing, weights, [])
        backend.read(memory, weights[:, :R])
        backend.read_backward(reads, memory, weights[:, :R])
        word = torch.zeros(B, W, M)
        backend.write(memory, weights[:, R:], word, word)
        backend.write_backward(memory, memory, weights[:, R:], word, word)
        interface = torch.zeros(B, P)
        backend.step(memory, interface, weights, sizes, True)
        backend.step_backward(
            reads, memory, weights, memory, interface, weights, weights, [], sizes
        )
    state = torch.zeros(B, C) if is_lstm else None
    arguments = SequenceArguments(
        torch.zeros(T, B, G),
        torch.zeros(G, K),
        torch.zeros(P, C),
        torch.zeros(P),
        memory,
        weights,
        reads,
        state,
        state,
        None,
    )
    outputs, saved = backend.sequence(arguments, sizes, size.controller, True, False)
    grads = [part if part.numel() else None for part in outputs[:7]]
    backend.sequence_backward(
        grads,
        arguments,
        outputs.hidden,
        outputs.read_vectors,
        saved,
        sizes,
        size.controller,
    )
    return list(launches)


def _launch(kernel: Any, arguments: tuple[Any, ...], warps: int, sizes: dict[str, Any]) -> Launch:
    import torch

    types = {torch.float32: "*fp32", torch.int64: "*i64"}
    given = dict(zip(kernel.arg_names, arguments, strict=False))
    constants = {name: value for name, value in given.items() if value is None} | sizes
    signature = {
        name: "constexpr"
        if name in constants
        else types[given[name].dtype]
        if isinstance(given[name], torch.Tensor)
        else "i32"
        for name in kernel.arg_names
    }
    names = tuple((name, str(value)) for name, value in constants.items() if name == "ACC")
    plain = tuple((name, value) for name, value in constants.items() if name != "ACC")
    return Launch(kernel.__name__, tuple(signature.items()), plain + names, warps)


def compiled(launch: Launch, target: str) -> Usage:
    """Compile for ``target`` and read what the kernel takes."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ntm_kernels.backend.triton import kernels

    kernel = getattr(kernels, launch.kernel)
    names = [name for name, _ in launch.signature]
    constants = {
        (names.index(name),): tl.dtype(value) if name == "ACC" else value
        for name, value in launch.constants
    }
    if target in AMD:
        gpu = GPUTarget("hip", target, 32 if target.startswith("gfx11") else 64)
    else:
        gpu = GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    code = triton.compile(
        ASTSource(fn=kernel, signature=dict(launch.signature), constexprs=constants),
        target=gpu,
        options={"num_warps": launch.warps, "num_stages": 1, "enable_fp_fusion": True},
    )
    if target in AMD:
        found = dict(re.findall(r"\.(\w+):\s+(\d+)", code.asm["amdgcn"]))
        return Usage(
            int(found["vgpr_count"]),
            code.metadata.shared,
            4 * int(found["vgpr_spill_count"]),
        )
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = dict(re.findall(r"(REG|STACK):(\d+)", text))
    return Usage(int(found["REG"]), code.metadata.shared, int(found["STACK"]))


def variants(names: list[str]) -> Iterator[tuple[str, Launch]]:
    """Each launch under the first size that makes it."""
    seen: set[Launch] = set()
    for size in SIZES:
        if names and size.name not in names:
            continue
        for launch in record(size):
            if launch not in seen:
                seen.add(launch)
                yield f"{size.name}: {launch.kernel.removesuffix('_kernel')}", launch


def table(results: dict[str, dict[str, list[int]]], version: str) -> str:
    """The results in Markdown."""
    targets = [*NVIDIA, *AMD]
    lines = [
        "# What the Triton kernels take",
        "",
        "Registers per thread / bytes of shared memory per program, of every kernel that a step or",
        "a sequence launches, compiled ahead of time. Bold: spills. Sizes are N x M; where nothing",
        "else is said one read and one write head, three taps, and an LSTM of 100 units.",
        f"Made by `scripts/triton_report.py --update` with Triton {version}.",
        "",
        f"| kernel | {' | '.join(targets)} |",
        f"| --- |{' --- |' * len(targets)}",
    ]
    for name, usages in results.items():
        cells = []
        for target in targets:
            registers, shared, spilled = usages.get(target, (0, 0, 0))
            cell = f"{registers} / {shared}" if target in usages else ""
            cells.append(f"**{cell}, {spilled} spilled**" if spilled else cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> str | None:
    """Compile, compare, and return an error message or None."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", nargs="+", default=[*NVIDIA, *AMD], metavar="TARGET")
    parser.add_argument("--sizes", nargs="+", default=[], choices=[size.name for size in SIZES])
    parser.add_argument("--update", action="store_true", help="write budget and table anew")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 is set: interpreted kernels cannot be compiled"
    import triton

    budget = json.loads(BUDGET.read_text()) if BUDGET.exists() else {"kernels": {}}
    launches = dict(variants(arguments.sizes))
    jobs = [(name, target) for name in launches for target in arguments.targets]
    results: dict[str, dict[str, list[int]]] = {name: {} for name in launches}
    problems = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        usages = pool.map(compiled, (launches[name] for name, _ in jobs), (t for _, t in jobs))
        for (name, target), usage in zip(jobs, usages, strict=True):
            results[name][target] = list(usage)
            registers, shared, _ = budget["kernels"].get(name, {}).get(target, (0, 0, 0))
            print(f"{target:8} {name}: {usage.registers} registers, {usage.shared} bytes", end="")
            print(f", {usage.spilled} spilled" if usage.spilled else "", flush=True)
            if usage.spilled:
                problems.append(f"{name} spills {usage.spilled} bytes on {target}")
            elif usage.registers > registers or usage.shared > shared:
                problems.append(
                    f"{name} takes {usage.registers} registers and {usage.shared} bytes on "
                    f"{target}, its budget is {registers} and {shared}"
                )
    if arguments.update:
        for name, usages_of in results.items():
            budget["kernels"].setdefault(name, {}).update(usages_of)
        budget["triton"] = triton.__version__
        BUDGET.write_text(json.dumps(budget, indent=1) + "\n")
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table(budget["kernels"], triton.__version__))
        problems = [problem for problem in problems if "spills" in problem]
    return "\n".join(problems) or None


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
