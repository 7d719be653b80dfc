"""torch's private names: they stand in one file, are there, and still do what they are used for."""

import ast
import re
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import ntm_kernels
from ntm_kernels import torch_private as private

PACKAGE = Path(ntm_kernels.__file__).parent
# What named tuples and ctypes have for their users, and a type that argparse gives no other name.
PUBLIC = {
    *("_asdict", "_fields", "_make", "_replace", "_length_", "_type_", "_ArgumentGroup"),
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def private_names(source: str) -> list[str]:
    """What a file imports from torch's private modules, and the private attributes that it takes
    of anything but itself."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found += [] if own else [ast.unparse(node)]
            continue
        else:
            continue
        found += [name for name in names if any(map(is_private, name.split(".")))]
    return [name for name in found if not name.startswith("ntm_kernels.")]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = torch._C._jit()", ["torch._C._jit", "torch._C"]),
        ("module._forward_hooks", ["module._forward_hooks"]),
        ("from torch.utils._pytree import tree_map", ["torch.utils._pytree.tree_map"]),
        ("import torch._dynamo", ["torch._dynamo"]),
        ("self._kept = state._replace(memory=0)", []),
        ("from torch import nn; module.__dict__", []),
    ],
)
def test_private_names_are_seen(source, found):
    assert private_names(source) == found


def test_no_other_file_has_a_private_name_of_torch():
    files = [file for file in PACKAGE.rglob("*.py") if file.name != "torch_private.py"]
    assert len(files) > 50
    found = {str(file): private_names(file.read_text()) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


def offered(tree):
    """The names that a file defines, or imports under ``as``, for others."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.asname for alias in node.names if alias.asname)
        else:
            targets = (part for part in ast.walk(node) if isinstance(part, ast.Name))
            yield from (part.id for part in targets if isinstance(part.ctx, ast.Store))


def test_every_name_is_called_here():
    tree = ast.parse(Path(private.__file__).read_text())
    names = {name for name in offered(tree) if not name.startswith("_")}
    assert {"tree_map", "foreach_add", "foreach_add_", "is_batched", "after_autograd"} <= names
    calls = set(re.findall(r"private\.(\w+)", Path(__file__).read_text()))
    assert names - calls == set()


def test_gradients_are_seen():
    weight, constant = torch.ones(2, requires_grad=True), torch.ones(2)
    assert private.any_requires_grad(constant, weight)
    assert not private.any_requires_grad(constant)


def test_below_autograd_nothing_is_recorded():
    weight = torch.ones(2, requires_grad=True)
    with private.below_autograd():
        assert not (2 * weight).requires_grad
    assert (2 * weight).requires_grad
    assert not private.after_autograd.has(torch._C.DispatchKey.AutogradCPU)
    assert private.after_autograd.has(torch._C.DispatchKey.CPU)


def test_softmax_backward():
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weightings, grad = scores.softmax(-1), torch.randn(3, 4, dtype=torch.float64)
    (expected,) = torch.autograd.grad(weightings, scores, grad)
    found = private.softmax_backward(grad, weightings.detach(), -1, torch.float64)
    torch.testing.assert_close(found, expected)


def test_the_transforms_of_torch_func():
    def innermost(x):
        keys.append(private.innermost_transform().key())
        return x.sum()

    keys: list[object] = []
    assert private.innermost_transform() is None
    torch.func.grad(innermost)(torch.ones(2))
    torch.func.vmap(innermost)(torch.ones(2, 2))
    torch.func.jvp(innermost, (torch.ones(2),), (torch.ones(2),))
    assert keys == list(private.FUNCTION_TRANSFORMS)


def test_batched_tensors():
    seen = []
    torch.func.vmap(lambda x: seen.append(private.is_batched(x)) or x)(torch.ones(2, 2))
    assert seen == [True]
    assert not private.is_batched(torch.ones(2))


def test_differentiated_tensors():
    seen = []
    for transform in (torch.func.grad, torch.func.vmap):
        transform(lambda x: seen.append(private.is_differentiated(x)) or x.sum())(torch.ones(2))
    assert seen == [True, False]
    assert not private.is_differentiated(torch.ones(2, requires_grad=True))


def test_forward_mode():
    assert not private.in_forward_ad()
    with forward_ad.dual_level():
        assert private.in_forward_ad()
        dual = forward_ad.make_dual(torch.ones(2), torch.full((2,), 3.0))
        tangent = private.tangent_of(dual)
        assert tangent is not None
        assert torch.equal(tangent, torch.full((2,), 3.0))
        assert private.tangent_of(torch.ones(2)) is None


def test_modes_are_counted():
    before = private.dispatch_modes()
    with TorchDispatchMode():
        assert private.dispatch_modes() == before + 1


def test_one_call_for_a_list():
    def lists():
        return [torch.full((2,), 2.0)], [torch.full((2,), 3.0)]

    one, other = lists()
    assert private.foreach_add(one, 1.0)[0].tolist() == [3, 3]
    assert private.foreach_addcmul(one, other, other, 2.0)[0].tolist() == [20, 20]
    for call, result in (
        (lambda a, b: private.foreach_add_(a, b), 5),
        (lambda a, b: private.foreach_mul_(a, 4.0), 8),
        (lambda a, b: private.foreach_addcmul_(a, b, b, 2.0), 20),
        (lambda a, b: private.foreach_addcdiv_(a, b, b, 2.0), 4),
        (lambda a, b: private.foreach_lerp_(a, b, 0.5), 2.5),
        (lambda a, b: private.foreach_clamp_min_(a, 3.0), 3),
        (lambda a, b: private.foreach_sqrt_(a), 2**0.5),
    ):
        one, other = lists()
        call(one, other)
        torch.testing.assert_close(one[0], torch.full((2,), float(result)))


def test_hooks_are_seen():
    module = nn.Linear(2, 2)
    assert not private.has_call_hooks(module)
    for register in (
        lambda: module.register_forward_hook(lambda *args: None),
        lambda: module.register_full_backward_hook(lambda *args: None),
        lambda: module.register_full_backward_pre_hook(lambda *args: None),
        lambda: nn.modules.module.register_module_forward_hook(lambda *args: None),
    ):
        hook = register()
        assert private.has_call_hooks(module)
        hook.remove()
        assert not private.has_call_hooks(module)


def test_pre_hooks_parts_and_parameters():
    module, before = nn.Linear(2, 2), lambda *args: None
    outer = nn.Sequential(module)
    module.register_forward_pre_hook(before)
    assert list(private.forward_pre_hooks(module).values()) == [before]
    assert private.parameters_of(module)["weight"] is module.weight
    assert private.modules_of(outer)["0"] is module


def test_views_have_a_base():
    whole = torch.ones(4)
    assert private.base_of(whole[1:]) is whole
    assert private.base_of(whole) is None


def test_wrappers_trees_and_tracing():
    class Wrapper(torch.Tensor):
        def __tensor_flatten__(self):
            return [], None

        @staticmethod
        def __tensor_unflatten__(inner, meta, size, stride):
            raise NotImplementedError

    assert private.is_traceable_wrapper(torch.ones(2).as_subclass(Wrapper))
    assert not private.is_traceable_wrapper(torch.ones(2))
    nest = {"state": (1, [2, 3])}
    leaves, tree = private.tree_flatten(nest)
    assert leaves == private.tree_leaves(nest) == [1, 2, 3]
    assert tree.unflatten([2, 4, 6]) == private.tree_map(lambda x: 2 * x, nest)
    Pair = namedtuple("Pair", "first second")
    private.register_namedtuple(Pair, serialized_type_name="tests.Pair")
    assert private.tree_map(lambda x: 2 * x, Pair(1, 2)) == Pair(2, 4)
    traced = []
    torch.jit.trace(lambda x: traced.append(private.is_tracing()) or x, torch.ones(2))
    assert True in traced
    assert not private.is_tracing()


def test_the_mark_is_that_of_torch():
    def ours():
        pass

    def theirs():
        pass

    assert private.assume_constant_result(ours) is ours
    assert vars(ours) == vars(torch.compiler.assume_constant_result(theirs)) != {}
