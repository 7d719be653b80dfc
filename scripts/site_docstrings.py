"""An extension of Griffe, which reads the docstrings for the site: they become Markdown.

The docstrings are written to be read as plain text. Their examples are not in a section of their
own, and would be taken for quotations; roles such as ``:class:`` would be shown as they are.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n(?! *$).*)*", re.MULTILINE)
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(`[^`]+`)")


def fenced(example: re.Match[str]) -> str:
    indent = example[1]
    return f"{indent}```pycon\n{example[0]}\n{indent}```"


def as_markdown(docstring: str) -> str:
    """A docstring with its examples in fences and without roles."""
    return EXAMPLE.sub(fenced, ROLE.sub(r"\1", docstring))


class Docstrings(Extension):
    """Changes the docstring of each object that Griffe has read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
