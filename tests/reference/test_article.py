"""What the article says addressing does, and the pages of documentation that show it."""

import doctest
from pathlib import Path

import pytest
import torch

from ntm_kernels import functional, reference

DOCS = Path(__file__).parents[2] / "docs"
WITH_EXAMPLES = {"addressing.md": 30}


@pytest.mark.parametrize(("page", "least"), WITH_EXAMPLES.items())
def test_examples_of_the_documentation(page, least):
    try:
        failed, tried = doctest.testfile(
            str(DOCS / page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
        )
    finally:
        torch.set_printoptions(profile="default")
    assert failed == 0
    assert tried >= least


def test_no_other_page_has_examples():
    found = {page.name for page in DOCS.rglob("*.md") if ">>>" in page.read_text()}
    assert found == set(WITH_EXAMPLES)


def only(*values):
    return torch.tensor([[values]], dtype=torch.float64)


def test_recalling_a_blend_of_two_stored_words():
    memory = torch.randn(1, 6, 40, dtype=torch.float64)
    blend = (memory[:, 1:2] / memory[:, 1:2].norm() + memory[:, 4:5] / memory[:, 4:5].norm()) / 2
    weightings = reference.content(memory, blend, torch.full((1, 1), 100.0).double())
    assert set(weightings[0, 0].topk(2).indices.tolist()) == {1, 4}
    assert weightings[0, 0, [1, 4]].sum() > 0.999
    recalled = functional.read(memory, weightings)
    assert torch.cosine_similarity(recalled, blend, dim=-1) > 0.95


@pytest.mark.parametrize("locations", [3, 7, 8])
def test_shift_by_three_rows(locations):
    """``w[i] ← w[i + 3]``, around the end."""
    weightings = torch.rand(1, 1, locations, dtype=torch.float64)
    shifted = reference.shift(weightings, only(1, 0, 0, 0, 0, 0, 0))
    for i in range(locations):
        assert shifted[0, 0, i] == weightings[0, 0, (i + 3) % locations]


@pytest.mark.parametrize("locations", [4, 9])
def test_shift_from_a_range_of_rows(locations):
    """``w[i] ← 0.3 w[i + 3] + 0.5 w[i + 4] + 0.2 w[i + 5]``."""
    w = torch.rand(locations, dtype=torch.float64)
    shifted = reference.shift(w[None, None], only(0.2, 0.5, 0.3, *[0] * 8))[0, 0]
    for i in range(locations):
        near, middle, far = (w[(i + offset) % locations] for offset in (3, 4, 5))
        assert shifted[i].item() == pytest.approx(0.3 * near + 0.5 * middle + 0.2 * far)


@pytest.mark.parametrize("taps", [(1,), (0, 1, 0), (0, 0, 1, 0, 0)])
def test_shift_can_be_skipped(taps):
    weightings = torch.rand(1, 1, 5, dtype=torch.float64)
    assert torch.equal(reference.shift(weightings, only(*taps)), weightings)


def test_sharpening_undoes_the_blur():
    focus = only(0, 0, 1, 0, 0)
    weightings = focus
    for _ in range(3):
        weightings = reference.shift(weightings, only(0.1, 0.8, 0.1))
    assert weightings.max() < 0.6
    sharpened = reference.sharpen(weightings, torch.full((1, 1), 20.0).double())
    torch.testing.assert_close(sharpened, focus, atol=1e-6, rtol=0)


def test_interpolation_keeps_the_last_focus():
    last, found = only(0, 0, 1, 0), only(1, 0, 0, 0)
    assert torch.equal(reference.interpolate(found, last, only(0.0)[0]), last)
    assert torch.equal(reference.interpolate(found, last, only(1.0)[0]), found)
