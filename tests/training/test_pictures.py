import numpy as np
import pytest
import torch

from ntm_kernels import NTM, tasks
from ntm_kernels.training.evaluation import fresh_generator
from ntm_kernels.training.models import build_model
from ntm_kernels.training.replay import record_example, record_heads, walked_locations
from tests.training.runs import baseline, tiny

pytest.importorskip("matplotlib")
from matplotlib import image

from ntm_kernels.training import plots


def model_and_batch(**changes):
    config = tiny(num_read_heads=2, num_write_heads=3, **changes)
    torch.manual_seed(0)
    model = build_model(config)
    return config, model, config.task.sample(1, torch.Generator().manual_seed(0))


def test_replay_is_what_the_model_did():
    _, model, batch = model_and_batch(dtype="float64")
    batch = batch.to("cpu", torch.float64)
    heads = record_heads(model, batch)
    assert [len(part) for part in (heads.write_weightings, heads.read_weightings)] == [3, 2]
    for images, rows in ((heads.write_weightings, 4), (heads.read_weightings, 4), (heads.added, 3)):
        assert all(one.shape == (rows, 5) for one in images)
    assert sorted(heads.locations) == [0, 1, 2, 3]
    # Step by step with the module itself: the state after each step has that step's reads.
    state = None
    for t in range(5):
        _, state = model(batch.inputs[t : t + 1], state)
        for head in range(2):
            read = state.read_vectors[0, head].detach().numpy()
            np.testing.assert_allclose(heads.read[head][:, t], read, rtol=1e-12, atol=1e-15)
            weightings = state.weightings[0, head, heads.locations].detach().numpy()
            np.testing.assert_allclose(heads.read_weightings[head][:, t], weightings, rtol=1e-12)
        for head in range(3):
            weightings = state.weightings[0, 2 + head, heads.locations].detach().numpy()
            np.testing.assert_allclose(heads.write_weightings[head][:, t], weightings, rtol=1e-12)


def test_example_shows_the_answer():
    config, model, batch = model_and_batch()
    example = record_example("title", model, batch, config)
    assert example.answering.tolist() == [False] * 3 + [True] * 2
    probability = model(batch.inputs)[0].sigmoid()[3:, 0].detach().numpy().T
    np.testing.assert_allclose(example.outputs[:, 3:], probability, rtol=1e-6)
    assert not example.outputs[:, :3].any()
    expected = (probability > 0.5) != batch.targets[3:, 0].numpy().T.astype(bool)
    assert (example.wrong[:, 3:] == expected).all()
    assert not example.wrong[:, :3].any()
    assert example.bits == pytest.approx(tasks.bits(model(batch.inputs)[0], batch).item())
    assert example.verdict == f"{expected.sum()} of 4 bits wrong"


def test_ngrams_are_compared_with_the_optimum():
    task = tasks.make("ngrams", length=30)
    config = type(tiny()).from_dict({**tiny().to_dict(), "task": task.to_dict()})
    batch = task.sample(1, torch.Generator().manual_seed(0))
    example = record_example("title", build_model(config), batch, config)
    probability = tasks.optimal_probabilities(batch.targets[:, :, 0])
    assert (example.optimal[0] == probability[:, 0].numpy()).all()
    assert example.verdict.endswith(f"the optimum is {task.optimal_bits(batch).item():.1f}")


def walk(size, places):
    weighting = np.zeros((size, len(places)))
    weighting[places, range(len(places))] = 1
    return weighting


@pytest.mark.parametrize(
    ("write", "read", "shown"),
    [
        ([3, 4, 5], [3, 3, 4], [3, 4, 5]),
        ([8, 9, 0, 1], [8, 8, 8, 9], [8, 9, 0, 1]),
        ([1, 0, 9, 8], [1, 1, 1, 0], [1, 0, 9, 8]),
        ([5, 5, 5], [5, 7, 7], [5, 6, 7]),
        ([7, 8, 9, 0, 1, 2, 3, 4, 5, 6], [0] * 10, [7, 8, 9, 0, 1, 2, 3, 4, 5, 6]),
        ([2, 1, 0, 9, 8, 7, 6, 5, 4, 3], [0] * 10, [2, 1, 0, 9, 8, 7, 6, 5, 4, 3]),
    ],
)
def test_locations_are_shown_in_the_order_of_the_walk(write, read, shown):
    highest = np.maximum(walk(10, write).max(axis=1), walk(10, read).max(axis=1))
    assert walked_locations(highest, np.array(write)).tolist() == shown


def test_nothing_in_focus_shows_the_whole_memory():
    shown = walked_locations(np.full(100, 0.01), np.zeros(3, dtype=int))
    assert sorted(shown) == list(range(100))


