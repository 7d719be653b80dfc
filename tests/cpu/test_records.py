"""The compiled library and the package speak of the same records."""

import warnings
from dataclasses import replace
from typing import Annotated, NamedTuple

import pytest
import torch
from torch import Tensor

from ntm_kernels import functional
from ntm_kernels.backends import choice
from ntm_kernels.backends.cpu import backend, records
from ntm_kernels.backends.cpu.records import row_stride
from ntm_kernels.ops import OPS, READ, Field, record
from scripts import generate_records

needs_kernels = pytest.mark.skipif(
    backend.CpuBackend().unavailable() is not None, reason="the CPU kernels are not built"
)


def test_the_header_is_what_the_records_give():
    written = generate_records.HEADER.read_text()
    assert written == generate_records.render(), "run `python -m scripts.generate_records`"


def fields_changed(dims="B R M", kind="memory", when=""):
    read_vectors = Annotated[Tensor, Field(dims, kind, when)]
    return record(NamedTuple("ReadOutputs", [("read_vectors", read_vectors)]))


@pytest.mark.parametrize("change", [{"dims": "B H N"}, {"kind": "state"}, {"when": "is_lstm"}])
def test_the_digest_tells_any_change_of_a_record(monkeypatch, change):
    monkeypatch.setitem(OPS, "read", replace(READ, outputs=fields_changed()))
    as_it_is = records.digest()
    monkeypatch.setitem(OPS, "read", replace(READ, outputs=fields_changed(**change)))
    assert records.digest() != as_it_is


@needs_kernels
def test_a_library_of_other_records_is_refused(monkeypatch):
    monkeypatch.setattr(backend, "digest", lambda: "of other sources")
    stale = backend.CpuBackend()
    assert "was built from other sources than this package" in stale.unavailable()
    assert "builds _cpu.so" in stale.unavailable()
    assert not stale.kernels


@needs_kernels
def test_a_library_for_another_torch_is_not_loaded(tmp_path, monkeypatch):
    """To load it could crash, so its version is read from the file."""
    compiled, base = backend.compiled_for(backend.LIBRARY), torch.__version__.partition("+")[0]
    assert compiled.partition("+")[0] == base
    other = f"9{compiled[1:]}"
    library, bytes_of = tmp_path / "_cpu.so", backend.LIBRARY.read_bytes()
    library.write_bytes(
        bytes_of.replace(f"for torch {compiled}".encode(), f"for torch {other}".encode())
    )
    monkeypatch.setattr(torch.ops, "load_library", lambda path: pytest.fail("it was loaded"))
    stale = backend.CpuBackend(library)
    assert f"it was compiled for torch {other}, this is torch {base}" in stale.unavailable()
    assert f"`pip install torch=={other.partition('+')[0]}`" in stale.unavailable()
    assert "builds _cpu.so" in stale.unavailable()
    assert not stale.kernels


@needs_kernels
def test_computes_on_torch_and_says_so_once_in_one_line(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    monkeypatch.setitem(choice._registry, "cpu", backend.CpuBackend())
    memory, weightings = torch.rand(1, 3, 2), torch.rand(1, 1, 3)
    with pytest.warns(RuntimeWarning, match="slower backend 'torch': .*this is torch 9") as told:
        functional.read(memory, weightings)
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        functional.read(memory, weightings)
    assert functional.explain("read", memory, weightings).backend == "torch"


@needs_kernels
def test_another_build_of_the_same_torch_is_the_same(monkeypatch):
    base = torch.__version__.partition("+")[0]
    monkeypatch.setattr(torch, "__version__", f"{base}+cu999")
    assert backend.load(backend.LIBRARY) is None


@pytest.mark.parametrize("memory_size", [1, 15, 16, 17, 128, 1000])
def test_rows_are_an_odd_number_of_cache_lines_apart(memory_size):
    stride = row_stride(memory_size)
    assert stride >= memory_size
    assert stride // 16 % 2 == 1
    assert stride % 16 == 0


@needs_kernels
def test_negated_views_are_negative():
    memory, weightings = torch.rand(1, 3, 2), torch.rand(1, 1, 3).requires_grad_()
    negated = torch._neg_view(memory)
    read_vectors = functional.read(negated, weightings, backend="cpu")
    torch.testing.assert_close(read_vectors, functional.read(-memory, weightings, backend="cpu"))
    (found,) = torch.autograd.grad(
        read_vectors, weightings, torch._neg_view(torch.ones_like(read_vectors))
    )
    torch.testing.assert_close(found, memory.sum(-1).unsqueeze(1))


@needs_kernels
def test_sparse_gradients_are_named():
    memory = torch.rand(1, 3, 2, requires_grad=True)
    read_vectors = functional.read(memory, torch.rand(1, 1, 3), backend="cpu")
    with pytest.raises(TypeError, match=r"^read: the gradient of an output must be a dense tensor"):
        read_vectors.backward(torch.ones(1, 1, 2).to_sparse())
