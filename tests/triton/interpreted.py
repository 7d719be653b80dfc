"""The Triton backend on CPU tensors, in Triton's interpreter, with its accesses checked.

Only where ``TRITON_INTERPRET=1`` was set before Python started: then the kernels are interpreted
when they are decorated, and cannot be compiled in this process.
"""

import os
import threading
from importlib.util import find_spec

from ntm_kernels.backends import register
from ntm_kernels.backends.triton import TritonBackend
from ntm_kernels.backends.triton.launch import TABLE


class InterpretedBackend(TritonBackend):
    """Serves calls that name it; one at a time, as the interpreter's state is global."""

    lock = threading.Lock()

    def __init__(self, name, table=TABLE):
        super().__init__(name, "cpu", table)

    def unavailable(self):
        if find_spec("triton") is None:
            return "the package triton is not installed"
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "TRITON_INTERPRET=1 is not set"
        return None

    def describe(self):
        import triton

        return f"Triton {triton.__version__} in its interpreter"

    def run(self, kernel, grid, *arguments, **options):
        with self.lock:
            super().run(kernel, grid, *arguments, **options)


register(InterpretedBackend("triton_interpreted"), automatic=False)
