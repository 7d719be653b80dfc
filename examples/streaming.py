"""Streams inputs through an exported model, one step at a time, with onnxruntime and numpy alone.

    python -m ntm_kernels export RUN --format onnx
    python examples/streaming.py RUN/export

The machine that runs this needs neither torch nor ntm_kernels. The inputs here are random bits; a
real stream would come from a microphone, a socket or a sensor.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime


class Stream:
    """A model and its state, which each step changes.

    Args:
        folder: where ``model.onnx`` and ``initial_state.npz`` are.
        batch: how many streams go through the model together.
    """

    def __init__(self, folder: Path, batch: int = 1) -> None:
        self.session = onnxruntime.InferenceSession(folder / "model.onnx")
        with np.load(folder / "initial_state.npz") as first:
            self.state = {name: np.repeat(first[name], batch, axis=0) for name in first.files}

    @property
    def input_size(self) -> int:
        return self.session.get_inputs()[0].shape[1]

    def step(self, x: np.ndarray) -> np.ndarray:
        """The output ``[batch, O]`` for the input ``[batch, I]``."""
        output, *state = self.session.run(None, {"x": x, **self.state})
        self.state = dict(zip(self.state, state, strict=True))
        return output


def random_bits(batch: int, size: int, steps: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed=0)
    for _ in range(steps):
        yield generator.integers(0, 2, (batch, size)).astype(np.float32)


def answer(stream: Stream, inputs: Iterable[np.ndarray]) -> None:
    """Print the answer to every input as bits, and how long a step took."""
    times = []
    for x in inputs:
        began = time.perf_counter()
        logits = stream.step(x)
        times.append(time.perf_counter() - began)
        print("".join("1" if bit > 0 else "0" for bit in logits[0]))
    print(f"{1e6 * np.median(times):.0f} µs a step")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder that export wrote")
    parser.add_argument("--steps", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--batch", type=int, default=1, help="streams at a time (default 1)")
    options = parser.parse_args()
    if options.steps < 1 or options.batch < 1:
        parser.error("--steps and --batch must be at least 1")
    for name in ("model.onnx", "initial_state.npz"):
        if not (options.folder / name).is_file():
            print(
                f"error: there is no {options.folder / name}; "
                "write it with: python -m ntm_kernels export RUN --format onnx",
                file=sys.stderr,
            )
            return 1
    stream = Stream(options.folder, options.batch)
    answer(stream, random_bits(options.batch, stream.input_size, options.steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
