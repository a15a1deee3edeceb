"""Tests the report of studies in which all trials of a method diverged on a task, or on all tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.reports.advice import rate_advice, stored_advice
from tensorbench.reports.analysis import analyse
from tensorbench.reports.answers import answer
from tensorbench.reports.figures import draw
from tensorbench.reports.reading import read
from tensorbench.reports.report import write_report
from tensorbench.reports.selection import Selection
from tensorbench.reports.units import unit_of

from ..fixtures import Call
from ..stored import Result
from .made_up import Analysed, Composes, Stored, summary_of
from .made_up_studies import NAME, ONE_TASK, plan_of, result

TASK = "digits"
METHODS = ["converged_head", "full", "lora", "lotr", "fact_tt"]
TEXTS = ["html", "csv", "md", "latex", "json", "svg"]


def diverging(diverges: Callable[[Row], bool]) -> Callable[[Trial, Row], Result]:
    """The made-up results, but all trials of some rows diverged."""

    def of_trial(trial: Trial, row: Row) -> Result:
        made = result(trial, row) or Result(failure="diverged")
        return replace(made, failure="diverged" if diverges(row) else made.failure)

    return of_trial


@pytest.fixture(scope="module", params=["LoTR", "LoRA", "full fine-tuning"])
def method(request: pytest.FixtureRequest) -> str:
    """The method whose trials all diverge on `TASK`. LoRA is the reference and comes first."""
    return str(request.param)


@pytest.fixture(scope="module")
def uri(method: str, stored: Stored) -> str:
    return stored(diverging(lambda row: (row.title, row.task) == (method, TASK)), plan_of(methods=METHODS))


def test_all_trials_failed_in_every_file_of_the_report(method: str, uri: str, tmp_path: Path) -> None:
    done = write_report(NAME, out=tmp_path / "out", store=uri, formats=TEXTS, log=False)
    analysis = done.analysis
    (cell,) = (c for c in analysis.results.all_cells if (c.method, c.task) == (method, TASK))
    assert all(map(analysis.failed, cell.trials))
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
    failures = sum(analysis.failed(seed) for cell in entrant.cells for seed in cell.trials)
    assert entrant.sensitivity.failures == failures >= 16
    assert f"{method}: {failures} of {entrant.sensitivity.trials} " in figure.alternative
    assert all(np.isfinite(line["rate"]) and np.isfinite(line["seed"]) for line in tables["variance"])
    assert method not in {line["method"] for line in tables["transfer"]}


def test_no_rate_is_advised_where_all_trials_failed(method: str, uri: str, call: Call) -> None:
    analysis = analyse(read(uri, [NAME]))
    advised = {(each.cell.method, each.cell.task) for each in rate_advice(analysis)}
    every = {(c.method, c.task) for c in analysis.results.all_cells if c.studies}
    assert every - advised == {(method, TASK)}
    rows = json.loads(call("list", "methods", "--advice", uri, "--json").out)
    assert {(row["method"], row["task"]) for row in rows} == advised


def test_a_method_that_diverged_is_worse_than_one_that_did_not(method: str, uri: str) -> None:
    (block,) = analyse(read(uri, [NAME])).blocks
    assert (block.metric, block.unit.mark) == ("accuracy", "%")
    (setting,) = (setting for setting in block.settings if setting.task == TASK)
    if method == "full fine-tuning":
        (level,) = (level for level in block.levels if level.method == method)
        assert level.scores[setting] == pytest.approx(0.5, abs=0.02)
        return
    differences = {entrant.method: entrant.differences[block.k] for entrant in block.compared}
    if method == "LoTR":
        assert differences["LoTR"].on[setting].verdict.side == "worse"
        return
    # Both are above the reference, of which there is nothing but failed trials.
    for name in ("LoTR", "FacT-TT"):
        found = differences[name].on[setting]
        assert found.interval is not None
        assert found.interval[0] > 0
        assert found.verdict.reason == "LoRA is no better than a head"


def test_the_terminal_shows_the_failures(method: str, uri: str, tmp_path: Path, call: Call) -> None:
    done = call("report", NAME, "--store", uri, "--out", str(tmp_path / "out"), "--format", "md", "--no-log")
    assert done.code == 0
    assert any(f"{method} on {TASK}" in line for line in done.out.splitlines())
    lines = summary_of(uri, NAME).overview(NAME).lines
    (line,) = (line for line in lines if (line["method"], line["task"]) == (method, TASK))
    # As on the page, the score is that of chance.
    assert line["score"] == "0.5000 (4 of 4 kept trials collapsed)"
    assert line["trials"] == "0/16 ✗ diverged"


def test_an_error_of_a_method_that_always_diverged_has_the_sign_and_unit_of_its_metric(
    analysed: Analysed,
) -> None:
    def as_error(trial: Trial, row: Row) -> Result:
        made = diverging(lambda row: row.title == "LoRA")(trial, row)
        return replace(made, score=(1 - made.score) ** 0.5, tags={"metric": "rmse"})

    analysis = analysed(as_error, plan_of(**ONE_TASK, methods=METHODS))
    (block,) = analysis.blocks
    assert (block.metric, block.unit.mark) == ("rmse", "")
    (reference,) = (entrant for entrant in block.entrants if entrant.method == "LoRA")
    # Half of the shuffled answers are wrong.
    chance = pytest.approx(0.5**0.5, abs=0.02)
    assert reference.means[block.k].value == chance
    intervals = [entrant.differences[block.k].interval for entrant in block.compared]
    assert all(interval and interval[0] > 0 for interval in intervals)
    assert reference.studies[0].point == block.compared[0].studies[0].point
    (lora,) = (cell for cell in analysis.results.all_cells if cell.method == "LoRA")
    score = analysis.score(lora)
    assert score is not None
    assert (score.value, unit_of(block.metric).mark) == (chance, "")


def test_a_task_has_one_level_of_chance_whichever_trials_are_selected(stored: Stored) -> None:
    uri = stored(diverging(lambda row: False), plan_of(**ONE_TASK, methods=METHODS))
    chances = set()
    for methods in (["full"], ["lora", "lotr"], ["fact_tt"]):
        analysis = analyse(read(uri, [NAME], Selection(methods=methods)))
        chances |= {studies.chance for studies in analysis.studies.values() if studies.tuned}
    assert chances == {0.5}


def test_each_metric_of_a_task_has_its_own_chance(stored: Stored) -> None:
    def made(trial: Trial, row: Row) -> Result:
        made = diverging(lambda row: False)(trial, row)
        if trial.task.metric != "matthews":
            return made
        return replace(made, score=2 * made.score - 1, tags={"metric": "matthews"})

    metrics = ("accuracy", "matthews")
    tasks = {metric: [{"task": "digits", "metric": metric}] for metric in metrics}
    plans = [plan_of(**ONE_TASK | {"tasks": tasks[name]}, name=name, methods=METHODS) for name in metrics]
    analysis = analyse(read(stored(made, *plans), [*metrics]))
    chances = {
        (analysis.results.metrics[number], studies.chance)
        for number, studies in analysis.studies.items()
        if studies.tuned
    }
    assert chances == {("accuracy", 0.5), ("matthews", 0.0)}


def test_a_task_on_which_no_trial_finished_is_not_compared(composed: Composes) -> None:
    lost = diverging(lambda row: row.task == TASK)
    analysis = composed(lost, plan_of(methods=METHODS), formats=TEXTS).analysis
    (block,) = analysis.blocks
    assert TASK not in {setting.task for setting in block.settings}
    assert any(TASK in note for note in block.notes)
    assert all(analysis.failed(seed) for seed in analysis.results.all_seeds if seed.task == TASK)
    assert not {TASK} & {each.cell.task for each in rate_advice(analysis)}


def test_adapters_that_all_diverged_are_all_at_chance(composed: Composes) -> None:
    lost = diverging(lambda row: row.family not in ("converged_head", "full"))
    analysis = composed(lost, plan_of(**ONE_TASK, methods=METHODS), formats=TEXTS).analysis
    (block,) = analysis.blocks
    assert {entrant.sensitivity.failed for entrant in block.entrants if entrant.sensitivity} == {1.0}
    assert {each.cell.method for each in rate_advice(analysis)} == {"full fine-tuning"}
    assert "significantly" not in answer(block).replace("no method is significantly better", "")


def test_studies_that_all_diverged_give_no_advice(stored: Stored) -> None:
    lost = diverging(lambda row: row.family != "converged_head")
    uri = stored(lost, plan_of(**ONE_TASK, methods=["converged_head", "lora"]))
    with pytest.raises(UserError, match="no complete study"):
        stored_advice([uri])
