"""What a package without compiled libraries advises: in a checkout, and where it is installed."""

import pytest

from ntm_kernels.backends.cpu import CpuBackend
from ntm_kernels.backends.cuda import CudaBackend
from ntm_kernels.backends.cuda.run import Runner

CPU = (lambda folder: CpuBackend(folder / "_cpu.so"), "_cpu.so", "a C++ compiler")
CUDA = (
    lambda folder: CudaBackend(folder / "_cuda.so", Runner(device_type="cpu")),
    "_cuda.so",
    "nvcc",
)


@pytest.fixture
def package(tmp_path):
    (tmp_path / "ntm_kernels").mkdir()
    return tmp_path / "ntm_kernels"


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
@pytest.mark.parametrize(("backend", "library", "compiler"), [CPU, CUDA], ids=["cpu", "cuda"])
def test_advice_fits_the_installation(package, backend, library, compiler, broken):
    if broken:
        (package / library).write_text("no library")
    state = f"{library} does not load: " if broken else "kernels are not built; "
    result = f" builds {library} where there is {compiler}, and else says what is missing"

    installed = backend(package).unavailable()
    assert state in installed
    assert installed.endswith(result)
    assert "`pip install --verbose --force-reinstall --no-deps SOURCES`" in installed
    assert "setup.py" not in installed

    (package.parent / "setup.py").touch()
    checkout = backend(package).unavailable()
    assert state in checkout
    assert checkout.endswith(f"`python setup.py build_ext --inplace` in {package.parent}{result}")
    assert "pip" not in checkout
