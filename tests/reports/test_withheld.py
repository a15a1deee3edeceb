"""Tests what withholds verdicts on suites of seeds: nothing trained, a failed reference, collapsed runs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tensorbench.cli.results import print_summary
from tensorbench.plan.rows import Row
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.reports.analysis import Block
from tensorbench.reports.board import boards, heats
from tensorbench.reports.findings import findings
from tensorbench.reports.inference.effects import Answer
from tensorbench.reports.report import write_report
from tensorbench.reports.results import Results, load_results
from tensorbench.reports.summary import summarise
from tensorbench.store.store import Store

from ..stored import Result
from .made_up import NewStore, plan_of, store

ATT = "TensLoRA att"
SUITE: dict[str, Any] = {
    "name": "small",
    "tasks": ["digits", "textile"],
    "backbones": ["tiny-random-vit"],
    "methods": ["head_only", "lora", {"method": "tenslora", "variant": "att"}],
    "budgets": [{"isorank": 2}],
    "seeds": [0, 1, 2, 3, 4],
}
LABELS = np.arange(1000) % 2
#: The number of correct answers of 1,000, by task and title. Those of seed 4 are by task, title and seed.
RIGHT = {"head only": 700, "LoRA": 800, ATT: 860}
Right = Mapping[tuple[Any, ...], int]


def results_of(folder: Path, new_store: NewStore, right: Right) -> Results:
    def result(trial: Trial, row: Row) -> Result:
        key = row.task, row.title
        count = right.get((*key, trial.seed), right.get(key, RIGHT[row.title]) + trial.seed % 2)
        return Result(
            score=count / 1000,
            labels=LABELS,
            answers=np.where(np.arange(1000) < count, LABELS, 1 - LABELS),
            validation=[count / 1000],
        )

    return load_results("small", store=store(folder / "store", new_store, plan_of(**SUITE), result))


def block_of(results: Results) -> Block:
    return next(block for block in results.analysis.blocks if block.budget == "isorank 2")


def claimed(results: Results) -> dict[str, str]:
    """The verdicts on TensLoRA att by where they are shown."""
    (line,) = (line for line in findings(results, [block_of(results)]) if line.setting is None)
    (heat,) = (heat for heat in heats(results.analysis) if heat.block is block_of(results))
    shown = {
        f"board {setting.task}": str(against.verdict)
        for setting, tables in boards(results.analysis).items()
        for table in tables
        for row in table.rows
        for against in row.against
        if row.cell.method == ATT
    }
    shown["heat"] = str(next(row.mean.against.verdict for row in heat.rows if row.mean))
    lines = results.tables["comparisons"]
    own = lines[lines["method"] == ATT].iloc[0]
    shown["table"] = own["verdict"] + f": {own['reason']}" * bool(own["reason"])
    return shown | {"claim": line.claim, "block": str(block_of(results).comparisons[0].verdict)}


def views(results: Results, folder: Path) -> dict[str, str]:
    """What the terminal, the first screen of the page, the tables and a notebook say first."""
    (experiment,) = results.experiments
    opened, printed = Store.existing(experiment.where, "small"), io.StringIO()
    plan = opened.plan()
    assert plan is not None
    print_summary(Console(file=printed, width=300), summarise(opened, plan))
    write_report(experiment.where, ["small"], folder / "out", ["html", "md"], log=False)
    page = (folder / "out" / "index.html").read_text()
    return {
        "terminal": printed.getvalue(),
        "page": page.split('class="answered"><b>')[1].split("</b>")[0],
        "tables": (folder / "out" / "tables" / "tables.md").read_text().split("**")[1],
        "notebook": results.answer,
    }


def test_without_a_guard_the_same_results_have_verdicts(tmp_path: Path, new_store: NewStore) -> None:
    results = results_of(tmp_path, new_store, {})
    assert set(claimed(results).values()) >= {"better by more than the threshold", "beyond"}
    assert block_of(results).guards.sentences == ()


def test_one_task_that_nothing_learnt_withholds_the_mean_everywhere(
    tmp_path: Path, new_store: NewStore
) -> None:
    right = {("digits", "head only"): 500, ("digits", "LoRA"): 490, ("digits", ATT): 520}
    results = results_of(tmp_path, new_store, right)
    shown = claimed(results)
    assert shown.pop("board textile") == "better by more than the threshold"
    assert shown.pop("board digits") == "no verdict: nothing trained"
    assert shown.pop("claim").startswith("No verdict: nothing trained on digits.")
    assert set(shown.values()) == {"no verdict: nothing trained on digits"}
    for name, text in views(results, tmp_path).items():
        assert text.startswith("Nothing trained on digits: "), name
    ranking, (comparison,) = block_of(results).ranking, block_of(results).comparisons
    assert ranking is not None
    assert ranking.letters is None
    assert comparison.sides == (1, 1, 0)
    without = {rest.task: rest.verdict.answer for rest in comparison.without}
    assert without == {"digits": Answer.BEYOND, "textile": Answer.NONE}


def test_a_reference_no_better_than_the_head_gives_no_verdict(tmp_path: Path, new_store: NewStore) -> None:
    right = {(task, "LoRA"): 690 for task in SUITE["tasks"]}
    results = results_of(tmp_path, new_store, right)
    reason = "no verdict: LoRA is no better than a head on digits, textile"
    shown = claimed(results)
    assert shown["block"] == shown["heat"] == shown["table"] == reason
    assert shown["claim"].startswith(reason.capitalize()[:10])
    for name, text in views(results, tmp_path).items():
        assert text.startswith("LoRA (isorank 2) scored no better than a head on digits"), name
    assert views(results, tmp_path / "again")["page"].endswith("No verdict is given on any method.")


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        ({(task, ATT): 980 for task in SUITE["tasks"]}, "undecided: runs of LoRA collapsed on digits"),
        ({(task, ATT): 300 for task in SUITE["tasks"]}, "worse by more than the threshold"),
    ],
)
def test_no_method_is_better_than_a_reference_whose_runs_collapsed(
    right: Right, verdict: str, tmp_path: Path, new_store: NewStore
) -> None:
    results = results_of(tmp_path, new_store, {**right, ("digits", "LoRA", 4): 590})
    shown = claimed(results)
    assert shown["block"] == shown["heat"] == verdict
    for name, text in views(results, tmp_path).items():
        assert text.startswith("LoRA (isorank 2) failed on digits"), name


@pytest.mark.parametrize(("loss", "trained"), [(1.0, False), (1.02, False), (0.8, True)])
def test_the_loss_tells_what_trained_where_a_constant_answer_has_no_score(
    loss: float, trained: bool, tmp_path: Path, new_store: NewStore
) -> None:
    (tmp_path / "pairs.csv").write_text(
        "first,second,score\n" + "".join(f"a {n},b {n},{n % 7}\n" for n in range(96))
    )
    task = {
        "name": "pairs",
        "csv": str(tmp_path / "pairs.csv"),
        "text": ["first", "second"],
        "label": "score",
        "target": "regression",
        "metric": "pearson",
    }

    def result(trial: Trial, row: Row) -> Result:
        noise = 0.01 * (trial.seed - 2)
        measures = {Measure.SELECTED_LOSS: loss + noise, Measure.GUESSING_LOSS: 1.0}
        score = 0.1 * (1 + ("TensLoRA" in row.title)) + noise
        return Result(score=score, measures=measures, tags={"metric": "pearson"})

    plan = plan_of(
        **SUITE | {"tasks": [task], "backbones": ["tiny-random-bert"], "methods": SUITE["methods"][1:]}
    )
    results = load_results("small", store=store(tmp_path / "store", new_store, plan, result))
    (comparison,) = block_of(results).comparisons
    assert (comparison.verdict.reason == "nothing trained") == (not trained)
    assert results.answer.startswith("Nothing trained on pairs: ") == (not trained)
