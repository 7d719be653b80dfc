"""Which backend serves a call: argument, then use_backend, then environment, then automatic."""

import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import ntm_kernels
from ntm_kernels import BackendError, functional, use_backend
from ntm_kernels.backends import ENVIRONMENT_VARIABLE, Backend, Kernel, Problem, get, register
from ntm_kernels.backends.cpu import CpuBackend
from ntm_kernels.backends.torch import TorchBackend
from ntm_kernels.ops import OPS
from tests.support.cases import Case, arguments, call, invoke, of_sequence, run

READ = (torch.rand(2, 3, 4), torch.rand(2, 1, 3))


class Listener(TorchBackend):
    """The reference, writing down what it is asked."""

    def __init__(self, name, why_not=None, refuses=None):
        self.name, self.why_not, self.refused = name, why_not, refuses
        super().__init__()
        self.served = []
        self.kernels = {
            op: Listening(op, kernel, self.served) for op, kernel in self.kernels.items()
        }

    def unavailable(self):
        return self.why_not

    def unsupported(self, problem):
        return self.refused(problem) if self.refused else None

    def describe(self):
        return f"{self.name} listens"


class Listening(Kernel):
    """A kernel that writes down what it is asked."""

    def __init__(self, name, kernel, served):
        self.name, self.kernel, self.served = name, kernel, served
        self.saved = kernel.saved

    def forward(self, *args):
        self.served.append(self.name)
        return self.kernel.forward(*args)

    def backward(self, *args):
        self.served.append(f"{self.name}_backward")
        return self.kernel.backward(*args)


@pytest.fixture
def registry(monkeypatch):
    """A copy of the registry, for this test alone, with only the reference in it."""
    module = ntm_kernels.backends.choice
    monkeypatch.setattr(module, "_registry", {"torch": get("torch")})
    monkeypatch.setattr(module, "_automatic", ["torch"])
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


@pytest.fixture
def loud(registry):
    backend = Listener("loud")
    register(backend, automatic=False)
    return backend


@pytest.fixture
def quiet(registry):
    backend = Listener("quiet")
    register(backend, automatic=False)
    return backend


def chosen(**options):
    return functional.explain("read", *READ, **options)


def test_automatic(registry):
    assert chosen() == ("torch", "the fastest that supports the call", {})


def test_latest_registered_is_tried_first(registry):
    register(Listener("early"))
    register(Listener("late"))
    assert chosen().backend == "late"
    assert [status.name for status in ntm_kernels.available_backends()] == [
        "late",
        "early",
        "torch",
    ]


def test_not_automatic_serves_only_by_name(loud):
    assert chosen().backend == "torch"
    assert chosen(backend="loud").backend == "loud"


def test_order_of_the_wishes(loud, quiet, monkeypatch):
    register(Listener("third"), automatic=False)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "loud")
    assert chosen()[:2] == ("loud", f"asked for by the environment variable {ENVIRONMENT_VARIABLE}")
    with use_backend("quiet"):
        assert chosen()[:2] == ("quiet", "asked for by use_backend")
        assert chosen(backend="third")[:2] == ("third", "asked for by the backend argument")
        with use_backend("third"):
            assert chosen().backend == "third"
        assert chosen().backend == "quiet"
    assert chosen().backend == "loud"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    assert chosen().backend == "torch"


def test_use_backend_ends_with_an_exception(loud):
    with pytest.raises(ZeroDivisionError), use_backend("loud"):
        raise ZeroDivisionError
    assert chosen().backend == "torch"


def test_unknown(registry, monkeypatch):
    with pytest.raises(BackendError, match=r"no backend named 'abacus'; there are: torch"):
        functional.read(*READ, backend="abacus")
    with pytest.raises(BackendError, match="no backend named 'abacus'"), use_backend("abacus"):
        pass
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "abacus")
    with pytest.raises(BackendError, match=f"abacus.*environment variable {ENVIRONMENT_VARIABLE}"):
        functional.read(*READ)


@pytest.mark.parametrize("backend", [3, ["torch"], b"torch", torch.ones(1)])
def test_not_a_name(registry, backend):
    with pytest.raises(TypeError, match=f"backend must be the name.*{type(backend).__name__}"):
        functional.read(*READ, backend=backend)
    with pytest.raises(TypeError, match=f"use_backend: name must.*{type(backend).__name__}"):
        use_backend(backend).__enter__()


def test_unavailable(registry):
    register(Listener("absent", why_not="its abacus has no beads"))
    choice = chosen()
    assert choice.backend == "torch"
    assert choice.rejected == {"absent": "its abacus has no beads"}
    with pytest.raises(BackendError, match=r"'absent'.*the backend argument.*has no beads"):
        functional.read(*READ, backend="absent")
    with pytest.raises(BackendError, match=r"'absent' is not available: its abacus has no beads"):
        use_backend("absent").__enter__()
    status = ntm_kernels.available_backends()[0]
    assert status == ("absent", False, "its abacus has no beads")


