"""``memory``: what a training iteration adds to the memory in use, at its peak.

Every number comes from a fresh process (``python -m bench.subjects.memory``): no contender profits
from what another has left in the allocator. There, an iteration at T = 2 first loads all code and
makes all weights. Then the peak is reset, one iteration (forward, loss, backward) runs, and its
peak above what was in use before counts.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from bench.contenders import Contender, Unsupported, live
from bench.machine import ROOT
from bench.peers import parse
from bench.peers.base import Peer
from bench.subjects.base import Entry, Outcome, Subject, copy_batch
from bench.timing import Limits, Stats
from bench.workload import Workload

MIB = 2**20


class Memory(Subject):
    name = "memory"
    about = "peak memory of forward, loss and backward, above that of the idle process"
    passes = ("iteration",)
    unit = "MiB"

    def method(self, workload: Workload) -> str:
        if torch.device(workload.device).type == "cuda":
            return "fresh process, max_memory_allocated"
        if sys.platform == "linux":
            return "fresh process, VmHWM after clear_refs, less VmRSS"
        return "fresh process, growth of ru_maxrss"

    def measure(self, entries: Sequence[Entry], measured: str, limits: Limits) -> Outcome:
        outcome = Outcome()
        for entry in entries:
            peak = outcome.attempt(entry, lambda entry=entry: _in_fresh_process(entry))  # type: ignore[misc]
            if peak is not None:
                outcome.stats[entry] = Stats(peak, peak, peak, 1)
        return outcome


def _in_fresh_process(entry: Entry) -> float:
    contender, workload = entry
    if contender.graphed:
        raise Unsupported("a graph's memory is that of the calls it holds")
    peer = f"{contender.name}={contender.path}" if isinstance(contender, Peer) else None
    question = json.dumps({"contender": contender.name, "peer": peer, "workload": asdict(workload)})
    command = [sys.executable, "-m", "bench.subjects.memory", question]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise Unsupported(last) if done.returncode == 3 else RuntimeError(last)
    return float(json.loads(done.stdout.splitlines()[-1]))


def peak_mib(contender: Contender, workload: Workload) -> float:
    """Peak of one iteration in this process, which should have done nothing else yet."""
    torch.set_num_threads(workload.threads)
    model = contender.model(workload)

    def iteration(workload: Workload) -> Callable[[], None]:
        batch = copy_batch(workload)

        def run() -> None:
            contender.loss(model(batch.inputs), batch).backward()

        return run

    iteration(replace(workload, time=2))()
    run = iteration(workload)
    device = torch.device(workload.device)
    if device.type == "cuda":
        gc.collect()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    before = reset_peak()
    run()
    return (peak_bytes() - before) / MIB


def reset_peak() -> int:
    """Give freed memory back, forget earlier peaks, and return the bytes in use."""
    # Reference cycles keep their tensors until Python collects them. Collected only after the bytes
    # in use were read, they would make room for the new memory, and the peak would be too low.
    gc.collect()
    if sys.platform != "linux":
        return peak_bytes()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most bytes in use since ``reset_peak``; elsewhere than on Linux, since the start."""
    if sys.platform == "linux":
        # Not ru_maxrss: it starts from the size of the process that started this one.
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _main(question: str) -> int:
    asked = json.loads(question)
    workload = Workload(**asked["workload"])
    contenders: list[Contender] = [parse(asked["peer"])] if asked["peer"] else live(workload.device)
    (contender,) = (c for c in contenders if c.name == asked["contender"])
    try:
        print(json.dumps(peak_mib(contender, workload)))
    except Unsupported as reason:
        print(reason, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
