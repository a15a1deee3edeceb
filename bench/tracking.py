"""MLflow is the store: one experiment a suite, one run a trial, and one run that holds the plan."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import pandas as pd
import psutil
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from sqlalchemy import create_engine, select
from sqlalchemy.exc import SQLAlchemyError

# Nothing leaves the machine unless the user names a server.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Its bars would tear ours.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow.entities import Experiment, LifecycleStage, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlRun, SqlTag
from mlflow.tracking import MlflowClient

from bench.assets import cache_dir
from bench.plan import Plan, Row, Trial
from bench.training import Progress
from bench.trial import Outcome
from methods import UserError

DEFAULT_STORE = "sqlite:///mlflow.db"

#: Why a trial ended without a result.
Failure = Literal["diverged", "out of memory", "error"]

#: MLflow's limits for one request.
MOST_METRICS, MOST_PARAMS = 1000, 100

SQLITE = "sqlite:///"

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"

#: What MLflow raises where a store cannot be read or written: its own error, the database's, the disk's.
BROKEN_STORE = (MlflowException, SQLAlchemyError, OSError)


class StoreError(UserError):
    """A result could not be stored. It says nothing about the trial."""


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except BROKEN_STORE as error:
        raise StoreError(
            f"the store could not be written to: {error}; what it lacks runs again at the next start"
        ) from error


@dataclass(frozen=True)
class Record:
    """A stored trial, as resuming and reports read it."""

    run_id: str
    trial_id: str
    status: str
    started: int
    tags: dict[str, str] = field(repr=False)
    metrics: dict[str, float] = field(repr=False)
    #: URI of the run's artifacts.
    artifacts: str = field(default="", repr=False)

    @property
    def settled(self) -> bool:
        """Whether the trial has a result, were it a failure; it does not run again unasked."""
        return self.status in ("FINISHED", "FAILED")


class Store:
    """One experiment of a tracking store. Raises UserError where the store cannot be used."""

    def __init__(self, client: MlflowClient, experiment: Experiment, lock: FileLock) -> None:
        self.client = client
        self.experiment = experiment
        self._lock = lock

    @classmethod
    def create(cls, uri: str, name: str) -> Store:
        """Opens the experiment, making store and experiment where they are not there yet."""
        client, lock = connect(uri, name, create=True)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            location = None
            if uri.startswith(SQLITE):
                location = (_database(uri).parent / "mlartifacts" / name).absolute().as_uri()
            try:
                experiment = client.get_experiment(client.create_experiment(name, artifact_location=location))
            except MlflowException as error:
                # Of two first starts at once, the second finds the first one's experiment.
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise UserError(f"cannot create experiment '{name}' in {uri}: {error}") from error
        if experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"experiment '{name}' was deleted in {uri}; restore it with "
                f"'mlflow experiments restore -x {experiment.experiment_id}' or rename the suite"
            )
        return cls(client, experiment, lock)

    @classmethod
    def existing(cls, uri: str, name: str) -> Store:
        """Opens an experiment for reading. Raises UserError, with near names, if there is none."""
        client, lock = connect(uri, name, create=False)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            names = [found.name for found in client.search_experiments() if found.name != "Default"]
            near = get_close_matches(name, names, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"no experiment '{name}' in {uri}{hint} (there: {', '.join(names) or 'none'})")
        return cls(client, experiment, lock)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Held while a suite runs; the operating system frees it when the process dies.

        Raises UserError if another process runs this experiment on this store.
        """
        owner = Path(self._lock.lock_file + ".owner")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
            raise UserError(
                f"suite '{self.experiment.name}' is already running on this store ({who}); "
                "wait for it, or stop it and start again"
            ) from None
        try:
            owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
            yield
        finally:
            owner.unlink(missing_ok=True)
            self._lock.release()

    def records(self, kind: str = "trial") -> list[Record]:
        """Every stored run of a kind, trials unless another is named, oldest first."""
        if not self.client.tracking_uri.startswith(("http://", "https://")):
            return self._database_records(kind)
        return [
            Record(
                run.info.run_id,
                run.data.tags.get("trial_id", ""),
                run.info.status,
                run.info.start_time,
                dict(run.data.tags),
                dict(run.data.metrics),
                run.info.artifact_uri,
            )
            for run in self._search(kind)
        ]

    def plan(self) -> dict[str, Any] | None:
        """The plan of the latest start of the suite, as `Plan.as_json` wrote it."""
        runs = self._search("suite")
        if not runs:
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = self.client.download_artifacts(runs[-1].info.run_id, "plan.json", folder)
            plan: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return plan

    def close_stale(self) -> int:
        """Closes runs left RUNNING by a dead process as KILLED; returns how many."""
        local = self.client.tracking_uri.startswith(SQLITE)
        stale = [
            run
            for kind in ("trial", "suite")
            for run in self._search(kind, "RUNNING")
            # Whoever holds the lock of a SQLite store is alone on it. A server may have other drivers,
            # of which only those on this machine can be known dead.
            if local or _dead(run.data.tags.get("owner", ""))
        ]
        for run in stale:
            self.client.set_terminated(run.info.run_id, "KILLED")
        return len(stale)

    @_storing()
    def begin_suite(self, plan: Plan) -> str:
        """The run that holds the plan and that trial runs are nested under."""
        runs = self._search("suite")
        if runs:
            run_id: str = runs[-1].info.run_id
            self.client.update_run(run_id, status="RUNNING")
            self.client.set_tag(run_id, "owner", _owner())
        else:
            tags = {"kind": "suite", "owner": _owner()}
            run_id = self.client.create_run(
                self.experiment.experiment_id, tags=tags, run_name=plan.suite.name
            ).info.run_id
        self.client.log_text(run_id, json.dumps(plan.as_json(), indent=1), "plan.json")
        self.client.set_tag(run_id, "mlflow.note.content", plan.suite.description)
        return run_id

    @_storing()
    def end_suite(self, run_id: str, status: Literal["FINISHED", "KILLED"]) -> None:
        self.client.set_terminated(run_id, status)

    @_storing()
    def begin_trial(
        self, trial: Trial, rows: list[Row], metric: str, suite_run: str, provenance: dict[str, str]
    ) -> TrialRun:
        """Opens the run of a trial and stores all that is known before it starts."""
        row = rows[0]
        budgets = [
            {"budget": r.budget.label, "asked": r.asked, "ratio": r.ratio, "within": r.within}
            for r in rows
            if r.budget
        ]
        config = trial.model_dump(mode="json", exclude_none=True)
        tags = {
            "kind": "trial",
            "trial_id": trial.id,
            "owner": _owner(),
            "method": row.method,
            "family": trial.method["method"],
            "backbone": row.backbone,
            "task": row.task,
            "seed": str(trial.seed),
            "metric": metric,
            "evaluated": trial.evaluate,
            "ranks": ",".join(map(str, row.ranks)),
            "budget": "; ".join(str(entry["budget"]) for entry in budgets) or "own",
            "budgets": json.dumps(budgets),
            "budget_missed": "yes" if any(entry["within"] is False for entry in budgets) else "no",
            "mlflow.parentRunId": suite_run,
            **{f"provenance.{key}": value for key, value in provenance.items()},
        }
        name = f"{row.method} {tags['ranks']}".rstrip() + f" · {row.task} · seed {trial.seed}"
        run = self.client.create_run(self.experiment.experiment_id, tags=tags, run_name=name)
        writer = TrialRun(self.client, run.info.run_id, metric)
        try:
            writer.start(config, provenance)
        except BaseException:  # an interrupt, say: nobody else knows of this run yet
            writer.kill()
            raise
        return writer

    def _database_records(self, kind: str) -> list[Record]:
        """What `records` returns, read from MLflow's tables: 10,000 runs in a tenth of the time."""
        engine = create_engine(self.client.tracking_uri)
        of_kind = (
            select(SqlRun.run_uuid)
            .join(SqlTag, SqlTag.run_uuid == SqlRun.run_uuid)
            .where(SqlRun.experiment_id == int(self.experiment.experiment_id))
            .where(SqlRun.lifecycle_stage == LifecycleStage.ACTIVE)
            .where(SqlTag.key == "kind", SqlTag.value == kind)
        )
        runs = select(SqlRun.run_uuid, SqlRun.status, SqlRun.start_time, SqlRun.artifact_uri).where(
            SqlRun.run_uuid.in_(of_kind)
        )
        tags = select(SqlTag.run_uuid, SqlTag.key, SqlTag.value).where(SqlTag.run_uuid.in_(of_kind))
        metrics = select(
            SqlLatestMetric.run_uuid, SqlLatestMetric.key, SqlLatestMetric.value, SqlLatestMetric.is_nan
        ).where(SqlLatestMetric.run_uuid.in_(of_kind))
        told: defaultdict[str, dict[str, str]] = defaultdict(dict)
        measured: defaultdict[str, dict[str, float]] = defaultdict(dict)
        try:
            with engine.connect() as connection:
                found = connection.execute(runs.order_by(SqlRun.start_time, SqlRun.run_uuid)).all()
                for run_id, key, value in connection.execute(tags):
                    told[run_id][key] = value
                for run_id, key, value, is_nan in connection.execute(metrics):
                    measured[run_id][key] = math.nan if is_nan else value
        finally:
            engine.dispose()
        return [
            Record(
                run_id,
                told[run_id].get("trial_id", ""),
                status,
                started,
                told[run_id],
                measured[run_id],
                artifacts,
            )
            for run_id, status, started, artifacts in found
        ]

    def _search(self, kind: str, status: str | None = None) -> list[Run]:
        condition = f"tags.kind = '{kind}'" + (f" and attributes.status = '{status}'" if status else "")
        found: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment.experiment_id],
                condition,
                ViewType.ACTIVE_ONLY,
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            found.extend(page)
            token = page.token
            if not token:
                return found


