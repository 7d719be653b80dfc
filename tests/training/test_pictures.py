import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from ntm_kernels import NTM, tasks
from ntm_kernels.tasks import Trial
from ntm_kernels.training import models, replay
from ntm_kernels.training.evaluation import fresh_generator
from ntm_kernels.training.files import WriteError
from ntm_kernels.training.models import answer, answer_in_pieces, build_model, compute_dtype
from ntm_kernels.training.playing import play
from ntm_kernels.training.presets import preset
from ntm_kernels.training.replay import (
    MOST_COLUMNS,
    MOST_ROWS,
    Example,
    Heads,
    block_size,
    largest,
    record_example,
    record_heads,
    walked_locations,
)
from tests.training.runs import baseline, no_file_larger_than, tiny

pytest.importorskip("matplotlib")
from matplotlib import image

from ntm_kernels.plotting.trace import draw_heads_sheet
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


@pytest.mark.parametrize("value", [math.nan, 1e-30])
def test_every_count_of_wrong_bits_is_the_same(value):
    """Also for NaN, and for a logit above 0 whose probability is rounded to a half."""

    class Constant(torch.nn.Module):
        def forward(self, x, state=None):
            return torch.full((len(x), x.shape[1], 2), value), None

    config, model = preset("copy", width=2, min_length=30, max_length=30, model="lstm"), Constant()
    batch = config.task.sample(1, fresh_generator(0, "play"))
    wrong = tasks.wrong_bits(model(batch.inputs)[0], batch)
    assert int(wrong.sum()) == (60 if math.isnan(value) else int((batch.targets[31:] == 0).sum()))
    example = record_example("title", model, batch, config)
    assert (example.wrong == wrong[:, 0].T.numpy()).all()
    assert example.verdict == f"{int(wrong.sum())} of 60 bits wrong"
    assert play(model, config, seed=0).endswith(f"wrong: {int(wrong.sum())} of 60 bits wrong")
    assert not example.outputs[:, :31].any(), "0 outside of the answer steps, not NaN"


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


