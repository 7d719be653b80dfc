"""Draws the pictures of docs/addressing.md: what each stage of addressing makes of a weighting.

    python -m scripts.addressing_pictures [--folder docs]

The weightings are computed by ``ntm_kernels.reference``, on a memory of sixteen words. The result
of a stage is the input of the next one, as in a head.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ntm_kernels import reference
from ntm_kernels.plotting.sheet import STYLE

FOLDER = Path(__file__).parents[1] / "docs"
LOCATIONS, WORD_SIZE = 16, 8
BEFORE, AFTER = "0.8", "#3f51b5"


@dataclass(frozen=True)
class Stage:
    """A picture: the weighting before a stage, and after it for each value of its parameter."""

    name: str
    before: tuple[str, Tensor]
    after: Sequence[tuple[str, Tensor]]


def one(value: float) -> Tensor:
    """A parameter of one head, ``[B, H]``."""
    return torch.tensor([[value]])


def stages() -> list[Stage]:
    """The four stages; each takes what the one before it gave for its second value."""
    generator = torch.Generator().manual_seed(3)
    memory = torch.randn(1, LOCATIONS, WORD_SIZE, generator=generator)
    key = memory[:, 5:6] + 0.3 * torch.randn(1, 1, WORD_SIZE, generator=generator)
    previous = torch.zeros(1, 1, LOCATIONS)
    previous[..., 11] = 1

    similarity = reference.similarity(memory, key)
    content = {b: reference.content(memory, key, one(b)) for b in (1.0, 5.0, 20.0)}
    gated = {g: reference.interpolate(content[5.0], previous, one(g)) for g in (1.0, 0.8, 0.0)}
    taps = ((0.0, 1.0, 0.0), (0.0, 0.2, 0.8), (1.0, 0.0, 0.0))
    shifted = {s: reference.shift(gated[0.8], torch.tensor([[s]])) for s in taps}
    sharpened = {y: reference.sharpen(shifted[taps[1]], one(y)) for y in (1.0, 2.0, 6.0)}

    def named(template: str, found: dict[float, Tensor]) -> list[tuple[str, Tensor]]:
        return [(template.format(value), weighting) for value, weighting in found.items()]

    return [
        Stage("content", ("similarity", similarity), named("strength β = {:g}", content)),
        Stage("interpolate", ("step before", previous), named("gate g = {:g}", gated)),
        Stage(
            "shift",
            ("before", gated[0.8]),
            [(f"taps {list(s)}", weighting) for s, weighting in shifted.items()],
        ),
        Stage("sharpen", ("before", shifted[taps[1]]), named("sharpening γ = {:g}", sharpened)),
    ]


def draw(stage: Stage) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.9), layout="constrained")
        panels = figure.subplots(1, len(stage.after), sharex=True, sharey=True)
        label, before = stage.before
        for panel, (title, after) in zip(panels, stage.after, strict=True):
            panel.bar(range(LOCATIONS), before.flatten().tolist(), 0.9, color=BEFORE, label=label)
            panel.bar(range(LOCATIONS), after.flatten().tolist(), 0.45, color=AFTER, label="after")
            panel.set_title(title)
            panel.set_xlabel("location")
            panel.set_xticks(range(0, LOCATIONS, 5))
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("weight")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go (docs)")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"--folder must be a folder that exists, got {options.folder}: make it first")
    for stage in stages():
        path = options.folder / f"addressing_{stage.name}.png"
        with matplotlib.rc_context(STYLE):
            draw(stage).savefig(path)
        print(path)


if __name__ == "__main__":
    main()
