"""The CUDA kernels where a block has less shared memory than they would like, on the emulator."""

import re

import pytest
import torch

from ntm_kernels.backends import BackendError, Problem, get, register
from ntm_kernels.backends.cuda.structs import KernelSizes, kernel_sizes
from ntm_kernels.backends.cuda.ways import why_unplanned
from ntm_kernels.ops import Sizes
from tests.support import emulated
from tests.support.cases import Case, Dtypes, arguments, assert_agrees, call
from tests.support.table import Entry

NAME = "cuda_emulated_cramped"
ENTRY = Entry(NAME, "cpu")

WHY_NOT = get(emulated.NAME).unavailable()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


class CrampedRunner(emulated.EmulatedRunner):
    """As on a device whose blocks have no more than ``limit`` bytes."""

    limit = 0

    def shared_limit(self, device):
        return self.limit


RUNNER = CrampedRunner()


@pytest.fixture
def cramped(monkeypatch):
    try:
        get(NAME)
    except BackendError:
        backend = emulated.EmulatedBackend(None, emulated.library(), RUNNER, NAME)
        assert backend.unavailable() is None
        register(backend, automatic=False)

    def plan(limit, case, direction, dtype=torch.float32, checkpoint_every=2):
        monkeypatch.setattr(RUNNER, "limit", limit)
        sizes = KernelSizes(
            batch=case.batch,
            memory_size=case.memory_size,
            word_size=case.word_size,
            num_read_heads=case.num_read_heads,
            num_write_heads=case.num_heads - case.num_read_heads,
            num_taps=2 * case.shift_range + 1 if case.op in ("address", "step", "sequence") else 0,
            time=case.time,
            hidden_size=case.hidden_size,
            num_layers=case.num_layers,
            checkpoint_every=checkpoint_every,
            is_lstm=case.controller == "lstm",
        )
        return RUNNER.plan(case.op, direction, dtype == torch.float64, sizes, 0)

    return plan