def test_blocks_keep_the_largest_value():
    """Of a one in any place, and of the last block, which is smaller than the others."""
    for row, column in [(0, 0), (6, 10), (3, 7)]:
        image = np.zeros((7, 11))
        image[row, column] = 1
        blocks = largest(image, steps=4, locations=3)
        assert blocks.shape == (3, 3)
        assert np.argwhere(blocks == 1).tolist() == [[row // 3, column // 4]]


@pytest.mark.parametrize(
    ("most_columns", "most_rows", "traced"), [(3, 2, 1), (2, 4, 30), (1, 1, 8)]
)
def test_weightings_in_blocks_are_those_of_all_steps(monkeypatch, most_columns, most_rows, traced):
    """Recorded a few steps at a time, in blocks, they are the largest of those recorded whole."""
    _, model, batch = model_and_batch()
    whole = record_heads(model, batch)
    monkeypatch.setattr(replay, "MOST_COLUMNS", most_columns)
    monkeypatch.setattr(replay, "MOST_ROWS", most_rows)
    monkeypatch.setattr(replay, "_TRACED", traced)
    blocks = record_heads(model, batch)
    assert (blocks.locations == whole.locations).all()
    assert (blocks.added, blocks.read) == ([], [])
    steps, rows = block_size(5, most_columns), block_size(4, most_rows)
    for kind in ("read_weightings", "write_weightings"):
        for one, other in zip(getattr(blocks, kind), getattr(whole, kind), strict=True):
            np.testing.assert_allclose(one, largest(other, steps, rows), rtol=1e-6)
            assert one.shape == (-(-4 // rows), -(-5 // steps))


def test_vectors_recorded_in_pieces_are_those_of_the_whole(monkeypatch):
    _, model, batch = model_and_batch()
    whole = record_heads(model, batch)
    monkeypatch.setattr(replay, "_TRACED", 40)  # two steps of five heads
    pieces = record_heads(model, batch)
    for kind in ("added", "read"):
        for one, other in zip(getattr(pieces, kind), getattr(whole, kind), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("make", [tiny, baseline])
def test_an_answer_in_pieces_is_the_whole_answer(monkeypatch, make, dtype):
    config = make(dtype=dtype)
    batch = config.task.sample(3, torch.Generator().manual_seed(0)).to("cpu", compute_dtype(config))
    model, seen = build_model(config), []
    monkeypatch.setattr(models, "_PIECE", 2)
    pieces = answer_in_pieces(model, batch.inputs, config, seen.append)
    tolerance = {"bfloat16": 2e-2, "float32": 1e-5, "float64": 1e-12}[dtype]
    whole = answer(model, batch.inputs, config)
    torch.testing.assert_close(pieces, whole, rtol=tolerance, atol=tolerance, check_stride=False)
    assert not pieces.requires_grad
    assert seen == [6, 6, 3]


def long_example(wrong=(), steps=5000, size=700, head=None):
    """A sequence whose second half is the answer, and heads that walk one location a step."""
    answering = np.arange(steps) >= steps // 2
    targets = np.random.default_rng(0).integers(0, 2, (3, steps)) * answering
    outputs = np.where(answering, 0.98 * targets + 0.01, 0.0)
    for bit, step in wrong:
        outputs[bit, step] = 1 - targets[bit, step]
    different = (outputs > 0.5) != targets
    example = Example("long", targets, targets, outputs, different, answering, None, 0.0, 0.0)
    every, rows = block_size(steps, MOST_COLUMNS), block_size(size, MOST_ROWS)
    places = np.arange(steps) % size if head is None else np.full(steps, head)
    walked = largest(walk(size, places), every, rows)
    return example, Heads([walked], [walked], [], [], np.arange(size), size)


def pixels_of(figure, path):
    figure.savefig(path, dpi=150)
    return image.imread(path)[..., :3]


@pytest.mark.parametrize(
    ("draw", "wrong"),
    [
        ("answers", (0, 2500)),
        ("answers", (2, 4999)),
        ("heads", (1, 4321)),
        ("heads", (2, 4999)),
        ("summary", (2, 4999)),
    ],
)
def test_one_wrong_bit_of_a_long_answer_is_red(tmp_path, draw, wrong):
    def red(wrongs):
        example, heads = long_example(wrongs)
        rows = [{"sequences": 1000.0 * i, "train_bits": 9.0 / i} for i in range(1, 4)]
        figure = {
            "answers": lambda: plots.draw_answers([example]),
            "heads": lambda: plots.draw_long_heads(example, heads, tiny()),
            "summary": lambda: plots.draw_summary(rows, example, heads, tiny()),
        }[draw]()
        pixels = pixels_of(figure, tmp_path / "figure.png")
        return int(((pixels[..., 0] > 0.95) & (pixels[..., 1:].max(axis=2) < 0.15)).sum())

    assert red([]) == 0
    assert red([wrong]) >= 10


@pytest.mark.parametrize("head", [None, 0, 699])
def test_a_focus_is_seen_at_every_step_of_a_long_sequence(tmp_path, head):
    """Walking, or staying at an end of the memory, where the frame of the image could cover it."""
    figure = plots.draw_long_heads(*long_example(head=head), tiny())
    pixels = pixels_of(figure, tmp_path / "figure.png")
    for axes in figure.axes[-2:]:
        scale = 150 / figure.dpi
        (left, bottom), (right, top) = scale * axes.transData.transform([(0, 699), (4999, 0)])
        left, right = round(left), round(right)
        top, bottom = len(pixels) - round(top) - 2, len(pixels) - round(bottom) + 2
        assert (pixels[top:bottom, left:right].max(axis=(0, 2)) > 0.7).all()


def test_labels_of_a_long_sequence_do_not_overlap(tmp_path):
    example, heads = long_example()
    heads = replace(heads, locations=-np.arange(700) % 16384)
    short = record_example("short", *model_and_batch()[1:], tiny())
    for figure in (
        plots.draw_long_heads(example, heads, tiny()),
        plots.draw_answers([example, short, short, example]),
    ):
        figure.savefig(tmp_path / "figure.png")
        boxes = []
        for axes in figure.axes:
            shown = [axes.title, axes.xaxis.label]
            for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
                shown += [
                    label
                    for place, label in zip(
                        axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True
                    )
                    if min(limits) <= place <= max(limits)
                ]
            boxes += [(text.get_text(), text.get_window_extent()) for text in shown]
        boxes = [(text, box) for text, box in boxes if text]
        assert len(boxes) > 20
        for number, (text, box) in enumerate(boxes):
            for other, another in boxes[:number]:
                assert not box.overlaps(another), (text, other)


def test_a_long_sequence_has_a_picture_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setitem(plots.STYLE, "savefig.dpi", 40)
    config = tiny(num_read_heads=2)
    task = tasks.make("ngrams", length=2000)
    config = type(config).from_dict({**config.to_dict(), "task": task.to_dict()})
    drawn = plots.draw_run(
        build_model(config), config, None, tmp_path, {"length 2000": Trial(task)}
    )
    assert [path.name for path in drawn] == ["heads_length_2000.png", "answers.png"]
    for path in drawn:
        pixels = image.imread(path)
        assert max(pixels.shape) < 1000
        assert pixels.std() > 0.05


@pytest.mark.parametrize("task", ["copy", "repeat_copy", "associative_recall", "ngrams"])
@pytest.mark.parametrize("model", ["ntm", "lstm"])
def test_every_task_can_be_drawn(tmp_path, monkeypatch, task, model):
    config = (tiny if model == "ntm" else baseline)()
    small = {"ngrams": {"length": 12}, "copy": {"max_length": 4}}.get(task, {})
    config = type(config).from_dict(
        {**config.to_dict(), "task": tasks.make(task, **small).to_dict()}
    )
    monkeypatch.setattr(plots, "test_sets", lambda config: {"as trained": Trial(config.task)})
    monkeypatch.setitem(plots.STYLE, "savefig.dpi", 40)
    drawn = plots.draw_run(build_model(config), config, tmp_path)
    expected = {"answers.png"} | ({"heads_as_trained.png"} if model == "ntm" else set())
    assert {path.name for path in drawn} == expected
    for path in drawn:
        pixels = image.imread(path)
        assert pixels.shape[0] > 40
        assert pixels.std() > 0.05, "a picture is not blank"


def test_titles_that_are_one_word_to_a_file_have_a_picture_each(tmp_path, monkeypatch):
    config = tiny()
    tests = dict.fromkeys(("two words", "two_words"), Trial(config.task))
    monkeypatch.setitem(plots.STYLE, "savefig.dpi", 40)
    drawn = plots.draw_run(build_model(config), config, None, tmp_path, tests)
    names = ["heads_two_words.png", "heads_two_words_.png", "answers.png"]
    assert [path.name for path in drawn] == names


def test_a_picture_that_does_not_fit_leaves_the_old_one(tmp_path, monkeypatch):
    config = tiny()
    monkeypatch.setattr(plots, "test_sets", lambda config: {"as trained": Trial(config.task)})
    monkeypatch.setitem(plots.STYLE, "savefig.dpi", 40)
    draw = partial(plots.draw_run, build_model(config), config, tmp_path, tmp_path)
    before = {path: path.read_bytes() for path in draw()}
    with no_file_larger_than(1000), pytest.raises(WriteError, match=r"cannot write .*\.png"):
        draw()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_wrong_bits_are_red(tmp_path):
    config, model, batch = model_and_batch()
    example = record_example("title", model, batch, config)
    example.wrong[:] = False
    right = plots.draw_answers([example])
    example.wrong[:, 3:] = True
    wrong = plots.draw_answers([example])

    def red(figure):
        path = tmp_path / "figure.png"
        figure.savefig(path)
        pixels = image.imread(path)[..., :3]
        return int(((pixels[..., 0] > 0.95) & (pixels[..., 1:].max(axis=2) < 0.15)).sum())

    assert red(right) == 0
    assert red(wrong) > 100


def test_learning_curve_shows_stages_and_growth():
    rows = [
        {"sequences": 10.0 * n, "train_bits": 3.0, "stage": stage, "memory_size": size}
        for n, (stage, size) in enumerate([(1, 32), (2, 32), (2, 32), (3, 64)], start=1)
    ]
    axes = plots.draw_learning_curve(rows, tiny()).axes[0]
    lines = {line.get_gid(): list(line.get_xdata()) for line in axes.lines if line.get_gid()}
    assert lines == {"stage 2": [0.02] * 2, "stage 3": [0.04] * 2, "N = 64": [0.04] * 2}
    stage, size = [text.get_window_extent() for text in axes.texts[-2:]]
    assert size.x1 <= stage.x0 + 0.5, "both begin at once"
    plain = [{"sequences": 10.0, "train_bits": 3.0}, {"sequences": 20.0, "train_bits": 2.0}]
    axes = plots.draw_learning_curve(plain, tiny()).axes[0]
    assert not [line for line in axes.lines if line.get_gid()]


@pytest.mark.parametrize("summary", [False, True])
def test_the_legend_covers_neither_curve_nor_words(tmp_path, summary):
    config = preset("copy")
    rows = [{"sequences": 1000.0 * i, "train_bits": 90.0 / i} for i in range(1, 40)]
    example = record_example("short", *model_and_batch()[1:], tiny())
    figure = (
        plots.draw_summary(rows, example, None, config)
        if summary
        else plots.draw_learning_curve(rows, config)
    )
    figure.savefig(tmp_path / "figure.png")
    curve, *others = figure.axes
    legend = curve.get_legend().get_window_extent()
    assert legend.y1 <= curve.xaxis.label.get_window_extent().y0
    assert legend.y0 >= max([axes.title.get_window_extent().y1 for axes in others], default=0)
    assert legend.x1 <= figure.bbox.x1


def test_the_sheet_of_many_heads_fits_a_screen():
    heads, vectors = [np.zeros((128, 36))] * 5, [np.zeros((20, 36))] * 5
    figure = draw_heads_sheet(
        inputs=np.zeros((9, 36)),
        outputs=np.zeros((8, 36)),
        added=vectors,
        read=vectors,
        write_weightings=heads,
        read_weightings=heads,
        locations=np.arange(128),
        block=(1, 1),
        begin=20,
        title="many heads",
    )
    wide, high = figure.get_size_inches()
    assert high < 2 * wide


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

    curves, learnt = ["training", "validation"], ["learnt: 0.1 bits"]
    validation = config.task.sample(4, fresh_generator(config.seed, "validation"))
    optimum = float(config.task.optimal_bits(validation).mean())
    assert (
        words(config)
        == curves
        + {
            "copy": [
                *learnt,
                "pytorch-ntm near zero after 30 thousand sequences",
                "paper near zero after 100–200 thousand sequences",
            ],
            "ngrams": [
                f"optimum of the validation set: {optimum:.1f} bits",
                "paper 133–134 bits",
                "paper, LSTM 136 bits",
            ],
            "priority_sort": [*learnt, "paper 10–20 bits", "paper, LSTM 50–58 bits"],
        }[task]
    )
    assert words(tiny()) == curves + learnt


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
