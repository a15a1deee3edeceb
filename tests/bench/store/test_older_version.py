"""Tests that the stores of version 0.1.0 can be read, resumed, reported and exported.

`version_0_1_0.tar.xz` has four suites, their rows in MLflow's and Optuna's tables, their artifacts and an
outbox. In these files, `@FOLDER@` stands for the folder of the store, and `@HOST@` for the machine on which
the suites ran. In that version adapters had the weight decay of heads, and epochs were selected by score. So
the suites are changed to state both, because otherwise they would describe other trials now.
"""

from __future__ import annotations

import json
import platform
import sqlite3
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensorbench.plan.make import make_plan
from tensorbench.plan.recipe import AS_HEAD
from tensorbench.plan.suite_file import load_suite
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record, latest
from tensorbench.records.search_results import AllocationResult, Redundancy, SearchResult
from tensorbench.records.words import Artifact, RunKind, Status, Tag
from tensorbench.reports import ablation
from tensorbench.reports.reading import read
from tensorbench.search.storage import open_storage
from tensorbench.store import opening
from tensorbench.store.store import Store

Call = Callable[..., Any]

ARCHIVE = Path(__file__).with_name("version_0_1_0.tar.xz")


#: The defaults of version 0.1.0 that its suites did not state, by section of a suite.
THEN = {"training": f"adapter_weight_decay: {AS_HEAD}, select: score"}
THEN |= dict.fromkeys(("tuning", "search", "allocation"), "by: score")


