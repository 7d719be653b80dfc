"""What a verdict depends on: the device, its driver, the software, and the kernels."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ntm_kernels.backends.base import Backend

_DRIVERS = (
    "/sys/module/nvidia/version",
    "/sys/module/amdgpu/version",
    "/proc/driver/nvidia/version",
)
_TRITON = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm")


def identity_of(
    backend: Backend, op: str, device: torch.device, dtype: torch.dtype
) -> dict[str, str]:
    """All that the verdict on an op of a backend depends on, by name."""
    return {
        "backend": backend.name,
        "op": op,
        "dtype": str(dtype),
        "kernels": backend.fingerprint(),
        "device": device_name(device),
        **_software(),
    }


def device_name(device: torch.device) -> str:
    """What devices of the same kind have in common; a slice of a GPU is another kind."""
    if device.type != "cuda":
        return device.type
    found = torch.cuda.get_device_properties(device)
    memory = found.total_memory >> 30
    return f"{found.name}, {found.multi_processor_count} multiprocessors, {memory} GiB"


@cache
def _software() -> dict[str, str]:
    return {
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, ROCm {torch.version.hip}",
        "triton": next(filter(None, map(_version, _TRITON)), "none"),
        "driver": next(filter(None, map(_text, _DRIVERS)), "unknown"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


@cache
def digest_of(files: tuple[Path, ...]) -> str:
    """A digest of what was in the files when they were first read."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:24]