def test_broken_cpu_kernels_are_said_once(registry, tmp_path, monkeypatch):
    """And are an error where an instruction set was asked for."""
    monkeypatch.delenv("NTM_KERNELS_ISA", raising=False)
    (tmp_path / "_cpu.so").write_text("no library")
    register(CpuBackend(tmp_path / "_cpu.so"))
    with pytest.warns(RuntimeWarning, match=r"'torch': _cpu.so does not load"):
        functional.read(*READ)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        functional.read(*READ)
    monkeypatch.setenv("NTM_KERNELS_ISA", "avx2")
    with pytest.raises(BackendError, match=r"_cpu.so does not load"):
        functional.read(*READ)


def test_an_instruction_set_that_is_not_there():
    code = "import torch; from ntm_kernels.functional import read; read(*[torch.ones(1, 1, 1)] * 2)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NTM_KERNELS_ISA": "abacus"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "BackendError" in done.stderr
    if get("cpu").unavailable() is None:
        assert "NTM_KERNELS_ISA is abacus, this machine has" in done.stderr


def test_unsupported(registry):
    """It sees the whole problem, and its reason reaches the user."""
    seen = []

    def refuses(problem):
        seen.append(problem)
        return "it counts to two only" if problem.sizes.memory_size > 2 else None

    register(Listener("picky", refuses=refuses))
    choice = chosen()
    assert (choice.backend, choice.rejected) == ("torch", {"picky": "it counts to two only"})
    with pytest.raises(BackendError, match=r"'picky'.*cannot serve read: it counts to two only"):
        functional.read(*READ, backend="picky")
    assert functional.explain("read", READ[0][:, :2], READ[1][:, :, :2]).backend == "picky"
    problem = seen[0]
    assert isinstance(problem, Problem)
    assert (problem.op, problem.device) == ("read", "cpu")
    assert problem.dtype == torch.float32
    sizes = problem.sizes
    assert (sizes.batch, sizes.memory_size, sizes.word_size, sizes.num_heads) == (2, 3, 4, 1)


def test_no_backend_at_all(registry, monkeypatch):
    module = ntm_kernels.backends.choice
    monkeypatch.setattr(module, "_registry", {})
    monkeypatch.setattr(module, "_automatic", [])
    register(Listener("absent", why_not="no beads"))
    register(Listener("picky", refuses=lambda problem: "not today"))
    with pytest.raises(BackendError, match=r"no backend serves read: picky: not today; absent: no"):
        functional.read(*READ)


def test_name_is_taken(loud):
    with pytest.raises(ValueError, match="'loud' is registered already"):
        register(Listener("loud"))


def test_only_backends_are_registered(registry):
    with pytest.raises(TypeError, match="register: backend must be a Backend, got object"):
        register(object())


def test_a_backend_without_kernels_serves_nothing(registry):
    class Bare(Backend):
        name = "bare"

    register(Bare())
    assert chosen().rejected == {"bare": "it has no kernel for read"}


def test_status(loud):
    assert ntm_kernels.available_backends()[-1] == ("loud", True, "loud listens")


@pytest.mark.parametrize("op", OPS)
def test_forward_and_backward_are_served_by_the_chosen(loud, op):
    case = Case(op)
    tensors = arguments(case)
    wanted = run(case, tensors, "torch")
    assert loud.served == []
    found = run(case, tensors, "loud")
    assert loud.served == [op, f"{op}_backward"]
    for one, other in zip(found, wanted, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("op", OPS)
def test_backward_stays_with_the_backend_of_its_forward(loud, quiet, op):
    """Even when another one is in force by then."""
    case = Case(op)
    tensors = {name: part.requires_grad_() for name, part in arguments(case).items()}
    with use_backend("loud"):
        outputs = call_automatically(case, tensors)
    with use_backend("quiet"):
        sum(part.sum() for part in outputs.values()).backward()
    assert loud.served == [op, f"{op}_backward"]
    assert quiet.served == []


def call_automatically(case, tensors):
    result = invoke(functional, case.op, tensors, **case.options)
    if case.op == "sequence":
        return {"hidden": result.hidden, "memory": result.state.memory}
    return dict(enumerate(result if isinstance(result, tuple) else (result,)))


def explain(case, tensors, **options):
    given = of_sequence(tensors) if case.op == "sequence" else tensors
    return functional.explain(case.op, **given, **case.options, **options)


def test_explain_runs_nothing(loud):
    for op in OPS:
        case = Case(op)
        choice = explain(case, arguments(case), backend="loud")
        assert choice.backend == "loud"
    assert loud.served == []
    with pytest.raises(ValueError, match="must be \\[B, N, M\\]"):
        functional.explain("read", torch.ones(2), READ[1])
    with pytest.raises(ValueError, match="op must be one of address, read, write, step, sequence"):
        functional.explain("sing")


def test_modules_pass_their_backend_on(loud):
    for layers, fused, op in ((1, True, "sequence"), (2, True, "sequence"), (2, False, "step")):
        loud.served.clear()
        train(layers, fused, backend="loud")
        assert {name.removesuffix("_backward") for name in loud.served} == {op}


def train(num_layers, fused=True, **options):
    options |= {"memory_size": 5, "word_size": 3, "num_layers": num_layers, "fused": fused}
    model = ntm_kernels.NTM(3, 2, 4, **options)
    output, _ = model(torch.randn(2, 1, 3))
    output.sum().backward()
    return model


def test_a_model_of_several_layers_steps_where_the_backend_asked_for_has_one_layer(registry):
    """However it is asked for. Automatically, a backend that has several layers is chosen."""

    def refuses(problem):
        return "it has one layer only" if problem.sizes.is_deep else None

    shallow = Listener("shallow", refuses=refuses)
    register(shallow)

    def ops(num_layers, **options):
        shallow.served.clear()
        train(num_layers, **options)
        return {name.removesuffix("_backward") for name in shallow.served}

    assert ops(1) == ops(1, backend="shallow") == {"sequence"}
    assert ops(2) == set()
    assert ops(2, backend="shallow") == {"step"}
    with use_backend("shallow"):
        assert ops(2) == {"step"}
        assert ops(2, backend="torch") == set()
    shallow.why_not = "its beads are gone"
    with pytest.raises(BackendError, match="cannot serve step: its beads are gone"):
        train(2, backend="shallow")


def test_threads_do_not_see_each_other(loud, quiet):
    barrier = threading.Barrier(3)

    def ask(name):
        barrier.wait(timeout=30)
        if name is None:
            barrier.wait(timeout=30)
            return chosen().backend
        with use_backend(name):
            barrier.wait(timeout=30)
            return chosen().backend

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, ["loud", "quiet", None])) == ["loud", "quiet", "torch"]


