"""Tasks that are not the package's: given as a class, registered, or named on the command line."""

import json
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch

from ntm_kernels import tasks
from ntm_kernels.tasks import Batch, Task
from ntm_kernels.training import cli
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.landmarks import landmarks
from ntm_kernels.training.models import build_model
from ntm_kernels.training.presets import preset
from ntm_kernels.training.trainer import Trainer
from tests.training.runs import (
    TRAINING,
    as_options,
    assert_same,
    everything_but_time,
    quiet,
    without_extras,
)

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
EXAMPLES = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETTINGS = {**TRAINING, "total_sequences": 30}
OPTIONS = as_options(SETTINGS)


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    """No events, no pictures; what a test registers and imports is forgotten after it."""
    without_extras(monkeypatch)
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name in ("parity", "boobytrap"):
            del sys.modules[name]


class Sizes(Task):
    """Methods of the tasks below."""

    @property
    def input_size(self):
        return 3

    @property
    def output_size(self):
        return 3

    def _draw(self, batch_size, generator, same_length):
        inputs = torch.randint(2, (4, batch_size, 3), generator=generator).float()
        lengths = torch.full((batch_size,), 4)
        return Batch(inputs, 1 - inputs, torch.ones(4, batch_size, dtype=torch.bool), lengths)


@dataclass(frozen=True)
class Plain(Sizes):
    size: int
    kind: Literal["even", "odd", None] = "even"
    times: Literal[1, 2] | None = None
    scale: float | None = None
    label: str = "x"
    shown: Annotated[bool, "100% of it"] = False
    extras: list = field(default_factory=list)

    def suite(self):
        return {"size 1/2": replace(self, size=1)}


NAME = f"{__name__}:Plain"


def examples_of_the_page():
    return EXAMPLES.findall(PAGE.read_text().split("## A task of your own")[1])


def module_of_the_page(folder):
    """The page's first example as the module that the page tells to make of it."""
    example = examples_of_the_page()[0]
    (folder / "parity.py").write_text(example)


def test_the_page_in_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module_of_the_page(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    short = {"total_sequences": 40, "validate_every": 20, "validation_size": 4}
    monkeypatch.setattr(
        "ntm_kernels.training.presets.preset",
        lambda task, *words, **more: preset(task, *words, **{**more, **short}),
    )
    names = {}
    for number, example in enumerate(examples_of_the_page()[1:], start=2):
        exec(compile(example, f"training.md, example {number}", "exec"), names)
    assert names["trainer"].counters.sequences == 40


def test_the_page_on_the_command_line(tmp_path, monkeypatch, capsys):
    """Trained, resumed and evaluated; always and only by the class that the user names."""
    module_of_the_page(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one not in ("", ".")])
    own = ["--task", "parity:Parity"]
    assert cli.main(["train", *own, "--length", "3", "--run-dir", "run", *OPTIONS]) == 0
    before = everything_but_time(Path("run"))
    assert json.loads(Path("run/config.json").read_text())["task"]["length"] == 3
    assert cli.main(["train", "--task=parity:Parity", "--run-dir", "run", "--resume"]) == 0
    assert cli.main(["eval", "run", *own]) == 0
    assert_same(everything_but_time(Path("run")), before)
    capsys.readouterr()

    for words in (["eval", "run"], ["train", "copy", "--run-dir", "run", "--resume"]):
        assert cli.main(words) == 1
        error = capsys.readouterr().err
        assert "the task is 'parity:Parity', which is none of copy" in error
        assert "name it yourself with --task PACKAGE.MODULE:CLASS" in error
    assert cli.main(["eval", "run", *own, "--length", "5"]) == 0
    assert json.loads(Path("run/tests/length_5/evaluation.json").read_text())["task"]["length"] == 5
    capsys.readouterr()
    assert cli.main(["eval", "run", "--length", "5"]) == 1
    assert "name it yourself with --task PACKAGE.MODULE:CLASS" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["eval", "run", *own, "--depth", "5"])
    assert "see python -m ntm_kernels eval run --task parity:Parity --help" in (
        capsys.readouterr().err
    )
    assert cli.main(["train", *own, "--run-dir", "run", "--resume", "--length", "5"]) == 1
    assert "task: {'name': 'parity:Parity', 'length': 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["eval"], ["play"], ["animate"], ["export", "--format", "torch"]]
)
def test_a_class_that_is_not_the_task_of_the_run_is_refused(command, tmp_path, capsys):
    config = preset("copy", **{**SETTINGS, "total_sequences": 10, "validate_every": 10})
    Trainer(config, tmp_path, report=quiet).run()
    assert cli.main([command[0], str(tmp_path), *command[1:], "--task", NAME]) == 1
    error = capsys.readouterr().err
    assert f"--task names {NAME}, and this run trained copy: leave --task out" in error