# NtmPlan::weights_held, from csrc/cuda/controller.cuh.
HOLD_UNITS, HOLD_ROWS = 1, 2
SEQUENCE = Case("sequence", 2, 300, 4, 2, 1, time=3, hidden_size=5)
DEEP = SEQUENCE.with_(num_layers=3)
STREAMED = [
    (SEQUENCE, 33_000, False),
    (SEQUENCE, 10_000, True),
    (SEQUENCE.with_(num_read_heads=1, num_write_heads=1), 10_000, True),
    (SEQUENCE.with_(controller="feedforward", shift_range=3), 10_000, True),
    (DEEP, 33_000, False),
    (DEEP.with_(controller="feedforward", num_layers=2), 10_000, True),
    (SEQUENCE.with_(memory_size=40, word_size=70, num_write_heads=2), 20_000, True),
    (SEQUENCE.with_(memory_size=65, word_size=33, num_write_heads=3, batch=1), 12_000, True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("case", "limit", "away"), STREAMED, ids=str)
def test_memory_passes_through_shared_memory(cramped, case, limit, away, dtype):
    """Tiles of the memory, and where it must be the weightings, come from global memory."""
    limit *= 2 if dtype == torch.float64 else 1
    for direction in ("forward", "backward"):
        plan = cramped(limit, case, direction, dtype)
        assert plan.why_not == b""
        assert plan.shared_bytes <= limit
    assert plan.tile_rows < case.memory_size
    assert bool(plan.weightings_away) == away
    for checkpoint_every in (2, 100):
        assert_agrees(
            case, ENTRY, arguments(case, Dtypes.all(dtype)), checkpoint_every=checkpoint_every
        )


RESIDENT = Case("sequence", 2, 200, 2, 4, 4, time=4, hidden_size=5)


@pytest.mark.parametrize(
    "case", [RESIDENT, RESIDENT.with_(num_layers=2), RESIDENT.with_(controller="feedforward")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_memory_that_fits_once_the_weightings_are_in_global_memory(cramped, case, dtype):
    """Weights and memories of a segment have the room that it leaves."""
    limit = 20_000 * dtype.itemsize // 4
    for direction in ("forward", "backward"):
        plan = cramped(limit, case, direction, dtype)
        assert plan.refusal(case.batch) is None
        assert plan.weightings_away
        assert plan.tile_rows == case.memory_size
        assert plan.shared_bytes <= limit
        assert plan.weight_bytes[0] == 0
        assert plan.weight_bytes[1] > 0
    assert plan.memories > 1
    given = arguments(case, Dtypes.all(dtype))
    lengths = torch.tensor([4, 2])
    for checkpoint_every in (2, 100):
        assert_agrees(case, ENTRY, given, checkpoint_every=checkpoint_every)
    assert_agrees(case, ENTRY, given, lengths=lengths)


def test_shared_memory_that_weightings_leave_is_used(cramped):
    case = Case("sequence", 1, 1024, 8, 4, 4, time=2, hidden_size=100)
    plan = cramped(232_448, case, "backward")
    assert (plan.weightings_away, plan.tile_rows) == (1, 1024)
    in_registers, in_shared_memory, from_l2 = plan.weight_bytes
    assert in_registers == 0
    assert in_shared_memory > 100_000
    assert in_shared_memory + from_l2 == weight_bytes(case)


@pytest.mark.parametrize("layers", [1, 3])
def test_lengths_when_streamed(cramped, layers):
    case = SEQUENCE.with_(batch=4, num_layers=layers)
    assert cramped(10_000, case, "backward").weightings_away
    lengths = torch.tensor([3, 0, 1, 2])
    assert_agrees(case, ENTRY, arguments(case, Dtypes.all(torch.float32)), lengths=lengths)


@pytest.mark.parametrize(("memories", "layers"), [(1, 1), (2, 1), (3, 1), (5, 1), (2, 3)])
def test_memories_of_a_segment(cramped, memories, layers):
    """A backward keeps as many of a segment's memories as fit, and makes them again in groups."""
    case = Case("sequence", 3, 37, 6, 1, 2, time=12, hidden_size=5, num_layers=layers)
    ample = cramped(100_000, case, "backward", checkpoint_every=5)
    assert ample.memories == 5
    memory_bytes = 4 * 37 * 7
    limit = ample.shared_bytes - (5 - memories) * memory_bytes + 16
    assert cramped(limit, case, "backward", checkpoint_every=5).memories == memories
    lengths = torch.tensor([12, 0, 8])
    given = arguments(case, Dtypes.all(torch.float32))
    assert_agrees(case, ENTRY, given, checkpoint_every=5)
    assert_agrees(case, ENTRY, given, checkpoint_every=5, lengths=lengths)


def weight_bytes(case):
    """Of all the weights that a step uses."""
    given = arguments(case, Dtypes.all(torch.float32))
    names = ("recurrent_weight", "upper_weight", "interface_weight")
    return sum(4 * given[name].numel() for name in names if name in given)


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_weights_of_all_layers_in_shared_memory_as_far_as_they_fit(cramped, direction, controller):
    """Less and less shared memory: first the interface weight goes to L2, then the upper layers'
    weights, then that of the first layer."""
    case = Case("sequence", 1, 5, 3, 1, 1, time=2, hidden_size=17, num_layers=3)
    case = case.with_(controller=controller)
    ample = cramped(100_000, case, direction)
    assert list(ample.weight_bytes) == [0, weight_bytes(case), 0]
    seen = set()
    for limit in range(ample.shared_bytes, 0, -200):
        plan = cramped(limit, case, direction)
        if plan.refusal(case.batch) is not None or plan.tile_rows < case.memory_size:
            break
        assert plan.shared_bytes <= limit
        assert sum(plan.weight_bytes) == weight_bytes(case)
        placed = (plan.near_upper_units > 0, plan.near_upper_units == ample.near_upper_units)
        if placed not in seen:
            assert_agrees(case, ENTRY, arguments(case, Dtypes.all(torch.float32)))
        seen.add(placed)
    assert seen == {(True, True), (True, False), (False, False)}


PAPER = Case("sequence", 2, 128, 20, 1, 1, time=3, hidden_size=100)
WHOLE = [
    (PAPER, {"forward": 64_000, "backward": 99_840}),
    (PAPER.with_(controller="feedforward"), {"forward": 0, "backward": 0}),
    (PAPER.with_(memory_size=9, hidden_size=12, batch=3), {"forward": 0, "backward": 0}),
    (PAPER.with_(word_size=8, num_write_heads=3), {"forward": 64_000, "backward": 89_856}),
]


@pytest.mark.parametrize(("case", "registers"), WHOLE, ids=str)
def test_all_weights_on_the_chip(cramped, case, registers):
    """Each thread has its part of a row; with a little less room, a warp has some rows."""
    enough = {}
    for direction, in_registers in registers.items():
        plan = cramped(232_448, case, direction)
        assert plan.weights_held == HOLD_ROWS
        assert list(plan.weight_bytes) == [in_registers, weight_bytes(case) - in_registers, 0]
        enough[direction] = cramped(232_448, case, direction, checkpoint_every=1).shared_bytes
    lengths = torch.tensor([3, 0, 2][: case.batch])
    given = arguments(case, Dtypes.all(torch.float32))
    assert_agrees(case, ENTRY, given)
    assert_agrees(case, ENTRY, given, lengths=lengths)
    for direction, needed in enough.items():
        assert cramped(needed, case, direction).weights_held == HOLD_ROWS
        assert cramped(needed - 16, case, direction).weights_held == HOLD_UNITS
    assert_agrees(case, ENTRY, given)


TILED = [
    (Case("address", 2, 170, 5, 3), 8_000),
    (Case("address", 1, 330, 9, 1, shift_range=0), 8_000),
    (Case("address", 2, 140, 3, 2, shift_range=50), 6_500),
    (Case("step", 2, 170, 5, 1, 1), 7_000),
    (Case("step", 1, 230, 9, 2, 3, shift_range=4), 8_000),
    (Case("step", 1, 230, 9, 2, 3), 10_000),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("case", "limit"), TILED, ids=str)
def test_memory_in_tiles(cramped, case, limit, dtype):
    """Many blocks share a memory."""
    limit *= 2 if dtype == torch.float64 else 1
    for direction in ("forward", "backward"):
        plan = cramped(limit, case, direction, dtype)
        assert plan.why_not == b""
        assert plan.tiled
        assert plan.tile_rows < case.memory_size
    assert_agrees(case, ENTRY, arguments(case, Dtypes.all(dtype)))


@pytest.mark.parametrize(("case", "limit"), TILED, ids=str)
def test_tiles_in_turn(cramped, case, limit, monkeypatch):
    """Blocks that have several tiles each, the last of which they keep from phase to phase."""
    plan = cramped(limit, case, "backward")
    assert plan.tile_rows * 3 < case.memory_size * case.batch
    monkeypatch.setenv("CUDA_EMULATOR_PROCESSORS", "1")
    assert_agrees(case, ENTRY, arguments(case, Dtypes.all(torch.float32)))


def test_says_how(cramped, monkeypatch):
    backend = get(NAME)

    def how(limit, op, sizes):
        monkeypatch.setattr(RUNNER, "limit", limit)
        return backend.how(Problem(op, "cpu", torch.float32, sizes))

    step = Sizes(1, 128, 20, 1, 1, 3)
    paper = Sizes(1, 128, 20, 1, 1, 3, 40, 100, 6, is_lstm=True)
    assert how(100_000, "step", step) == "one block a sequence, the memory in shared memory"
    assert how(10_000, "step", step) == "the memory in tiles over the whole card"
    on_h100 = how(227 * 1024, "sequence", paper)
    assert on_h100 == (
        "one block a sequence, the memory in shared memory; of the controller's weights 0 bytes "
        "from L2 at each step, 0 in its backward"
    )
    assert ", the memory from L2, 96 rows at a time; " in how(16_000, "sequence", paper)


def test_says_what_does_not_fit(cramped, monkeypatch):
    for case in (Case("write", 1, 70, 5, 1), SEQUENCE, Case("step", 1, 9, 400, 1, 1)):
        plan = cramped(1_000, case, "forward")
        assert b"shared memory" in plan.why_not
        assert b"a block has 1000" in plan.why_not
    sizes = Sizes(1, 2**30, 1, 2, 1, 3)
    assert "weightings" in why_unplanned(RUNNER, "step", False, 0, sizes)
    sizes = Sizes(2**31, 1, 1, 1)
    assert "beyond" in why_unplanned(RUNNER, "step", False, 0, sizes)
    monkeypatch.setattr(RUNNER, "limit", 1_000)
    given = arguments(SEQUENCE, Dtypes.all(torch.float32))
    with pytest.raises(RuntimeError, match="do not fit in shared memory"):
        call(SEQUENCE, given, NAME)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    "case",
    [
        Case("read", 1, 70, 5, 2),
        Case("write", 1, 70, 5, 1),
        SEQUENCE,
        DEEP,
        SEQUENCE.with_(controller="feedforward", word_size=70),
        Case("step", 1, 500, 400, 1, 1),
        Case("address", 1, 500, 9, 3),
    ],
    ids=str,
)
def test_the_bytes_that_a_refusal_names_are_enough(cramped, case, direction, dtype):
    refused = cramped(1_000, case, direction, dtype)
    named = re.fullmatch(r"(.*): (\d+) bytes, a block has 1000", refused.refusal(case.batch))
    what, needed = named.groups()
    assert cramped(int(needed), case, direction, dtype).refusal(case.batch) is None
    refusal = cramped(int(needed) - 1, case, direction, dtype).refusal(case.batch)
    assert refusal == f"{what}: {needed} bytes, a block has {int(needed) - 1}"


@pytest.mark.parametrize(
    ("op", "sizes"),
    [
        ("read", Sizes(1, 1, 2**29, 4)),
        ("address", Sizes(1, 4, 4, 1, 0, 2**31 - 1)),
        ("step", Sizes(1, 4, 4, 1, 1, 2**30 + 1)),
        ("sequence", Sizes(1, 4, 4, 1, 1, 3, 1, 2**29, 1, is_lstm=True)),
        ("sequence", Sizes(1, 4, 4, 1, 1, 3, 1, 2**15, 1, num_layers=2**14, is_lstm=True)),
        ("step", Sizes(1, 2**26, 4, 8, 8, 3)),
    ],
)
def test_products_beyond_32_bits_are_refused(cramped, op, sizes, monkeypatch):
    monkeypatch.setattr(RUNNER, "limit", 232_448)
    why_not = why_unplanned(RUNNER, op, True, 0, sizes)
    assert why_not is not None
    assert "more than 2147483647 elements" in why_not or "is beyond" in why_not


@pytest.mark.parametrize("op", ["step", "sequence"])
def test_the_workspace_of_a_batch_has_no_limit(cramped, op, monkeypatch):
    """Its pieces are found within the part of one sequence, so only that part is limited."""
    monkeypatch.setattr(RUNNER, "limit", 232_448)

    def refusal(rows, batch):
        sizes = Sizes(batch, rows, 4, 1, 1, 3, time=1, hidden_size=1, checkpoint_every=1)
        plan = RUNNER.plan(op, "backward", False, kernel_sizes(sizes), 0)
        return plan.refusal(batch)

    assert refusal(10**6, batch=700) is None
    assert refusal(10**6, batch=0) is None
    enough = 4 * 10**8
    assert "for one sequence is beyond" in refusal(2 * enough, batch=1)
    assert "for one sequence is beyond" in refusal(2 * enough, batch=700)


@pytest.mark.parametrize("which", ["batch", "time"])
def test_a_batch_beyond_32_bits_is_refused_before_the_launch(cramped, which):
    sizes = Sizes(1, 4, 4, 1, 0, 3, time=1)._replace(**{which: 2**32 + 1})
    with pytest.raises(RuntimeError, match="a size is beyond"):
        RUNNER.run("address", "forward", sizes, {"memory": torch.ones(1, 4, 4)})
