"""Every contender computes what it says, and each subject measures it."""

from dataclasses import replace

import pytest
import torch

from bench import contenders, timing
from bench.contenders import LSTM, BackendContender, BySteps, Eager, EagerNTM, Unsupported
from bench.subjects import SUBJECTS, Entry
from bench.subjects.base import copy_batch, differentiable
from bench.timing import Limits
from bench.workload import Workload
from ntm_kernels.backends import get

SMALL = Workload(batch=2, time=5, memory_size=6, word_size=3, hidden_size=4, input_size=3)
ONCE = Limits(seconds=0.0, sample=0.0, least=1, most=1)


@pytest.fixture(autouse=True)
def _no_long_warm_up(monkeypatch):
    monkeypatch.setattr(timing, "warm_up", lambda job, clock: job.run and 1.0)


@pytest.mark.parametrize("controller", ["lstm", "own"])
@pytest.mark.parametrize("heads", [(1, 1), (2, 3)])
def test_the_eager_model_is_the_module_without_its_ops(controller, heads):
    workload = replace(
        SMALL, controller=controller, num_read_heads=heads[0], num_write_heads=heads[1]
    )
    eager = EagerNTM(workload)
    x = copy_batch(workload).inputs
    expected, _ = eager.ntm(x)
    output = eager(x)
    torch.testing.assert_close(output, expected)
    parameters = list(eager.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(output.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
    )


def test_a_backend_is_the_one_named(monkeypatch):
    called = []
    kernel = get("torch").kernels["sequence"]
    original = kernel.forward
    monkeypatch.setattr(kernel, "forward", lambda *args: called.append(1) or original(*args))
    model = BackendContender("torch", "").model(SMALL)
    model(copy_batch(SMALL).inputs)
    assert called


def test_by_steps_is_the_same_model_without_the_op_for_sequences(monkeypatch):
    workload, called = replace(SMALL, num_layers=2), []
    for op, kernel in get("torch").kernels.items():
        original = kernel.forward
        monkeypatch.setattr(
            kernel, "forward", lambda *args, op=op, f=original: called.append(op) or f(*args)
        )
    fused, stepped = (c.model(workload) for c in (BackendContender("torch", ""), BySteps("torch")))
    stepped.load_state_dict(fused.state_dict())
    x = copy_batch(workload).inputs
    torch.testing.assert_close(stepped(x), fused(x))
    assert called == ["step"] * workload.time + ["sequence"]


def test_every_live_backend_is_a_contender():
    names = [contender.name for contender in contenders.live("cpu")]
    live = [
        status.name for status in contenders.ntm_kernels.available_backends() if status.available
    ]
    assert names == [*live, "eager", "compiled", "lstm"]
    assert contenders.automatic("cpu") in live


def test_the_batch_is_laid_out_as_the_copy_task():
    batch = copy_batch(replace(SMALL, time=41))
    answers = batch.mask[:, 0]
    assert answers.sum() == 20
    assert not answers[:21].any()
    assert not batch.inputs[21:].any()
    assert not batch.targets[:21].any()
    assert copy_batch(replace(SMALL, time=1)).mask.all()


TIMED = [
    (subject.name, measured)
    for subject in SUBJECTS.values()
    if subject.unit == "ms"
    for measured in subject.passes
]


@pytest.mark.parametrize(("subject", "measured"), TIMED)
def test_every_subject_measures_every_pass(subject, measured):
    entries = [Entry(c, SMALL) for c in (BackendContender("torch", ""), Eager(), LSTM())]
    outcome = SUBJECTS[subject].measure(entries, measured, ONCE)
    assert outcome.failed == {}
    left_out = [entry.contender.name for entry in outcome.skipped]
    assert left_out == (["lstm"] if subject == "step" else [])
    assert all(stats.samples == 1 for stats in outcome.stats.values())
    assert len(outcome.stats) == len(entries) - len(left_out)


def test_a_training_iteration_moves_every_weight():
    models = []

    class Spy(Eager):
        def model(self, workload):
            models.append(super().model(workload))
            return models[0]

    job = SUBJECTS["train"].job(Spy(), SMALL, "iteration")
    before = [p.clone() for p in models[0].parameters()]
    job.run()
    assert not any(torch.equal(p, q) for p, q in zip(before, models[0].parameters(), strict=True))


def test_the_pass_flushed_alone_takes_denormal_numbers_for_zero():
    flushes = []

    class Spy(Eager):
        def model(self, workload):
            model = super().model(workload)
            model.register_forward_hook(lambda *_: flushes.append(flushed()))
            return model

    def flushed():
        return bool((torch.full((4,), 2e-40) * 0.5 == 0).all())

    for measured in ("iteration", "flushed"):
        SUBJECTS["classify"].job(Spy(), SMALL, measured).run()
    assert flushes == [False, True]
    assert not flushed()


@pytest.mark.slow
def test_the_compiled_model_is_the_eager_one():
    eager, compiled = EagerNTM(SMALL), EagerNTM(SMALL, compiled=True)
    compiled.load_state_dict(eager.state_dict())
    x = copy_batch(SMALL).inputs
    torch.testing.assert_close(compiled(x), eager(x))


def test_inference_builds_no_graph():
    grads = []

    class Spy(Eager):
        def cell(self, workload):
            cell = super().cell(workload)
            return lambda x: grads.append(cell(x)[0].requires_grad)

    SUBJECTS["inference"].job(Spy(), SMALL, "forward").run()
    assert grads == [False]


def test_passes():
    x = torch.tensor(3.0, requires_grad=True)
    forwards = []

    def forward():
        forwards.append(1)
        return [x.square()]

    def runs(measured):
        forwards.clear()
        job = differentiable(forward, [x], measured, threads=1)
        forwards.clear()
        for _ in range(2):
            if job.before is not None:
                job.before()
            prepared = len(forwards)
            job.run()
        return prepared, len(forwards)

    assert runs("forward") == (1, 2)
    assert runs("both") == (1, 2)
    assert runs("backward") == (2, 2)


def test_a_contender_that_fails_leaves_the_others_their_results():
    class Broken(Eager):
        name = "broken"

        def model(self, workload):
            raise RuntimeError("on purpose")

    good, bad = Entry(Eager(), SMALL), Entry(Broken(), SMALL)
    outcome = SUBJECTS["sequence"].measure([bad, good], "forward", ONCE)
    assert list(outcome.stats) == [good]
    assert outcome.failed == {bad: "RuntimeError: on purpose"}


def test_what_a_contender_lacks_is_left_out_with_the_reason():
    with pytest.raises(Unsupported, match="apart from a controller"):
        LSTM().step(SMALL)
    with pytest.raises(Unsupported, match="one layer"):
        Eager().model(replace(SMALL, num_layers=2))
    with pytest.raises(Unsupported, match="built-in"):
        LSTM().model(replace(SMALL, controller="own"))


def test_a_cuda_graph_cannot_hold_half_a_call():
    with pytest.raises(ValueError, match="backward alone"):
        timing.captured(timing.Job(lambda: None, before=lambda: None))
