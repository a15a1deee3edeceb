"""Tests the report of a suite tuned by studies: analysis, page, tables and figures, on made-up results."""

from __future__ import annotations

import html
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

import tensorbench
from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import Row
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.answers import (
    answer,
    answers,
    in_words,
    level_notes,
    order_note,
    settings_counted,
    share_between,
)
from tensorbench.reports.chosen import choose
from tensorbench.reports.comparable import block_budgets
from tensorbench.reports.comparisons import moderated_on_settings
from tensorbench.reports.figures import draw
from tensorbench.reports.inference import studies as estimates
from tensorbench.reports.inference.effects import effect, verdict
from tensorbench.reports.inference.intervals import simultaneous
from tensorbench.reports.overview import score
from tensorbench.reports.page import render
from tensorbench.reports.reading import read
from tensorbench.reports.report import compose, write_report
from tensorbench.reports.results import Results
from tensorbench.reports.selection import Selection
from tensorbench.reports.summary import Summary, suite_answer
from tensorbench.reports.tables import scores_table

from ..fixtures import Call
from ..stored import Result
from .browsing import MARKS, on_paper, opened, resize, seen
from .made_up import Analysed, Composes, Stored
from .made_up_studies import DIVERGED, MISSING, NAME, ONE_TASK, plan_of, result, seeds_of

CLOSING = "Made up, <b>all</b> of it & [more]."


@pytest.fixture(scope="module")
def uri(stored: Stored) -> str:
    return stored(result, plan_of(closing=CLOSING))


@pytest.fixture(scope="module")
def results(uri: str) -> Results:
    return read(uri, [NAME])


@pytest.fixture(scope="module")
def analysis(results: Results) -> Analysis:
    return analyse(results)


@pytest.fixture(scope="module")
def folder(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    write_report(NAME, out=out, store=uri)
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "index.html").read_text()


def test_studies_are_those_of_the_records(results: Results, analysis: Analysis) -> None:
    cell = next(c for c in results.all_cells if (c.method, c.task) == ("LoRA", "digits"))
    studies = analysis.studies[cell.number]
    assert studies.numbers == (0, 1, 2, 3)
    for seed in cell.trials:
        assert seed.study is not None
        assert seed.point is not None
        place = int(seed.study), int(seed.point)
        assert studies.scores[place] == seed.score
        assert studies.losses[place] == seed.validation_loss
    assert studies.by_example is not None
    assert np.allclose(studies.by_example.mean(-1), studies.scores)
    # Shuffled answers with two equally frequent classes.
    assert studies.chance == pytest.approx(0.5, abs=0.02)


def test_differences_are_those_of_the_statistics(analysis: Analysis) -> None:
    (block,) = analysis.blocks
    assert (block.k, block.against, len(block.compared)) == (4, "LoRA", 3)
    reference, *rivals = block.entrants
    failures = estimates.pooled_failures([each for entrant in block.entrants for each in entrant.studies])
    for k in rivals[0].differences:
        parts = {
            own.cell.number: estimates.of_pair(own.studies, reference.on[setting].studies, k, failures)
            for rival in rivals
            for setting, own in rival.on.items()
        }
        fell = {n for n, each in analysis.collapses.items() if each.count}
        fell |= {
            own.cell.number
            for setting, other in reference.on.items()
            if other.cell.number in fell
            for own in (rival.on[setting] for rival in rivals)
        }
        parts = moderated_on_settings(analysis.results, parts, fell).parts
        for rival in rivals:
            expected = effect([parts[cell.number] for cell in rival.cells])
            assert rival.differences[k].effect.difference == pytest.approx(expected.difference)
            assert rival.differences[k].interval == pytest.approx(expected.interval(simultaneous(3)))
    for own in reference.on.values():
        assert own.scores[4].value == pytest.approx(estimates.score_after(own.studies, 4))


def test_a_note_says_where_the_luck_of_the_validation_sample_is_unknown(analysis: Analysis) -> None:
    # The made-up predictions have no outputs, and so no log-probabilities.
    (block,) = analysis.blocks
    for entrant in block.compared:
        for k, difference in entrant.differences.items():
            assert {part.validation for part in difference.effect.parts} == {0.0 if k == 1 else None}
    (note,) = [note for note in block.notes if "validation sample" in note]
    assert all(setting.task in note for setting in block.settings)


