"""Tests the converged head against scikit-learn on the same features, and the choice of C."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from tensorbench.backbones import LoadedBackbone
from tensorbench.backbones.backbone import FittedHead
from tensorbench.backbones.plain import wrap
from tensorbench.backbones.random_weights import RandomBackbone
from tensorbench.backbones.registered_backbones import BACKBONES
from tensorbench.checks.verify import verify
from tensorbench.methods import Geometry, UserError, create
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.metrics import METRICS
from tensorbench.store.store import Store
from tensorbench.store.trained import stored_trial
from tensorbench.tasks import Objective, PreparedData, Split
from tensorbench.tools.export import export_run
from tensorbench.training import converged
from tensorbench.training.converged import GRID, Fit, choose, scale
from tensorbench.training.loop import evaluate
from tensorbench.training.trial import Outcome, Resources, run_trial

from ...messages import naming
from ..toy_runs import run_inline
from ..toy_suites import DIGITS, MOVIES, TEXT, VISION, plan

#: A backbone whose head has a dense layer before its last one.
ROBERTA = RandomBackbone("tiny-roberta", "roberta", Geometry(32, 4, 2, 64), max_tokens=128)

PAIRS = {"task": "rating-pairs", "train_size": 200, "validation_size": 80, "test_size": 80}
BASES: dict[str, dict[str, Any]] = {
    "ten classes": {**VISION, "tasks": [{**DIGITS, "train_size": 200, "test_size": 200}]},
    "two classes": {**TEXT, "tasks": [{**MOVIES, "train_size": 200}]},
    "a head with a hidden layer": {
        **TEXT,
        "backbones": ["tiny-roberta"],
        "tasks": [{**MOVIES, "train_size": 200}],
    },
}


@pytest.fixture(autouse=True)
def _roberta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES._targets, "tiny-roberta", f"{__name__}:ROBERTA")


def only(base: dict[str, Any]) -> Trial:
    (trial,) = plan(base, methods=["converged_head"]).trials
    return trial


def ran(base: dict[str, Any]) -> tuple[Outcome, LoadedBackbone, PreparedData]:
    trial, resources = only(base), Resources("cpu")
    outcome = run_trial(trial, resources, lambda progress: None)
    backbone = resources.backbone(trial)
    return outcome, backbone, resources.data(trial, backbone.info.input)


def features_of(backbone: LoadedBackbone, split: Split) -> NDArray[Any]:
    """Computes features one example at a time, so that nothing is padded."""
    module = backbone.module.eval()
    with torch.no_grad():
        rows = [
            module.pool(module.encoder, **split.batch(torch.tensor([i])))[0].double()
            for i in range(len(split))
        ]
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_a_trial_answers_as_sklearn_does_on_the_same_features(base: dict[str, Any]) -> None:
    outcome, backbone, data = ran(base)
    train, validation, test = (features_of(backbone, s) for s in (data.train, data.validation, data.test))
    scaler, models = StandardScaler().fit(train), {}
    for c in GRID:
        model = LogisticRegression(C=c, solver="newton-cholesky", max_iter=1_000, tol=1e-12)
        model.fit(scaler.transform(train), data.train.labels.numpy())
        chances = model.predict_proba(scaler.transform(validation))
        models[log_loss(data.validation.labels.numpy(), chances, labels=model.classes_)] = c, model
    c, model = models[min(models)]
    assert (outcome.trained.head_c, outcome.trained.head_converged) == (c, True)
    assert (outcome.measures[Measure.ADAPTER_PARAMETERS], outcome.trained.steps) == (0, 0)
    # The head has weights for features as they are. It adds terms that nearly cancel, in float32.
    weight = model.coef_ / scaler.scale_
    terms = np.abs(test) @ np.abs(weight).T + np.abs(model.intercept_ - weight @ scaler.mean_)
    allowed = 10 * np.finfo(np.float32).eps * terms.max(axis=1, keepdims=True)
    logits = outcome.final.logits.double().log_softmax(1).numpy()
    assert (np.abs(logits - model.predict_log_proba(scaler.transform(test))) <= allowed).all()


def test_a_regression_is_ridge() -> None:
    outcome, backbone, data = ran({**TEXT, "tasks": [PAIRS]})
    train, validation, test = (features_of(backbone, s) for s in (data.train, data.validation, data.test))
    scaler, errors = StandardScaler().fit(train), {}
    spread = data.train.labels.numpy().std()
    for c in GRID:
        # Training standardises the targets, which scales the penalty together with the loss.
        model = Ridge(alpha=1 / c).fit(scaler.transform(train), data.train.labels.numpy() / spread)
        answers = model.predict(scaler.transform(validation)) * spread
        errors[float(np.square(answers - data.validation.labels.numpy()).mean())] = c, model
    c, model = errors[min(errors)]
    assert outcome.trained.head_c == c
    expected = model.predict(scaler.transform(test)) * spread
    np.testing.assert_allclose(outcome.final.answers, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("classes", [2, 10])
def test_every_fit_is_within_1e_8_of_its_minimum(classes: int) -> None:
    draws = np.random.default_rng(0)
    # Three directions hold most of the variance, as in the features of a backbone.
    features = draws.normal(size=(400, 3)) @ draws.normal(size=(3, 64)) + 0.1 * draws.normal(size=(400, 64))
    mean, sd = scale(features)
    features = (features - mean) / sd
    labels = draws.integers(0, classes, 400)
    for fit in converged._logistic(features, labels, classes):
        assert fit.converged
        logits = fit.outputs(features).requires_grad_()
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        (slope,) = torch.autograd.grad(loss, logits)
        # For two classes, the rows are w / 2 and -w / 2: the penalty is |w|², twice the sum of their squares.
        inverse = (2 if classes == 2 else 1) / (fit.c * len(labels))
        gradient = np.append(slope.numpy().T @ features + inverse * fit.weight, slope.numpy().sum(0))
        objective = loss.item() + inverse * np.square(fit.weight).sum() / 2
        # The objective is at least this strongly convex.
        assert np.square(gradient).sum() / (2 * inverse) <= 1e-8 * objective


# --- the choice of C ---


def made_up(labels: Tensor, kind: Any, outputs: int) -> tuple[tuple[NDArray[Any], NDArray[Any]], Objective]:
    """Standardised features for training and for validation, and an objective."""
    draws = np.random.default_rng(0)
    train, validation = draws.normal(size=(2, len(labels), 6))
    train[:, 5] = validation[:, 5] = 3.0
    metric = METRICS.get("accuracy")
    mean, sd = scale(train)
    return ((train - mean) / sd, (validation - mean) / sd), Objective(metric, kind, outputs)


def test_a_class_without_training_examples_is_unlikely_and_no_nan() -> None:
    labels = torch.arange(60) % 3
    features, objective = made_up(labels, "single label", 4)
    chances = choose(*features, labels, labels, objective).outputs(features[1]).softmax(1)
    assert bool(chances.isfinite().all())
    assert float(chances[:, 3].max()) < 1 / 60
    alone = choose(*features, torch.full((60,), 2), labels, objective)
    assert bool((alone.outputs(features[1]).argmax(1) == 2).all())


def test_several_labels_are_a_regression_each() -> None:
    draws = np.random.default_rng(1)
    flags = torch.from_numpy(draws.integers(0, 2, (60, 3))).float()
    flags[:, 1] = 0
    features, objective = made_up(flags, "multi-label", 3)
    fit = choose(*features, flags, flags, objective)
    model = LogisticRegression(C=fit.c, tol=1e-8).fit(features[0], flags[:, 0].numpy())
    np.testing.assert_allclose(fit.weight[0], model.coef_[0], atol=1e-4)
    assert bool((fit.outputs(features[1])[:, 1] < -4).all())


def test_a_constant_feature_counts_for_nothing() -> None:
    labels = torch.arange(60) % 2
    features, objective = made_up(labels, "single label", 2)
    assert not choose(*features, labels, labels, objective).weight[:, 5].any()


def test_the_search_ends_two_decades_after_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(60) % 2
    features, objective = made_up(labels, "single label", 2)
    tried: list[float] = []
    path = converged._logistic

    def watched(*arguments: Any) -> Any:
        for fit in path(*arguments):
            tried.append(fit.c)
            yield fit

    monkeypatch.setattr(converged, "_logistic", watched)
    best: Fit = choose(*features, labels, labels, objective)
    assert tried == list(GRID[: GRID.index(best.c) + 1 + converged.PATIENCE])


def test_a_solver_that_stops_early_is_warned_of_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converged, "MOST_ITERATIONS", 1)
    with pytest.warns(UserWarning, match="not converge"):
        outcome, *_ = ran(BASES["ten classes"])
    assert outcome.trained.head_converged is False


# --- everything else is the usual code ---


def test_a_stored_head_is_loaded_verified_run_again_and_exported(
    tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    store = Store.create(new_store(tmp_path), "toy")
    for name in ("ten classes", "a head with a hidden layer"):
        run_inline(store, plan(BASES[name], methods=["converged_head"], seeds=[0, 1]))
    records = store.records()
    assert {record.status for record in records} == {"FINISHED"}
    assert all(
        record.metrics["head/converged"] == 1 and record.metrics["head/C"] in GRID for record in records
    )
    assert verify(store=store.uri, reruns=4).ok
    for record in records:
        with stored_trial(store.uri, record.trial_id) as stored:
            data = Resources("cpu").data(stored.trial, stored.backbone.info.input)
            scored = evaluate(stored.backbone, stored.adapter, data.test, stored.trial.recipe, data.objective)
            assert scored.metric == record.score
    vision = next(record for record in records if record.tags["task"] == "digits")
    assert export_run(vision.trial_id, tmp_path / "vit", store.uri, merged=True)
    text = next(record for record in records if record.tags["task"] == "movie-sentiment")
    with pytest.raises(UserError, match=naming("tiny-roberta", "converged head")):
        export_run(text.trial_id, tmp_path / "roberta", store.uri, merged=True)


def test_logits_are_in_full_precision_inside_of_an_autocast() -> None:
    head, features = FittedHead(64, 3), 30 + torch.randn(5, 64)
    expected = nn.functional.linear(features, head.weight, head.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(features), expected)
        assert head(features.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"methods": [{"method": "converged_head", "training": {"lr": 0.1, "batch_size": 8}}]},
            r"methods\.0: training: lr: converged head",
        ),
        (
            {
                "methods": ["lora", "converged_head"],
                "backbones": ["tiny-random-llama"],
                "tasks": [{**MOVIES, "verbalizer": {"prompt": "{text} :", "words": [" no", " yes"]}}],
            },
            naming("methods.1", "'tiny-random-llama'", "'movie-sentiment'"),
        ),
    ],
    ids=["a rate", "a language model that answers in words"],
)
def test_a_plan_refuses_what_it_cannot_fit(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        plan(**changes)


def test_a_user_s_own_loop_cannot_have_the_converged_head() -> None:
    backbone = RandomBackbone("tiny", "vit", Geometry(32, 4, 2, 64), image_size=32, patch=8).load(None)
    with pytest.raises(UserError, match="converged head"):
        wrap(backbone, create("converged_head"))
