"""Instructions that the Triton kernels in registers issue, by stage.

    python -m scripts.triton_instructions [--target sm_90]

Prints a table: of `step` a call and of `sequence` one time step, for one sequence of the paper's
sizes. The kernels are compiled, and their machine code is run on a CPU as that of the CUDA kernels
is (scripts/machine_code); their results are compared with those of the backend torch.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ntm_kernels.backends import get
from ntm_kernels.backends.triton import TritonBackend
from ntm_kernels.ops import Sizes
from scripts.cuda_counts import random_call
from scripts.machine_code.block import Block
from scripts.machine_code.lanes import PARAMETERS, Launch
from scripts.machine_code.listing import disassemble
from scripts.machine_code.stages import by_stage
from scripts.triton_report import Compiler

TOLERANCE = 1e-4  # of the largest value of a tensor
STEP = Sizes(1, 128, 20, 1, 1, num_taps=3)
# Two segments of the backward. A step is a sixth of the second.
SEQUENCE = STEP._replace(time=12, hidden_size=100, checkpoint_every=6, is_lstm=True)
CALLS = {"step": STEP, "sequence": SEQUENCE}
NUMBERS = {"pointer": np.uint64, "i32": np.int32, "i64": np.int64, "fp32": np.float32}
Stages = dict[str, float]


class Counting(Compiler):
    """Compiles what it would launch, and runs its machine code for the first program.

    ``issued`` gets the warp instructions by stage, added up over the launches.
    """

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.architecture = int(target.removeprefix("sm_"))
        self.issued: Counter[str] = Counter()

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        compiled = kernel.warmup(*arguments, grid=grid, **options)
        signature = list(compiled.src.signature.values())[: len(arguments)]
        parameters = b""
        regions = []
        for value, kind in leaves(arguments, signature):
            if isinstance(value, Tensor):
                regions.append((value.data_ptr(), value.nbytes))
                value, kind = value.data_ptr(), "pointer"
            data = np.array(value, NUMBERS[kind]).tobytes()
            parameters += bytes(-len(parameters) % len(data)) + data
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            (code,) = disassemble(cubin, re.compile(kernel.__name__)).values()
        launch = Launch(
            architecture=self.architecture,
            threads=32 * compiled.metadata.num_warps,
            blocks=grid[0],
            shared_bytes=compiled.metadata.shared,
            parameters=parameters + bytes(32),  # the kernels use no scratch memory
            regions=regions,
        )
        self.issued.update(by_stage(code, Block(code, launch).run().issued))


def leaves(value: Any, kind: Any) -> Iterator[tuple[Any, str]]:
    """Tensors and numbers that a kernel takes, with the type that it was compiled for."""
    if isinstance(kind, str):
        if kind != "constexpr":
            yield value, kind
        return
    for inner, of_inner in zip(value, kind, strict=True):
        yield from leaves(inner, of_inner)


def count(op: str, sizes: Sizes, target: str) -> list[Counter[str]]:
    """Forward and backward of one call."""
    launcher = Counting(target)
    kernel = TritonBackend(device_type="cpu", launcher=launcher).kernels[op]
    right = get("torch").kernels[op]
    inputs, random = random_call(op, sizes)
    outputs, saved = kernel.forward(inputs, sizes, True)
    forward, launcher.issued = launcher.issued, Counter()
    expected, kept = right.forward(inputs, sizes, True)
    compare(f"{op} forward", outputs, expected)
    grads = random.like(outputs)
    found = kernel.backward(grads, inputs, outputs, saved, sizes, frozenset())
    compare(
        f"{op} backward", found, right.backward(grads, inputs, expected, kept, sizes, frozenset())
    )
    return [forward, launcher.issued]


def compare(call: str, found: NamedTuple, expected: NamedTuple) -> None:
    for name, right in expected._asdict().items():
        if right is None:
            continue
        value = getattr(found, name)
        bound = TOLERANCE * float(right.abs().max())
        error = float((value - right).abs().max())
        if not error <= bound:
            raise RuntimeError(
                f"{call}: {name} from the machine code is {error:.2g} off the backend torch, at "
                f"most {bound:.2g} is expected; the counts cannot be trusted"
            )


def per_step(target: str) -> Iterator[tuple[str, Stages]]:
    """Instructions by stage of each call and direction."""
    for op, sizes in CALLS.items():
        whole = count(op, sizes, target)
        steps = 1
        if op == "sequence":
            steps = sizes.time - sizes.time // 2
            half = count(op, sizes._replace(time=sizes.time // 2), target)
            for counted, part in zip(whole, half, strict=True):
                counted.subtract(part)
        for direction, counted in zip(("forward", "backward"), whole, strict=True):
            yield f"{op}, {direction}", {k: many / steps for k, many in counted.items() if many}


def main() -> None:
    """Print what is counted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", default="sm_90", choices=[f"sm_{a}" for a in PARAMETERS])
    target = parser.parse_args().target
    torch.manual_seed(0)
    for call, stages in per_step(target):
        print(f"\n| {call}, {target} | warp instructions |\n| --- | ---: |")
        print(f"| all | {sum(stages.values()):.0f} |")
        for stage, many in sorted(stages.items(), key=lambda item: -item[1]):
            print(f"| {stage} | {many:.0f} |")


if __name__ == "__main__":
    main()
