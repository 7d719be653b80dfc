import atexit
import os
import shutil
import tempfile

import hypothesis
import pytest
import torch

pytest.register_assert_rewrite("tests.support")

from ntm_kernels.backends import get  # noqa: E402
from tests.support import emulated  # noqa: E402

emulated.register_backend()  # before the table of backends is made

from tests.support import table  # noqa: E402

# Verdicts of earlier runs have no part in the tests.
os.environ["NTM_KERNELS_CACHE"] = tempfile.mkdtemp(prefix="ntm_kernels_tests_")
atexit.register(shutil.rmtree, os.environ["NTM_KERNELS_CACHE"], ignore_errors=True)

REQUIRED = "NTM_KERNELS_REQUIRE_BACKENDS"

# The same examples every time: a test that fails, fails for everyone.
hypothesis.settings.register_profile(
    "fixed", derandomize=True, deadline=None, max_examples=100, database=None
)
hypothesis.settings.load_profile("fixed")


def pytest_configure(config):
    required = [name.strip() for name in os.environ.get(REQUIRED, "").split(",") if name.strip()]
    absent = table.missing(required)
    if absent:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise pytest.UsageError(f"{REQUIRED} asks for backends that are not live: {reasons}")


def pytest_report_header(config):
    return table.report()


@pytest.fixture(autouse=True)
def _op_of_the_backend(request):
    """Skip the tests of an op that a backend does not have."""
    given = getattr(request.node, "callspec", None)
    params = {} if given is None else given.params
    if "entry" not in params:
        return
    backend, case = params["entry"].backend, params.get("case")
    op = case.op if case is not None else params.get("op")
    if op is not None and op not in get(backend).kernels:
        pytest.skip(f"the backend {backend} has no kernel for {op}")


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)
