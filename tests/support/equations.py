"""The equations of the Neural Turing Machine in NumPy, float64, one scalar index at a time.

Transcribed from the article (Graves et al. 2014, arXiv 1410.5401) and the project's conventions,
for one sequence: no batch dimension anywhere. Slow and obvious on purpose; shares nothing with the
package.
"""

from dataclasses import dataclass

import numpy as np

EPS = 1e-8


def softmax(x):
    exponentials = np.exp(x - np.max(x))
    return exponentials / exponentials.sum()


def sigmoid(x):
    tail = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, tail) / (1 + tail)


def softplus(x):
    return np.logaddexp(x, 0)


def content(memory, key, strength):
    similarities = np.zeros(len(memory))
    for i, row in enumerate(memory):
        norms = np.sqrt(np.sum(key**2)) * np.sqrt(np.sum(row**2))
        if norms >= EPS:
            similarities[i] = np.sum(key * row) / norms
    return softmax(strength * similarities)


def interpolate(content_weighting, previous, gate):
    return gate * content_weighting + (1 - gate) * previous


def shift(weighting, taps):
    locations, shift_range = len(weighting), len(taps) // 2
    shifted = np.zeros(locations)
    for i in range(locations):
        for offset in range(-shift_range, shift_range + 1):
            shifted[i] += taps[offset + shift_range] * weighting[(i - offset) % locations]
    return shifted


def sharpen(shifted, sharpening):
    if np.any(shifted < 0) or not np.isfinite(sharpening):  # log of a negative, or γ log w̃
        return np.full(len(shifted), np.nan)
    if np.all(shifted < 1e-20):
        return np.full(len(shifted), 1 / len(shifted))
    positive = shifted > 0
    sharpened = np.zeros(len(shifted))
    sharpened[positive] = softmax(sharpening * np.log(shifted[positive]))
    return sharpened


def address(memory, key, strength, gate, taps, sharpening, previous):
    """One head: key [M], three scalars, taps [S], previous [N] -> [N]."""
    weighting = interpolate(content(memory, key, strength), previous, gate)
    return sharpen(shift(weighting, taps), sharpening)


def read(memory, weighting):
    vector = np.zeros(memory.shape[1])
    for i, row in enumerate(memory):
        vector += weighting[i] * row
    return vector


def write(memory, weightings, erase, add):
    """All write heads: weightings [W, N], erase and add [W, M]; first everyone erases."""
    written = memory.copy()
    for i in range(len(memory)):
        for head in range(len(weightings)):
            written[i] *= 1 - weightings[head, i] * erase[head]
    for i in range(len(memory)):
        for head in range(len(weightings)):
            written[i] += weightings[head, i] * add[head]
    return written


@dataclass
class Heads:
    """Activated parameters of all heads, read heads first."""

    key: np.ndarray
    strength: np.ndarray
    gate: np.ndarray
    shift: np.ndarray
    sharpening: np.ndarray
    erase: np.ndarray
    add: np.ndarray


def heads(interface, word_size, num_read_heads, num_write_heads, shift_range):
    """Cut a raw interface vector [P], grouped by kind, and activate it."""
    count, taps = num_read_heads + num_write_heads, 2 * shift_range + 1
    at = 0

    def take(*shape):
        nonlocal at
        group = interface[at : at + int(np.prod(shape))].reshape(shape)
        at += group.size
        return group

    result = Heads(
        key=take(count, word_size),
        strength=softplus(take(count)),
        gate=sigmoid(take(count)),
        shift=np.array([softmax(raw) for raw in take(count, taps)]),
        sharpening=1 + softplus(take(count)),
        erase=sigmoid(take(num_write_heads, word_size)),
        add=take(num_write_heads, word_size),
    )
    assert at == len(interface)
    return result


def step(memory, interface, previous, num_read_heads, num_write_heads, shift_range):
    """Read vectors [R, M], memory, weightings [H, N] and the activated heads."""
    given = heads(interface, memory.shape[1], num_read_heads, num_write_heads, shift_range)
    weightings = np.array(
        [
            address(
                memory,
                given.key[head],
                given.strength[head],
                given.gate[head],
                given.shift[head],
                given.sharpening[head],
                previous[head],
            )
            for head in range(num_read_heads + num_write_heads)
        ]
    )
    reads = np.array([read(memory, weightings[head]) for head in range(num_read_heads)])
    memory = write(memory, weightings[num_read_heads:], given.erase, given.add)
    return reads, memory, weightings, given


def lstm(gates, cell):
    width = len(cell)
    input_gate = sigmoid(gates[:width])
    forget_gate = sigmoid(gates[width : 2 * width])
    candidate = np.tanh(gates[2 * width : 3 * width])
    output_gate = sigmoid(gates[3 * width :])
    cell = forget_gate * cell + input_gate * candidate
    return output_gate * np.tanh(cell), cell


def sequence(
    x,
    recurrent_weight,
    interface_weight,
    interface_bias,
    memory,
    weightings,
    reads,
    hidden=None,
    cell=None,
    upper_weight=(),
    upper_bias=(),
    *,
    num_read_heads,
    num_write_heads,
    shift_range,
    length,
):
    """One sequence, projected input [T, G], hidden and cell [L, C], weights of the layers above the
    first: outputs of its first ``length`` steps, zeros after.

    Returns hidden [T, C], read vectors [T, R, M], the final state by names, and the list of
    ``(weightings, Heads)`` of the steps inside the length.
    """
    time, width = len(x), interface_weight.shape[1]
    hiddens, all_reads, trace = np.zeros((time, width)), np.zeros((time, *reads.shape)), []
    for t in range(length):
        if cell is not None:
            seen = reads.ravel()
            new = [lstm(x[t] + recurrent_weight @ np.concatenate([seen, hidden[0]]), cell[0])]
            for layer, (weight, bias) in enumerate(zip(upper_weight, upper_bias, strict=True), 1):
                seen = np.concatenate([new[-1][0], hidden[layer]])
                new.append(lstm(weight @ seen + bias, cell[layer]))
            hidden, cell = map(np.array, zip(*new, strict=True))
            top = hidden[-1]
        else:
            top = np.tanh(x[t] + recurrent_weight @ reads.ravel())
            for weight, bias in zip(upper_weight, upper_bias, strict=True):
                top = np.tanh(weight @ top + bias)
        interface = interface_weight @ top + interface_bias
        reads, memory, weightings, given = step(
            memory, interface, weightings, num_read_heads, num_write_heads, shift_range
        )
        hiddens[t], all_reads[t] = top, reads
        trace.append((weightings, given))
    state = {"memory": memory, "weightings": weightings, "read_vectors": reads}
    return hiddens, all_reads, state | {"hidden": hidden, "cell": cell}, trace
