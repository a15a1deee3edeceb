"""Tests the report of studies in which all trials of a method diverged on a task, or on all tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.reports.advice import rate_advice, stored_advice
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.answers import answer
from tensorbench.reports.figures import draw
from tensorbench.reports.reading import read
from tensorbench.reports.report import write_report
from tensorbench.reports.selection import Selection
from tensorbench.reports.site import standings
from tensorbench.reports.summary import summarise
from tensorbench.reports.units import unit_of
from tensorbench.store.store import Store

from ..stored import Result, write
from .made_up import NewStore
from .made_up_studies import NAME, plan_of, result

Call = Callable[..., Any]

TASK = "digits"
METHODS = ["converged_head", "full", "lora", "lotr", "fact_tt"]
ONE_TASK: dict[str, Any] = {"tasks": [TASK], "backbones": ["tiny-random-vit"]}
TEXTS = ["html", "csv", "md", "latex", "json", "svg"]


def stored(
    folder: Path, new_store: NewStore, diverges: Callable[[Row], bool], change: Any = None, **suite: Any
) -> str:
    """Writes a store in which all trials of some rows diverged. `change` replaces the other results."""

    def of_trial(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row) or Result(failure="diverged")
        made = replace(made, failure="diverged" if diverges(row) else made.failure)
        return change(made) if change else made

    uri = new_store(folder)
    write(uri, plan_of(**{"methods": METHODS} | suite), of_trial)
    return uri


def analysed(uri: str) -> Analysis:
    return analyse(read(uri, [NAME]))


@pytest.fixture(params=["LoTR", "LoRA", "full fine-tuning"])
def method(request: pytest.FixtureRequest) -> str:
    """The method whose trials all diverge on `TASK`. LoRA is the reference and comes first."""
    return str(request.param)


@pytest.fixture
def uri(method: str, tmp_path: Path, new_store: NewStore) -> str:
    return stored(tmp_path, new_store, lambda row: (row.title, row.task) == (method, TASK))


def test_all_trials_failed_in_every_file_of_the_report(method: str, uri: str, tmp_path: Path) -> None:
    done = write_report(NAME, out=tmp_path / "out", store=uri, formats=TEXTS, log=False)
    analysis = done.analysis
    assert isinstance(analysis, Analysis)
    (cell,) = (c for c in analysis.results.all_cells if (c.method, c.task) == (method, TASK))
    assert all(analysis.failed(seed) for seed in analysis.results.of_cell(cell.number))
    (note,) = (note for note in analysis.notes if "failed" in note and f"{method} on {TASK}" in note)
    texts = {name: (tmp_path / "out" / name).read_text() for name in done.files if not name.endswith(".svg")}
    for name in ("index.html", "tables/tables.md"):
        assert note in texts[name]
    for name, text in texts.items():
        if not name.endswith(".csv"):
            shown = re.sub(r"(?s)<(script|style)\b.*?</\1>|<[^>]*>", " ", text)
            assert not re.search(r"(?i)(?<![\w-])[−+-]?(nan|inf)(?![\w-])", shown), name
    trials = pd.read_csv(tmp_path / "out" / "tables" / "trials.csv")
    assert trials.loc[(trials["method"] == method) & (trials["task"] == TASK), "failed"].all()
    tables = json.loads(texts["report.json"])["tables"]
    if method == "full fine-tuning":
        return
    (line,) = (t for t in tables["sensitivity"] if (t["method"], t["task"]) == (method, TASK))
    assert (line["share_near"], line["share_failed"], line["failed_high"]) == (0, 1, 1)
    assert 0.7 < line["failed_low"] < 1
    (block,) = analysis.blocks
    # The crosses of the figure and its text agree.
    (figure,) = (figure for figure in draw(analysis)[0] if figure.name == "rates-0")
    (entrant,) = (entrant for entrant in block.entrants if entrant.method == method)
    failures = sum(analysis.failed(s) for n in entrant.cells for s in analysis.results.of_cell(n))
    assert entrant.sensitivity.failures == failures >= 16
    assert f"{method}: {failures} of {entrant.sensitivity.trials} " in figure.alternative
    assert all(np.isfinite(line["rate"]) and np.isfinite(line["seed"]) for line in tables["variance"])
    assert method not in {line["method"] for line in tables["transfer"]}


def test_no_rate_is_advised_where_all_trials_failed(method: str, uri: str, call: Call) -> None:
    analysis = analysed(uri)
    advised = {(each.method, each.task) for each in rate_advice(analysis)}
    every = {(c.method, c.task) for c in analysis.results.all_cells if c.studies}
    assert every - advised == {(method, TASK)}
    rows = json.loads(call("list", "methods", "--advice", uri, "--json").out)
    assert {(row["method"], row["task"]) for row in rows} == advised


def test_a_method_that_diverged_is_worse_than_one_that_did_not(method: str, uri: str) -> None:
    analysis = analysed(uri)
    (block,) = analysis.blocks
    assert (block.metric, block.unit.mark) == ("accuracy", "%")
    place = [setting.task for setting in block.settings].index(TASK)
    if method == "full fine-tuning":
        (level,) = (level for level in block.levels if level.method == method)
        assert level.scores[place] == pytest.approx(0.5, abs=0.02)
        return
    differences = {entrant.method: entrant.differences[block.k] for entrant in block.compared}
    if method == "LoTR":
        assert differences["LoTR"].verdicts[place].side == "worse"
        return
    # Both are above the reference, of which there is nothing but failed trials.
    for name in ("LoTR", "FacT-TT"):
        interval = differences[name].intervals[place]
        assert interval is not None
        assert interval[0] > 0
        assert differences[name].verdicts[place].reason == "LoRA is no better than a head"


def test_the_terminal_shows_the_failures(method: str, uri: str, tmp_path: Path, call: Call) -> None:
    done = call("report", NAME, "--store", uri, "--out", str(tmp_path / "out"), "--format", "md", "--no-log")
    assert done.code == 0
    assert any(f"{method} on {TASK}" in line for line in done.out.splitlines())
    summary = summarise(Store.existing(uri, NAME), plan_of(methods=METHODS).stored())
    (line,) = (
        line for line in summary.overview(NAME).lines if (line["method"], line["task"]) == (method, TASK)
    )
    assert (line["score"], line["trials"]) == ("–", "0/16 ✗ diverged")


def test_an_error_of_a_method_that_always_diverged_has_the_sign_and_unit_of_its_metric(
    tmp_path: Path, new_store: NewStore
) -> None:
    def as_error(made: Result) -> Result:
        return replace(made, score=(1 - made.score) ** 0.5, tags={"metric": "rmse"})

    uri = stored(tmp_path, new_store, lambda row: row.title == "LoRA", as_error, **ONE_TASK)
    analysis = analysed(uri)
    (block,) = analysis.blocks
    assert (block.metric, block.unit.mark) == ("rmse", "")
    (reference,) = (entrant for entrant in block.entrants if entrant.method == "LoRA")
    # Half of the shuffled answers are wrong.
    chance = pytest.approx(0.5**0.5, abs=0.02)
    assert reference.means[block.k].value == chance
    intervals = [entrant.differences[block.k].interval for entrant in block.compared]
    assert all(interval and interval[0] > 0 for interval in intervals)
    studies = analysis.studies[reference.cells[0]]
    assert studies.point == analysis.studies[block.compared[0].cells[0]].point
    (line,) = (s for s in standings(NAME, analysis) if s.cell.method == "LoRA")
    assert line.score is not None
    assert (line.score.value, unit_of(line.cell.metric).mark) == (chance, "")
    assert standings(NAME, analysis)[-1] == line


def test_a_task_has_one_level_of_chance_whichever_trials_are_selected(
    tmp_path: Path, new_store: NewStore
) -> None:
    uri = stored(tmp_path, new_store, lambda row: False, **ONE_TASK)
    chances = set()
    for methods in (["full"], ["lora", "lotr"], ["fact_tt"]):
        analysis = analyse(read(uri, [NAME], Selection(methods=methods)))
        chances |= {studies.chance for studies in analysis.studies.values()}
    assert chances == {0.5}


def test_a_task_on_which_no_trial_finished_is_not_compared(tmp_path: Path, new_store: NewStore) -> None:
    uri = stored(tmp_path, new_store, lambda row: row.task == TASK)
    done = write_report(NAME, out=tmp_path / "out", store=uri, formats=TEXTS, log=False)
    assert isinstance(done.analysis, Analysis)
    (block,) = done.analysis.blocks
    assert TASK not in {setting.task for setting in block.settings}
    assert any(TASK in note for note in block.notes)
    assert all(done.analysis.failed(s) for s in done.analysis.results.all_seeds if s.task == TASK)
    assert not {TASK} & {each.task for each in rate_advice(done.analysis)}


def test_adapters_that_all_diverged_are_all_at_chance(tmp_path: Path, new_store: NewStore) -> None:
    uri = stored(tmp_path, new_store, lambda row: row.family not in ("converged_head", "full"), **ONE_TASK)
    done = write_report(NAME, out=tmp_path / "out", store=uri, formats=TEXTS, log=False)
    assert isinstance(done.analysis, Analysis)
    (block,) = done.analysis.blocks
    assert {entrant.sensitivity.failed for entrant in block.entrants} == {1.0}
    assert {each.method for each in rate_advice(done.analysis)} == {"full fine-tuning"}
    assert "significantly" not in answer(block).replace("no method is significantly better", "")


def test_studies_that_all_diverged_give_no_advice(tmp_path: Path, new_store: NewStore) -> None:
    uri = stored(
        tmp_path,
        new_store,
        lambda row: row.family != "converged_head",
        **ONE_TASK,
        methods=["converged_head", "lora"],
    )
    with pytest.raises(UserError, match="no complete study"):
        stored_advice([uri])