class Old:
    """A folder with the suites and the store of version 0.1.0."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri = folder, uri
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        for suite in folder.glob("*.yaml"):
            text = suite.read_text()
            for section, then in THEN.items():
                text = text.replace(f"\n{section}: {{", f"\n{section}: {{{then}, ")
            suite.write_text(text)
        storage = f"sqlite:///{folder / 'optuna.db'}"
        open_storage(storage)
        for database in ("mlflow", "optuna"):
            text = (folder / f"{database}.json").read_text(encoding="utf-8")
            filled = text.replace("@FOLDER@", str(folder)).replace("@HOST@", platform.node())
            _fill(folder / f"{database}.db", json.loads(filled))

    def suite(self, name: str) -> Path:
        """The suite as it was: that version added no floor."""
        path = self.folder / f"{name}.yaml"
        text = path.read_text(encoding="utf-8")
        if "floor:" not in text:
            path.write_text(f"{text.rstrip()}\nfloor: none\n", encoding="utf-8")
        return path

    def store(self, name: str) -> Store:
        return Store.existing(self.uri, name)


def _fill(database: Path, tables: dict[str, list[dict[str, Any]]]) -> None:
    """Inserts rows into tables created by the installed version of MLflow or Optuna."""
    with sqlite3.connect(database) as connection:
        for table, rows in tables.items():
            for row in rows:
                marks = ",".join("?" * len(row))
                connection.execute(f"insert into {table} ({','.join(row)}) values ({marks})", [*row.values()])
    connection.close()


@pytest.fixture
def old(tmp_path: Path, new_store: Callable[[Path], str]) -> Old:
    return Old(tmp_path, new_store(tmp_path))


def by_method(records: list[Record], method: str) -> list[Record]:
    return [record for record in records if record.tag(Tag.METHOD).startswith(method)]


def test_its_records_and_its_plan_are_read_as_stored(old: Old) -> None:
    store = old.store("old")
    records = store.records()
    assert Counter(record.status for record in records) == {Status.FINISHED: 4, Status.FAILED: 4}
    first, second = by_method(records, "LoRA")
    assert (first.score, second.score) == (first.measure(Measure.SCORE), 0.25)
    assert (first.tag(Tag.SEED), first.tag(Tag.RANKS), first.tag(Tag.BUDGETS)[:14]) == (
        "0",
        "2",
        '[{"budget": "i',
    )
    assert first.name == "LoRA 2 · digits · seed 0"
    assert first.provenance["harness"] == "0.1.0"
    assert store.curves(Measure.TRAIN_LOSS, [first.run_id])["step"].tolist() == [1, 2, 3, 4]
    assert {record.tag(Tag.FAILURE) for record in by_method(records, "TensLoRA")} == {"diverged"}
    plan = store.plan()
    assert plan is not None
    assert (plan.suite, plan.closing, plan.tuning, len(plan.rows)) == ("old", "The end.", "none", 5)
    assert plan == make_plan(load_suite(old.suite("old"))).stored()
    assert set(plan.by_id()) == {record.trial_id for record in records}


def test_its_tuned_choices_are_read(old: Old) -> None:
    plan = old.store("old-tuned").plan()
    assert plan is not None
    (row,) = plan.rows
    assert row.tuning is not None
    assert (row.tuning.chosen, row.tuning.edge, row.tuning.epochs) == ({"lr": 0.1}, ("lr",), 1)
    (planned,) = make_plan(load_suite(old.suite("old-tuned"))).stored().rows
    assert planned.tuning is not None
    # A grid tried in full has the same points in another order.
    assert set(planned.tuning.ids) == set(row.tuning.ids)


def test_its_searches_allocations_and_analyses_are_read(old: Old) -> None:
    store = old.store("old-searched")
    (search,) = store.records(RunKind.SEARCH)
    result = store.content(search, Artifact.SEARCH, SearchResult)
    assert result is not None
    assert Counter(point.state for point in result.trials) == {"COMPLETE": 8, "PRUNED": 1}
    assert result.best is not None
    assert [line.label for line in result.final] == ["best of the search", "heuristic"]
    (allocation,) = store.records(RunKind.ALLOCATION)
    allocated = store.content(allocation, Artifact.ALLOCATION, AllocationResult)
    assert allocated is not None
    assert {point.mode for point in allocated.points} == {"input"}
    statuses = Counter(record.status for record in store.records())
    assert statuses == {Status.FINISHED: 14, Status.PRUNED: 1}
    (analysed,) = [record for record in store.records() if record.tag(Tag.REDUNDANCY)]
    redundancy = store.content(analysed, Artifact.REDUNDANCY, Redundancy)
    assert redundancy is not None
    assert (redundancy.trial_id, redundancy.ranks) == (analysed.trial_id, (15, 4, 2, 1))
    assert [worth.projection for worth in redundancy.components if worth.singled == ("projection",)] == [
        "query",
        "key",
        "value",
    ]


def test_all_its_experiments_travel_in_a_pack(
    old: Old, tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    names = ["old", "old-tuned", "old-searched"]
    first = opening.pack(*names, out=tmp_path / "first.tensorbench.zip", store=old.uri)
    (tmp_path / "other").mkdir()
    uri = new_store(tmp_path / "other")
    assert {merged.name for merged in opening.unpack(first.path, store=uri)} == set(names)
    second = opening.pack(*names, out=tmp_path / "again.tensorbench.zip", store=uri)
    assert second.path.read_bytes() == first.path.read_bytes()
    # Searches and allocations still hold their trials.
    there, here = (Store.existing(where, "old-searched") for where in (old.uri, uri))
    for kind in (RunKind.SEARCH, RunKind.ALLOCATION):
        (before,), (after,) = there.records(kind), here.records(kind)

        def nested(store: Store, parent: Record) -> set[str]:
            return {record.trial_id for record in store.records() if record.tag(Tag.PARENT) == parent.run_id}

        assert nested(here, after) == nested(there, before) != set()
    ablations = [ablation.read(read(where, ["old-searched"])) for where in (old.uri, uri)]
    assert ablations[0] == ablations[1]
    assert [stored_ablation.kind for stored_ablation in ablations[0]] == [
        "search",
        "allocation",
        "redundancy",
    ]


@pytest.mark.parametrize(
    ("command", "name", "code"), [("run", "old", 1), ("run", "old-tuned", 0), ("search", "old-searched", 0)]
)
def test_its_suites_start_again_and_train_nothing(
    old: Old, call: Call, command: str, name: str, code: int
) -> None:
    before = old.store(name).records()
    ended = call(command, old.suite(name), "--store", old.uri)
    assert ended.code == code, ended.err
    assert old.store(name).records() == before


def test_unsent_records_are_sent_and_missing_trials_run(old: Old, call: Call) -> None:
    interrupted, waiting = old.store("old-stopped").records()
    assert (interrupted.status, waiting.status) == (Status.KILLED, Status.RUNNING)
    ended = call("run", old.suite("old-stopped"), "--store", old.uri)
    assert ended.code == 0, ended.err
    assert "Sent 1 record(s)" in ended.out
    assert "2 trials, 1 to run" in ended.out
    records = old.store("old-stopped").records()
    assert [record.status for record in records] == [Status.KILLED, Status.FINISHED, Status.FINISHED]
    assert latest(records)[waiting.trial_id].run_id == waiting.run_id


def test_it_is_reported_and_exported(old: Old, call: Call) -> None:
    report, export = old.folder / "report", old.folder / "export"
    ended = call("report", "old", "old-searched", "--store", old.uri, "--out", report)
    assert ended.code == 0, ended.err
    read = json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert [ablation["kind"] for ablation in read["ablations"]] == ["search", "allocation", "redundancy"]
    (first, _) = by_method(old.store("old").records(), "LoRA")
    ended = call("export", first.run_id, "--store", old.uri, "--out", export)
    assert ended.code == 0, ended.err
    assert (export / "adapter_model.safetensors").is_file()
