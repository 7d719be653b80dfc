"""NTM: what is refused, when it is made and when it is called, and what the errors say."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from ntm_kernels import NTM, BackendError, InitialState, backends
from tests.support.models import SIZES, inputs, make


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"output_from": "memory"}, "output_from must be"),
        ({"output_size": None, "output_from": "read_vectors"}, "no output layer"),
        ({"output_size": 0}, "output_size must be at least 1, got 0"),
    ],
)
def test_construction_is_checked(kwargs, match):
    with pytest.raises(ValueError, match=match):
        make(**kwargs)


def test_calls_are_checked():
    model = make()
    x = inputs()
    with pytest.raises(TypeError, match="tensor or PackedSequence"):
        model([x])
    with pytest.raises(ValueError, match="unbatched"):
        model(x[:, 0], lengths=[3])
    with pytest.raises(ValueError, match="its own lengths"):
        model(pack_sequence([x[:, 0]]), lengths=[3])
    with pytest.raises(ValueError, match=r"NTM: lengths must lie in 0 … 6, got 7"):
        model(x, lengths=[7, 1, 1, 1])
    with pytest.raises(ValueError, match=r"NTM: lengths must be \[B=4\]"):
        model(x, lengths=[1, 1])
    for dtype in (torch.float32, torch.bool, torch.complex64):
        message = f"NTM: lengths must be of an integer dtype, such as torch.int64, got {dtype}"
        with pytest.raises(TypeError, match=message):
            model(x, lengths=torch.ones(4, dtype=dtype))
    for lengths in (3, [1.5] * 4, "abcd", [None] * 4, [[1], [2], [3], [4]], [True] * 4):
        with pytest.raises(TypeError, match="NTM: lengths must be a tensor or a list of integers"):
            model(x, lengths=lengths)
    stacked = make(num_layers=2)
    with pytest.raises(ValueError, match=r"lengths must lie in 0 … 6, got -1"):
        stacked(x, lengths=[-1, 1, 1, 1])


@pytest.mark.parametrize(
    ("batch_first", "shape", "message"),
    [
        (True, (2, 6, 7), "x must be [B, T, input_size=3], got [2, 6, 7]"),
        (False, (2, 6, 7), "x must be [T, B, input_size=3], got [2, 6, 7]"),
        (True, (6, 7), "x must be [T, input_size=3], got [6, 7]"),
        (True, (1, 2, 6, 3), "x must be [B, T, input_size=3] or [T, input_size=3], got [1, 2, 6"),
        (False, (3,), "x must be [T, B, input_size=3] or [T, input_size=3], got [3]"),
    ],
)
def test_messages_show_x_as_it_was_given(batch_first, shape, message):
    with pytest.raises(ValueError, match=re.escape(f"NTM: {message}")):
        make(batch_first=batch_first)(torch.randn(shape, dtype=torch.float64))


def test_messages_of_every_entry_name_the_module():
    model = make(batch_first=True)
    x = inputs().transpose(0, 1)
    packed = pack_sequence([x[0, :, :2], x[1, :4, :2]])
    state = model.initial_state(4)
    cases = [
        (ValueError, (packed,), "x.data must be [steps of all sequences, input_size=3], got [10,"),
        (TypeError, (x.float(),), "x is torch.float32 and the parameters are torch.float64"),
        (ValueError, (x.to("meta"),), "x is on meta and the parameters on cpu"),
        (TypeError, (x, tuple(state)), "state must be an NTMState or None, got tuple"),
        (ValueError, (x[:2], state), "state.memory must be [2, 11, 5], got [4, 11, 5]"),
        (ValueError, (x[0], state), "state.memory must be [11, 5], got [4, 11, 5]"),
        (
            ValueError,
            (x, state._replace(controller=())),
            "state.controller must be ([4, 7], [4, 7]), got ()",
        ),
    ]
    for error, arguments, message in cases:
        with pytest.raises(error, match=re.escape(f"NTM: {message}")):
            model(*arguments)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (
            {"memory_size": 10**12},
            ("state.memory [B, N, M] = [4, 1000000000000, 5]", "160,000,000"),
        ),
        ({"hidden_size": 10**13}, ("input_weight [4·hidden_size, input]", "make hidden_size")),
        ({"hidden_size": 10**30}, ("input_weight [4·hidden_size, input]", "make hidden_size")),
        ({"word_size": 10**12}, ("recurrent_weight", "word_size")),
        ({"shift_range": 10**13}, ("interface's weights [P, hidden_size]", "shift_range")),
        (
            {"output_size": 10**13},
            ("NTM: ", "output layer's weights", "make output_size smaller"),
        ),
        (
            {"memory_size": 10**13, "initial_state": InitialState(memory="learned")},
            ("learned initial memory [N, M] = [10000000000000, 5]", "start from a constant"),
        ),
        (
            {"memory_size": 10**13, "initial_state": InitialState(weightings="learned")},
            ("learned initial weightings [H, N] = [3, 10000000000000]",),
        ),
    ],
)
def test_sizes_that_no_memory_holds(kwargs, words):
    with pytest.raises(RuntimeError, match=".*".join(re.escape(word) for word in words)) as caught:
        make(**kwargs)(inputs())
    assert "there is no room for" in str(caught.value)


def test_a_batch_and_a_sequence_that_no_memory_holds():
    one = inputs(1, 1)
    with pytest.raises(
        RuntimeError, match=r"state\.memory \[B, N, M\] = \[10000000000000, 11, 5\]"
    ):
        make()(one.expand(1, 10**13, 3))
    with pytest.raises(RuntimeError, match=r"sequence: there is no room .* T=10000000000000, "):
        make()(one.expand(10**13, 1, 3))


class Sized(nn.Module):
    """A controller that may be called in a way of its own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(13, 7, dtype=torch.float64)


