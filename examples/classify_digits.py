"""Learns new handwritten characters from a few looks at each, with a memory and without one.

    pip install ".[examples]"
    python examples/classify_digits.py --picture digits.png

An episode shows images of five characters in random order and asks for the label of each. The
labels are dealt out anew in every episode. A model is told the label of an image one step later,
together with the next image. So it can only guess at its first look at a character. At the second
look it can know the label, if it has kept what it saw beside what it was told.

The models are trained on the even digits and tested on the odd ones, which they have never seen. A
character is a digit in one of eight orientations, turned and mirrored. (A 6 upside down is a 9:
here they never meet.)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from ntm_kernels import NTM
from ntm_kernels.optim import hold_then_linear

CHARACTERS = 5  # of an episode, and as many labels
TRAINED_ON, TESTED_ON = (0, 2, 4, 6, 8), (1, 3, 5, 7, 9)
LOOKS = (1, 2, 3, 5, 10)


class Episodes(NamedTuple):
    """Images ``[T, B, 8, 8]``, their labels ``[T, B]`` from 0 to 4, and which look at the character
    a step is, ``[T, B]`` from 1."""

    images: Tensor
    labels: Tensor
    looks: Tensor


def orientations_of(digits: Sequence[int]) -> Tensor:
    """``[5 digits, 8 orientations, K, 8, 8]``: K images of each digit, each in 8 orientations."""
    data = load_digits()
    values = torch.from_numpy(data.target)
    images = F.layer_norm(torch.from_numpy(data.images).float(), (8, 8))  # of mean 0, variance 1
    fewest = min(int((values == digit).sum()) for digit in digits)
    chosen = torch.stack([images[values == digit][:fewest] for digit in digits])
    both = (chosen, chosen.flip(-1))
    return torch.stack([one.rot90(turns, (-2, -1)) for one in both for turns in range(4)], dim=1)


def draw(images: Tensor, batch: int, steps: int) -> Episodes:
    """Fresh episodes. No image comes twice in one."""
    episode = torch.arange(batch)
    digits = torch.randint(CHARACTERS, (steps, batch))
    turns = torch.randint(8, (batch, CHARACTERS))[episode, digits]
    which = torch.rand(batch, images.shape[2]).argsort(1)[:, :steps].T
    labels = torch.rand(batch, CHARACTERS).argsort(1)[episode, digits]
    looks = F.one_hot(digits).cumsum(0).gather(2, digits.unsqueeze(2)).squeeze(2)
    return Episodes(images[digits, turns, which], labels, looks)


class Recogniser(nn.Module):
    """A small convolution, a recurrent network, and scores for the labels ``[T, B, 5]``.

    A step sees its image, and the image of the step before with the label that it had.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.see = nn.Sequential(nn.Conv2d(1, 16, 4, stride=2), nn.Flatten())
        input_size, hidden_size = 2 * 144 + CHARACTERS, 100
        if kind == "NTM":
            # This controller remembers nothing, so that all memory is that of the NTM. Without an
            # output_size the NTM returns its features: the controller's output and what was read.
            ntm = NTM(
                input_size,
                None,
                hidden_size,
                memory_size=32,
                word_size=32,
                num_read_heads=2,
                controller="feedforward",
            )
            self.recurrent: nn.Module = ntm
            feature_size = ntm.cell.feature_size
        else:
            self.recurrent = nn.LSTM(input_size, hidden_size)
            feature_size = hidden_size
        self.score = nn.Linear(feature_size, CHARACTERS)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        seen = self.see(images.flatten(0, 1).unsqueeze(1)).unflatten(0, labels.shape)
        # The five numbers of a label are not to be lost beside the 144 of an image.
        told = torch.cat((seen, 4 * F.one_hot(labels, CHARACTERS)), -1)
        told = F.pad(told[:-1], (0, 0, 0, 0, 1, 0))  # one step later
        features, _ = self.recurrent(torch.cat((seen, told), -1))
        return self.score(features)


