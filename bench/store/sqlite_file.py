"""Reads a SQLite store with Python's own module, since importing MLflow takes two seconds of a processor.

The tables are MLflow's. They are no public interface of it, so `stored_runs` returns None where they differ.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from tensorbench.methods import UserError
from tensorbench.records.record import Record, record_of
from tensorbench.records.words import Artifact, RunKind, Tag
from tensorbench.store.artifacts import artifacts_of_run, check_content, moved_to
from tensorbench.store.source import Runs

#: The runs of a kind that are not deleted. The parameters are an experiment's id and the kind.
OF_KIND = f"""
    SELECT run_uuid FROM runs JOIN tags USING (run_uuid)
    WHERE experiment_id = ? AND lifecycle_stage = 'active' AND key = '{Tag.KIND}' AND value = ?
"""
RUNS = f"""
    SELECT run_uuid, status, start_time, artifact_uri, end_time FROM runs
    WHERE run_uuid IN ({OF_KIND}) ORDER BY start_time, run_uuid
"""
TAGS = f"SELECT run_uuid, key, value FROM tags WHERE run_uuid IN ({OF_KIND})"
METRICS = f"SELECT run_uuid, key, value, is_nan FROM latest_metrics WHERE run_uuid IN ({OF_KIND})"


class FileRuns(Runs):
    """The runs of an experiment, as a SQLite file had them when it was read."""

    def __init__(self, name: str, records: dict[RunKind, list[Record]]) -> None:
        self._name, self._records = name, records

    @property
    def name(self) -> str:
        return self._name

    def records(self, kind: RunKind = RunKind.TRIAL) -> list[Record]:
        return self._records[kind]

    def read(self, record: Record, name: Artifact) -> bytes | None:
        folder = artifacts_of_run(record.artifacts)
        if folder is None or not (path := folder / name).exists():
            return None
        check_content(record, name, path)
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{name} of run {record.run_id} cannot be read: {error}") from error


def stored_runs(database: Path) -> list[FileRuns] | None:
    """Reads the runs of all experiments in a SQLite file, sorted by the experiments' names.

    Artifacts that were moved together with the file are found, and the file is not changed. Returns None if
    the file cannot be read in this way, for example because another version of MLflow made its tables. MLflow
    then opens it, or says what is wrong.
    """
    sources = []
    try:
        with closing(sqlite3.connect(database)) as connection:
            experiments = connection.execute(
                "SELECT experiment_id, name, artifact_location FROM experiments "
                "WHERE lifecycle_stage = 'active' ORDER BY name"
            ).fetchall()
            for experiment, name, location in experiments:
                now = moved_to(database, location or "")
                records = {}
                for kind in RunKind:
                    runs, tags, metrics = (
                        connection.execute(asked, (experiment, kind)) for asked in (RUNS, TAGS, METRICS)
                    )
                    read = joined(runs, tags, metrics)
                    if now is not None:
                        read = [_at(record, location, now) for record in read]
                    records[kind] = read
                sources.append(FileRuns(name, records))
    except sqlite3.Error:
        return None
    return sources


def _at(record: Record, location: str, now: str) -> Record:
    """Returns a record whose artifacts, if they were below `location`, are below `now`."""
    uri = record.artifacts
    return replace(record, artifacts=now + uri[len(location) :]) if uri.startswith(location) else record


def joined(
    runs: Iterable[Sequence[Any]], tags: Iterable[Sequence[Any]], metrics: Iterable[Sequence[Any]]
) -> list[Record]:
    """Makes records from rows of MLflow's tables, in the order of `runs`.

    The rows of `runs` are (run id, status, start, artifact URI, end), those of `tags` (run id, key, value),
    and those of `metrics` (run id, key, value, whether it is NaN).
    """
    of_runs = list(runs)
    tags_of: defaultdict[str, dict[str, str]] = defaultdict(dict)
    metrics_of: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for run_id, key, tag in tags:
        tags_of[run_id][key] = tag
    for run_id, key, value, is_nan in metrics:
        metrics_of[run_id][key] = math.nan if is_nan else value
    records = []
    for run_id, status, started, artifacts, ended in of_runs:
        own_tags = tags_of[run_id]
        own_metrics = measures_in(own_tags) | metrics_of[run_id]
        records.append(record_of(run_id, status, started, own_tags, own_metrics, artifacts, ended))
    return records


def measures_in(tags: dict[str, str]) -> dict[str, float]:
    """Removes the tag of measures from a run's tags, and returns the measures in it."""
    try:
        return {str(key): float(value) for key, value in json.loads(tags.pop(Tag.MEASURES, "{}")).items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        # Not written by this program.
        return {}
