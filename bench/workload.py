"""What is computed: the sizes of a problem, and the arithmetic it takes at least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ntm_kernels import InterfaceLayout

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Workload:
    """Sizes of a problem (the paper's copy task by default), and where it runs.

    ``controller`` is ``"lstm"``, the built-in one, or ``"own"``, a module of the user's
    (an ``nn.LSTMCell``), with which the model takes one op per step.
    """

    batch: int = 16
    time: int = 41
    memory_size: int = 128
    word_size: int = 20
    num_read_heads: int = 1
    num_write_heads: int = 1
    shift_range: int = 1
    hidden_size: int = 100
    input_size: int = 9
    output_size: int = 8
    controller: str = "lstm"
    num_layers: int = 1  # of a built-in controller
    threads: int = 1
    device: str = "cpu"

    @property
    def layout(self) -> InterfaceLayout:
        return InterfaceLayout(
            self.word_size, self.num_read_heads, self.num_write_heads, self.shift_range
        )


class Cost(NamedTuple):
    """Arithmetic and traffic of an algorithm."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        return self.flops / self.bytes


def sequence_cost(workload: Workload, measured: str) -> Cost:
    """The least a model's pass over a whole sequence takes, the same for every contender.

    Floating-point operations: two per multiply-add of the matrix products; in the memory and the
    weightings every addition, multiplication, division, exponential and logarithm counts as one.
    Bytes: at every step the recurrent weights are read once for the whole batch, memory and
    weightings are read once and written once. The backward counts twice the forward: each product
    has two gradients, and the gradient of the memory travels beside the memory.
    """
    w, layout = workload, workload.layout
    heads, cells, words = layout.num_heads, w.memory_size, w.word_size
    reads = w.num_read_heads * words
    upper = 8 * (w.num_layers - 1) * w.hidden_size**2
    matrices = 4 * w.hidden_size * (reads + w.hidden_size) + upper + layout.size * w.hidden_size
    outside = (
        4 * w.hidden_size * w.input_size  # input projection
        + (w.hidden_size + reads) * w.output_size
    )
    # dot products of the keys and norms; reads; erases (three operations) and adds (two)
    memory = cells * words * (2 * heads + 2 + 2 * w.num_read_heads + 5 * w.num_write_heads)
    # cosine and softmax 5, interpolation 3, shift 2 a tap, sharpening 5
    weightings = heads * cells * (13 + 2 * layout.num_taps)
    flops = w.time * w.batch * (2 * (matrices + outside) + memory + weightings)
    state = w.batch * cells * (words + heads)
    traffic = w.time * FLOAT_BYTES * (matrices + 2 * state)
    share = {"forward": 1, "backward": 2, "both": 3}[measured]
    return Cost(float(share * flops), float(share * traffic))
