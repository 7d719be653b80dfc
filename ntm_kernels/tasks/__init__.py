"""The tasks of the paper: synthetic, made on the fly, seeded. Others can be registered.

>>> import torch
>>> from ntm_kernels import tasks
>>> task = tasks.make("copy", max_length=5)
>>> batch = task.sample(batch_size=4, generator=torch.Generator().manual_seed(0))
>>> torch.allclose(tasks.bits(torch.zeros_like(batch.targets), batch), 8.0 * (batch.lengths // 2))
True
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any, TypeVar

from ntm_kernels.tasks.associative_recall import AssociativeRecall
from ntm_kernels.tasks.base import (
    Batch,
    Task,
    Trial,
    bits,
    from_mapping,
    import_name,
    loss,
    wrong,
    wrong_bits,
)
from ntm_kernels.tasks.copy import Copy
from ntm_kernels.tasks.ngrams import NGrams, optimal_probabilities
from ntm_kernels.tasks.priority_sort import PrioritySort
from ntm_kernels.tasks.repeat_copy import RepeatCopy

__all__ = [
    "TASKS",
    "AssociativeRecall",
    "Batch",
    "Copy",
    "NGrams",
    "PrioritySort",
    "RepeatCopy",
    "Task",
    "Trial",
    "bits",
    "check_class",
    "find",
    "from_dict",
    "from_mapping",
    "import_name",
    "loss",
    "make",
    "optimal_probabilities",
    "register",
    "registered",
    "wrong",
    "wrong_bits",
]

#: Every task by its name.
TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Copy, RepeatCopy, AssociativeRecall, NGrams, PrioritySort)
}


_TaskClass = TypeVar("_TaskClass", bound=type[Task])


def register(task_class: _TaskClass) -> _TaskClass:
    """Makes a task of one's own known by its ``name``, as the paper's are; a class decorator.

    The same class defined again, as by running a cell of a notebook twice, takes the place of the
    former one.

    Raises:
        ValueError: the name is taken, or the class is none that a task can be made from.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Short(Copy):
    ...     name = "short"
    ...     max_length: int = 3
    >>> register(Short) is Short
    True
    >>> make("short", width=4)
    Short(width=4, min_length=1, max_length=3, answer_channel=False)
    >>> del TASKS["short"]
    """
    check_class(task_class)
    TASKS[task_class.name] = task_class
    return task_class


def check_class(task_class: type[Task]) -> None:
    """Checks that tasks of a class can be told from others, saved and made again.

    Raises:
        ValueError: it is no frozen dataclass, has a method missing, has a parameter called
            ``name``, or its name is that of another registered task.
    """
    where = import_name(task_class)
    if inspect.isabstract(task_class):
        missing = ", ".join(sorted(task_class.__abstractmethods__))
        raise ValueError(f"the task {where} must define {missing}")
    if "__dataclass_params__" not in vars(task_class):
        raise ValueError(f"the task {where} must be decorated with @dataclass(frozen=True)")
    if any(field.name == "name" for field in fields(task_class)):
        raise ValueError(f"the task {where} has a parameter called name, which is the task's own")
    there = TASKS.get(task_class.name)
    if there is not None and import_name(there) != where:
        raise ValueError(
            f"the task {where} is called {task_class.name!r}, which is the name of another task: "
            "give the class another name"
        )


def find(name: str) -> type[Task]:
    """The class of a registered task, or the one that ``package.module:Class`` names.

    The module is imported, which executes its code: pass only a name that the user gave.

    Raises:
        ValueError: there is no such task, module or class.

    >>> find("copy").__name__, find("ntm_kernels.tasks:NGrams").__name__
    ('Copy', 'NGrams')
    """
    if name in TASKS:
        return TASKS[name]
    module_name, colon, class_name = name.partition(":")
    if not (module_name and colon and class_name):
        raise ValueError(
            f"task must be one of {', '.join(TASKS)}, or PACKAGE.MODULE:CLASS, got {name!r}"
        )
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that is there and imports one that is not shows its own traceback.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"task {name!r}: there is no module {error.name!r}; start from the folder that holds "
            "it, or add that folder to PYTHONPATH"
        ) from error
    for part in class_name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ValueError(f"task {name!r}: {module_name} has no subclass {class_name} of Task")
    check_class(found)
    return found


def make(name: str, **parameters: Any) -> Task:
    """A registered task by its name, with parameters other than its defaults where given.

    Raises:
        ValueError: an unknown task or parameter, or a parameter outside its range.
    """
    return from_mapping(registered(name), parameters)


def registered(name: str) -> type[Task]:
    """The class of a registered task.

    Raises:
        ValueError: there is no registered task of that name.
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


def from_dict(values: Mapping[str, Any], task_class: type[Task] | None = None) -> Task:
    """The task that :meth:`Task.to_dict` described. Nothing is imported for it.

    Args:
        values: name and parameters.
        task_class: the class of the task, if it is not registered.

    Raises:
        ValueError: the name is neither that of ``task_class`` nor registered, or a parameter is
            unknown or outside its range.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"task must be a mapping with its name and parameters, got {values!r}")
    parameters = dict(values)
    name = parameters.pop("name", None)
    # A class of a script is in __main__ where the script ran, and elsewhere in its module.
    if task_class and name in (task_class.name, f"__main__:{task_class.__qualname__}"):
        return from_mapping(task_class, parameters)
    if name not in list(TASKS):
        given = "" if task_class is None else f" and not {task_class.name}, which was given"
        raise ValueError(
            f"the task is {name!r}, which is none of {', '.join(TASKS)}{given}; no class is "
            "imported because a file names it: name it yourself with --task PACKAGE.MODULE:CLASS "
            "(in Python, register it with ntm_kernels.tasks.register)"
        )
    return from_mapping(TASKS[name], parameters)
