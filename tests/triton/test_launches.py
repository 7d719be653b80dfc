"""How many kernels a call launches, and which sizes go which way."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ntm_kernels.backends import Problem, controller_cost, get, register
from ntm_kernels.backends.triton import Launcher, TritonBackend
from ntm_kernels.backends.triton.launch_table import TABLE, most_registers
from ntm_kernels.backends.triton.sequence import row_of_sequence
from ntm_kernels.ops import SequenceInputs, Sizes, StepInputs
from ntm_kernels.ops.declare import choose, names
from tests.support.cases import Case, Dtypes, arguments, assert_agrees
from tests.support.table import Entry
from tests.triton.interpreted import TILED, InterpretedBackend, needs_interpreter

pytest.importorskip("triton")

DOCUMENTATION = Path(__file__).parents[2] / "docs/triton.md"
PAPER = Case("sequence", 16, 128, 20, time=41, hidden_size=100)
DEEP = PAPER.with_(num_layers=3)
LARGE = PAPER.with_(memory_size=1024, word_size=64)
TALL = PAPER.with_(memory_size=256, word_size=16)
MANY_HEADS = PAPER.with_(num_read_heads=8, num_write_heads=8, controller="feedforward")
LOOP = "a loop of steps, the controller by matrix products"
ADDRESS = ["similarity", "content_interpolate_shift"]
ADDRESS_BACKWARD = [
    *("sharpen_backward", "interpolate_shift_backward", "similarity_content_backward"),
    "combine",
]


class Launches(Launcher):
    """Counts kernels instead of launching them."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.bounds = []

    def launch(self, kernel, grid, *arguments, maxnreg=None, **options):
        self.names.append(kernel.fn.__name__.removesuffix("_kernel"))
        self.bounds.append(maxnreg)


