"""Tests reports of unfinished suites: searches alone, duplicated runs, parts in several experiments."""

from __future__ import annotations

import re
from pathlib import Path

from tensorbench.records.words import RunKind, Status
from tensorbench.reports.reading import read
from tensorbench.store.store import Store

from ..bench import toy_suites
from ..messages import naming
from ..stored import write
from .made_up import SMALL, Call, NewStore, plan_of, result


def test_a_search_alone_is_nothing_to_report(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    uri = new_store(tmp_path)
    suite = toy_suites.write(tmp_path, search={"trials": 2}, training={"steps": 2, "batch_size": 16})
    ended = call("search", suite, "--store", uri)
    assert ended.code == 0, ended.err
    ended = call("report", suite, "--store", uri, "--out", tmp_path / "out")
    assert ended.code == 2
    assert re.search(naming("2 of a search", "a suite to run"), ended.err)
    (run,) = Store.existing(uri, "toy").records(RunKind.SUITE)
    assert run.status == Status.FINISHED


def test_runs_that_repeat_a_trial_are_noted(tmp_path: Path, new_store: NewStore) -> None:
    uri = new_store(tmp_path)
    store = write(uri, plan_of(**SMALL), result)
    (first, *_) = store.records()
    duplicate = store.client.create_run(
        store.experiment.experiment_id,
        tags={"kind": "trial", "trial_id": first.trial_id, "duplicate": "yes"},
    )
    store.client.set_terminated(duplicate.info.run_id, "FINISHED")
    assert any("1 finished run(s)" in note for note in read(uri, ["small"]).notes)


def test_a_trial_that_another_experiment_finished_is_not_missing(tmp_path: Path, new_store: NewStore) -> None:
    uri = new_store(tmp_path)
    write(uri, plan_of(**SMALL), lambda trial, row: result(trial, row) if trial.seed == 0 else None)
    write(uri, plan_of(**SMALL | {"name": "other"}), result)
    both = read(uri, ["small", "other"])
    assert both.cells["complete"].all()


def test_a_suites_file_names_its_experiment(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    uri = new_store(tmp_path)
    write(uri, plan_of(**SMALL | {"name": "toy"}), result)
    suite = toy_suites.write(tmp_path)
    ended = call("report", suite, "--store", uri, "--out", tmp_path / "out", "--format", "csv", "--no-log")
    assert ended.code == 0, ended.err
