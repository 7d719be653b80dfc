"""Examples of the pages run, and what the pages name exists.

The examples of docs/addressing.md run in tests/reference/test_article.py.
"""

import functools
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import ntm_kernels
from ntm_kernels import functional, reference
from ntm_kernels.backends import choice
from ntm_kernels.training import cli
from tests.interop.checkpoints import checkpoint

ROOT = Path(__file__).parents[1]
DOCS = (page.relative_to(ROOT) for page in (ROOT / "docs").rglob("*.md"))
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(map(str, DOCS)))
EXAMPLES = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINKS = re.compile(r"\]\((?!https?:)([^)\s#]*)(?:#([^)\s]*))?\)")
FOLDERS = "ntm_kernels|csrc|tests|docs|bench|scripts|examples"
PATHS = re.compile(rf"`((?:{FOLDERS})/[\w/.-]*)(?::\d+)?`")
MODULES = re.compile(r"python -m ((?:ntm_kernels|bench|scripts)[\w.]*)")
CODE = re.compile(r"```bash\n(.*?)```|`([^`\n]+)`", re.DOTALL)
TARGETS = re.compile(r"^make ((?:[a-z-]+ ?)+)", re.MULTILINE)
each_page = pytest.mark.parametrize("page", PAGES)


def examples(page):
    return EXAMPLES.findall((ROOT / page).read_text())


def run(page):
    """Run the examples of a page, one after the other, and return their names."""
    names = {}
    for number, block in enumerate(examples(page), start=1):
        exec(compile(block, f"{page}, example {number}", "exec"), names)
    return names


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme():
    assert len(examples("README.md")) >= 3
    torch.manual_seed(0)
    run("README.md")


def test_states():
    names = run("docs/state.md")
    assert len(names["outputs"]) == 6
    assert (names["scores"].diff(dim=1) <= 0).all()


def test_derivatives(capsys):
    names = run("docs/derivatives.md")
    assert "backend='torch'" in capsys.readouterr().out
    assert names["model"].cell.interface.weight.grad.any()
    for name, parameter in names["model"].named_parameters():
        assert names["meta_gradients"][name].shape == parameter.shape
        assert names["per_sample"][name].shape == (6, *parameter.shape)


def test_several_processes(monkeypatch):
    """The first example needs no launcher; the second one runs as the only process of one."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    first, second = examples("docs/several-processes.md")
    names = {}
    exec(compile(first, "several-processes.md, example 1", "exec"), names)
    assert names["finished"]
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    exec(compile(second, "several-processes.md, example 2", "exec"), names)
    assert names["loss"].isfinite()


@pytest.mark.parametrize("page", ["cuda.md", "triton.md"])
def test_pages_of_gpus(page):
    """The reasons in their comments are those on a GPU."""
    assert run(f"docs/{page}")["choice"].backend in ntm_kernels.backends.choice._registry


@pytest.mark.parametrize(
    "page", ["concepts.md", "faq.md", "lengths.md", "mixed-precision.md", "own-controller.md"]
)
def test_pages_that_check_themselves(page):
    """Their examples have asserts."""
    assert "assert " in "".join(examples(f"docs/{page}"))
    run(f"docs/{page}")


@pytest.mark.slow
def test_compile(monkeypatch):
    """Traced as written. That inductor compiles what was traced is tested with the ops."""
    compiler = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compiler)
    assert run("docs/compile.md")["model"].cell.interface.weight.grad.any()


def test_the_examples_of_every_page_are_run():
    """Each page with examples is named by a test, so that a new one is not forgotten."""
    tests = (path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"[\w-]+\.md", "".join(tests)))
    assert {Path(page).name for page in PAGES if examples(page)} <= named


def test_pictures(tmp_path, monkeypatch, capsys):
    """The examples run, and the first command prints what the page shows."""
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("matplotlib")
    run("docs/pictures.md")
    assert (tmp_path / "heads.png").stat().st_size > 10_000
    page = (ROOT / "docs/pictures.md").read_text()
    words = re.findall(r"^python -m ntm_kernels (play .*)$", page, re.MULTILINE)[0].split()
    assert cli.main(words) == 0
    assert f"```text\n{capsys.readouterr().out}```" in page


def test_coming_from(tmp_path, monkeypatch):
    """With a checkpoint of the name that the page gives it."""
    monkeypatch.chdir(tmp_path)
    torch.save(checkpoint(inputs=9, outputs=8), "copy-task-1000-batch-50000.model")
    names = run("docs/coming-from.md")
    assert names["answer"].shape == (41, 1, 8)
    assert names["controller"].num_layers == 2


def test_backend_of_contributing(monkeypatch):
    """It is registered, and agrees with the reference."""
    monkeypatch.setattr(choice, "_registry", dict(choice._registry))
    monkeypatch.setattr(choice, "_automatic", list(choice._automatic))
    name = run("CONTRIBUTING.md")["EinsumBackend"].name
    memory = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    weightings = torch.rand(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert functional.explain("read", memory, weightings).backend == name
    vectors = functional.read(memory, weightings)
    torch.testing.assert_close(vectors, reference.read(memory, weightings))
    torch.autograd.gradcheck(
        lambda *given: functional.read(*given, backend=name), (memory, weightings)
    )


PUBLIC = (
    "",
    ".backends",
    ".export",
    ".functional",
    ".interop",
    ".nn",
    ".optim",
    ".plotting",
    ".tasks",
    ".weights",
)


def test_the_reference_has_every_public_name():
    pages = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    named = re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE)
    documented = [pkgutil.resolve_name(name) for name in named]
    for module in (importlib.import_module(f"ntm_kernels{name}") for name in PUBLIC):
        for name in module.__all__ if module not in documented else ():
            found = getattr(module, name)
            assert any(found is one for one in documented), f"{module.__name__}.{name}"


def test_pictures_of_addressing():
    """Each stage has weightings that sum to one, and its picture is on the page."""
    page = (ROOT / "docs/addressing.md").read_text()
    pictures = pytest.importorskip("scripts.addressing_pictures", exc_type=ImportError)
    for stage in pictures.stages():
        assert f"](addressing_{stage.name}.png)" in page
        for _, weighting in stage.after:
            torch.testing.assert_close(weighting.sum(), torch.tensor(1.0))
    assert len(pictures.draw(stage).axes) == len(stage.after)


def test_citations_have_the_version():
    for name, line in {
        "README.md": r"^  version = \{(.*)\},$",
        "CITATION.cff": r"^version: (.*)$",
    }.items():
        found = re.findall(line, (ROOT / name).read_text(), re.MULTILINE)
        assert found == [ntm_kernels.__version__], name


def test_issues_ask_for_what_info_prints():
    forms = [path.read_text() for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")]
    assert len(forms) == 3
    assert all("python -m ntm_kernels info" in form for form in forms)


@each_page
def test_links(page):
    here = ROOT / page
    for target, anchor in LINKS.findall(here.read_text()):
        there = here.parent / target if target else here
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{target}#{anchor}"


@each_page
def test_paths(page):
    for path in PATHS.findall((ROOT / page).read_text()):
        is_built = path.endswith(".so")
        assert is_built or (ROOT / path).exists(), path


@each_page
def test_commands(page):
    code = "\n".join(map("".join, CODE.findall((ROOT / page).read_text())))
    for module in MODULES.findall(code):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    makefile = (ROOT / "Makefile").read_text()
    for target in " ".join(TARGETS.findall(code)).split():
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
