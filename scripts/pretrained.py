"""Makes a model that comes with the package from the folder of a finished run.

    python -m scripts.pretrained RUN [NAME]

Writes ntm_kernels/weights/NAME.pt, the weights of the run's newest checkpoint, and NAME.json beside
it, which says where they come from and how good they are. NAME is that of the task unless given.
The table in docs/pictures.md is written anew.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

import ntm_kernels
from ntm_kernels import weights
from ntm_kernels.training.checkpoint import VERSION, load_run
from ntm_kernels.training.config import TrainConfig, saved_config
from ntm_kernels.training.evaluation import AS_TRAINED, fixed_set, score
from ntm_kernels.training.files import write_atomically, write_text
from ntm_kernels.training.models import memory_size_of, trained_model
from ntm_kernels.training.options import words_for, words_of
from ntm_kernels.training.presets import preset

FOLDER = Path(weights.__file__).parent
PAGE = Path("docs/pictures.md")
#: The sequences that say whether weights still do what their record says.
SAMPLE = {"seed": 20141020, "sequences": 8}


def command_of(config: TrainConfig) -> str:
    """The command that trains with a configuration.

    >>> command_of(preset("copy", seed=3, max_length=10))
    'python -m ntm_kernels train copy --max-length 10 --seed 3'
    """
    usual = preset(type(config.task))
    changed = {
        field.name: getattr(given, field.name)
        for given, default in ((config.task, usual.task), (config, usual))
        for field in fields(given)
        if field.name not in ("task", "seed")
        and getattr(given, field.name) != getattr(default, field.name)
    }
    options = words_of({**changed, "seed": config.seed})
    words = ["python", "-m", "ntm_kernels", "train", *words_for(type(config.task)), *options]
    return shlex.join(words)


def sample_score(model: torch.nn.Module, config: TrainConfig) -> dict[str, Any]:
    """The cost of the sequences of :data:`SAMPLE`, and how many are answered wrong."""
    batches = fixed_set(config.task, SAMPLE["sequences"], config, "pretrained", seed=SAMPLE["seed"])
    found = score(model, batches, config)
    return {**SAMPLE, "bits": found.bits, "wrong": found.wrong}


def read_finished(run: Path) -> tuple[TrainConfig, dict[str, Any], dict[str, Any]]:
    """The configuration, with the tests made last, the checkpoint and the evaluation of a run.

    Raises:
        CheckpointError: the run holds no checkpoint.
        ValueError: the run is not finished, or its model is not an NTM for a task of the paper.
    """
    path, contents = load_run(run)
    config = saved_config(path, contents["config"])
    if config.model != "ntm":
        raise ValueError(f"{run} trained the LSTM baseline; give the run of an NTM")
    evaluation, again = run / "evaluation.json", f"python -m ntm_kernels eval {run}"
    if not evaluation.exists():
        raise ValueError(f"{run} has no evaluation.json: let the training end, or run {again}")
    tested = json.loads(evaluation.read_text())
    if tested["checkpoint"] != path.name:
        raise ValueError(
            f"{evaluation} is of the checkpoint {tested['checkpoint']}, and the newest is "
            f"{path.name}: run {again}"
        )
    # A run can have been tested with more than it was told to: its record names these tests.
    tests = ("evaluation_size", "evaluation_seed", "long_tests")
    config = replace(config, **{name: tested["tested_with"][name] for name in tests})
    return config, contents, tested


def ship(run: Path, name: str | None = None, folder: Path = FOLDER) -> tuple[Path, Path]:
    """Writes the two files of a model, and returns them.

    Args:
        run: the folder of a finished run.
        name: of the model; unset: that of the task.
        folder: where to write.

    Raises:
        CheckpointError, ValueError: as :func:`read_finished`; ValueError also if the name is none
            that a file of the package can have.
    """
    trained, contents, tested = read_finished(run)
    name = name or trained.task.name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"NAME must be a word of small letters, digits and _, got {name!r}")
    config = replace(trained, device="cpu", backend=None)
    model = trained_model(config, contents)
    record = {
        "task": config.task.to_dict(),
        "command": command_of(trained),
        "seed": config.seed,
        **{key: tested[key] for key in ("sequences", "memory_size")},
        "results": tested["scores"],
        "sample": sample_score(model, config),
        "version": ntm_kernels.__version__,
    }
    kept = {
        "version": VERSION,
        "config": config.to_dict(),
        "model": model.state_dict(),
        "memory_size": memory_size_of(model),
        "counters": contents["counters"],
    }
    whole = io.BytesIO()
    torch.save(kept, whole)
    files = folder / f"{name}.pt", folder / f"{name}.json"
    write_atomically(files[0], lambda file: file.write(whole.getbuffer()))
    write_text(files[1], json.dumps(record, indent=2) + "\n")
    return files


def table() -> str:
    """A row of docs/pictures.md for each model."""
    rows = [
        "| name | trained by | bits per sequence | wrong | KiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in weights.available():
        record, size = weights.record(name), weights.path_of(name).stat().st_size
        found = record["results"][AS_TRAINED]
        bits, wrong = f"{found['bits']:.3g}", f"{found['wrong']:,} of {found['sequences']:,}"
        if found["optimal_bits"]:  # Even the best predictor is unsure, and so wrong.
            bits, wrong = f"{found['bits']:.2f}, the optimum is {found['optimal_bits']:.2f}", ""
        rows.append(f"| `{name}` | `{record['command']}` | {bits} | {wrong} | {size / 1024:.0f} |")
    return "\n".join(rows)


def write_page(page: Path = PAGE) -> None:
    """Writes the table of the page anew."""
    begin, end = "<!-- models: begin -->", "<!-- models: end -->"
    text = re.sub(
        f"{begin}.*?{end}",
        lambda _: f"{begin}\n\n{table()}\n\n{end}",
        page.read_text(),
        flags=re.DOTALL,
    )
    write_text(page, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.pretrained", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("name", nargs="?", metavar="NAME", help="default: that of the task")
    options = parser.parse_args(arguments)
    try:
        for file in ship(options.run, options.name):
            print(f"wrote {file} ({file.stat().st_size / 1024:.0f} KiB)")
        write_page()
    except (RuntimeError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
