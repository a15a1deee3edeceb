"""Tests what withholds verdicts on suites of seeds: nothing trained, a failed reference, collapsed runs."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tensorbench.cli.tables import print_tables
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import Row
from tensorbench.reports.blocks import Block
from tensorbench.reports.loading import LoadedResults, load_results
from tensorbench.reports.report import write_report
from tensorbench.reports.summary import suite_answer, summarise
from tensorbench.reports.tables import scores_table
from tensorbench.store.store import Store

from ..stored import Result, write
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


def results_of(folder: Path, new_store: NewStore, right: Right) -> LoadedResults:
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


def block_of(results: LoadedResults) -> Block:
    return next(block for block in results.analysis.blocks if block.budget == "isorank 2")


def claimed(results: LoadedResults) -> dict[str, str]:
    """The verdicts on TensLoRA att: over both tasks, on each, and in the table."""
    (entrant,) = block_of(results).compared
    found = entrant.differences[1]
    lines = results.tables["differences"]
    return {
        "block": str(found.verdict),
        "table": lines[lines["method"] == ATT].iloc[0]["verdict"],
        **{
            setting.task: str(verdict)
            for setting, verdict in zip(entrant.settings, found.verdicts, strict=True)
        },
    }


def views(results: LoadedResults, folder: Path) -> dict[str, str]:
    """What the terminal, the first screen of the page, the tables and a notebook say first."""
    (experiment,) = results.experiments
    opened, printed = Store.existing(experiment.where, "small"), io.StringIO()
    plan = opened.plan()
    assert plan is not None
    print_tables(*summarise(opened, plan).tables("toy"), console=Console(file=printed, width=300))
    write_report("small", out=folder / "out", store=experiment.where, formats=["html", "md"], log=False)
    page = (folder / "out" / "index.html").read_text()
    return {
        "terminal": printed.getvalue(),
        "page": page.split('class="answered"><b>')[1].split("</b>")[0],
        "tables": (folder / "out" / "tables" / "tables.md").read_text().split("**")[1],
        "notebook": results.answer,
    }


def test_without_a_guard_the_same_results_have_verdicts(tmp_path: Path, new_store: NewStore) -> None:
    results = results_of(tmp_path, new_store, {})
    assert claimed(results) == {
        "table": "better by more than 1 point",
        **dict.fromkeys(("block", "digits", "textile"), "better by more than the threshold"),
    }
    assert block_of(results).guards == ()


def test_one_task_that_nothing_learnt_withholds_the_mean_everywhere(
    tmp_path: Path, new_store: NewStore
) -> None:
    right = {("digits", "head only"): 500, ("digits", "LoRA"): 490, ("digits", ATT): 520}
    results = results_of(tmp_path, new_store, right)
    shown = claimed(results)
    assert shown.pop("textile") == "better by more than the threshold"
    assert shown.pop("digits") == "no verdict: nothing trained"
    assert set(shown.values()) == {"no verdict: nothing trained on digits"}
    for name, text in views(results, tmp_path).items():
        assert text.startswith("Nothing trained on digits: "), name


def test_a_reference_no_better_than_the_head_gives_no_verdict(tmp_path: Path, new_store: NewStore) -> None:
    right = {(task, "LoRA"): 690 for task in SUITE["tasks"]}
    results = results_of(tmp_path, new_store, right)
    reason = "no verdict: LoRA is no better than a head on digits, textile"
    shown = claimed(results)
    assert shown["block"] == shown["table"] == reason
    for name, text in views(results, tmp_path).items():
        assert text.startswith("LoRA (isorank 2) scored no better than a head on digits"), name
    assert views(results, tmp_path / "again")["page"].endswith(f"No verdict is given on {ATT}.")


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
    assert shown["block"] == verdict
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
    (entrant,) = block_of(results).compared
    assert (entrant.differences[1].verdict.reason == "nothing trained") == (not trained)
    assert results.answer.startswith("Nothing trained on pairs: ") == (not trained)


def write_scores(uri: str, scores: Mapping[Any, float | str], **changes: Any) -> None:
    """Writes a suite whose trials have the score of their title or of (title, task), or diverged."""

    def result(trial: Trial, row: Row) -> Result:
        found = scores.get((row.title, row.task), scores.get(row.title, 0.8))
        if isinstance(found, str):
            return Result(failure=found)
        score = found + random.Random(f"{row.title} {trial.seed}").gauss(0, 0.002)
        measures = {Measure.SELECTED_LOSS: 1 - score, Measure.GUESSING_LOSS: 2.3}
        return Result(score=score, labels=(), answers=(), measures=measures)

    write(uri, plan_of(**SUITE | changes), result)


@pytest.mark.parametrize("others", [[], [{"method": "tenslora", "variant": "att"}]], ids=["alone", "beside"])
def test_a_task_on_which_all_seeds_diverged_leaves_no_win(
    tmp_path: Path, new_store: NewStore, others: list[Any]
) -> None:
    uri = new_store(tmp_path)
    write_scores(uri, {("LoTR", "textile"): "diverged", "LoTR": 0.9}, methods=["lora", "lotr", *others])
    analysis = load_results("small", store=uri).analysis
    entrants = [each for block in analysis.blocks for each in (*block.entrants, *block.part)]
    (lotr,) = (entrant for entrant in entrants if entrant.method == "LoTR")
    assert str(lotr.differences[1].verdict) == "undecided: seeds of LoTR diverged"


def test_seeds_and_studies_in_one_report_have_heads_of_their_own(tmp_path: Path, new_store: NewStore) -> None:
    uri, studies = new_store(tmp_path), {"studies": 3, "points": 2}
    write_scores(uri, {"head only": 0.6, "LoRA": 0.8}, methods=["head_only", "lora", "lotr"], seeds=[0, 1, 2])
    scores = {"head only": 0.7, "LoRA": 0.65}
    tuned = {"name": "tuned", "tuning": studies, "seeds": []}
    write_scores(uri, scores, methods=["head_only", "lora", "lotr"], **tuned)
    analysis = load_results("small", "tuned", store=uri).analysis
    blocks = analysis.blocks
    heads = {block.tuned: block.levels[0].scores[0] for block in blocks}
    assert heads[False] == pytest.approx(0.6, abs=0.01)
    assert heads[True] == pytest.approx(0.7, abs=0.01)
    # Studies beside them do not silence what is said of seeds.
    assert any("3 seeds per cell at most" in note for note in analysis.notes)
    # Of the seeds' own heads LoRA is better, of those of studies it is not.
    assert {block.tuned: bool(block.guards) for block in blocks} == {False: False, True: True}


def test_every_method_without_adapter_has_a_level(tmp_path: Path, new_store: NewStore) -> None:
    uri = new_store(tmp_path)
    rows = [{"method": "full", "training": {"lr": rate}, "label": f"full {rate}"} for rate in (1e-3, 1e-4)]
    write_scores(uri, {}, methods=["head_only", *rows, "lora", "lotr"])
    (block,) = load_results("small", store=uri).analysis.blocks
    assert [level.method for level in block.levels] == ["head only", "full 0.001", "full 0.0001"]


def test_a_method_without_adapter_is_compared_everywhere(tmp_path: Path, new_store: NewStore) -> None:
    uri, plan = new_store(tmp_path), plan_of(**SUITE | {"methods": ["full", "lora", "lotr"]})

    def result(trial: Trial, row: Row) -> Result:
        lost = row.family == "full" and row.task == "digits" and trial.seed == 4
        score = 0.8 + 0.1 * (row.family == "full") + random.Random(trial.id).gauss(0, 0.002)
        return Result(score=score, failure="error" if lost else "", labels=(), answers=())

    opened, printed = write(uri, plan, result), io.StringIO()
    summary = summarise(opened, plan.stored())
    print_tables(*summary.tables("toy"), console=Console(file=printed, width=300))
    told = [
        text for text in suite_answer(summary.analysis).sentences if text.startswith("Full fine-tuning: ")
    ]
    assert told
    assert told[0] in printed.getvalue()
    keys = {point.key for point in suite_answer(summary.analysis).differences}
    assert "difference from LoRA/full fine-tuning" in keys
    line = scores_table(summary.results, summary.analysis.blocks[0]).lines[-1]
    assert (line["digits"].endswith(" †"), line["textile"].endswith(" †")) == (True, False)
