"""Which cards the CUDA backend serves, by what it was compiled for; on cards that are not there."""

from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

import ntm_kernels
from ntm_kernels import BackendError, functional
from ntm_kernels.backends import get, register
from ntm_kernels.backends.cuda import CudaBackend, backend
from ntm_kernels.backends.cuda.library import CudaLibrary, Device, Plan, runs_on

VOLTA, TURING = Device((7, 0), 98_304), Device((7, 5), 65_536)
HOPPER, BLACKWELL = Device((9, 0), 232_448), Device((10, 0), 232_448)
WHY_NOT = "the card has compute capability 7.0, the kernels are compiled for 7.5, 9.0+PTX"


@pytest.mark.parametrize(
    ("architecture", "cards", "others"),
    [
        ("8.0", ["8.0", "8.6", "8.9"], ["7.5", "9.0", "12.0"]),
        ("8.6", ["8.6", "8.9"], ["8.0", "9.6", "10.0"]),
        ("12.0+PTX", ["12.0", "12.1", "13.0"], ["9.0", "10.3"]),
        ("7.5+PTX", ["7.5", "8.0", "12.0"], ["7.0", "7.2", "6.1"]),
        ("9.0a", ["9.0"], ["8.9", "9.1", "10.0"]),
        ("9.0a+PTX", ["9.0"], ["8.9", "9.1", "10.0"]),
        ("10.0f", ["10.0", "10.3"], ["9.0", "11.0", "12.0"]),
        ("10.3f+PTX", ["10.3"], ["10.0", "12.0"]),
    ],
)
def test_what_runs_where(architecture, cards, others):
    def runs(card):
        major, minor = card.split(".")
        return runs_on(architecture, (int(major), int(minor)))

    assert [card for card in cards if not runs(card)] == []
    assert [card for card in others if runs(card)] == []


@pytest.fixture
def machine(monkeypatch):
    """A machine with such cards and the backends ``cuda`` and ``torch``."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setenv("NTM_KERNELS_SELFCHECK", "0")  # nothing runs on cards that are not there
    monkeypatch.setattr(ntm_kernels.backends.choice, "_registry", {"torch": get("torch")})
    monkeypatch.setattr(ntm_kernels.backends.choice, "_automatic", ["torch"])

    def of(*cards):
        class Library(CudaLibrary):
            """Plans nothing where a block has less than 100,000 bytes."""

            def __init__(self, path, params):
                self.architectures = ("7.5", "9.0+PTX")

            def device(self, index):
                return cards[index]

            def plan(self, op, direction, is_double, sizes, shared_limit):
                why_not = b"" if shared_limit >= 100_000 else b"a block has %d" % shared_limit
                return Plan(tile_rows=sizes.memory_size, why_not=why_not)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(backend, "CudaLibrary", Library)
        register(CudaBackend(Path(__file__)))

    return of


def read_on(device):
    """The arguments of ``read`` there, without data."""
    with FakeTensorMode():
        return torch.empty(2, 7, 5, device=device), torch.empty(2, 1, 7, device=device)


@pytest.mark.parametrize("card", [HOPPER, BLACKWELL])
def test_a_card_that_is_served(machine, card):
    machine(card)
    assert functional.explain("read", *read_on("cuda:0")).backend == "cuda"
    status = ntm_kernels.available_backends()[0]
    assert status == ("cuda", True, "CUDA kernels, 232448 bytes of shared memory in a block")


def test_a_card_that_nothing_was_compiled_for(machine):
    machine(VOLTA)
    choice = functional.explain("read", *read_on("cuda:0"))
    assert (choice.backend, choice.rejected) == ("torch", {"cuda": WHY_NOT})
    assert ntm_kernels.available_backends()[0] == ("cuda", False, WHY_NOT)
    with pytest.raises(BackendError, match=r"'cuda'.*cannot serve read: the card has compute"):
        functional.read(*read_on("cuda:0"), backend="cuda")
    with pytest.raises(BackendError, match=r"not available: the card has compute"):
        ntm_kernels.use_backend("cuda").__enter__()


def test_unequal_cards(machine):
    """Each call is judged by the card of its tensors, whichever is the current one."""
    machine(HOPPER, VOLTA, TURING)
    choices = [functional.explain("read", *read_on(f"cuda:{number}")) for number in range(3)]
    assert [choice.backend for choice in choices] == ["cuda", "torch", "torch"]
    assert choices[1].rejected == {"cuda": WHY_NOT}
    assert choices[2].rejected == {"cuda": "forward: a block has 65536"}
    assert "the memory in shared memory" in choices[0].reason
    assert ntm_kernels.available_backends()[0] == (
        "cuda",
        True,
        "CUDA kernels, device 0: 232448 bytes of shared memory in a block; "
        f"device 1: {WHY_NOT}; device 2: 65536 bytes of shared memory in a block",
    )
    with pytest.raises(BackendError, match="cannot serve read: the card has compute"):
        functional.read(*read_on("cuda:1"), backend="cuda")
