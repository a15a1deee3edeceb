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
        from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlRun, SqlTag

        of_kind = (
            select(SqlRun.run_uuid)
            .join(SqlTag, SqlTag.run_uuid == SqlRun.run_uuid)
            .where(SqlRun.experiment_id == int(experiment_id))
            .where(SqlRun.lifecycle_stage == LifecycleStage.ACTIVE)
            .where(SqlTag.key == Tag.KIND, SqlTag.value == kind)
        )
        runs = (
            select(SqlRun.run_uuid, SqlRun.status, SqlRun.start_time, SqlRun.artifact_uri, SqlRun.end_time)
            .where(SqlRun.run_uuid.in_(of_kind))
            .order_by(SqlRun.start_time, SqlRun.run_uuid)
        )
        tags = select(SqlTag.run_uuid, SqlTag.key, SqlTag.value).where(SqlTag.run_uuid.in_(of_kind))
        metrics = select(
            SqlLatestMetric.run_uuid, SqlLatestMetric.key, SqlLatestMetric.value, SqlLatestMetric.is_nan
        ).where(SqlLatestMetric.run_uuid.in_(of_kind))
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
        from mlflow.store.tracking.dbmodels.models import SqlMetric, SqlRun

        point = SqlMetric.run_uuid, SqlMetric.key, SqlMetric.step
        points = (
            select(*point, SqlMetric.value, SqlMetric.is_nan)
            .join(SqlRun, SqlRun.run_uuid == SqlMetric.run_uuid)
            .where(SqlRun.experiment_id == int(experiment_id))
            .where(SqlRun.lifecycle_stage == LifecycleStage.ACTIVE)
            .order_by(*point, SqlMetric.timestamp, SqlMetric.value)
        )
        if key is None:
            points = points.where(or_(*(SqlMetric.key.startswith(start) for start in CURVES_BEGIN)))
        else:
            points = points.where(SqlMetric.key == key, SqlMetric.run_uuid.in_(runs))
    except (ImportError, AttributeError):
        return None
    with database_engine(uri) as engine, engine.connect() as connection:
        values = {
            (run_id, key, step): math.nan if is_nan else value
            for run_id, key, step, value, is_nan in connection.execute(points)
        }
    return [(*point, value) for point, value in values.items()]
