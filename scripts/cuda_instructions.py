"""Instructions that the CUDA kernels issue, by stage: their machine code is run on a CPU.

The emulator runs the same call from the sources. Where the results of the two differ, there is no
count but an error: the counts are of code that was seen to compute what it should.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from ntm_kernels.backends.cuda import PARAMS, CudaBackend
from ntm_kernels.backends.cuda.library import CudaLibrary
from ntm_kernels.backends.cuda.run import Runner
from ntm_kernels.backends.cuda.structs import KernelSizes, Plan
from ntm_kernels.ops import Sizes
from scripts.cuda_counts import random_call
from scripts.machine_code.lanes import Launch
from scripts.machine_code.listing import disassemble, tool
from scripts.machine_code.loads import LoadRounds
from scripts.machine_code.stages import by_stage
from tests.cuda_emulator import build as emulator

# Of the largest value of a tensor. Machine code fuses multiplications and additions, and has other
# elementary functions than the CPU.
TOLERANCE = 1e-4
WEIGHTS = ("recurrent_weight", "interface_weight")
_PREFIXES = {"forward": ("out_", "saved_"), "backward": ("d_",)}  # of what a launch gives


class Instructions(NamedTuple):
    """Of one block: of a call, or of one time step of a sequence."""

    stages: dict[str, float]  # warp instructions, by stage
    multiply_adds: float  # FFMA, of the same
    chain_cycles: float  # of the longest chain of dependent instructions
    load_rounds: Mapping[str, int] = MappingProxyType({})  # of each weight, in the whole call

    @property
    def issued(self) -> float:
        return sum(self.stages.values())


class MachineCode(CudaLibrary):
    """The library of the emulator, which also runs each launch's machine code, for its first block.

    ``cubins`` is a folder of files ``step.sm_90.cubin``. ``found`` gets what each launch issued.
    """

    def __init__(self, library: Path, cubins: Path, architecture: int) -> None:
        super().__init__(library, PARAMS)
        self.cubins, self.architecture = cubins, architecture
        self.found: list[Instructions] = []

    def launch(
        self,
        op: str,
        direction: str,
        sizes: KernelSizes,
        tensors: Mapping[str, Tensor],
        plan: Plan,
        stream: int,
    ) -> None:
        super().launch(op, direction, sizes, tensors, plan, stream)
        given = {n: t for n, t in tensors.items() if n.startswith(_PREFIXES[direction])}
        expected = {name: tensor.clone() for name, tensor in given.items()}
        for tensor in given.values():
            tensor.fill_(float("nan"))
        self.found.append(self._run(op, direction, sizes, tensors, plan))
        for name, tensor in given.items():
            bound = TOLERANCE * float(expected[name].abs().max())
            error = float((tensor - expected[name]).abs().max())
            if not error <= bound:
                raise RuntimeError(
                    f"{op} {direction} on sm_{self.architecture}: {name} from the machine code is "
                    f"{error:.2g} off the emulator's, at most {bound:.2g} is expected; the counts "
                    "cannot be trusted (see scripts/machine_code)"
                )

    def _run(
        self,
        op: str,
        direction: str,
        sizes: KernelSizes,
        tensors: Mapping[str, Tensor],
        plan: Plan,
    ) -> Instructions:
        source = "step" if op == "step" else f"{op}_{direction}"
        is_deep = int(sizes.num_layers > 1)
        variant = f"Li{plan.weights_held}ELb{is_deep}E" if op == "sequence" else "E"
        wanted = re.compile(rf"\d{op}_{direction}_kernelIf{variant}")
        kernels = disassembled(self.cubins / f"{source}.sm_{self.architecture}.cubin", wanted)
        if len(kernels) != 1:
            raise RuntimeError(f"{op} {direction}: expected one kernel, found {sorted(kernels)}")
        kernel = next(iter(kernels.values()))
        params = bytes(self.params(op, sizes, tensors))
        params += bytes(-len(params) % 8) + bytes(plan)
        launch = Launch(
            architecture=self.architecture,
            threads=plan.threads,
            blocks=sizes.batch,
            shared_bytes=plan.shared_bytes,
            parameters=params,
            regions=[(t.data_ptr(), t.nbytes) for t in tensors.values() if t.nbytes],
        )
        weights = {n: (t.data_ptr(), t.nbytes) for n, t in tensors.items() if n in WEIGHTS}
        block = LoadRounds(kernel, launch, weights)
        counted = block.run()
        fused = sum(counted.issued[i.address] for i in kernel.code if i.name == "FFMA")
        stages: dict[str, float] = dict(by_stage(kernel, counted.issued))
        return Instructions(stages, fused, counted.cycles, block.rounds)


disassembled = cache(disassemble)


def extract(objects: Path, cubins: Path) -> None:
    """Take the machine code of all architectures out of the objects of a build."""
    for source in ("step", "sequence_forward", "sequence_backward"):
        command = [tool("cuobjdump"), "-xelf", "all", str((objects / f"{source}.o").resolve())]
        subprocess.run(command, cwd=cubins, check=True, stdout=subprocess.DEVNULL)


def count(op: str, sizes: Sizes, architecture: int, cubins: Path) -> list[Instructions]:
    """Forward and backward, for the first block; of a sequence one time step, which is the
    difference between the sequence and its first half."""
    os.environ["CUDA_EMULATOR_ARCHITECTURE"] = str(architecture)
    CudaLibrary.device.cache_clear()  # a device does not change otherwise
    library = MachineCode(emulator.kernels("plain"), cubins, architecture)
    whole = _both(library, op, sizes)
    if op != "sequence":
        return whole
    half = sizes._replace(time=sizes.time // 2)
    pairs = zip(whole, _both(library, op, half), strict=True)
    return [_per_step(*pair, sizes.time - half.time) for pair in pairs]


def _both(library: MachineCode, op: str, sizes: Sizes) -> list[Instructions]:
    runner = Runner("cpu")
    runner.library = library
    backend = CudaBackend(emulator.kernels("plain"), runner, "machine_code")
    kernel = backend.kernels[op]
    inputs, random = random_call(op, sizes)
    library.found = []
    outputs, saved = kernel.forward(inputs, sizes, True)
    kernel.backward(random.like(outputs), inputs, outputs, saved, sizes, frozenset())
    return library.found


def _per_step(whole: Instructions, part: Instructions, steps: int) -> Instructions:
    stages = Counter(whole.stages)
    stages.subtract(part.stages)
    per_step = {stage: many / steps for stage, many in stages.items() if many}
    return Instructions(
        per_step,
        (whole.multiply_adds - part.multiply_adds) / steps,
        (whole.chain_cycles - part.chain_cycles) / steps,
        whole.load_rounds,
    )
