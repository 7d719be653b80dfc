"""Checkpoints with the layout of loudinthecloud/pytorch-ntm, and its equations, transcribed."""

import torch
from torch import nn
from torch.nn import functional as F

READ, WRITE = "read", "write"


def checkpoint(
    kinds=(READ, WRITE), *, inputs=5, outputs=4, hidden=7, layers=1, rows=9, word=6, scale=1.0
):
    """A state_dict with random weights, ``scale`` times as large as those of a layer of torch."""
    reads = kinds.count(READ)
    memory = torch.rand(rows, word) - 0.5
    found = {"memory.mem_bias": memory, "ntm.memory.mem_bias": memory}
    lstm = nn.LSTM(inputs + reads * word, hidden, layers)
    found |= {f"ntm.controller.lstm.{name}": value for name, value in lstm.state_dict().items()}
    for part in "hc":
        found[f"ntm.controller.lstm_{part}_bias"] = torch.randn(layers, 1, hidden)
    for number in range(reads):
        found[f"ntm.read{number}_bias"] = torch.randn(1, word)
    for number, kind in enumerate(kinds):
        head = nn.Linear(hidden, word + 6 + (2 * word if kind == WRITE else 0))
        for name, value in head.state_dict().items():
            found[f"ntm.heads.{number}.fc_{kind}.{name}"] = value
        found[f"ntm.heads.{number}.memory.mem_bias"] = memory
    for name, value in nn.Linear(hidden + reads * word, outputs).state_dict().items():
        found[f"ntm.fc.{name}"] = value
    kept = ("mem_bias", "_bias")
    return {name: v if name.endswith(kept) else scale * v for name, v in found.items()}


class Transcription:
    """What such a model computes, one step after the other and head by head."""

    def __init__(self, state_dict):
        self.weights = state_dict
        self.kinds = [
            READ if f"ntm.heads.{number}.fc_read.weight" in state_dict else WRITE
            for number in range(sum(name.startswith("ntm.heads.") for name in state_dict) // 3)
        ]
        prefix = "ntm.controller.lstm."
        lstm = {n.removeprefix(prefix): v for n, v in state_dict.items() if n.startswith(prefix)}
        first = lstm["weight_ih_l0"]
        self.lstm = nn.LSTM(first.shape[1], first.shape[0] // 4, len(lstm) // 4)
        self.lstm.load_state_dict(lstm)

    @torch.no_grad()
    def run(self, x):
        """Outputs ``[T, B, O]``, after the sigmoid, and the memory after the last step."""
        batch, weights = x.shape[1], self.weights
        memory = weights["memory.mem_bias"].expand(batch, -1, -1)
        state = [
            weights[f"ntm.controller.lstm_{part}_bias"].repeat(1, batch, 1) for part in ("h", "c")
        ]
        reads = [
            weights[f"ntm.read{number}_bias"].expand(batch, -1)
            for number in range(self.kinds.count(READ))
        ]
        focus = [memory.new_zeros(batch, memory.shape[1]) for _ in self.kinds]
        outputs = []
        for now in x:
            hidden, state = self.lstm(torch.cat([now, *reads], dim=1).unsqueeze(0), state)
            hidden, reads = hidden[0], []
            for number, kind in enumerate(self.kinds):
                name = f"ntm.heads.{number}.fc_{kind}"
                raw = hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
                focus[number] = self.address(memory, raw, focus[number])
                if kind == READ:
                    reads.append(torch.einsum("bn,bnm->bm", focus[number], memory))
                    continue
                word = memory.shape[2]
                erase, add = raw[:, -2 * word : -word].sigmoid(), raw[:, -word:]
                erased = torch.einsum("bn,bm->bnm", focus[number], erase)
                added = torch.einsum("bn,bm->bnm", focus[number], add)
                memory = memory * (1 - erased) + added
            seen = torch.cat([hidden, *reads], dim=1)
            outputs.append((seen @ weights["ntm.fc.weight"].T + weights["ntm.fc.bias"]).sigmoid())
        return torch.stack(outputs), memory

    def address(self, memory, raw, before):
        word = memory.shape[2]
        key, strength, gate, taps, sharpening = raw[:, : word + 6].split([word, 1, 1, 3, 1], dim=1)
        cosine = F.cosine_similarity(memory + 1e-16, key.unsqueeze(1) + 1e-16, dim=-1)
        content = torch.softmax(F.softplus(strength) * cosine, dim=1)
        gated = gate.sigmoid() * content + (1 - gate.sigmoid()) * before
        left, middle, right = taps.softmax(dim=1).split(1, dim=1)
        shifted = left * gated.roll(1, 1) + middle * gated + right * gated.roll(-1, 1)
        powers = shifted ** (1 + F.softplus(sharpening))
        return powers / (powers.sum(dim=1, keepdim=True) + 1e-16)
