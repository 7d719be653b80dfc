"""The training loop: resumable bit for bit, interruptible, and loud when something is wrong."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ntm_kernels import NTM, tasks
from ntm_kernels.optim import GravesRMSprop, hold_then_linear
from ntm_kernels.tasks import Task
from ntm_kernels.training.checkpoint import CheckpointError, CheckpointStore, load
from ntm_kernels.training.config import RESUMABLE, TrainConfig
from ntm_kernels.training.curriculum import Curriculum
from ntm_kernels.training.errors import TrainingError
from ntm_kernels.training.evaluation import Score, fixed_set, fresh_generator, score
from ntm_kernels.training.files import write_text
from ntm_kernels.training.locking import RunLock, is_writer
from ntm_kernels.training.metrics import MetricsLog
from ntm_kernels.training.models import (
    answer,
    build_model,
    check_device,
    compute_dtype,
    load_model,
    memory_size_of,
)
from ntm_kernels.training.progress import Progress
from ntm_kernels.training.sizes import naming_sizes

__all__ = [
    "Counters",
    "End",
    "Trainer",
    "TrainingError",
    "build_optimiser",
    "explain_giving_up",
    "load_run",
    "saved_config",
]


#: Why a training is over: it is good enough, all its sequences or those of its last stage are seen,
#: or it was given up.
End = Literal["learnt", "total", "last stage", "given up"]


@dataclass
class Counters:
    """How far a run has come.

    Attributes:
        sequences: sequences trained on.
        updates: optimiser steps.
        seconds: time spent, validations included.
        processor_seconds: of the process, for the updates alone.
        bits: cost in bits of the sequences since the last row of metrics.csv, summed.
        since_row: how many sequences these are.
        excess_bits: bits per sequence above the best possible, at the last validation.
        lowest_excess_bits: the lowest of these so far.
        learnt_at: sequences trained on when these first fell below ``learnt_bits``.
    """

    sequences: int = 0
    updates: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0
    bits: float = 0.0
    since_row: int = 0
    excess_bits: float | None = None
    lowest_excess_bits: float | None = None
    learnt_at: int | None = None


def build_optimiser(config: TrainConfig, model: nn.Module) -> Optimizer:
    """The optimiser of a configuration, unset options at its own defaults."""
    given = {"decay": config.decay, "momentum": config.momentum, "eps": config.eps}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if config.optimiser == "adam":
        return torch.optim.Adam(model.parameters(), config.lr, **options)
    options = {"decay": 0.95, "momentum": 0.9, "eps": 1e-4, **options}
    if config.optimiser == "rmsprop":
        alpha = options.pop("decay")
        return torch.optim.RMSprop(
            model.parameters(), config.lr, alpha=alpha, centered=True, **options
        )
    return GravesRMSprop(model.parameters(), config.lr, **options)


def load_run(run_dir: Path, checkpoint: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """A run's newest checkpoint, or the one given, with its contents.

    Raises:
        CheckpointError: there is none, or it is damaged; the message names an older one if there
            is one.
    """
    store = CheckpointStore(run_dir / "checkpoints")
    path = checkpoint or store.latest()
    if path is None:
        raise CheckpointError(
            f"{run_dir} holds no checkpoint: give the folder of a run (--run-dir of train)"
        )
    try:
        return path, load(path)
    except CheckpointError as error:
        if checkpoint is None and not path.exists():
            # A run that is going on has just removed it, and has a newer one.
            return load_run(run_dir)
        older = store.before(path) if path.parent.resolve() == store.folder.resolve() else None
        hint = f"; use the one before it with --checkpoint {older}" if older else ""
        raise CheckpointError(f"{error}{hint}") from error


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


def _continued(saved: TrainConfig, asked: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The configuration of a run that goes on from a checkpoint.

    It is the saved configuration, except for the fields that a resumed run may change. If the
    sequences to train on change, the schedule of the learning rate stays the one that the run began
    with.

    Returns:
        The configuration, and one line for every other field that is asked for with another value.
    """
    lengths = ("total_sequences", "last_stage_sequences")
    same_total = all(getattr(asked, name) == getattr(saved, name) for name in lengths)
    config = replace(
        saved,
        **{name: getattr(asked, name) for name in (*RESUMABLE, *lengths)},
        schedule_sequences=saved.schedule_sequences if same_total else saved.planned_sequences,
    )
    if asked.schedule_sequences in (None, saved.planned_sequences):
        asked = replace(asked, schedule_sequences=config.schedule_sequences)
    return config, config.differences(asked)


def _passed(every: int, before: int, now: int) -> bool:
    """Whether a multiple of ``every`` lies in (before, now]."""
    return now // every > before // every