class Optional(Sized):
    def forward(self, input, state, scale=1.0):
        return scale * self.linear(input), state


class Starred(Sized):
    def forward(self, *arguments):
        return self.linear(arguments[0]), arguments[1]


class Together(Sized):
    def forward(self, pair):
        return self.linear(pair[0]), pair[1]


class Called(Together):
    def __call__(self, input, state):
        return super().__call__((input, state))


def hooked():
    controller = Together()
    controller.register_forward_pre_hook(lambda module, arguments: (arguments,))
    return controller


@pytest.mark.parametrize(
    "build", [Optional, Starred, Called, hooked, lambda: torch.compile(Optional())]
)
def test_a_controller_that_can_be_called_is_taken(build):
    NTM(3, 2, **SIZES, controller=build())


class Keyword(Sized):
    def forward(self, input, *, state):
        return self.linear(input), state


@pytest.mark.parametrize("controller", [nn.Linear(13, 7), Together(), Keyword(), nn.Identity()])
def test_a_controller_of_another_protocol_is_refused(controller):
    words = (
        "controller(input [B, input_size + R·M], state)",
        "-> (output",
        type(controller).__name__,
    )
    with pytest.raises(TypeError, match=".*".join(re.escape(word) for word in words)):
        NTM(3, 2, **SIZES, controller=controller)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.float8_e4m3fn])
def test_dtypes_that_nothing_computes_in_are_refused(dtype):
    with pytest.raises(TypeError, match=f"NTM: dtype must be torch.float32, .*, got {dtype}"):
        make(dtype)


def test_a_backend_that_is_not_available_is_refused_at_the_call(monkeypatch):
    model = make(backend="torch")
    monkeypatch.setattr(backends.get("torch"), "unavailable", lambda: "switched off")
    with pytest.raises(BackendError, match=r"torch.* switched off"):
        model(inputs())


def test_a_backend_that_does_not_exist_is_refused_at_construction():
    with pytest.raises(BackendError, match="there is no backend named 'abacus'; there are: "):
        make(backend="abacus")


@pytest.mark.parametrize(
    ("name", "wrong", "error", "message"),
    [
        ("backend", "nope", BackendError, "there is no backend named 'nope'"),
        ("backend", 3, TypeError, "backend must be the name of a backend or None"),
        ("checkpoint_every", 0, ValueError, "checkpoint_every must be at least 1, got 0"),
        ("checkpoint_every", 2.5, TypeError, "checkpoint_every must be an int, got float"),
    ],
)
def test_what_is_set_is_checked_at_once(name, wrong, error, message):
    model = make()
    for owner in (model, model.cell):
        with pytest.raises(error, match=rf"^{type(owner).__name__}\.{name}: {message}"):
            setattr(owner, name, wrong)
        assert getattr(owner, name) is None


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
@pytest.mark.parametrize("batch_first", [False, True])
def test_an_input_that_is_not_dense_is_refused(batch_first):
    model = make(dtype=torch.float32, batch_first=batch_first)
    sequences = [torch.randn(4, 3), torch.randn(6, 3)]
    padding = ", got a nested tensor; pad it, as torch.nn.utils.rnn.pad_sequence does, and give len"
    for x, got in [
        (torch.nested.nested_tensor(sequences), padding),
        (torch.nested.nested_tensor(sequences, layout=torch.jagged), padding),
        (inputs(dtype=torch.float32).to_sparse(), ", got torch.sparse_coo"),
    ]:
        message = re.escape(f": x must be a dense tensor{got}")
        with pytest.raises(TypeError, match=f"^NTM{message}"):
            model(x)
        with pytest.raises(TypeError, match=f"^NTMCell{message}"):
            model.cell(x, sequence=True)
