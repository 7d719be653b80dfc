"""When a backend is checked before its first use, and what follows from the verdict."""

import json
import multiprocessing
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import ntm_kernels
from ntm_kernels import BackendError, functional, use_backend
from ntm_kernels.backends import Kernel, get, register
from ntm_kernels.backends.torch import TorchBackend
from ntm_kernels.backends.trust import CACHE, SWITCH, policy, verdicts
from ntm_kernels.ops import ReadOutputs
from ntm_kernels.training.cli import main

READ = (torch.rand(2, 3, 4), torch.rand(2, 1, 3))
FAILED = "read in float32 on cpu failed on .*: the gradient of memory is off by 1, allowed"


class Read(Kernel):
    """That of torch. It says when it is called, and may be wrong."""

    def __init__(self):
        self.calls = []
        self.right = TorchBackend().kernels["read"]
        self.error = None
        self.wrong_by = 0

    def forward(self, *args):
        self.calls.append("forward")
        if self.error is not None:
            raise self.error
        return self.right.forward(*args)

    def backward(self, *args):
        self.calls.append("backward")
        found = self.right.backward(*args)
        return found._replace(memory=found.memory + self.wrong_by) if self.wrong_by else found


class New(TorchBackend):
    """A backend that has to be checked."""

    name = "new"
    needs_check = True

    def __init__(self):
        self.kernels = {"read": Read()}
        self.print = "first build"

    @property
    def calls(self):
        return self.kernels["read"].calls

    def fingerprint(self):
        return self.print

    def path(self, problem):
        return "small" if problem.sizes.memory_size < 100 else "large"


CHECK = ["forward", "backward"] * 2  # on two paths


@pytest.fixture
def new(monkeypatch, tmp_path):
    """The backend, tried first, as in a process that has checked nothing."""
    module = ntm_kernels.backends.choice
    monkeypatch.setattr(module, "_registry", {"torch": get("torch")})
    monkeypatch.setattr(module, "_automatic", ["torch"])
    monkeypatch.delenv("NTM_KERNELS_BACKEND", raising=False)
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    forget()
    backend = New()
    register(backend)
    yield backend
    forget()


def forget():
    """As in a new process."""
    policy._verdicts.clear()
    policy._warned.clear()
    policy.pending.clear()


def files(tmp_path):
    return sorted((tmp_path / "cache").glob("*.json"))


def chosen(**options):
    return functional.explain("read", *READ, **options)


def test_the_first_call_checks_each_path_once(new, tmp_path):
    functional.read(*READ)
    assert new.calls == [*CHECK, "forward"]
    functional.read(*READ)
    assert new.calls == [*CHECK, "forward", "forward"]
    [file] = files(tmp_path)
    kept = json.loads(file.read_text())
    assert kept["why_not"] == ""
    assert kept["identity"]["device"] == "cpu"
    assert kept["identity"]["torch"].startswith(torch.__version__)
    assert {"driver", "triton", "kernels", "op", "dtype", "backend"} <= kept["identity"].keys()
    assert [path.suffix for path in tmp_path.glob("cache/*.tmp")] == []


def test_a_verdict_on_disk_is_enough(new):
    functional.read(*READ)
    new.calls.clear()
    forget()
    functional.read(*READ)
    assert new.calls == ["forward"]


def test_each_dtype_has_a_verdict(new, tmp_path):
    functional.read(*READ)
    new.calls.clear()
    functional.read(*(tensor.double() for tensor in READ))
    assert new.calls == [*CHECK, "forward"]
    assert len(files(tmp_path)) == 2


def test_other_kernels_are_checked_anew(new):
    functional.read(*READ)
    new.calls.clear()
    forget()
    new.print = "second build"
    functional.read(*READ)
    assert new.calls == [*CHECK, "forward"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"identity": {}, "why_not": "", "date": ""}']
)
def test_what_is_no_verdict_is_written_again(new, tmp_path, text):
    functional.read(*READ)
    [file] = files(tmp_path)
    file.write_text(text)
    new.calls.clear()
    forget()
    functional.read(*READ)
    assert new.calls == [*CHECK, "forward"]
    assert json.loads(file.read_text())["why_not"] == ""


def test_a_folder_that_cannot_be_written(new, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE, str(tmp_path / "file"))
    for _ in range(2):
        functional.read(*READ)
    assert new.calls == [*CHECK, "forward", "forward"]


