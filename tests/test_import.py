"""What ``import ntm_kernels`` loads beyond torch: the package itself, and no compiler."""

import json
import subprocess
import sys

import torch

from ntm_kernels import torch_private

# Prints the modules that the import added, and the names of the libraries that it opened.
PROGRAM = """
import json, sys
import torch
before, opened = set(sys.modules), []
sys.addaudithook(lambda event, args: event == "ctypes.dlopen" and opened.append(str(args[0])))
import ntm_kernels
print(json.dumps([sorted(set(sys.modules) - before), opened]))
"""
# Libraries for GPUs wait until they are asked for.
LIBRARIES = {"_cpu.so"}


def test_only_the_package_and_its_library_for_the_cpu():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    modules, libraries = json.loads(done.stdout)
    assert "ntm_kernels.backends.triton" in modules
    assert [name for name in modules if name.partition(".")[0] != "ntm_kernels"] == []
    assert {path.rpartition("/")[2] for path in libraries} <= LIBRARIES


def test_a_marked_function_is_called_once_while_tracing():
    calls = []

    @torch_private.assume_constant_result
    def measured():
        calls.append(len(calls))
        return float(len(calls))

    @torch.compile(fullgraph=True, backend="eager")
    def function(x):
        return x * measured()

    x = torch.ones(2)
    for _ in range(2):
        assert torch.equal(function(x), x)
    assert calls == [0]
