"""The store, MLflow: one experiment per suite, one run per trial, and one run that holds the plan."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mlflow.artifacts import download_artifacts
from mlflow.entities import Experiment, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tensorbench.machine.alive import owner
from tensorbench.methods import UserError
from tensorbench.methods.errors import did_you_mean
from tensorbench.records import Wired
from tensorbench.records.measures import Measure
from tensorbench.records.pack_format import CURVES_BEGIN
from tensorbench.records.record import Point, Record
from tensorbench.records.stored_plan import StoredSuite
from tensorbench.records.text import all_storable, run_name
from tensorbench.records.words import YES, Artifact, RunKind, Status, Tag
from tensorbench.store.addresses import shown_uri
from tensorbench.store.artifacts import ARTIFACTS, artifacts_of_run, as_json, check_content, keep_files
from tensorbench.store.connect import (
    BROKEN_STORE,
    SQLITE,
    StoreError,
    asking_again,
    connect,
    database_file,
    insisting,
    read_only,
    state_folder,
    storing,
)
from tensorbench.store.mlflow_internals import delete_artifacts
from tensorbench.store.queries import experiments, find_runs, read_curves, read_tables
from tensorbench.store.source import CURVE, Source, begun_with

if TYPE_CHECKING:
    import pandas as pd

    from tensorbench.plan.rows import Plan

#: Metrics, parameters and tags per request. MLflow's limits are 1000, 100 and 100, and 1000 together.
MOST_METRICS, MOST_PARAMS, MOST_TAGS = 800, 100, 100

#: The parameter names that MLflow accepts.
PLAIN_KEY = re.compile(r"[\w.\- ]{1,80}")

#: The measures that become metrics in MLflow, which draws a chart of each. The tag `measures` has the others.
COMPARED = (
    Measure.SCORE,
    Measure.SELECTED_VALIDATION,
    Measure.ADAPTER_PARAMETERS,
    Measure.STEP_MS,
    Measure.PEAK_MIB,
    Measure.SECONDS,
)

#: The tag by which MLflow's interface opens an experiment as one of model training, not of generative AI.
TRAINING = ("mlflow.experimentKind", "custom_model_development")

#: The number of metric histories requested concurrently.
READERS = 8

Item = TypeVar("Item")


class Store(Source):
    """One experiment of an MLflow tracking store, which holds the runs of a suite.

    There is a run for each trial, and a run that holds the plan.
    """

    unreadable = (*BROKEN_STORE, StoreError)

    def __init__(self, client: MlflowClient, experiment: Experiment, uri: str) -> None:
        self.client = client
        self.experiment = experiment
        self.uri = uri
        #: Whether the store could be reached at the last attempt. If not, records wait in the outbox.
        self.online = True

    @classmethod
    def create(cls, uri: str, name: str) -> Store:
        """Opens an experiment. Creates it and its store if they are missing.

        Raises UserError if the store cannot be used, or the experiment was deleted.
        """
        client = connect(uri, create=True)
        store = cls(client, _not_deleted(_experiment(client, uri, name), uri), uri)
        kind, value = TRAINING
        if kind not in store.experiment.tags:
            # Another driver may be doing the same.
            insisting(client.set_experiment_tag)(store.experiment_id, kind, value)
        return store

    @classmethod
    def existing(cls, uri: str, name: str) -> Store:
        """Opens an experiment for reading. Raises UserError, with the nearest name, if it does not exist."""
        client = connect(uri, create=False)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            names = [existing.name for existing in experiments(client) if existing.name != "Default"]
            hint = did_you_mean(name, names)
            there = ", ".join(names) or "none"
            raise UserError(
                f"no experiment '{name}' in {shown_uri(uri)}{hint and f'; {hint}'} (there: {there})"
            )
        return cls(client, experiment, uri)

    @classmethod
    def there(cls, uri: str, name: str) -> Store | None:
        """Opens an experiment. Returns None if it does not exist.

        Raises UserError if the store cannot be used, or the experiment was deleted.
        """
        client = connect(uri, create=False)
        experiment = client.get_experiment_by_name(name)
        return None if experiment is None else cls(client, _not_deleted(experiment, uri), uri)

    @classmethod
    def every(cls, uri: str) -> list[Store]:
        """Opens all experiments of a store for reading, sorted by name.

        Raises UserError if there is no store.
        """
        client = connect(uri, create=False)
        stores = (cls(client, experiment, uri) for experiment in experiments(client))
        return sorted(stores, key=lambda store: store.name)

    @property
    def name(self) -> str:
        return str(self.experiment.name)

    @property
    def experiment_id(self) -> str:
        return str(self.experiment.experiment_id)

    @property
    def where(self) -> str:
        return shown_uri(self.uri)

    @property
    def link(self) -> str | None:
        if not self.uri.startswith("http"):
            return None
        return f"{shown_uri(self.uri).rstrip('/')}/#/experiments/{self.experiment_id}/runs/"

    @property
    def _served(self) -> bool:
        """Whether the store is a tracking server (http), so that its database cannot be read directly."""
        return str(self.client.tracking_uri).startswith(("http://", "https://"))

    @property
    def local(self) -> bool:
        """Whether the store is a SQLite file."""
        return self.uri.startswith(SQLITE)

    @property
    def read_only(self) -> bool:
        """Whether the store is in a folder that cannot be written to."""
        return read_only(self.uri)

    @property
    def outbox(self) -> Path:
        """The folder on this machine for records of this experiment that wait to be sent."""
        return state_folder(self.uri) / "outbox" / self.experiment.name

    @cached_property
    def _downloads(self) -> TemporaryDirectory[str]:
        """The folder for artifacts from a server. It is removed with this object."""
        return TemporaryDirectory(prefix="tensorbench-")

    # --- reading ---

    def records(self, kind: RunKind = RunKind.TRIAL, *, trial_id: str | None = None) -> list[Record]:
        """Returns the stored runs of a kind, oldest first. With `trial_id`, only the runs of this trial.

        Raises StoreError if the store cannot be read.
        """
        if trial_id is None and not self._served:
            with storing(reads=True):
                records = read_tables(self.client.tracking_uri, self.experiment.experiment_id, kind)
            if records is not None:
                return records
        if trial_id is None:
            return self._find(f"tags.{Tag.KIND} = '{kind}'")
        # Only trials have this tag. With a second condition, which all trials meet, a database would begin
        # with it.
        runs = self._find(f"tags.{Tag.TRIAL_ID} = '{trial_id}'")
        return [run for run in runs if run.tag(Tag.KIND) == kind]

    def unpacked(self) -> list[Record]:
        """Returns the runs of trials that came from packs, oldest first."""
        if not self._served:
            return [run for run in self.records() if run.tag(Tag.ORIGIN)]
        # Few runs have this tag.
        return [run for run in self._find(f"tags.{Tag.ORIGIN} != ''") if run.trial_id]

    def running(self, driver: str | None = None) -> list[Record]:
        """Returns the runs of every kind that have not ended. With `driver`, only the runs of this driver."""
        whose = f" and tags.{Tag.DRIVER} = '{driver}'" if driver else ""
        runs = self._find(f"attributes.status = 'RUNNING'{whose}")
        return [run for run in runs if run.tag(Tag.KIND) in set(RunKind)]

    def ended_since(self, time: int) -> list[Record]:
        """Returns the trials' runs that ended at or after `time`, in milliseconds since the epoch.

        They are sorted by their start. The end of a run is stated by the clock of its driver's machine.
        """
        return self._find(f"tags.{Tag.KIND} = '{RunKind.TRIAL}' and attributes.end_time >= {time}")

    @storing(reads=True)
    @asking_again
    def _find(self, condition: str) -> list[Record]:
        return find_runs(self.client, [self.experiment.experiment_id], condition)

    def artifact(self, record: Record, name: Artifact) -> Path | None:
        """Returns a local file with the artifact's content. None if the run has no such artifact.

        If the store is a server, the file is removed with this object.

        Raises UserError if the artifact changed since it was stored, or cannot be read.
        """
        if (here := artifacts_of_run(record.artifacts)) is not None:
            path = here / name
            if not path.exists():
                return None
        else:
            try:
                uri, folder = f"{record.artifacts}/{name}", mkdtemp(dir=self._downloads.name)
                path = Path(
                    download_artifacts(
                        artifact_uri=uri, dst_path=folder, tracking_uri=self.client.tracking_uri
                    )
                )
            except BROKEN_STORE as error:
                if self._lacks(record, name):
                    return None
                said = f"{name} of run {record.run_id} ({record.name}) is not available: {error}"
                raise UserError(shown_uri(said)) from error
        check_content(record, name, path)
        return path

    def has(self, record: Record, name: Artifact) -> bool:
        here = artifacts_of_run(record.artifacts)
        return not self._lacks(record, name) if here is None else (here / name).exists()

    def _lacks(self, record: Record, name: Artifact) -> bool:
        """Whether the run surely has no such artifact. False if the store does not answer."""
        try:
            return name not in {file.path for file in self.client.list_artifacts(record.run_id)}
        except BROKEN_STORE:
            return False

    def read(self, record: Record, name: Artifact) -> bytes | None:
        path = self.artifact(record, name)
        try:
            return None if path is None else path.read_bytes()
        except OSError as error:
            raise UserError(f"{name} of run {record.run_id} cannot be read: {error}") from error
        finally:
            if path is not None and artifacts_of_run(record.artifacts) is None:
                path.unlink()

    def details(self, record: Record) -> tuple[dict[str, str], dict[str, int | None]]:
        """Returns a run's parameters, and the sizes of its artifacts in bytes by name (None for a folder)."""
        listed = self.client.list_artifacts(record.run_id)
        params = self.client.get_run(record.run_id).data.params
        return dict(params), {file.path: file.file_size for file in listed}

    def curves(self, key: str | None = None, runs: Collection[str] = ()) -> pd.DataFrame:
        import pandas as pd

        points, uri = None, self.client.tracking_uri
        with storing(reads=True):
            if not self._served:
                points = read_curves(uri, self.experiment_id, key, runs)
        if points is None:
            points = self._curves_one_by_one(key, runs)
        return pd.DataFrame(points, columns=list(CURVE)).astype({"step": "int64", "value": "float64"})

    def _curves_one_by_one(self, key: str | None, runs: Collection[str]) -> list[tuple[str, str, int, float]]:
        keys = (
            ((record.run_id, curve) for record in self.records() for curve in record.metrics)
            if key is None
            else ((run_id, key) for run_id in runs)
        )
        curves = sorted(curve for curve in keys if curve[1].startswith(CURVES_BEGIN))
        with ThreadPoolExecutor(READERS) as pool:
            histories = pool.map(lambda curve: self.client.get_metric_history(*curve), curves)
            return [
                (*curve, step, value)
                for curve, points in zip(curves, histories, strict=True)
                for step, value in sorted({point.step: point.value for point in points}.items())
            ]

    # --- writing ---

    @insisting
    def begin(self, name: str, driver: str = "", commits: Mapping[str, str] = {}) -> Record:
        """Reopens the suite's newest run, or opens one with these hub commits. Returns the run's record."""
        whose = {Tag.OWNER: owner(), Tag.DRIVER: driver}
        if not (there := self.records(RunKind.SUITE)):
            every = {Tag.KIND: str(RunKind.SUITE), Tag.COMMITS: json.dumps(commits), **whose}
            made = self.client.create_run(self.experiment.experiment_id, tags=every, run_name=run_name(name))
            own: str = made.info.run_id
            # Drivers that begin at the same time may each have made a run; all continue with the first.
            first = min(self.records(RunKind.SUITE), key=lambda run: (run.started, run.run_id))
            if first.run_id != own:
                self.client.delete_run(own)
            return first
        self.client.update_run(there[-1].run_id, status=Status.RUNNING)
        for key, value in whose.items():
            self.client.set_tag(there[-1].run_id, key, value)
        return there[-1]

    def begin_suite(self, plan: Plan, driver: str = "") -> str:
        """Opens the run that holds the plan, and stores the plan. Returns the run's id.

        The trials' runs are nested in this run. If the plan covers only some tasks and backbones of the
        suite, stored rows of the others are kept. Raises UserError if another start resolved a branch of the
        hub to another commit, since the planned trials would then mix two commits.
        """
        suite, stored = plan.suite, plan.stored()

        def refuse_other(commits: Mapping[str, str]) -> None:
            for revision in commits.keys() & suite.commits.keys():
                if commits[revision] != suite.commits[revision]:
                    raise UserError(
                        f"{revision} is {suite.commits[revision]}, but another start of '{suite.name}' took "
                        f"{commits[revision]}: start again to take that too"
                    )

        refuse_other(commits := self.commits() if suite.commits else {})
        if plan.partial and (earlier := self.plan()):
            stored = stored.completed(earlier)
        run = self.begin(suite.name, driver, suite.commits)
        # Another start may have made the run in the same moment, before either stored its commits.
        refuse_other(begun_with(run))
        run_id = run.run_id
        self.keep(run_id, Artifact.PLAN, stored)
        fields = suite.model_dump(mode="json", exclude_unset=True)
        self.keep(run_id, Artifact.SUITE, StoredSuite(suite=fields, commits=commits | suite.commits))
        self.tag(run_id, Tag.NOTE, suite.description)
        return run_id

    @insisting
    def end(self, run_id: str, status: Literal[Status.FINISHED, Status.KILLED]) -> None:
        self.client.set_terminated(run_id, status)

    @insisting
    def keep(self, run_id: str, name: Artifact, content: Wired) -> None:
        """Stores a JSON artifact of a run."""
        with TemporaryDirectory() as folder:
            (Path(folder) / name).write_text(as_json(content), encoding="utf-8")
            keep_files(self.client, run_id, Path(folder))

    @insisting
    def tag(self, run_id: str, tag: Tag, value: str) -> None:
        self.client.set_tag(run_id, tag, value)

    @insisting
    def log(self, run_id: str, points: Collection[Point]) -> None:
        """Adds points to the metrics of a run."""
        for part in _parts([Metric(*point) for point in points], MOST_METRICS):
            self.client.log_batch(run_id, metrics=part)

    @insisting
    def keep_folder(self, run_id: str, folder: Path, where: str) -> None:
        """Stores all files of a folder as artifacts of a run, in one request.

        `where` is the name of their folder among the run's artifacts. What it held before is removed, unless
        the artifacts are where nothing can be removed.
        """
        uri = self.client.get_run(run_id).info.artifact_uri
        # Each kind of storage has errors of its own where nothing may be removed.
        with suppress(Exception):
            delete_artifacts(uri, self.client.tracking_uri, where)
        self.client.log_artifacts(run_id, str(folder), where)

    @insisting
    def send(self, record: Record, folder: Path | None = None) -> None:
        """Writes a record into the store. Writing it twice does no harm.

        `folder` contains the record's artifacts. The status of an ended run is written last. If several runs
        of a trial finished, one counts and the others are marked as duplicates: the first run that has its
        adapter counts, or the first run if none has. Raises StoreError if the store fails or refuses.
        """
        client, run_id, ended = self.client, record.run_id, record.ended
        config = None if folder is None else folder / Artifact.CONFIG
        params = parameters(config.read_bytes()) if config is not None and config.exists() else {}
        single = {key: value for key, value in record.metrics.items() if not key.startswith(CURVES_BEGIN)}
        compared = {key: single.pop(key) for key in COMPARED if key in single}
        points = [*record.points, *(Point(key, value, ended or 0, 0) for key, value in compared.items())]
        tags = all_storable(record.tags) | ({Tag.MEASURES: json.dumps(single)} if single else {})
        other_results = self._other_results(record) if record.status == Status.FINISHED else []
        # Runs that came from packs may lack their adapters.
        brings = folder is not None and (folder / Artifact.ADAPTER).exists()
        counts = brings and not any(self.has(run, Artifact.ADAPTER) for run in other_results)
        if other_results and not counts:
            tags[Tag.DUPLICATE] = YES
        parts = zip_longest(
            _parts([Metric(*point) for point in points], MOST_METRICS),
            _parts([Param(*param) for param in params.items()], MOST_PARAMS),
            _parts([RunTag(*tag) for tag in tags.items()], MOST_TAGS),
            fillvalue=(),
        )
        for metrics, some_params, some_tags in parts:
            client.log_batch(run_id, metrics=metrics, params=some_params, tags=some_tags)
        if folder is not None and any(folder.iterdir()):
            keep_files(client, run_id, folder, record.artifacts)
        if record.status != Status.RUNNING:
            client.set_terminated(run_id, record.status.ended, ended)
        if counts:
            # Only now, since this run would not count if one of the writes above failed.
            for run in other_results:
                client.set_tag(run.run_id, Tag.DUPLICATE, YES)

    def _other_results(self, record: Record) -> list[Record]:
        """Returns the other finished runs of a trial that are no duplicates. Empty for a suite's run."""
        runs = self.records(trial_id=record.trial_id) if record.trial_id else []
        return [run for run in runs if run.status == Status.FINISHED and run.run_id != record.run_id]


