"""Compares the dependencies of pyproject.toml with what is installed and with what .ci/floors last tried.

    python .ci/floors.py installed           fails unless exactly the floors are installed
    python .ci/floors.py write 3.11 3.13     writes them to .ci/floors.txt, as tried on these Pythons
    python .ci/floors.py tried               fails if .ci/floors.txt has other ones

A floor differs from what was installed if another package asks for a newer version, or this Python has no
release that old.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = set(PROJECT["dependencies"]).union(*PROJECT["optional-dependencies"].values())
# An extra that builds on another names the project itself. Upper bounds are no part of a floor.
DEPENDENCIES = sorted(each.partition(",")[0] for each in REQUIRED if not each.startswith(PROJECT["name"]))
TRIED = Path(".ci/floors.txt")


def installed() -> None:
    from packaging.requirements import Requirement
    from packaging.version import Version

    lower = []
    for requirement in map(Requirement, DEPENDENCIES):
        (floor,) = (part.version for part in requirement.specifier if part.operator == ">=")
        if Version(version(requirement.name)) != Version(floor):
            lower.append(f"{requirement.name}>={floor}: the oldest that goes is {version(requirement.name)}")
    if lower:
        sys.exit("\n".join(["pyproject.toml has floors that nothing installs:", *lower]))


def write(*pythons: str) -> None:
    TRIED.write_text("\n".join([f"python {' '.join(pythons)}", *DEPENDENCIES, ""]), encoding="utf-8")


def tried() -> None:
    pythons, *dependencies = TRIED.read_text(encoding="utf-8").splitlines()
    others = set(dependencies) ^ set(DEPENDENCIES)
    if PROJECT["requires-python"].removeprefix(">=") not in pythons.split()[1:]:
        others.add(f"python{PROJECT['requires-python']}")
    if others:
        sys.exit(f".ci/floors has not tried these dependencies: {', '.join(sorted(others))}")


if __name__ == "__main__":
    {"installed": installed, "write": write, "tried": tried}[sys.argv[1]](*sys.argv[2:])
