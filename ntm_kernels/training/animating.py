"""Animations of what a trained model does with a sequence of one of its tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from ntm_kernels import NTM
from ntm_kernels.plotting.animation import to_gif, to_html
from ntm_kernels.plotting.blocks import MOST_ROWS
from ntm_kernels.plotting.film import Film, draw_frames
from ntm_kernels.tasks import Trial
from ntm_kernels.training.config import TrainConfig
from ntm_kernels.training.evaluation import sequence_to_show
from ntm_kernels.training.files import make_folder, write_atomically, write_text
from ntm_kernels.training.models import memory_of_at_least, threads_of
from ntm_kernels.training.replay import record_example, record_heads, record_memories

__all__ = ["MOST_STEPS", "animate"]

#: Steps of an animation at most: one frame each.
MOST_STEPS = 256


def animate(
    model: nn.Module, config: TrainConfig, title: str, trial: Trial, folder: Path
) -> list[Path]:
    """Writes ``animation.gif`` and ``animation.html``: a test's sequence, a frame for each step.

    Nothing is written before both are complete, and each file is written whole or not at all.
    The sequence is the one that the pictures of the run show.

    Args:
        model: the trained model.
        config: its configuration.
        title: the title of the test.
        trial: the test.
        folder: made if it is not there.

    Returns:
        The files written.

    Raises:
        ValueError: the model has no memory, the sequence has more than :data:`MOST_STEPS` steps, or
            the heads use more memory locations than an image has rows.
        WriteError: a file cannot be written.
    """
    if not isinstance(model, NTM):
        raise ValueError(
            "this run trained the LSTM baseline, which has no memory to animate; give a run that "
            "was trained without --model lstm"
        )
    film = _film(model, config, title, trial)
    frames = draw_frames(film)
    pixels, text = to_gif(frames), to_html(frames, film.title)
    gif, page = folder / "animation.gif", folder / "animation.html"
    make_folder(folder)
    write_atomically(gif, lambda file: file.write(pixels))
    write_text(page, text)
    return [gif, page]


def _film(model: NTM, config: TrainConfig, title: str, trial: Trial) -> Film:
    batch = sequence_to_show(title, trial.task, config)
    steps = len(batch.inputs)
    if steps > MOST_STEPS:
        raise ValueError(
            f"{title}: the sequence has {steps:,} steps, and an animation shows at most "
            f"{MOST_STEPS}; choose a test of shorter sequences with --test, or make them shorter "
            "with the parameters of the task"
        )
    with threads_of(config), memory_of_at_least(model, trial.memory_size):
        example = record_example(title, model, batch, config)
        heads = record_heads(model, batch)
        rows = len(heads.locations)
        if rows > MOST_ROWS:
            raise ValueError(
                f"{title}: the heads use {rows:,} memory locations, and an animation shows at most "
                f"{MOST_ROWS}; if nothing learned fixes the number, --memory-size {MOST_ROWS} runs "
                "the model with fewer"
            )
        memories = record_memories(model, batch, heads.locations)
    captions = [
        f"step {step}{', answer' if answering else ''}"
        for step, answering in enumerate(example.answering)
    ]
    captions[-1] += f": {example.verdict}"
    return Film(
        title=f"{config.task.name.replace('_', ' ')}, {title}",
        captions=captions,
        inputs=example.inputs,
        outputs=example.outputs,
        wrong=example.wrong if example.optimal is None else None,
        added=heads.added,
        read=heads.read,
        write_weightings=heads.write_weightings,
        read_weightings=heads.read_weightings,
        memories=memories,
        locations=heads.locations,
        begin=int(np.argmax(example.answering)),
    )