@pytest.mark.parametrize(
    ("points", "few", "most"), [(2, "1 trial of tuning", 2), (8, "2 trials of tuning", 8)]
)
def test_the_order_after_few_trials_is_compared_with_that_after_most(
    points: int, few: str, most: int, analysed: Analysed
) -> None:
    tuning = {"studies": 3, "points": points}
    (block,) = analysed(result, plan_of(**ONE_TASK, tuning=tuning)).blocks
    up_to = replace(block, ks=tuple(k for k in block.ks if k <= points))
    assert f"after {few} and on the other after {most}." in order_note(up_to)


def test_scores_of_methods_without_adapter_are_levels_and_in_no_family(analysis: Analysis) -> None:
    (block,) = analysis.blocks
    levels = {level.method: level for level in block.levels}
    assert set(levels) == {"converged head", "full fine-tuning", "head only"}
    assert not {entrant.method for entrant in block.entrants} & set(levels)
    results = analysis.results
    for setting in block.settings:
        cells = {cell.method: cell for cell in results.all_cells if cell.setting == setting}
        assert levels["converged head"].scores[setting] == cells["converged head"].mean
        full = analysis.studies[cells["full fine-tuning"].number]
        assert levels["full fine-tuning"].scores[setting] == pytest.approx(estimates.score_after(full, 4))


def test_an_incomplete_study_is_named_and_left_out(analysis: Analysis, page: str) -> None:
    method, task, _ = MISSING
    (block,) = analysis.blocks
    entrant = next(entrant for entrant in block.entrants if entrant.method == method)
    numbers = {setting.task: own.studies.numbers for setting, own in entrant.on.items()}
    assert numbers == {task: (0, 1, 2), "movie-sentiment": (0, 1, 2, 3)}
    assert [part.pairs for part in entrant.differences[4].effect.parts] == [
        4 if setting.task != task else 3 for setting in block.settings
    ]
    (note,) = [note for note in analysis.notes if "incomplete" in note]
    assert {method, task, "3"} <= set(re.findall(r"[\w-]+", note))
    assert html.escape(note) in page


def test_a_diverged_trial_fails_at_chance_and_is_marked(analysis: Analysis, page: str) -> None:
    method, task, number = DIVERGED
    results = analysis.results
    (seed,) = [s for s in results.all_seeds if (s.method, s.task, s.seed) == (method, task, number)]
    studies = analysis.studies[seed.cell]
    assert np.isinf(studies.losses[1, 2])
    assert studies.scores[1, 2] == studies.chance
    assert studies.failed[1, 2]
    assert analysis.failed(seed)
    before, _, _ = page.partition(f'id="trial-{seed.trial_id}"')
    assert "failed: diverged" in before.rpartition("<tr>")[2]
    assert f"{method} on {task}: diverged (failed)" in page


def test_a_trial_lost_to_the_machine_makes_its_study_incomplete(analysed: Analysed) -> None:
    def result_of(trial: Any, row: Any) -> Result | None:
        if (row.title, trial.seed) == ("LoRA", 10_001):
            return Result(failure="out of memory")
        return result(trial, row)

    analysis = analysed(result_of, plan_of(**ONE_TASK, methods=["lora", "lotr"]))
    (block,) = analysis.blocks
    assert block.entrants[0].studies[0].numbers == (1, 2, 3)
    assert any("out of memory" in note for note in analysis.notes)


def test_every_dot_leads_to_a_row_of_the_table_of_trials(analysis: Analysis, page: str) -> None:
    links = re.findall(r'<a xlink:href="#(trial-[^"]*)">', page)
    (block,) = analysis.blocks
    assert len(links) == sum(entrant.sensitivity.trials for entrant in block.entrants if entrant.sensitivity)
    assert set(links) <= set(re.findall(r' id="(trial-[^"]*)"', page))