def test_nothing_is_imported_because_a_file_names_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "boobytrap.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    config = TrainConfig(task=Plain(size=3), **SETTINGS)
    monkeypatch.setattr(Plain, "name", "boobytrap:Plain")
    assert Trainer(config, tmp_path / "run", report=quiet).run()
    run_dir = str(tmp_path / "run")
    for words in (["eval", run_dir], ["train", "copy", "--resume", "--run-dir", run_dir]):
        assert cli.main(words) == 1
        assert "the task is 'boobytrap:Plain'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no class is imported because a file names it"):
        TrainConfig.from_dict(config.to_dict())
    with pytest.raises(ValueError, match="task must be one of copy"):
        preset("boobytrap:Plain")
    assert "boobytrap" not in sys.modules


def test_resuming_takes_the_configuration_in_hand(tmp_path):
    config = TrainConfig(task=Plain(size=3, extras=[1]), **SETTINGS)
    straight = Trainer(config, tmp_path / "straight", report=quiet)
    assert straight.run()
    part = Trainer(config, tmp_path / "run", report=quiet)
    part.run(lambda: part.counters.sequences >= 20)
    assert Trainer(config, tmp_path / "run", resume=True, report=quiet).run()
    assert_same(everything_but_time(tmp_path / "run"), everything_but_time(tmp_path / "straight"))
    values = config.to_dict()
    assert TrainConfig.from_dict({**values, "task": {**values["task"], "kind": None}}, Plain)
    # What a script saved under the name that its class has there, a module goes on with.
    values["task"]["name"] = "__main__:Plain"
    assert TrainConfig.from_dict(values, Plain) == config


