"""Lists libraries for .ci/newest.

python .ci/newest.py unbounded    the requirements of the extra `test`, without upper bounds
python .ci/newest.py newer        newer releases, as requirements, of the libraries that have an upper bound
python .ci/newest.py differing    the installed versions that differ from those of constraints.txt
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = [
    Requirement(each)
    for each in (
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["methods"],
        *PROJECT["optional-dependencies"]["run"],
        *PROJECT["optional-dependencies"]["test"],
    )
    if not each.startswith(PROJECT["name"])
]
#: They take minutes to install, and the package index of this machine may have one release of them.
LARGE = ("torch", "torchvision")
#: Libraries that come in step with one that has an upper bound.
IN_STEP = ("huggingface-hub", "tokenizers", "mlflow-skinny", "mlflow-tracing")


def unbounded() -> Iterator[str]:
    for requirement in REQUIRED:
        lower = [str(part) for part in requirement.specifier if part.operator == ">="]
        yield f"{requirement.name}{','.join(lower)}"


def newer() -> Iterator[str]:
    bounded = {each.name for each in REQUIRED if any(part.operator == "<" for part in each.specifier)}
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--outdated", "--format=json", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
        text=True,
    )
    for each in json.loads(listed.stdout):
        if each["name"] in (bounded - {*LARGE}).union(IN_STEP):
            yield f"{each['name']}=={each['latest_version']}"


def differing() -> Iterator[str]:
    lines = Path("constraints.txt").read_text(encoding="utf-8").splitlines()
    every = (Requirement(line) for line in lines if line and not line.startswith("#"))
    tested = {each.name: each for each in every if each.marker is None or each.marker.evaluate()}
    found = {}
    for distribution in distributions():
        found.setdefault(canonicalize_name(distribution.name), distribution.version)
    for name, requirement in tested.items():
        if (own := found.get(name)) and not requirement.specifier.contains(own, prereleases=True):
            yield f"{name} {own} (tested: {requirement.specifier})"


if __name__ == "__main__":
    print(*{"unbounded": unbounded, "newer": newer, "differing": differing}[sys.argv[1]](), sep="\n")
