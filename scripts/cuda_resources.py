"""What ptxas said of each kernel when it was compiled, and the occupancy that follows from it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple


class Resources(NamedTuple):
    """Of one kernel on one architecture; bytes are per thread, shared ones per block."""

    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int


class Processor(NamedTuple):
    """Limits of one multiprocessor."""

    warps: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int  # that a block's shared memory takes on top


REGISTERS = 65536
# From the table of compute capabilities in NVIDIA's programming guide.
PROCESSORS = {
    75: Processor(32, 16, 64 << 10, 0),
    80: Processor(64, 32, 164 << 10, 1 << 10),
    86: Processor(48, 16, 100 << 10, 1 << 10),
    89: Processor(48, 24, 100 << 10, 1 << 10),
    90: Processor(64, 32, 228 << 10, 1 << 10),
    100: Processor(64, 32, 228 << 10, 1 << 10),
    120: Processor(48, 24, 100 << 10, 1 << 10),
}

_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\d+)\w?'\n"
    r".*\n\s+(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers(?P<rest>.*)"
)


def demangle(names: list[str]) -> dict[str, str]:
    """Names of kernels without return type, parameters and namespace."""
    text = subprocess.check_output(["c++filt"], input="\n".join(names), text=True)
    plain = {}
    for name, demangled in zip(names, text.splitlines(), strict=True):
        plain[name] = shorten(demangled)
    return plain


def shorten(demangled: str) -> str:
    """``void ntm::step<float>(Params)`` as ``step<float>``."""
    name = demangled.replace("(anonymous namespace)::", "").removeprefix("void ")
    return name.partition("(")[0].replace("ntm::", "")


def read_logs(folder: Path) -> dict[str, dict[int, Resources]]:
    """Resources of every kernel by architecture, from the records of a build."""
    found: dict[str, dict[int, Resources]] = {}
    for log in sorted(folder.glob("*.log")):
        for match in _KERNEL.finditer(log.read_text()):
            shared = re.search(r"(\d+) bytes smem", match["rest"])
            found.setdefault(match["name"], {})[int(match["architecture"])] = Resources(
                int(match["registers"]),
                int(match["stack"]),
                int(match["stores"]) + int(match["loads"]),
                int(shared[1]) if shared else 0,
            )
    names = demangle(list(found))
    return {names[name]: by_architecture for name, by_architecture in sorted(found.items())}


def resident_blocks(
    architecture: int, registers: int, threads: int, shared_bytes: int
) -> tuple[int, float]:
    """Blocks that fit a multiprocessor together, and the share of its warps that they fill."""
    processor = PROCESSORS[architecture]
    warps = -(-threads // 32)
    registers_per_warp = -(-registers * 32 // 256) * 256
    # Registers are dealt out by four schedulers, each with a quarter.
    by_registers = REGISTERS // 4 // registers_per_warp * 4 // warps if registers else warps
    taken = -(-(shared_bytes + processor.reserved_bytes) // 128) * 128
    blocks = min(
        processor.blocks,
        processor.warps // warps,
        by_registers,
        processor.shared_bytes // taken if taken else processor.blocks,
    )
    return blocks, blocks * warps / processor.warps