def test_a_registered_task_is_as_the_papers(tmp_path, monkeypatch, capsys):
    """Without a docstring, with a parameter that has no default, and options without help."""
    monkeypatch.setattr(Plain, "name", "plain")
    monkeypatch.setattr(Plain, "__doc__", None)
    assert tasks.register(Plain) is Plain
    assert tasks.register(Plain) is Plain, "again, as a cell of a notebook"
    for words in (["train", "--help"], ["train", "plain", "--help"], ["train", "copy", "--help"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "--extras" not in shown, "only numbers and text are options"
    assert "100% of it" in shown
    run = ["--run-dir", str(tmp_path / "run")]
    given = [
        "--size",
        "2",
        "--kind",
        "odd",
        "--times",
        "2",
        "--scale",
        "1.5",
        "--label",
        "y",
        "--shown",
    ]
    assert cli.main(["train", "plain", *run, *given, *OPTIONS]) == 0
    assert cli.main(["eval", run[1]]) == 0
    config = TrainConfig.from_dict(json.loads((tmp_path / "run" / "config.json").read_text()))
    assert config.task == Plain(2, "odd", 2, 1.5, "y", True, [])
    capsys.readouterr()
    assert cli.main(["train", "plain", *run[:1], str(tmp_path / "other"), *OPTIONS]) == 1
    assert "plain has no default for size: give a value" in capsys.readouterr().err
    assert cli.main(["train", "plain", "--size", "2", "--preset", "paper", *OPTIONS]) == 1
    assert "the preset paper has no settings for plain" in capsys.readouterr().err


def test_pictures_of_a_task_of_ones_own(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from ntm_kernels.training import plots

    for name in ("draw_answers", "draw_heads"):  # the slow part
        monkeypatch.setattr(plots, name, lambda *what: plots.Figure())
    config = TrainConfig(task=Plain(size=3), **SETTINGS)
    assert landmarks(config.task) == ()
    names = [path.name for path in plots.draw_run(build_model(config), config, tmp_path)]
    assert names == ["heads_as_trained.png", "heads_size_1_2.png", "answers.png"]


def test_the_command_to_go_on_names_the_class(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli.Trainer, "run", lambda trainer, should_stop: False)
    words = ["train", "--task", NAME, "--size", "2", "--run-dir", str(tmp_path), *OPTIONS]
    assert cli.main(words) == cli.INTERRUPTED
    assert f"train --task {NAME} --run-dir {tmp_path} --resume" in capsys.readouterr().out


def test_a_default_folder_has_no_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--task", NAME, "--size", "2", *OPTIONS]) == 0
    assert [path.name for path in Path("runs").iterdir()] == [f"{__name__}.Plain-ntm-seed0"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.at.all:Task", "there is no module 'nowhere'; start from the folder"),
        (f"{__name__}:Nobody", "has no subclass Nobody of Task"),
        (f"{__name__}:quiet", "has no subclass quiet of Task"),
        (f"{__name__}:Sizes", "must be decorated with @dataclass"),
        ("ntm_kernels.tasks:Task", "must define _draw, input_size, output_size"),
        ("parity", "must be one of copy, .*or PACKAGE.MODULE:CLASS, got 'parity'"),
        ("", "or PACKAGE.MODULE:CLASS, got ''"),
    ],
)
def test_what_is_no_task_is_refused_in_one_line(name, message, capsys):
    assert cli.main(["train", "--task", name]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1


def test_a_class_in_the_place_of_a_task_is_told_of_the_option(capsys):
    assert cli.main(["train", NAME, "--seed", "1"]) == 1
    error = capsys.readouterr().err
    assert "TASK must be one of copy, " in error
    assert error.endswith(
        f"got {NAME!r}; a task of your own is named by an option: --task {NAME}\n"
    )


def test_wrong_words_after_a_task_of_ones_own_name_the_help_that_there_is(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--task", NAME, "it"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    end = f"error: unrecognized arguments: it; see python -m ntm_kernels train --task {NAME} --help"
    assert error == f"{end}\n"
    with pytest.raises(SystemExit) as stop:
        cli.main([*end.partition("ntm_kernels ")[2].split()])
    assert stop.value.code == 0
    assert f"train --task {NAME}" in capsys.readouterr().out.replace("\n", " ")


@dataclass(frozen=True)
class Confusing(Sizes):
    lr: float = 1.0
    run_dir: str = ""


@dataclass(frozen=True)
class Named(Sizes):
    name: str = "x"


def test_annotations_for_type_checkers_alone():
    """They cannot be evaluated: there are no options, and the task works all the same."""

    @dataclass(frozen=True)
    class Lazy(Sizes):
        size: "Unknown" = 3  # noqa: F821

    assert preset(Lazy, size=4).task == Lazy(4)
    assert TrainConfig.from_dict(preset(Lazy).to_dict(), Lazy).task == Lazy(3)


def test_names_that_are_taken(monkeypatch):
    with pytest.raises(ValueError, match=r"names of other options \(lr, run_dir\): rename them"):
        TrainConfig(task=Confusing())
    with pytest.raises(ValueError, match="has a parameter called name"):
        tasks.register(Named)
    monkeypatch.setattr(Plain, "name", "copy")
    for use in (lambda: tasks.register(Plain), lambda: TrainConfig(task=Plain(3))):
        with pytest.raises(ValueError, match="is called 'copy', which is the name of another"):
            use()


def test_a_subclass_does_not_pass_for_its_parent():
    @dataclass(frozen=True)
    class Longer(tasks.Copy):
        extra: int = 1

    assert Longer.name.endswith("Longer")
    assert tasks.Copy.name == "copy"


def drawing(**changes):
    """A task that draws batches of which some tensors are changed."""

    @dataclass(frozen=True)
    class Wrong(Sizes):
        """Draws wrong batches."""

        def _draw(self, batch_size, generator, same_length):
            batch = super()._draw(batch_size, generator, same_length)
            return batch._replace(**{name: of(batch) for name, of in changes.items()})

    return Wrong()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"inputs": lambda b: b.inputs[..., :2]},
            "inputs [T, B, I] = [4, 2, 3], floating point; g",
        ),
        ({"targets": lambda b: b.targets[1:]}, "got [3, 2, 3], float32"),
        ({"mask": lambda b: b.mask[1:]}, "mask [T, B] = [4, 2], bool; got [3, 2], bool"),
        ({"mask": lambda b: b.mask.float()}, "mask [T, B] = [4, 2], bool; got [4, 2], float32"),
        ({"lengths": lambda b: b.lengths[1:]}, "lengths [B] = [2], int64; got [1], int64"),
        (
            {"inputs": lambda b: b.inputs.transpose(0, 1)},
            "[2, 2, 3], floating point; got [2, 4, 3]",
        ),
        ({"inputs": lambda b: torch.tensor(1.0)}, "floating point; got [], float32"),
    ],
)
def test_batches_of_another_layout_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        drawing(**changes).sample(2, torch.Generator())
    assert "Wrong: _draw must return" in str(raised.value)


