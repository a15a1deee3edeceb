"""MLflow is the store: one experiment a suite, one run a trial, and one run that holds the plan."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import psutil
from filelock import FileLock
from sqlalchemy import create_engine, select
from sqlalchemy.exc import SQLAlchemyError

# Nothing leaves the machine unless the user names a server.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Its bars and its lines for each run of a server would tear ours.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# MLflow asks a silent server for four minutes; what cannot be sent waits in the outbox instead.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

from mlflow.entities import Experiment, LifecycleStage, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlRun, SqlTag
from mlflow.tracking import MlflowClient

from bench import interrupts
from bench.assets import cache_dir
from bench.outbox import Letter, Outbox
from bench.plan import Plan, Row, Trial
from bench.record import Ending, Failure, failed, finished
from bench.training import Progress
from bench.trial import Outcome
from methods import UserError

DEFAULT_STORE = "sqlite:///mlflow.db"

#: Seconds between two writes of a running trial's progress, each of which is a transaction.
PROGRESS_EVERY = 2.0

#: MLflow's limits for one request.
MOST_METRICS, MOST_PARAMS = 1000, 100

SQLITE = "sqlite:///"
DATABASES = ("postgresql", "mysql", "mssql")

#: What MLflow raises where a store cannot be read or written: its own error, the database's, the disk's.
BROKEN_STORE = (MlflowException, SQLAlchemyError, OSError)


#: What a store says that answers and will not do it: asking again does not help.
REFUSALS = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED"}


class StoreError(UserError):
    """A result could not be stored. It says nothing about the trial."""


class StoreRefusedError(StoreError):
    """The store answers and does not take it, of a run that somebody deleted, say."""


@contextmanager
def storing() -> Iterator[None]:
    """Raises StoreError for whatever a store that cannot be reached raises; interrupts wait for the end."""
    try:
        with interrupts.deferred():
            yield
    except BROKEN_STORE as error:
        refused = isinstance(error, MlflowException) and error.error_code in REFUSALS
        said = shown_uri(str(error))
        raise (StoreRefusedError if refused else StoreError)(
            f"the store could not be written to: {said}; what it lacks runs again at the next start"
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

    @classmethod
    def of(cls, run: Run) -> Record:
        info, tags = run.info, dict(run.data.tags)
        return cls(
            info.run_id,
            tags.get("trial_id", ""),
            _status(info.status, tags),
            info.start_time,
            tags,
            dict(run.data.metrics),
            info.artifact_uri,
        )

    @property
    def settled(self) -> bool:
        """Whether the trial has a result, were it a failure; it does not run again unasked."""
        return self.status in ("FINISHED", "FAILED", "PRUNED")

    @property
    def score(self) -> float | None:
        """None unless it finished, with a finite score."""
        score = self.metrics.get("score", math.nan)
        return score if self.status == "FINISHED" and math.isfinite(score) else None


class Store:
    """One experiment of a tracking store. Raises UserError where the store cannot be used."""

    def __init__(self, client: MlflowClient, experiment: Experiment, uri: str) -> None:
        self.client = client
        self.experiment = experiment
        self.uri = uri
        #: Whether the store took the last thing it was given; while it does not, records wait.
        self.online = True

    @classmethod
    def create(cls, uri: str, name: str) -> Store:
        """Opens the experiment, making store and experiment where they are not there yet."""
        client = connect(uri, create=True)
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
                    raise UserError(
                        f"cannot create experiment '{name}' in {shown_uri(uri)}: {shown_uri(str(error))}"
                    ) from error
        if experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"experiment '{name}' was deleted in {shown_uri(uri)}; restore it with "
                f"'mlflow experiments restore -x {experiment.experiment_id}' or rename the suite"
            )
        return cls(client, experiment, uri)

    @classmethod
    def existing(cls, uri: str, name: str) -> Store:
        """Opens an experiment for reading. Raises UserError, with near names, if there is none."""
        client = connect(uri, create=False)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            names = [found.name for found in client.search_experiments() if found.name != "Default"]
            near = get_close_matches(name, names, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            there = ", ".join(names) or "none"
            raise UserError(f"no experiment '{name}' in {shown_uri(uri)}{hint} (there: {there})")
        return cls(client, experiment, uri)

    @property
    def local(self) -> bool:
        """Whether the store is a file: then nobody else can bring it back."""
        return self.uri.startswith(SQLITE)

    @property
    def outbox(self) -> Path:
        """The folder on this machine in which records of this experiment wait."""
        return _state_folder(self.uri) / "outbox" / self.experiment.name

    def records(self, kind: str = "trial", *, trial_id: str | None = None) -> list[Record]:
        """Every stored run of a kind, trials unless another is named, oldest first; or those of one trial."""
        if trial_id is None and not self.client.tracking_uri.startswith(("http://", "https://")):
            return self._database_records(kind)
        only = f" and tags.trial_id = '{trial_id}'" if trial_id else ""
        return [Record.of(run) for run in self._search(kind, only)]

    def plan(self) -> dict[str, Any] | None:
        """The plan of the latest start of the suite, as `Plan.as_json` wrote it; None if none was stored."""
        for run in reversed(self._search("suite")):
            # A start that died between making the run and storing its plan left none.
            if any(file.path == "plan.json" for file in self.client.list_artifacts(run.info.run_id)):
                with tempfile.TemporaryDirectory() as folder:
                    path = self.client.download_artifacts(run.info.run_id, "plan.json", folder)
                    try:
                        plan: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
                    except ValueError as error:
                        raise UserError(
                            f"plan.json of run {run.info.run_id} cannot be read: {error}"
                        ) from error
                return plan
        return None

    def running(self) -> list[Run]:
        """The runs of trials, suites and searches that are open, whoever runs them."""
        return [
            run
            for kind in ("trial", "suite", "search", "allocation")
            for run in self._search(kind, " and attributes.status = 'RUNNING'")
        ]

    @storing()
    def begin_suite(self, plan: Plan, driver: str = "") -> str:
        """The run that holds the plan and that trial runs are nested under."""
        whose = {"owner": owner(), "driver": driver}
        runs = self._search("suite")
        if runs:
            run_id: str = runs[-1].info.run_id
            self.client.update_run(run_id, status="RUNNING")
            for key, value in whose.items():
                self.client.set_tag(run_id, key, value)
        else:
            tags = {"kind": "suite", **whose}
            run_id = self.client.create_run(
                self.experiment.experiment_id, tags=tags, run_name=plan.suite.name
            ).info.run_id
        self.client.log_text(run_id, json.dumps(plan.as_json(), indent=1), "plan.json")
        self.client.set_tag(run_id, "mlflow.note.content", plan.suite.description)
        return run_id

    @storing()
    def end_suite(self, run_id: str, status: Literal["FINISHED", "KILLED"]) -> None:
        self.client.set_terminated(run_id, status)

    @storing()
    def begin_trial(
        self,
        trial: Trial,
        rows: list[Row],
        metric: str,
        parent: str,
        provenance: dict[str, str] | None = None,
        tags: Mapping[str, str] = {},
    ) -> TrialRun:
        """Opens the run of a trial, nested under `parent`, and stores what is known before it starts.

        `tags` are added to those that every trial has. Without provenance, which a worker on another
        machine tells when it starts, `TrialRun.start` is still to be called.
        """
        row = rows[0]
        budgets = [
            {"budget": r.budget.label, "asked": r.asked, "ratio": r.ratio, "within": r.within}
            for r in rows
            if r.budget
        ]
        known = {
            "kind": "trial",
            "trial_id": trial.id,
            "owner": owner(),
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
            "mlflow.parentRunId": parent,
            **tags,
        }
        name = f"{row.method} {known['ranks']}".rstrip() + f" · {row.task} · seed {trial.seed}"
        run = self.client.create_run(self.experiment.experiment_id, tags=known, run_name=name)
        writer = TrialRun(self, run.info.run_id, metric, trial.id)
        if provenance is not None:
            try:
                writer.start(trial.model_dump(mode="json", exclude_none=True), provenance)
            except BaseException:  # an interrupt, say: nobody else knows of this run yet
                writer.kill()
                raise
        return writer

    @storing()
    def send(self, letter: Letter, folder: Path | None = None) -> None:
        """Writes what a letter holds and drops from it what has arrived; twice does no harm.

        `folder` holds the artifacts. A terminal status is written last, after metrics and artifacts. Of
        several finished runs of a trial the first counts, and the others are marked as duplicates.
        """
        client, run_id = self.client, letter.run_id
        while letter.params:
            some = dict(list(letter.params.items())[:MOST_PARAMS])
            client.log_batch(run_id, params=[Param(key, value) for key, value in some.items()])
            letter.params = {key: value for key, value in letter.params.items() if key not in some}
        while letter.metrics:
            sent = letter.metrics[:MOST_METRICS]
            client.log_batch(run_id, metrics=[Metric(key, value, at, step) for key, value, at, step in sent])
            del letter.metrics[: len(sent)]
        while letter.texts:
            name, text = next(iter(letter.texts.items()))
            client.log_text(run_id, text, name)
            del letter.texts[name]
        tags = dict(letter.tags)
        if letter.status == "FINISHED":
            others = self.records(trial_id=letter.trial_id)
            if any(other.status == "FINISHED" and other.run_id != run_id for other in others):
                tags["duplicate"] = "yes"
        if tags:
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
            letter.tags = {}
        if folder is not None and any(folder.iterdir()):
            client.log_artifacts(run_id, str(folder))
        if letter.status:
            client.set_terminated(run_id, letter.status, letter.ended)

    @storing()
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
                id_,
                told[id_].get("trial_id", ""),
                _status(status, told[id_]),
                started,
                told[id_],
                measured[id_],
                artifacts,
            )
            for id_, status, started, artifacts in found
        ]

    @storing()
    def _search(self, kind: str, more: str = "") -> list[Run]:
        condition = f"tags.kind = '{kind}'{more}"
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
    """Writes one trial. What the store does not take is kept, in memory while the trial runs, on disk when
    it has ended, until `flush` finds the store back.
    """

    def __init__(self, store: Store, run_id: str, metric: str, trial_id: str = "") -> None:
        self.run_id = run_id
        self._store = store
        self._metric = metric
        self._letter = Letter(store.experiment.experiment_id, run_id, trial_id)
        #: Where the whole record lies once the trial has ended.
        self._kept: Path | None = None
        self._told = -PROGRESS_EVERY

    @property
    def ended(self) -> bool:
        """Whether the record is on disk, so that it is sent now or later."""
        return self._kept is not None

    def start(self, config: dict[str, Any], provenance: Mapping[str, str]) -> None:
        """Stores the resolved configuration, and where the trial runs."""
        self._letter.params |= {key: str(value) for key, value in _flat(config).items()}
        self._letter.tags |= {f"provenance.{key}": value for key, value in provenance.items()}
        resolved = {"trial": config, "provenance": dict(provenance)}
        self._letter.texts["config.json"] = json.dumps(resolved, indent=1)
        self.flush()

    def progress(self, progress: Progress) -> None:
        values: list[tuple[str, float, int]] = [("train/loss", loss, step) for step, loss in progress.losses]
        if progress.validation_metric is not None and progress.validation_loss is not None:
            values += [
                (f"validation/{self._metric}", progress.validation_metric, progress.epoch),
                ("validation/loss", progress.validation_loss, progress.epoch),
            ]
        now = _now()
        self._letter.metrics += [(key, value, now, step) for key, value, step in values]
        if time.monotonic() >= self._told + PROGRESS_EVERY:
            self._told = time.monotonic()
            self.flush()

    def end(self, ending: Ending) -> None:
        """Puts the whole record on disk, then sends it: from here on nothing is lost.

        A pruned or lost trial is a killed run with a tag: a pruned one is settled, a lost one runs again.
        """
        letter, now = self._letter, _now()
        letter.metrics += [(key, value, now, 0) for key, value in ending.metrics.items()]
        if ending.reason:
            letter.tags |= {"failure": ending.reason, "failure_message": ending.message[:5000]}
        if ending.status == "pruned":
            letter.tags["pruned"] = "yes"
        letter.status = {"finished": "FINISHED", "failed": "FAILED"}.get(ending.status, "KILLED")
        letter.ended = now
        with storing():
            self._kept = Outbox(self._store.outbox).keep(letter, ending.files)
        self.flush()

    def finish(self, outcome: Outcome) -> None:
        self.end(finished(outcome))

    def fail(self, reason: Failure, message: str, trace: str) -> None:
        self.end(failed(reason, message, trace))

    def prune(self) -> None:
        """Closes a trial that a search gave up early. It has no score and does not run again."""
        self.end(Ending("pruned"))

    @storing()
    def kill(self) -> None:
        self._store.client.set_terminated(self.run_id, "KILLED")

    def flush(self) -> None:
        """Sends what waits, unless the store is known to be away."""
        if not self._store.online:
            return
        if self._kept is None:
            self._store.send(self._letter)
        else:
            Outbox.send(self._kept, self._store.send)


def _status(status: str, tags: Mapping[str, str]) -> str:
    """MLflow has no word for a pruned run, a killed one with a tag, nor for a duplicate: a finished one that
    came when another run of its trial was finished already.
    """
    if status == "KILLED" and tags.get("pruned") == "yes":
        return "PRUNED"
    return "DUPLICATE" if status == "FINISHED" and tags.get("duplicate") == "yes" else status


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


def scores(records: Mapping[str, Record], ids: Iterable[str | None]) -> list[float]:
    """The scores of those of the trials that have one."""
    found = (records[id_].score for id_ in ids if id_ and id_ in records)
    return [score for score in found if score is not None]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def connect(uri: str, *, create: bool) -> MlflowClient:
    """A client of a store that answers. Raises UserError, if `create` is not set also where there is none."""
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
        if "?" in uri or "%" in uri:
            # What comes after a '?' is an option to SQLAlchemy, and it decodes '%20'.
            raise UserError(f"store '{uri}' cannot be named so: the path of a SQLite file has no '?' or '%'")
        if os.path.isdir(database):
            raise UserError(
                f"the store {database} is a folder; name a file in it: {SQLITE}{database / 'mlflow.db'}"
            )
        if not create and not database.exists():
            raise UserError(f"there is no store at {database}; run a suite first, or name it with --store")
        try:
            return _open(uri)
        except BROKEN_STORE as error:
            raise UserError(f"cannot use the store at {database}: {error}") from error
    if scheme not in ("http", "https", *DATABASES):
        raise UserError(
            f"store '{shown_uri(uri)}' is not supported: use sqlite:///file.db, a server (http://…) or a "
            "database URI"
        )
    try:
        return _open(uri)
    except BROKEN_STORE as error:
        raise UserError(
            f"the tracking server at {shown_uri(uri)} does not answer: {shown_uri(str(error))}"
        ) from error
    except ModuleNotFoundError as error:
        raise UserError(
            f"store '{shown_uri(uri)}' needs the package {error.name}: "
            "for PostgreSQL, pip install 'tensorpeft-bench[postgres]'"
        ) from error


def _open(uri: str) -> MlflowClient:
    # Two processes that create the schema at once would break each other.
    with FileLock(_state_folder(uri) / "schema.lock", timeout=120):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _state_folder(uri: str) -> Path:
    """Where this machine keeps what belongs to a store: beside a file, in the cache for a server."""
    if uri.startswith(SQLITE):
        folder = _database(uri).parent / ".tensorbench" / _database(uri).name
    else:
        where = shown_uri(uri)
        safe = "".join(c if c.isalnum() else "_" for c in where.partition("://")[2])[:60]
        folder = cache_dir() / "stores" / f"{safe}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shown_uri(text: str) -> str:
    """A store's address, or an error that tells it, without the name and password that it may hold."""
    return re.sub(r"(://)[^/\s]*@", r"\1", text)


def _database(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE))


def _now() -> int:
    return int(time.time() * 1000)


def owner() -> str:
    """This process, so that others on this machine can tell whether it still lives."""
    return f"{platform.node()}:{os.getpid()}:{_started(os.getpid())}"


def _started(pid: int) -> str:
    """When a process started, which tells a reused process id; not by the wall clock, which may be set."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return str(round(psutil.Process(pid).create_time()))


def dead(owner: str) -> bool:
    """Whether the owner ran on this machine and is gone."""
    host, _, rest = owner.partition(":")
    if host != platform.node():
        return False
    pid, _, started = rest.partition(":")
    try:
        return _started(int(pid)) != started
    except psutil.NoSuchProcess:
        return True