def test_failed(new):
    """One warning, and the next backend serves; by its name it raises. In later processes too."""
    new.kernels["read"].wrong_by = 1
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match=f"without the backend 'new'.*{FAILED}") as caught:
            functional.read(*READ)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            functional.read(*READ)
        assert "forward" not in new.calls[len(CHECK) :]
        status = ntm_kernels.available_backends()[0]
        assert (status.name, status.available) == ("new", False)
        assert "is off by 1" in status.reason
        assert chosen().backend == "torch"
        assert "small: the gradient of memory is off" in chosen().rejected["new"]
        assert "large: the gradient of memory is off" in chosen().rejected["new"]
        with pytest.raises(BackendError, match=f"'new'.*cannot serve read: .*{FAILED}"):
            functional.read(*READ, backend="new")
        with use_backend("new"), pytest.raises(BackendError, match="cannot serve read"):
            functional.read(*READ)
        forget()


@pytest.mark.parametrize("value", [torch.nan, 1e-3])
def test_any_wrong_number_fails(new, value):
    new.kernels["read"].wrong_by = value
    with pytest.warns(RuntimeWarning, match="self-check"):
        functional.read(*READ)


def test_an_error_of_a_kernel_fails(new):
    new.kernels["read"].error = RuntimeError("CUDA error in read forward: misaligned address")
    with pytest.warns(RuntimeWarning, match="small: RuntimeError: CUDA error.*misaligned"):
        functional.read(*READ)
    assert chosen().backend == "torch"


def test_no_memory_is_no_verdict(new, tmp_path):
    new.kernels["read"].error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.warns(RuntimeWarning, match="'new' in this call of read: there was no memory left"):
        functional.read(*READ)
    assert files(tmp_path) == []
    new.kernels["read"].error = None
    new.calls.clear()
    functional.read(*READ)
    assert new.calls == [*CHECK, "forward"]


def test_what_cannot_be_tried_does_not_pass(new, monkeypatch):
    monkeypatch.setattr(
        new, "unsupported", lambda problem: None if problem.sizes.memory_size == 3 else "not 3 rows"
    )
    with pytest.warns(RuntimeWarning, match="supports none of the calls of read that"):
        functional.read(*READ)
    assert new.calls == []


def test_by_name_it_is_not_checked(new, tmp_path):
    functional.read(*READ, backend="new")
    with use_backend("new"):
        functional.read(*READ)
    assert new.calls == ["forward"] * 2
    assert files(tmp_path) == []


def test_explain_runs_nothing(new):
    assert "no self-check yet; an automatic choice makes it" in chosen().reason
    assert new.calls == []
    functional.read(*READ)
    assert f"self-check passed on {policy._verdicts.popitem()[1].date}" in chosen().reason
    assert new.calls == [*CHECK, "forward"]


def test_switched_off(new, monkeypatch, tmp_path):
    monkeypatch.setenv(SWITCH, "0")
    functional.read(*READ)
    assert new.calls == ["forward"]
    assert files(tmp_path) == []
    assert f"the self-check is off ({SWITCH}=0)" in chosen().reason
    monkeypatch.setenv(SWITCH, "no")
    with pytest.raises(BackendError, match=f"{SWITCH} must be 0 .* or 1, got 'no'"):
        functional.read(*READ)


def test_while_a_graph_is_captured(new, monkeypatch):
    monkeypatch.setattr(policy, "is_capturing", lambda device: True)
    with pytest.raises(BackendError, match=r"read: the backend 'new' has to be checked .* once"):
        functional.read(*READ)
    assert new.calls == []
    monkeypatch.setattr(policy, "is_capturing", lambda device: False)
    functional.read(*READ)
    forget()
    monkeypatch.setattr(policy, "is_capturing", lambda device: True)
    functional.read(*READ)  # the verdict is on disk
    assert new.calls == [*CHECK, "forward", "forward"]


def compiled():
    torch.compiler.reset()
    return torch.compile(lambda *given: 2 * functional.read(*given), backend="aot_eager")


def test_nothing_is_checked_while_torch_compile_traces(new, monkeypatch):
    """But when the op then runs."""
    seen = []
    check = policy.check
    monkeypatch.setattr(
        policy, "check", lambda *args: seen.append(torch.compiler.is_compiling()) or check(*args)
    )
    function = compiled()
    torch.testing.assert_close(function(*READ), 2 * ntm_kernels.reference.read(*READ))
    assert seen == [False]
    assert new.calls == [*CHECK, "forward"]
    function(*READ)
    assert new.calls == [*CHECK, "forward", "forward"]


def test_a_compiled_call_whose_check_fails(new):
    new.kernels["read"].wrong_by = 1
    function = compiled()
    with pytest.raises(BackendError, match=r"chosen while .* traced.*off by 1.*compiler\.reset"):
        function(*READ)
    torch.compiler.reset()
    with pytest.warns(RuntimeWarning, match="without the backend 'new'"):
        function(*READ)
    assert new.calls == CHECK


