"""Queries of a tracking store, through MLflow's client or directly from the tables of its database.

Reading 10,000 runs from the tables takes a tenth of the client's time. But the tables are no public interface
of MLflow. If a later version changes them, the store uses the client instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from mlflow.entities import Experiment, Run, ViewType
from mlflow.tracking import MlflowClient
from sqlalchemy import or_, select

from tensorbench.records.pack_format import CURVES_BEGIN
from tensorbench.records.record import Record, record_of
from tensorbench.records.words import RunKind, Tag
from tensorbench.store.connect import database_engine
from tensorbench.store.mlflow_internals import models
from tensorbench.store.sqlite_file import joined, measures_in

#: The largest number of results per request.
PAGE = 1000


def every_page(ask: Callable[[str | None], Any]) -> Iterator[Any]:
    """Yields the results on all pages of a query.

    `ask` returns the page for a token. For None it returns the first page.
    """
    page = ask(None)
    yield from page
    while page.token:
        page = ask(page.token)
        yield from page


def experiments(client: MlflowClient) -> Iterator[Experiment]:
    """Yields the experiments of a store, newest first, without deleted ones. MLflow's Default is included."""
    return every_page(lambda token: client.search_experiments(max_results=PAGE, page_token=token))


def find_runs(client: MlflowClient, experiments: Sequence[str], condition: str) -> list[Record]:
    """Returns the runs that meet a condition, oldest first, without deleted runs.

    `experiments` are ids. `condition` is in MLflow's search language.
    """
    if not experiments:
        return []
    runs: Iterator[Run] = every_page(
        lambda token: client.search_runs(
            list(experiments),
            condition,
            ViewType.ACTIVE_ONLY,
            max_results=PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
    )
    records = []
    for run in runs:
        info, tags = run.info, dict(run.data.tags)
        metrics = measures_in(tags) | run.data.metrics
        records.append(
            record_of(
                info.run_id, info.status, info.start_time, tags, metrics, info.artifact_uri, info.end_time
            )
        )
    return records


def read_tables(uri: str, experiment_id: str, kind: RunKind) -> list[Record] | None:
    """Reads every run of a kind from the database, oldest first.

    Returns None if the installed version of MLflow defines other tables. Errors of the database are raised
    unchanged: MLflow's client has checked that the database has the tables of the installed version.
    """
    try:
        from mlflow.entities import LifecycleStage

        sql = models()
        run, tag, metric = sql.SqlRun, sql.SqlTag, sql.SqlLatestMetric

        of_kind = (
            select(run.run_uuid)
            .join(tag, tag.run_uuid == run.run_uuid)
            .where(run.experiment_id == int(experiment_id))
            .where(run.lifecycle_stage == LifecycleStage.ACTIVE)
            .where(tag.key == Tag.KIND, tag.value == kind)
        )
        runs = (
            select(run.run_uuid, run.status, run.start_time, run.artifact_uri, run.end_time)
            .where(run.run_uuid.in_(of_kind))
            .order_by(run.start_time, run.run_uuid)
        )
        tags = select(tag.run_uuid, tag.key, tag.value).where(tag.run_uuid.in_(of_kind))
        metrics = select(metric.run_uuid, metric.key, metric.value, metric.is_nan).where(
            metric.run_uuid.in_(of_kind)
        )
    except (ImportError, AttributeError):
        return None
    with database_engine(uri) as engine, engine.connect() as connection:
        return joined(connection.execute(runs), connection.execute(tags), connection.execute(metrics))


def read_curves(
    uri: str, experiment_id: str, key: str | None, runs: Collection[str]
) -> list[tuple[str, str, int, float]] | None:
    """Reads the points (run id, key, step, value) of curves from the database, sorted.

    `key` and `runs` are those of `Source.curves`. Returns None if the installed version of MLflow defines
    other tables.
    """
    try:
        from mlflow.entities import LifecycleStage

        run, metric = models().SqlRun, models().SqlMetric

        point = metric.run_uuid, metric.key, metric.step
        points = (
            select(*point, metric.value, metric.is_nan)
            .join(run, run.run_uuid == metric.run_uuid)
            .where(run.experiment_id == int(experiment_id))
            .where(run.lifecycle_stage == LifecycleStage.ACTIVE)
            .order_by(*point, metric.timestamp, metric.value)
        )
        if key is None:
            points = points.where(or_(*(metric.key.startswith(start) for start in CURVES_BEGIN)))
        else:
            points = points.where(metric.key == key, metric.run_uuid.in_(runs))
    except (ImportError, AttributeError):
        return None
    with database_engine(uri) as engine, engine.connect() as connection:
        values = {
            (run_id, key, step): math.nan if is_nan else value
            for run_id, key, step, value, is_nan in connection.execute(points)
        }
    return [(*point, value) for point, value in values.items()]
