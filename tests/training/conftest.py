"""Fixtures of several files of these tests."""

import resource

import pytest


@pytest.fixture
def limited_memory():
    """Some systems promise any amount of memory, and kill who uses it."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**40, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
