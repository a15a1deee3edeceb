"""Tests what withholds verdicts on suites of seeds: nothing trained, a failed reference, collapsed runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tensorbench.plan.pairs import Part
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import Row
from tensorbench.reports.answers import in_words
from tensorbench.reports.blocks import Block
from tensorbench.reports.loading import LoadedResults, load_results
from tensorbench.reports.report import write_report
from tensorbench.reports.summary import suite_answer, summarise
from tensorbench.reports.tables import scores_table
from tensorbench.store.store import Store

from ..stored import Result
from .made_up import Analysed, Stored, answered, plan_of, printed, summary_of

ATT = "TensLoRA att"
SUITE: dict[str, Any] = {
    "name": "small",
    "tasks": ["digits", "textile"],
    "backbones": ["tiny-random-vit"],
    "methods": ["head_only", "lora", {"method": "tenslora", "variant": "att"}],
    "budgets": [{"isorank": 2}],
    "seeds": [0, 1, 2, 3, 4],
}
#: The number of correct answers of 1,000, by title.
RIGHT = {"head only": 700, "LoRA": 800, ATT: 860}
#: The same by task and title. Those of seed 4 are by task, title and seed.
Right = Mapping[tuple[Any, ...], int]


@pytest.fixture
def results_of(stored: Stored) -> Callable[[Right], LoadedResults]:
    """A function that returns the results of runs with these numbers of correct answers."""

    def make(right: Right) -> LoadedResults:
        def result(trial: Trial, row: Row) -> Result:
            key = row.task, row.title
            count = right.get((*key, trial.seed), right.get(key, RIGHT[row.title]) + trial.seed % 2)
            return answered(count, 1000, validation=[count / 1000])

        return load_results("small", store=stored(result, plan_of(**SUITE)))

    return make


ResultsOf = Callable[[Right], LoadedResults]


def test_a_part_that_runs_meets_the_heads_that_ran_before(stored: Stored) -> None:
    def made(trial: Trial, row: Row) -> Result | None:
        if row.title == "head only" and (row.task == "textile" or trial.seed == 4):
            return None
        count = {"head only": 890}.get(row.title, RIGHT.get(row.title, 0)) + trial.seed % 2
        return answered(count, 1000, validation=[count / 1000])

    plan = plan_of(**SUITE)
    store = Store.existing(stored(made, plan), "small")
    part = plan.select(Part(methods=("LoRA", ATT)))
    summary = summarise(store, part.stored(), full_plan=plan.stored())
    assert "LoRA is no better than a head on digits" in printed(*summary.tables("small"))
    # What a head lacks is not missing from the part.
    heads = {cell.task: cell.seeds for cell in summary.results.all_cells if cell.method == "head only"}
    assert heads == {"digits": 4}
    assert summary.complete
    assert not any("missing" in remark for remark in summary.remarks)


def block_of(results: LoadedResults) -> Block:
    return next(block for block in results.analysis.blocks if block.budget == "isorank 2")


def claimed(results: LoadedResults) -> dict[str, str]:
    """The verdicts on TensLoRA att: over both tasks, on each, and in the table."""
    (entrant,) = block_of(results).compared
    found = entrant.differences[1]
    lines = results.tables["differences"]
    return {
        "block": in_words(found.verdict, "1 point"),
        "table": lines[lines["method"] == ATT].iloc[0]["verdict"],
        **{setting.task: in_words(each.verdict, "1 point") for setting, each in found.on.items()},
    }


def views(results: LoadedResults, folder: Path) -> dict[str, str]:
    """What the terminal, the first screen of the page, the tables and a notebook say first."""
    (experiment,) = results.experiments
    write_report("small", out=folder / "out", store=experiment.where, formats=["html", "md"], log=False)
    page = (folder / "out" / "index.html").read_text()
    return {
        "terminal": printed(*summary_of(experiment.where).tables("toy")),
        "page": page.split('class="answered"><b>')[1].split("</b>")[0],
        "tables": (folder / "out" / "tables" / "tables.md").read_text().split("**")[1],
        "notebook": results.answer,
    }


def test_without_a_guard_the_same_results_have_verdicts(results_of: ResultsOf) -> None:
    results = results_of({})
    assert {*claimed(results).values()} == {"better"}
    assert block_of(results).guards == ()


def test_one_task_that_nothing_learnt_withholds_the_mean_everywhere(
    tmp_path: Path, results_of: ResultsOf
) -> None:
    results = results_of({("digits", "head only"): 500, ("digits", "LoRA"): 490, ("digits", ATT): 520})
    shown = claimed(results)
    assert shown.pop("textile") == "better"
    assert shown.pop("digits") == "no verdict: nothing trained"
    assert set(shown.values()) == {"no verdict: nothing trained on digits"}
    for name, text in views(results, tmp_path).items():
        assert text.startswith("Nothing trained on digits: "), name


def test_a_reference_no_better_than_the_head_gives_no_verdict(tmp_path: Path, results_of: ResultsOf) -> None:
    results = results_of({(task, "LoRA"): 690 for task in SUITE["tasks"]})
    reason = "no verdict: LoRA is no better than a head on digits, textile"
    shown = claimed(results)
    assert shown["block"] == shown["table"] == reason
    shown = views(results, tmp_path)
    for name, text in shown.items():
        assert text.startswith("LoRA (isorank 2) scored no better than a head on digits"), name
    assert shown["page"].endswith(f"No verdict is given on {ATT}.")


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        ({(task, ATT): 980 for task in SUITE["tasks"]}, "better"),
        ({(task, ATT): 740 for task in SUITE["tasks"]}, "worse"),
    ],
)
def test_a_verdict_says_that_runs_of_the_reference_collapsed(
    right: Right, verdict: str, tmp_path: Path, results_of: ResultsOf
) -> None:
    results = results_of({**right, ("digits", "LoRA", 4): 590})
    shown = claimed(results)
    assert shown["block"] == (
        f"{verdict} when the reference trains; collapses in 0 of 10 runs against 1 of 10"
    )
    assert shown["digits"].endswith("; collapses in 0 of 5 runs against 1 of 5")
    assert shown["textile"] == verdict
    assert "against 1 of 10)" in results.answer
    for name, text in views(results, tmp_path).items():
        assert text.startswith("LoRA (isorank 2) failed on digits"), name


@pytest.mark.parametrize(("loss", "trained"), [(1.0, False), (1.02, False), (0.8, True)])
def test_the_loss_tells_what_trained_where_a_constant_answer_has_no_score(
    loss: float, trained: bool, tmp_path: Path, stored: Stored
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
    results = load_results("small", store=stored(result, plan))
    (entrant,) = block_of(results).compared
    assert (entrant.differences[1].verdict.reason == "nothing trained") == (not trained)
    assert results.answer.startswith("Nothing trained on pairs: ") == (not trained)


def scored(scores: Mapping[Any, float | str]) -> Callable[[Trial, Row], Result]:
    """Results of trials that have the score of their title or of (title, task), or diverged."""

    def result(trial: Trial, row: Row) -> Result:
        found = scores.get((row.title, row.task), scores.get(row.title, 0.8))
        if isinstance(found, str):
            return Result(failure=found)
        score = found + random.Random(f"{row.title} {trial.seed}").gauss(0, 0.002)
        measures = {Measure.SELECTED_LOSS: 1 - score, Measure.GUESSING_LOSS: 2.3}
        return Result(score=score, labels=(), answers=(), measures=measures)

    return result


@pytest.mark.parametrize("others", [[], [{"method": "tenslora", "variant": "att"}]], ids=["alone", "beside"])
def test_a_task_on_which_all_seeds_diverged_leaves_no_win(analysed: Analysed, others: list[Any]) -> None:
    results = scored({("LoTR", "textile"): "diverged", "LoTR": 0.9})
    analysis = analysed(results, plan_of(**SUITE | {"methods": ["lora", "lotr", *others]}))
    entrants = [each for block in analysis.blocks for each in block.methods]
    (lotr,) = (entrant for entrant in entrants if entrant.method == "LoTR")
    assert lotr.differences[1].verdict.reason == "all runs of LoTR collapsed on textile"


def test_seeds_and_studies_in_one_report_have_heads_of_their_own(analysed: Analysed) -> None:
    of_seeds, of_studies = scored({"head only": 0.6}), scored({"head only": 0.7, "LoRA": 0.65})
    suite = SUITE | {"methods": ["head_only", "lora", "lotr"], "seeds": [0, 1, 2]}
    tuned = suite | {"name": "tuned", "tuning": {"studies": 3, "points": 2}, "seeds": []}
    analysis = analysed(
        lambda trial, row: (of_studies if row.studies else of_seeds)(trial, row),
        *(plan_of(**each) for each in (suite, tuned)),
    )
    blocks = analysis.blocks
    heads = {block.tuned: block.levels[0].scores[block.settings[0]] for block in blocks}
    assert heads[False] == pytest.approx(0.6, abs=0.01)
    assert heads[True] == pytest.approx(0.7, abs=0.01)
    # Studies beside them do not silence what is said of seeds.
    assert any("3 seeds per cell at most" in note for note in analysis.notes)
    # Of the seeds' own heads LoRA is better, of those of studies it is not.
    assert {block.tuned: bool(block.guards) for block in blocks} == {False: False, True: True}


def test_every_method_without_adapter_has_a_level(analysed: Analysed) -> None:
    rows = [{"method": "full", "training": {"lr": rate}, "label": f"full {rate}"} for rate in (1e-3, 1e-4)]
    plan = plan_of(**SUITE | {"methods": ["head_only", *rows, "lora", "lotr"]})
    (block,) = analysed(scored({}), plan).blocks
    assert [level.method for level in block.levels] == ["head only", "full 0.001", "full 0.0001"]


def test_a_method_without_adapter_is_compared_everywhere(stored: Stored) -> None:
    def result(trial: Trial, row: Row) -> Result:
        lost = row.family == "full" and row.task == "digits" and trial.seed == 4
        score = 0.8 + 0.1 * (row.family == "full") + random.Random(trial.id).gauss(0, 0.002)
        return Result(score=score, failure="error" if lost else "", labels=(), answers=())

    summary = summary_of(stored(result, plan_of(**SUITE | {"methods": ["full", "lora", "lotr"]})))
    said = suite_answer(summary.analysis)
    (of_full,) = (text for text in said.sentences if text.startswith("Full fine-tuning: "))
    assert of_full in printed(*summary.tables("toy"))
    keys = {point.key for point in said.differences}
    assert "difference from LoRA/full fine-tuning" in keys
    line = scores_table(summary.results, summary.analysis.blocks[0]).lines[-1]
    assert (line["digits"].endswith(" †"), line["textile"].endswith(" †")) == (True, False)
