"""When `gpu_check` passes: not where a part of it was left out unasked."""

import shutil

import pytest
import torch

from scripts import gpu_check

SANITIZED = ("memcheck", "racecheck", "synccheck")


@pytest.fixture
def check(monkeypatch, tmp_path):
    """The exit status and the report of the sanitized stages, on an NVIDIA card with nvcc."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(gpu_check, "finds_nvcc", lambda: True)
    report = tmp_path / "report.md"

    def run(sanitizer, *options):
        found = sanitizer and shutil.which(sanitizer)
        monkeypatch.setattr(gpu_check, "find_sanitizer", lambda: found)
        arguments = ["gpu_check", "--report", str(report), *options, "--only", *SANITIZED]
        monkeypatch.setattr("sys.argv", arguments)
        return gpu_check.main(), report.read_text()

    return run


def test_passes_when_everything_passed(check):
    status, report = check("true")
    assert status == 0
    assert all(f"| {tool} | passed |" in report for tool in SANITIZED)


def test_fails_when_something_failed(check):
    status, report = check("false")
    assert status == 1
    assert "| racecheck | FAILED (exit status 1) |" in report


def test_fails_without_the_sanitizer(check):
    status, report = check(None)
    assert status == 1
    assert all(f"| {tool} | NOT CHECKED: no compute-sanitizer" in report for tool in SANITIZED)


@pytest.mark.parametrize("sanitizer", [None, "false"])
def test_goes_on_without_the_sanitizer_when_told(check, sanitizer):
    status, report = check(sanitizer, "--without-sanitizer")
    assert status == 0
    assert all(f"| {tool} | did not run: --without-sanitizer |" in report for tool in SANITIZED)


def test_amd_cards_need_none(check, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(gpu_check, "finds_nvcc", lambda: False)
    status, report = check(None)
    assert status == 0
    assert "| memcheck | did not run: compute-sanitizer is for NVIDIA cards |" in report