class TrialRun:
    """Writes one trial. The terminal status is written last, after metrics and artifacts."""

    def __init__(self, client: MlflowClient, run_id: str, metric: str) -> None:
        self._client = client
        self.run_id = run_id
        self._metric = metric

    def start(self, config: dict[str, Any], provenance: dict[str, str]) -> None:
        params = [Param(key, str(value)) for key, value in _flat(config).items()]
        for first in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self.run_id, params=params[first : first + MOST_PARAMS])
        resolved = {"trial": config, "provenance": provenance}
        self._client.log_text(self.run_id, json.dumps(resolved, indent=1), "config.json")

    @_storing()
    def progress(self, progress: Progress) -> None:
        values: list[tuple[str, float, int]] = [("train/loss", loss, step) for step, loss in progress.losses]
        if progress.validation_metric is not None and progress.validation_loss is not None:
            values += [
                (f"validation/{self._metric}", progress.validation_metric, progress.epoch),
                ("validation/loss", progress.validation_loss, progress.epoch),
            ]
        self._metrics(values)

    @_storing()
    def finish(self, outcome: Outcome) -> None:
        trained = outcome.trained
        values: dict[str, float | None] = {
            # One key for every metric and split; the tags `metric` and `evaluated` say which it is.
            "score": outcome.final.metric,
            "score_loss": outcome.final.loss,
            "selected/epoch": trained.selected_epoch,
            "selected/validation": trained.validation_metric,
            "parameters/adapter": outcome.adapter_parameters,
            "parameters/head": outcome.head_parameters,
            "cost/steps": trained.steps,
            "cost/step_ms": trained.step_ms,
            "cost/seconds": outcome.seconds,
            "cost/peak_mib": outcome.peak_mib,
        }
        self._metrics([(key, float(value), 0) for key, value in values.items() if value is not None])
        with tempfile.TemporaryDirectory() as folder:
            _predictions(outcome).to_parquet(Path(folder) / "predictions.parquet", index=False)
            tensors = {f"adapter.{name}": value for name, value in outcome.adapter.items()}
            tensors |= {f"head.{name}": value for name, value in outcome.head.items()}
            save_file(tensors, Path(folder) / "adapter.safetensors")
            self._client.log_artifacts(self.run_id, folder)
        self._client.set_terminated(self.run_id, "FINISHED")

    @_storing()
    def fail(self, reason: Failure, message: str, trace: str) -> None:
        self._client.log_batch(
            self.run_id, tags=[RunTag("failure", reason), RunTag("failure_message", message[:5000])]
        )
        self._client.log_text(self.run_id, trace, "traceback.txt")
        self._client.set_terminated(self.run_id, "FAILED")

    @_storing()
    def kill(self) -> None:
        self._client.set_terminated(self.run_id, "KILLED")

    def _metrics(self, values: Iterable[tuple[str, float, int]]) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, step) for key, value, step in values]
        for first in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[first : first + MOST_METRICS])


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """One record a trial, of records from old to new: the first FINISHED one, else the newest that is
    settled, else the newest.

    A second FINISHED is a duplicate, and a retry that was killed leaves the failure standing.
    """
    chosen: dict[str, Record] = {}
    for record in records:
        known = chosen.get(record.trial_id)
        if known is None or (known.status != "FINISHED" and record.settled >= known.settled):
            chosen[record.trial_id] = record
    return chosen


