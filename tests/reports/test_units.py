"""Tests a regression task from data to report: its metrics may have units, and lower may be better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tensorbench.methods.validation import validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import Suite
from tensorbench.records.measures import Measure
from tensorbench.records.words import Artifact
from tensorbench.reports.analysis import analyse
from tensorbench.reports.figures.training import curves as read_curves
from tensorbench.reports.loading import load_results
from tensorbench.reports.reading import read
from tensorbench.reports.report import compose
from tensorbench.store.store import Store

from ..bench.toy_runs import run_inline
from ..predicted import frame_of

DATA = Path(__file__).parents[1] / "data" / "similarity.csv"
PAIRS = {
    "csv": str(DATA),
    "text": ["first", "second"],
    "label": "score",
    "target": "regression",
    "unit": "rating points",
    "train_size": 40,
    "validation_size": 10,
    "test_size": 10,
    "max_tokens": 48,
}
SUITE: dict[str, Any] = {
    "name": "units",
    "tasks": [{"name": name, "metric": name, **PAIRS} for name in ("pearson", "spearman", "rmse")],
    "backbones": ["tiny-random-bert"],
    "methods": ["lora", {"method": "tenslora", "variant": "att"}],
    "budgets": [{"isoparameters": 2}],
    "seeds": [0, 1],
    "training": {"lr": 2e-2, "batch_size": 40, "epochs": 2},
    "floor": "none",
}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> str:
    store_uri = new_store(tmp_path_factory.mktemp("units"))
    made = make_plan(validate(Suite, SUITE, "suite"))
    store = Store.create(store_uri, "units")
    store.begin_suite(made)
    run_inline(store, made)
    return store_uri


def test_stored_predictions_give_the_stored_scores_by_scipy(uri: str) -> None:
    store = Store.existing(uri, "units")
    by_hand = {
        "pearson": lambda y, x: stats.pearsonr(y, x).statistic,
        "spearman": lambda y, x: stats.spearmanr(y, x).statistic,
        "rmse": lambda y, x: np.sqrt(np.mean((y - x) ** 2)),
    }
    records = store.records()
    assert len(records) == 12
    for record in records:
        path = store.artifact(record, Artifact.PREDICTIONS)
        assert path is not None
        frame = frame_of(path.read_bytes())
        assert list(frame.columns) == ["example", "label", "prediction", "logit_0"]
        assert record.tags.get("unit") == ("rating points" if record.tags["metric"] == "rmse" else None)
        expected = by_hand[record.tags["metric"]](frame["label"], frame["prediction"])
        assert record.score == pytest.approx(expected, abs=1e-6)
        mean, sd = (record.metrics[key] for key in (Measure.TARGET_MEAN, Measure.TARGET_SD))
        assert frame["prediction"].to_numpy() == pytest.approx(frame["logit_0"].to_numpy() * sd + mean)
        # The kept epoch is the best by validation in the metric's direction.
        scores = store.curves(f"validation/{record.tags['metric']}", [record.run_id])["value"]
        best = (min if record.tags["metric"] == "rmse" else max)(scores)
        assert record.metrics[Measure.SELECTED_VALIDATION] == pytest.approx(best)


def test_reports_take_less_for_better_where_it_is(uri: str) -> None:
    results = read(uri, ["units"])
    cells = [cell for cell in results.all_cells if cell.metric == "rmse"]
    best, other = sorted(cells, key=lambda cell: cell.mean or 0.0)
    analysis = analyse(results)
    (block,) = (block for block in analysis.blocks if block.metric == "rmse")
    (entrant,) = block.compared
    lora = next(cell for cell in cells if cell.family == "lora")
    assert lora.mean is not None
    found = entrant.differences[1].effect
    assert found.difference == pytest.approx((other.mean or 0) - (best.mean or 0)) or lora is best
    assert (found.difference > 0) == (lora is other)
    assert block.threshold == pytest.approx(0.01 * lora.mean)
    assert any("Less rmse" in note for note in block.notes)
    assert not analysis.gaps
    assert {curve.cell.metric for curve in read_curves(results)[0]} == {"pearson", "spearman", "rmse"}


def test_a_trial_is_shown_with_the_unit_of_its_score(uri: str, call: Callable[..., Any]) -> None:
    for record in Store.existing(uri, "units").records():
        out = call("show", record.tags["trial_id"], "--store", uri).out
        assert (f"rmse {record.score:.4f} rating points" in out) == (record.tags["metric"] == "rmse")


def test_the_page_shows_scores_in_their_units(uri: str) -> None:
    files = compose(read(uri, ["units"]), ["html", "md"]).files
    for cell in read(uri, ["units"]).all_cells:
        assert cell.mean is not None
        text = f"{cell.mean:.4g}" if cell.metric == "rmse" else f"{100 * cell.mean:.2f}"
        assert text in files["index.html"]
    for shown in files.values():
        assert "Test pearson" in shown
        assert "Test rmse" in shown
        assert "rating points" in shown
        assert "units of the targets" not in shown


def test_predictions_of_a_regression_are_in_its_units(uri: str) -> None:
    predictions = load_results("units", store=uri).predictions
    assert predictions["label"].dtype == predictions["prediction"].dtype == "float64"
    assert predictions["label"].max() > 4
    assert len(predictions) == 12 * 10
