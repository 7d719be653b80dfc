"""How the user of a package without a compiled library gets one."""

from __future__ import annotations

from pathlib import Path


def how_to_build(library: Path, compiler: str) -> str:
    """The command that builds ``library``, and the compiler that it needs.

    ``library`` lies in the package's folder. In a checkout ``setup.py`` stands beside that folder
    and builds in place; an installed package can only be installed again.
    """
    root = library.parents[1]
    if (root / "setup.py").exists():
        command = f"`python setup.py build_ext --inplace` in {root}"
    else:
        command = (
            "`pip install --verbose --force-reinstall --no-deps SOURCES`, with the folder of the "
            "package's sources for SOURCES,"
        )
    where = f"where there is {compiler}, and else says what is missing"
    return f"{command} builds {library.name} {where}"
