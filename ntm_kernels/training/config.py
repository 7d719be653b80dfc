"""Everything a training run is decided by."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from ntm_kernels import tasks
from ntm_kernels.fields import check_values
from ntm_kernels.tasks.base import Task

__all__ = [
    "RESUMABLE",
    "TESTED",
    "TrainConfig",
    "check_parameter_names",
    "saved_config",
]

Model = Literal["ntm", "lstm"]
Controller = Literal["lstm", "feedforward"]
OutputFrom = Literal["features", "read_vectors"]
Weightings = Literal["one_hot", "uniform", "zero", "learned"]
OptimiserName = Literal["graves_rmsprop", "rmsprop", "adam"]
InitialValue = float | Literal["learned"]
ClipValue = float | Literal["off"]
Dtype = Literal["float32", "float64", "bfloat16"]


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Equal configurations give equal runs on the same machine.

    The text in a field's annotation is the help of its command line option.

    Raises:
        ValueError: a field outside its range.

    >>> config = TrainConfig(tasks.make("copy"), seed=3)
    >>> config.lr, config.output_from
    (0.0001, 'features')
    >>> TrainConfig.from_dict(config.to_dict()) == config
    True
    """

    task: Task
    model: Annotated[Model, "a Neural Turing Machine, or nn.LSTM as the baseline"] = "ntm"
    controller: Annotated[Controller, "the NTM's controller"] = "lstm"
    hidden_size: Annotated[int, "width of the controller, or of the baseline"] = 100
    num_layers: Annotated[int, "layers of the controller, or of the baseline"] = 1
    memory_size: Annotated[int, "memory locations, N"] = 128
    word_size: Annotated[int, "elements of a location, M"] = 20
    num_read_heads: Annotated[int, "read heads"] = 1
    num_write_heads: Annotated[int, "write heads"] = 1
    shift_range: Annotated[int, "farthest shift of a head in one step"] = 1
    output_from: Annotated[OutputFrom, "what the output layer reads"] = "features"
    initial_memory: Annotated[InitialValue, "memory at t = 0"] = 1e-6
    initial_weightings: Annotated[Weightings, "weightings at t = 0"] = "one_hot"
    initial_read_vectors: Annotated[InitialValue, "read vectors at t = 0"] = "learned"
    initial_controller: Annotated[InitialValue, "controller state at t = 0"] = "learned"
    walking_write_heads: Annotated[
        bool, "let the write heads begin by going on to the next location in every step"
    ] = False
    stepping_read_heads: Annotated[
        bool, "let the read heads begin by going one location beyond what they find"
    ] = False

    batch_size: Annotated[int, "sequences of an update"] = 1
    same_length: Annotated[bool, "give all sequences of a batch one length"] = False
    total_sequences: Annotated[
        int, "sequences of the whole training; a resumed run may be given more or fewer"
    ] = 80_000
    optimiser: Annotated[OptimiserName, "optimiser"] = "graves_rmsprop"
    lr: Annotated[float, "learning rate"] = 1e-4
    decay: Annotated[float | None, "decay of RMSProp's averages; unset: 0.95"] = None
    momentum: Annotated[float | None, "momentum of RMSProp; unset: 0.9"] = None
    eps: Annotated[float | None, "epsilon of the optimiser; unset: 1e-4, Adam 1e-8"] = None
    clip: Annotated[ClipValue, "every gradient element is clipped to this magnitude"] = 10.0
    clip_norm: Annotated[
        ClipValue, "then the gradient of all weights together is scaled down to this norm"
    ] = "off"
    hold: Annotated[float, "share of the schedule at the full rate; it then falls linearly"] = 0.75
    final_lr: Annotated[float, "rate at the end of the schedule as a share of the full one"] = 0.02
    schedule_sequences: Annotated[
        int | None,
        "sequences of the schedule, after which the rate stays final; unset: the total, and of a "
        "resumed run the total that it began with",
    ] = None

    curriculum: Annotated[
        bool, "train on easier stages of the task first; the schedule begins with the last stage"
    ] = False
    promote_below: Annotated[
        float,
        "the next stage begins when the running cost, in bits for each answer bit, is less than "
        "this above the optimum",
    ] = 0.03
    mix_earlier: Annotated[float, "share of the updates that are of an earlier stage"] = 0.0
    last_stage_sequences: Annotated[
        int | None,
        "sequences to train on once the last stage of a curriculum has begun; unset: to the total",
    ] = None
    grow_memory: Annotated[
        int | None, "memory locations from a point of the training on, a larger N"
    ] = None
    grow_at: Annotated[
        float, "share of the schedule after which the memory grows; 0: with the last stage"
    ] = 0.6
    grow_again: Annotated[
        int | None, "memory locations from a later point on, a still larger N"
    ] = None
    grow_again_at: Annotated[float, "share of the schedule after which the memory grows again"] = (
        0.9
    )

    seed: Annotated[int, "decides the weights and the sequences"] = 0
    device: Annotated[str, "device to train on"] = "cpu"
    backend: Annotated[str | None, "backend of the NTM; unset: the package's choice"] = None
    dtype: Annotated[Dtype, "bfloat16: float32 weights, computed under autocast"] = "float32"
    threads: Annotated[int, "CPU threads; a small model is fastest on one"] = 1

    validate_every: Annotated[int, "sequences between validations"] = 1_000
    validation_size: Annotated[int, "sequences of the fixed validation set"] = 512
    checkpoint_every: Annotated[int, "sequences between checkpoints"] = 2_000
    log_every: Annotated[int, "sequences between lines of metrics.csv"] = 200
    learnt_bits: Annotated[float, "bits above the optimum that count as learnt"] = 0.1
    stop_below: Annotated[float | None, "stop at so many validation bits above the optimum"] = None
    give_up_after: Annotated[
        int | None, "sequences after which a run that is not good enough is given up; unset: never"
    ] = None
    give_up_above: Annotated[
        float, "validation bits above the optimum with which it is not good enough"
    ] = 1.0
    evaluation_size: Annotated[int, "sequences of every test at the end"] = 512
    evaluation_seed: Annotated[
        int | None, "decides the sequences of the tests; unset: the seed of the run"
    ] = None
    long_tests: Annotated[bool, "make the tests that take minutes too"] = False

    def __post_init__(self) -> None:
        if not isinstance(self.task, Task):
            raise ValueError(f"task must be a Task, got {self.task!r}; tasks.make makes one")
        tasks.check_class(type(self.task))
        check_parameter_names(type(self.task))
        check_values(TrainConfig, {f.name: getattr(self, f.name) for f in fields(self)})
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.threads > _MOST_THREADS:
            raise ValueError(f"threads must be at most {_MOST_THREADS}, got {self.threads}")
        for name in ("seed", "evaluation_seed"):
            if getattr(self, name) is not None and not -(2**63) <= getattr(self, name) < 2**64:
                raise ValueError(f"{name} must fit 64 bits, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr must be greater than 0, got {self.lr}")
        for name in ("clip", "clip_norm"):
            if getattr(self, name) != "off" and not getattr(self, name) > 0:
                raise ValueError(
                    f"{name} must be greater than 0, or off, got {getattr(self, name)}"
                )
        if self.optimiser == "adam" and (self.decay is not None or self.momentum is not None):
            raise ValueError("decay and momentum belong to RMSProp; Adam takes lr and eps alone")
        for name in ("hold", "final_lr", "mix_earlier", "grow_at", "grow_again_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.walking_write_heads and (
            self.shift_range == 0 or self.initial_weightings != "one_hot"
        ):
            raise ValueError(
                "walking_write_heads needs heads that can shift and begin on one location; set "
                "shift_range to at least 1 and initial_weightings to one_hot, or leave it out"
            )
        if self.stepping_read_heads and self.shift_range == 0:
            raise ValueError(
                "stepping_read_heads needs heads that can shift; set shift_range to at least 1, or "
                "leave it out"
            )
        self._check_stages()
        self._check_growth()

    def _check_stages(self) -> None:
        if not self.promote_below > 0:
            raise ValueError(f"promote_below must be greater than 0, got {self.promote_below}")
        if self.last_stage_sequences is not None and not self.curriculum:
            raise ValueError(
                "last_stage_sequences is for a training with a curriculum; set curriculum too, or "
                "give total_sequences"
            )
        task, stages = self.task, self.stages
        if not stages or stages[-1] != task:
            raise ValueError(f"{task.name}.curriculum() must end with the task itself, {task}")
        for stage in stages:
            if (stage.input_size, stage.output_size) != (task.input_size, task.output_size):
                raise ValueError(
                    f"every stage of {task.name}.curriculum() must have the channels of the task "
                    f"itself, {task.input_size} and {task.output_size}; got {stage.input_size} and "
                    f"{stage.output_size} of {stage}"
                )

    def _check_growth(self) -> None:
        if self.grow_again is not None and self.grow_memory is None:
            raise ValueError("grow_again is for a memory that has grown: give grow_memory too")
        if not self.growth:
            return
        if self.model != "ntm":
            raise ValueError("grow_memory is for an NTM: the LSTM baseline has no memory")
        if self.grow_again is not None and self.grow_again_at < self.grow_at:
            raise ValueError(
                f"grow_again_at must be at least grow_at = {self.grow_at}, got {self.grow_again_at}"
            )
        sizes = [self.memory_size, *(size for _, size in self.growth)]
        names = ("memory_size", "grow_memory", "grow_again")
        for (before, smaller), (name, size) in pairwise(zip(names, sizes, strict=False)):
            if size <= smaller:
                raise ValueError(f"{name} must be greater than {before} = {smaller}, got {size}")
        for name in ("initial_memory", "initial_weightings"):
            if getattr(self, name) == "learned":
                raise ValueError(
                    f"grow_memory cannot be given with {name} = learned, which fixes the number of "
                    f"locations; set {name} to another value, or leave grow_memory out"
                )

    @property
    def growth(self) -> tuple[tuple[float, int], ...]:
        """When the memory grows, as shares of the schedule, and to how many locations."""
        both = ((self.grow_at, self.grow_memory), (self.grow_again_at, self.grow_again))
        return tuple((at, size) for at, size in both if size is not None)

    @property
    def final_memory_size(self) -> int:
        """The number of locations at the end of the training."""
        return max([self.memory_size, *(size for _, size in self.growth)])

    @property
    def stages(self) -> tuple[Task, ...]:
        """The tasks to train on one after the other; the last is the task itself."""
        return self.task.curriculum() if self.curriculum else (self.task,)

    @property
    def planned_sequences(self) -> int:
        """Sequences over which the rate falls to its final value, from the last stage on."""
        if self.schedule_sequences is not None:
            return self.schedule_sequences
        return self.scheduled_sequences

    @property
    def scheduled_sequences(self) -> int:
        """Sequences of the training that the schedule is for: all, or those of the last stage."""
        if self.last_stage_sequences is not None:
            return self.last_stage_sequences
        return self.total_sequences

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {
            f.name: self.task.to_dict() if f.name == "task" else getattr(self, f.name)
            for f in fields(self)
        }

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], task_class: type[Task] | None = None
    ) -> TrainConfig:
        """The configuration that :meth:`to_dict` described.

        Args:
            values: the fields.
            task_class: the class of its task, if that is not registered. A class that only
                ``values`` name is not imported.

        Raises:
            ValueError: unknown or missing fields, an unknown task, or values of another type or
                outside their range.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a configuration must be a mapping, got {type(values).__name__}")
        values = {**_ADDED_LATER, **values}
        known, given = {f.name for f in fields(cls)}, set(values)
        if known != given:
            kinds = {"unknown": given - known, "missing": known - given}
            wrong = ", ".join(_counted(names, what) for what, names in kinds.items() if names)
            raise ValueError(
                f"this version of ntm_kernels cannot read the configuration: {wrong}; "
                "use the version that wrote it, or start a new run"
            )
        return cls(**{**values, "task": tasks.from_dict(values["task"], task_class)})

    def differences(self, other: TrainConfig) -> list[str]:
        """One line for every field that differs."""
        ours, theirs = self.to_dict(), other.to_dict()
        return [
            f"{name}: {ours[name]!r} and {theirs[name]!r}"
            for name in ours
            if ours[name] != theirs[name]
        ]


def check_parameter_names(task: type[Task]) -> None:
    """Checks that the parameters of a task can be told from the settings of a run.

    Raises:
        ValueError: a parameter has the name of an option of the command line.
    """
    shared = {f.name for f in fields(task)} & ({f.name for f in fields(TrainConfig)} | _OPTIONS)
    if shared:
        raise ValueError(
            f"the task {task.name} has parameters with the names of other options "
            f"({', '.join(sorted(shared))}): rename them"
        )


def saved_config(
    path: Path, values: Mapping[str, Any], task_class: type[Task] | None = None
) -> TrainConfig:
    """The configuration found in a file, with errors that name the file.

    Args:
        path: where it was found.
        values: what :meth:`TrainConfig.from_dict` takes.
        task_class: the class of its task, if that is not registered.

    Raises:
        ValueError: as :meth:`TrainConfig.from_dict`.
    """
    try:
        return TrainConfig.from_dict(values, task_class)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _counted(names: Set[str], what: str) -> str:
    """How many fields are unknown or missing, and the first of them.

    >>> _counted({"lr", "clip"}, "missing")
    '2 missing fields (clip, lr)'
    >>> _counted(set("abcde"), "unknown")
    '5 unknown fields (a, b, c, …)'
    """
    first = sorted(map(str, names))[:3] + ["…"] * (len(names) > 3)
    return f"{len(names)} {what} field{'s' * (len(names) > 1)} ({', '.join(first)})"


# Options of the command line that are no fields.
_OPTIONS = {
    *("run_dir", "resume", "checkpoint", "preset", "command", "help", "run", "out"),
    *("seeds", "jobs"),
}
# Fields that older configurations lack, with the values that mean what those runs did.
_ADDED_LATER: dict[str, Any] = {
    "clip_norm": "off",
    "schedule_sequences": None,
    "curriculum": False,
    "promote_below": 0.03,
    "mix_earlier": 0.0,
    "last_stage_sequences": None,
    "grow_memory": None,
    "grow_at": 0.6,
    "grow_again": None,
    "grow_again_at": 0.9,
    "give_up_after": None,
    "give_up_above": 1.0,
    "evaluation_seed": None,
    "long_tests": False,
    "walking_write_heads": False,
    "stepping_read_heads": False,
}

# Asked for millions, torch hangs.
_MOST_THREADS = 4096

#: Fields that an evaluation may change.
TESTED = ("device", "backend", "threads", "evaluation_size", "evaluation_seed", "long_tests")
#: Fields that a resumed run may change: none of them decides what is learnt.
RESUMABLE = (*TESTED, "stop_below", "give_up_after", "give_up_above")

_POSITIVE = (
    *("hidden_size", "num_layers", "memory_size", "word_size", "num_read_heads"),
    *("num_write_heads", "batch_size", "total_sequences", "threads", "validate_every"),
    *("validation_size", "checkpoint_every", "log_every", "evaluation_size"),
    *("schedule_sequences", "last_stage_sequences", "give_up_after"),
)
