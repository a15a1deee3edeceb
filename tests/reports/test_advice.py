"""Tests the advised learning rates on a made-up study whose good rates are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import Row
from tensorbench.reports.advice import learning_rates, rate_advice, stored_advice
from tensorbench.reports.analysis import analyse
from tensorbench.reports.figures import draw
from tensorbench.reports.page import render
from tensorbench.reports.reading import read
from tensorbench.reports.report import compose
from tensorbench.store.store import Store

from ..fixtures import Call
from ..packs import packed
from ..stored import Result
from .made_up import SMALL, Stored, answered, printed
from .made_up_studies import NAME, ONE_TASK, plan_of, result

#: For each method, in decades from the centre: the best rate, and the ends of the range of rates whose score
#: is within a point of the best. Scores fall by four points per decade², so this range extends half a decade
#: to either side, within the window. The range of LoTR ends earlier than stated here, at `CLIFF`.
TRUE_RANGES = {"LoRA": (0.2, -0.3, 0.5), "LoTR": (-0.1, -0.5, 0.4), "TensLoRA att": (0.0, -0.5, 0.5)}
#: Beyond this offset, LoTR scores as by chance.
CLIFF = 0.25
EXAMPLES = 10_000
STUDIED: dict[str, Any] = ONE_TASK | {
    "methods": ["lora", "lotr", {"method": "tenslora", "variant": "att"}],
    "tuning": {"studies": 5, "points": 8},
}


def trained(trial: Trial, row: Row) -> Result:
    assert row.studies is not None
    offset = row.studies.trials[trial.seed].offset
    score = 0.85 - 0.04 * (offset - TRUE_RANGES[row.title][0]) ** 2
    if row.title == "LoTR" and offset > CLIFF:
        score = 0.5
    right = round(EXAMPLES * score)
    return answered(right, EXAMPLES, measures={Measure.SELECTED_LOSS: 1 - right / EXAMPLES})


@pytest.fixture(scope="module")
def studied(stored: Stored) -> str:
    return stored(trained, plan_of(**STUDIED))


def test_the_range_is_the_known_one(studied: str) -> None:
    advice = {each.cell.method: each for each in stored_advice([studied])}
    assert advice.keys() == TRUE_RANGES.keys()
    centres = {cell.method: cell.studies for cell in read(studied, [NAME]).all_cells}
    for method, (best, low, high) in TRUE_RANGES.items():
        rates, plan = advice[method], centres[method]
        assert plan is not None
        if method == "LoTR":
            high = CLIFF
        offsets = np.log10(np.array([rates.start, rates.low, rates.high]) / plan.centre)
        assert offsets == pytest.approx([best, low, high], abs=0.06)
        assert (rates.is_lowest, rates.is_highest) == (low == -0.5, high == 0.5)
        assert (rates.studies, rates.trials) == (5, 40)
        assert rates.share == pytest.approx(high - low, abs=0.06)


def test_a_pack_gives_the_advice_of_its_store(studied: str, tmp_path: Path, call: Call) -> None:
    pack = packed(studied, NAME, tmp_path)
    rows = json.loads(call("list", "methods", "--advice", str(pack), "--json").out)
    assert rows == json.loads(call("list", "methods", "--advice", studied, "--json").out)
    assert {row["method"] for row in rows} == TRUE_RANGES.keys()
    shown = call("list", "methods", "--advice", str(pack)).out
    assert all(method in shown for method in TRUE_RANGES)


@pytest.mark.parametrize("width", [80, 200])
def test_the_legend_names_the_columns_of_the_table(studied: str, width: int) -> None:
    text = printed(learning_rates(studied), width=width)
    head = next(line for line in text.splitlines() if line.startswith(" method"))
    legend = text.partition("start: ")[2]
    assert ("share" in head.split(), "share: " in legend) == (True, True)


def test_without_a_study_there_is_no_advice(studied: str, small: str) -> None:
    with pytest.raises(UserError, match="no complete study"):
        stored_advice([small])
    assert len(stored_advice([small, studied])) == len(TRUE_RANGES)


def test_an_edited_suite_without_trials_takes_no_advice_of_others_away(stored: Stored) -> None:
    uri = stored(trained, plan_of(**STUDIED), plan_of(**STUDIED, name="edited"))
    assert len(stored_advice([uri])) == 2 * len(TRUE_RANGES)
    Store.create(uri, "edited").begin_suite(plan_of(**STUDIED, name="edited", training={"steps": 3}))
    assert len(stored_advice([uri])) == len(TRUE_RANGES)


def test_places_without_a_store_are_refused(studied: str, call: Call) -> None:
    with pytest.raises(UserError, match="neither a store"):
        stored_advice([SMALL["name"]])
    ended = call("list", "tasks", "--advice", studied)
    assert (ended.code, "--advice" in ended.err) == (2, True)


def test_the_page_of_a_study_says_which_rate_to_start_from(studied: str) -> None:
    analysis = analyse(read(studied, [NAME]))
    page = render(analysis, draw(analysis)[0], [])
    for each in rate_advice(analysis):
        assert f"{each.start:.2g}<small>{each.range}</small>" in page


def test_nine_trials_advise_no_rate(stored: Stored) -> None:
    uri = stored(result, plan_of(tuning={"studies": 3, "points": 3}))
    with pytest.raises(UserError, match="at least 15 trials"):
        stored_advice([uri])
    made = compose(read(uri, [NAME]), ["html"])
    for block in made.analysis.blocks:
        for entrant in block.entrants:
            shares = entrant.sensitivity
            assert shares is not None
            assert (shares.near, shares.near_difference, entrant.transfer) == (None, None, None)
            assert shares.failed == shares.failures / shares.trials
    assert "too few trials" in made.files["index.html"]
