"""Tests what MLflow's interface shows of a suite: few charts, tags to filter by, and the suite's answer."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tensorbench.execution.place import Place
from tensorbench.plan.pairs import Part
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record, failed
from tensorbench.records.stored_plan import Row
from tensorbench.records.words import RunKind, Status, Tag
from tensorbench.run.suites import run_suite
from tensorbench.store.queries import find_runs
from tensorbench.store.store import COMPARED, Store

from ...reports import made_up_studies
from ...stored import Result, begun, usual_ending
from ...stored import write as stored
from ..toy_suites import plan

HERE = Place(device="cpu")


def answer_of(store: Store) -> tuple[str, dict[str, float]]:
    """The note of the suite's run, and its metrics."""
    (run,) = store.records(RunKind.SUITE)
    return run.tag(Tag.NOTE), dict(run.metrics)


def test_an_experiment_opens_as_one_of_model_training(uri: str) -> None:
    client = MlflowClient(uri)
    client.create_experiment("older")
    for name in ("new", "older"):
        Store.create(uri, name)
        tags = client.get_experiment_by_name(name).tags
        assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_trial_has_few_metrics_and_loses_no_measure(uri: str) -> None:
    store, made = Store.create(uri, "toy"), plan()
    run, ending = begun(store, made.trials[0], made.rows), usual_ending(768)
    run.end(ending)
    shown = store.client.get_run(run.run_id).data.metrics
    assert set(shown) == set(COMPARED) & set(ending.metrics)
    assert len(ending.metrics) > 2 * len(shown)
    by_tables = store.records()
    by_client = find_runs(store.client, [store.experiment_id], f"tags.{Tag.KIND} = 'trial'")
    assert [dict(record.metrics) for record in (*by_tables, *by_client)] == [dict(ending.metrics)] * 2
    assert Tag.MEASURES not in by_tables[0].tags


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": "b"}', '{"a": null}', "[" * 100_000])
def test_measures_that_somebody_else_wrote_do_no_harm(uri: str, text: str) -> None:
    store, made = Store.create(uri, "toy"), plan()
    run = begun(store, made.trials[0], made.rows)
    run.end(usual_ending(768))
    store.client.set_tag(run.run_id, Tag.MEASURES, text[:5000])
    (record,) = store.records()
    assert record.score == 0.5
    assert record.measure(Measure.STEPS) is None


def test_trials_of_studies_name_their_study_and_point(uri: str) -> None:
    made = made_up_studies.plan_of(tasks=["digits"], backbones=["tiny-random-vit"], methods=["lora"])
    store = Store.create(uri, made_up_studies.NAME)
    for trial in made.trials:
        begun(store, trial, made.rows)
    tags = {(int(run.tag(Tag.SEED)), run.tag(Tag.STUDY), run.tag(Tag.POINT)) for run in store.records()}
    (row,) = made.rows
    assert row.studies is not None
    assert tags == {(seed, str(p.study), str(p.point)) for seed, p in row.studies.trials.items()}


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        (usual_ending(768), "finished"),
        (Record(status=Status.FINISHED, metrics={"selected/validation_loss": 0.7}), "finished"),
        (
            Record(
                status=Status.FINISHED,
                metrics={"selected/validation_loss": 0.7, "guessing/validation_loss": 0.7},
            ),
            "no better than guessing",
        ),
        (failed("diverged", "the loss is nan", ""), "diverged"),
        (failed("out of memory", "none is left", ""), "out of memory"),
    ],
)
def test_the_verdict_of_a_trial_is_a_tag(uri: str, record: Record, verdict: str) -> None:
    assert record.verdict == verdict
    store, made = Store.create(uri, "toy"), plan()
    begun(store, made.trials[0], made.rows).end(record)
    (run,) = store.records()
    assert run.tag(Tag.VERDICT) == verdict


METHODS = ["lora", {"method": "tenslora", "each": {"variant": ["att", "qkv_depth"]}}]
STUDIED: dict[str, Any] = {"tasks": ["digits"], "backbones": ["tiny-random-vit"], "methods": METHODS}
SEEDED: dict[str, Any] = {"seeds": [0, 1, 2], "methods": METHODS, "budgets": [{"isorank": 2}]}


def of_seeds(trial: Trial, row: Row) -> Result:
    return Result(score=0.5 + 0.1 * (row.title == "LoRA") + Random(trial.id).uniform(0, 0.05))


@pytest.mark.parametrize("studies", [True, False])
def test_a_complete_suite_s_run_has_the_answer_and_the_differences(uri: str, *, studies: bool) -> None:
    texts = {"description": "Which is best?", "closing": "The end."}
    made = made_up_studies.plan_of(**STUDIED, **texts) if studies else plan(**SEEDED, **texts)
    store = stored(uri, made, made_up_studies.result if studies else of_seeds)
    done = run_suite(made.suite, store=uri, place=HERE)
    assert done.complete or studies  # one of the made-up trials diverged
    note, metrics = answer_of(store)
    lines = note.split("\n\n")
    assert (lines[0], lines[-1]) == ("Which is best?", "The end.")
    assert any("LoRA" in line for line in lines[1:-1])
    names = {key.partition("/")[2] for key in metrics}
    assert names == {"TensLoRA att", "TensLoRA qkv_depth"}
    for name in names:
        low, middle, high = (metrics[f"difference from LoRA{end}/{name}"] for end in (" low", "", " high"))
        assert low < middle < high
    # With studies there is a point for each number of trials, and another start adds none.
    (run,) = store.records(RunKind.SUITE)
    history = store.client.get_metric_history(run.run_id, "difference from LoRA/TensLoRA att")
    assert [point.step for point in history] == ([1, 2, 4, 8] if studies else [0])
    run_suite(made.suite, store=uri, place=HERE)
    assert store.client.get_metric_history(run.run_id, "difference from LoRA/TensLoRA att") == history


def test_a_suite_with_missing_trials_has_no_answer_yet(uri: str) -> None:
    made = plan(**SEEDED, description="Which is best?")
    store = stored(uri, made, lambda trial, row: None if trial.seed == 2 else of_seeds(trial, row))
    run_suite(made.suite, store=uri, place=HERE, part=Part(seeds=[0]))
    assert answer_of(store) == ("Which is best?", {})
