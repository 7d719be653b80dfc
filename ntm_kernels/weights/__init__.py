"""Trained models that come with the package, a file of weights and a record of each.

``NAME.pt`` is a checkpoint without the state of the optimiser. ``NAME.json`` says what the model
was trained on and what came of it. ``python -m scripts.pretrained`` writes both from the folder of
a run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntm_kernels.nn import NTM

__all__ = ["available", "path_of", "pretrained", "record"]

_FOLDER = Path(__file__).parent


def available() -> tuple[str, ...]:
    """The names of the models, in alphabetical order.

    >>> "copy" in available()
    True
    """
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.pt")))


def path_of(name: str) -> Path:
    """The file of a model's weights.

    Raises:
        ValueError: there is no model of this name.
    """
    if name not in available():
        raise ValueError(
            f"name must be one of {', '.join(available())}, got {name!r}; `python -m ntm_kernels "
            "train` trains a model for any task"
        )
    return _FOLDER / f"{name}.pt"


def record(name: str) -> dict[str, Any]:
    """What is known of a model.

    Returns:
        ``task``, its name and parameters, from which :func:`ntm_kernels.tasks.from_dict` makes it;
        ``command``, which trained the model; ``seed``; ``sequences``, how many it was trained on;
        ``results``, the scores of its tests by their titles, as in the ``evaluation.json`` of a
        run; ``sample``, what it costs to answer a few sequences; ``version``, the package that
        trained it.

    Raises:
        ValueError: there is no model of this name.

    >>> record("copy")["task"]["name"]
    'copy'
    """
    contents: dict[str, Any] = json.loads(path_of(name).with_suffix(".json").read_text("utf-8"))
    return contents


def pretrained(name: str, *, memory_size: int | None = None) -> NTM:
    """A model that comes with the package, trained on a task of the paper.

    Args:
        name: one of :func:`available`, the name of its task.
        memory_size: locations N of the memory, ≥ 1; unset: those it was trained with. No weight has
            a dimension N, so a larger memory needs no training. Models whose initial memory or
            weightings are learned run with their own number alone.

    Returns:
        The model in float32 on the CPU and in ``eval`` mode. It takes the inputs ``[T, B, I]`` of
        its task and gives logits ``[T, B, O]``.

    Raises:
        ValueError: there is no model of this name, or the model has a fixed number of locations and
            ``memory_size`` is another.

    >>> import torch
    >>> from ntm_kernels import tasks
    >>> model = pretrained("copy", memory_size=256)
    >>> task = tasks.from_dict({**record("copy")["task"], "min_length": 60, "max_length": 60})
    >>> batch = task.sample(4, torch.Generator().manual_seed(0))
    >>> with torch.no_grad():
    ...     logits, _ = model(batch.inputs)
    >>> tasks.wrong(logits, batch).tolist()
    [False, False, False, False]
    """
    import torch

    from ntm_kernels.nn import NTM
    from ntm_kernels.training.checkpoint import load
    from ntm_kernels.training.config import saved_config
    from ntm_kernels.training.models import build_model, load_model

    path = path_of(name)
    contents = load(path)
    with torch.random.fork_rng(devices=[]):  # Its first weights are drawn, and then replaced.
        model = build_model(saved_config(path, contents["config"]))
    assert isinstance(model, NTM)
    load_model(model, contents)
    if memory_size is not None:
        model.memory_size = memory_size
    return model.eval()
