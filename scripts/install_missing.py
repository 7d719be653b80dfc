"""Installs what a make target needs and this environment lacks, and nothing else.

    python scripts/install_missing.py [--torch REQUIREMENT] [--need NAME ...] [--want NAME ...]

NAME is a package that pyproject.toml mentions; the versions stand there. What is there already is
left alone: nothing is fetched where nothing is missing, and an installed torch is never replaced.
A needed package that cannot be installed is an error, a wanted one a line that says so.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    from pip._vendor.packaging.requirements import Requirement

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        from pip._vendor import tomli as tomllib
except ModuleNotFoundError as error:
    sys.exit(f"{error}: {sys.executable} has no pip (`{sys.executable} -m ensurepip` adds it)")

PYPROJECT = tomllib.loads(Path("pyproject.toml").read_text())
REQUIREMENTS = {
    requirement.name: requirement
    for group in [
        PYPROJECT["build-system"]["requires"],
        *PYPROJECT["project"]["optional-dependencies"].values(),
    ]
    for requirement in map(Requirement, group)
}


def is_missing(requirement: Requirement) -> bool:
    try:
        return not requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return True


def install(wanted: list[Requirement]) -> bool:
    """Install with pip, holding an installed torch at its version."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        if not is_missing(Requirement("torch")):
            constraints.write(f"torch=={version('torch')}\n")
            constraints.flush()
        pip = [sys.executable, "-m", "pip", "install", "--constraint", constraints.name]
        return subprocess.run([*pip, *map(str, wanted)]).returncode == 0


def main() -> str | None:
    """Install, and return an error message or None."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch", default="torch", help="the torch to install if there is none")
    parser.add_argument("--need", nargs="*", default=[], choices=REQUIREMENTS, metavar="NAME")
    parser.add_argument("--want", nargs="*", default=[], choices=REQUIREMENTS, metavar="NAME")
    options = parser.parse_args()

    if is_missing(Requirement("torch")) and not install([Requirement(options.torch)]):
        return f"cannot install {options.torch}"
    asked = [REQUIREMENTS[name] for name in options.need + options.want]
    missing = [requirement for requirement in asked if is_missing(requirement)]
    if not missing or install(missing):
        return None
    # One that cannot be had must not keep the others away.
    failed = [r for r in missing if len(missing) == 1 or not install([r])]
    for requirement in failed:
        print(f"could not install {requirement}: what uses it will not work", file=sys.stderr)
    needed = [str(requirement) for requirement in failed if requirement.name in options.need]
    return f"cannot go on without {', '.join(needed)}" if needed else None


if __name__ == "__main__":
    sys.exit(main())
