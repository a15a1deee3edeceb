"""Tests what happens if the code of a plug-in changes but its version does not.

Its earlier results are kept, and runs and reports mention the change.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tensorbench.backbones import BACKBONES
from tensorbench.methods import METHODS
from tensorbench.records.words import Status, Tag
from tensorbench.reports.reading import read
from tensorbench.store.changes import changed_plugins
from tensorbench.store.store import Store
from tensorbench.tasks import TASKS

from .bench.toy_runs import SHORT
from .bench.toy_suites import DIGITS, write
from .fixtures import Call
from .messages import naming
from .test_plugin_mistakes import METHOD, Site

#: The files of a plug-in with a method, a backbone and a task.
SOURCES = {
    "mine_plugin.py": METHOD + "\nfrom mine_parts.things import ENTRY, TASK\n",
    "mine_parts/__init__.py": "",
    "mine_parts/things.py": """
from tensorbench.backbones.random_weights import RandomBackbone
from tensorbench.tasks.digits import DIGITS
from tensorbench.methods import Geometry

class Task(type(DIGITS)):
    name = "mine"

ENTRY = RandomBackbone("mine", "vit", Geometry(32, 4, 2, 64), image_size=32, patch=8)
TASK = Task()
""",
}
POINTS = """[tensorbench.methods]
mine = mine_plugin:MINE
[tensorbench.backbones]
mine = mine_plugin:ENTRY
[tensorbench.tasks]
mine = mine_plugin:TASK
"""
MINE = {"methods": ["mine"], "backbones": ["mine"], "tasks": [{**DIGITS, "task": "mine"}]}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with monkeypatch.context() as patch:
        made = Site(tmp_path / "site", patch, "mine", POINTS, SOURCES)
        yield made
    made.look_again()


def notes(uri: str) -> str:
    return " ".join(read(uri, ["toy"]).notes)


def test_runs_and_reports_mention_results_of_another_source(
    site: Site, call: Call, tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    methods = [{"method": "mine", "label": "Mine"}, "lora"]
    suite = write(tmp_path, seeds=[0, 1], training=SHORT, **{**MINE, "methods": methods})
    uri = new_store(tmp_path)
    command = ("run", suite, "--store", uri)
    first = call(*command)
    assert first.code == 0, first.err
    before = {record.trial_id: record for record in Store.existing(uri, "toy").records()}
    repeated = call(*command)
    for quiet in (first.err, repeated.err, notes(uri)):
        assert "source" not in quiet

    site.change()
    changed = call(*command)
    assert changed.code == 0, changed.err
    assert "4 trials, 0 to run" in changed.out
    errors = " ".join(changed.err.split())
    assert errors.count("warning:") == 3
    assert re.search(naming("2 of 2", "method 'mine'", "`version`"), errors)
    assert re.search(naming("4 of 4", "task 'mine'"), errors)
    assert re.search(naming("backbone", "`weights_hash`"), errors)
    assert re.search(naming("toy", "2 of 2", "method 'mine'"), notes(uri))

    # No id includes the hash, and our own methods have none.
    after = Store.existing(uri, "toy").records()
    assert {record.trial_id for record in after} == set(before)
    assert {record.tag(Tag.METHOD_SOURCE)[:5] for record in after} == {"mine ", ""}

    # Another version makes other trials, so no stored result has another source.
    plugin = site.folder / "mine_plugin.py"
    plugin.write_text(plugin.read_text().replace('name = "mine"', 'name = "mine"\n    version = 7'))
    site.look_again()
    raised = call(*command, "--method", "mine")
    assert raised.code == 0, raised.err
    assert "2 trials, 2 to run" in raised.out
    assert "method 'mine'" not in raised.err


def test_a_search_reports_another_source_once(
    site: Site, call: Call, tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    search = {"trials": 2, "seeds": [9]}
    suite = write(
        tmp_path,
        training=SHORT,
        methods=["mine"],
        budgets=[{"parameters": 4000}, {"parameters": 6000}],
        search=search,
    )
    command = ("search", suite, "--store", new_store(tmp_path))
    first = call(*command)
    assert first.code == 0, first.err
    assert "source" not in first.err
    site.change()
    # Python shows a repeated warning once by itself.
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        repeated = call(*command)
    assert repeated.code == 0, repeated.err
    assert (
        " ".join(repeated.err.split()).count("with the plug-in's method 'mine' ran with another source") == 1
    )


def test_every_file_of_the_distribution_counts_and_nothing_else(site: Site) -> None:
    def hashes() -> tuple[str, ...]:
        return tuple(registry.source_hash("mine") for registry in (METHODS, TASKS, BACKBONES))

    before = hashes()
    assert len(set(before)) == 1
    assert len(before[0]) == 64
    (site.folder / "somebody_elses.py").write_text("")
    (site.package / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 2.0\n")
    site.look_again()
    assert hashes() == before
    for name in SOURCES:
        site.change(name)
        assert hashes() != before
        before = hashes()
    assert METHODS.source_hash("lora") == METHODS.source_hash("no such method") == ""


def test_an_editable_install_has_the_hash_of_its_modules(site: Site) -> None:
    listed = "__editable___mine_finder.py,,\nmine-1.0.dist-info/METADATA,,\n"
    (site.package / "RECORD").write_text(listed)
    (site.folder / "__editable___mine_finder.py").write_text("MAPPING = '/some/where'")
    site.look_again()
    before = METHODS.source_hash("mine")
    assert before
    site.change("mine_plugin.py")
    assert METHODS.source_hash("mine") != before
    # All files of the package count if the entry point is inside one.
    (site.package / "entry_points.txt").write_text("[tensorbench.tasks]\nmine = mine_parts.things:TASK\n")
    site.look_again()
    before = TASKS.source_hash("mine")
    site.change("mine_parts/__init__.py")
    assert TASKS.source_hash("mine") not in ("", before)


def test_without_the_plugin_its_trials_are_compared_with_one_another(
    site: Site, call: Call, tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    suite = write(tmp_path, seeds=[0, 1, 2], training=SHORT, methods=["mine"])
    uri = new_store(tmp_path)
    command = ("run", suite, "--store", uri)
    assert call(*command, "--seed", 0).code == 0
    site.change()
    assert call(*command).code == 0
    assert "1 of 3 finished trial(s)" in notes(uri)
    shutil.rmtree(site.package)
    site.look_again()
    assert METHODS.source_hash("mine") == ""
    assert "1 of 3 finished trial(s)" in notes(uri)
    records = Store.existing(uri, "toy").records()
    same = [record for record in records if record.tag(Tag.SEED) != "0"]
    assert [record.status for record in same] == [Status.FINISHED] * 2
    assert list(changed_plugins(same)) == []
