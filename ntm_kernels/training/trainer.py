"""The training loop: resumable bit for bit, interruptible, and loud when something is wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ntm_kernels import NTM, tasks
from ntm_kernels.optim import GravesRMSprop, hold_then_linear
from ntm_kernels.tasks import Batch
from ntm_kernels.training.checkpoint import CheckpointError
from ntm_kernels.training.config import RESUMABLE, TrainConfig, saved_config
from ntm_kernels.training.curriculum import Curriculum
from ntm_kernels.training.distributed import Processes
from ntm_kernels.training.errors import TrainingError
from ntm_kernels.training.evaluation import Score, fixed_set, fresh_generator, score
from ntm_kernels.training.locking import RunLock
from ntm_kernels.training.models import (
    answer,
    build_model,
    check_device,
    compute_dtype,
    load_model,
    memory_size_of,
    threads_of,
)
from ntm_kernels.training.records import NoRecords, Records
from ntm_kernels.training.sizes import naming_sizes

__all__ = [
    "Counters",
    "End",
    "Trainer",
    "TrainingError",
    "build_optimiser",
    "explain_giving_up",
    "saved_config",
]


#: Why a training is over: it is good enough, all its sequences or those of its last stage are seen,
#: or it was given up.
End = Literal["learnt", "total", "last stage", "given up"]
#: A run ends if the gradients of so many last updates were not finite: it no longer learns.
_HOPELESS = 20


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
        overflowed: updates since the last row of metrics.csv whose gradient was not finite.
        overflowed_in_a_row: how many updates in a row, up to the last one, had such a gradient.
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
    overflowed: int = 0
    overflowed_in_a_row: int = 0
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

    A trainer computes on ``config.threads`` CPU threads, and puts torch's number of threads back.

    In several processes that have joined (:func:`ntm_kernels.training.distributed.joined`), each
    trains on its part of every batch. The batches, and up to rounding the weights, are those of a
    run in one process. The process of rank 0 writes the run; the others write and report nothing,
    and need no access to the folder. A run may go on with another number of processes.

    Args:
        config: what to train and how. Its task may be of any class.
        run_dir: folder of the run; made if needed. Nothing in it is changed before :meth:`run`.
        resume: goes on from the newest checkpoint of ``run_dir``, or from the start if there is
            none yet; without it the folder must not hold a run.
        checkpoint: goes on from this checkpoint instead, a file of any name and folder. The
            checkpoints of ``run_dir`` that have seen more sequences are removed by :meth:`run`.
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
        ValueError: a batch does not divide into equal parts for the processes, or these were given
            different configurations.
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
        self._dtype = compute_dtype(config)
        self._processes = Processes()
        self._processes.require_same("the configuration", config.to_dict())
        self._processes.require_equal_parts("batch_size", config.batch_size)

        self._processes.take_gpu(config.device)
        check_device(config.device)
        with torch.random.fork_rng(devices=[]), naming_sizes(config), threads_of(config):
            torch.manual_seed(config.seed)
            self.model = build_model(config)
        self._parameters = list(self.model.parameters())
        self._optimiser = build_optimiser(config, self.model)
        self._schedule = self._make_schedule()
        self._curriculum = Curriculum(config)
        self._generator = fresh_generator(config.seed, "training")
        #: The part of ``counters.bits`` that comes from this process.
        self._bits = torch.zeros((), dtype=torch.float64, device=config.device)
        #: The counters of these names, as counted on the device.
        self._overflowed = torch.zeros((), dtype=torch.int64, device=config.device)
        self._overflowed_in_a_row = torch.zeros_like(self._overflowed)

        records = Records(run_dir, report, lock)
        self._records = records if self._processes.first else NoRecords()
        with self._records.locked():
            found = self._processes.from_first(lambda: records.find(resume, checkpoint))
            if found is not None:
                self._restore(*found)
        left = self.config.total_sequences - self.counters.sequences
        self._processes.require_equal_parts(
            "the last batch, what total_sequences leaves after whole ones,",
            left % config.batch_size,
        )
        self._called = self._processes.averaging_gradients(self.model)

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
            TrainingError: the loss or a weight is no longer finite, the gradients of the last 20
                updates or more were not, the training needs more memory than there is, or the
                folder was changed since the trainer read it.
            WriteError: a file cannot be written; the checkpoints before are whole.
        """
        with self._records.locked(), naming_sizes(self.config), threads_of(self.config):
            self._records.begin(self.config.to_dict(), self.counters.sequences)
            if self.done:
                self._records.report(self._why_done())
                return True
            return self._train(should_stop)

    def _train(self, should_stop: Callable[[], bool]) -> bool:
        config, counters = self.config, self.counters
        validation = self._processes.share(
            fixed_set(config.task, config.validation_size, config, "validation")
        )
        started = time.perf_counter() - counters.seconds
        with self._records.writing(counters.sequences, config.total_sequences):
            while not self.done:
                before, processor = counters.sequences, time.process_time()
                self._update(min(config.batch_size, config.total_sequences - before))
                counters.processor_seconds += time.process_time() - processor
                now = counters.sequences
                self._records.advance(now - before)
                validate = self.end in ("total", "last stage") or _passed(
                    config.validate_every, before, now
                )
                if validate or _passed(config.log_every, before, now):
                    counters.seconds = time.perf_counter() - started
                    self._write_row(self._validate(validation) if validate else None)
                counters.seconds = time.perf_counter() - started
                stopping = self._processes.any(should_stop())
                if self.done or stopping or _passed(config.checkpoint_every, before, now):
                    self._save()
                if stopping:
                    break
        return self.done

    def _validate(self, batches: Sequence[Batch]) -> Score:
        result = score(self.model, batches, self.config, total=self._processes.total)
        counters = self.counters
        counters.excess_bits = excess = result.bits - result.optimal_bits
        lowest = counters.lowest_excess_bits
        counters.lowest_excess_bits = excess if lowest is None else min(lowest, excess)
        if counters.learnt_at is None and counters.excess_bits < self.config.learnt_bits:
            counters.learnt_at = counters.sequences
        return result

    def _update(self, batch_size: int) -> None:
        config, counters, curriculum = self.config, self.counters, self._curriculum
        self._grow()
        stage = curriculum.draw(self._generator)
        task = curriculum.stages[stage]
        batch = task.sample(batch_size, self._generator, same_length=config.same_length)
        # Of a process, on average: the losses of the parts then have the loss of the batch as mean.
        answer_steps = int(batch.mask.sum()) / self._processes.count
        batch = self._processes.part_of(batch).to(config.device, self._dtype)
        loss = tasks.loss(answer(self._called, batch.inputs, config), batch, answer_steps)
        self._optimiser.zero_grad()
        loss.backward()
        self._clip()
        self._optimiser.step()
        if curriculum.is_last:
            self._schedule.step()
        # Summed on the device: asking for the value after every update would stall a GPU.
        self._bits += loss.detach() * (answer_steps * config.task.output_size / math.log(2))
        counters.sequences += batch_size
        counters.updates += 1
        counters.since_row += batch_size
        if not curriculum.is_last and curriculum.note(
            stage, self._processes.mean_of(loss.detach()), counters.sequences
        ):
            self._records.report(
                f"stage {curriculum.stage + 1} of {len(curriculum.stages)} begins after "
                f"{counters.sequences:,} sequences"
            )

    def _clip(self) -> None:
        """Clips the gradient. One whose norm is not finite becomes zero as a whole.

        Heads whose weightings are spread over the memory can let a gradient grow in every step of a
        sequence until it overflows, while the loss is finite. An update with it would make weights
        NaN; with a gradient of zero the run goes on.
        """
        config = self.config
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # On the device: asking for the norm after every update would stall a GPU.
        overflowed = ~norm.isfinite()
        self._overflowed += overflowed
        self._overflowed_in_a_row = (self._overflowed_in_a_row + 1) * overflowed

        if config.clip != "off":
            nn.utils.clip_grad_value_(self._parameters, config.clip)
            norm = nn.utils.get_total_norm(gradients)
        if config.clip_norm != "off":
            nn.utils.clip_grads_with_norm_(self._parameters, config.clip_norm, norm)
        # Last, since a clip by a norm that is not finite makes NaN of what was zero.
        for gradient in gradients:
            gradient.masked_fill_(overflowed, 0)

    def _grow(self) -> None:
        """Gives the model its larger memory from ``grow_at`` of the schedule on."""
        if not isinstance(self.model, NTM) or not self._curriculum.is_last:
            return
        for share, size in self.config.growth:
            due = math.ceil(share * self._planned_updates)
            if self._schedule.last_epoch >= due and self.model.memory_size < size:
                self.model.memory_size = size
                self._records.report(
                    f"the memory has {size:,} locations from {self.counters.sequences:,} sequences "
                    "on"
                )

    def _write_row(self, result: Score | None) -> None:
        counters = self.counters
        self._add_up()
        self._records.write(
            {
                "sequences": counters.sequences,
                "updates": counters.updates,
                "train_bits": counters.bits / counters.since_row,
                "validation_bits": None if result is None else result.bits,
                "validation_wrong": None if result is None else result.wrong / result.sequences,
                "lr": float(self._schedule.get_last_lr()[0]),
                "stage": self._curriculum.stage + 1,
                "memory_size": memory_size_of(self.model),
                "seconds": round(counters.seconds, 3),
            }
        )
        if counters.overflowed:
            updates = "1 update" if counters.overflowed == 1 else f"{counters.overflowed} updates"
            self._records.report(
                f"the norm of the gradient was not finite in {updates} {self._since_row}; such a "
                "gradient counts as zero"
            )
        self._bits.zero_()
        self._overflowed.zero_()
        counters.bits, counters.since_row, counters.overflowed = 0.0, 0, 0

    def _add_up(self) -> None:
        """Sets the counters that are summed on the device.

        Raises:
            TrainingError: the loss or a weight is not finite, or the gradients of the last
                updates were not.
        """
        counters = self.counters
        (counters.bits,) = self._processes.total([float(self._bits)])
        counters.overflowed = int(self._overflowed)
        counters.overflowed_in_a_row = int(self._overflowed_in_a_row)
        broken = [n for n, p in self.model.named_parameters() if not bool(p.isfinite().all())]
        if broken:
            self._fail(f"the weights {', '.join(broken)} are no longer finite, {self._since_row}")
        if not math.isfinite(counters.bits):
            self._fail(f"the loss is no longer finite, {self._since_row}")
        if counters.overflowed_in_a_row >= _HOPELESS:
            self._fail(
                f"the gradients of the last {counters.overflowed_in_a_row} updates, up to sequence "
                f"{counters.sequences}, were not finite"
            )

    @property
    def _since_row(self) -> str:
        """Which sequences were seen since the last row of metrics.csv."""
        seen = self.counters.sequences
        return f"between sequences {seen - self.counters.since_row} and {seen}"

    def _fail(self, what: str) -> NoReturn:
        raise TrainingError(
            f"{what}; {self._records.describe_last_good()}. Try a smaller lr or clip, or another "
            "seed"
        )

    def _save(self) -> None:
        self._add_up()
        self._records.save(
            self.counters.sequences,
            lambda: {
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
        # A launcher stops the others when one process ends: none may while the first one writes.
        self._processes.wait()

    def _restore(self, path: Path, contents: dict[str, Any]) -> None:
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
        self._bits.fill_(self._processes.part_of_total(self.counters.bits))
        self._overflowed.fill_(self.counters.overflowed)
        self._overflowed_in_a_row.fill_(self.counters.overflowed_in_a_row)
        self._records.report(f"resumed from {path} at {self.counters.sequences:,} sequences")
        if self.config.scheduled_sequences != self.config.planned_sequences:
            self._records.report(self._describe_schedule())

    @property
    def _planned_updates(self) -> int:
        return math.ceil(self.config.planned_sequences / self.config.batch_size)

    def _make_schedule(self) -> LambdaLR:
        hold, final = self.config.hold, self.config.final_lr
        return hold_then_linear(self._optimiser, self._planned_updates, hold, final)

    def _describe_schedule(self) -> str:
        """What the rate does in a run whose schedule has other sequences than its training."""
        total, planned = self.config.scheduled_sequences, self.config.planned_sequences
        begun = f"the learning rate keeps its schedule of {planned:,} sequences"
        if total < planned:
            return f"{begun}; the run ends at {total:,}, before the rate is final"
        final = self._schedule.base_lrs[0] * self._schedule.lr_lambdas[0](self._planned_updates)
        return f"{begun}; from there to {total:,} it stays at its final value, {final:g}"

    def _why_done(self) -> str:
        """Why a run that was resumed has nothing left to train, and what would let it go on."""
        config, end = self.config, self.end
        if end == "total":
            why = f"all {config.total_sequences:,} sequences are seen"
            more = "a larger --total-sequences"
        elif end == "last stage":
            why = f"the last stage has seen its {config.last_stage_sequences:,} sequences"
            more = "a larger --last-stage-sequences"
        elif end == "learnt":
            why = (
                f"the last validation was {self.counters.excess_bits:.3g} bits above the optimum, "
                f"below stop_below = {config.stop_below:g}"
            )
            more = "a lower --stop-below"
        else:
            why, more = explain_giving_up(config), "a larger --give-up-after"
        return f"nothing left to train: {why}; to train longer, give {more}"


def explain_giving_up(config: TrainConfig) -> str:
    """The rule by which a run was given up."""
    return (
        f"given up, since no validation up to give_up_after = {config.give_up_after:,} "
        f"sequences was below give_up_above = {config.give_up_above:g} bits above the optimum"
    )
