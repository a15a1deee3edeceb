"""A plug-in as its author makes it: a package of its own, installed by pip, found by its entry point."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "tests" / "plugins" / "tensorbench-shared-down"

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, PLUGIN],
        check=True,
    )
    return folder


def program(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_guide_shows_the_tested_package_in_under_60_lines() -> None:
    guide = (ROOT / "docs" / "adding-a-method.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert shown == (PLUGIN / "shared_down.py").read_text()
    assert len(guide.splitlines()) < 60
    assert 'shared_down = "shared_down:SharedDown"' in (PLUGIN / "pyproject.toml").read_text()


def test_it_is_listed_with_its_counts(installed: Path) -> None:
    listed = program(installed, "methods")
    assert listed.returncode == 0, listed.stderr
    # 4 · 768 · (1 + 36) parameters.
    assert re.search(r"shared_down\D+113,664", listed.stdout)


def test_a_suite_can_name_it(installed: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "name: plugin\nbackbones: [tiny-random-vit]\ntasks: [digits]\nmethods: [shared_down]\n"
        "budgets: [{isorank: 2}]\nseeds: [0]\ntraining: {steps: 2, batch_size: 8}\n"
    )
    ran = program(installed, "run", str(suite), "--store", f"sqlite:///{tmp_path / 'store.db'}")
    assert ran.returncode == 0, ran.stderr
    assert "1/1" in ran.stdout


def test_it_passes_the_conformance_checks(installed: Path) -> None:
    checked = program(installed, "check", "shared_down", "--quick")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "shared_down" in checked.stdout


def test_one_that_fails_to_import_is_named_and_the_rest_goes_on(installed: Path, tmp_path: Path) -> None:
    package = tmp_path / "broken-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[tensorbench.methods]\nbroken_one = no_such_module:Thing\n")
    site = Path(f"{tmp_path}{os.pathsep}{installed}")
    listed = program(site, "methods")
    assert listed.returncode == 0
    assert "tenslora" in listed.stdout
    assert "shared_down" in listed.stdout
    assert "'broken' that brings method 'broken_one' fails to import" in listed.stderr
    timed = program(site, "perf", "--backbone", "tiny-random-vit", "--methods", "all", "--rounds", "1")
    assert timed.returncode == 0, timed.stderr
    assert "shared_down" in timed.stdout
    assert "'broken' that brings method 'broken_one' fails to import" in timed.stderr