def _parts(items: list[Item], most: int) -> Iterator[list[Item]]:
    return (items[start : start + most] for start in range(0, len(items), most))


def parameters(config: bytes) -> dict[str, str]:
    """Returns the parameters that MLflow shows for a run, from the content of its `config.json`.

    Empty if the content is malformed.
    """
    try:
        trial = json.loads(config).get("trial")
    except (ValueError, AttributeError, RecursionError):
        return {}
    return all_storable(_flat(trial)) if isinstance(trial, dict) else {}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flattens a trial's configuration, with dots in the keys of nested values. Values of None are left out.

    A mapping whose keys cannot be parameter names, such as a user's classes, becomes one value.
    """
    values: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and all(map(PLAIN_KEY.fullmatch, value)):
            values |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            values[f"{prefix}{key}"] = str(value)
    return values


def _not_deleted(experiment: Experiment, uri: str) -> Experiment:
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"experiment '{experiment.name}' was deleted in {shown_uri(uri)}; restore it with "
            f"'mlflow experiments restore -x {experiment.experiment_id}' or rename the suite"
        )
    return experiment


@asking_again
def _experiment(client: MlflowClient, uri: str, name: str) -> Experiment:
    """Returns the experiment of this name. Creates it if missing. Raises UserError if that fails."""
    if experiment := client.get_experiment_by_name(name):
        return experiment
    location = None
    if uri.startswith(SQLITE):
        location = (database_file(uri).parent / ARTIFACTS / name).absolute().as_uri()
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        # If two processes start at the same time, the second finds the first one's experiment.
        if experiment := client.get_experiment_by_name(name):
            return experiment
        raise UserError(
            f"cannot create experiment '{name}' in {shown_uri(uri)}: {shown_uri(str(error))}"
        ) from error
