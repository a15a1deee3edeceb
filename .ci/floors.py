"""Writes the floors of pyproject.toml to a file, if they are what is installed.

Where another package asks for a newer one than pyproject.toml does, or there is no such old one for this
Python, that one was installed, and the floor in pyproject.toml says less than the truth.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version


def main(file: str) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = set(project["dependencies"]).union(*project["optional-dependencies"].values())
    lower = []
    for requirement in map(Requirement, sorted(lines)):
        (floor,) = (part.version for part in requirement.specifier if part.operator == ">=")
        if Version(version(requirement.name)) != Version(floor):
            lower.append(f"{requirement.name}>={floor}: the oldest that goes is {version(requirement.name)}")
    if lower:
        sys.exit("\n".join(["pyproject.toml has floors that nothing installs:", *lower]))
    Path(file).write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
