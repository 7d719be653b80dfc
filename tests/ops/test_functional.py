"""What being a function means: nothing mutated, nothing shared, the same bits every time."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ntm_kernels import functional
from ntm_kernels.ops import OPS
from ntm_kernels.ops.declare import names
from tests.support.cases import (
    SMALL,
    Case,
    Dtypes,
    arguments,
    assert_results,
    call,
    cotangents,
    differentiate,
    each_small,
    explained,
    leaves,
    of_sequence,
    run,
)
from tests.support.table import each_backend, fitting

FLOAT32 = Dtypes.all(torch.float32)
# Work enough for the CPU kernels to wake other threads.
SHARED_OUT = [
    Case("sequence", 9, 16, 20, time=4, hidden_size=110, num_layers=layers) for layers in (1, 2)
]


def problem(entry, case, dtypes=FLOAT32):
    fitting(entry, case, dtypes)
    tensors = arguments(case, dtypes, entry.device)
    return tensors, cotangents(call(case, tensors, entry.backend))


def assert_same_bits(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name in other:
            assert torch.equal(one[name], other[name]), name


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


@each_small
@each_backend
def test_nothing_is_mutated(entry, case):
    tensors, grads = problem(entry, case)
    wanted = leaves(tensors)
    outputs = call(case, wanted, entry.backend)
    given = [*tensors.values(), *grads.values(), *outputs.values()]
    before = [tensor.detach().clone() for tensor in given]
    versions = [tensor._version for tensor in given]
    differentiate(outputs, grads, wanted)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))
    assert [tensor._version for tensor in given] == versions


@pytest.mark.parametrize("grad", [True, False])
@each_small
@each_backend
def test_nothing_is_shared(entry, case, grad):
    """Outputs and gradients own their memory; 16-bit arguments included."""
    for dtype in (torch.float32, torch.bfloat16):
        tensors, grads = problem(entry, case, Dtypes.all(dtype))
        wanted = leaves(tensors) if grad else tensors
        outputs = call(case, wanted, entry.backend)
        found = list(outputs.values())
        if grad:
            found += differentiate(outputs, grads, wanted).values()
        taken = {storage(tensor) for tensor in (*tensors.values(), *grads.values())}
        for tensor in found:
            assert storage(tensor) not in taken
            taken.add(storage(tensor))


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
@each_backend
def test_no_steps_share_nothing_either(entry, controller):
    case = Case("sequence", time=0, controller=controller)
    tensors, _ = problem(entry, case)
    taken = {storage(tensor) for tensor in tensors.values()}
    for name, part in call(case, tensors, entry.backend).items():
        assert part.numel() == 0 or storage(part) not in taken, name


@each_backend
def test_trace_shares_nothing(entry):
    """Writing into the trace must not reach what the backward reads."""
    case = Case("sequence")
    tensors, grads = problem(entry, case)
    _, untouched = run(case, tensors, entry.backend, grads)
    wanted = leaves(tensors)
    result = functional.sequence(
        **of_sequence(wanted), **case.options, return_trace=True, backend=entry.backend
    )
    for part in result.trace:
        part.fill_(torch.nan)
    outputs = {"hidden": result.hidden, "read_vectors": result.read_vectors}
    outputs |= {f"final_{name}": part for name, part in result.state._asdict().items()}
    assert_same_bits([differentiate(outputs, grads, wanted)], [untouched])


@each_small
@each_backend
def test_same_bits_twice(entry, case):
    tensors, grads = problem(entry, case)
    wanted = run(case, tensors, entry.backend, grads)
    for _ in range(3):
        assert_same_bits(run(case, tensors, entry.backend, grads), wanted)


@each_small
@each_backend
def test_same_bits_with_and_without_gradients(entry, case):
    tensors, grads = problem(entry, case)
    with_gradients, _ = run(case, tensors, entry.backend, grads)
    wanted = leaves(tensors)
    with torch.no_grad():
        assert_same_bits([call(case, wanted, entry.backend)], [with_gradients])
    with torch.inference_mode():
        assert_same_bits([call(case, wanted, entry.backend)], [with_gradients])
    assert_same_bits([call(case, tensors, entry.backend)], [with_gradients])


@each_small
@each_backend
def test_same_bits_in_many_threads(entry, case):
    problems = []
    for seed in range(4):
        tensors = arguments(case, FLOAT32, entry.device, seed=seed)
        problems.append((tensors, run(case, tensors, entry.backend)))
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            (pool.submit(run, case, tensors, entry.backend), wanted)
            for _ in range(8)
            for tensors, wanted in problems
        ]
        for job, wanted in jobs:
            assert_same_bits(job.result(), wanted)


@pytest.mark.parametrize("case", [*(case.with_(batch=5) for case in SMALL), *SHARED_OUT], ids=str)
@each_backend
def test_any_number_of_threads(entry, case):
    """Each number agrees with the reference, and gives the same bits twice."""
    tensors, grads = problem(entry, case)
    before = torch.get_num_threads()
    single = None
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found = run(case, tensors, entry.backend, grads)
            assert_results(case, found, tensors, grads)
            assert_same_bits(run(case, tensors, entry.backend, grads), found)
            if entry.any_threads:
                single = single or found
                assert_same_bits(found, single)
    finally:
        torch.set_num_threads(before)


@each_small
@each_backend
def test_two_live_forwards(entry, case):
    """The backward of the first comes after the forward of the second."""
    tensors, grads = problem(entry, case)
    others = arguments(case, FLOAT32, entry.device, seed=5)
    wanted = [run(case, given, entry.backend, grads)[1] for given in (tensors, others)]
    first, second = leaves(tensors), leaves(others)
    first_outputs = call(case, first, entry.backend)
    second_outputs = call(case, second, entry.backend)
    found = [
        differentiate(first_outputs, grads, first),
        differentiate(second_outputs, grads, second),
    ]
    assert_same_bits(found, wanted)


@each_small
@each_backend
def test_backward_twice(entry, case):
    tensors, grads = problem(entry, case)
    wanted = leaves(tensors)
    outputs = call(case, wanted, entry.backend)
    found = [
        torch.autograd.grad(
            list(outputs.values()),
            list(wanted.values()),
            [grads[name] for name in outputs],
            retain_graph=True,
        )
        for _ in range(2)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@each_small
@each_backend
def test_changed_argument_is_noticed(entry, case):
    """As for every op of torch: an argument changed in place before the backward raises."""
    tensors, grads = problem(entry, case)
    wanted = leaves(tensors)
    name = "initial_memory" if case.op == "sequence" else next(iter(wanted))
    argument = wanted[name].clone()
    outputs = call(case, wanted | {name: argument}, entry.backend)
    argument.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        differentiate(outputs, grads, wanted)


@each_small
@each_backend
def test_outputs_are_no_views(entry, case):
    """So that they may be changed in place, recorded by autograd or not."""
    tensors, _ = problem(entry, case)
    for given in (tensors, leaves(tensors)):
        for name, part in call(case, given, entry.backend).items():
            assert part._base is None, name
            part.detach().add_(1)
            if part.is_floating_point() and not part.is_leaf:
                part.add_(1)


@pytest.fixture
def unset_memory_is_nan():
    """Fresh memory holds NaN (integers: their maximum), so that reading it shows."""
    was_filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = was_filled


@pytest.mark.filterwarnings("ignore:.*deterministic.*")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_small
@each_backend
def test_unset_memory_is_never_read(entry, case, dtype, unset_memory_is_nan):
    tensors, grads = problem(entry, case, Dtypes.all(dtype))
    extras = [{}]
    if case.op == "sequence":
        lengths = torch.tensor([2, 0], device=entry.device)
        extras += [{"lengths": lengths}, {"checkpoint_every": 3}]
    for extra in extras:
        for group in run(case, tensors, entry.backend, grads, **extra):
            for name, part in group.items():
                assert part.isfinite().all(), name


@each_small
@each_backend
def test_no_graph_without_gradients(entry, case):
    """Nothing to differentiate: nothing saved, and no gradient claimed."""
    tensors, _ = problem(entry, case)
    for part in call(case, tensors, entry.backend).values():
        assert not part.requires_grad
    with torch.no_grad():
        for part in call(case, leaves(tensors), entry.backend).values():
            assert not part.requires_grad


@pytest.mark.parametrize("case", [Case("address"), Case("step"), Case("sequence")], ids=str)
@each_backend
def test_only_a_forward_with_gradients_saves(entry, case):
    tensors, _ = problem(entry, case)
    declared = OPS[case.op]
    others = {"checkpoint_every": 2, "return_trace": False, "bfloat16_products": False}
    options = case.options | others

    def forward(tensors, save):
        inputs = [tensors.get(name) for name in names(declared.inputs)]
        numbers = [options[name] for name in names(declared.options)]
        return getattr(torch.ops.ntm, case.op)(*inputs, *numbers, save, entry.backend)

    assert forward(tensors, False)[-1] == []
    assert all(isinstance(part, torch.Tensor) for part in forward(tensors, True)[-1])
    loss = forward(leaves(tensors), False)[0].sum()
    with pytest.raises(RuntimeError, match="save_for_backward=False"):
        loss.backward()


@pytest.mark.parametrize("enabled", [torch.bfloat16, torch.float16])
@each_small
@each_backend
def test_autocast_does_not_reach_inside(entry, case, enabled):
    """Arithmetic is float32 as ever, in the backward too."""
    tensors, grads = problem(entry, case)
    wanted = run(case, tensors, entry.backend, grads)
    with torch.autocast(entry.device, dtype=enabled):
        if case.op == "sequence" and "in bfloat16" in explained(case, tensors, entry.backend):
            assert enabled == torch.bfloat16
            assert entry.backend.startswith(("cpu", "cuda", "triton"))
            pytest.skip("tests/ops/test_step_loop.py and tests/cpu/test_bfloat16.py")
        assert_same_bits(run(case, tensors, entry.backend, grads), wanted)


@each_small
@each_backend
def test_activation_checkpointing(entry, case):
    """``torch.utils.checkpoint`` runs the forward twice, first without gradients."""
    tensors, grads = problem(entry, case)
    _, wanted = run(case, tensors, entry.backend, grads)
    for reentrant in (False, True):
        given = leaves(tensors)
        names = list(grads)

        def forward(*values, names=names, given=given):
            outputs = call(case, dict(zip(given, values, strict=True)), entry.backend)
            return tuple(outputs[name] for name in names)

        results = torch.utils.checkpoint.checkpoint(
            forward, *given.values(), use_reentrant=reentrant
        )
        torch.autograd.backward(results, [grads[name] for name in names])
        assert_same_bits([{name: tensor.grad for name, tensor in given.items()}], [wanted])


@each_backend
def test_about_the_root_of_the_time_is_stored(entry):
    """At 30 steps as many memories as ``checkpoint_every=5`` asks for, and no other number."""
    case = Case("sequence", batch=1, memory_size=3, word_size=2, time=30, hidden_size=2)
    tensors, _ = problem(entry, case)

    def stored(every):
        shapes = []

        def pack(tensor):
            shapes.append(tensor.shape)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call(case, leaves(tensors), entry.backend, checkpoint_every=every)
        return shapes

    assert stored(None) == stored(5)
    assert all(stored(None) != stored(every) for every in (1, 4, 6, 30))


@each_small
@each_backend
def test_saved_tensors_may_travel(entry, case):
    """Hooks that pack and unpack copies, as offloading to the CPU does."""
    tensors, grads = problem(entry, case)
    _, wanted = run(case, tensors, entry.backend, grads)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        assert_same_bits([run(case, tensors, entry.backend, grads)[1]], [wanted])