@MARKS[0]
@MARKS[1]
def test_the_page_sorts_follows_a_dot_and_cuts_nothing_off(browser: webdriver.Chrome, folder: Path) -> None:
    opened(browser, folder / "index.html", 390)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    resize(browser, 1366)
    names = "return [...document.querySelectorAll('.methods tbody th')].map(e => e.textContent)"
    before = browser.execute_script(names)
    browser.execute_script("document.querySelector('.methods thead .sorter').click()")
    assert browser.execute_script(names) == sorted(before, key=str.lower) != before
    dot = browser.find_element(By.CSS_SELECTOR, "#figure-rates-0 svg a")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", dot)
    ActionChains(browser).move_to_element(dot).perform()
    assert browser.find_element(By.CSS_SELECTOR, ".tip").text == dot.get_attribute("ariaLabel")
    dot.click()
    assert browser.find_element(By.ID, "trials").get_attribute("open")
    assert browser.execute_script("return document.querySelector('td:target').id").startswith("trial-")
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


@MARKS[0]
@MARKS[1]
def test_a_phone_shows_the_main_figure_whole_and_heads_once(browser: webdriver.Chrome, folder: Path) -> None:
    page = folder / "index.html"
    opened(browser, page, 390)
    frame = "return (([e]) => [e.scrollWidth, e.clientWidth])(document.querySelectorAll(arguments[0]))"
    beyond, within = browser.execute_script(frame, "#figure-differences-0 .scroll")
    assert beyond <= within
    for width in (390, 768):
        opened(browser, page, width)
        # Each field of a card has its name beside it.
        assert seen(browser, ".cards > thead") == []
        named = browser.execute_script(
            """return [...document.querySelector('.methods tbody tr').cells].slice(1)
            .filter(e => e.getClientRects().length).map(e => getComputedStyle(e, '::before').content)"""
        )
        assert named
        assert "none" not in named
    opened(browser, page, 1366)
    assert len(seen(browser, ".methods > thead")) == 1


@MARKS[0]
@MARKS[1]
def test_bold_marks_the_differences_that_exclude_zero(
    browser: webdriver.Chrome, folder: Path, analysis: Analysis
) -> None:
    opened(browser, folder / "index.html", 1366)
    bold = {
        (method, column)
        for method, column in browser.execute_script(
            """return [...document.querySelectorAll('.methods tbody td')]
            .filter(e => getComputedStyle(e.querySelector('small') ?? e).fontWeight == 700
            || getComputedStyle(e).fontWeight == 700)
            .map(e => [e.closest('tr').cells[0].textContent, e.cellIndex])"""
        )
    }
    (block,) = analysis.blocks
    expected = set()
    for entrant in block.compared:
        difference = entrant.differences[block.k]
        sides = [difference.verdict.side, "", *(each.verdict.side for each in difference.on.values())]
        expected |= {(entrant.method, column) for column, side in enumerate(sides, 2) if side}
    assert bold == expected
    assert ("TensLoRA att", 2) in bold


@MARKS[0]
@MARKS[1]
def test_paper_has_the_notes_and_the_limits(
    browser: webdriver.Chrome, folder: Path, analysis: Analysis
) -> None:
    resize(browser, 794)
    browser.get((folder / "index.html").as_uri())
    try:
        on_paper(browser)
        shown = " ".join(seen(browser, ".notes li"))
        assert analysis.notes
        for note in (*analysis.notes, *analysis.blocks[0].notes, CLOSING):
            assert note in shown
        assert seen(browser, "#trials") == []
    finally:
        on_paper(browser, on=False)


def test_nothing_is_called_left_out_where_nothing_is(analysis: Analysis) -> None:
    page = render(replace(analysis, notes=("A note.",), limits=()), draw(analysis)[0], ())
    answer_part = page[page.index("<main>") : page.index("Scores after")]
    assert "1 note" in answer_part
    assert "left out" not in answer_part


@pytest.mark.parametrize(("points", "curves"), [(4, 0), (5, 2)])
def test_no_curve_is_drawn_through_fewer_than_fifteen_trials(
    points: int, curves: int, analysed: Analysed
) -> None:
    suite = {"methods": ["lora", "lora_xs"], "tuning": {"studies": 3, "points": points}}
    figures, _ = draw(analysed(result, plan_of(**ONE_TASK, **suite)))
    (figure,) = [each for each in figures if each.kind == "rates"]
    drawn = [line for ax in figure.figure.axes for line in ax.lines if len(line.get_xdata()) > 2]
    assert len(drawn) == curves
    assert ("LOESS" in figure.caption) == (curves > 0)


