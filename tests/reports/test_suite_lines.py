"""Tests the suites that a report offers to copy: their plans contain the trials of the rows."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml

from tensorbench.methods import METHODS
from tensorbench.methods.validation import validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import Suite
from tensorbench.plan.yaml_text import parse
from tensorbench.records.stored_plan import PlannedTrial
from tensorbench.reports.analysis import analyse
from tensorbench.reports.figures import draw
from tensorbench.reports.page import render
from tensorbench.reports.reading import read
from tensorbench.reports.results import Results, Seed
from tensorbench.reports.suite_lines import suite_lines

from ..stored import Result
from .made_up import Stored
from .made_up_studies import NAME, plan_of, result

#: Every registered method. Some have options that are neither numbers nor plain words.
EVERY: list[Any] = [
    *(name for name, _ in METHODS.available() if name not in ("peft", "tenslora")),
    {"method": "tenslora", "each": {"variant": ["att", "qkv_depth"], "factorization": ["tucker", "cp"]}},
    {"method": "peft", "type": "LOHA"},
    {
        "method": "lora",
        "rank": 2,
        "training": {"lr": 1e-3, "adapter_weight_decay": 0.05},
        "label": "Löwe: #1",
    },
]

SUITE: dict[str, Any] = {
    "name": "every",
    "tasks": [
        {"task": "movie-sentiment", "train_size": 64, "max_tokens": 24, "training": {"epochs": 3}},
        {"task": "digits", "train_size": 128, "normalise": False, "training": {"steps": 7}},
    ],
    "backbones": ["tiny-random-bert", {"name": "tiny-random-vit", "label": "yes"}],
    "methods": EVERY,
    "budgets": [{"isorank": 2}],
    "seeds": [0, 3],
    "training": {"weight_decay": 0.05, "batch_size": 16, "clip": 1.0},
}


def planned(text: str) -> Plan:
    return make_plan(validate(Suite, parse(text), "copied"))


@pytest.fixture(scope="module")
def every(stored: Stored) -> Results:
    plan = make_plan(validate(Suite, SUITE, "suite"))
    return read(stored(lambda trial, row: Result(0.5), plan), ["every"])


@pytest.fixture(scope="module")
def studied(stored: Stored) -> Results:
    return read(stored(result, plan_of()), [NAME])


def test_every_method_has_lines_that_plan_its_trials_again(every: Results) -> None:
    lines = suite_lines(every)
    assert {cell.family for cell in every.all_cells} == {name for name, _ in METHODS.available()}
    for cell in every.all_cells:
        ids = {seed.seed: seed.trial_id for seed in cell.trials}
        assert {trial.seed: trial.id for trial in planned(lines(cell)).trials} == ids, lines(cell)


def test_a_study_gives_the_rate_that_validation_kept(studied: Results) -> None:
    lines = suite_lines(studied)
    for cell in studied.all_cells:
        if cell.studies is None:
            continue
        (trial,) = planned(lines(cell)).trials
        kept = [seed for seed in cell.kept.values() if seed]
        best = min(kept, key=lambda seed: seed.validation_loss or 0.0)
        assert (trial.id, trial.recipe.lr) == (best.trial_id, best.lr)


def test_a_test_score_chooses_nothing(studied: Results) -> None:
    lines = suite_lines(studied)

    def turned_over(seed: Seed) -> Seed:
        return replace(seed, measures={**seed.measures, "score": 1 - (seed.score or 0.0)})

    cells = (replace(cell, trials=tuple(map(turned_over, cell.trials))) for cell in studied.all_cells)
    turned = replace(studied, all_cells=tuple(cells))
    other = suite_lines(turned)
    both = [pair for pair in zip(studied.all_cells, turned.all_cells, strict=True) if pair[0].studies]
    assert both
    for own, cell in both:
        assert planned(lines(own)).trials == planned(other(cell)).trials


def test_the_tuning_that_a_study_names_has_its_trials(studied: Results) -> None:
    cell = next(cell for cell in studied.all_cells if (cell.method, cell.task) == ("LoTR", "digits"))
    text = suite_lines(studied)(cell)
    (centre, tuning) = re.findall(r"^# centre: (\S+) with tuning: (.*)$", text, re.MULTILINE)[0]
    suite = parse(text)
    (row,) = suite["methods"]
    del suite["seeds"], suite["training"]["lr"], suite["training"]["head_lr"]
    suite |= {"methods": [row | {"centre": float(centre)}], "tuning": parse(tuning)}
    ids = {trial.id for trial in make_plan(validate(Suite, suite, "tuned")).trials}
    assert ids == {seed.trial_id for seed in cell.trials}


def _changed(results: Results, **changes: Any) -> Results:
    """The study with fields of its planned trials changed."""

    def trial(of: PlannedTrial) -> PlannedTrial:
        return of.model_copy(update={name: change(getattr(of, name)) for name, change in changes.items()})

    experiments = [
        replace(each, trials={id_: trial(of) for id_, of in each.trials.items()})
        for each in results.experiments
    ]
    return replace(results, experiments=tuple(experiments))


def test_the_lines_name_the_version_of_their_method(every: Results) -> None:
    other = _changed(every, method=lambda method: method | {"version": 99})
    text = suite_lines(other)(other.all_cells[0])
    assert "version 99" in text
    assert parse(text) == parse(suite_lines(every)(every.all_cells[0]))


@pytest.mark.parametrize(
    "text",
    [
        *("no", "ON", "1e3", "2025-02-30", "~", "a: b", "[x", "# x", "'", '"\\', " a", "b "),
        *("ü😀", "a\u2028b", "a\nb", "\\U0000000a"),
    ],
)
def test_any_text_comes_back_from_the_lines(every: Results, text: str) -> None:
    verbalizer = {"prompt": f"{text}{{text}}", "words": [text, {"nested": [text, 1e-06, None, True]}]}
    changed = _changed(every, task=lambda task: task | {"verbalizer": verbalizer})
    lines = suite_lines(changed)(changed.all_cells[0])
    # PyYAML reads YAML 1.1.
    for read_by in (parse, yaml.safe_load):
        (row,) = read_by(lines)["tasks"]
        assert row["verbalizer"] == verbalizer


def test_the_page_of_a_study_offers_each_method_its_suite(studied: Results) -> None:
    analysis = analyse(studied)
    page = render(analysis, draw(analysis)[0], [])
    suites = [
        html.unescape(text) for text in re.findall(r'<pre class="suite-lines">(.*?)</pre>', page, re.DOTALL)
    ]
    offered = [plan.trials for plan in map(planned, suites)]
    (block,) = analysis.blocks
    cells = [cell for entrant in block.entrants for cell in entrant.cells]
    cells += [cell for level in block.levels for cell in level.cells.values()]
    stored = {seed.trial_id: seed.cell for cell in cells for seed in cell.trials}
    assert {stored[trials[0].id] for trials in offered} == {cell.number for cell in cells}
    for link in re.findall(r'href="#(suites-[0-9-]+)"', page):
        assert f'<details id="{link}">' in page
