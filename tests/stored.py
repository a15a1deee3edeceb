"""Writes stores with the results of many trials, as real runs would leave them, within seconds.

Storing a trial through MLflow takes a tenth of a second. So only one trial is stored in that way. Its rows in
MLflow's tables are copied for all other trials, with other names and numbers.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import torch

from tensorbench.plan.rows import Plan
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.record import Progress, Record
from tensorbench.records.stored_plan import Row
from tensorbench.records.words import Status, Tag
from tensorbench.store.store import Store
from tensorbench.store.writer import TrialRun, begin_trial
from tensorbench.training.loop import Evaluation, Trained
from tensorbench.training.trial import Outcome

from .predicted import file_of

#: Measures from which reports derive warnings.
OPTIONAL = (Measure.SELECTED_LOSS, Measure.GUESSING_LOSS, Measure.ADAPTER_EFFECT)

TABLES = ("runs", "tags", "params", "metrics", "latest_metrics")

#: Maps the name of a table to the rows of one run in it.
Template = dict[str, list[dict[str, Any]]]

_templates: dict[str, Template] = {}


@dataclass(frozen=True)
class Result:
    """The result to store for a trial."""

    score: float = 0.0
    #: The loss on the split of the score.
    loss: float = 0.5
    #: The reason why the trial failed. Empty if it finished. A failed trial has no score.
    failure: str = ""
    #: The predicted classes, and the true classes.
    answers: Sequence[int] = (0, 1) * 100
    labels: Sequence[int] = (0, 1) * 100
    #: The validation score after each epoch.
    validation: Sequence[float] = (0.5, 0.6)
    step_ms: float = 10.0
    peak_mib: float = 100.0
    tags: dict[str, str] = field(default_factory=dict)
    #: Values of measures in `OPTIONAL`. Measures without a value are not stored, as in earlier versions.
    measures: Mapping[str, float] = field(default_factory=dict)


def write(uri: str, plan: Plan, result: Callable[[Trial, Row], Result | None]) -> Store:
    """Stores the result of each trial of a plan. If `result` returns None, the trial never ran."""
    store = Store.create(uri, plan.suite.name)
    suite_run = store.begin_suite(plan)
    rows = {id_: row for row in reversed(plan.rows) for id_ in row.trials.values()}
    results = [(trial, rows[trial.id], result(trial, rows[trial.id])) for trial in plan.trials]
    finished = [
        (trial, row, trial_result) for trial, row, trial_result in results if trial_result is not None
    ]
    if finished:
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
            template = _template(connection, store, suite_run, *finished[0][:2])
            _clone(connection, store, suite_run, template, finished)
    store.end(suite_run, Status.FINISHED)
    return store


def begun(
    store: Store,
    trial: Trial,
    rows: Sequence[Row],
    parent: str = "none",
    provenance: Mapping[str, str] = {},
    tags: Mapping[Tag, str] = {},
) -> TrialRun:
    run = begin_trial(store, trial, list(rows), "accuracy", parent, tags)
    run.start(trial.model_dump(mode="json", exclude_none=True), provenance)
    return run


def usual_ending(parameters: int) -> Record:
    """Makes the record of a finished trial with made-up results and this many adapter parameters."""
    trained = Trained(2, 2, 0.5, 0.5, 10.0)
    return Outcome(
        trained,
        Evaluation(torch.eye(2), 0.5, 0.5, np.arange(2)),
        torch.arange(2),
        torch.arange(2),
        {},
        {},
        {
            **dict.fromkeys((Measure.SCORE, Measure.SCORE_LOSS, Measure.ADAPTER_EFFECT), 0.5),
            Measure.ADAPTER_PARAMETERS: parameters,
            Measure.HEAD_PARAMETERS: 100,
            Measure.SECONDS: 3600.0,
            Measure.PEAK_MIB: 100.0,
            Measure.ADAPTER_BYTES: 0,
            Measure.FROZEN_BYTES: 0,
            Measure.GUESSING_LOSS: 0.7,
            **trained.measures,
        },
        {},
    ).record()


def _through_the_harness(store: Store, suite_run: str, trial: Trial, row: Row) -> str:
    run = begun(store, trial, [row], suite_run, {"harness": "0.1.0", "version_torch": "2.9"})
    for epoch in (1, 2):
        run.progress(Progress(epoch, 2, epoch, [(epoch, 1 / epoch)], 0.5, 0.5))
    run.end(usual_ending(row.parameters))
    return run.run_id


def _template(
    connection: sqlite3.Connection, store: Store, suite_run: str, trial: Trial, row: Row
) -> Template:
    key = f"{trial.id} {row!r}"
    if key not in _templates:
        run_id = _through_the_harness(store, suite_run, trial, row)
        _templates[key] = {
            table: [
                dict(zip(_columns(connection, table), line, strict=True))
                for line in connection.execute(f"select * from {table} where run_uuid = ?", [run_id])
            ]
            for table in TABLES
        }
        store.client.delete_run(run_id)
    return _templates[key]


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [column[1] for column in connection.execute(f"pragma table_info({table})")]


def _clone(
    connection: sqlite3.Connection,
    store: Store,
    suite_run: str,
    stored: Template,
    results: list[tuple[Trial, Row, Result]],
) -> None:
    home = Path(unquote(store.experiment.artifact_location.removeprefix("file://")))
    now = time.time_ns() // 10**6
    lines: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
    for number, (trial, row, result) in enumerate(results):
        run_id = uuid.uuid4().hex
        artifacts = home / run_id / "artifacts"
        artifacts.mkdir(parents=True)
        changed = {"run_uuid": run_id, "experiment_id": store.experiment.experiment_id}
        tags = {"mlflow.parentRunId": suite_run} | _tags(trial, row) | result.tags
        if result.failure:
            tags |= {"failure": result.failure, "failure_message": "what <happened>"}
        else:
            (artifacts / "predictions.safetensors").write_bytes(_predictions(result))
        (run,) = stored["runs"]
        lines["runs"].append(
            run
            | changed
            | {"artifact_uri": artifacts.as_uri(), "name": tags["mlflow.runName"]}
            | {"status": "FAILED" if result.failure else "FINISHED", "start_time": now + number}
            | {"end_time": now + number + run["end_time"] - run["start_time"]}
        )
        tags_by_key = {line["key"]: line["value"] for line in stored["tags"]} | tags
        # The hashes are those of the copied trial's artifacts.
        tags_by_key.pop(Tag.HASHES)
        values = _measures_of(row, result)
        measures = json.loads(tags_by_key.pop(Tag.MEASURES))
        if result.failure:
            tags_by_key[Tag.VERDICT] = result.failure
        else:
            kept = {key: values.get(key, value) for key, value in measures.items() if _stored(key, result)}
            tags_by_key[Tag.MEASURES] = json.dumps(kept)
        lines["tags"] += [changed | {"key": key, "value": value} for key, value in tags_by_key.items()]
        lines["params"] += [line | changed for line in stored["params"]]
        if result.failure:
            continue
        for table in ("metrics", "latest_metrics"):
            for line in stored[table]:
                if _stored(line["key"], result) and not line["key"].startswith("validation/"):
                    lines[table].append(line | changed | {"value": values.get(line["key"], line["value"])})
        curve = next(line for line in stored["metrics"] if line["key"] == "validation/accuracy")
        lines["metrics"] += [
            curve | changed | {"step": epoch, "value": value}
            for epoch, value in enumerate(result.validation, 1)
        ]
    for table in TABLES:
        names = _columns(connection, table)
        connection.executemany(
            f"insert into {table} ({','.join(names)}) values ({','.join('?' * len(names))})",
            [[line.get(name) for name in names] for line in lines[table]],
        )
    connection.commit()


def _stored(key: str, result: Result) -> bool:
    return key not in OPTIONAL or key in result.measures


def _measures_of(row: Row, result: Result) -> dict[str, float]:
    return {
        "score": result.score,
        "score_loss": result.loss,
        "selected/validation": max(result.validation),
        "parameters/adapter": row.parameters,
        "cost/step_ms": result.step_ms,
        "cost/peak_mib": result.peak_mib,
        **result.measures,
    }


def _tags(trial: Trial, row: Row) -> dict[str, str]:
    ranks = ",".join(map(str, row.ranks))
    budget = row.budget or "own"
    budget_fields = {"budget": budget, "asked": row.asked, "ratio": row.ratio, "within": row.within}
    return {
        "mlflow.runName": f"{row.method} {ranks}".rstrip() + f" · {row.task} · seed {trial.seed}",
        "trial_id": trial.id,
        "method": row.method,
        "backbone": row.backbone,
        "task": row.task,
        "seed": str(trial.seed),
        "evaluated": trial.evaluate,
        "ranks": ranks,
        "budget": budget,
        "budgets": json.dumps([budget_fields] if row.budget else []),
    }


def _predictions(result: Result) -> bytes:
    answers = np.asarray(result.answers)
    return file_of(
        pd.DataFrame({"example": np.arange(len(answers)), "label": result.labels, "prediction": answers})
    )