class Dispatches(TorchDispatchMode):
    """Counts operators of torch that launch something: neither views nor new empty tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (func.is_view or "empty" in func.__name__)
        return func(*args, **(kwargs or {}))


def sizes_of(case, bfloat16_products=False):
    return Sizes(
        case.batch,
        case.memory_size,
        case.word_size,
        case.num_read_heads,
        case.num_write_heads if case.op in ("step", "sequence") else 0,
        num_taps=2 * case.shift_range + 1,
        time=case.time,
        hidden_size=case.hidden_size,
        num_layers=case.num_layers,
        checkpoint_every=6,
        is_lstm=case.op == "sequence" and case.controller == "lstm",
        bfloat16_products=bfloat16_products,
    )


def record(kind, case):
    """The arguments of ``case``, without data."""
    given = arguments(case, Dtypes.all(torch.float32), "meta")
    return choose(kind, given, given.values())


def kernel(op, launcher):
    return TritonBackend(device_type="meta", launcher=launcher).kernels[op]


def step(case):
    """Kernels of a step and of its backward."""
    case = case.with_(op="step")
    forward, backward = Launches(), Launches()
    inputs, sizes = record(StepInputs, case), sizes_of(case)
    outputs, saved = kernel("step", forward).forward(inputs, sizes, True)
    wanted = frozenset(names(StepInputs))
    kernel("step", backward).backward(outputs, inputs, outputs, saved, sizes, wanted)
    return forward.names, backward.names


def sequence(case, bfloat16_products=False):
    """Kernels of a sequence and of its backward, and operators of torch beside them."""
    forward, backward = Launches(), Launches()
    inputs, sizes = record(SequenceInputs, case), sizes_of(case, bfloat16_products)
    with Dispatches() as beside_forward:
        outputs, saved = kernel("sequence", forward).forward(inputs, sizes, True)
    wanted = frozenset(names(SequenceInputs))
    with Dispatches() as beside_backward:
        kernel("sequence", backward).backward(outputs, inputs, outputs, saved, sizes, wanted)
    counts = beside_forward.count, beside_backward.count
    return Counter(forward.names), Counter(backward.names), counts


def test_step():
    assert step(PAPER) == (["step"], ["step_backward"])
    assert step(LARGE) == (
        [*ADDRESS, "sharpen_read_write", "combine"],
        [*ADDRESS, "read_write_backward", *ADDRESS_BACKWARD],
    )


@pytest.mark.parametrize(("case", "most_beside"), [(PAPER, 12), (DEEP, 20)], ids=str)
def test_sequence_in_one_launch(case, most_beside):
    forward, backward, beside = sequence(case)
    assert forward == {"sequence": 1}
    assert backward == {"sequence_backward": 1}
    # However long: copies of the state, and the products for the weights' gradients.
    assert beside == sequence(case.with_(time=7))[2]
    assert max(beside) <= most_beside


@pytest.mark.parametrize(("case", "per_step"), [(LARGE, (4, 7)), (MANY_HEADS, (1, 1))])
def test_sequence_in_a_loop(case, per_step):
    forward, backward, beside = sequence(case)
    repeated = backward.pop("write", 0) + backward.pop("sharpen_read_write", 0)
    assert forward.total() == per_step[0] * case.time
    assert backward.total() == per_step[1] * case.time
    # Memories between the stored ones are written anew.
    assert repeated == case.time - sizes_of(case).num_checkpoints
    assert beside[0] <= 18 * case.time
    assert beside[1] <= 18 * case.time


@pytest.mark.parametrize(
    ("bfloat16_products", "launches", "of_a_layer"),
    [
        (False, controller_cost.LAUNCHES, controller_cost.LAUNCHES_OF_A_LAYER),
        (
            True,
            controller_cost.LAUNCHES_IN_BFLOAT16,
            controller_cost.LAUNCHES_OF_A_LAYER_IN_BFLOAT16,
        ),
    ],
)
def test_launches_that_the_choice_of_the_way_counts_with(bfloat16_products, launches, of_a_layer):
    def of_step(case):
        forward, backward, beside = sequence(case, bfloat16_products)
        return (forward.total() + backward.total() + sum(beside)) / case.time

    in_registers = PAPER.with_(memory_size=256, word_size=16)
    one, two = of_step(in_registers), of_step(in_registers.with_(num_layers=2))
    assert two - one == pytest.approx(of_a_layer, abs=1)
    assert one == pytest.approx(launches + of_a_layer, abs=1)


@pytest.mark.parametrize("case", [PAPER, DEEP, MANY_HEADS, LARGE], ids=str)
def test_outputs_of_a_sequence_are_no_views(case):
    """Autograd forbids changing a view in place."""
    inputs, sizes = record(SequenceInputs, case), sizes_of(case)
    outputs, _ = kernel("sequence", Launches()).forward(inputs, sizes, True)
    there = [part for part in outputs if part is not None]
    assert there
    assert all(part._base is None and part.is_contiguous() for part in there)


def test_launches_in_the_documentation():
    rows = {"`step`": [], "`step`, backward": [], "`sequence`": [], "`sequence`, backward": []}
    for case in (PAPER, MANY_HEADS, LARGE):
        for name, kernels in zip(("`step`", "`step`, backward"), step(case), strict=True):
            rows[name].append(f"{len(kernels)}")
        forward, backward, beside = sequence(case)
        rows["`sequence`"].append(f"{forward.total()} ({beside[0]})")
        rows["`sequence`, backward"].append(f"{backward.total()} ({beside[1]})")
    _, _, beside = sequence(DEEP)
    documented = DOCUMENTATION.read_text(encoding="utf-8")
    of_layers = (
        f"takes 1 ({beside[0]}) launches for `sequence` and 1 ({beside[1]}) for its backward"
    )
    assert of_layers in " ".join(documented.split())
    for name, cells in rows.items():
        assert f"\n| {name} | {' | '.join(cells)} | 1 |\n" in documented


@pytest.mark.parametrize(
    ("case", "how"),
    [
        (PAPER, "one launch, the memory in registers over all steps"),
        (DEEP, "one launch, the memory in registers over all steps"),
        (MANY_HEADS, f"{LOOP}, the memory in registers"),
        (LARGE, f"{LOOP}, the memory in tiles"),
        (PAPER.with_(op="step"), "the memory in registers"),
        (MANY_HEADS.with_(op="step"), "the memory in registers"),
        (LARGE.with_(op="read"), "the memory in tiles"),
        (TALL, f"{LOOP}, the memory in registers"),
        (TALL.with_(op="step"), "the memory in registers"),
        (TALL.with_(op="step", memory_size=512, word_size=8), "the memory in tiles"),
    ],
    ids=str,
)
def test_path_is_told(case, how):
    problem = Problem(case.op, "cuda", torch.float32, sizes_of(case))
    assert TritonBackend().how(problem) == how
    assert TABLE.too_large(problem) is None


@pytest.mark.parametrize(("hip", "bound"), [(None, 255), ("7.0", None)])
def test_registers_are_bounded_for_ptxas_alone(monkeypatch, hip, bound):
    """ROCm, which calls its devices ``cuda`` too, refuses the option."""
    monkeypatch.setattr(torch.version, "hip", hip)
    launcher = Launches()
    kernel("sequence", launcher).forward(record(SequenceInputs, PAPER), sizes_of(PAPER), True)
    assert launcher.bounds == [bound]
    assert ("ROCm" in TritonBackend(launcher=launcher).describe()) == (hip is not None)


def test_cuda_kernels_leave_rocm_alone(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "the backend triton" in get("cuda").unavailable()


def test_many_heads_take_more_warps_than_their_memory():
    few, many = (
        TABLE.fitting(Sizes(1, 128, 4, heads, num_taps=3), torch.float32) for heads in (1, 8)
    )
    assert (few.elements, few.warps) == (512, 1)
    assert (many.elements, many.warps) == (2048, 4)


def test_bound_of_registers():
    assert [most_registers(warps) for warps in (1, 4, 8, 16, 32)] == [255, 255, 255, 128, 64]


def test_largest_sizes():
    def problem(locations, words, heads=1, num_taps=3):
        sizes = Sizes(1, locations, words, heads, heads, num_taps=num_taps)
        return Problem("step", "cuda", torch.float32, sizes)

    assert TABLE.too_large(problem(2**20, 1024)) is None
    assert "64-bit" in TABLE.too_large(problem(2**21, 1024))
    assert "64-bit" in TABLE.too_large(problem(2**28, 4, heads=8))
    assert TABLE.too_large(problem(2**30 - 2, 1)) is None
    assert "rows needs 64-bit" in TABLE.too_large(problem(2**30 - 1, 1))
    assert "words of 2049" in TABLE.too_large(problem(8, 2049))
    assert "heads" in TABLE.too_large(problem(8, 4, heads=600))


@pytest.mark.parametrize(("saves", "steps"), [(True, (DEEP.time,)), (False, ())])
def test_lower_hidden_states_are_kept_for_a_backward_alone(saves, steps, monkeypatch):
    launcher = Launches()
    given = []
    monkeypatch.setattr(launcher, "launch", lambda *arguments, **_: given.append(arguments))
    kernel("sequence", launcher).forward(record(SequenceInputs, DEEP), sizes_of(DEEP), saves)
    [kept] = [one for one in given[0] if hasattr(one, "lower_hidden")]
    assert kept.lower_hidden.shape == (*steps, 2, DEEP.batch, DEEP.hidden_size)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_loop_of_steps_serves_what_one_launch_cannot_number(layers):
    """One launch counts the hidden states of all steps in 32 bits."""

    def one_launch(steps):
        case = PAPER.with_(batch=2, time=steps, num_layers=layers)
        return row_of_sequence(TABLE, Problem("sequence", "cuda", torch.float32, sizes_of(case)))

    beyond = 2**30 // layers
    assert one_launch(beyond - 1) is not None
    assert one_launch(beyond) is None


OTHER_TABLES = {
    "narrow controller": TABLE._replace(controller_rows=2, controller_columns=8),
    "wide controller": TABLE._replace(controller_rows=32, controller_columns=128),
    "loop of steps": TABLE._replace(sequence_thread_weightings=-1),
    "one tile": TILED._replace(tile_elements=2048, programs_per_sequence=8),
    "many programs": TILED._replace(tile_elements=8, programs_per_sequence=64),
}
for name, table in OTHER_TABLES.items():
    register(InterpretedBackend(name, table), automatic=False)


@needs_interpreter
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("name", OTHER_TABLES)
def test_launch_parameters_change_no_result(name, num_layers):
    case = Case("sequence", word_size=3, time=3, num_write_heads=2, hidden_size=11)
    case = case.with_(num_layers=num_layers)
    assert_agrees(case, Entry(name, "cpu"), arguments(case))
