"""What `make site` makes of docstrings and of links; `make test` leaves it out without mkdocs."""

import pytest

pytest.importorskip("griffe")
pytest.importorskip("mkdocs")

from scripts import site_docstrings, site_files


def test_examples_and_roles_become_markdown():
    docstring = "As :func:`f`.\n\n    >>> 1 + 1\n    2\n\nThe end."
    expected = "As `f`.\n\n    ```pycon\n    >>> 1 + 1\n    2\n    ```\n\nThe end."
    assert site_docstrings.as_markdown(docstring) == expected


@pytest.mark.parametrize(
    "path", ["README.md", "docs/state.md", "docs/api/index.md", "csrc/cuda/REPORT.md", "setup.py"]
)
def test_a_page_knows_its_file(path):
    assert site_files.file_of(site_files.page_of(path)) == path


def test_links_lead_to_pages():
    class Page:
        class file:
            src_uri = "glossary.md"

    def linked(text):
        return site_files.on_page_markdown(text, Page, None, None)

    assert linked("[a](../csrc/sizes.h#L42)") == "[a](repository/csrc/sizes.h.md#L-42)"
    assert linked("[a](../README.md#speed)") == "[a](index.md#speed)"
    assert linked("[a](state.md)") == "[a](state.md)"
    for untouched in (
        "[a](#speed)",
        "[a](https://arxiv.org)",
        "[a](../csrc/missing.h)",
        "[a](../../other)",
    ):
        assert linked(untouched) == untouched


def test_line_numbers_are_anchors():
    assert 'id="L-3"' in site_files.content_of("csrc/sizes.h")