def _predictions(outcome: Outcome) -> pd.DataFrame:
    logits = outcome.final.logits
    frame = pd.DataFrame(logits.numpy(), columns=[f"logit_{i}" for i in range(logits.shape[1])])
    frame.insert(0, "example", outcome.example_ids.numpy())
    frame.insert(1, "label", outcome.labels.numpy())
    frame.insert(2, "prediction", logits.argmax(1).numpy())
    return frame


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def connect(uri: str, name: str, *, create: bool) -> tuple[MlflowClient, FileLock]:
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # A database URI may name its driver: mysql+pymysql.
    scheme = urlparse(uri).scheme.partition("+")[0]
    if uri.startswith(SQLITE):
        database = _database(uri)
        if not database.name or database.name.startswith(":"):
            raise UserError(
                f"store '{uri}' would be lost with this process; name a file: sqlite:///mlflow.db"
            )
        if not create and not database.exists():
            raise UserError(f"there is no store at {database}; run a suite first, or name it with --store")
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            lock_folder = database.parent / ".tensorbench"
            lock_folder.mkdir(exist_ok=True)
            # Two processes that create the schema at once would break each other.
            with FileLock(lock_folder / "schema.lock", timeout=120):
                client = MlflowClient(uri)
                client.search_experiments(max_results=1)
        except BROKEN_STORE as error:
            raise UserError(f"cannot use the store at {database}: {error}") from error
        return client, FileLock(lock_folder / f"{database.name}-{name}.lock")
    if scheme not in ("http", "https", "postgresql", "mysql", "mssql"):
        raise UserError(
            f"store '{uri}' is not supported: use sqlite:///file.db, a server (http://…) or a database URI"
        )
    client = MlflowClient(uri)
    # MLflow asks a silent server for four minutes: right for a result, not for a mistyped address.
    patient = os.environ.get(RETRIES)
    os.environ[RETRIES] = patient or "2"
    try:
        client.search_experiments(max_results=1)
    except MlflowException as error:
        raise UserError(f"the tracking server at {uri} does not answer: {error}") from error
    finally:
        if patient is None:
            del os.environ[RETRIES]
    lock_folder = cache_dir() / "locks"
    lock_folder.mkdir(parents=True, exist_ok=True)
    safe = "".join(c if c.isalnum() else "_" for c in uri.split("@")[-1])
    return client, FileLock(lock_folder / f"{safe}-{name}.lock")


def _database(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE))


def _owner() -> str:
    process = psutil.Process()
    return f"{platform.node()}:{process.pid}:{process.create_time()}"


def _dead(owner: str) -> bool:
    """Whether the owner ran on this machine and is gone; the start time (s) tells a reused process id."""
    host, _, rest = owner.partition(":")
    if host != platform.node():
        return False
    pid, _, started = rest.partition(":")
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(started)) > 2
    except psutil.NoSuchProcess:
        return True