def test_the_interval_of_a_share_stays_within_all_and_nothing(analysis: Analysis) -> None:
    (block,) = analysis.blocks
    sensitivity = block.compared[0].sensitivity
    assert sensitivity is not None
    measured = sensitivity.near_difference
    assert measured is not None
    for bounds, text in (
        ((-0.86, 0.42), "0 to 89%"),
        ((-0.2, 0.9), "27 to 100%"),
        ((-0.1, 0.1), "37 to 57%"),
    ):
        compared = replace(measured, interval=bounds, effect=replace(measured.effect, difference=-0.03))
        assert share_between(0.44, compared) == text


def test_the_answer_comes_before_the_first_figure(page: str) -> None:
    assert page.index("After 4 trials of tuning, no method is significantly better") < page.index("<svg")
    assert "; worse: TensLoRA att" in page


def test_a_cell_of_the_table_opens_to_its_trials(
    uri: str, folder: Path, results: Results, call: Call
) -> None:
    cells = pd.read_csv(folder / "tables" / "cells.csv")
    (number,) = cells["cell"][(cells["method"] == "LoRA") & (cells["task"] == "digits")]
    shown = call("show", NAME, "--store", uri, "--cell", number).out
    assert shown.startswith("LoRA · isoparameters 2 · digits")
    lines = [line for line in shown.splitlines() if line.startswith("study ")]
    seeds = results.all_cells[int(number)].trials
    assert len(lines) == len(seeds) == 16
    for line, seed in zip(lines, seeds, strict=True):
        of_study = [other for other in seeds if other.study == seed.study]
        lowest = min(of_study, key=lambda other: other.validation_loss or 0.0)
        assert line.startswith(f"study {seed.study:.0f}, point {seed.point:.0f}")
        assert f"{seed.score:.4f} at rate {seed.lr:.3g}" in line
        assert (", kept" in line) == (seed is lowest)
    stored = json.loads(call("show", NAME, "--store", uri, "--cell", number, "--json").out)
    assert [seed["trial_id"] for seed in stored["seeds"]] == [seed.trial_id for seed in seeds]


def test_without_an_interval_the_answer_says_what_gives_one(composed: Composes) -> None:
    plan = plan_of(**ONE_TASK, methods=["lora", "lotr"], tuning={"studies": 2, "points": 4})
    made = composed(result, plan)
    assert "1 more tuning run each gives an interval" in made.files["index.html"]
    assert "significantly" not in answers(made.analysis)[-1]


def test_a_score_without_an_interval_is_the_same_number_wherever_it_is_shown(analysed: Analysed) -> None:
    plan = plan_of(**ONE_TASK, methods=["lora", "lotr"], tuning={"studies": 2, "points": 3})
    analysis = analysed(result, plan)
    (block,) = analysis.blocks
    means = {line["method"]: line for line in scores_table(analysis.results, block).lines}
    recipe = choose(analysis).facts["test accuracy"]
    for cell in analysis.results.all_cells:
        found, kept = analysis.score(cell), [seed.score for seed in cell.kept.values() if seed]
        assert found is not None
        assert found.interval is None
        # The mean of the two trials kept is another number.
        assert found.value != pytest.approx(fmean(filter(None, kept)), abs=5e-5)
        assert score(cell, analysis) == f"{found.value:.4f}"
        assert f"{100 * found.value:.2f}" in means[cell.method].values()
        assert cell.method != choose(analysis).cell.method or f"{100 * found.value:.2f}," in recipe


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (["lotr", "fact_tt"], "there is no reference"),
        (["lora"], "no adapter beside LoRA is compared"),
        (["lora", "converged_head"], "no adapter beside LoRA is compared"),
    ],
)
def test_incomparable_cells_are_shown_without_a_verdict(
    methods: list[str], said: str, composed: Composes
) -> None:
    done = composed(result, plan_of(**ONE_TASK, methods=methods), formats=["html", "csv"])
    (block,) = done.analysis.blocks
    assert block.entrants
    assert not block.compared
    assert said in done.files["index.html"]
    assert "No method is significantly on one side" not in done.files["index.html"]
    assert "tables/differences.csv" not in done.files


