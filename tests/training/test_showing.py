"""``animate`` and ``play``: what a trained model does with one sequence."""

import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from ntm_kernels import weights
from ntm_kernels.tasks import Trial
from ntm_kernels.training import cli, evaluation, showing
from ntm_kernels.training.checkpoint import load_run
from ntm_kernels.training.models import build_model, trained_model
from ntm_kernels.training.playing import play
from ntm_kernels.training.presets import preset
from ntm_kernels.training.trainer import Trainer, saved_config
from tests.training.runs import SHORT, TRAINING, baseline, tiny, without_extras

pytest.importorskip("matplotlib")
from PIL import Image

from ntm_kernels.training import animating
from ntm_kernels.training.replay import record_memories


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("showing") / "run"
    train(preset("copy", **{**SHORT["copy"], **TRAINING}), folder)
    return folder


def train(config, folder):
    """Trains without the tests and pictures at the end of a run."""
    with pytest.MonkeyPatch.context() as patch:
        without_extras(patch)
        Trainer(config, folder).run()


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a finished run of copy, with N = 4 and lengths 1 to 3."""
    return shutil.copytree(trained, tmp_path / "run")


def failure(capsys, *words):
    """What the command says when it fails: one line."""
    capsys.readouterr()
    try:
        code = cli.main(list(map(str, words)))
    except SystemExit as stop:
        code = stop.code
    assert code in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_memories_are_those_of_the_model():
    config = tiny(num_read_heads=2, num_write_heads=3, dtype="float64")
    model = build_model(config)
    batch = config.task.sample(1, torch.Generator().manual_seed(0)).to("cpu", torch.float64)
    memories = record_memories(model, batch, np.array([3, 0]))
    assert memories.shape == (5, 2, 3)
    state = None
    for t in range(5):
        _, state = model(batch.inputs[t : t + 1], state)
        np.testing.assert_allclose(memories[t], state.memory[0, [3, 0]].detach(), rtol=1e-12)


def test_an_animation_has_a_frame_for_each_step(run, capsys):
    assert cli.main(["animate", str(run), "--length", "3"]) == 0
    folder = run / "animations" / "length_3"
    files = [folder / "animation.gif", folder / "animation.html"]
    assert capsys.readouterr().out == "".join(f"wrote {file}\n" for file in files)
    gif = Image.open(files[0])
    assert gif.n_frames == 7
    gif.seek(6)
    assert gif.info["duration"] > 2000, "it stands still at its end"
    page = files[1].read_text()
    assert page.count("data:image/png;base64,") == 7
    assert "copy, length 3" in page
    for elsewhere in ("http", "<link", "@import", "fa-"):
        assert elsewhere not in re.sub(r"base64,[^\"]*", "", page)
    for button in ("Play", "Pause"):
        assert f'title="{button}"' in page


def frames_of(run):
    path, contents = load_run(run)
    config = saved_config(path, contents["config"])
    model = trained_model(config, contents)
    film = animating._film(model, config, "a title", Trial(config.task))
    return film, animating.draw_frames(film)


def test_frames_show_what_there_is_after_their_step(run):
    film, frames = frames_of(run)
    steps = len(film.captions)
    assert film.captions[0] == "step 0"
    assert re.fullmatch(rf"step {steps - 1}, answer: .* bits (right|wrong)", film.captions[-1])
    to_come = [int((frame[..., :3] == 237).all(axis=2).sum()) for frame in frames]
    drawn = -np.diff(to_come)
    assert (drawn > 1000).all(), "each step fills columns that were empty"
    assert abs(to_come[-1]) < drawn.min()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RUN --test nothing", "--test must be the title of a test, one of 'as trained', 'length "),
        (
            "RUN --length 128",
            "length 128: the sequence has 257 steps, and an animation shows at ",
        ),
        ("RUN --length 3 --max-length 2", "--length 3 sets --max-length too, which is 2: give one"),
        ("RUN --memory-size 0", "memory_size must be at least 1, got 0"),
        ("RUN --out RUN/config.json", "config.json is a file: give another folder"),
        ("NOWHERE", "NOWHERE holds no checkpoint: give the folder of a run (--run-dir of train), "),
        ("copy --checkpoint a.pt", "--checkpoint a.pt: copy comes with the package and has no oth"),
        ("copy --task parity:Parity", "there is no module 'parity'"),
    ],
)
def test_errors_of_animate_write_nothing(run, capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert message in failure(capsys, "animate", *words.replace("RUN", str(run)).split())
    assert sorted(tmp_path.rglob("*")) == before


def test_the_baseline_plays_and_has_nothing_to_animate(tmp_path, capsys):
    train(baseline(), tmp_path / "run")
    error = failure(capsys, "animate", tmp_path / "run")
    assert "this run trained the LSTM baseline, which has no memory to animate" in error
    assert not (tmp_path / "run" / "animations").exists()
    assert cli.main(["play", str(tmp_path / "run")]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "priority_sort: 5 steps, 2 of them answer steps, seed 0"


def test_too_many_locations_are_refused(run, monkeypatch, capsys):
    monkeypatch.setattr(animating, "MOST_ROWS", 3)
    error = failure(capsys, "animate", run, "--length", "3")
    assert "the heads use 4 memory locations, and an animation shows at most 3" in error


def test_matplotlib_is_asked_for(run, monkeypatch, capsys):
    monkeypatch.setattr(showing, "find_spec", lambda name: None)
    assert "animate needs matplotlib, which is not installed: pip" in failure(
        capsys, "animate", run
    )


class Repeating(nn.Module):
    """Answers the copy task without a fault, or with some."""

    def __init__(self, width, wrong=()):
        super().__init__()
        self.width, self.wrong = width, wrong

    def forward(self, x, state=None):
        logits = torch.full((len(x), 1, self.width), -9.0)
        delimiter = int(x[:, 0, self.width].argmax())
        logits[delimiter + 1 :] = 18 * x[:delimiter, :, : self.width] - 9
        for step, bit in self.wrong:
            logits[delimiter + 1 + step, 0, bit] *= -1
        return logits, None


def copy(length, **changes):
    return preset("copy", min_length=length, max_length=length, **changes)


def test_play_shows_sequence_and_answer():
    task = copy(3, width=2)
    shown = play(Repeating(2), task, seed=5).splitlines()
    batch = task.task.sample(1, evaluation.fresh_generator(5, "play"))
    bits = ["".join(".#"[int(one)] for one in row) for row in batch.targets[4:, 0].T]
    assert shown == [
        "copy: 7 steps, 3 of them answer steps, seed 5",
        ". is 0, # is 1, ! is a wrong bit",
        "",
        "input, steps 0 to 4",
        f"   0 {bits[0]}..",
        f"   1 {bits[1]}..",
        "   2 ...#.",
        "   3 ....#",
        "  from there to step 6 as in step 4",
        "",
        "target, answer steps 0 to 2",
        *(f"   {number} {row}" for number, row in enumerate(bits)),
        "output, answer steps 0 to 2",
        *(f"   {number} {row}" for number, row in enumerate(bits)),
        "",
        "right: all 6 bits right",
    ]


def test_play_marks_wrong_bits():
    shown = play(Repeating(8, [(0, 0), (79, 7)]), copy(80), seed=0)
    rows = re.findall(r"^   (\d) (.*)$", shown.partition("output, ")[2], re.MULTILINE)
    assert [(channel, row.index("!")) for channel, row in rows if "!" in row] == [
        ("0", 0),
        ("7", 9),
    ]
    assert shown.endswith("\n\nwrong: 2 of 640 bits wrong")


def test_play_takes_nan_for_wrong():
    class Broken(Repeating):
        def forward(self, x, state=None):
            return super().forward(x)[0] * float("nan"), None

    assert play(Broken(8), copy(2), seed=0).endswith("wrong: 16 of 16 bits wrong")


@pytest.mark.parametrize("task", SHORT)
@pytest.mark.parametrize("long", [False, True])
def test_play_fits_into_80_columns(task, long):
    sizes = {name: TRAINING[name] for name in ("hidden_size", "memory_size", "word_size")}
    config = preset(task, **(SHORT[task] if not long else {}), **sizes, controller="lstm")
    shown = play(build_model(config), config, seed=1)
    assert shown.isascii()
    assert max(map(len, shown.splitlines())) <= 80
    last = shown.splitlines()[-1]
    assert re.search("the optimum is" if task == "ngrams" else r"^(right|wrong): .* bits", last)


def test_play_leaves_out_the_middle_of_a_long_sequence():
    shown = play(Repeating(8), copy(500), seed=0).splitlines()
    assert "  steps 420 to 501 are not printed" in shown
    assert "  answer steps 420 to 499 are not printed" in shown
    assert shown[-1] == "right: all 4,000 bits right"


def test_play_tells_scales_of_channels_that_are_no_bits():
    config = preset("priority_sort", controller="lstm")
    shown = play(build_model(config), config, seed=0)
    batch = config.task.sample(1, evaluation.fresh_generator(0, "play"))
    low, high = batch.inputs[:, 0, 8].min(), batch.inputs[:, 0, 8].max()
    assert f"  channel 8: digits from 0 for {low:.3g} to 9 for {high:.3g}" in shown
    [row] = re.findall(r"^   8 (\d+)\.$", shown, re.MULTILINE)
    assert len(row) == 20, "the steps of the answer have no priority"
    scaled = (batch.inputs[:20, 0, 8] - low) / (high - low)
    assert [int(digit) for digit in row] == [min(9, int(10 * one)) for one in scaled]


def test_play_of_a_run_has_the_options_of_its_task(run, capsys):
    assert cli.main(["play", str(run), "--length", "6", "--memory-size", "9", "--seed", "3"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "copy: 13 steps, 6 of them answer steps, 9 memory locations, seed 3"
    assert cli.main(["play", "--seed", "3", "--length=6", "--memory-size", "9", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == shown


def test_play_names_a_larger_memory_where_the_input_needs_one(capsys):
    said = "  more input than memory locations: try --memory-size 256"
    assert cli.main(["play", "copy", "--length", "150"]) == 0
    *_, hint, empty, verdict = capsys.readouterr().out.splitlines()
    assert (hint, empty) == (said, "")
    assert verdict.startswith("wrong: ")
    assert cli.main(["play", "copy", "--length", "150", "--memory-size", "256"]) == 0
    assert said not in capsys.readouterr().out


def test_play_of_a_model_of_the_package(capsys):
    assert cli.main(["play", "copy", "--length", "60"]) == 0
    assert capsys.readouterr().out.endswith("\nright: all 480 bits right\n")


def test_a_run_goes_before_a_model_of_the_same_name(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["play", "copy", "--length", "3"]) == 0
    assert "4 memory locations" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nothing", "nothing holds no checkpoint: give the folder of a run"),
        ("copy --memory-size 0", "memory_size must be at least 1, got 0"),
        ("copy --length 0", "1 <= min_length <= max_length is needed"),
        ("copy --length x", "--length: must be a whole number, got 'x'"),
        ("copy --width 3", "--width 3: the sequences would have 5 input and 3 output channels"),
        ("copy --seed one", "--seed: invalid int value: 'one'"),
        ("copy --items 3", "unrecognized arguments: --items 3; see python -m ntm_kernels play cop"),
    ],
)
def test_errors_of_play(capsys, words, message):
    assert message in failure(capsys, "play", *words.split())


def test_help_names_the_models(capsys):
    for command in ("play", "animate"):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert f"folder of a run, or one of {', '.join(weights.available())}" in text
