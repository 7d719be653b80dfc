"""The measures of scripts/structure.py see what is planted for them."""

from pathlib import Path

import pytest

from scripts import structure
from scripts import structure_functions as functions
from scripts import structure_stages as stages

FILE = Path("ntm_kernels/ops/planted.py")
HEADER = Path("csrc/planted.h")


def texts(places):
    return [place.text for place in places]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("weightings = args[3]", ["args[3]"]),
        ("last = self.kept_outputs[-1]", ["self.kept_outputs[-1]"]),
        ("heads = ctx.saved_tensors[2:7]", ["ctx.saved_tensors[2:7]"]),
        ("memory, *rest = inputs", ["(memory, *rest) = inputs"]),
        ("memory, *grads = run()", ["(memory, *grads) = run()"]),
        ("for memory, *_ in results: pass", ["(memory, *_) = results"]),
        ("memory = inputs.memory", []),
        ("some = saved[name]", []),
        ("column = values[:, 0]", []),
        ("batch = memory.shape[0]", []),
        ("first, *rest = words", []),
    ],
)
def test_positions_in_python(source, found):
    assert texts(structure.python_positions(source, FILE)) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("f(*inputs, flag)", ["*inputs in a call"]),
        ("def f(given, *args): return g(given, *args)", []),
        ("def f(*args):\n  def g(): h(*args, *kept)", ["*kept in a call"]),
        ("f(*shape)", []),
    ],
)
def test_records_starred_in_calls(source, found):
    assert texts(structure.starred_in_calls(source, FILE)) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("f(grads[0], kept[i]);", ["grads[0]"]),
        ("return saved[1];", ["saved[1]"]),
        ("x = of_arguments[0];  // not args[3]", ["of_arguments[0]"]),
        ("if (x > args[0] && *args[1]) f(a * args[2]);", ["args[0]", "args[1]", "args[2]"]),
        ("Part parts[3];", []),
        ("const A* values[4] = {};", []),
        ('m.def("args[0]");', []),
    ],
)
def test_positions_in_cpp(source, found):
    assert texts(structure.cpp_positions(source, HEADER)) == found


def test_schemas():
    python = 'def f():\n  "Takes (Tensor) and gives -> (a)."\n  return "(Tensor a) -> (Tensor b)"'
    assert [place.line for place in structure.schemas(python, FILE)] == [3]
    assert texts(structure.schemas('f"({given}) -> ({results})"', FILE)) == ["schema"]
    cpp = 'int a;\nm.def("f(Tensor a)"\n      " -> (Tensor b)");'
    assert [place.line for place in structure.schemas(cpp, HEADER)] == [2]
    assert not list(structure.schemas(f"// python -m scripts.generate_records\n{cpp}", HEADER))


CPP = """\
#define OPENS {
namespace ntm { // {
constexpr int kSome[2] = {1, 2};
template <typename A, int N = 2>
struct alignas(16) LstmUnit {
  A hidden{};
  explicit LstmUnit(A gate) : hidden(gate), cell{gate} {
    if (gate) return;
  }
  __device__ A& operator()(int row, Pair<A, A> word) const { return at[row]; }
 private:
  A cell;
};
enum class Fold { scores, powers };

template <typename A, typename F>
__global__ void __launch_bounds__(kMost<A>, 1) shift_kernel(
    const Params params, F f = [](int, int) {}) {
  each([&](int i) {
    f(i, "}");
  });
}
extern "C" int run(void) { return 0; }
}  // namespace ntm
"""


def test_definitions_in_cpp():
    found = [
        (one.name, one.line, one.lines, one.parameters, one.is_type)
        for one in functions.in_cpp(CPP, HEADER)
    ]
    assert found == [
        ("LstmUnit", 5, 9, 0, True),
        ("LstmUnit", 7, 3, 1, False),
        ("operator()", 10, 1, 2, False),
        ("shift_kernel", 17, 6, 2, False),
        ("run", 23, 1, 0, False),
    ]


def test_definitions_in_the_sources_end_with_a_brace():
    found = [
        (file, one)
        for file in structure.production(structure.ROOT)
        if file.suffix in functions.CPP_SUFFIXES
        for one in functions.definitions(structure.ROOT / file)
        if not one.is_type
    ]
    texts = {
        file: functions.blank((structure.ROOT / file).read_text()).splitlines() for file, _ in found
    }
    names = {(file.name, one.name) for file, one in found}
    assert {("sequence.h", "read_write_backward"), ("tiled.cu", "tiled_kernel")} <= names
    for file, one in found:
        last = texts[file][one.line + one.lines - 2]
        assert last.rstrip().endswith(("}", "};")), (file, one)


def test_definitions_in_python():
    source = (
        "class A:\n  @d\n  def f(self, a, /, b, *args, c=1):\n    def g(): pass\n    return g\n"
    )
    found = [
        (one.name, one.line, one.lines, one.parameters) for one in functions.in_python(source, FILE)
    ]
    assert found == [("A", 1, 5, 0), ("f", 3, 3, 4), ("g", 4, 1, 0)]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("content_interpolate_shift", {"content": False, "interpolate": False, "shift": False}),
        ("LstmUnitBackward", {"lstm_backward": True}),
        ("sharpen_backward", {"sharpen_backward": False}),
        ("similarity_and_read_write_backward_weightings",
         {"similarity": False, "read_backward": True, "write_backward": True}),
        ("shift_kernel", {}),
        ("finish_shift", {}),
    ],
)  # fmt: skip
def test_stages_of_a_name(name, found):
    assert {str(stage): part for stage, part in stages.stages_of(name).items()} == found


def test_a_stage_is_what_has_its_own_name_or_else_all_that_fuse_it(tmp_path):
    (tmp_path / "a.py").write_text(
        "def read(): pass\ndef read_write(): pass\ndef write_kernel(): pass\nclass Lstm: pass\n"
    )
    found = stages.find(tmp_path, "")
    names = {str(stage): [one.name for one in best] for stage, best in found.items()}
    assert names == {"read": ["read"], "write": ["read_write"], "lstm": ["Lstm"]}
    assert stages.count(found) == 2


def test_check_fails_where_a_measure_is_worse(monkeypatch, capsys):
    def measured(*found):
        monkeypatch.setattr(structure, "measures", lambda root: list(found))
        return structure.main(["--check"])

    assert measured(structure.Measure("lines", "1", "1", now=2, bound=2)) == 0
    assert measured(structure.Measure("lines", "1", "1", now=3, bound=2)) == 1
    assert "lines: expected at most 2, got 3" in capsys.readouterr().err
    assert measured(structure.Measure("stages", "1", "1", now=13, bound=14, at_least=True)) == 1


def test_glossary_says_where_the_stages_are():
    written = stages.between_markers(structure.GLOSSARY.read_text())
    current = stages.table(structure.ROOT)
    assert stages.without_lines(written) == stages.without_lines(current), (
        "docs/glossary.md is not current; write it with `python -m scripts.structure --stages`"
    )