def train(model: Recogniser, images: Tensor, updates: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = hold_then_linear(optimizer, updates, hold=0.6)
    for _ in range(updates):
        episodes = draw(images, batch=16, steps=30)
        # What can only be guessed is not trained.
        again = episodes.looks > 1
        # Noise keeps the model from knowing the few training digits by heart.
        noisy = episodes.images + 0.5 * torch.randn_like(episodes.images)
        scores = model(noisy, episodes.labels)
        loss = F.cross_entropy(scores[again], episodes.labels[again])
        optimizer.zero_grad()
        loss.backward()
        # A low clip: with 1 or 2 more seeds of the NTM stay at half of the right labels.
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        schedule.step()


def nearest_neighbour(episodes: Episodes) -> Tensor:
    """The label of the most similar earlier image, pixel by pixel: ``[T, B]``."""
    pixels = episodes.images.flatten(2).transpose(0, 1)
    distance = torch.cdist(pixels, pixels)
    is_earlier = torch.ones_like(distance, dtype=torch.bool).tril(-1)
    nearest = distance.masked_fill(~is_earlier, torch.inf).argmin(2)
    return episodes.labels.T.gather(1, nearest).T


def accuracy(answers: Tensor, episodes: Episodes) -> Tensor:
    """The share of right answers at each look from 1 to 10."""
    is_right = (answers == episodes.labels).float()
    return torch.stack([is_right[episodes.looks == look].mean() for look in range(1, 11)])


def results(seed: int, updates: int) -> dict[str, Tensor]:
    """The accuracy on digits that were not trained on, of each model."""
    torch.manual_seed(seed)
    images, unseen = orientations_of(TRAINED_ON), orientations_of(TESTED_ON)
    episodes = draw(unseen, batch=500, steps=60)
    found = {"nearest neighbour": accuracy(nearest_neighbour(episodes), episodes)}
    for kind in ("NTM", "LSTM"):
        model = Recogniser(kind)
        began = time.process_time()
        train(model, images, updates)
        seconds = time.process_time() - began
        with torch.no_grad():
            scores = model(episodes.images, episodes.labels)
        found[kind] = accuracy(scores.argmax(2), episodes)
        weights = sum(map(torch.numel, model.parameters()))
        print(f"seed {seed}: {kind} of {weights:,} weights trained in {seconds:.0f} s", flush=True)
    return found


def draw_picture(accuracies: dict[str, Tensor], path: Path) -> None:
    """The accuracy by look: the mean of the seeds as a line, all of them as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, values), style in zip(accuracies.items(), (":", "-", "--"), strict=True):
        looks = range(1, 11)
        (line,) = axes.plot(looks, values.mean(0), style, label=name)
        low, high = values.aminmax(dim=0)
        axes.fill_between(looks, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.axhline(1 / CHARACTERS, color="grey", linewidth=0.8, label="chance")
    axes.set(xlabel="look at a character", ylabel="right labels", ylim=(0, 1), xticks=looks)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (default 3)")
    parser.add_argument("--updates", type=int, default=5000, help="of 16 episodes (default 5000)")
    parser.add_argument("--picture", type=Path, help="write the accuracies as a picture")
    options = parser.parse_args(words)
    if options.seeds < 1 or options.updates < 1:
        parser.error("--seeds and --updates must be at least 1")
    runs = [results(seed, options.updates) for seed in range(options.seeds)]
    accuracies = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
    print("right labels at look", *(f"{look:>12}" for look in LOOKS))
    for name, values in accuracies.items():
        cells = []
        for look in LOOKS:
            low, high = (100 * float(value) for value in values[:, look - 1].aminmax())
            cells.append(f"{low:.1f}-{high:.1f}%".rjust(12))
        print(f"{name:20}", *cells)
    if options.picture:
        draw_picture(accuracies, options.picture)
        print(f"drew {options.picture}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
