"""plot_trace draws what the heads of any model did."""

import numpy as np
import pytest
import torch

import ntm_kernels

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def ran():
    torch.manual_seed(0)
    model = ntm_kernels.NTM(
        3, 2, 8, memory_size=16, word_size=4, num_read_heads=2, num_write_heads=1
    )
    x = torch.randn(12, 3, 3)
    output, _, trace = model(x, return_trace=True)
    return x, output.sigmoid(), trace


def images(figure):
    """The image of each axes with a title, by that title."""
    return {axes.get_title("left"): axes.images[0] for axes in figure.axes if axes.images}


def test_every_head_on_a_fixed_scale(ran):
    _, _, trace = ran
    drawn = images(ntm_kernels.plot_trace(trace, sequence=2, locations=range(16)))
    assert list(drawn) == [
        "add vectors, write head",
        "weightings, write head",
        "weightings, read head 1",
        "weightings, read head 2",
    ]
    for head, title in enumerate(["read head 1", "read head 2", "write head"]):
        image = drawn[f"weightings, {title}"]
        assert image.get_clim() == (0, 1)
        wanted = trace.weightings[:, 2, head].detach().numpy().T
        np.testing.assert_allclose(image.get_array(), wanted, rtol=1e-6)


def test_inputs_outputs_and_read_vectors(ran):
    x, output, trace = ran
    reads = torch.randn(12, 3, 2, 4)
    figure = ntm_kernels.plot_trace(
        trace, inputs=x, outputs=output, read_vectors=reads, title="mine", answer_from=5
    )
    drawn = images(figure)
    np.testing.assert_allclose(drawn["outputs"].get_array(), output[:, 0].detach().numpy().T)
    np.testing.assert_allclose(
        drawn["read vectors, read head 2"].get_array(), reads[:, 0, 1].numpy().T
    )
    assert figure.texts[0].get_text() == "mine"
    assert figure.axes[-2].get_xlabel() == "step (dashed: the answer begins)"


def test_a_long_sequence_shows_the_largest_of_each_block():
    model = ntm_kernels.NTM(3, 2, 8, memory_size=6, word_size=4)
    _, _, trace = model(torch.randn(900, 1, 3), return_trace=True)
    drawn = images(ntm_kernels.plot_trace(trace, locations=range(6)))
    title = "weightings, write head (largest of 2 steps)"
    wanted = trace.weightings[:, 0, 1].detach().view(450, 2, 6).amax(1).numpy().T
    np.testing.assert_allclose(drawn[title].get_array(), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sequence": 3}, "sequence must be in 0 … 2, got 3"),
        ({"inputs": torch.zeros(11, 3, 3)}, r"inputs must have 3 dimensions, .* got \[11, 3, 3\]"),
        ({"read_vectors": torch.zeros(12, 3, 4)}, "read_vectors must have 4 dimensions"),
        ({"locations": [0, 16]}, r"locations must be some of 0 … 15, got \[0, 16\]"),
        ({"locations": []}, "locations must be some of 0 … 15"),
    ],
)
def test_bad_arguments(ran, given, message):
    with pytest.raises(ValueError, match=message):
        ntm_kernels.plot_trace(ran[2], **given)