@pytest.mark.parametrize("task", ["copy", "repeat_copy", "associative_recall", "ngrams"])
@pytest.mark.parametrize("model", ["ntm", "lstm"])
def test_every_task_can_be_drawn(tmp_path, monkeypatch, task, model):
    config = (tiny if model == "ntm" else baseline)()
    small = {"ngrams": {"length": 12}, "copy": {"max_length": 4}}.get(task, {})
    config = type(config).from_dict(
        {**config.to_dict(), "task": tasks.make(task, **small).to_dict()}
    )
    monkeypatch.setattr(plots, "test_sets", lambda config: {"as trained": config.task})
    monkeypatch.setitem(plots._STYLE, "savefig.dpi", 40)
    drawn = plots.draw_run(build_model(config), config, tmp_path)
    expected = {"answers.png"} | ({"heads_as_trained.png"} if model == "ntm" else set())
    assert {path.name for path in drawn} == expected
    for path in drawn:
        pixels = image.imread(path)
        assert pixels.shape[0] > 40
        assert pixels.std() > 0.05, "a picture is not blank"


def test_wrong_bits_are_red(tmp_path):
    config, model, batch = model_and_batch()
    example = record_example("title", model, batch, config)
    example.outputs[:] = example.targets
    right = plots.draw_answers([example])
    example.outputs[:, 3:] = 1 - example.targets[:, 3:]
    wrong = plots.draw_answers([example])

    def red(figure):
        path = tmp_path / "figure.png"
        figure.savefig(path)
        pixels = image.imread(path)[..., :3]
        return int(((pixels[..., 0] > 0.95) & (pixels[..., 1:].max(axis=2) < 0.15)).sum())

    assert red(right) == 0
    assert red(wrong) > 100


def test_learning_curve_takes_a_cost_of_zero(tmp_path):
    rows = [{"sequences": 10.0, "train_bits": 3.0}, {"sequences": 20.0, "train_bits": 0.0,
             "validation_bits": 0.0}]  # fmt: skip
    figure = plots.draw_learning_curve(rows, tiny())
    figure.savefig(tmp_path / "curve.png")
    assert image.imread(tmp_path / "curve.png").std() > 0.05


@pytest.mark.parametrize("task", ["copy", "ngrams", "priority_sort"])
def test_what_was_published_is_drawn_for_the_same_task_alone(task):
    config = tiny()
    config = type(config).from_dict({**config.to_dict(), "task": tasks.make(task).to_dict()})
    rows = [{"sequences": 1000.0 * i, "train_bits": 90.0 / i} for i in range(1, 4)]

    def words(config):
        legend = plots.draw_learning_curve(rows, config).axes[0].get_legend()
        return [text.get_text() for text in legend.get_texts()]

    curves = ["training", "validation"]
    validation = config.task.sample(4, fresh_generator(config.seed, "validation"))
    optimum = float(config.task.optimal_bits(validation).mean())
    assert (
        words(config)
        == curves
        + {
            "copy": [
                "pytorch-ntm near zero after 30 thousand sequences",
                "paper near zero after 100–200 thousand sequences",
            ],
            "ngrams": [
                f"optimum of the validation set: {optimum:.1f} bits",
                "paper 133–134 bits",
                "paper, LSTM 136 bits",
            ],
            "priority_sort": ["paper 10–20 bits", "paper, LSTM 50–58 bits"],
        }[task]
    )
    assert words(tiny()) == curves


@pytest.mark.parametrize(("model", "panels"), [("ntm", 6), ("lstm", 4)])
def test_the_summary_shows_curve_answer_and_heads(tmp_path, model, panels):
    config = (tiny if model == "ntm" else baseline)()
    net, batch = build_model(config), config.task.sample(1, torch.Generator().manual_seed(0))
    example = record_example("title", net, batch, config)
    heads = record_heads(net, batch) if model == "ntm" else None
    rows = [{"sequences": 1000.0 * i, "train_bits": 9.0 / i} for i in range(1, 4)]
    figure = plots.draw_summary(rows, example, heads, config)
    assert len(figure.axes) == panels
    assert figure.axes[3].get_title().startswith("outputs, title: ")
    np.testing.assert_array_equal(figure.axes[3].images[0].get_array(), example.outputs)
    if heads is not None:
        shown = figure.axes[-1].images[0].get_array()
        np.testing.assert_array_equal(shown, heads.read_weightings[0])
    figure.savefig(tmp_path / "summary.png", dpi=40)


def test_ntm_is_what_is_drawn():
    assert isinstance(build_model(tiny()), NTM)
