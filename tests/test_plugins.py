"""Tests a plug-in in a real package, which pip installs and the program finds by its entry point."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tensorbench
from tensorbench.methods import METHODS

from .bench.programs import Program
from .fixtures import Call

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "tests" / "plugins" / "tensorbench-shared-down"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # pip builds a package in place, which two test processes must not do at once.
    source = shutil.copytree(PLUGIN, tmp_path_factory.mktemp("source") / PLUGIN.name)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, source],
        check=True,
    )
    return folder


@pytest.fixture
def installed_plugin(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # This process should look for plug-ins again, as a new one does.
    monkeypatch.syspath_prepend(installed)
    monkeypatch.setattr(METHODS, "_plugins", None)
    yield installed
    sys.modules.pop("shared_down", None)


def test_the_guide_shows_the_tested_package_in_under_70_lines() -> None:
    guide = (ROOT / "docs" / "guides" / "own-method.md").read_text()
    shown, *_ = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert shown == (PLUGIN / "shared_down.py").read_text()
    assert len(guide.partition("## What else")[0].splitlines()) < 70
    assert '"shared_down:SharedDown"' in (PLUGIN / "pyproject.toml").read_text()


def test_a_plug_in_method_is_listed_with_its_counts(installed_plugin: Path, call: Call) -> None:
    listed = call("list", "methods")
    assert listed.code == 0, listed.err
    # 4 · 768 · (1 + 36) parameters.
    assert re.search(r"shared_down\D+113,664", listed.out)


@pytest.mark.processes
def test_a_suite_can_name_a_plug_in_method(
    installed: Path, tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "name: plugin\nbackbones: [tiny-random-vit]\ntasks: [digits]\nmethods: [shared_down]\n"
        "budgets: [{isorank: 2}]\nseeds: [0]\ntraining: {steps: 2, batch_size: 8}\nfloor: none\n"
    )
    ran = Program(
        Path(tensorbench.__file__).with_name("__main__.py"),
        ("run", suite, "--store", new_store(tmp_path)),
        ROOT,
        tmp_path / "log",
        PYTHONPATH=str(installed),
    )
    assert ran.wait() == 0, ran.output()
    assert "1/1" in ran.output()