@pytest.mark.parametrize("found", [3, torch.ones(1), (1, 2, 3, 4)])
def test_what_is_no_batch_is_refused(found, monkeypatch):
    task = Plain(size=1)
    monkeypatch.setattr(Plain, "_draw", lambda *arguments: found)
    message = f"_draw must return a Batch, got {type(found).__name__}"
    with pytest.raises(TypeError, match=message):
        task.sample(2, torch.Generator())
    monkeypatch.setattr(Plain, "_draw", lambda *arguments: Batch(None, None, None, None))
    with pytest.raises(TypeError, match="_draw must return inputs as a tensor, got NoneType"):
        task.sample(2, torch.Generator())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": lambda b: 5 * b.targets}, "_draw must return targets of 0 or 1"),
        ({"targets": lambda b: b.targets / 0}, "_draw must return targets of 0 or 1"),
        ({"mask": lambda b: b.mask & False}, "an answer step, True in mask, in every sequence"),
        ({"lengths": lambda b: b.lengths - 1}, "no answer step after the end of a sequence"),
        ({"lengths": lambda b: b.lengths + 1}, "inputs as long as the largest of lengths"),
    ],
)
def test_batches_of_wrong_values_are_not_trained_on(changes, message, tmp_path):
    config = TrainConfig(task=drawing(**changes), **SETTINGS)
    with pytest.raises(ValueError, match=message):
        Trainer(config, tmp_path, report=quiet).run()


def test_parameters_with_names_of_options_are_refused_before_the_options_are_made(capsys):
    name = f"{__name__}:SeedOfItsOwn"
    assert cli.main(["train", "--task", name]) == 1
    error = capsys.readouterr().err
    assert "has parameters with the names of other options (seed): rename them" in error
    assert cli.main(["train", "copy", "--task", name]) == 1
    assert cli.main(["train", "copy", "--task", NAME]) == 1
    assert "give either the task copy or --task, not both" in capsys.readouterr().err


@dataclass(frozen=True)
class SeedOfItsOwn(Sizes):
    """A parameter that the trainer has too."""

    seed: int = 3