class Trainer:
    """One training run in a folder of its own.

    The folder holds ``config.json``, ``metrics.csv``, ``tensorboard/`` and ``checkpoints/``. A
    trainer made with ``resume`` goes on from a checkpoint, and from there every weight, every
    random number and every row of metrics.csv (``seconds`` aside) is what it would have been had
    the run never stopped. The total of sequences may be another one than before: the rate keeps the
    schedule that the run began with, and is final after its end.

    Only one process at a time can use a run's folder. It is locked while the trainer is made and
    while it runs, not between and not after, so that a trainer that is kept for its model (in a
    notebook, say) keeps no folder. To keep the folder for longer, enter a lock of it and pass that.
    Of the processes that torchrun starts, the first writes the run; the others train and write
    nothing.

    Args:
        config: what to train and how. Its task may be of any class.
        run_dir: folder of the run; made if needed. Nothing in it is changed before :meth:`run`.
        resume: goes on from the newest checkpoint of ``run_dir``, or from the start if there is
            none yet; without it the folder must not hold a run.
        checkpoint: goes on from this checkpoint instead; later ones are removed.
        report: takes the lines that tell a person what happens.
        lock: a lock of ``run_dir`` to use instead of one of the trainer's own.

    Attributes:
        model: what is trained.
        counters: how far it has come.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is not set.
        RunInUseError: another process uses the folder.
        CheckpointError: the checkpoint is damaged, was written with other settings, or has seen
            more sequences than the total.
        TrainingError: the model needs more memory than there is.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        *,
        resume: bool = False,
        checkpoint: Path | None = None,
        report: Callable[[str], None] = print,
        lock: RunLock | None = None,
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.counters = Counters()
        self._report = report
        self._store = CheckpointStore(run_dir / "checkpoints")
        self._dtype = compute_dtype(config)

        check_device(config.device)
        torch.set_num_threads(config.threads)
        with torch.random.fork_rng(devices=[]), naming_sizes(config):
            torch.manual_seed(config.seed)
            self.model = build_model(config)
        self._parameters = list(self.model.parameters())
        self._optimiser = build_optimiser(config, self.model)
        self._schedule = self._make_schedule()
        self._curriculum = Curriculum(config)
        self._generator = fresh_generator(config.seed, "training")
        self._bits = torch.zeros((), dtype=torch.float64, device=config.device)

        self._lock = RunLock(run_dir, report) if lock is None else lock
        with self._lock:
            self._newest = self._store.newest()
            #: The checkpoint that the run goes on from; later ones are removed when it does.
            self._origin = checkpoint or self._store.latest()
            if self._origin is not None and not resume:
                raise FileExistsError(
                    f"{run_dir} already holds a run; go on with --resume, or give another --run-dir"
                )
            if self._origin is not None:
                self._restore(self._origin)
            elif resume:
                report(f"{run_dir} holds no checkpoint to resume from: starting from the beginning")

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train: :attr:`end` says why."""
        return self.end is not None

    @property
    def end(self) -> End | None:
        """Why the training is over, or None while it is not."""
        config, seen, bits = self.config, self.counters.sequences, self.counters.excess_bits
        if bits is not None and config.stop_below is not None and bits < config.stop_below:
            return "learnt"
        if seen >= config.total_sequences:
            return "total"
        begun, after = self._curriculum.last_from, config.last_stage_sequences
        if begun is not None and after is not None and seen - begun >= after:
            return "last stage"
        lowest, limit = self.counters.lowest_excess_bits, config.give_up_after
        if limit is not None and lowest is not None and seen >= limit:
            return "given up" if lowest >= config.give_up_above else None
        return None

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Trains until done, or until ``should_stop`` says so after an update.

        Either way the last thing done is a checkpoint.

        Returns:
            :attr:`done`.

        Raises:
            RunInUseError: another process uses the folder.
            TrainingError: the loss or a weight is no longer finite, the training needs more memory
                than there is, or the folder was changed since the trainer read it.
            WriteError: a file cannot be written; the checkpoints before are whole.
        """
        with self._lock, naming_sizes(self.config):
            self._begin()
            if self.done:
                self._report(self._why_done())
                return True
            return self._train(should_stop)

    def _begin(self) -> None:
        """Makes the folder's contents those that the run goes on from."""
        if not is_writer():
            self._report(
                "RANK in the environment is not 0: the process of rank 0 writes the run, this one "
                "writes nothing. Without RANK and LOCAL_RANK it writes a run of its own"
            )
            return
        if self._store.newest() != self._newest:
            raise TrainingError(
                f"{self.run_dir} was changed by another process since this trainer was made: make "
                "a new one with resume"
            )
        if self._origin is not None:
            self._store.forget_after(self._origin)
            self._newest = self._store.newest()
        text = json.dumps(self.config.to_dict(), indent=2) + "\n"
        write_text(self.run_dir / "config.json", text)

    def _train(self, should_stop: Callable[[], bool]) -> bool:
        config, counters = self.config, self.counters
        validation = fixed_set(config.task, config.validation_size, config, "validation")
        metrics = None
        if is_writer():
            metrics = MetricsLog(
                self.run_dir, counters.sequences, tensorboard=find_spec("tensorboard") is not None
            )
        progress = Progress(counters.sequences, config.total_sequences, self._report)
        started = time.perf_counter() - counters.seconds
        try:
            while not self.done:
                before, processor = counters.sequences, time.process_time()
                self._update(min(config.batch_size, config.total_sequences - before))
                counters.processor_seconds += time.process_time() - processor
                now = counters.sequences
                progress.advance(now - before)
                validate = self.end in ("total", "last stage") or _passed(
                    config.validate_every, before, now
                )
                if validate or _passed(config.log_every, before, now):
                    counters.seconds = time.perf_counter() - started
                    result = score(self.model, validation, config) if validate else None
                    self._write_row(metrics, progress, result)
                counters.seconds = time.perf_counter() - started
                stopping = should_stop()
                if self.done or stopping or _passed(config.checkpoint_every, before, now):
                    self._save(metrics)
                if stopping:
                    break
        finally:
            progress.close()
            if metrics is not None:
                metrics.close()
        return self.done

    def _update(self, batch_size: int) -> None:
        config, counters, curriculum = self.config, self.counters, self._curriculum
        self._grow()
        stage = curriculum.draw(self._generator)
        task = curriculum.stages[stage]
        batch = task.sample(batch_size, self._generator, same_length=config.same_length)
        answer_bits = int(batch.mask.sum()) * config.task.output_size
        batch = batch.to(config.device, self._dtype)
        loss = tasks.loss(answer(self.model, batch.inputs, config), batch)
        self._optimiser.zero_grad()
        loss.backward()
        if config.clip != "off":
            nn.utils.clip_grad_value_(self._parameters, config.clip)
        if config.clip_norm != "off":
            nn.utils.clip_grad_norm_(self._parameters, config.clip_norm)
        self._optimiser.step()
        if curriculum.is_last:
            self._schedule.step()
        # Summed on the device: asking for the value after every update would stall a GPU.
        self._bits += loss.detach() * (answer_bits / math.log(2))
        counters.sequences += batch_size
        counters.updates += 1
        counters.since_row += batch_size
        if curriculum.note(stage, loss, counters.sequences):
            self._report(
                f"stage {curriculum.stage + 1} of {len(curriculum.stages)} begins after "
                f"{counters.sequences:,} sequences"
            )

    def _grow(self) -> None:
        """Gives the model its larger memory from ``grow_at`` of the schedule on."""
        size = self.config.grow_memory
        if size is None or not isinstance(self.model, NTM) or self.model.memory_size == size:
            return
        due = math.ceil(self.config.grow_at * self._planned_updates)
        if self._curriculum.is_last and self._schedule.last_epoch >= due:
            self.model.memory_size = size
            self._report(
                f"the memory has {size:,} locations from {self.counters.sequences:,} sequences on"
            )

    def _write_row(
        self, metrics: MetricsLog | None, progress: Progress, result: Score | None
    ) -> None:
        counters = self.counters
        self._check_finite()
        if result is not None:
            counters.excess_bits = result.bits - result.optimal_bits
            lowest = counters.lowest_excess_bits
            counters.lowest_excess_bits = (
                counters.excess_bits if lowest is None else min(lowest, counters.excess_bits)
            )
            if counters.learnt_at is None and counters.excess_bits < self.config.learnt_bits:
                counters.learnt_at = counters.sequences
        row: dict[str, float | int | None] = {
            "sequences": counters.sequences,
            "updates": counters.updates,
            "train_bits": float(self._bits) / counters.since_row,
            "validation_bits": None if result is None else result.bits,
            "validation_wrong": None if result is None else result.wrong / result.sequences,
            "lr": float(self._schedule.get_last_lr()[0]),
            "stage": self._curriculum.stage + 1,
            "memory_size": memory_size_of(self.model),
            "seconds": round(counters.seconds, 3),
        }
        self._bits.zero_()
        counters.since_row = 0
        if metrics is not None:
            metrics.write(row)
        progress.show(row)

    def _check_finite(self) -> None:
        """Raises when the sum of losses since the last row, or a weight, is NaN or infinite."""
        broken = [n for n, p in self.model.named_parameters() if not bool(p.isfinite().all())]
        if broken or not math.isfinite(float(self._bits)):
            what = f"the weights {', '.join(broken)} are" if broken else "the loss is"
            latest = self._store.latest()
            kept = f"the last good checkpoint is {latest}" if latest else "no checkpoint was made"
            raise TrainingError(
                f"{what} no longer finite, between sequences "
                f"{self.counters.sequences - self.counters.since_row} and "
                f"{self.counters.sequences}; {kept}. Try a smaller lr or clip, or another seed"
            )

    def _save(self, metrics: MetricsLog | None) -> None:
        self._check_finite()
        self.counters.bits = float(self._bits)
        if metrics is None:
            return
        metrics.sync()
        self._origin = self._store.save(
            self.counters.sequences,
            {
                "config": self.config.to_dict(),
                "model": self.model.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "schedule": self._schedule.state_dict(),
                "curriculum": self._curriculum.state_dict(),
                "memory_size": memory_size_of(self.model),
                "generator": self._generator.get_state(),
                "counters": asdict(self.counters),
            },
        )
        self._newest = self._store.newest()

    def _restore(self, path: Path) -> None:
        path, contents = load_run(self.run_dir, path)
        saved = saved_config(path, contents["config"], type(self.config.task))
        self.config, differences = _continued(saved, self.config)
        if differences:
            raise CheckpointError(
                f"{path} was written with other settings than asked for now "
                f"({'; '.join(differences)}); leave them out to resume, or start another run"
            )
        self._schedule = self._make_schedule()
        self._curriculum = Curriculum(self.config)
        try:
            load_model(self.model, contents)
            self._optimiser.load_state_dict(contents["optimiser"])
            self._schedule.load_state_dict(contents["schedule"])
            # Older checkpoints have none, and their runs had one stage.
            if "curriculum" in contents:
                self._curriculum.load_state_dict(contents["curriculum"])
            self._generator.set_state(contents["generator"])
            self.counters = Counters(**contents["counters"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit this version: {error}") from error
        seen, total = self.counters.sequences, self.config.total_sequences
        if seen > total:
            raise CheckpointError(
                f"total_sequences must be at least {seen}, the sequences that {path} has seen, "
                f"got {total}; ask for more, or leave it out to keep the run's own"
            )
        self._bits.fill_(self.counters.bits)
        self._report(f"resumed from {path} at {self.counters.sequences:,} sequences")
        if total != self.config.planned_sequences:
            self._report(self._describe_schedule())

    @property
    def _planned_updates(self) -> int:
        return math.ceil(self.config.planned_sequences / self.config.batch_size)

    def _make_schedule(self) -> LambdaLR:
        hold, final = self.config.hold, self.config.final_lr
        return hold_then_linear(self._optimiser, self._planned_updates, hold, final)

    def _describe_schedule(self) -> str:
        """What the rate does in a run whose schedule has other sequences than its training."""
        total, planned = self.config.total_sequences, self.config.planned_sequences
        begun = f"the learning rate keeps its schedule of {planned:,} sequences"
        if total < planned:
            return f"{begun}; the run ends at {total:,}, before the rate is final"
        final = self._schedule.base_lrs[0] * self._schedule.lr_lambdas[0](self._planned_updates)
        return f"{begun}; from there to {total:,} it stays at its final value, {final:g}"

    def _why_done(self) -> str:
        """Why a run that was resumed has nothing left to train, and what would let it go on."""
        config, bits = self.config, self.counters.excess_bits
        why = {
            "total": f"all {config.total_sequences:,} sequences are seen; to train longer, give a "
            "larger --total-sequences",
            "last stage": f"the last stage has seen its {config.last_stage_sequences or 0:,} "
            "sequences; to train longer, give a larger --last-stage-sequences",
            "learnt": f"the last validation was {bits or 0:.3g} bits above the optimum, below "
            f"stop_below = {config.stop_below or 0:g}; to train longer, give a lower --stop-below",
            "given up": f"{explain_giving_up(config)}; to train longer, give a larger "
            "--give-up-after",
        }
        assert self.end is not None
        return f"nothing left to train: {why[self.end]}"


def explain_giving_up(config: TrainConfig) -> str:
    """The rule by which a run was given up."""
    return (
        f"given up, since no validation up to give_up_after = {config.give_up_after or 0:,} "
        f"sequences was below give_up_above = {config.give_up_above:g} bits above the optimum"
    )
