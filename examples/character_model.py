"""Predicts the next character of a text, with an NTM and with an nn.LSTM of as many weights.

    python examples/character_model.py

The text comes with Python: the topics of ``help()``, from the reference manual. A paragraph that
several topics have is kept in the first of them, so that nothing held out is in the training text.

The training topics form a few long streams, which are read side by side in pieces. The state goes
from piece to piece, and ``detach`` cuts the graph between them, so that the backward is of one
piece alone: truncated backpropagation through time. The held-out topics are texts of different
length. They are packed into one batch, and each begins with the initial state.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from ntm_kernels import NTM, NTMState

HELD_OUT = 10  # every tenth topic


def texts_of_python() -> list[str]:
    """The topics of ``help()`` in the order of their names, without what an earlier one has."""
    seen: set[str] = set()
    texts = []
    for name in sorted(topics):
        paragraphs = [one for one in dict.fromkeys(topics[name].split("\n\n")) if one not in seen]
        seen.update(paragraphs)
        texts.append("\n\n".join(paragraphs))
    return [text for text in texts if len(text) > 1]


class Text:
    """Characters as numbers: ``training [number of characters]`` and the ``held_out`` topics."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.alphabet = sorted(set("".join(texts)))
        number = {character: index for index, character in enumerate(self.alphabet)}
        encoded = [torch.tensor([number[character] for character in text]) for text in texts]
        self.held_out = encoded[::HELD_OUT]
        self.training = torch.cat([one for i, one in enumerate(encoded) if i % HELD_OUT])

    def pieces(self, streams: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training text as ``streams`` columns in pieces ``[steps, streams]``, with the next
        characters."""
        length = (len(self.training) - 1) // streams
        columns = [
            self.training[start : start + streams * length].view(streams, length).T
            for start in (0, 1)
        ]
        yield from zip(*(column.split(steps) for column in columns), strict=True)


class CharacterModel(nn.Module):
    """An embedding, a recurrent network, scores for the next character.

    ``model(x, state=None)`` takes numbers of characters, ``[T, B]`` or packed, and returns their
    scores, ``[T, B, alphabet]`` or packed, and the state.
    """

    def __init__(self, kind: str, alphabet: int, hidden_size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(alphabet, 32)
        if kind == "ntm":
            # Without output_size it gives the controller's output and what was read.
            ntm = NTM(32, None, hidden_size, memory_size=32, word_size=24, num_read_heads=2)
            self.recurrent: nn.Module = ntm
            feature_size = ntm.cell.feature_size
        else:
            self.recurrent = nn.LSTM(32, hidden_size)
            feature_size = hidden_size
        self.score = nn.Linear(feature_size, alphabet)

    def forward(self, x: Tensor | PackedSequence, state: Any = None) -> tuple[Any, Any]:
        features, state = self.recurrent(each_step(self.embed, x), state)
        return each_step(self.score, features), state


def each_step(layer: nn.Module, x: Tensor | PackedSequence) -> Tensor | PackedSequence:
    """A layer that treats every step alike, on a padded or a packed batch."""
    return x._replace(data=layer(x.data)) if isinstance(x, PackedSequence) else layer(x)


def detached(state: Any) -> Any:
    """The state of either network without its graph."""
    if isinstance(state, NTMState):
        return state.detach()
    return tuple(part.detach() for part in state)


def train(model: CharacterModel, text: Text, epochs: int, streams: int, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters())  # its rate is that of the schedule
    updates = epochs * math.ceil((len(text.training) - 1) // streams / steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, updates)
    for epoch in range(1, epochs + 1):
        state, losses = None, []
        for x, following in text.pieces(streams, steps):
            scores, state = model(x, state)
            loss = F.cross_entropy(scores.flatten(0, 1), following.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            state = detached(state)
            losses.append(loss.detach())
        bits = torch.stack(losses).mean() / math.log(2)
        print(f"  epoch {epoch}: {bits:.3f} bits a character in training", flush=True)


@torch.no_grad()
def held_out_bits(model: CharacterModel, text: Text) -> float:
    """Mean over all characters but the first of each topic."""
    x, following = (
        pack_sequence([topic[part] for topic in text.held_out], enforce_sorted=False)
        for part in (slice(None, -1), slice(1, None))
    )
    scores, _ = model(x)
    return float(F.cross_entropy(scores.data, following.data)) / math.log(2)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--topics", type=int, default=len(topics), help="how many (default all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    if options.topics < 2:
        parser.error("--topics must be at least 2: the first is held out")
    if options.epochs < 1:
        parser.error("--epochs must be at least 1")
    text = Text(texts_of_python()[: options.topics])
    print(f"{len(text.training):,} characters, {sum(map(len, text.held_out)):,} held out")
    # These widths give both models about the same number of weights.
    for kind, hidden_size in (("ntm", 128), ("lstm", 162)):
        torch.manual_seed(options.seed)
        model = CharacterModel(kind, len(text.alphabet), hidden_size)
        print(f"{kind}: {sum(map(torch.numel, model.parameters())):,} weights", flush=True)
        began = time.process_time()
        train(model, text, options.epochs, streams=32, steps=64)
        seconds = time.process_time() - began
        bits = held_out_bits(model, text)
        print(f"{kind}: {bits:.3f} bits a character held out, {seconds:.0f} s of processor time")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