@pytest.mark.parametrize(("complete", "said"), [("", "No study is complete."), ("LoRA", "Too few studies")])
def test_a_suite_without_studies_to_compare_has_a_page_that_says_so(
    complete: str, said: str, composed: Composes
) -> None:
    def begun(trial: Any, row: Any) -> Result | None:
        return result(trial, row) if row.title == complete or trial.seed == 10_000 else None

    done = composed(begun, plan_of(**ONE_TASK, methods=["lora", "lotr"]))
    assert bool(done.analysis.studies) == bool(complete)
    assert not done.analysis.blocks
    (answer,) = answers(done.analysis)
    assert answer.startswith(said)
    assert answer in done.files["index.html"]


def test_full_fine_tuning_of_another_suite_is_a_line_where_it_ran(analysed: Analysed) -> None:
    full = {"name": "full", "methods": ["full"], "tuning": {"studies": 2, "points": 4}}
    (block,) = analysed(result, plan_of(methods=["lora", "lotr"]), plan_of(**ONE_TASK, **full)).blocks
    (level,) = block.levels
    ((setting, difference),) = level.differences.items()
    assert setting.task == "digits"
    assert difference > 0
    assert level.difference is None
    assert [note for note in level_notes(block) if "digits alone" in note]


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.011, 0.02), "better"),
        ((-0.03, -0.02), "worse"),
        ((0.001, 0.009), "better"),
        ((-0.009, 0.009), "equivalent (within 1 point)"),
        ((-0.011, 0.009), "inconclusive"),
        (None, "no verdict"),
    ],
)
def test_a_verdict_is_said_as_the_documentation_has_it(
    interval: tuple[float, float] | None, words: str
) -> None:
    assert in_words(verdict(interval, 0.01), "1 point") == words


def test_the_answer_names_a_method_that_lacks_a_task(analysed: Analysed) -> None:
    def made(trial: Trial, row: Row) -> Result | None:
        return None if (row.title, row.task) == ("LoTR", "digits") else result(trial, row)

    analysis = analysed(made, plan_of(methods=["lora", "lotr", "fact_tt"]))
    (block,) = analysis.blocks
    assert [entrant.method for entrant in block.compared] == ["FacT-TT"]
    assert "not on all tasks: LoTR" in answer(block)
    # Wherever its verdict is shown, so is the number of its tasks. Metrics in MLflow could not say it.
    shown = Summary(analysis, "", ()).tables("toy")
    lines = [line for table in shown for line in table.lines if "verdict" in line]
    verdicts = {line["method"]: line["verdict"] for line in lines}
    assert verdicts["LoTR"].endswith(", on 1 of 2 tasks")
    assert " of 2" not in verdicts["FacT-TT"]
    assert not any("LoTR" in point.key for point in suite_answer(analysis).differences)


def test_a_level_is_subtracted_on_its_own_metric_only(tmp_path: Path, stored: Stored) -> None:
    def as_matthews(trial: Trial, row: Row) -> Result:
        made = result(trial, row)
        assert made is not None
        return replace(made, score=2 * made.score - 1, tags={"metric": "matthews"})

    packs = []
    for name, metric, methods in (("first", "accuracy", ["lora"]), ("second", "matthews", ["lora", "full"])):
        tasks = [{"task": "movie-sentiment", "metric": metric}]
        plan = plan_of(name=name, tasks=tasks, backbones=["tiny-random-bert"], methods=[*methods, "lotr"])
        uri = stored(result if metric == "accuracy" else as_matthews, plan)
        packs.append(str(tmp_path / f"{name}.tensorbench.zip"))
        tensorbench.pack(name, out=packs[-1], store=uri)
    blocks = analyse(read("", packs)).blocks
    assert {block.metric: [level.family for level in block.levels] for block in blocks} == {
        "accuracy": [],
        "matthews": ["full"],
    }


