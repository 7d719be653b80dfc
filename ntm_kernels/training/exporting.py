"""Files that another process runs a trained model from."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import torch

from ntm_kernels import NTM, NTMState, export
from ntm_kernels.training.files import make_folder, write_atomically

__all__ = ["FORMATS", "export_model"]


def export_model(model: NTM, folder: Path, form: str) -> list[Path]:
    """Writes a model as a program, and the state of one sequence before its first step.

    Nothing is written before both are complete, and each file is written whole or not at all.

    Args:
        model: the trained model.
        folder: made if it is not there.
        form: one of :data:`FORMATS`.

    Returns:
        The files: ``initial_state.pt`` and ``model.pt2``, or ``initial_state.npz`` and
        ``model.onnx``.

    Raises:
        ExportError: the format's packages are not installed.
        WriteError: a file cannot be written.
    """
    model.eval()
    state = model.initial_state(1).detach()
    written = FORMATS[form](model, state)
    make_folder(folder)
    for name, contents in written.items():
        _write(folder / name, contents)
    return [folder / name for name in written]


def _write(path: Path, contents: bytes) -> None:
    write_atomically(path, lambda file: file.write(contents))


def _for_torch(model: NTM, state: NTMState) -> dict[str, bytes]:
    of_model, of_state = io.BytesIO(), io.BytesIO()
    torch.export.save(export.program(model), of_model)
    torch.save(state.clone(), of_state)  # Cloned, since torch.save writes all that a view is of.
    return {"initial_state.pt": of_state.getvalue(), "model.pt2": of_model.getvalue()}


def _for_onnx(model: NTM, state: NTMState) -> dict[str, bytes]:
    of_model = export.onnx(model).model_proto.SerializeToString()
    import numpy  # Imported here because onnx, which needs it, is known to be there now.

    of_state = io.BytesIO()
    parts = {name: part.numpy() for name, part in export.named_state(state).items()}
    numpy.savez(of_state, **parts)  # type: ignore[arg-type]
    return {"initial_state.npz": of_state.getvalue(), "model.onnx": of_model}


#: What writes each format: the contents of the files by name.
FORMATS: dict[str, Callable[[NTM, NTMState], dict[str, bytes]]] = {
    "torch": _for_torch,
    "onnx": _for_onnx,
}