def test_new_threads_start_without_a_choice(loud):
    with use_backend("loud"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(chosen).result().backend == "torch"


def test_environment_of_a_process():
    """The variable is read at each call, also when set before Python starts."""
    program = (
        "import torch, ntm_kernels as n;"
        "print(n.functional.explain('read', torch.ones(1, 2, 3), torch.ones(1, 1, 2)).reason)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, ENVIRONMENT_VARIABLE: "torch"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"asked for by the environment variable {ENVIRONMENT_VARIABLE}"


class TestCompiled:
    """A compiled function follows ``use_backend``, and keeps the environment of its tracing."""

    @pytest.fixture(autouse=True)
    def _fresh_compiler(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @staticmethod
    def compiled(**options):
        def read_twice(memory, weightings):
            return 2 * functional.read(memory, weightings, **options)

        return torch.compile(read_twice, fullgraph=True, backend="aot_eager")

    def test_argument(self, loud):
        memory = READ[0].clone().requires_grad_()
        self.compiled(backend="loud")(memory, READ[1]).sum().backward()
        assert loud.served == ["read", "read_backward"]
        assert torch.equal(memory.grad, 2 * READ[1].mT.expand_as(memory))

    def test_use_backend(self, loud, quiet):
        function = self.compiled()
        function(*READ)
        assert (loud.served, quiet.served) == ([], [])
        with use_backend("loud"):
            function(*READ)
        assert (loud.served, quiet.served) == (["read"], [])
        with use_backend("quiet"):
            function(*READ)
            function(*READ)
        function(*READ)
        assert (loud.served, quiet.served) == (["read"], ["read"] * 2)

    def test_use_backend_of_another_thread(self, loud):
        function = self.compiled()
        with use_backend("loud"):
            function(*READ)
            thread = threading.Thread(target=function, args=READ)
            thread.start()
            thread.join()
        assert loud.served == ["read"]

    def test_environment_when_traced(self, loud, monkeypatch):
        function = self.compiled()
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, "loud")
        function(*READ)
        monkeypatch.delenv(ENVIRONMENT_VARIABLE)
        function(*READ)
        assert loud.served == ["read"] * 2

    def test_backward_follows_the_traced_forward(self, loud, quiet):
        memory = READ[0].clone().requires_grad_()
        function = self.compiled()
        with use_backend("loud"):
            output = function(memory, READ[1])
        with use_backend("quiet"):
            output.sum().backward()
        assert loud.served == ["read", "read_backward"]
        assert quiet.served == []

    @pytest.mark.parametrize("fullgraph", [True, False])
    def test_use_backend_inside(self, loud, fullgraph):
        """It may stand inside the compiled function, and ends where it ends."""

        @torch.compile(backend="aot_eager", fullgraph=fullgraph)
        def function(memory, weightings):
            with use_backend("loud"):
                inside = functional.read(memory, weightings)
            return inside, functional.read(memory, weightings)

        for _ in range(2):
            function(*READ)
        assert loud.served == ["read"] * 2

    @pytest.mark.parametrize("op", ["step", "sequence"])
    def test_other_ops(self, loud, op):
        case = Case(op)
        tensors = {name: part.requires_grad_() for name, part in arguments(case).items()}

        @torch.compile(fullgraph=True, backend="aot_eager")
        def function(given):
            return call(case, given, "loud")

        sum(part.sum() for part in function(tensors).values()).backward()
        assert loud.served == [op, f"{op}_backward"]
