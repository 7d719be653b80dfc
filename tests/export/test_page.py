"""docs/export.md runs as written, and what it compiles runs in another process."""

import pytest
import torch

from tests import test_docs
from tests.export.test_programs import run_elsewhere

pytestmark = pytest.mark.slow

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


def test_page_and_aot_inductor(tmp_path, monkeypatch):
    """The package of AOTInductor runs at another size, where only torch and this package are."""
    monkeypatch.chdir(tmp_path)
    names = test_docs.run("docs/export.md")
    model = names["model"]
    assert names["output"].shape == (1, 2)
    torch.manual_seed(1)
    load = "torch._inductor.aoti_load_package(sys.argv[1])"
    kind, error = run_elsewhere(tmp_path, model, tmp_path / "compiled.pt2", load)[0].split()
    assert kind == "NTMState"
    assert float(error) < 1e-6
