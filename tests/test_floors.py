"""The versions that pyproject.toml admits were tried at their oldest: `.ci/floors` wrote which."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_floors_are_those_that_were_last_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons, *tried = (ROOT / ".ci" / "floors.txt").read_text(encoding="utf-8").splitlines()
    asked = set(project["dependencies"]).union(*project["optional-dependencies"].values())
    assert set(tried) == asked, "pyproject.toml has other versions than were tried: run .ci/floors"
    assert project["requires-python"].removeprefix(">=") in pythons.split()[1:]
