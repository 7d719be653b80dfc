"""Puts controllers of one's own into an NTM: a GRU, and attention over the last inputs.

    python examples/own_controller.py
    python examples/own_controller.py --controller attention

A controller is any module that is called as ``controller(input, state) -> (output, state)``. The
input ``[B, input_size + R·M]`` is x and the vectors that were read, the output is
``[B, hidden_size]``. The state is any nest of tensors with the batch first. The first one is what
the controller's method ``initial_state(batch_size)`` returns, or ``None`` if it has no such method.

The task is a short copy task. Its sequences differ in length: the model gets the lengths, and holds
the state of a sequence that is over, that of the controller too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ntm_kernels import NTM, tasks
from ntm_kernels.optim import GravesRMSprop

WORD_SIZE = 12


class GRU(nn.Module):
    """A GRU cell with layer normalisation. Its first hidden state is learned."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(input_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.first = nn.Parameter(torch.zeros(hidden_size))

    def initial_state(self, batch_size: int) -> Tensor:
        return self.first.expand(batch_size, -1)

    def forward(self, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.norm(self.cell(input, state))
        return hidden, hidden


class Attention(nn.Module):
    """Attention from the present input to the last ``span`` inputs.

    The state is the keys and the values of these inputs, each ``[B, span, hidden_size]``, the
    newest last, and how many there are, ``[B, 1]``, since all tensors must have the batch first.
    """

    def __init__(self, input_size: int, hidden_size: int, span: int = 4) -> None:
        super().__init__()
        self.span, self.hidden_size = span, hidden_size
        self.project = nn.Linear(input_size, 3 * hidden_size)
        self.output = nn.Sequential(nn.Linear(2 * hidden_size, hidden_size), nn.Tanh())

    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        empty = self.project.weight.new_zeros(batch_size, self.span, self.hidden_size)
        return empty, empty, self.project.weight.new_zeros(batch_size, 1)

    def forward(
        self, input: Tensor, state: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        keys, values, seen = state
        query, key, value = self.project(input).chunk(3, -1)
        keys = torch.cat((keys[:, 1:], key.unsqueeze(1)), 1)
        values = torch.cat((values[:, 1:], value.unsqueeze(1)), 1)
        seen = (seen + 1).clamp(max=self.span)

        scores = (keys @ query.unsqueeze(2)).squeeze(2) * self.hidden_size**-0.5
        # The places are filled from the end.
        is_empty = torch.arange(self.span, 0, -1, device=input.device) > seen
        attention = scores.masked_fill(is_empty, -torch.inf).softmax(-1)
        found = (attention.unsqueeze(1) @ values).squeeze(1)
        return self.output(torch.cat((found, value), -1)), (keys, values, seen)


CONTROLLERS = {"gru": GRU, "attention": Attention}


def build(kind: str, task: tasks.Task, hidden_size: int = 32) -> NTM:
    """An NTM with one read head, whose controller sees an input and one read vector."""
    controller = CONTROLLERS[kind](task.input_size + WORD_SIZE, hidden_size)
    return NTM(
        task.input_size,
        task.output_size,
        hidden_size,
        memory_size=16,
        word_size=WORD_SIZE,
        controller=controller,
        output_from="read_vectors",
    )


def train(model: NTM, task: tasks.Task, updates: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = GravesRMSprop(model.parameters(), lr=1e-3)
    for update in range(1, updates + 1):
        batch = task.sample(16, generator)
        output, _ = model(batch.inputs, lengths=batch.lengths)
        loss = tasks.loss(output, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        if update % 200 == 0:
            print(f"update {update}: {tasks.bits(output, batch).mean():.2f} bits a sequence")


@torch.no_grad()
def wrong_sequences(model: NTM, task: tasks.Task) -> int:
    """How many of 512 new sequences have a wrong bit."""
    batch = task.sample(512, torch.Generator().manual_seed(2**31))
    output, _ = model(batch.inputs, lengths=batch.lengths)
    return int(tasks.wrong(output, batch).sum())


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--controller", choices=CONTROLLERS, default="gru")
    parser.add_argument("--updates", type=int, default=600, help="of 16 sequences (default 600)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    torch.manual_seed(options.seed)
    task = tasks.make("copy", width=4, max_length=5, answer_channel=True)
    model = build(options.controller, task)
    train(model, task, options.updates, options.seed)
    print(f"{wrong_sequences(model, task)} of 512 new sequences have a wrong bit")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