def test_a_percentage_of_lora_s_error_matters_where_scores_have_units(analysed: Analysed) -> None:
    def in_stars(trial: Trial, row: Row) -> Result:
        of_method = {"LoRA": 0.5, "LoTR": 1.8}[row.title]
        score = of_method + random.Random(trial.id).gauss(0, 0.003)
        errors = score * np.resize([-1.0, 1.0], 400)
        labels = np.random.default_rng(0).normal(size=400)
        return Result(
            score=score,
            labels=labels,
            answers=labels + errors,
            tags={"metric": "rmse", "unit": "stars"},
            measures={Measure.SELECTED_LOSS: score**2},
        )

    changes = {"tasks": ["rating-pairs"], "backbones": ["tiny-random-bert"], "methods": ["lora", "lotr"]}
    (block,) = analysed(in_stars, plan_of(**changes)).blocks
    assert block.threshold == pytest.approx(0.005, rel=0.02)
    assert "Less rmse is better: a positive difference is a reduction." in block.notes


def test_the_split_and_both_backbones_of_a_task_are_named(composed: Composes) -> None:
    two = {"tasks": ["movie-sentiment"], "backbones": ["tiny-random-bert", "tiny-random-llama"]}
    done = composed(result, plan_of(**two, methods=["lora", "lotr"], evaluate="validation"))
    for text in done.files.values():
        assert "Validation accuracy" in text
        assert "Test accuracy" not in text
        assert "movie-sentiment · tiny-random-llama" in text
    (block,) = done.analysis.blocks
    assert settings_counted(block) == "2 task-backbone pairs"


def test_a_part_without_a_method_to_compare_says_so(uri: str) -> None:
    part = read(uri, [NAME], Selection(methods=["head_only", "converged_head"]))
    assert "there is no reference" in compose(part, ["md"]).files["tables/tables.md"]


def test_own_sizes_join_the_only_budget() -> None:
    assert block_budgets(["isorank 4", "fixed size"]) == {"isorank 4": "isorank 4", "fixed size": "isorank 4"}
    several = ["isorank 4", "isorank 8", "fixed size"]
    assert block_budgets(several) == {budget: budget for budget in several}


def test_power_of_studies_is_stored_or_assumed(uri: str, tmp_path: Path) -> None:
    from tensorbench.run.power import powers

    (stored,) = powers(plan_of(), uri)
    (assumed,) = powers(plan_of(), f"sqlite:///{tmp_path}/none.db")
    assert (stored.stored, assumed.stored) == (True, False)
    assert stored.as_dict()["studies"] == 4
    assert stored.as_dict()["comparisons"] == assumed.as_dict()["comparisons"] == 3
    for noise in (stored, assumed):
        assert noise.k == 4
        assert noise.design.finds is not None
    (noisier,) = powers(plan_of(), uri, sd=0.03)
    assert (noisier.design.finds or 0) > (assumed.design.finds or 0)
    with pytest.raises(UserError, match="studies: 2"):
        powers(plan_of(tuning={"studies": 2, "points": 4}), uri)


def test_an_overview_has_the_scores_of_the_report(uri: str) -> None:
    loaded = tensorbench.load_results(NAME, store=uri)
    overview = loaded.overview()
    for cell, line in zip(loaded.all_cells, overview.lines, strict=True):
        if (score := loaded.analysis.score(cell)) and score.interval:
            assert line["score"].startswith(f"{score.value:.4f} [")
    assert any("[" in line["score"] for line in overview.lines)
    assert any(note.startswith("Left out: study") for note in overview.notes)


def test_tasks_with_studies_and_tasks_with_seeds_are_apart(analysed: Analysed) -> None:
    suite: dict[str, Any] = {"methods": ["lora", "lotr"], "budgets": [{"isoparameters": 2, "tolerance": 0.5}]}
    text: dict[str, Any] = {
        "tasks": ["movie-sentiment"],
        "backbones": ["tiny-random-bert"],
        "seeds": [0, 1, 2],
    }
    tuned, plain = plan_of(**ONE_TASK | suite), seeds_of(name="plain", floor="none", **suite, **text)
    by_title = {block.title: block for block in analysed(result, tuned, plain).blocks}
    assert by_title.keys() == {"isoparameters 2 · studies", "isoparameters 2 · seeds"}
    for title, (task, k) in zip(by_title, [("digits", 4), ("movie-sentiment", 1)], strict=True):
        block = by_title[title]
        assert ([setting.task for setting in block.settings], block.k) == ([task], k)
        assert [each.method for each in block.compared] == ["LoTR"]
        assert not any("another recipe" in note for note in block.notes)
