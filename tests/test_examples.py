"""The programs in examples/: each runs in small, and does what it says that it does."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from ntm_kernels import tasks
from ntm_kernels.training import cli
from tests.training.runs import TRAINING, as_options, environment, without_extras

ROOT = Path(__file__).parents[1]
CONTROLLERS = ("gru", "attention")


def assert_each_alone(model, x, lengths):
    """A padded batch gives the outputs and the state of each sequence alone."""
    output, state = model(x, lengths=lengths)
    for number, length in enumerate(lengths):
        alone, final = model(x[:length, number : number + 1])
        torch.testing.assert_close(output[:length, number : number + 1], alone)
        kept = torch.utils._pytree.tree_leaves(state.select([number]))
        for one, other in zip(kept, torch.utils._pytree.tree_leaves(final), strict=True):
            torch.testing.assert_close(one, other)


def test_reversal_gives_the_vectors_from_the_last_to_the_first():
    from examples.own_task import Reversal

    task = Reversal(width=3, min_length=2, max_length=5)
    batch = task.sample(8, torch.Generator().manual_seed(0))
    for number, steps in enumerate(batch.lengths):
        count = int(steps) // 2
        shown = batch.inputs[:count, number, :3]
        answer = batch.targets[batch.mask[:, number], number]
        assert torch.equal(answer, shown.flip(0))
        assert batch.inputs[count, number].tolist() == [0, 0, 0, 1, 0]
        assert (batch.inputs[count + 1 : steps, number, 4] == 1).all()
        assert not batch.inputs[steps:, number].any()
        assert not batch.targets[~batch.mask[:, number], number].any()
    assert len(set(batch.lengths.tolist())) > 1
    same = task.sample(8, torch.Generator().manual_seed(0), same_length=True)
    assert len(set(same.lengths.tolist())) == 1
    with pytest.raises(ValueError, match=r"min_length <= max_length.*min_length=7, max_length=5"):
        replace(task, min_length=7)


@pytest.mark.slow
def test_own_task(tmp_path, monkeypatch, capsys):
    """As a program and on the command line, which evaluates what the program has trained."""
    from examples import own_task

    without_extras(monkeypatch)
    monkeypatch.chdir(ROOT)
    few = {"evaluation_size": 4, "validation_size": 4}
    monkeypatch.setattr(own_task, "preset", partial(own_task.preset, **few))
    run = tmp_path / "run"
    own_task.main(["--run-dir", str(run), "--sequences", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines[-3:]] == [
        "as trained",
        "length 20",
        "length 50",
    ]
    own = ["--task", "examples.own_task:Reversal"]
    shorter = ["--max-length", "3", "--out", str(tmp_path / "out")]
    assert cli.main(["eval", str(run), *own, *shorter]) == 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["task"]["max_length"] == 3
    words = ["train", *own, "--width", "2", "--run-dir", str(tmp_path / "other")]
    assert cli.main([*words, *as_options(TRAINING)]) == 0


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_own_controllers_hold_the_state_of_a_sequence_that_is_over(kind):
    from examples.own_controller import build

    model = build(kind, tasks.make("copy", width=2, answer_channel=True), hidden_size=5).double()
    assert_each_alone(model, torch.randn(7, 3, 4, dtype=torch.float64), [7, 2, 5])


def test_the_first_state_of_the_gru_is_learned():
    from examples.own_controller import build

    task = tasks.make("copy", width=2)
    model = build("gru", task)
    with torch.no_grad():
        model.cell.controller.first.fill_(0.5)
    assert (model.initial_state(3).controller == 0.5).all()
    batch = task.sample(2, torch.Generator().manual_seed(0))
    model(batch.inputs, lengths=batch.lengths)[0].sum().backward()
    assert model.cell.controller.first.grad.any()


def test_attention_looks_at_the_last_inputs_alone():
    from examples.own_controller import Attention

    controller = Attention(input_size=3, hidden_size=5, span=2)
    inputs = torch.randn(4, 1, 3)

    def last(given):
        state = controller.initial_state(1)
        for one in given:
            output, state = controller(one, state)
        return output

    torch.testing.assert_close(last(inputs), last(inputs[2:]))
    assert not torch.allclose(last(inputs), last(inputs[3:]))


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_own_controller(kind, capsys):
    from examples import own_controller

    own_controller.main(["--controller", kind, "--updates", "2"])
    assert re.search(r"\d+ of 512 new sequences have a wrong bit", capsys.readouterr().out)


@pytest.mark.slow
def test_character_model(capsys):
    from examples import character_model

    character_model.main(["--topics", "6", "--epochs", "1"])
    out = capsys.readouterr().out
    weights = [int(found.replace(",", "")) for found in re.findall(r": ([\d,]+) weights", out)]
    assert len(weights) == 2
    assert abs(weights[0] - weights[1]) < 0.01 * weights[0]
    # A model that has learnt nothing needs about 6.7 bits, the logarithm of the alphabet.
    for found in re.findall(r"([\d.]+) bits a character held out", out):
        assert 1 < float(found) < 6


def test_texts_of_the_character_model():
    """Nothing held out is in the training text, and the streams have every character in order."""
    from examples.character_model import Text, texts_of_python

    texts = texts_of_python()
    paragraphs = [one for text in texts for one in text.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs))
    text = Text(["abcdefghij", *["klmnopqrst"] * 9])
    x, following = (torch.cat(parts) for parts in zip(*text.pieces(3, 4), strict=True))
    read = (len(text.training) - 1) // 3
    assert torch.equal(x.T.flatten(), text.training[: 3 * read])
    assert torch.equal(following.T.flatten(), text.training[1 : 3 * read + 1])


@pytest.mark.parametrize("kind", ["ntm", "lstm"])
def test_packed_texts_are_read_as_each_alone(kind):
    from examples.character_model import CharacterModel

    model = CharacterModel(kind, alphabet=7, hidden_size=6)
    texts = [torch.randint(7, (length,)) for length in (3, 9, 1)]
    packed = torch.nn.utils.rnn.pack_sequence(texts, enforce_sorted=False)
    scores, _ = torch.nn.utils.rnn.pad_packed_sequence(model(packed)[0])
    for number, one in enumerate(texts):
        alone, _ = model(one.unsqueeze(1))
        torch.testing.assert_close(scores[: len(one), number], alone.squeeze(1))


@pytest.fixture
def digits():
    pytest.importorskip("sklearn", reason='needs scikit-learn: pip install ".[examples]"')
    from examples import classify_digits

    return classify_digits


def test_episodes_of_digits(digits):
    """No image twice, one label and one orientation a character, and every look is counted."""
    images = torch.arange(5 * 8 * 20.0).view(5, 8, 20, 1, 1).expand(-1, -1, -1, 8, 8)
    episodes = digits.draw(images, batch=6, steps=20)
    values = episodes.images[:, :, 0, 0].long()
    for number in range(6):
        shown, labels = values[:, number], episodes.labels[:, number]
        assert len(set((shown % 20).tolist())) == 20
        characters, digit = shown // 20, shown // 160
        pairs = set(zip(characters.tolist(), labels.tolist(), strict=True))
        assert len(pairs) == len(set(labels.tolist())) == len(set(digit.tolist()))
        for label in set(labels.tolist()):
            looks = episodes.looks[labels == label, number]
            assert looks.tolist() == list(range(1, len(looks) + 1))


def test_digits_are_turned(digits):
    images = digits.orientations_of((3, 1))
    assert images.shape[:2] == (2, 8)
    assert len({tuple(one.flatten().tolist()) for one in images[0, :, 0]}) == 8
    torch.testing.assert_close(images[:, 1], images[:, 0].rot90(1, (-2, -1)))


def test_the_nearest_neighbour_is_an_earlier_image(digits):
    images = torch.tensor([0.0, 5.0, 0.1, 5.1]).view(4, 1, 1, 1).expand(-1, -1, 8, 8)
    labels = torch.tensor([2, 4, 2, 4]).unsqueeze(1)
    answers = digits.nearest_neighbour(digits.Episodes(images, labels, labels))
    assert answers[1:].flatten().tolist() == [2, 2, 4]


def test_a_step_sees_the_label_of_the_step_before(digits):
    model = digits.Recogniser("NTM")
    images, labels = torch.rand(6, 1, 8, 8), torch.zeros(6, 1, dtype=torch.int64)
    other = labels.clone()
    other[3] = 1
    changed = (model(images, labels) != model(images, other)).flatten(1).any(1)
    assert changed.tolist() == [False, False, False, False, True, True]


@pytest.mark.slow
def test_classify_digits(digits, tmp_path, capsys):
    words = ["--seeds", "1", "--updates", "1", "--picture", str(tmp_path / "digits.png")]
    digits.main(words)
    out = capsys.readouterr().out
    assert all(len(re.findall(rf"^{kind}\b.*%", out, re.MULTILINE)) for kind in ("NTM", "LSTM"))


def test_programs_refuse_what_they_cannot_do(capsys):
    from examples import character_model, two_processes

    for main, words, message in (
        (character_model.main, ["--topics", "1"], "--topics must be at least 2"),
        (character_model.main, ["--epochs", "0"], "--epochs must be at least 1"),
        (two_processes.main, [], "start it with torchrun --nproc-per-node 2"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes():
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    example = [*launcher, "--nproc-per-node", "2", ROOT / "examples/two_processes.py"]
    done = subprocess.run(
        [*example, "--updates", "300"],
        cwd=ROOT,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    compared, *losses = done.stdout.splitlines()
    assert compared.startswith("2 processes: ")
    assert float(compared.split()[-1]) < 1e-5
    # A coin costs 0.69.
    assert float(losses[-1].removeprefix("update 300: loss ")) < 0.2


@pytest.mark.slow
def test_the_task_is_learned(tmp_path, monkeypatch, capsys):
    from examples import own_task

    without_extras(monkeypatch)
    own_task.main(["--run-dir", str(tmp_path), "--sequences", "12000"])
    (line,) = re.findall(r"as trained: +([\d.]+) bits", capsys.readouterr().out)
    assert float(line) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONTROLLERS)
def test_the_controllers_learn(kind, capsys):
    from examples import own_controller

    own_controller.main(["--controller", kind, "--updates", "400"])
    (wrong,) = re.findall(r"(\d+) of 512 new sequences", capsys.readouterr().out)
    assert int(wrong) < 10


@pytest.mark.slow
def test_the_digits_are_told_apart(digits):
    """Digits that were not trained on, at the tenth look: chance is 0.2."""
    model = digits.Recogniser("NTM")
    digits.train(model, digits.orientations_of(digits.TRAINED_ON), updates=1500)
    episodes = digits.draw(digits.orientations_of(digits.TESTED_ON), batch=100, steps=60)
    with torch.no_grad():
        answers = model(episodes.images, episodes.labels).argmax(2)
    assert digits.accuracy(answers, episodes)[9] > 0.6
