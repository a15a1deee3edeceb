"""Tests reports of unfinished suites: tuning half done, searches alone, duplicated runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tensorbench.methods import UserError
from tensorbench.plan.rows import Part
from tensorbench.records.words import RunKind, Status
from tensorbench.reports.reading import WAITING, read
from tensorbench.reports.report import write_report
from tensorbench.search.tuning import with_choices
from tensorbench.store.store import Store

from ..bench import toy_suites
from ..messages import naming
from ..packs import changed, edit_json, packed
from ..stored import Result, write
from .made_up import SMALL, Call, NewStore, plan_of, result, store

TUNED = SMALL | {
    "name": "tuned",
    "methods": ["lora", "head_only", "lotr"],
    "tuning": {"trials": 2, "seeds": [7], "lr": [1e-3, 1e-2], "scale": None, "head_lr": None},
}


def half_tuned(uri: str, name: str = "tuned", final: bool = True) -> Store:
    """A store in which LoRA and the head alone are tuned, and LoTR is not yet tuned.

    If `final`, the final trials of the two have finished too.
    """
    plan = plan_of(**TUNED | {"name": name})
    done = plan.select(Part(methods=["lora", "head_only"]))
    store = write(uri, done.of("tuning"), result_of_any)
    chosen = with_choices(plan, store)
    if final:
        write(uri, chosen.of(None), lambda trial, row: result_of_any(trial, row))
    store.end(store.begin_suite(chosen), Status.FINISHED)
    return store


def result_of_any(trial: Any, row: Any) -> Result:
    return Result(score=0.5 + 0.1 * (trial.seed % 2) + 0.05 * ("LoRA" in row.title))


def test_rows_that_wait_for_their_tuning_are_missing_and_in_no_mean(
    tmp_path: Path, new_store: NewStore
) -> None:
    uri = new_store(tmp_path)
    half_tuned(uri)
    done = write_report(uri, ["tuned"], tmp_path / "out", log=False)
    study = done.analysis.study
    lotr = study.cells[study.cells["title"] == "LoTR"].iloc[0]
    assert (lotr["family"], lotr["missing"], lotr["complete"]) == ("lotr", 2, False)
    seeds = study.seeds[study.seeds["cell"] == lotr.name]
    assert set(seeds["message"]) == {WAITING}
    assert all("LoTR" not in block.methods for block in done.analysis.blocks)
    assert any(re.search(naming(1, 3, "not yet tuned"), note) for note in done.analysis.notes)
    page = (tmp_path / "out" / "index.html").read_text()
    # Both waiting seeds count, though neither has an id.
    assert "4 of 6 trials finished" in page
    assert WAITING in page


def test_the_tuning_table_marks_ties(tmp_path: Path, new_store: NewStore) -> None:
    uri = new_store(tmp_path)
    half_tuned(uri)
    write_report(uri, ["tuned"], tmp_path / "out", log=False)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    table = page[page.index('<section aria-labelledby="tuning">') :]
    lines = next(line for line in table.splitlines() if '<th scope="row">' in line).split("<tr ")[1:]
    # Both points of LoRA and of the head have one score; LoTR has chosen nothing yet.
    tied = [re.findall(r"<td[^>]*>([^<]*)</td></tr>", line)[0] for line in lines]
    assert tied == ["1", "1", "–"]


def test_two_half_tuned_experiments_are_read_together(tmp_path: Path, new_store: NewStore) -> None:
    uri = new_store(tmp_path)
    half_tuned(uri)
    half_tuned(uri, "again")
    both = read(uri, ["tuned", "again"])
    # Waiting trials are not known to be the same.
    assert len(both.cells) == 4


def test_parts_of_two_machines_are_reported_while_one_waits_for_its_tuning(
    tmp_path: Path, new_store: NewStore
) -> None:
    def waits(plan: dict[str, Any]) -> None:
        for row in plan["rows"]:
            row["trials"] = dict.fromkeys(row["trials"])
            row["tuning"] = {"trials": 2, "seeds": [7], "ids": ["0" * 16]}
        plan["trials"] = []

    packs = []
    for seed in (0, 1):
        uri = store(tmp_path / str(seed), new_store, plan_of(**SMALL | {"seeds": [seed]}))
        packs.append(packed(uri, "small", tmp_path / str(seed)))
    late = changed(packs[1], tmp_path / "late.tensorbench.zip", edit_json("plan.json", waits))
    for both in ([packs[0], late], [late, packs[0]]):
        done = write_report("", list(map(str, both)), tmp_path / "out", ["md"], force=True)
        assert [(cell.finished, cell.missing) for cell in done.analysis.study.all_cells] == [(1, 1)] * 2
        (block,) = done.analysis.blocks
        assert [comparison.method for comparison in block.comparisons] == ["TensLoRA att"]


def test_tuning_alone_is_nothing_to_report_yet(tmp_path: Path, new_store: NewStore) -> None:
    uri = new_store(tmp_path)
    half_tuned(uri, final=False)
    with pytest.raises(UserError, match=naming("4 missing", "2 not yet tuned")):
        read(uri, ["tuned"])


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


def test_a_suites_file_names_its_experiment_whatever_is_locked(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    uri = new_store(tmp_path)
    write(uri, plan_of(**SMALL | {"name": "toy"}), result)
    suite = toy_suites.write(tmp_path)
    suite.with_suffix(".lock.yaml").write_text("not: a lock")
    ended = call("report", suite, "--store", uri, "--out", tmp_path / "out", "--format", "csv", "--no-log")
    assert ended.code == 0, ended.err
