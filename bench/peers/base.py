"""What adapters of public implementations share."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from bench.contenders import Contender, Unsupported
from bench.workload import Workload


class Peer(Contender):
    """An implementation in a checkout at ``path``.

    ``module`` is what is imported from there; it must not be a name that is imported already.
    """

    module: str

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        file = self.path.joinpath(*self.module.split(".")).with_suffix(".py")
        if not file.is_file():
            raise ValueError(f"{path} is no checkout of {self.name}: {file} does not exist")

    def load(self) -> Any:
        """Its module, imported from the checkout."""
        package = self.module.partition(".")[0]
        there = sys.modules.get(package)
        if there is not None and str(self.path) not in map(str, _places(there)):
            raise Unsupported(f"another package named {package!r} is imported already")
        sys.path.insert(0, str(self.path))
        try:
            return importlib.import_module(self.module)
        finally:
            sys.path.remove(str(self.path))

    def require_common(self, workload: Workload) -> None:
        """Refuse what no public implementation has."""
        if workload.controller != "lstm":
            raise Unsupported("only the LSTM controller is compared")
        if workload.num_layers > 1:
            raise Unsupported("only a controller of one layer is compared")
        if workload.shift_range != 1:
            raise Unsupported("it shifts by at most one")


def _places(package: Any) -> list[Path]:
    return [Path(place).resolve().parent for place in getattr(package, "__path__", [])]
