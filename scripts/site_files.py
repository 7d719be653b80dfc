"""A hook of mkdocs: shows the files of the repository that the pages of docs link to.

The pages are also read on code hosts, where a link such as ``../csrc/cpu/memory.h#L32`` opens the
file. Here each such file becomes a page in the folder ``repository``, with numbered lines, and the
README becomes the first page. Links are changed to these pages while mkdocs reads a page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import CppLexer, PythonLexer, TextLexer

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
LINE = re.compile(r"#L(\d+)$")
LEXERS = {".cu": CppLexer, ".cuh": CppLexer, ".h": CppLexer, ".cpp": CppLexer, ".py": PythonLexer}
# As HTML, since mkdocs does not know the anchors of lines in a fence, and checks links to them.
NUMBERED = HtmlFormatter(lineanchors="L", linenos="inline", wrapcode=True)
# Shown although no page may link to them.
ALWAYS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def page_of(path: str) -> str:
    """The page or picture of the site that shows a file of the repository."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def file_of(page: str) -> str:
    """The file of the repository that a page of the site shows."""
    if page == "index.md":
        return "README.md"
    if not page.startswith("repository/"):
        return f"docs/{page}"
    path = page.removeprefix("repository/")
    return path if (ROOT / path).exists() else path.removesuffix(".md")


def is_file_of_ours(path: str) -> bool:
    return not path.startswith("..") and (ROOT / path).is_file()


def linked_files(path: str) -> set[str]:
    """The files of the repository that a Markdown file links to."""
    folder = posixpath.dirname(path)
    links = LINK.findall((ROOT / path).read_text())
    found = {posixpath.normpath(posixpath.join(folder, link)) for link, _ in links}
    return set(filter(is_file_of_ours, found))


def content_of(path: str) -> str:
    """A file as a Markdown page. Only what is prose can be searched."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    lexer = LEXERS.get(Path(path).suffix, TextLexer)()
    head = f"---\nsearch:\n  exclude: true\n---\n# `{path}`\n\n"
    return head + highlight(text, lexer, NUMBERED)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the repository's files."""
    waiting = [*ALWAYS, *(f"docs/{page.src_uri}" for page in files.documentation_pages())]
    known = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            files.append(File.generated(config, page_of(path), content=content_of(path)))
        if path.endswith(".md"):
            new = linked_files(path) - known
            known |= new
            waiting += sorted(new)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links to files into links to the pages that show them."""
    here = page.file.src_uri
    folder, place = posixpath.dirname(file_of(here)), posixpath.dirname(here)

    def to_page(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        if not is_file_of_ours(target):
            return link[0]  # mkdocs warns of it
        line = LINE.sub(r"#L-\1", link[2] or "")
        return posixpath.relpath(page_of(target), place or ".") + line

    return LINK.sub(to_page, markdown)
