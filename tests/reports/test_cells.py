"""Tests reading: the runs behind each mean, the origin of each number, unfinished suites."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import Row
from tensorbench.records.words import RunKind, Status
from tensorbench.reports.reading import read
from tensorbench.reports.results import COLUMNS, Cell, Results
from tensorbench.store.store import Store

from ..bench import toy_suites
from ..fixtures import Call, NewStore
from ..messages import naming
from ..stored import Result, write
from .browsing import page_of
from .made_up import NAME, SMALL, Analysed, Stored, plan_of, result


def cell(results: Results, **where: str) -> Cell:
    (match,) = (
        cell
        for cell in results.all_cells
        if all(getattr(cell, name) == value for name, value in where.items())
    )
    return match


def test_a_cell_is_the_mean_of_its_finished_seeds(results: Results) -> None:
    line = cell(results, task="digits", budget="isorank 2", method="LoRA")
    scores = [result(trial, row).score for trial, row in _trials("LoRA", "isorank 2", "digits")]  # type: ignore[union-attr]
    assert len(scores) == 5
    assert line.mean == pytest.approx(np.mean(scores))
    assert line.sd == pytest.approx(np.std(scores, ddof=1))
    assert (line.finished, line.seeds, line.complete) == (5, 5, True)


def _trials(title: str, budget: str, task: str) -> list[tuple[Trial, Row]]:
    plan = plan_of()
    trials = {trial.id: trial for trial in plan.trials}
    return [
        (trials[id_], row)
        for row in plan.rows
        if row.title == title and row.budget == budget and row.task == task
        for id_ in row.trials.values()
    ]


def test_ranks_that_training_cuts_are_those_that_it_left(tmp_path: Path, analysed: Analysed) -> None:
    def result_of(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        if made is None or row.title == "LoRA":
            return made
        left = json.dumps({"input": [2 - trial.seed], "layer": [3, 1, 2]})
        return replace(made, tags=made.tags | {"final_ranks": left})

    analysis = analysed(result_of, plan_of(**SMALL))
    left = {cell.method: cell.left for cell in analysis.results.all_cells}
    assert left == {"LoRA": "", "TensLoRA att": "input 1 to 2, layer 1 to 3"}
    page = page_of(analysis, tmp_path).read_text(encoding="utf-8")
    assert "left: input 1 to 2, layer 1 to 3" in page


def test_lost_seeds_are_shown_and_in_no_mean(results: Results) -> None:
    failed = cell(results, task="digits", budget="isoparameters 2", method="TensLoRA depth")
    missing = cell(results, task="movie-sentiment", budget="isorank 2", method="LoTR")
    assert (failed.finished, failed.failed, failed.missing) == (4, 1, 0)
    assert (missing.finished, missing.failed, missing.missing) == (4, 0, 1)
    assert not failed.complete
    lost = results.seeds[results.seeds["status"] != "FINISHED"]
    assert set(zip(lost["status"], lost["failure"], strict=True)) == {("FAILED", "diverged"), ("MISSING", "")}
    assert lost["score"].isna().all()


def test_every_seed_is_traced_to_its_run(rich: str, results: Results) -> None:
    client = Store.existing(rich, NAME).client
    line = results.seeds[results.seeds["status"] == "FINISHED"].iloc[17]
    run = client.get_run(line["run_id"])
    assert run.data.metrics["score"] == line["score"]
    assert run.data.tags["trial_id"] == line["trial_id"]


def test_trials_shared_by_two_experiments_count_once(stored: Stored) -> None:
    changes: list[dict[str, Any]] = [{}, {"name": "other"}, {"name": "longer", "training": {"epochs": 9}}]
    uri = stored(result, *(plan_of(**SMALL | each) for each in changes))
    assert len(read(uri, ["small", "other"]).cells) == len(read(uri, ["small"]).cells)
    # The order of loading does not matter, even with an experiment of equal names and other trials between.
    for names in (["small", "longer", "other"], ["small", "other", "longer"]):
        assert len(read(uri, names).cells) == 2 * len(read(uri, ["small"]).cells)


def test_nothing_finished_is_nothing_to_report(stored: Stored) -> None:
    uri = stored(lambda trial, row: Result(failure="diverged") if trial.seed else None, plan_of(**SMALL))
    with pytest.raises(UserError, match=naming("2 failed", "2 missing")):
        read(uri, ["small"])
    Store.create(uri, "empty")
    with pytest.raises(UserError, match="no suite"):
        read(uri, ["empty"])


def test_the_frames_have_the_fields_and_measures_of_cells_and_seeds(results: Results) -> None:
    cell, seed = results.all_cells[0], results.all_seeds[0]
    assert [*cell.columns()] == ["number", *results.cells.columns]
    assert [*seed.columns()] == [*results.seeds.columns]
    summarised = {measure.column for measure in Measure if measure.summary}
    assert cell.measures.keys() == summarised < seed.measures.keys() == COLUMNS.keys()
    assert [cell.number for cell in results.all_cells] == list(results.cells.index)
    assert [seed.score for seed in results.all_seeds if not seed.finished] == [None, None]


# --- unfinished suites, repeated runs, parts in several experiments ---


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


def test_runs_that_repeat_a_trial_are_noted(stored: Stored) -> None:
    uri = stored(result, plan_of(**SMALL))
    store = Store.existing(uri, "small")
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


def test_a_suites_file_names_its_experiment(tmp_path: Path, stored: Stored, call: Call) -> None:
    uri = stored(result, plan_of(**SMALL | {"name": "toy"}))
    suite = toy_suites.write(tmp_path)
    ended = call("report", suite, "--store", uri, "--out", tmp_path / "out", "--format", "csv", "--no-log")
    assert ended.code == 0, ended.err