def test_a_check_has_neither_autocast_nor_gradients(new, monkeypatch):
    seen = []
    check = policy.run_trial
    monkeypatch.setattr(
        policy,
        "run_trial",
        lambda *args: (
            seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"))) or check(*args)
        ),
    )
    with torch.autocast("cpu"):
        functional.read(READ[0].clone().requires_grad_(), READ[1])
    assert seen == [(False, False)] * 2


def test_it_leaves_random_numbers_and_defaults_alone(new):
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            functional.read(*READ)
            new.kernels["read"].wrong_by = 1
            with pytest.warns(RuntimeWarning, match="is off by 1"):
                functional.read(*(tensor.double() for tensor in READ))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert chosen().backend == "new"


@pytest.mark.parametrize("writable", [True, False], ids=["a file to lock", "no file to lock"])
def test_of_several_threads_one_checks(new, monkeypatch, tmp_path, writable):
    if not writable:
        (tmp_path / "file").touch()
        monkeypatch.setenv(CACHE, str(tmp_path / "file"))
    barrier = threading.Barrier(4)

    def call(_):
        barrier.wait(60)
        functional.read(*READ)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))
    assert new.calls.count("backward") == 2


def in_a_rank(barrier, log):
    get("new").kernels["read"].calls.clear()
    forget()
    barrier.wait(60)
    functional.read(*READ)
    with log.open("a") as file:
        file.write(f"{get('new').calls.count('backward')}\n")


def test_of_several_ranks_one_checks(new, monkeypatch, tmp_path):
    """The others wait for its verdict, with nothing installed beside torch."""
    monkeypatch.setitem(sys.modules, "filelock", None)
    context = multiprocessing.get_context("fork")
    barrier, log = context.Barrier(3), tmp_path / "log"
    ranks = [context.Process(target=in_a_rank, args=(barrier, log)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert sorted(log.read_text().split()) == ["0", "0", "2"]


def test_verdicts_lie_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE, str(tmp_path / "here"))
    assert verdicts.folder() == tmp_path / "here"
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert verdicts.folder() == tmp_path / "ntm_kernels"


def test_by_hand(new, capsys, tmp_path):
    assert main(["selfcheck", "--dtype", "float32", "float64"]) == 0
    shown = capsys.readouterr().out
    assert "new: read in float32 on cpu\n" in shown
    assert shown.count("passed\n") == 4
    assert f"passed; the verdicts are in {tmp_path / 'cache'}" in shown
    assert len(files(tmp_path)) == 2
    new.calls.clear()
    functional.read(*READ)
    assert new.calls == ["forward"]

    new.kernels["read"].wrong_by = 1
    assert main(["selfcheck", "--backend", "new", "--dtype", "float32"]) == 1
    assert "FAILED: small: the gradient of memory is off by 1" in capsys.readouterr().out
    assert chosen().backend == "torch"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "torch"], "the backend 'torch' needs no self-check"),
        (["--backend", "abacus"], "there is no backend named 'abacus'"),
    ],
)
def test_by_hand_with_a_backend_that_cannot_be_checked(new, capsys, words, message):
    assert main(["selfcheck", *words]) == 1
    assert message in capsys.readouterr().err


def test_by_hand_where_there_is_nothing_to_check(new, monkeypatch, capsys):
    monkeypatch.setattr(new, "unavailable", lambda: "its beads are gone", raising=False)
    assert main(["selfcheck"]) == 1
    message = "there is no backend to check here; new: its beads are gone"
    assert message in capsys.readouterr().err
    assert main(["selfcheck", "--backend", "new"]) == 1
    assert "'new' is not available: its beads are gone" in capsys.readouterr().err


class Changed(Kernel):
    """The kernel of torch, with something done to its results."""

    def __init__(self, right, outputs=lambda part: part, grads=lambda part: part):
        self.right, self.outputs, self.grads = right, outputs, grads

    def forward(self, *args):
        outputs, saved = self.right.forward(*args)
        return self.outputs(outputs), saved

    def backward(self, *args):
        return self.grads(self.right.backward(*args))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"outputs": lambda out: ReadOutputs(out.read_vectors[..., :1])},
            "read_vectors has the shape",
        ),
        ({"grads": lambda found: found._replace(memory=None)}, "the gradient of memory is missing"),
    ],
    ids=["shape", "missing"],
)
def test_results_that_are_not_there_fail(new, change, message):
    read = new.kernels["read"]
    read.right = Changed(read.right, **change)
    with pytest.warns(RuntimeWarning, match=f"self-check of read.*{message}"):
        functional.read(*READ)
