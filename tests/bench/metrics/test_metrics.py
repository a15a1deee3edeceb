"""Tests metrics against other libraries: scores, directions and the contribution of each example."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from tensorbench.methods import UserError
from tensorbench.records.metrics import METRICS, Kind, Metric
from tensorbench.tasks import Objective

from ...messages import naming

CASES = [(name, kind) for name in METRICS for kind in METRICS.get(name).kinds]


def made(name: str, kind: Kind, rows: int = 150) -> tuple[Metric, NDArray[Any], NDArray[Any]]:
    """Returns a metric, random targets of this kind, and predictions with some errors and some ties."""
    metric, draw = METRICS.get(name), np.random.default_rng(0)
    if kind == "regression":
        targets = np.round(draw.normal(size=rows), 1)
        return metric, targets, np.round(targets + draw.normal(size=rows), 1)
    if kind == "multi-label":
        targets = draw.integers(0, 2, (rows, 3))
        outputs = np.round(draw.normal(size=(rows, 3)) + targets, 1)
        return metric, targets, outputs if metric.reads == "outputs" else (outputs > 0).astype(int)
    if kind == "generation":
        right, tokens = draw.integers(0, 2, rows), draw.integers(1, 9, rows)
        outputs = np.stack([right, -draw.random(rows) * tokens, tokens], 1)
        return metric, np.ones(rows, dtype=int), outputs if metric.reads == "outputs" else right
    classes = metric.classes or 4
    targets = draw.integers(0, classes, rows)
    outputs = np.round(draw.normal(size=(rows, classes)) + np.eye(classes)[targets], 1)
    return metric, targets, outputs if metric.reads == "outputs" else outputs.argmax(1)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_scores_lie_within_the_bounds_and_a_perfect_one_on_the_better(name: str, kind: Kind) -> None:
    metric, targets, answers = made(name, kind)
    low, high = metric.bounds
    assert all(low <= metric.score(targets, order) <= high for order in (answers, answers[::-1]))
    if metric.reads == "answers":
        assert metric.score(targets, targets) == pytest.approx(high if metric.higher else low)


LIBRARY: dict[tuple[str, Kind], Any] = {
    ("accuracy", "single label"): sk.accuracy_score,
    ("accuracy", "multi-label"): sk.accuracy_score,
    ("balanced_accuracy", "single label"): sk.balanced_accuracy_score,
    ("f1", "single label"): sk.f1_score,
    ("f1_macro", "single label"): lambda t, g: sk.f1_score(t, g, average="macro"),
    ("f1_macro", "multi-label"): lambda t, g: sk.f1_score(t, g, average="macro"),
    ("f1_micro", "single label"): lambda t, g: sk.f1_score(t, g, average="micro"),
    ("f1_micro", "multi-label"): lambda t, g: sk.f1_score(t, g, average="micro"),
    ("matthews", "single label"): sk.matthews_corrcoef,
    ("auroc", "single label"): lambda t, g: sk.roc_auc_score(
        t, torch.tensor(g).softmax(1).numpy(), multi_class="ovr"
    ),
    ("auroc", "multi-label"): sk.roc_auc_score,
    ("pearson", "regression"): lambda t, g: stats.pearsonr(t, g).statistic,
    ("spearman", "regression"): lambda t, g: stats.spearmanr(t, g).statistic,
    ("exact_match", "generation"): sk.accuracy_score,
    ("answer_likelihood", "generation"): lambda t, g: np.mean([row[1] / row[2] for row in g]),
    ("score", "generation"): lambda t, g: np.mean([row[0] for row in g]),
    ("rmse", "regression"): sk.root_mean_squared_error,
}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_score_is_the_librarys(name: str, kind: Kind) -> None:
    metric, targets, answers = made(name, kind)
    assert metric.score(targets, answers) == pytest.approx(LIBRARY[name, kind](targets, answers), abs=1e-12)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_contributions_make_up_the_score_and_vary_as_the_jackknifes(name: str, kind: Kind) -> None:
    metric, targets, answers = made(name, kind)
    contributions, jackknife = (
        metric.contributions(targets, answers),
        Metric.contributions(metric, targets, answers),
    )
    assert contributions.mean() == pytest.approx(metric.score(targets, answers), abs=1e-9)
    assert np.corrcoef(contributions, jackknife)[0, 1] > 0.999
    assert contributions.std() == pytest.approx(jackknife.std(), rel=0.03)


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[1] != "generation"])
def test_chance_is_the_mean_score_of_targets_in_every_rotation(name: str, kind: Kind) -> None:
    metric, targets, answers = made(name, kind)
    # A rotation puts every answer beside every target once. Outputs cannot be made from targets.
    rotated = answers if metric.reads == "outputs" else targets
    scores = [metric.score(targets, np.roll(rotated, by, axis=0)) for by in range(len(targets))]
    expected = np.sqrt(np.mean(np.square(scores))) if name == "rmse" else np.mean(scores)
    assert metric.by_chance(targets) == pytest.approx(expected, abs=1e-12)
    if metric.reads == "answers":
        # The default, for metrics of plug-ins.
        assert Metric.by_chance(metric, targets) == pytest.approx(expected, abs=0.05)


def test_only_errors_are_better_when_they_are_less() -> None:
    lower = {name for name in METRICS if not METRICS.get(name).higher}
    assert lower == {"rmse"}
    assert METRICS.get("rmse").better(1.0, 2.0)
    assert METRICS.get("f1").better(0.7, 0.6)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_answers_that_are_all_the_same_are_correlated_with_nothing(name: str) -> None:
    metric, targets = METRICS.get(name), np.arange(5.0)
    assert metric.score(targets, np.ones(5)) == 0
    assert not metric.contributions(targets, np.ones(5)).any()


def test_auroc_of_a_class_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="each class"):
        METRICS.get("auroc").score(np.zeros(4, dtype=int), np.eye(4)[:, :2])


def test_a_regression_is_trained_standardised_and_answers_in_its_units() -> None:
    labels = torch.tensor([10.0, 20.0, 30.0, 40.0])
    objective = Objective(METRICS.get("rmse"), "regression", 1).standardised("t", labels)
    outputs = ((labels - 25) / labels.std(correction=0))[:, None]
    assert objective.scale == pytest.approx((25, 125**0.5))
    assert float(objective.loss(outputs, labels)) == pytest.approx(0, abs=1e-12)
    assert float(objective.loss(outputs + 1, labels)) == pytest.approx(1)
    assert objective.answers(outputs) == pytest.approx(labels.numpy())
    assert objective.score(outputs + 1, labels) == pytest.approx(125**0.5)
    with pytest.raises(UserError, match=naming(3, 7)):
        objective.standardised("t", torch.full((3,), 7.0))


def test_several_labels_are_trained_and_answered_one_by_one() -> None:
    objective = Objective(METRICS.get("f1_micro"), "multi-label", 2)
    labels, outputs = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, -1.0], [-1.0, 3.0]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(outputs, labels)
    assert objective.loss(outputs, labels) == expected
    assert objective.answers(outputs).tolist() == [[1, 0], [0, 1]]
    assert objective.score(outputs, labels) == pytest.approx(0.8)
